"""Adversarial losses: worked numbers, penalties of critics whose gradient is known."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from checks import random

from keras_unigan import losses
from keras_unigan.losses import ADVERSARIAL

REAL = np.array([[1.0, 3.0], [0.5, -0.5]], "float32")
FAKE = np.array([[-2.0, 0.0], [1.0, -1.0]], "float32")


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


EXPECTED = {
    # name: critic(REAL, FAKE), generator(FAKE); means of REAL and FAKE are 1 and -.5
    "wgan_gp": (-0.5 - 1.0, 0.5),
    # max(0, 1 - real): 0 0 .5 1.5; max(0, 1 + fake): 0 1 2 0
    "hinge": (2 / 4 + 3 / 4, 0.5),
    # (real - 1)^2: 0 4 .25 2.25; fake^2: 4 0 1 1; (fake - 1)^2: 9 1 0 4
    "lsgan": (0.5 * (6.5 / 4 + 6 / 4), 0.5 * 14 / 4),
    # Eq. 1 of Goodfellow et al. with D = sigmoid of the scores; the critic lowers its negative.
    "minimax": (
        -(np.log(sigmoid(REAL)).mean() + np.log(1 - sigmoid(FAKE)).mean()),
        -np.log(sigmoid(FAKE)).mean(),
    ),
    "minimax_saturating": (
        -(np.log(sigmoid(REAL)).mean() + np.log(1 - sigmoid(FAKE)).mean()),
        np.log(1 - sigmoid(FAKE)).mean(),
    ),
}


def test_every_pair_is_worked():
    assert set(EXPECTED) == set(ADVERSARIAL)


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_pair_by_hand(name):
    critic, generator = ADVERSARIAL[name]
    assert critic(REAL, FAKE).shape == generator(FAKE).shape == ()
    assert float(critic(REAL, FAKE)) == pytest.approx(EXPECTED[name][0], abs=1e-6)
    assert float(generator(FAKE)) == pytest.approx(EXPECTED[name][1], abs=1e-6)


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_the_critic_parts_the_scores_and_the_generator_raises_its_own(name):
    critic, generator = ADVERSARIAL[name]
    real, fake = tf.constant([[0.2]]), tf.constant([[0.1]])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([real, fake])
        critic_loss, generator_loss = critic(real, fake), generator(fake)
    assert float(tape.gradient(critic_loss, real)[0, 0]) < 0
    assert float(tape.gradient(critic_loss, fake)[0, 0]) > 0
    assert float(tape.gradient(generator_loss, fake)[0, 0]) < 0


@pytest.mark.parametrize("name", ADVERSARIAL)
@pytest.mark.parametrize("extreme", [-200.0, 0.0, 200.0])
def test_finite_where_the_critic_is_sure(name, extreme):
    scores = tf.fill((2, 3), extreme)
    for loss in (
        lambda: ADVERSARIAL[name][0](scores, scores),
        lambda: ADVERSARIAL[name][1](scores),
    ):
        with tf.GradientTape() as tape:
            tape.watch(scores)
            value = loss()
        assert np.isfinite(value)
        assert np.isfinite(tape.gradient(value, scores)).all()


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_scores_in_half_precision_are_computed_in_float32(name):
    critic, generator = ADVERSARIAL[name]
    halves = [tf.cast(np.tile(s, (4000, 1)), "float16") for s in (REAL, FAKE)]
    for value, expected in zip(
        (critic(*halves), generator(halves[1])), EXPECTED[name], strict=True
    ):
        assert value.dtype == tf.float32
        assert float(value) == pytest.approx(expected, rel=1e-4)


def test_saturating_form_is_equation_1_and_both_agree_on_the_way():
    fake = tf.constant([-3.0])
    slopes = []
    for loss in (losses.minimax_saturating_generator_loss, losses.minimax_generator_loss):
        with tf.GradientTape() as tape:
            tape.watch(fake)
            value = loss(fake)
        slopes.append(float(tape.gradient(value, fake)[0]))
    # d/ds log(1 - sigmoid(s)) = -sigmoid(s); d/ds -log sigmoid(s) = -(1 - sigmoid(s)).
    assert slopes == pytest.approx([-sigmoid(-3.0), -(1 - sigmoid(-3.0))], rel=1e-5)


@pytest.mark.parametrize("shape", [(3, 4, 5, 2), (3, 4, 2, 3, 1)], ids=["2d", "3d"])
def test_gradient_penalty_of_a_linear_critic(shape):
    w = tf.Variable(random(shape[1:]))
    real, fake, noise = random(shape, 1), random(shape, 2), np.array([0.0, 0.3, 1.0], "float32")

    def score(image):
        # Two patches of half the score each: the penalty sums them.
        total = tf.reduce_sum(image * w, axis=tuple(range(1, len(shape))))
        return tf.stack([total / 2, total / 2], axis=1)

    @tf.function
    def penalty():
        with tf.GradientTape() as tape:
            value = losses.gradient_penalty(score, real, fake, noise)
        return value, tape.gradient(value, w)

    value, gradient = penalty()
    norm = np.linalg.norm(w.numpy())
    assert float(value) == pytest.approx((norm - 1) ** 2, rel=1e-5)
    # Differentiated again: 2 (||w|| - 1) w / ||w||.
    np.testing.assert_allclose(gradient, 2 * (norm - 1) * w.numpy() / norm, rtol=1e-4, atol=1e-6)


def test_gradient_penalty_mixes_each_sample_by_its_own_noise():
    real, fake = np.zeros((2, 2, 2, 1), "float32"), np.full((2, 2, 2, 1), 2.0, "float32")
    seen = []

    def score(image):
        seen.append(image.numpy())
        return tf.reduce_sum(image**2, axis=(1, 2, 3)) / 2

    value = losses.gradient_penalty(score, real, fake, np.array([1.0, 0.25], "float32"))
    # noise is the share of the real image: 0 and 1.5; the gradient is the image, of norm 0 and 3.
    assert seen[0][0].max() == 0
    np.testing.assert_allclose(seen[0][1], 1.5)
    assert float(value) == pytest.approx((1 + 4) / 2, abs=1e-4)


def test_penalties_are_finite_for_a_critic_that_is_flat():
    w = tf.Variable(0.0)
    image = random((2, 3, 3, 1))
    for penalty, expected in (
        (lambda: losses.gradient_penalty(score, image, -image, np.array([0.5, 0.5])), 1.0),
        (lambda: losses.r1_penalty(score, image), 0.0),
    ):

        def score(x):
            return w * tf.reduce_sum(x, axis=(1, 2, 3))

        with tf.GradientTape() as tape:
            value = penalty()
        assert float(value) == pytest.approx(expected, abs=1e-5)
        assert np.isfinite(tape.gradient(value, w))


def test_r1_penalty_of_a_linear_critic():
    w = tf.Variable(random((4, 4, 1)))
    with tf.GradientTape() as tape:
        value = losses.r1_penalty(lambda x: tf.reduce_sum(x * w, (1, 2, 3)), random((5, 4, 4, 1)))
    assert float(value) == pytest.approx(0.5 * np.sum(w.numpy() ** 2), rel=1e-5)
    np.testing.assert_allclose(tape.gradient(value, w), w.numpy(), rtol=1e-5)


@pytest.mark.parametrize("dims", [2, 3])
def test_penalties_train_a_convolutional_critic(dims):
    keras.utils.set_random_seed(0)
    layer = {2: keras.layers.Conv2D, 3: keras.layers.Conv3D}[dims]
    critic = keras.Sequential(
        [
            keras.Input((*[8] * dims, 1)),
            layer(3, 4, 2, padding="same", activation="tanh"),  # smooth, for the differences below
            layer(1, 3, padding="same"),
        ]
    )
    real, fake = random((2, *[8] * dims, 1), 1), random((2, *[8] * dims, 1), 2)
    noise = np.array([0.2, 0.7], "float32")
    weights = [v for v in critic.trainable_variables if "kernel" in v.path]

    @tf.function
    def both():
        with tf.GradientTape(persistent=True) as tape:
            values = (
                losses.gradient_penalty(critic, real, fake, noise),
                losses.r1_penalty(critic, real),
            )
        return values, [tape.gradient(value, [w.value for w in weights]) for value in values]

    values, gradients = both()
    # The slope along one weight, by differences of the penalty itself.
    epsilon, kernel = 1e-2, weights[0]
    start = kernel.numpy()
    nudge = np.zeros_like(start)
    nudge.flat[5] = epsilon
    for index, value in enumerate(values):
        assert all(np.abs(g).max() > 0 for g in gradients[index])
        ends = []
        for sign in (1, -1):
            kernel.assign(start + sign * nudge)
            ends.append(float(both()[0][index]))
        kernel.assign(start)
        slope = (ends[0] - ends[1]) / (2 * epsilon)
        assert slope == pytest.approx(
            float(gradients[index][0].numpy().flat[5]), rel=0.05, abs=1e-4
        )
        assert np.isfinite(value)


def test_domain_classification_by_hand():
    logits = np.array([[0.0, math.log(3)], [0.0, 0.0]], "float32")
    value = losses.domain_classification(np.array([1, 0], "int32"), logits)
    assert float(value) == pytest.approx((math.log(4 / 3) + math.log(2)) / 2, abs=1e-6)
    sure = 100 * np.eye(3, dtype="float32")
    assert float(losses.domain_classification(np.arange(3), sure)) == pytest.approx(0, abs=1e-6)
    assert np.isfinite(losses.domain_classification(np.arange(3), -sure))


def test_local_image_shows_the_lesion_only():
    image, mask = random((2, 3, 3, 2)), np.zeros((2, 3, 3))
    mask[0, 1, 2] = 1
    local = losses.local_image(image, mask).numpy()
    np.testing.assert_array_equal(local[0, 1, 2], image[0, 1, 2])
    local[0, 1, 2] = 0
    assert (local == 0).all()
