"""Multi-scale L1, cycle, ramp and distillation: worked numbers."""

import numpy as np
import pytest
import tensorflow as tf
from checks import random

from keras_unigan.losses import (
    cycle,
    identity,
    multi_scale_l1_flat,
    multi_scale_l1_level,
    prototype_distillation,
    ramp,
    region_prototype_distillation,
)


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


def test_cycle_and_identity_by_hand():
    image = np.array([[[[0.0], [1.0]]], [[[-1.0], [0.5]]]], "float32")
    other = np.array([[[[0.5], [1.0]]], [[[1.0], [0.0]]]], "float32")
    for loss in (cycle, identity):
        assert float(loss(image, other)) == pytest.approx((0.5 + 0 + 2 + 0.5) / 4)
        assert float(loss(image, image)) == 0
        assert loss(tf.cast(image, "float16"), other).dtype == tf.float32


def test_ramp():
    assert [float(ramp(step, 4)) for step in (0, 1, 3, 4, 9)] == [0, 0.25, 0.75, 1, 1]
    assert float(ramp(tf.constant(5, "int64"), 10)) == 0.5
    assert float(ramp(0, 0)) == 1


DISTILLATIONS = [prototype_distillation, region_prototype_distillation]


def one_row(labels, logits, classes=3):
    """Target, logits and mask of samples with one row of voxels each; 255 is not annotated."""
    labels = np.asarray(labels)[:, None]
    target = np.eye(256, dtype="float32")[labels][..., :classes]
    return target, np.asarray(logits, "float32")[:, None], (labels != 255).astype("float32")


def softmax(z):
    return np.exp(z) / np.exp(z).sum()


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def test_prototype_distillation_by_hand():
    # Modality 0 in two samples holds classes 0 and 1, modality 1 holds 0, 1 and 2; class 2 is
    # absent from modality 0 and left out, and so is the voxel that nobody annotated.
    labels = [[0, 0, 1], [0, 255, 1], [0, 1, 2]]
    logits = [
        [[1, 0, 0], [3, 0, 0], [0, 1, 0]],
        [[2, 0, 3], [9, 9, 0], [0, 3, 1]],
        [[0, 1, 0], [0, 2, 2], [5, 5, 5]],
    ]
    a = {0: np.array([2, 0, 1.0]), 1: np.array([0, 2, 0.5])}
    b = {0: np.array([0, 1, 0.0]), 1: np.array([0, 2, 2.0])}
    soft, bernoulli = 0.0, 0.0
    for k in (0, 1):
        p, q = softmax(a[k] / 2), softmax(b[k] / 2)
        soft += 0.5 * (np.sum(p * np.log(p / q)) + np.sum(q * np.log(q / p))) / 2
        for p, q in zip(sigmoid(a[k] / 2), sigmoid(b[k] / 2), strict=True):
            one_way = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
            other = q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p))
            bernoulli += 0.5 * (one_way + other) / 2
    # Modality 2 has no sample: two of three pairs are left out.
    data = (*one_row(labels, logits), np.array([0, 0, 1], "int32"), 3)
    assert float(prototype_distillation(*data)) == pytest.approx(soft, rel=1e-5)
    assert float(region_prototype_distillation(*data)) == pytest.approx(bernoulli, rel=1e-5)


def test_distillation_is_the_mean_over_pairs():
    labels = [[0, 1]] * 3
    logits = [random((2, 3), seed) for seed in range(3)]
    values = []
    for pair in ((0, 1), (0, 2), (1, 2)):
        data = one_row([labels[i] for i in pair], [logits[i] for i in pair])
        values.append(float(prototype_distillation(*data, np.array([0, 1]), 2)))
    every = prototype_distillation(*one_row(labels, logits), np.arange(3), 3)
    assert float(every) == pytest.approx(np.mean(values), rel=1e-5)


@pytest.mark.parametrize("loss", DISTILLATIONS)
def test_distillation_of_identical_modalities_is_zero(loss):
    target, logits, valid = one_row([[0, 1, 2]], [random((3, 3))])
    twice = [np.concatenate([t, t]) for t in (target, logits, valid)]
    assert float(loss(*twice, np.array([0, 1]), 2)) == pytest.approx(0, abs=1e-7)
    # And so it is with one modality only, or none that is known.
    assert float(loss(*twice, np.array([1, 1]), 2)) == 0
    assert float(loss(*twice, np.array([-1, -1]), 2)) == 0


@pytest.mark.parametrize("loss", DISTILLATIONS)
@pytest.mark.parametrize("labels", [[[0, 0], [1, 1]], [[255, 255], [0, 1]]])
def test_distillation_without_a_common_class_is_zero_with_gradient_zero(loss, labels):
    target, logits, valid = one_row(labels, [random((2, 3), s) for s in range(2)])
    logits = tf.constant(100 * logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = loss(target, logits, valid, np.array([0, 1]), 2)
    assert float(value) == 0
    assert (tape.gradient(value, logits).numpy() == 0).all()


@pytest.mark.parametrize("loss", DISTILLATIONS)
def test_distillation_gradient_is_finite_and_of_annotated_voxels(loss):
    target, logits, valid = one_row(
        [[0, 1, 255], [0, 1, 2]], [60 * random((3, 3), s) for s in range(2)]
    )
    logits = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = loss(target, logits, valid, np.array([0, 1]), 2)
    gradient = tape.gradient(value, logits).numpy()[:, 0]
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[:, :2]).max() > 0
    assert (gradient[0, 2] == 0).all()
    assert (gradient[1, 2] == 0).all()


def test_distillation_of_free_sizes_and_volumes():
    target = np.eye(2, dtype="float32")[np.random.default_rng(0).integers(0, 2, (4, 3, 4, 5))]
    logits, valid = random(target.shape), np.ones(target.shape[:-1], "float32")
    domain = np.array([0, 1, 0, 1], "int32")
    specs = [tf.TensorSpec([None] * 4 + [2]), tf.TensorSpec([None] * 4 + [2])]
    traced = tf.function(
        lambda t, z, v, d: prototype_distillation(t, z, v, d, 2),
        input_signature=[*specs, tf.TensorSpec([None] * 4), tf.TensorSpec([None], "int32")],
    )
    expected = prototype_distillation(target, logits, valid, domain, 2)
    assert float(traced(target, logits, valid, domain)) == pytest.approx(float(expected), rel=1e-5)
    assert float(expected) > 0
