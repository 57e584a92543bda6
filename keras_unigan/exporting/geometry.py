"""The geometry of `data.preprocessing`, `data.resampling` and `data.windows` in TensorFlow ops.

An exported graph has to do to a whole volume what local inference does in NumPy, to the last bit
where that can be had: the formulas, their order and their precision are the same. Sizes are
tensors, because a graph sees volumes of every size.
"""

import numpy as np
import tensorflow as tf

from keras_unigan.layers import HIGH_QUANTILE, LOW_QUANTILE

SLICES = 8
"""Slices of a volume that a 2-D network gets at once."""


def foreground(values):
    """Mask of the voxels that differ from the value that all corners share; else all of them.

    Equals `data.preprocessing.nonbackground`.

    Args:
        values: `(x, y, z)`, any real type: the comparison is made in the precision of the file.
    """
    corners = values
    for axis in range(3):
        last = tf.shape(values)[axis] - 1
        corners = tf.gather(corners, tf.stack([0, last]), axis=axis)
    corners = tf.reshape(corners, [-1])
    shared = tf.reduce_all(tf.equal(corners, corners[0]))
    mask = tf.logical_not(tf.logical_and(shared, tf.equal(values, corners[0])))
    return tf.logical_or(mask, tf.logical_not(tf.reduce_any(mask)))


def statistics(values, mask):
    """Mean, standard deviation, 0.5 and 99.5 percentile, float32 `(4,)`.

    Equals `data.preprocessing.statistics`; only the two ends are sorted.

    Args:
        values: float32 `(x, y, z)`.
        mask: Voxels that count.
    """
    counted = tf.boolean_mask(values, mask)
    wide = tf.cast(counted, tf.float64)
    mean = tf.reduce_mean(wide)
    sd = tf.sqrt(tf.reduce_mean(tf.square(wide - mean)))
    last = tf.cast(tf.size(counted), tf.float64) - 1.0
    low = _ranked(-counted, LOW_QUANTILE * last, last, -1.0)
    high = _ranked(counted, HIGH_QUANTILE * last, last, 1.0)
    return tf.cast(tf.stack([mean, sd, low, high]), tf.float32)


def _ranked(signed, rank, last, sign):
    """Value at a rank that is no integer, as NumPy's "linear" percentile.

    `signed` is the values times `sign`, so that the wanted end is at its top.
    """
    below = tf.floor(rank)
    above = tf.minimum(below + 1.0, last)
    first, second = (below, above) if sign < 0 else (last - below, last - above)
    count = tf.cast(tf.maximum(first, second), tf.int32) + 1
    ordered = sign * tf.math.top_k(signed, count).values
    a, b = (tf.gather(ordered, tf.cast(place, tf.int32)) for place in (first, second))
    difference, a, b = (tf.cast(x, tf.float64) for x in (b - a, a, b))
    share = rank - below
    return tf.where(share >= 0.5, b - difference * (1.0 - share), a + difference * share)


def crop_box(mask):
    """Where the smallest box that holds a mask begins and how large it is, int32 `(3,)` each."""
    begin, end = [], []
    for axis in range(3):
        line = tf.reduce_any(mask, axis=[a for a in range(3) if a != axis])
        found = tf.cast(tf.where(line)[:, 0], tf.int32)
        begin.append(found[0])
        end.append(found[-1] + 1)
    return tf.stack(begin), tf.stack(end) - tf.stack(begin)


def target_sizes(sizes, spacing, target_spacing):
    """Voxels at another spacing, float64 `(3,)`; see `data.resampling.target_shape`.

    Args:
        sizes: int32 `(3,)`.
        spacing: float64 `(3,)`, mm.
        target_spacing: Three numbers, mm.
    """
    n = tf.cast(sizes, tf.float64)
    target = tf.constant(target_spacing, tf.float64)
    wanted = tf.maximum(tf.floor(n * spacing / target + 0.5), 1.0)
    return tf.where(tf.equal(sizes, 1), tf.ones_like(wanted), wanted)


def axis_weights(in_size, out_size, order):
    """Indices and weights of `data.resampling.axis_weights`, for sizes that are tensors.

    Args:
        in_size: int32 scalar.
        out_size: int32 scalar.
        order: "cubic", "linear" or "nearest".

    Returns:
        int32 and float32 `(out_size, taps)`.
    """
    n, m = tf.cast(in_size, tf.float64), tf.cast(out_size, tf.float64)
    centre = (tf.cast(tf.range(out_size), tf.float64) + 0.5) * n / m - 0.5
    left = tf.floor(centre)
    t = (centre - left)[:, None]
    if order == "cubic":
        taps = np.arange(-1, 3)
        distance = tf.abs(t - tf.constant(taps, tf.float64))
        near = (1.5 * distance - 2.5) * distance**2 + 1.0
        far = ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0
        weights = tf.where(distance <= 1, near, tf.where(distance < 2, far, tf.zeros_like(far)))
    elif order == "linear":
        taps = np.arange(2)
        weights = tf.concat([1.0 - t, t], axis=1)
    else:
        taps = np.zeros(1, int)
        left = tf.floor(centre + 0.5)
        weights = tf.ones_like(t)
    indices = tf.cast(left, tf.int32)[:, None] + tf.constant(taps, tf.int32)
    return tf.clip_by_value(indices, 0, in_size - 1), tf.cast(weights, tf.float32)


