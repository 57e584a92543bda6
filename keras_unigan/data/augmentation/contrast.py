"""Random contrast: images in which a network cannot know the modality by its intensities.

Two ways (methods.md §6, `synth_contrast`). Curves remap the intensities of the real image, smoothly
and not monotonically; they need no labels. Painting gives each labelled class a Gaussian of its own
(Billot et al. 2023, SynthSeg, doi:10.1016/j.media.2023.102789); what nobody labelled, and the
background class (skull, other organs), follows a curve, so that it keeps its texture. The darkest
intensities stay dark: outside is background in every modality.

`painted_image` paints all of an image, so that nothing of its intensities is left (the level
"paint"). Like SynthSeg, where label maps show some structures only, it makes further classes of
the rest by clusters of intensity.
"""

import tensorflow as tf

from keras_unigan.config import IGNORE
from keras_unigan.data.augmentation import geometry
from keras_unigan.layers import equalize

MEANS, SDS = (25.0, 225.0), (5.0, 25.0)
"""Mean and standard deviation of a painted class, of a range of 0 to 255."""

GAMMA_SD = 0.5
ENTRIES, PIECES = 256, 6
"""Entries of a curve's table, and the number of pieces that bend independently."""

FADE = 0.1
"""Intensities that far above -1 fade into the background's -1."""

EDGE = 0.02
"""Intensities up to that far above -1 are what a warp leaves of the background's border."""

PARTS = 4
"""Classes that `painted_image` makes of the tissue that nobody labelled."""

PAINTED = 0.5
"""Share of the changed samples that are painted rather than remapped."""


def random_curves(seed, count):
    """Random smooth curves from [-1, 1] into [-1, 1].

    Args:
        seed: Integers (2,).
        count: Number of curves.

    Returns:
        float32 (count, ENTRIES): values at evenly spaced intensities; the first is -1.
    """
    matrix = geometry.spline_matrix(ENTRIES, (ENTRIES - 1) / PIECES)[0]
    knots = tf.random.stateless_uniform([count, tf.shape(matrix)[1]], geometry.sub_seed(seed, 101))
    values = tf.matmul(knots, matrix, transpose_b=True)
    low, high = (f(values, axis=1, keepdims=True) for f in (tf.reduce_min, tf.reduce_max))
    powers = tf.random.stateless_normal([count, 1], geometry.sub_seed(seed, 103), stddev=GAMMA_SD)
    values = ((values - low) / tf.maximum(high - low, 1e-6)) ** tf.exp(powers)
    # From a darkest of 0 to 0.1 to a brightest of 0.8 to 1.
    ends = tf.random.stateless_uniform([count, 2], geometry.sub_seed(seed, 102))
    values = 0.1 * ends[:, :1] + values * (0.8 + 0.2 * ends[:, 1:] - 0.1 * ends[:, :1])
    rise = tf.minimum(tf.linspace(0.0, 2.0, ENTRIES) / FADE, 1.0)
    return 2 * values * rise**2 * (3 - 2 * rise) - 1


def apply_curves(image, curves):
    """Looks each intensity up in the curve of its sample, linearly between entries."""
    flat = tf.reshape(image, [tf.shape(image)[0], -1])
    place = tf.clip_by_value((flat + 1) / 2, 0.0, 1.0) * (ENTRIES - 1)
    below = tf.minimum(tf.floor(place), ENTRIES - 2)
    index = tf.cast(below, tf.int32)
    low, high = (tf.gather(curves, index + step, batch_dims=1) for step in (0, 1))
    return tf.reshape(low + (place - below) * (high - low), tf.shape(image))


def _gaussians(shape, index, seed):
    """Noise of a shape, with one Gaussian a sample and entry of `index`: float32 in [-1, 1]."""
    count, entries = shape[0], IGNORE + 1 + PARTS
    mean, sd = (
        tf.random.stateless_uniform([count, entries], geometry.sub_seed(seed, number), *limits)
        for number, limits in ((105, MEANS), (106, SDS))
    )
    normal = tf.random.stateless_normal(shape, geometry.sub_seed(seed, 107))
    mean, sd = (tf.gather(table, index, batch_dims=1)[..., None] for table in (mean, sd))
    return tf.clip_by_value((mean + sd * normal) / 127.5 - 1, -1.0, 1.0)


