import numpy as np
import pytest
import scipy.ndimage
import tensorflow as tf

from keras_unigan.data import augmentation
from keras_unigan.data.augmentation import contrast, geometry, intensity

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


def ramp(spatial, axis, count=4):
    """Image and label map whose values are the voxel's number along an axis."""
    numbers = np.broadcast_to(np.indices(spatial)[axis], (count, *spatial))
    image = tf.constant(numbers[..., None].astype(np.float32))
    return {"image": image, "label_map": tf.constant(numbers.astype(np.uint8))}


def images(spatial, count=4, seed=0):
    """Random images in [-1, 1] whose first rows are background."""
    values = np.random.default_rng(seed).uniform(-0.8, 1, (count, *spatial, 1)).astype(np.float32)
    values[:, :3] = -1
    return tf.constant(values)


@pytest.mark.parametrize("spatial", SHAPES)
def test_flips_keep_image_and_label_map_together(spatial):
    batch = batch_of(spatial)
    found = geometry.random_flip(batch, (1, 2))
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
    # The same mirrors again give the batch back.
    again = geometry.random_flip(found, (1, 2))
    np.testing.assert_array_equal(again["image"], batch["image"])
    np.testing.assert_array_equal(again["label_map"], batch["label_map"])


@pytest.mark.parametrize("spatial", SHAPES)
@pytest.mark.parametrize("name", ["intensity", "gamma", "noise"])
def test_light_changes_leave_labels_and_stay_in_range(spatial, name):
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


@pytest.mark.parametrize(
    ("level", "spatial"),
    [
        *(("none", SHAPES[0]), ("light", SHAPES[1]), ("standard", SHAPES[0])),
        *(("contrast", SHAPES[1]), ("paint", SHAPES[0])),
    ],
)
def test_the_same_in_tf_data_and_eagerly(spatial, level):
    batch = batch_of(spatial)

    def change(batch):
        return augmentation.augment(batch, (7, 3), level, spacing=(1.0, 1.0, 3.0)[: len(spatial)])

    eager = change(batch)
    (graph,) = list(tf.data.Dataset.from_tensors(batch).map(change))
    assert set(graph) == set(batch)
    assert graph["label_map"].dtype == tf.uint8
    assert graph["image"].shape == batch["image"].shape
    for key, value in eager.items():
        np.testing.assert_allclose(graph[key], value, atol=1e-5)
    assert np.isfinite(eager["image"]).all()
    assert np.abs(eager["image"]).max() <= 1 + 1e-6
    assert set(np.unique(eager["label_map"])) <= {0, 1, 2, 3, 255}


def test_real_images_move_along_and_keep_their_contrast():
    batch = batch_of((6, 5), count=16)
    batch["real"] = batch["image"]
    found = augmentation.augment(batch, (7, 3), "contrast")
    changed = augmentation.contrasted((7, 3), 16, 0.5).numpy()
    same = [
        np.allclose(a, b, atol=1e-5) for a, b in zip(found["image"], found["real"], strict=True)
    ]
    np.testing.assert_array_equal(same, ~changed)
    plain = augmentation.augment(
        {k: v for k, v in batch.items() if k != "real"}, (7, 3), "standard"
    )
    np.testing.assert_allclose(found["real"], plain["image"], atol=1e-5)
    np.testing.assert_array_equal(found["label_map"], plain["label_map"])


def test_sizes_may_be_unknown_to_the_graph():
    batch = batch_of((6, 5))
    spec = {
        "image": tf.TensorSpec((None, None, None, 1), tf.float32),
        "label_map": tf.TensorSpec((None, None, None), tf.uint8),
        "domain": tf.TensorSpec((None,), tf.int32),
    }
    dataset = tf.data.Dataset.from_generator(lambda: [batch], output_signature=spec)
    (found,) = list(dataset.map(lambda b: augmentation.augment(b, (7, 3), "contrast")))
    expected = augmentation.augment(batch, (7, 3), "contrast")
    np.testing.assert_allclose(found["image"], expected["image"], atol=1e-5)
    np.testing.assert_array_equal(found["label_map"], expected["label_map"])


def test_unknown_level():
    with pytest.raises(ValueError, match=r"Expected level in .*'light'.*, got 'heavy'"):
        augmentation.augment(batch_of((6, 5)), (0, 0), "heavy")


def test_light_labels_are_those_that_were_there():
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


# Geometry.


def affine(batch, angles=None, scales=None, shift=None, spacing=None):
    """Samples a batch under one affine map for all samples."""
    axes, count = batch["image"].shape.rank - 2, batch["image"].shape[0]
    angles = [0.0] * (1 if axes == 2 else 3) if angles is None else angles
    values = (angles, scales or [1.0] * axes, shift or [0.0] * axes)
    angles, scales, shift = (tf.tile(tf.constant([v], tf.float32), [count, 1]) for v in values)
    matrix = geometry.affine_matrix(angles, scales, spacing)
    coordinates = geometry.affine_coordinates(batch["image"], matrix, shift)
    return geometry.sample(batch, coordinates, -1.0)