def resample(array, sizes, order, nearest_axis=None):
    """Resamples the first three axes, one after the other; see `data.resampling.resample`.

    Args:
        array: float32 `(x, y, z)` or `(x, y, z, channels)`.
        sizes: int32 `(3,)`.
        order: "cubic" or "linear".
        nearest_axis: Axis that takes the nearest slice instead, or None.
    """
    for axis in range(3):
        kernel = "nearest" if axis == nearest_axis else order
        array = _resample_axis(array, axis, sizes[axis], kernel)
    return array


def _resample_axis(array, axis, size, order):
    shape = [1] * len(array.shape)
    shape[axis] = -1
    free = array.shape.as_list()
    free[axis] = None

    def apply():
        indices, weights = axis_weights(tf.shape(array)[axis], size, order)
        total = None
        for tap in range(weights.shape[1]):
            part = tf.gather(array, indices[:, tap], axis=axis)
            part = part * tf.reshape(weights[:, tap], shape)
            total = part if total is None else total + part
        return tf.ensure_shape(total, free)

    same = tf.equal(tf.shape(array)[axis], size)
    result = tf.cond(same, lambda: tf.ensure_shape(array, free), apply)
    result.set_shape(free)
    return result


def window_weights(size, patch, overlap):
    """Starts `(windows,)` and weights `(windows, patch)`; see `data.windows.window_weights`.

    Args:
        size: Voxels of the axis, int32 scalar, at least `patch`.
        patch: Voxels of a window, an integer.
        overlap: Share of the window by which two neighbours overlap at least.
    """
    step = max(patch * (1 - overlap), 1)
    rest = size - patch
    count = 1 + tf.cast(tf.math.ceil(tf.cast(rest, tf.float64) / step), tf.int32)
    starts = tf.range(count) * rest // tf.maximum(count - 1, 1)
    offsets = (np.arange(patch) - (patch - 1) / 2) / (patch / 8)
    gaussian = tf.constant(np.exp(-(offsets**2) / 2), tf.float64)
    places = starts[:, None] + tf.range(patch)
    rows = tf.tile(gaussian[None], [count, 1])
    total = tf.math.unsorted_segment_sum(rows, places, size)
    return starts, tf.cast(rows / tf.gather(total, places), tf.float32)


