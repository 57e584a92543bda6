"""Resampling of volumes and label maps, axis by axis with closed-form weights.

`axis_weights` is the one place that knows the kernels, so that an exported graph can repeat them
exactly. Grids share the field of view: output voxel `i` has its centre at input position
`(i + 0.5) * in / out - 0.5`.
"""

import numpy as np
from scipy import sparse

from keras_unigan.config import IGNORE


def target_shape(shape, spacing, target_spacing):
    """Voxels of a volume at another spacing: `floor(n * s / t + 0.5)`, at least 1.

    An axis of one voxel stays one voxel.
    """
    return tuple(
        1 if n == 1 else max(1, int(np.floor(n * s / t + 0.5)))
        for n, s, t in zip(shape, spacing, target_spacing, strict=True)
    )


def axis_weights(in_size, out_size, order):
    """Weights that resample one axis; the one place that knows the kernel.

    "cubic" is the Keys kernel with a = -0.5 (Keys 1981, Cubic convolution interpolation for digital
    image processing), "linear" the tent, "nearest" takes the voxel that holds the centre. Edge
    voxels are repeated outwards. No low-pass filter is applied when the axis shrinks.

    Args:
        in_size: Voxels of the input along the axis.
        out_size: Voxels of the output.
        order: "cubic", "linear" or "nearest".

    Returns:
        Input indices, int64 (out_size, taps), and weights, float32 (out_size, taps), that sum to 1.

    Raises:
        ValueError: For another order.
    """
    centre = (np.arange(out_size) + 0.5) * in_size / out_size - 0.5
    left = np.floor(centre).astype(np.int64)
    t = centre - left
    if order == "cubic":
        taps = np.arange(-1, 3)
        distance = np.abs(t[:, None] - taps)
        near = (1.5 * distance - 2.5) * distance**2 + 1.0
        far = ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0
        weights = np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
    elif order == "linear":
        taps = np.arange(2)
        weights = np.stack([1.0 - t, t], axis=1)
    elif order == "nearest":
        taps = np.zeros(1, np.int64)
        left = np.floor(centre + 0.5).astype(np.int64)
        weights = np.ones((out_size, 1))
    else:
        raise ValueError(f"Expected order cubic, linear or nearest, got {order!r}.")
    indices = np.clip(left[:, None] + taps, 0, in_size - 1)
    return indices, weights.astype(np.float32)


def resample(array, out_shape, order="cubic", nearest_axis=None):
    """Resamples the first axes of an array to `out_shape`, one axis after the other.

    Args:
        array: Shape (x, y, z) or (x, y, z, channels).
        out_shape: Voxels along each resampled axis.
        order: "cubic", "linear" or "nearest".
        nearest_axis: Axis that takes the nearest slice instead: along an axis that is much coarser
            than the others, smooth kernels blend slices that show different anatomy.

    Returns:
        float32 array.
    """
    return _apply(np.asarray(array, np.float32), _rows(array.shape, out_shape, order, nearest_axis))


def _rows(in_shape, out_shape, order, nearest_axis):
    """`axis_weights` of each axis; None where its size stays."""
    kernels = ["nearest" if axis == nearest_axis else order for axis in range(len(out_shape))]
    return [
        None if n == m else axis_weights(n, m, kernel)
        for n, m, kernel in zip(in_shape, out_shape, kernels, strict=False)
    ]


def _apply(array, rows):
    """Array resampled along each of its first axes; see `_rows`."""
    for axis, row in enumerate(rows):
        if row is None:
            continue
        indices, weights = row
        # One row an output voxel. Its taps stay apart and in order, also where they are the same
        # voxel at an edge: sums are then those of a plain loop over taps, to the last bit.
        ends = np.arange(0, weights.size + 1, weights.shape[1])
        lines = np.moveaxis(array, axis, 0)
        matrix = sparse.csr_array(
            (weights.ravel(), indices.ravel(), ends), shape=(len(weights), len(lines))
        )
        made = matrix @ lines.reshape(len(lines), -1)
        array = np.moveaxis(made.reshape(-1, *lines.shape[1:]), 0, axis)
    return np.ascontiguousarray(array)


def resample_labels(index_map, out_shape, count, nearest_axis=None):
    """Resamples indices: each class linearly as a one-hot map, then the largest (ties: the lowest).

    Args:
        index_map: uint8 indices 0..count-1 and 255.
        out_shape: Voxels along each axis.
        count: Number of indices.
        nearest_axis: See `resample`.

    Returns:
        uint8 array; 255 competes like a class and stays 255.
    """
    if index_map.shape == tuple(out_shape):
        return index_map.copy()
    present = np.flatnonzero(np.bincount(index_map.ravel(), minlength=IGNORE + 1))
    first, *others = [i for i in present if i < count or i == IGNORE]
    rows = _rows(index_map.shape, out_shape, "linear", nearest_axis)
    reached = {i: _reach(index_map == i, rows) for i in others}
    reached = {i: reach for i, reach in reached.items() if reach is not None}
    # Beyond the reach of all others the first one has no rival.
    result = np.full(out_shape, first, np.uint8)
    if not reached:
        return result
    spans = zip(*reached.values(), strict=True)
    everywhere = tuple(slice(min(s.start for s in a), max(s.stop for s in a)) for a in spans)
    best = np.empty(out_shape, np.float32)
    best[everywhere] = _share(index_map, first, rows, everywhere)
    for index, reach in reached.items():
        share, highest = _share(index_map, index, rows, reach), best[reach]
        np.copyto(result[reach], np.uint8(index), where=share > highest)
        np.maximum(highest, share, out=highest)
    return result


def _share(index_map, index, rows, outside):
    """Share of one index in a part of the output; reads only what that part depends on."""
    inside, own = [], []
    for part, row in zip(outside, rows, strict=True):
        if row is None:
            inside.append(part)
            own.append(None)
            continue
        taps = row[0][part]
        first = int(taps.min())
        inside.append(slice(first, int(taps.max()) + 1))
        own.append((taps - first, row[1][part]))
    return _apply((index_map[tuple(inside)] == index).astype(np.float32), own)


def _reach(mask, rows):
    """The part of the output in which a mask counts.

    Returns:
        Slices, or None where every kernel passes the mask over, as the axis shrinks.
    """
    outside = []
    for axis, row in enumerate(rows):
        found = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        low, high = int(found[0]), int(found[-1])
        if row is not None:
            hit = np.flatnonzero(((row[0] >= low) & (row[0] <= high)).any(axis=1))
            if not len(hit):
                return None
            low, high = int(hit[0]), int(hit[-1])
        outside.append(slice(low, high + 1))
    return tuple(outside)
