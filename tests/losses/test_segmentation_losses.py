"""Dice and cross-entropy: worked numbers, masks, extremes."""

import functools
import math

import numpy as np
import pytest
import tensorflow as tf
from checks import random

from keras_unigan.losses import (
    LOSSES,
    class_cross_entropy,
    focal_tversky,
    marginal_logits,
    pooled_dice,
    region_cross_entropy,
    soft_dice,
)


def one_hot(labels, count):
    return np.eye(count, dtype="float32")[np.asarray(labels)]


def test_soft_dice_by_hand():
    # One row of four pixels, classes 0 0 1 1 with foreground probabilities .1 .4 .8 .5.
    target = one_hot([[0, 0, 1, 1]], 2)[:, None]
    foreground = np.array([0.1, 0.4, 0.8, 0.5], "float32")
    probabilities = np.stack([1 - foreground, foreground], -1)[None, None]
    # Foreground: 2 * 1.3 / (1.8 + 2); background: 2 * 1.5 / (2.2 + 2).
    loss, weight = soft_dice(target, probabilities, np.ones((1, 1, 4)))
    assert loss.shape == weight.shape == (1,)
    assert float(loss[0]) == pytest.approx(1 - (2.6 / 3.8 + 3.0 / 4.2) / 2, abs=1e-5)
    # Without the last pixel: foreground 2 * .8 / (1.3 + 1); background as before but p .9 .6 .2.
    loss, _ = soft_dice(target, probabilities, np.array([[[1, 1, 1, 0]]]))
    assert float(loss[0]) == pytest.approx(1 - (1.6 / 2.3 + 3.0 / 3.7) / 2, abs=1e-5)


def test_squares_in_the_denominator_of_dice():
    target = np.array([[[[0.0], [0.0], [1.0], [1.0]]]])
    probabilities = np.array([[[[0.1], [0.4], [0.8], [0.5]]]])
    loss, _ = soft_dice(target, probabilities, np.ones((1, 1, 4)), power=2)
    # 2 * 1.3 / (.01 + .16 + .64 + .25 + 2)
    assert float(loss[0]) == pytest.approx(1 - 2.6 / 3.06, abs=1e-5)


def test_pooled_dice_takes_the_batch_for_one_sample():
    target = np.array([[[[1.0], [1.0]]], [[[0.0], [0.0]]]])
    probabilities = np.array([[[[0.8], [0.5]]], [[[0.2], [0.1]]]])
    loss, weight = pooled_dice(target, probabilities, np.ones((2, 1, 2)))
    assert float(loss[0]) == pytest.approx(1 - 2.6 / 3.6, abs=1e-5)
    assert loss.shape == weight.shape == (1,)
    assert float(weight[0]) == 1
    loss, weight = pooled_dice(target, probabilities, np.zeros((2, 1, 2)))
    assert (float(loss[0]), float(weight[0])) == (0, 0)


def test_focal_tversky_by_hand():
    target = np.array([[[[0.0], [0.0], [1.0], [1.0]]]])
    probabilities = np.array([[[[0.1], [0.4], [0.8], [0.5]]]])
    # TP 1.3, FN .7, FP .5
    loss, weight = focal_tversky(target, probabilities, np.ones((1, 1, 4)))
    index = 1.3 / (1.3 + 0.7 * 0.7 + 0.3 * 0.5)
    assert float(loss[0]) == pytest.approx((1 - index) ** 0.75, abs=2e-4)
    assert float(weight[0]) == 1
    half = focal_tversky(target, probabilities, np.ones((1, 1, 4)), 0.5, 0.5, 1.0)[0]
    assert float(half[0]) == pytest.approx(1 - 2.6 / 3.8, abs=1e-4)  # Dice


def test_soft_dice_counts_present_outputs_only():
    target = one_hot([[0, 0, 0, 2]], 3)[:, None]
    probabilities = np.full((1, 1, 4, 3), 1 / 3, "float32")
    # Background: 2 * 1 / (4/3 + 3); class 2: 2 * 1/3 / (4/3 + 1); class 1 is not there.
    loss, weight = soft_dice(target, probabilities, np.ones((1, 1, 4)))
    assert float(loss[0]) == pytest.approx(1 - (2 / (13 / 3) + (2 / 3) / (7 / 3)) / 2, abs=1e-5)
    assert float(weight[0]) == 1


def test_soft_dice_of_empty_regions_has_no_weight():
    loss, weight = soft_dice(np.zeros((2, 3, 3, 2)), np.full((2, 3, 3, 2), 0.7), np.ones((2, 3, 3)))
    assert loss.numpy().tolist() == [0, 0]
    assert weight.numpy().tolist() == [0, 0]


