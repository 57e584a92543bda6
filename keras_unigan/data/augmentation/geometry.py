"""Resampling in tensor ops, for 2-D and 3-D alike: separable matrices, warps, flips.

Whatever is separable (blur, coarse grids, spline fields, resizing) is one small matrix an axis;
matrix products are the fastest thing a CPU and a GPU have. Warps gather. Images are interpolated
linearly and once; label maps take their nearest voxel, and both agree on what lies outside.
"""

import itertools
import math

import tensorflow as tf

from keras_unigan.config import IGNORE

ROTATION, SCALE, SHIFT = 15.0, 0.2, 0.05
"""Largest rotation in degrees, change of scale, and shift as a share of the patch."""

ELASTIC_SD, ELASTIC_SPACING = 4.0, 16.0
"""Largest standard deviation of the control points of an elastic field and their distance, both in
voxels of the finest axis."""

AFFINE_SHARE, ELASTIC_SHARE = 0.5, 0.3


def sub_seed(seed, number):
    """Another seed (2,) under `seed`."""
    return tf.cast(seed, tf.int64) + tf.constant([(number + 1) << 40, 0], tf.int64)


def uniform(image, seed, number, low, high):
    """One random number a sample, shaped to be multiplied with an image."""
    shape = [tf.shape(image)[0], *[1] * (image.shape.rank - 1)]
    return tf.random.stateless_uniform(shape, sub_seed(seed, number), low, high)


def sizes(image):
    """Length of each spatial axis: whole numbers where they are known, else scalar tensors."""
    dynamic = tf.shape(image)
    axes = range(1, image.shape.rank - 1)
    return [dynamic[a] if image.shape[a] is None else image.shape[a] for a in axes]


def along_axes(image, matrices):
    """Applies one matrix to each spatial axis.

    Args:
        image: `(batch, *spatial, channels)`, float32.
        matrices: For each spatial axis `(batch or 1, out, in)`.

    Returns:
        `(batch, *out, channels)`.
    """
    rank = image.shape.rank
    turn = [0, *range(2, rank), 1]
    for matrix in matrices:
        shape = tf.shape(image)
        flat = tf.matmul(matrix, tf.reshape(image, [shape[0], shape[1], -1]))
        whole = tf.concat([shape[:1], tf.shape(matrix)[1:2], shape[2:]], axis=0)
        static = [image.shape[0], matrix.shape[1], *image.shape[2:]]
        image = tf.ensure_shape(tf.reshape(flat, whole), static)
        # The next axis comes to the front; after all of them only the channels are out of place.
        image = tf.transpose(image, turn)
    return tf.transpose(image, turn)


def _rows(weights):
    """Weights whose rows sum to 1."""
    return weights / tf.reduce_sum(weights, axis=-1, keepdims=True)


def _positions(size):
    """Voxel numbers of an axis, float32."""
    return tf.range(tf.cast(size, tf.float32))


def gaussian_matrix(size, sigma):
    """Gaussian blur of an axis; weights outside are shared among those inside.

    Args:
        size: Length of the axis.
        sigma: float32 (batch,), standard deviation in voxels; 0 changes nothing.
    """
    distance = _positions(size)[:, None] - _positions(size)
    sigma = tf.maximum(sigma, 1e-3)[:, None, None]
    return _rows(tf.exp(-0.5 * (distance / sigma) ** 2))


def resize_matrix(size, new, antialias=False):
    """Linear interpolation of an axis at half-pixel centres, as `tf.image.resize`.

    Args:
        size: Length of the axis.
        new: Length that it gets.
        antialias: Whether the kernel grows with the step when the axis shrinks.

    Returns:
        float32 (1, new, size).
    """
    step = tf.cast(size, tf.float32) / tf.cast(new, tf.float32)
    place = (_positions(new) + 0.5) * step - 0.5
    if not antialias:
        place = tf.clip_by_value(place, 0.0, tf.cast(size, tf.float32) - 1)
    width = tf.maximum(step, 1.0) if antialias else 1.0
    weights = 1 - tf.abs(place[:, None] - _positions(size)) / width
    return _rows(tf.maximum(weights, 0.0))[None]


def coarse_matrix(size, factor):
    """An axis seen by a coarser grid: averaged, sampled, and interpolated linearly.

    Args:
        size: Length of the axis.
        factor: float32 (batch,), voxels of the coarse grid in voxels of this one; 1 changes
            nothing.
    """
    last, factor = tf.cast(size, tf.float32) - 1, factor[:, None]
    # Coarse voxel j lies at (j + 1/2) factor - 1/2; the last ones repeat the end of the axis.
    coarse = tf.minimum((_positions(size) + 0.5) * factor - 0.5, last)
    width = tf.maximum(0.5 * tf.sqrt(factor**2 - 1), 1e-3)
    distance = coarse[:, :, None] - _positions(size)
    down = _rows(tf.exp(-0.5 * (distance / width[..., None]) ** 2))
    place = tf.clip_by_value((_positions(size) + 0.5) / factor - 0.5, 0.0, last)
    up = tf.maximum(1 - tf.abs(place[:, :, None] - _positions(size)), 0.0)
    return tf.matmul(up, down)


