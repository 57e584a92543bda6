"""Random changes of {"image", "label_map"} together, for batches, in 2-D and 3-D.

Each function takes a batch whose image `(batch, *spatial, channels)` is float32 in [-1, 1] and
whose label map is `(batch, *spatial)`, and a seed `(2,)`. Every sample draws its own numbers; the
same seed gives the same result, eagerly and inside `tf.data`. Other entries pass through.
"""

import tensorflow as tf

CONTRAST, BRIGHTNESS = 0.1, 0.1
GAMMA = 0.25
NOISE = 0.05


def _sub_seed(seed, number):
    """Another seed (2,) under `seed`."""
    return tf.cast(seed, tf.int64) + tf.constant([(number + 1) << 40, 0], tf.int64)


def _uniform(batch, seed, number, low, high):
    """One random number a sample, shaped to be multiplied with an image."""
    image = batch["image"]
    shape = [tf.shape(image)[0], *[1] * (image.shape.rank - 1)]
    return tf.random.stateless_uniform(shape, _sub_seed(seed, number), low, high)


def random_flip(batch, seed):
    """Mirrors each spatial axis with probability one half, image and label map alike."""
    image, label_map = batch["image"], batch["label_map"]
    for axis in range(1, image.shape.rank - 1):
        turned = _uniform(batch, seed, axis, 0.0, 1.0) < 0.5
        image = tf.where(turned, tf.reverse(image, [axis]), image)
        label_map = tf.where(turned[..., 0], tf.reverse(label_map, [axis]), label_map)
    return {**batch, "image": image, "label_map": label_map}


def random_intensity(batch, seed):
    """Scales by up to ±10 %, shifts by up to ±0.1 (of a range of 2), and clips to [-1, 1]."""
    scale = _uniform(batch, seed, 10, 1 - CONTRAST, 1 + CONTRAST)
    shift = _uniform(batch, seed, 11, -BRIGHTNESS, BRIGHTNESS)
    return {**batch, "image": tf.clip_by_value(scale * batch["image"] + shift, -1.0, 1.0)}


def random_gamma(batch, seed):
    """Raises the image, mapped to [0, 1], to a power between 1/1.25 and 1.25."""
    limit = tf.math.log(1 + GAMMA)
    power = tf.exp(_uniform(batch, seed, 20, -limit, limit))
    return {**batch, "image": 2 * ((batch["image"] + 1) / 2) ** power - 1}


def random_noise(batch, seed):
    """Adds white noise of a standard deviation of up to 0.05, and clips to [-1, 1]."""
    image = batch["image"]
    sd = _uniform(batch, seed, 30, 0.0, NOISE)
    noise = tf.random.stateless_normal(tf.shape(image), _sub_seed(seed, 31))
    return {**batch, "image": tf.clip_by_value(image + sd * noise, -1.0, 1.0)}


AUGMENTATIONS = {
    "flip": random_flip,
    "intensity": random_intensity,
    "gamma": random_gamma,
    "noise": random_noise,
}
"""Name -> function(batch, seed) -> batch, in the order in which `augment` applies them."""


def augment(batch, seed):
    """Applies all of `AUGMENTATIONS`.

    Args:
        batch: Dict with `image` in [-1, 1] and `label_map`.
        seed: Integers (2,).

    Returns:
        The same dict with both changed.
    """
    for function in AUGMENTATIONS.values():
        batch = function(batch, seed)
    return batch
