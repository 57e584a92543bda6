"""Losses of a critic against a generator, penalties on the critic, and domain classification.

Every function gives a scalar, the mean over the batch and over patches where the critic scores
patches. Scores are logits of any shape `(batch, ...)`.

A local (lesion-aware) term is the same losses with a second critic on `local_image` of the real and
of the translated image.
"""

import keras
import tensorflow as tf

EPSILON = 1e-12


def wasserstein_critic_loss(real, fake):
    """Mean fake score minus mean real score (Arjovsky et al. 2017, arXiv:1701.07875, eq. 2).

    Args:
        real: Scores of real images.
        fake: Scores of made images.

    Returns:
        Scalar, float32.
    """
    real, fake = _float32(real, fake)
    return keras.ops.mean(fake) - keras.ops.mean(real)


def wasserstein_generator_loss(fake):
    """Minus the mean score of made images."""
    (fake,) = _float32(fake)
    return -keras.ops.mean(fake)


def hinge_critic_loss(real, fake):
    """Mean of `max(0, 1 - real)` and of `max(0, 1 + fake)`, added (Lim & Ye, arXiv:1705.02894).

    Args:
        real: Scores of real images.
        fake: Scores of made images.

    Returns:
        Scalar, float32.
    """
    real, fake = _float32(real, fake)
    return keras.ops.mean(keras.ops.relu(1.0 - real)) + keras.ops.mean(keras.ops.relu(1.0 + fake))


def hinge_generator_loss(fake):
    """Minus the mean score of made images; the hinge is the critic's only."""
    return wasserstein_generator_loss(fake)


def least_squares_critic_loss(real, fake):
    """Half the mean squared distance of real scores to 1 and of fake ones to 0.

    Mao et al. 2017, LSGAN, arXiv:1611.04076, eq. 9.

    Args:
        real: Scores of real images.
        fake: Scores of made images.

    Returns:
        Scalar, float32.
    """
    real, fake = _float32(real, fake)
    return 0.5 * (keras.ops.mean((real - 1.0) ** 2) + keras.ops.mean(fake**2))


def least_squares_generator_loss(fake):
    """Half the mean squared distance of fake scores to 1 (LSGAN, eq. 9)."""
    (fake,) = _float32(fake)
    return 0.5 * keras.ops.mean((fake - 1.0) ** 2)


def least_squares(scores, goal):
    """Mean squared distance of each sample's scores to a goal, where samples count apart.

    Half the mean over real samples to 1 and fake ones to 0 is `least_squares_critic_loss`.

    Args:
        scores: `(batch, ...)`.
        goal: 1 for real, 0 for fake.

    Returns:
        `(batch,)`, float32.
    """
    (scores,) = _float32(scores)
    return keras.ops.mean((scores - goal) ** 2, axis=tuple(range(1, len(scores.shape))))


def minimax_critic_loss(real, fake):
    """Minus `E log D(x) + E log(1 - D(G(z)))` with `D` the sigmoid of the scores.

    Goodfellow et al. 2014, arXiv:1406.2661, eq. 1. The critic of the paper raises that sum.

    Args:
        real: Logits of real images.
        fake: Logits of made images.

    Returns:
        Scalar, float32.
    """
    real, fake = _float32(real, fake)
    return keras.ops.mean(keras.ops.softplus(-real)) + keras.ops.mean(keras.ops.softplus(fake))


def minimax_generator_loss(fake):
    """Minus `E log D(G(z))`: the form whose gradient does not vanish under a sure critic."""
    (fake,) = _float32(fake)
    return keras.ops.mean(keras.ops.softplus(-fake))


def minimax_saturating_generator_loss(fake):
    """`E log(1 - D(G(z)))`: eq. 1 of Goodfellow et al. 2014 as written."""
    (fake,) = _float32(fake)
    return -keras.ops.mean(keras.ops.softplus(fake))


def gradient_penalty(score, real, fake, noise):
    """Mean squared distance to 1 of the gradient's norm between real and made images (WGAN-GP).

    The gradient is that of the sum over patches, per sample. Call it under the critic's tape: the
    penalty is differentiated again.

    Args:
        score: Function from images to scores `(batch, ...)`. No sample's score may depend on
            another sample (no batch norm).
        real: `(batch, *spatial, channels)`.
        fake: The same shape.
        noise: `(batch,)` in [0, 1], the share of the real image.

    Returns:
        Scalar, float32.

    Reference: Gulrajani et al. 2017, arXiv:1704.00028, eq. 3.
    """
    real, fake, noise = _float32(real, fake, noise)
    noise = keras.ops.reshape(noise, (-1, *[1] * (len(real.shape) - 1)))
    squares = _squared_gradient(score, noise * real + (1.0 - noise) * fake)
    # The square root has no finite slope at 0.
    return keras.ops.mean((keras.ops.sqrt(squares + EPSILON) - 1.0) ** 2)


def r1_penalty(score, real):
    """Half the mean squared norm of the score's gradient at real images.

    Args:
        score: Function from images to scores `(batch, ...)`, as in `gradient_penalty`.
        real: `(batch, *spatial, channels)`.

    Returns:
        Scalar, float32; to be multiplied by gamma.

    Reference: Mescheder et al. 2018, arXiv:1801.04406, eq. 9.
    """
    return 0.5 * keras.ops.mean(_squared_gradient(score, *_float32(real)))


def domain_classification(domain, logits):
    """Softmax cross-entropy of the modality.

    The discriminator gets real images with their own modality, the generator made images with the
    one that was asked for (Choi et al. 2018, StarGAN, arXiv:1711.09020, eq. 2 and 3).

    Args:
        domain: int `(batch,)`.
        logits: `(batch, domains)`.

    Returns:
        Scalar, float32.
    """
    (logits,) = _float32(logits)
    one_hot = keras.ops.one_hot(domain, logits.shape[-1], dtype="float32")
    return -keras.ops.mean(keras.ops.sum(one_hot * keras.ops.log_softmax(logits, -1), axis=-1))


def local_image(image, mask):
    """What the critic of a local adversarial term sees: the image inside the mask, 0 elsewhere.

    Args:
        image: `(batch, *spatial, channels)`.
        mask: `(batch, *spatial)`, 1 where the foreground is annotated. A sample without any is 0
            throughout, whether real or made, and teaches neither side anything.

    Returns:
        `(batch, *spatial, channels)`, float32.
    """
    image, mask = _float32(image, mask)
    return image * mask[..., None]


def _squared_gradient(score, image):
    """Squared norm of the gradient of each sample's summed scores, `(batch,)`."""
    image = tf.stop_gradient(image)
    with tf.GradientTape() as tape:
        tape.watch(image)
        total = keras.ops.sum(keras.ops.cast(score(image), "float32"))
    gradient = keras.ops.cast(tape.gradient(total, image), "float32")
    return keras.ops.sum(gradient**2, axis=tuple(range(1, len(gradient.shape))))


def _float32(*tensors):
    """Losses are computed in float32 whatever the dtype policy."""
    return [keras.ops.cast(t, "float32") for t in tensors]


# name -> loss of the critic (real, fake) and of the generator (fake). "wgan_gp" wants
# `gradient_penalty` beside it, "hinge" `r1_penalty`.
ADVERSARIAL = {
    "wgan_gp": (wasserstein_critic_loss, wasserstein_generator_loss),
    "hinge": (hinge_critic_loss, hinge_generator_loss),
    "lsgan": (least_squares_critic_loss, least_squares_generator_loss),
    "minimax": (minimax_critic_loss, minimax_generator_loss),
    "minimax_saturating": (minimax_critic_loss, minimax_saturating_generator_loss),
}
