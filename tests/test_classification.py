"""Which modality an image is of, by the domain head of a discriminator."""

import numpy as np
import pytest
import tensorflow as tf
from checks import plan as make_plan

from keras_unigan.classification import classifying_function
from keras_unigan.layers import IntensityNormalization
from keras_unigan.networks import StarGANDiscriminator

PLAN = make_plan(modalities=("ct", "t1"), size=8)


class Sums:
    """A head whose logits are known: the sum of the image for "ct", nothing for "t1"."""

    head, patch_size = "classify", (4, 4)

    def __call__(self, image, training=True):
        assert not training
        assert image.shape[1:] == (4, 4, 1)
        total = tf.reduce_sum(image, axis=(1, 2, 3))
        return None, tf.stack([total, tf.zeros_like(total)], axis=1)


def log_sigmoid(x):
    return -np.log1p(np.exp(-x))


def test_each_modality_is_scored_on_an_image_normalised_as_its_own():
    image = np.random.default_rng(0).uniform(0, 1000, (3, 7, 6, 1)).astype(np.float32)
    scores = classifying_function(Sums(), PLAN)(tf.constant(image)).numpy()
    normalize = IntensityNormalization.from_plan(PLAN)
    sums = []
    for domain in (0, 1):
        normal = normalize(image, np.full(3, domain), np.zeros((3, 4), np.float32))
        sums.append(np.asarray(normal)[:, 1:5, 1:5].sum((1, 2, 3)))
    assert np.abs(sums[0] - sums[1]).min() > 1e-3
    own = np.stack([log_sigmoid(sums[0]), log_sigmoid(-sums[1])], axis=1)
    expected = np.exp(own) / np.exp(own).sum(1, keepdims=True)
    np.testing.assert_allclose(scores, expected, rtol=1e-4)


def test_small_images_are_filled_up_with_the_darkest_value():
    image = np.random.default_rng(0).uniform(0, 1000, (1, 2, 3, 1)).astype(np.float32)
    seen = []

    class Seeing(Sums):
        def __call__(self, image, training=True):
            seen.append(image.numpy()[0, ..., 0])
            return super().__call__(image, training)

    classifying_function(Seeing(), PLAN)(tf.constant(image))
    normal = IntensityNormalization.from_plan(PLAN)(
        image, np.zeros(1, int), np.zeros((1, 4), np.float32)
    )
    expected = np.full((4, 4), -1.0)
    expected[1:3, :3] = np.asarray(normal)[0, ..., 0]
    np.testing.assert_array_equal(seen[0], np.float32(expected))


def test_a_discriminator_without_a_domain_head_is_refused():
    network = StarGANDiscriminator(patch_size=(8, 8), filters=2, head="multi")
    with pytest.raises(ValueError, match="classify"):
        classifying_function(network, PLAN)
