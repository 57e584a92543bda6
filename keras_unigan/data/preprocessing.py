"""Geometry and label indices: crop, resample, and the way back to the input's grid.

Intensities stay raw (`layers.IntensityNormalization` normalises them, once).
"""

import dataclasses

import numpy as np

from keras_unigan.config import IGNORE
from keras_unigan.data import nifti
from keras_unigan.data.resampling import (
    axis_weights,  # noqa: F401  the kernel of it all, found beside what it serves
    resample,
    resample_labels,
    target_shape,
)
from keras_unigan.errors import CodedError


def background_value(array):
    """Value that all corner voxels share (in all channels), or None where they differ.

    It is 0 in most files, the minimum in some skull-stripped ones and -1000 in many CTs.
    """
    corners = array[np.ix_(*[(0, -1)] * min(array.ndim, 3))].ravel()
    return float(corners[0]) if (corners == corners[0]).all() else None


def nonbackground(array):
    """Mask of the voxels that differ from the background value; all of them where there is none.

    Of several channels each has its own background, and a voxel counts that differs in one.
    """
    if array.ndim > 3:
        return np.any([nonbackground(channel) for channel in np.moveaxis(array, -1, 0)], axis=0)
    background = background_value(array)
    if background is None:
        return np.ones(array.shape, bool)
    turn = _forward(array)
    mask = (array[turn] != array.dtype.type(background))[turn]
    return mask if mask.any() else np.ones(array.shape, bool)


def _forward(array):
    """Slices that turn axes that run backwards through memory, and turn them back.

    NumPy takes several times as long over an array that runs backwards.
    """
    return tuple(slice(None, None, -1 if stride < 0 else 1) for stride in array.strides)


def _order(array):
    """Axes in the order of memory, slowest first: what runs over all voxels is faster so."""
    return sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))


def statistics(array, inside=None):
    """Mean, standard deviation, 0.5 and 99.5 percentile of the non-background voxels.

    Args:
        array: A whole volume; with `inside`, of one channel, a part that holds all these voxels.
        inside: Mask of these voxels, where it is known.

    Returns:
        float32 array of shape (4,); of several channels (channels, 4), each counted by itself.
    """
    if array.ndim > 3:
        return np.stack([statistics(channel) for channel in np.moveaxis(array, -1, 0)])
    inside = nonbackground(array) if inside is None else inside
    order = _order(array)
    stored = array.transpose(order)[inside.transpose(order)]
    values = stored.astype(np.float32)
    if stored.dtype.kind in "iu" and stored.dtype.itemsize <= 2:
        low, high = _counted_percentiles(stored, (0.5, 99.5))
    else:
        low, high = np.percentile(values, (0.5, 99.5))
    mean, sd = values.mean(dtype=np.float64), values.std(dtype=np.float64)
    return np.array([mean, sd, low, high], np.float32)


def _counted_percentiles(values, percentages):
    """What `np.percentile` gives, from counts: integers of 16 bits need no sorting."""
    lowest, last = int(values.min()), len(values) - 1
    ranks = np.cumsum(np.bincount(np.subtract(values, lowest, dtype=np.intp)))
    place = last * np.asarray(percentages) / 100
    below = np.floor(place).astype(np.int64)
    ends = np.stack([below, np.minimum(below + 1, last)])
    first, second = np.searchsorted(ranks, ends, side="right") + lowest
    return first + (place - below) * (second - first)


def crop_box(array, inside=None):
    """Slices of the smallest box that holds all non-background voxels.

    Args:
        array: A whole volume.
        inside: Mask of these voxels, where it is known.
    """
    inside = nonbackground(array) if inside is None else inside
    turn, order = _forward(inside), _order(inside)
    stored = inside[turn].transpose(order)
    # Two looks at all voxels, along memory, and then only at what is left.
    lines = [stored.reshape(len(stored), -1).any(axis=1)]
    plane = stored.any(axis=0)
    for axis in range(plane.ndim):
        lines.append(plane.any(axis=tuple(a for a in range(plane.ndim) if a != axis)))
    box = {}
    for axis, line in zip(order, lines, strict=True):
        found = np.flatnonzero(line[turn[axis]])
        box[axis] = slice(int(found[0]), int(found[-1]) + 1)
    return tuple(box[axis] for axis in range(inside.ndim))


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
    turn = _forward(array)
    array = array[turn]
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
    known = {v: i for i, values in enumerate(labels.values) for v in values}
    if not inside or _is_suspect(index, range(int(low), int(high) + 1), known):
        pairs = np.unique(array, return_counts=True)
        counts = {int(v): int(n) for v, n in zip(*pairs, strict=True)}
        unknown = [v for v in counts if v not in known and v != IGNORE]
        if unknown or set(counts) == {0, IGNORE}:
            _refuse_values(counts, unknown, known, labels, where)
    table = np.full(IGNORE + 1, IGNORE, np.uint8)
    for value, i in known.items():
        table[value] = i
    moved = [v for v in range(int(low), int(high) + 1) if v in known and table[v] != v]
    if len(moved) > 4:
        return table[index][turn]
    # A look for each of a few values is far faster than looking every voxel up.
    for value, place in [(table[v], index == v) for v in moved]:
        np.copyto(index, value, where=place)
    return index[turn]