@pytest.mark.parametrize("spatial", SHAPES)
def test_identity_parameters_change_nothing(spatial):
    batch = batch_of(spatial)
    for found in (
        affine(batch),
        geometry.sample(batch, geometry.random_affine(batch["image"], (1, 2), 0.0, 0.0, 0.0), -1.0),
        geometry.sample(batch, geometry.random_affine(batch["image"], (1, 2), share=0.0), -1.0),
        geometry.sample(
            batch,
            geometry.grid(batch["image"]) + geometry.random_elastic(batch["image"], (1, 2), 0.0),
            -1.0,
        ),
    ):
        np.testing.assert_array_equal(found["image"], batch["image"])
        np.testing.assert_array_equal(found["label_map"], batch["label_map"])


def test_a_known_shift():
    batch = batch_of((6, 5))
    found = affine(batch, shift=[2.0, -1.0])
    for key, outside in (("image", -1.0), ("label_map", 255)):
        before, after = batch[key].numpy(), found[key].numpy()
        np.testing.assert_array_equal(after[:, :4, 1:], before[:, 2:, :4])
        assert (after[:, 4:] == outside).all()
        assert (after[:, :, :1] == outside).all()
    # Half a voxel: the mean of two, and the label of the upper one.
    found = affine(ramp((6, 5), 0), shift=[0.5, 0.0])
    np.testing.assert_allclose(found["image"][0, :5, 0, 0], [0.5, 1.5, 2.5, 3.5, 4.5])
    np.testing.assert_array_equal(found["label_map"][0, :5, 0], [1, 2, 3, 4, 5])


@pytest.mark.parametrize(
    ("spatial", "number", "axes"),
    [((5, 5), 0, (0, 1)), ((5, 5, 5), 0, (1, 2)), ((5, 5, 5), 1, (2, 0)), ((5, 5, 5), 2, (0, 1))],
)
def test_a_quarter_turn(spatial, number, axes):
    batch = batch_of(spatial)
    angles = [0.0] * (1 if len(spatial) == 2 else 3)
    angles[number] = np.pi / 2
    found = affine(batch, angles)
    # The middle of an odd cube is a voxel; the result at e_first comes from e_second.
    turned = np.rot90(batch["label_map"].numpy(), -1, [a + 1 for a in axes])
    np.testing.assert_array_equal(found["label_map"], turned)
    turned = np.rot90(batch["image"].numpy(), -1, [a + 1 for a in axes])
    np.testing.assert_allclose(found["image"], turned, atol=1e-5)


def test_a_rotation_is_one_in_mm_where_voxels_are_long():
    matrix = geometry.affine_matrix(tf.constant([[np.pi / 2]]), tf.ones((1, 2)), (1.0, 4.0))
    # One voxel along x is 1 mm: a quarter of a voxel along y.
    np.testing.assert_allclose(matrix[0], [[0, -4], [0.25, 0]], atol=1e-6)


def test_scales_above_one_enlarge():
    found = affine(ramp((9, 9), 0), scales=[2.0, 2.0])
    np.testing.assert_allclose(found["image"][0, :, 4, 0], 4 + (np.arange(9) - 4) / 2)


@pytest.mark.parametrize("spatial", [(24, 20), (16, 12, 10)])
@pytest.mark.parametrize("axis", [0, -1])
def test_a_warp_moves_image_and_label_map_together(spatial, axis):
    batch = ramp(spatial, axis)
    coordinates = geometry.random_affine(
        batch["image"], (3, 4), spacing=(1.0, 2.0, 3.0)[-len(spatial) :]
    )
    coordinates += geometry.random_elastic(batch["image"], (3, 4), distance=6.0)
    found = geometry.sample(batch, coordinates, -1.0)
    image, labels = found["image"].numpy()[..., 0], found["label_map"].numpy()
    outside = labels == 255
    assert 0 < outside.mean() < 0.6
    assert (image[outside] == -1).all()
    # A linear image is interpolated exactly: it says where the voxel came from.
    assert np.abs(image - labels)[~outside].max() <= 0.5 + 1e-4
    assert (np.abs(image - batch["image"].numpy()[..., 0])[~outside] > 0.1).any()
    assert len({a.tobytes() for a in labels}) == len(labels)


