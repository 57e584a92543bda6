"""Geometry and label indices: crop, resample, and the way back to the input's grid.

NumPy only; intensities stay raw (`layers.IntensityNormalization` normalises them, once). Resampling
works axis by axis with the closed-form weights of `axis_weights`, so that an exported graph can
repeat it exactly. Grids share the field of view: output voxel `i` has its centre at input position
`(i + 0.5) * in / out - 0.5`.
"""

import dataclasses

import numpy as np

from keras_unigan.config import IGNORE
from keras_unigan.data import nifti
from keras_unigan.errors import CodedError


def background_value(array):
    """Value that all corner voxels share, or None where they differ.

    It is 0 in most files, the minimum in some skull-stripped ones and -1000 in many CTs.
    """
    corners = array[np.ix_(*[(0, -1)] * array.ndim)].ravel()
    return float(corners[0]) if (corners == corners[0]).all() else None


def nonbackground(array):
    """Mask of the voxels that differ from the background value; all of them where there is none."""
    background = background_value(array)
    if background is None:
        return np.ones(array.shape, bool)
    mask = array != array.dtype.type(background)
    return mask if mask.any() else np.ones(array.shape, bool)


def statistics(array):
    """Mean, standard deviation, 0.5 and 99.5 percentile of the non-background voxels.

    Args:
        array: A whole volume.

    Returns:
        float32 array of shape (4,).
    """
    values = array[nonbackground(array)].astype(np.float32)
    low, high = np.percentile(values, (0.5, 99.5))
    mean, sd = values.mean(dtype=np.float64), values.std(dtype=np.float64)
    return np.array([mean, sd, low, high], np.float32)


def crop_box(array):
    """Slices of the smallest box that holds all non-background voxels."""
    mask = nonbackground(array)
    box = []
    for axis in range(array.ndim):
        line = mask.any(axis=tuple(a for a in range(array.ndim) if a != axis))
        found = np.flatnonzero(line)
        box.append(slice(int(found[0]), int(found[-1]) + 1))
    return tuple(box)


def encode_labels(array, labels, where):
    """Turns file values into label-map indices.

    Args:
        array: File values of any type; whole numbers up to rounding noise of 0.001 (a scale of
            0.99999997 in the header is common).
        labels: `config.Labels`.
        where: What an error calls the file.

    Returns:
        uint8 array of the same shape; 255 stays 255 (not labelled).

    Raises:
        CodedError: KUG-D06 for NaN, KUG-D05 for other values than those of the study.
    """
    if array.dtype.kind == "f":
        check_finite(array, where)
        whole = np.rint(array)
        wrong = np.abs(array - whole) > 1e-3
        if wrong.any():
            raise CodedError(
                "KUG-D05",
                where,
                f"{int(wrong.sum())} voxels that are no whole number, e.g. {array[wrong][0]:g}",
                "whole label values",
                "A label map that was interpolated has wrong values at every border.",
                "resample the label map with nearest neighbour, or give the image's own label file",
            )
        array = whole
    low, high = array.min(), array.max()
    inside = low >= 0 and high <= IGNORE
    index = array.astype(np.uint8) if inside else None
    counts = dict(enumerate(np.bincount(index.ravel(), minlength=IGNORE + 1))) if inside else None
    if counts is None:
        counts = dict(zip(*np.unique(array, return_counts=True), strict=True))
    counts = {int(v): int(n) for v, n in counts.items() if n}
    known = {v: i for i, values in enumerate(labels.values) for v in values}
    unknown = [v for v in counts if v not in known and v != IGNORE]
    if unknown or set(counts) == {0, IGNORE}:
        _refuse_values(counts, unknown, known, labels, where)
    table = np.full(IGNORE + 1, IGNORE, np.uint8)
    for value, i in known.items():
        table[value] = i
    return table[index]