def test_class_cross_entropy_by_hand():
    logits = np.array([[[0.0, math.log(3)], [0.0, 0.0], [5.0, -5.0]]], "float32")
    target = one_hot([[1, 0, 1]], 2)
    # p(1) = 3/4, p(0) = 1/2; the third pixel is not annotated.
    loss, weight = class_cross_entropy(target, logits, np.array([[1, 1, 0]]))
    assert float(loss[0]) == pytest.approx((math.log(4 / 3) + math.log(2)) / 2, abs=1e-6)
    assert float(weight[0]) == 1


def test_class_weights_make_a_weighted_mean_over_the_voxels_of_the_batch():
    # -log p of the true class: log 4/3, log 2 | log 4, and one that is not annotated.
    logits = np.zeros((2, 2, 2), "float32")
    logits[0, 0, 1] = logits[1, 0, 1] = math.log(3)
    target = one_hot([[1, 0], [0, 1]], 2)
    valid = np.array([[1, 1], [1, 0]])
    loss, weight = class_cross_entropy(target, logits, valid, (0.02, 0.98))
    expected = [0.98 * math.log(4 / 3) + 0.02 * math.log(2), math.log(4)]
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(weight, [1.0, 0.02], rtol=1e-5)
    plain = class_cross_entropy(target, logits, valid)[0]
    np.testing.assert_allclose(class_cross_entropy(target, logits, valid, (3, 3))[0], plain)
    loss, weight = class_cross_entropy(target, logits, np.zeros((2, 2)), (0.02, 0.98))
    assert loss.numpy().tolist() == weight.numpy().tolist() == [0, 0]


def test_region_cross_entropy_by_hand():
    logits = np.array([[[0.0, math.log(3)], [-math.log(3), 9.0]]], "float32")
    target = np.array([[[1.0, 1.0], [1.0, 0.0]]])
    # p = 1/2 and 3/4, both true; the second pixel counts in the second call only.
    loss, _ = region_cross_entropy(target, logits, np.array([[1, 0]]))
    assert float(loss[0]) == pytest.approx((math.log(2) + math.log(4 / 3)) / 2, abs=1e-6)
    loss, _ = region_cross_entropy(target, logits, np.array([[0, 1]]))
    assert float(loss[0]) == pytest.approx(
        (math.log(4) + 9 + math.log1p(math.exp(-9))) / 2, abs=1e-5
    )


def weighted(target, logits, valid):
    return class_cross_entropy(target, logits, valid, (1.0, 1.0, 1.0)[: target.shape[-1]])


