import numpy as np
import pytest
import tensorflow as tf

from keras_unigan.data import augmentation

SHAPES = [(6, 5), (6, 5, 4)]


def batch_of(spatial, count=8):
    """A batch whose image tells which label each voxel has."""
    labels = np.random.default_rng(0).integers(0, 4, (count, *spatial)).astype(np.uint8)
    labels[:, 0] = 255
    image = np.where(labels == 255, -1.0, labels / 4 - 0.5).astype(np.float32)[..., None]
    return {
        "image": tf.constant(image),
        "label_map": tf.constant(labels),
        "domain": tf.range(count),
    }


@pytest.mark.parametrize("spatial", SHAPES)
def test_flips_keep_image_and_label_map_together(spatial):
    batch = batch_of(spatial)
    found = augmentation.random_flip(batch, (1, 2))
    labels = found["label_map"].numpy()
    image = np.where(labels == 255, -1.0, labels / 4 - 0.5)
    np.testing.assert_array_equal(found["image"].numpy()[..., 0], image)
    # Every sample is one of the mirror images, and they are not all turned alike.
    turned = set()
    for before, after in zip(batch["label_map"].numpy(), labels, strict=True):
        ways = [
            axes
            for axes in np.ndindex(*[2] * len(spatial))
            if np.array_equal(np.flip(before, [a for a, f in enumerate(axes) if f]), after)
        ]
        turned.update(ways)
        assert len(ways) == 1
    assert len(turned) > 2


@pytest.mark.parametrize("spatial", SHAPES)
@pytest.mark.parametrize("name", ["intensity", "gamma", "noise"])
def test_intensity_changes_leave_labels_and_stay_in_range(spatial, name):
    batch = batch_of(spatial)
    found = augmentation.AUGMENTATIONS[name](batch, (1, 2))
    np.testing.assert_array_equal(found["label_map"], batch["label_map"])
    image = found["image"].numpy()
    assert image.dtype == np.float32
    assert image.min() >= -1
    assert image.max() <= 1
    change = np.abs(image - batch["image"].numpy()).reshape(len(image), -1).max(axis=1)
    assert (change > 0).all()
    assert len(set(change)) == len(change)
    # Small: no tissue takes the place of another.
    assert change.max() < 0.35


@pytest.mark.parametrize("spatial", SHAPES)
def test_the_same_in_tf_data_and_eagerly(spatial):
    batch = batch_of(spatial)
    eager = augmentation.augment(batch, (7, 3))
    dataset = tf.data.Dataset.from_tensors(batch).map(lambda b: augmentation.augment(b, (7, 3)))
    (graph,) = list(dataset)
    assert set(graph) == set(batch)
    assert graph["label_map"].dtype == tf.uint8
    assert graph["image"].shape == batch["image"].shape
    for key, value in eager.items():
        np.testing.assert_allclose(graph[key], value, atol=1e-6)


def test_labels_stay_whole_numbers_that_were_there():
    batch = batch_of((6, 5, 4))
    found = augmentation.augment(batch, (0, 0))["label_map"].numpy()
    for before, after in zip(batch["label_map"].numpy(), found, strict=True):
        np.testing.assert_array_equal(np.sort(before, axis=None), np.sort(after, axis=None))


@pytest.mark.parametrize("name", augmentation.AUGMENTATIONS)
def test_another_seed_gives_another_result(name):
    batch, function = batch_of((6, 5)), augmentation.AUGMENTATIONS[name]
    first, same = (function(batch, (1, 1))["image"].numpy() for _ in range(2))
    np.testing.assert_array_equal(first, same)
    for seed in ((2, 1), (1, 2)):
        assert (function(batch, seed)["image"].numpy() != first).any()