def _is_suspect(index, values, known):
    """Whether values must be counted: one of them is unknown, or 255."""
    unknown = [v for v in values if v not in known]
    # A look for each of a few values is far faster than counting them all.
    return len(unknown) > 16 or any((index == v).any() for v in unknown)


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


def forget_unannotated(index_map, labels, annotated):
    """Label-map indices in which what belongs to nothing annotated is background.

    Args:
        index_map: uint8 indices.
        labels: `config.Labels`.
        annotated: Names as of `config.Case.annotated`.
    """
    gone = labels.unannotated_indices(annotated)
    return np.where(np.isin(index_map, gone), np.uint8(0), index_map) if gone else index_map


def decode_labels(index_map, labels):
    """Turns label-map indices back into the study's file values (a merged class: its first).

    Returns:
        uint8 array of the same shape; 255 stays 255.
    """
    table = np.full(IGNORE + 1, IGNORE, np.uint8)
    table[: len(labels.values)] = [values[0] for values in labels.values]
    return table[index_map]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A case on the grid that networks work on.

    Attributes:
        image: float32 (x, y, z), RAS+, cropped and resampled, intensities raw; of several channels
            (x, y, z, channels).
        label_map: uint8 indices on the same grid, or None.
        statistics: float32 (4,) or (channels, 4), see `statistics`; of the whole volume before the
            crop.
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


def align(volume, label, labels, where, annotated=None):
    """Checks a case and reorients it.

    Args:
        volume: `nifti.Volume` of the image.
        label: `nifti.Volume` of the label map with the study's file values, or None.
        labels: `config.Labels`.
        where: What an error calls the case.
        annotated: Names as of `config.Case.annotated`.

    Returns:
        RAS+ `Volume` and its uint8 indices, or None without a label; see `forget_unannotated`.

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
    index_map = encode_labels(label.array, labels, where)
    return ras, forget_unannotated(index_map, labels, annotated)


def prepare(volume, plan, label=None, where="image", annotated=None):
    """Brings a case to the plan's grid: RAS+, crop to what is not background, planned spacing.

    Args:
        volume: `nifti.Volume` of the image.
        plan: `config.Plan`.
        label: `nifti.Volume` of the label map with the study's file values, or None.
        where: What an error calls the case.
        annotated: Names as of `config.Case.annotated`.

    Returns:
        `Prepared`.

    Raises:
        CodedError: As `align` does.
    """
    ras, index_map = align(volume, label, plan.labels, where, annotated)
    inside = nonbackground(ras.array)
    box = crop_box(ras.array, inside)
    cropped = ras.array[box]
    shape = target_shape(cropped.shape[:3], ras.spacing, plan.spacing)
    affine = ras.affine @ _grid_step(box, cropped.shape[:3], shape)
    if index_map is not None:
        index_map = resample_labels(
            np.ascontiguousarray(index_map[box]), shape, len(plan.labels.values), plan.nearest_axis
        )
    return Prepared(
        image=resample(cropped, shape, "cubic", plan.nearest_axis),
        label_map=index_map,
        # Of several channels each has a background of its own.
        statistics=statistics(ras.array) if cropped.ndim > 3 else statistics(cropped, inside[box]),
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
    grid = prepared.image.shape[:3]
    if probabilities.shape[:3] != grid:
        raise ValueError(f"Expected probabilities on grid {grid}, got {probabilities.shape[:3]}.")
    result = np.zeros((*prepared.ras_shape, probabilities.shape[-1]), np.float32)
    if not prepared.overlapping:
        result[..., 0] = 1.0
    shape = tuple(s.stop - s.start for s in prepared.box)
    result[prepared.box] = resample(probabilities, shape, "linear")
    return result