def spline_matrix(size, spacing):
    """Cubic B-splines over control points `spacing` voxels apart: float32 (1, size, points)."""
    points = tf.floor((tf.cast(size, tf.float32) - 1) / spacing) + 4
    distance = _positions(size)[:, None] / spacing - (tf.range(points) - 1)
    near, far = tf.abs(distance), tf.maximum(2 - tf.abs(distance), 0.0) ** 3 / 6
    return tf.where(near < 1, 2 / 3 - near**2 + near**3 / 2, far)[None]


def smooth_field(image, seed, spacing, channels):
    """Random smooth field over the voxels of an image.

    Args:
        image: `(batch, *spatial, channels)`; only its shape counts.
        seed: Integers (2,).
        spacing: Distance of the control points in voxels, for each axis. They are normal numbers of
            variance 1.
        channels: Values a voxel.

    Returns:
        float32 `(batch, *spatial, channels)`.
    """
    matrices = [spline_matrix(n, s) for n, s in zip(sizes(image), spacing, strict=True)]
    shape = [tf.shape(image)[0], *[tf.shape(m)[2] for m in matrices], channels]
    return along_axes(tf.random.stateless_normal(shape, seed), matrices)


def grid(image):
    """Coordinates of every voxel: float32 `(1, *spatial, axes)`."""
    axes = [_positions(n) for n in sizes(image)]
    return tf.stack(tf.meshgrid(*axes, indexing="ij"), axis=-1)[None]


def affine_matrix(angles, scales, spacing=None):
    """Matrices that take a voxel of the result, from the centre, to where it is sampled.

    Args:
        angles: Radians, `(batch, 1)` in 2-D, `(batch, 3)` in 3-D (about x, then y, then z).
        scales: `(batch, axes)`; above 1 enlarges what is seen.
        spacing: Voxel size of each axis, so that a rotation stays one in mm; None is isotropic.

    Returns:
        float32 `(batch, axes, axes)`.
    """
    axes = scales.shape[1]
    result = tf.linalg.diag(1 / scales)
    planes = [(0, 1)] if axes == 2 else [(1, 2), (2, 0), (0, 1)]
    for number, (first, second) in enumerate(planes):
        sine, cosine = tf.sin(angles[:, number]), tf.cos(angles[:, number])
        rows = [[tf.ones_like(sine) * float(i == j) for j in range(axes)] for i in range(axes)]
        rows[first][first] = rows[second][second] = cosine
        rows[first][second], rows[second][first] = -sine, sine
        rotation = tf.stack([tf.stack(row, axis=1) for row in rows], axis=1)
        if spacing is not None:
            size = tf.constant(spacing, tf.float32)
            rotation = rotation * size / size[:, None]
        result = tf.matmul(rotation, result)
    return result


def affine_coordinates(image, matrix, shift):
    """Where each voxel of the result is sampled.

    Args:
        image: `(batch, *spatial, channels)`; only its shape counts.
        matrix: `(batch, axes, axes)` about the centre of the patch.
        shift: `(batch, axes)` in voxels.

    Returns:
        float32 `(batch, *spatial, axes)`.
    """
    centre = (tf.cast(tf.stack(sizes(image)), tf.float32) - 1) / 2
    place = grid(image)
    flat = tf.reshape(place - centre, [1, -1, len(sizes(image))])
    moved = tf.matmul(flat, matrix, transpose_b=True) + (centre + shift)[:, None]
    return tf.reshape(moved, tf.concat([tf.shape(matrix)[:1], tf.shape(place)[1:]], axis=0))


def sample(batch, coordinates, fill):
    """Samples image and label map at coordinates of their own voxels.

    Args:
        batch: Dict with `image` and perhaps `label_map`.
        coordinates: float32 `(batch, *spatial, axes)`; whole numbers are voxel centres.
        fill: Value of the image outside; the label map has 255 there.
    """
    image = batch["image"]
    count, channels = tf.shape(image)[0], tf.shape(image)[-1]
    shape = [tf.cast(n, tf.int32) for n in sizes(image)]
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    offset = tf.range(count) * math.prod(shape)
    offset = tf.reshape(offset, [-1, *[1] * len(shape)])
    inside, near, corners = True, offset, []
    for axis, (n, stride) in enumerate(zip(shape, strides, strict=True)):
        last, place = tf.cast(n - 1, tf.float32), coordinates[..., axis]
        # A voxel reaches half its width to either side of its centre.
        inside = tf.logical_and(inside, tf.logical_and(place >= -0.5, place <= last + 0.5))
        place = tf.clip_by_value(place, 0.0, last)
        low = tf.floor(place)
        share, first = place - low, tf.cast(low, tf.int32)
        second = tf.minimum(first + 1, n - 1)
        corners.append(((first * stride, 1 - share), (second * stride, share)))
        near += tf.cast(tf.floor(place + 0.5), tf.int32) * stride
    flat, mixed = tf.reshape(image, [-1, channels]), 0.0
    for corner in itertools.product(*corners):
        index = tf.add_n([i for i, _ in corner]) + offset
        weight = tf.reduce_prod(tf.stack([w for _, w in corner]), axis=0)
        mixed += tf.gather(flat, index) * weight[..., None]
    mixed = tf.where(inside[..., None], mixed, fill)
    result = {**batch, "image": tf.ensure_shape(mixed, image.shape)}
    if "label_map" in batch:
        labels = batch["label_map"]
        found = tf.gather(tf.reshape(labels, [-1]), near)
        found = tf.where(inside, found, tf.constant(IGNORE, labels.dtype))
        result["label_map"] = tf.ensure_shape(found, labels.shape)
    return result