def sliding_window(volume, predict, patch_size, overlap, outputs, slices=1):
    """Probabilities of a whole volume; see `data.windows.sliding_window`.

    Args:
        volume: float32 `(x, y, z)`, raw intensities.
        predict: Function from raw patches `(batch, *patch, slices)` to `(batch, *patch, outputs)`.
        patch_size: Window, 2 or 3 integers.
        overlap: See `window_weights`.
        outputs: Channels of the result.
        slices: Odd number of slices that a 2-D window shows as its channels.

    Returns:
        float32 `(x, y, z, outputs)`.
    """
    flat = len(patch_size) == 2
    window = (*patch_size, 1) if flat else tuple(patch_size)
    sizes = tf.shape(volume)
    missing = tf.maximum(tf.constant(window) - sizes, 0)
    before = missing // 2
    margins = tf.stack([before, missing - before], axis=1)
    lowest = tf.reduce_min(volume)
    padded = tf.pad(volume, margins, constant_values=lowest)
    deep = tf.shape(padded)
    padded = tf.pad(padded, [[0, 0], [0, 0], [slices // 2] * 2], constant_values=lowest)
    axes = [window_weights(deep[a], window[a], overlap) for a in range(2)]
    if flat:
        # Slices do not overlap: some at once, each of weight one.
        starts = tf.range((deep[2] + SLICES - 1) // SLICES) * SLICES
        axes.append((starts, tf.ones([1, 1])))
    else:
        axes.append(window_weights(deep[2], window[2], overlap))
    counts = [tf.size(starts) for starts, _ in axes]

    def tile(x, y, z, slab):
        """Adds the window at three places to the slices from `axes[2][0][z]` on."""
        begin = tf.stack([starts[i] for (starts, _), i in zip(axes, (x, y, z), strict=True)])
        size = tf.stack([*window[:2], tf.shape(slab)[2]])
        patch = tf.slice(padded, begin, size + tf.constant([0, 0, slices - 1]))
        if flat:
            stack = [patch[:, :, s : s + size[2]] for s in range(slices)]
            patches = tf.transpose(tf.stack(stack, axis=-1), [2, 0, 1, 3])
        else:
            patches = patch[None, ..., None]
        patches.set_shape([None if flat else 1, *patch_size, slices])
        values = predict(patches)
        values = tf.transpose(values, [1, 2, 0, 3]) if flat else values[0]
        weight = axes[0][1][x][:, None] * axes[1][1][y]
        return _add(slab, tf.stack([begin[0], begin[1], 0]), values * weight[..., None, None])

    def layer(z, total):
        """Adds all windows that begin at one depth: the whole is touched once for all of them."""
        begin = axes[2][0][z]
        depth = tf.minimum(SLICES, deep[2] - begin) if flat else window[2]
        slab = tf.zeros(tf.stack([deep[0], deep[1], depth, outputs]))
        slab = _loop(
            counts[0] * counts[1],
            lambda i, slab: tile(i // counts[1], i % counts[1], z, slab),
            slab,
            outputs,
        )
        slab *= axes[2][1][0 if flat else z][:, None]
        return _add(total, tf.stack([0, 0, begin]), slab)

    total = _loop(counts[2], layer, tf.zeros(tf.concat([deep, [outputs]], axis=0)), outputs)
    inside = tf.concat([sizes, [outputs]], axis=0)
    return tf.slice(total, tf.concat([before, [0]], axis=0), inside)


def _loop(count, step, start, outputs):
    """`step(index, total)` for each index, from `start` `(x, y, z, outputs)` on."""
    shape = tf.TensorShape([None, None, None, outputs])
    _, total = tf.while_loop(
        lambda index, _: index < count,
        lambda index, total: (index + 1, tf.ensure_shape(step(index, total), shape)),
        (0, tf.ensure_shape(start, shape)),
        shape_invariants=(tf.TensorShape([]), shape),
        parallel_iterations=1,
    )
    return total


def _add(total, begin, values):
    """`total` `(x, y, z, outputs)` with values added from a voxel `begin` on.

    Zeros around the values, and a sum: many times faster than an update of a part.
    """
    after = tf.shape(total)[:3] - begin - tf.shape(values)[:3]
    margins = tf.pad(tf.stack([begin, after], axis=1), [[0, 1], [0, 0]])
    return total + tf.pad(values, margins)


def orientation(linear, sizes):
    """How the axes of a file run through the patient; see `data.nifti.to_ras`.

    The steps are those of `nibabel.io_orientation`: the nearest rotation, then the axes from the
    clearest to the least clear. A single slice keeps its axis last.

    Args:
        linear: Columns of the affine, float64 `(3, 3)`.
        sizes: int32 `(3,)`.

    Returns:
        `(targets, flipped)`: RAS+ axis of each axis of the file, int32 `(3,)`, and whether it runs
        against it, Boolean `(3,)`.
    """
    _, u, v = tf.linalg.svd(linear / column_lengths(linear), full_matrices=False)
    rotation = tf.matmul(u, v, transpose_b=True)
    clearest = tf.argsort(tf.reduce_min(-tf.square(rotation), axis=0), stable=True)
    targets = tf.zeros([3], tf.int32)
    flipped = tf.zeros([3], tf.int32)
    for rank in range(3):
        axis = clearest[rank]
        column = tf.gather(rotation, axis, axis=1)
        target = tf.argmax(tf.abs(column), output_type=tf.int32)
        here = tf.one_hot(axis, 3, dtype=tf.int32)
        targets += here * target
        flipped += here * tf.cast(tf.gather(column, target) < 0, tf.int32)
        rotation *= (1.0 - tf.one_hot(target, 3, dtype=tf.float64))[:, None]
    single = tf.cast(tf.equal(sizes, 1), tf.int32)
    place = tf.reduce_sum(single * targets)
    moved = tf.where(tf.equal(single, 1), 2, tf.where(targets > place, targets - 1, targets))
    targets = tf.where(tf.equal(tf.reduce_sum(single), 1), moved, targets)
    return targets, tf.equal(flipped, 1)


def column_lengths(linear):
    """Lengths of the columns of `(3, 3)`: the spacing, mm. Those of no length count 1."""
    squares = tf.square(linear)
    lengths = tf.sqrt(squares[0] + squares[1] + squares[2])
    return tf.where(lengths > 0, lengths, tf.ones_like(lengths))


def determinant(linear):
    """Determinant of the columns scaled to length one: 0 where they do not span space."""
    unit = linear / column_lengths(linear)
    a, b, c = (unit[:, i] for i in range(3))
    return tf.reduce_sum(a * tf.linalg.cross(b, c))