def _labelled(label_map):
    """Class indices, int32, and where they are those of a class that somebody labelled."""
    index = tf.cast(label_map, tf.int32)
    return index, tf.logical_and(index > 0, index != IGNORE)


def paint(image, label_map, seed):
    """Gives each labelled class one Gaussian a sample; leaves class 0 and 255 as they are.

    Args:
        image: float32 `(batch, *spatial, channels)`.
        label_map: `(batch, *spatial)`.
        seed: Integers (2,).

    Returns:
        Image of the same shape in [-1, 1].
    """
    index, labelled = _labelled(label_map)
    return tf.where(labelled[..., None], _gaussians(tf.shape(image), index, seed), image)


def painted_image(image, label_map, seed):
    """An image made of a label map: one Gaussian for each class, then a random gamma.

    What is neither labelled nor background is cut into `PARTS` classes by the rank of its
    intensity, which is all that is used of the image.

    Args:
        image: float32 `(batch, *spatial, channels)`, background -1.
        label_map: `(batch, *spatial)`.
        seed: Integers (2,).

    Returns:
        Image of the same shape in [-1, 1].
    """
    index, labelled = _labelled(label_map)
    rank = (tf.reduce_mean(equalize(image), axis=-1) + 1) / 2
    part = tf.cast(tf.minimum(tf.floor(rank * PARTS), PARTS - 1), tf.int32)
    index = tf.where(labelled, index, IGNORE + 1 + part)
    made = (_gaussians(tf.shape(image), index, seed) + 1) / 2
    shape = [tf.shape(image)[0], *[1] * (image.shape.rank - 1)]
    power = tf.random.stateless_normal(shape, geometry.sub_seed(seed, 108), stddev=GAMMA_SD)
    made = 2 * made ** tf.exp(power) - 1
    outside = tf.reduce_max(image, axis=-1, keepdims=True) <= EDGE - 1
    outside = tf.logical_and(outside, tf.logical_not(labelled[..., None]))
    return tf.ensure_shape(tf.where(outside, -1.0, made), image.shape)


def paint_all(batch, seed, equalized=False):
    """Paints every sample of a batch (`painted_image`), which is then `known` no more.

    Args:
        batch: Dict with `image` and `label_map`, and perhaps `known`.
        seed: Integers (2,).
        equalized: Whether the samples that are not `known` are then equalized, as images of
            unknown modality are in prediction.
    """
    made = painted_image(batch["image"], batch["label_map"], seed)
    if equalized and "known" in batch:
        known = tf.reshape(tf.cast(batch["known"], tf.bool), [-1, *[1] * (made.shape.rank - 1)])
        made = tf.where(known, made, equalize(made))
    known = {"known": tf.zeros_like(batch["known"])} if "known" in batch else {}
    return {**batch, **known, "image": made}


def contrasted(seed, count, fraction):
    """Which samples of a batch get a random contrast: bool (count,)."""
    return tf.random.stateless_uniform([count], geometry.sub_seed(seed, 100)) < fraction


def random_contrast(batch, seed, changed, equalized=False, painted=PAINTED):
    """Gives samples a random contrast.

    Args:
        batch: Dict with `image` and `label_map`.
        seed: Integers (2,).
        changed: bool (batch,), which samples.
        equalized: Whether those are then equalized, as images of unknown modality are in
            prediction (`config.Plan.unknown`).
        painted: Share of the changed samples that are painted; 0 where the channels are slices, as
            the label map is of one of them.
    """
    image, count = batch["image"], tf.shape(batch["image"])[0]
    shape = [-1, *[1] * (image.shape.rank - 1)]
    curved = apply_curves(image, random_curves(seed, count))
    result = curved
    if painted:
        drawn = tf.random.stateless_uniform([count], geometry.sub_seed(seed, 104)) < painted
        made = paint(curved, batch["label_map"], seed)
        result = tf.where(tf.reshape(drawn, shape), made, curved)
    if equalized:
        # Background is what it was in the image; a curve may make tissue just as dark.
        result = equalize(tf.where(image > EDGE - 1, tf.maximum(result, EDGE / 2 - 1), -1.0))
    result = tf.where(tf.reshape(changed, shape), result, image)
    return {**batch, "image": tf.ensure_shape(result, image.shape)}