def test_an_elastic_field_is_smooth_and_of_its_size():
    image = tf.zeros((64, 40, 40, 1))
    field = geometry.random_elastic(image, (1, 2), sd=4.0, distance=8.0).numpy()
    # Splines average their control points: about half of the largest deviation is left at most.
    assert 0.5 < field.std() < 4
    assert np.abs(np.diff(field, axis=1)).max() < 2.5
    assert (geometry.random_elastic(image, (1, 2), share=0.5).numpy() == 0).all((1, 2, 3)).any()
    # Along an axis of long voxels the same millimetres are fewer voxels.
    long = geometry.random_elastic(tf.zeros((64, 24, 24, 8, 1)), (1, 2), spacing=(1.0, 1.0, 4.0))
    assert 3 < long[..., 0].numpy().std() / long[..., 2].numpy().std() < 5


def test_splines_sum_to_one():
    for size, spacing in ((5, 1.0), (17, 4.0), (16, 40.0)):
        matrix = geometry.spline_matrix(size, spacing)[0].numpy()
        np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-6)
        # They give a line back whose control points lie on it.
        points = spacing * (np.arange(matrix.shape[1]) - 1.0)
        np.testing.assert_allclose(matrix @ points, np.arange(size), atol=1e-3)


# Intensities.


@pytest.mark.parametrize("spatial", [(24, 20), (12, 10, 8)])
def test_blur_is_gaussian(spatial):
    image = images(spatial, count=2)
    matrices = [geometry.gaussian_matrix(n, tf.constant([0.0, 0.8])) for n in spatial]
    found = geometry.along_axes(image, matrices).numpy()
    np.testing.assert_allclose(found[0], image[0], atol=1e-6)
    expected = scipy.ndimage.gaussian_filter(image[1].numpy()[..., 0], 0.8, truncate=8)
    inner = (slice(4, -4),) * len(spatial)
    np.testing.assert_allclose(found[1, ..., 0][inner], expected[inner], atol=1e-4)


def test_low_resolution():
    flat = tf.ones((3, 12, 10, 1))
    factors = tf.constant([1.0, 2.0, 3.0])
    matrices = [geometry.coarse_matrix(n, factors) for n in (12, 10)]
    np.testing.assert_allclose(geometry.along_axes(flat, matrices), flat, atol=1e-5)
    image = images((12, 10), count=1)
    found = geometry.along_axes(tf.repeat(image, 3, axis=0), matrices).numpy()
    np.testing.assert_allclose(found[0], image[0], atol=1e-5)
    rough = np.abs(np.diff(found, axis=1)).mean(axis=(1, 2, 3))
    assert rough[0] > rough[1] > rough[2]
    # A step stays where it is.
    step = tf.constant(np.arange(12) >= 6, tf.float32)[None, :, None, None] * tf.ones((3, 1, 10, 1))
    found = geometry.along_axes(step, matrices).numpy()
    np.testing.assert_allclose(found.sum(axis=1), 6, atol=0.05)


@pytest.mark.parametrize("name", ["bias_field", "blur", "low_resolution", "gamma"])
def test_a_share_of_the_samples_is_changed(name):
    image = images((12, 10), count=64)
    found = augmentation.AUGMENTATIONS[name]({"image": image}, (1, 2), share=0.5)["image"].numpy()
    changed = (np.abs(found - image) > 1e-5).any(axis=(1, 2, 3))
    assert 0.25 < changed.mean() < 0.75
    nothing = augmentation.AUGMENTATIONS[name]({"image": image}, (1, 2), share=0.0)["image"]
    np.testing.assert_allclose(nothing, image, atol=1e-6)


@pytest.mark.parametrize("spatial", [(24, 20), (12, 10, 8)])
def test_bias_fields_keep_background_and_range(spatial):
    image = images(spatial)
    found = intensity.random_bias_field({"image": image}, (1, 2), 0.7, 10.0, 1.0)["image"].numpy()
    assert (found[:, :3] == -1).all()
    tops = [i.reshape(4, -1).max(axis=1) for i in (found, image.numpy())]
    np.testing.assert_allclose(*tops, atol=1e-5)
    factor = ((found + 1) / (image.numpy() + 1 + 1e-9))[:, 3:]
    assert factor.std() > 0.02
    assert np.abs(np.diff(factor, axis=1)).max() < 0.2


# Contrast.


def test_curves_bend_and_keep_the_background():
    curves = contrast.random_curves((1, 2), 64).numpy()
    assert curves.shape == (64, contrast.ENTRIES)
    assert (curves[:, 0] == -1).all()
    assert np.abs(curves).max() <= 1
    assert (curves.max(axis=1) > 0.2).mean() > 0.9
    # Smooth, and mostly not monotone.
    assert np.abs(np.diff(curves, axis=1)).max() < 0.35
    falling = (np.diff(curves[:, 20:], axis=1) < -1e-4).any(axis=1)
    assert falling.mean() > 0.8
    identity = tf.tile(tf.linspace(-1.0, 1.0, contrast.ENTRIES)[None], [4, 1])
    image = images((6, 5))
    np.testing.assert_allclose(contrast.apply_curves(image, identity), image, atol=1e-6)
    found = contrast.apply_curves(image, tf.constant(curves[:4])).numpy()
    assert (found[:, :3] == -1).all()