def _refuse_values(counts, unknown, known, labels, where):
    shown = ", ".join(f"{v} ({n} voxels)" for v, n in list(counts.items())[:12])
    shown += f" and {len(counts) - 12} more" if len(counts) > 12 else ""
    if not unknown:
        why = "255 means 'not labelled', so a 0-255 mask would teach nothing."
        fix = "write 1 in place of 255"
    elif labels.overlapping:
        why = "A value without a region would be counted as background."
        fix = f"add {unknown[:12]} to the regions they belong to in study.json"
    else:
        why = "A value without a class would be counted as background."
        added = ", ".join(f'"label_{v}": [{v}]' for v in unknown[:12] if 1 <= v < IGNORE)
        fix = (
            f"add to labels in study.json: {added}"
            if added
            else "write values 1 to 254 for classes, 0 for background and 255 for not labelled"
        )
    raise CodedError(
        "KUG-D05", where, f"label values {shown}", f"{sorted(known)} (255 = not labelled)", why, fix
    )


def decode_labels(index_map, labels):
    """Turns label-map indices back into the study's file values (a merged class: its first).

    Returns:
        uint8 array of the same shape; 255 stays 255.
    """
    table = np.full(IGNORE + 1, IGNORE, np.uint8)
    table[: len(labels.values)] = [values[0] for values in labels.values]
    return table[index_map]


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
    result = np.asarray(array, np.float32)
    for axis, size in enumerate(out_shape):
        if result.shape[axis] == size:
            continue
        kernel = "nearest" if axis == nearest_axis else order
        indices, weights = axis_weights(result.shape[axis], size, kernel)
        column = [1] * result.ndim
        column[axis] = size
        total = np.zeros((), np.float32)
        for tap in range(indices.shape[1]):
            taken = np.take(result, indices[:, tap], axis=axis)
            total = total + taken * weights[:, tap].reshape(column)
        result = total
    return np.ascontiguousarray(result)


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
    best = np.full(out_shape, -1.0, np.float32)
    result = np.full(out_shape, IGNORE, np.uint8)
    present = np.flatnonzero(np.bincount(index_map.ravel(), minlength=IGNORE + 1))
    for index in [*(i for i in present if i < count), *(i for i in present if i == IGNORE)]:
        share = resample(index_map == index, out_shape, "linear", nearest_axis)
        better = share > best
        result[better] = index
        best[better] = share[better]
    return result


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A case on the grid that networks work on.

    Attributes:
        image: float32 (x, y, z), RAS+, cropped and resampled, intensities raw.
        label_map: uint8 indices on the same grid, or None.
        statistics: float32 (4,), see `statistics`; of the whole volume before the crop.
        affine: Voxel index of the prepared grid to RAS+ mm, (4, 4) float64.
        box: Crop, slices into the RAS+ volume.
        ras_shape: Shape of the whole RAS+ volume.
        overlapping: Whether outputs are regions, which have no background map.
    """

    image: np.ndarray
    label_map: np.ndarray | None
    statistics: np.ndarray
    affine: np.ndarray
    box: tuple[slice, slice, slice]
    ras_shape: tuple[int, int, int]
    overlapping: bool = False


def check_finite(array, where):
    """Raises KUG-D06 where an array holds NaN or infinity."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        wrong = int((~np.isfinite(array)).sum())
        raise CodedError(
            "KUG-D06",
            where,
            f"{wrong} NaN or infinite voxels of {array.size}",
            "finite values",
            "One such voxel spoils every step that sees it.",
            "set them to the background value, or make the image again",
        )


def check_image(volume, where):
    """Raises KUG-D06 for voxels that are not finite and KUG-D12 for a constant image."""
    check_finite(volume.array, where)
    if volume.array.min() == volume.array.max():
        raise CodedError(
            "KUG-D12",
            where,
            f"{volume.array.flat[0]:g} in every voxel",
            "an image",
            "There is nothing to learn from or to normalise.",
            "leave the case out, or export it again",
        )


