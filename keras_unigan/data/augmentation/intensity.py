"""Random changes of intensities; images are in [-1, 1], with the background at -1.

What multiplies or bends intensities works on (image + 1) / 2, so that background stays background.
Arguments that say how strong a change is may be numbers or one tensor entry a sample, `(batch,)`.
"""

import math

import tensorflow as tf

from keras_unigan.data.augmentation import geometry

CONTRAST, BRIGHTNESS = 0.1, 0.1
GAMMA = 0.25
NOISE = 0.05
BIAS_SD, BIAS_SPACING, BIAS_SHARE = 0.3, 40.0, 0.3
BLUR_SIGMA, BLUR_SHARE = 1.0, 0.2
COARSE_FACTOR, COARSE_SHARE = 2.0, 0.25


def _samples(value):
    """A number, or one a sample, in the shape of a column."""
    return tf.reshape(tf.cast(value, tf.float32), [-1, 1])


def _column(image, seed, number, columns=1):
    """Random numbers in [0, 1): float32 (batch, columns)."""
    shape = [tf.shape(image)[0], columns]
    return tf.random.stateless_uniform(shape, geometry.sub_seed(seed, number))


def _over(image, values):
    """Values (batch, 1) in a shape to be multiplied with an image."""
    return tf.reshape(values, [-1, *[1] * (image.shape.rank - 1)])


def _inside(before, after):
    """`after` within [-1, 1] where there is something; background stays as no scan changes it."""
    return tf.where(before > -1.0, tf.clip_by_value(after, -1.0, 1.0), -1.0)


def random_intensity(batch, seed):
    """Scales by up to ±10 %, shifts by up to ±0.1 (of a range of 2), and clips to [-1, 1]."""
    image = batch["image"]
    scale = geometry.uniform(image, seed, 10, 1 - CONTRAST, 1 + CONTRAST)
    shift = geometry.uniform(image, seed, 11, -BRIGHTNESS, BRIGHTNESS)
    return {**batch, "image": _inside(image, scale * image + shift)}


def random_gamma(batch, seed, gamma=GAMMA, share=1.0):
    """Raises a share of the images, mapped to [0, 1], to a power of 1/(1 + gamma) to 1 + gamma."""
    image, limit = batch["image"], math.log1p(gamma)
    chosen = _over(image, tf.cast(_column(image, seed, 21) < share, tf.float32))
    power = tf.exp(geometry.uniform(image, seed, 20, -limit, limit) * chosen)
    return {**batch, "image": 2 * ((image + 1) / 2) ** power - 1}


def random_noise(batch, seed, sd=NOISE):
    """Adds white noise of a standard deviation of up to `sd`, and clips to [-1, 1].

    Args:
        batch: Dict with `image`.
        seed: Integers (2,).
        sd: One number, or one for each sample.
    """
    image = batch["image"]
    sd = geometry.uniform(image, seed, 30, 0.0, 1.0) * _over(image, _samples(sd))
    noise = tf.random.stateless_normal(tf.shape(image), geometry.sub_seed(seed, 31))
    return {**batch, "image": _inside(image, image + sd * noise)}


def random_bias_field(batch, seed, sd=BIAS_SD, distance=BIAS_SPACING, share=BIAS_SHARE):
    """Multiplies a share of the samples by a smooth field, as a receiver coil does.

    The field is the exponential of splines whose control points, `distance` voxels apart, have a
    standard deviation of up to `sd`. The brightest voxel stays as bright as it was, so that nothing
    is clipped.
    """
    image = batch["image"]
    chosen = tf.cast(_column(image, seed, 50) < _samples(share), tf.float32)
    strength = _over(image, _column(image, seed, 51) * _samples(sd) * chosen)
    axes = image.shape.rank - 2
    field = geometry.smooth_field(image, geometry.sub_seed(seed, 52), [distance] * axes, 1)
    before = (image + 1) / 2
    after = before * tf.exp(field * strength)
    over = tuple(range(1, image.shape.rank))
    top, new = (tf.reduce_max(i, axis=over, keepdims=True) for i in (before, after))
    factor = tf.where(new > 0, top / tf.maximum(new, 1e-6), 1.0)
    changed = tf.clip_by_value(2 * after * factor - 1, -1.0, 1.0)
    return {**batch, "image": tf.where(strength > 0, changed, image)}


def random_blur(batch, seed, sigma=BLUR_SIGMA, share=BLUR_SHARE):
    """Blurs a share of the samples by a Gaussian of up to `sigma` voxels."""
    image = batch["image"]
    chosen = tf.cast(_column(image, seed, 60) < _samples(share), tf.float32)
    drawn = (_column(image, seed, 61) * _samples(sigma) * chosen)[:, 0]
    matrices = [geometry.gaussian_matrix(n, drawn) for n in geometry.sizes(image)]
    return {**batch, "image": geometry.along_axes(image, matrices)}


def random_low_resolution(batch, seed, factor=COARSE_FACTOR, share=COARSE_SHARE):
    """Shows a share of the samples as a coarser grid saw them.

    Each axis draws a voxel size of its own, of 1 to `factor` voxels. Label maps stay fine: that is
    what a network is to find in a coarse image.
    """
    image, axes = batch["image"], batch["image"].shape.rank - 2
    chosen = tf.cast(_column(image, seed, 70) < _samples(share), tf.float32)
    drawn = 1 + _column(image, seed, 71, axes) * (_samples(factor) - 1) * chosen
    matrices = [
        geometry.coarse_matrix(n, drawn[:, axis]) for axis, n in enumerate(geometry.sizes(image))
    ]
    return {**batch, "image": geometry.along_axes(image, matrices)}