def test_painting_gives_each_class_its_gaussian():
    labels = np.zeros((2, 40, 40), np.uint8)
    labels[:, 10:20], labels[:, 20:30], labels[:, 30:] = 1, 2, 255
    image = images((40, 40), count=2)
    found = contrast.paint(image, tf.constant(labels), (1, 2)).numpy()
    other = (labels == 0) | (labels == 255)
    np.testing.assert_array_equal(found[other], image.numpy()[other])
    means = [[found[s][labels[s] == k].mean() for k in (1, 2)] for s in (0, 1)]
    sds = [[found[s][labels[s] == k].std() for k in (1, 2)] for s in (0, 1)]
    assert len(set(np.ravel(means).round(2))) == 4
    assert (np.abs(means) <= 0.85).all()
    assert (np.ravel(sds) > 0.03).all()
    assert (np.ravel(sds) < 0.22).all()


def test_contrast_changes_its_share_and_leaves_the_rest():
    batch = batch_of((12, 10), count=64)
    image = batch["image"] = images((12, 10), count=64)
    changed = augmentation.contrasted((1, 2), 64, 0.5)
    assert 0.3 < changed.numpy().mean() < 0.7
    assert not augmentation.contrasted((1, 2), 64, 0.0).numpy().any()
    assert augmentation.contrasted((1, 2), 64, 1.0).numpy().all()
    found = contrast.random_contrast(batch, (1, 2), changed)
    np.testing.assert_array_equal(found["label_map"], batch["label_map"])
    same = (found["image"].numpy() == image.numpy()).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(same, ~changed.numpy())
    # Where nothing is labelled, background stays background.
    batch["label_map"] = tf.fill((64, 12, 10), tf.constant(255, tf.uint8))
    found = contrast.random_contrast(batch, (1, 2), changed)["image"].numpy()
    assert (found[:, :3] == -1).all()
    pairs = zip(found.reshape(64, -1), image.numpy().reshape(64, -1), strict=True)
    order = [np.corrcoef(a[30:], b[30:])[0, 1] for a, b in pairs]
    assert min(np.array(order)[changed.numpy()]) < 0.3


def test_painted_images_hold_nothing_of_the_intensities():
    image = images((16, 12), count=32)
    labels = np.random.default_rng(1).integers(0, 3, (32, 16, 12)).astype(np.uint8)
    labels[:, :3] = 0
    labels[:, 3] = 255
    batch = {"image": image, "label_map": tf.constant(labels)}
    found = contrast.painted_image(**batch, seed=(1, 2)).numpy()
    assert (found[:, :3] == -1).all()
    assert (np.abs(found) <= 1).all()
    # Any other image with the same ranks gives the same painting.
    other = tf.where(image > -1, 0.4 * image**3, -1.0)
    np.testing.assert_allclose(
        contrast.painted_image(other, batch["label_map"], (1, 2)), found, atol=1e-6
    )
    # A class is one Gaussian, and what nobody labelled a few: most of the spread is between them.
    again = contrast.painted_image(**batch, seed=(1, 3)).numpy()
    one = found[labels == 1], again[labels == 1]
    assert np.corrcoef(*(o.ravel() for o in one))[0, 1] < 0.3
    within = [f[la == 1].std() for f, la in zip(found, labels, strict=True)]
    assert np.mean(within) < 0.6 * found[labels == 1].std()
    assert not np.allclose(found[labels == 255], -1)


def test_the_level_paint_warps_all_and_equalizes_what_is_unknown():
    batch = batch_of((12, 10), count=16)
    batch["known"] = tf.range(16) % 2 == 0
    plain = augmentation.augment(batch, (7, 3), "paint")
    found = augmentation.augment(batch, (7, 3), "paint", equalized=True)
    np.testing.assert_array_equal(found["label_map"], plain["label_map"])
    same = [np.allclose(a, b) for a, b in zip(found["image"], plain["image"], strict=True)]
    np.testing.assert_array_equal(same, batch["known"])
    assert not found["known"].numpy().any()
    warped = (plain["label_map"].numpy() != batch["label_map"].numpy()).any(axis=(1, 2))
    assert warped.all()
    assert (plain["label_map"].numpy() == 255).any()
    with pytest.raises(ValueError, match="no real image"):
        augmentation.augment({**batch, "real": batch["image"]}, (7, 3), "paint")