def check_pair(image, label, where):
    """Checks that an image and its label map share a grid, both in RAS+.

    Raises:
        CodedError: KUG-D03 when shapes differ, KUG-D04 when a corner lies over half a voxel off.
    """
    if image.shape != label.shape:
        same = sorted(image.shape) == sorted(label.shape)
        raise CodedError(
            "KUG-D03",
            where,
            f"image {image.shape} and label map {label.shape} (RAS+ axes)"
            + (", the same sizes in another order" if same else ""),
            "one shape",
            "A label map on another grid marks the wrong voxels.",
            "resample the label map to the image's grid (nearest neighbour)",
        )
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in image.shape], [1.0])).reshape(4, -1)
    offset = (label.affine - image.affine) @ corners
    voxels = np.linalg.solve(image.affine[:3, :3], offset[:3])
    if np.abs(voxels).max() > 0.5:
        raise CodedError(
            "KUG-D04",
            where,
            f"label map up to {np.linalg.norm(offset[:3], axis=0).max():.2f} mm "
            f"({np.abs(voxels).max():.2f} voxels) away from the image",
            "corners within half a voxel",
            "A label map in another place marks the wrong voxels.",
            "write the image's affine into the label file if the voxels match, else resample it",
        )


def align(volume, label, labels, where):
    """Checks a case and reorients it.

    Args:
        volume: `nifti.Volume` of the image.
        label: `nifti.Volume` of the label map with the study's file values, or None.
        labels: `config.Labels`.
        where: What an error calls the case.

    Returns:
        RAS+ `Volume` and its uint8 indices, or None without a label.

    Raises:
        CodedError: KUG-D03, KUG-D04, KUG-D05, KUG-D06 or KUG-D12; see `check_pair`,
            `encode_labels` and `check_image`.
    """
    check_image(volume, where)
    ras = nifti.to_ras(volume)
    if label is None:
        return ras, None
    label = nifti.to_ras(label)
    check_pair(ras, label, where)
    return ras, encode_labels(label.array, labels, where)


def prepare(volume, plan, label=None, where="image"):
    """Brings a case to the plan's grid: RAS+, crop to what is not background, planned spacing.

    Args:
        volume: `nifti.Volume` of the image.
        plan: `config.Plan`.
        label: `nifti.Volume` of the label map with the study's file values, or None.
        where: What an error calls the case.

    Returns:
        `Prepared`.

    Raises:
        CodedError: As `align` does.
    """
    ras, index_map = align(volume, label, plan.labels, where)
    box = crop_box(ras.array)
    cropped = ras.array[box]
    shape = target_shape(cropped.shape, ras.spacing, plan.spacing)
    affine = ras.affine @ _grid_step(box, cropped.shape, shape)
    if index_map is not None:
        index_map = resample_labels(
            np.ascontiguousarray(index_map[box]), shape, len(plan.labels.values), plan.nearest_axis
        )
    return Prepared(
        image=resample(cropped, shape, "cubic", plan.nearest_axis),
        label_map=index_map,
        statistics=statistics(ras.array),
        affine=affine,
        box=box,
        ras_shape=ras.shape,
        overlapping=plan.labels.overlapping,
    )


def _grid_step(box, cropped_shape, shape):
    """Prepared voxel index to RAS+ voxel index, (4, 4)."""
    step = np.eye(4)
    for axis, (inside, n, m) in enumerate(zip(box, cropped_shape, shape, strict=True)):
        step[axis, axis] = n / m
        step[axis, 3] = inside.start + 0.5 * n / m - 0.5
    return step


def restore(probabilities, prepared):
    """Takes probabilities from the prepared grid back to the whole RAS+ volume.

    Args:
        probabilities: float (x, y, z, K) on the grid of `prepared.image`.
        prepared: The `Prepared` case.

    Returns:
        float32 array (*prepared.ras_shape, K), resampled linearly. Outside the crop the background
        has probability 1; regions have 0 there.

    Raises:
        ValueError: When the grid is not that of the prepared image.
    """
    if probabilities.shape[:3] != prepared.image.shape:
        raise ValueError(
            f"Expected probabilities on grid {prepared.image.shape}, got {probabilities.shape[:3]}."
        )
    result = np.zeros((*prepared.ras_shape, probabilities.shape[-1]), np.float32)
    if not prepared.overlapping:
        result[..., 0] = 1.0
    shape = tuple(s.stop - s.start for s in prepared.box)
    result[prepared.box] = resample(probabilities, shape, "linear")
    return result