def random_flip(batch, seed, axes=None, share=1.0):
    """Mirrors axes of a share of the samples, each with probability one half.

    Args:
        batch: Dict with `image` and perhaps `label_map`.
        seed: Integers (2,).
        axes: Spatial axes counted from 0; None is all.
        share: Share of the samples that may be mirrored at all.
    """
    image, label_map = batch["image"], batch.get("label_map")
    allowed = uniform(image, seed, 0, 0.0, 1.0) < share
    for axis in range(1, image.shape.rank - 1):
        if axes is not None and axis - 1 not in axes:
            continue
        turned = tf.logical_and(allowed, uniform(image, seed, axis, 0.0, 1.0) < 0.5)
        image = tf.where(turned, tf.reverse(image, [axis]), image)
        if label_map is not None:
            label_map = tf.where(turned[..., 0], tf.reverse(label_map, [axis]), label_map)
    return {**batch, "image": image, **({} if label_map is None else {"label_map": label_map})}


def _chosen(image, seed, number, share):
    """1 for a share of the samples, 0 for the others: float32 (batch, 1)."""
    random = tf.random.stateless_uniform([tf.shape(image)[0], 1], sub_seed(seed, number))
    return tf.cast(random < share, tf.float32)


def random_affine(
    image, seed, rotation=ROTATION, scale=SCALE, shift=SHIFT, share=1.0, spacing=None
):
    """Coordinates of a random rotation, scaling and shift of a share of the samples.

    Args:
        image: `(batch, *spatial, channels)`; only its shape counts.
        seed: Integers (2,).
        rotation: Largest angle in degrees, about each axis.
        scale: Largest change of size, the same for all axes: from 1/(1 + scale) to 1 + scale.
        shift: Largest shift of each axis, as a share of its length.
        share: Share of the samples that are changed.
        spacing: As in `affine_matrix`.

    Returns:
        float32 `(batch, *spatial, axes)`.
    """
    axes, count = image.shape.rank - 2, tf.shape(image)[0]
    chosen = _chosen(image, seed, 40, share)

    def draw(number, columns):
        seeds = sub_seed(seed, number)
        return tf.random.stateless_uniform([count, columns], seeds, -1.0, 1.0) * chosen

    angles = draw(41, 1 if axes == 2 else 3) * math.radians(rotation)
    scales = tf.tile(tf.exp(draw(42, 1) * math.log1p(scale)), [1, axes])
    moved = draw(43, axes) * shift * tf.cast(tf.stack(sizes(image)), tf.float32)
    return affine_coordinates(image, affine_matrix(angles, scales, spacing), moved)


def random_elastic(image, seed, sd=ELASTIC_SD, distance=ELASTIC_SPACING, share=1.0, spacing=None):
    """Smooth random displacement of a share of the samples, in voxels.

    Args:
        image: `(batch, *spatial, channels)`; only its shape counts.
        seed: Integers (2,).
        sd: Largest standard deviation of a control point; each sample draws its own.
        distance: Distance of the control points. Both in voxels of the finest axis.
        share: Share of the samples that are changed.
        spacing: Voxel size of each axis; None is isotropic.

    Returns:
        float32 `(batch, *spatial, axes)`.
    """
    axes = image.shape.rank - 2
    size = spacing or (1.0,) * axes
    coarse = [s / min(size) for s in size]
    random = tf.random.stateless_uniform([tf.shape(image)[0], 1], sub_seed(seed, 45), 0.0, sd)
    random = tf.reshape(random * _chosen(image, seed, 46, share), [-1, *[1] * (axes + 1)])
    apart = [distance / c for c in coarse]
    field = smooth_field(image, sub_seed(seed, 47), apart, axes)
    return field * random / tf.constant(coarse, tf.float32)


def random_warp(batch, seed, spacing=None, shares=(AFFINE_SHARE, ELASTIC_SHARE)):
    """Affine and elastic change together, so that the image is interpolated once.

    Args:
        batch: Dict with `image` and perhaps `label_map`.
        seed: Integers (2,).
        spacing: Voxel size of each axis; None is isotropic.
        shares: Shares of the samples that are changed by the one and by the other.
    """
    image = batch["image"]
    coordinates = random_affine(image, seed, share=shares[0], spacing=spacing)
    coordinates += random_elastic(image, seed, share=shares[1], spacing=spacing)
    return sample(batch, coordinates, -1.0)
