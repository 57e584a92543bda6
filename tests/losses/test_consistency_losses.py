"""Multi-scale L1: worked numbers and effective weights."""

import numpy as np
import pytest
import tensorflow as tf
from checks import random

from keras_unigan.losses import multi_scale_l1_flat, multi_scale_l1_level


def features(levels, *values):
    """Constant features, one value per sample."""
    shapes = [(4, 4, 1), (2, 2, 3)][:levels]
    return [np.stack([np.full(s, v, "float32") for v in values]) for s in shapes]


def test_level_weights_every_level_the_same():
    first, second = features(2, 1.0, 2.0), features(2, 0.0, 0.0)
    second[1] += 3.0
    # Sample 0: |1 - 0| and |1 - 3|; sample 1: 2 and 1.
    assert multi_scale_l1_level(first, second).numpy().tolist() == [1.5, 1.5]
    second[1][1] = 5.0
    assert multi_scale_l1_level(first, second).numpy().tolist() == [1.5, 2.5]


def test_flat_weights_by_elements_and_factor():
    first, second = features(2, 1.0), features(2, 0.0)
    second[1] += 3.0
    # 16 elements of difference 1, factor 1; 12 of difference 2, factor 1; mean over 28.
    assert multi_scale_l1_flat(first, second).numpy() == pytest.approx([(16 + 24) / 28])
    assert multi_scale_l1_flat(first, second, (1, 2)).numpy() == pytest.approx([(16 + 48) / 28])
    assert multi_scale_l1_flat(first[1:], second[1:], (2,)).numpy() == pytest.approx([4.0])


def test_effective_weights_of_the_skin_form():
    # The pyramid of the skin-lesion critic at 128 with one channel: sides and widths per level.
    sizes = [(128, 1), (64, 64), (32, 128), (16, 256), (8, 512), (4, 512), (2, 512)]
    expected = [0.032, 0.506, 0.506, 0.253, 0.127, 0.032, 0.016]
    zero = [np.zeros((1, side, side, width), "float32") for side, width in sizes]
    for level, weight in enumerate(expected):
        other = [z + float(i == level) for i, z in enumerate(zero)]
        assert float(multi_scale_l1_flat(zero, other)[0]) == pytest.approx(weight, abs=6e-4)


@pytest.mark.parametrize("loss", [multi_scale_l1_level, multi_scale_l1_flat])
def test_zero_for_equal_features_with_finite_gradient(loss):
    first = [tf.constant(random((2, 4, 4, 3))), tf.constant(random((2, 2, 2, 5)))]
    with tf.GradientTape() as tape:
        tape.watch(first)
        value = loss(first, [tf.identity(f) for f in first])
    assert value.numpy().tolist() == [0, 0]
    assert all(np.isfinite(g).all() for g in tape.gradient(value, first))


@pytest.mark.parametrize("loss", [multi_scale_l1_level, multi_scale_l1_flat])
def test_half_precision_and_unknown_sizes(loss):
    features = [random((2, 4, 4, 3)), random((2, 2, 2, 5))]
    others = [random(f.shape, 1) for f in features]
    free = [tf.TensorSpec((None, None, None, f.shape[-1])) for f in features]
    traced = tf.function(loss, input_signature=[free, free])
    np.testing.assert_allclose(traced(features, others), loss(features, others), rtol=1e-6)
    halves = [[tf.cast(f, "float16") for f in fs] for fs in (features, others)]
    assert loss(*halves).dtype == tf.float32
    np.testing.assert_allclose(loss(*halves), loss(features, others), rtol=1e-3)