@pytest.mark.parametrize(
    "loss", [soft_dice, focal_tversky, class_cross_entropy, weighted, region_cross_entropy]
)
def test_samples_without_annotation_have_loss_and_weight_zero(loss):
    target = one_hot([[0, 1, 1], [1, 0, 1]], 2)
    output = tf.constant(abs(random((2, 3, 2))))
    valid = np.array([[1, 1, 0], [0, 0, 0]])
    with tf.GradientTape() as tape:
        tape.watch(output)
        values, weights = loss(target, output, valid)
    assert weights.numpy().tolist() == [2 if loss is weighted else 1, 0]
    assert float(values[1]) == 0
    assert float(values[0]) > 0
    gradient = np.asarray(tape.gradient(values, output))
    assert np.isfinite(gradient).all()
    assert (gradient[0, :2] != 0).any()
    assert (gradient[0, 2] == 0).all()
    assert (gradient[1] == 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_perfect_predictions_are_best(seed):
    labels = np.random.default_rng(seed).integers(0, 3, (2, 4, 4))
    target, valid = one_hot(labels, 3), np.ones((2, 4, 4))
    for loss, perfect in (
        (soft_dice, target),
        (functools.partial(soft_dice, power=2), target),
        (pooled_dice, target),
        (focal_tversky, target),
        (class_cross_entropy, 50 * target),
        (weighted, 50 * target),
        (region_cross_entropy, 100 * target - 50),
    ):
        best = loss(target, perfect, valid)[0]
        np.testing.assert_allclose(best, 0, atol=1e-5)
        assert (loss(target, perfect[..., ::-1], valid)[0].numpy() > best.numpy()).all()


@pytest.mark.parametrize("extreme", [0.0, 1.0])
def test_gradients_are_finite_at_the_ends(extreme):
    target = one_hot([[0, 1, 1, 0]], 2)
    probabilities = tf.fill((1, 4, 2), extreme)
    logits = tf.fill((1, 4, 2), 200.0 * extreme - 100.0)
    for loss, output in (
        (soft_dice, probabilities),
        (pooled_dice, probabilities),
        (focal_tversky, probabilities),
        (class_cross_entropy, logits),
        (weighted, logits),
        (region_cross_entropy, logits),
    ):
        with tf.GradientTape() as tape:
            tape.watch(output)
            value = loss(target, output, np.ones((1, 4)))[0]
        assert np.isfinite(value).all()
        assert np.isfinite(tape.gradient(value, output)).all()


def test_gradients_are_finite_at_a_perfect_prediction():
    target = tf.constant(one_hot([[0, 1, 1, 0]], 2))
    for loss in (soft_dice, pooled_dice, focal_tversky):
        with tf.GradientTape() as tape:
            tape.watch(target)
            value = loss(one_hot([[0, 1, 1, 0]], 2), target, np.ones((1, 4)))[0]
        assert np.isfinite(tape.gradient(value, target)).all()


def test_half_precision_inputs_are_computed_in_float32():
    target = one_hot(np.zeros((1, 64, 64), int), 2)
    logits = tf.cast(tf.fill((1, 64, 64, 2), 3.0), "bfloat16")
    loss, weight = class_cross_entropy(target, logits, np.ones((1, 64, 64)))
    assert loss.dtype == weight.dtype == tf.float32
    assert float(loss[0]) == pytest.approx(math.log(2), abs=1e-6)


def test_the_background_stands_for_classes_that_were_not_annotated():
    # Probabilities .5 .3 .2; the second class was not looked for in the first sample.
    logits = np.log([[[0.5, 0.3, 0.2]], [[0.5, 0.3, 0.2]]]).astype("float32")
    annotated = np.array([[1, 0], [1, 1]])
    marginal = marginal_logits(logits, annotated)
    found = tf.nn.softmax(marginal).numpy()
    np.testing.assert_allclose(found[:, 0], [[0.7, 0.3, 0], [0.5, 0.3, 0.2]], atol=1e-6)
    assert found[0, 0, 2] == 0
    np.testing.assert_array_equal(marginal[1], logits[1])  # nothing to fold
    # Background costs -log .7 there, and -log .5 where all was annotated; class 1 the same in both.
    loss, weight = class_cross_entropy(one_hot([[0], [0]], 3), marginal, np.ones((2, 1)))
    np.testing.assert_allclose(loss, [-math.log(0.7), -math.log(0.5)], rtol=1e-6)
    np.testing.assert_array_equal(weight, [1, 1])
    loss, _ = class_cross_entropy(one_hot([[1], [1]], 3), marginal, np.ones((2, 1)))
    np.testing.assert_allclose(loss, [-math.log(0.3)] * 2, rtol=1e-6)


def test_marginal_dice_by_hand():
    # Two pixels, background and class 1; (.5 .3 .2) and (.1 .8 .1); class 2 was not looked for.
    logits = np.log([[[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]]]).astype("float32")
    probabilities = tf.nn.softmax(marginal_logits(logits, np.array([[1, 0]])))
    loss, _ = soft_dice(one_hot([[0, 1]], 3), probabilities, np.ones((1, 2)))
    # Background: 2 * .7 / (.7 + .2 + 1); class 1: 2 * .8 / (.3 + .8 + 1); class 2 is left out.
    assert float(loss[0]) == pytest.approx(1 - (1.4 / 1.9 + 1.6 / 2.1) / 2, abs=1e-5)


def test_gradient_of_the_marginal_cross_entropy():
    logits = tf.constant(random((2, 5, 4)))
    with tf.GradientTape() as tape:
        tape.watch(logits)
        marginal = marginal_logits(logits, np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]]))
        loss, _ = class_cross_entropy(one_hot(np.zeros((2, 5), int), 4), marginal, np.ones((2, 5)))
        loss = tf.reduce_sum(loss)
    found = tape.gradient(loss, logits).numpy()
    # p - p(class | one of those that the background stands for), over 5 voxels.
    p = tf.nn.softmax(logits).numpy()
    inside = np.array([[1, 0, 1, 1], [1, 0, 0, 0]])[:, None]
    share = p * inside / np.sum(p * inside, axis=-1, keepdims=True)
    np.testing.assert_allclose(found, (p - share) / 5, atol=1e-6)


def test_regions_that_were_not_annotated_are_left_out_of_the_mean():
    # Two regions: -log(3/4) and -log(1 - 1/2); the second is left out of the first sample, and
    # nothing at all was annotated in the third.
    logits = np.array([[[math.log(3), 0.0]]] * 3, "float32")
    target = np.array([[[1.0, 0.0]]] * 3)
    annotated = np.array([[1, 0], [1, 1], [0, 0]])
    loss, weight = region_cross_entropy(target, logits, np.ones((3, 1)), annotated)
    first, second = math.log(4 / 3), math.log(2)
    np.testing.assert_allclose(loss, [first, (first + second) / 2, 0], rtol=1e-6)
    np.testing.assert_array_equal(weight, [1, 1, 0])


def test_the_table_names_each_function():
    assert all(function.__name__ == name for name, function in LOSSES.items())
