"""Scores of two masks from the distances between their surfaces, in mm."""

import numpy as np
from scipy import ndimage

from keras_unigan.metrics.overlap import masks_of

HD95 = ("pooled", "max")
"""Definitions of HD95: the 95th percentile of the pooled distances of both directions (the default;
MedPy), or the larger of the percentiles of each direction (MONAI, surface-distance)."""


def hd95(truth, prediction, spacing, definition="pooled"):
    """95th percentile of the surface distances, in mm.

    Args:
        truth: See `surface_scores`; also for `prediction`, `spacing` and empty masks.
        prediction: As said.
        spacing: As said.
        definition: One of `HD95`.
    """
    return surface_scores(truth, prediction, spacing, definition)[0]


def assd(truth, prediction, spacing):
    """Mean of the surface distances of both directions, in mm.

    See `surface_scores` for arguments and empty masks.
    """
    return surface_scores(truth, prediction, spacing)[1]


def nsd(truth, prediction, spacing, tolerance):
    """Normalised surface Dice: share of both surfaces that lies within a tolerance of the other.

    Args:
        truth: See `surface_scores`; also for `prediction` and `spacing`.
        prediction: As said.
        spacing: As said.
        tolerance: mm that a surface may be off.

    Returns:
        A float in 0..1; NaN when both masks are empty, 0 when one is.

    Reference: Nikolov et al. 2021, Clinically applicable segmentation of head and neck anatomy for
    radiotherapy, doi:10.2196/26151; here a surface is counted in voxels, not in triangles.
    """
    return surface_scores(truth, prediction, spacing, tolerance=tolerance)[2]


def surface_scores(truth, prediction, spacing, definition="pooled", tolerance=None):
    """HD95, ASSD and NSD at once (one pair of distance maps).

    Args:
        truth: Mask, `(x, y)` or `(x, y, z)`; an axis of one voxel is left out, so that a one-slice
            volume is measured in its plane.
        prediction: Mask of the same shape.
        spacing: mm per voxel of each axis.
        definition: Of HD95; one of `HD95`.
        tolerance: mm of NSD; None leaves it out.

    Returns:
        `(hd95, assd)`, with a tolerance `(hd95, assd, nsd)`: all NaN when both masks are empty;
        when one is, distances are the diagonal of the array, which no distance inside it can
        exceed, and NSD is 0.
    """
    if definition not in HD95:
        raise ValueError(f"Expected definition to be one of {HD95}, got {definition!r}.")
    if tolerance is not None and not tolerance >= 0:
        raise ValueError(f"Expected tolerance of 0 or more, got {tolerance}.")
    truth, prediction = masks_of(truth, prediction)
    found = _empty_scores(truth, prediction, spacing)
    if found is None:
        forward, backward = directed_distances(truth, prediction, spacing)
        pooled = np.concatenate([forward, backward])
        parts = (pooled,) if definition == "pooled" else (forward, backward)
        high = max(float(np.percentile(part, 95)) for part in parts)
        near = 0.0 if tolerance is None else float(np.mean(pooled <= _reach(tolerance)))
        found = high, float(np.mean(pooled)), near
    return found if tolerance is not None else found[:2]


def _reach(tolerance):
    """The tolerance and what spacings of single precision add to a distance that equals it."""
    return tolerance * (1 + 1e-6)


def _empty_scores(truth, prediction, spacing):
    """Scores where a mask is empty; None where neither is."""
    _check_spacing(truth, spacing)
    some = truth.any(), prediction.any()
    if all(some):
        return None
    if not any(some):
        return (float("nan"),) * 3
    return (*(diagonal(truth.shape, spacing),) * 2, 0.0)


def diagonal(shape, spacing):
    """Diagonal of an array in mm, without the axes of one voxel (of one voxel alone: 0)."""
    sides = [n * s for n, s in zip(shape, spacing, strict=True) if n > 1]
    return float(np.linalg.norm(sides))


def directed_distances(truth, prediction, spacing):
    """Distances of each surface voxel to the nearest one of the other surface, in mm.

    Args:
        truth: Mask that is not empty; see `surface_scores`.
        prediction: The same.
        spacing: mm per voxel of each axis.

    Returns:
        Two flat arrays: of the truth's surface to the prediction's, and back.
    """
    truth, prediction = masks_of(truth, prediction)
    _check_spacing(truth, spacing)
    if not truth.any() or not prediction.any():
        raise ValueError("Expected two masks that are not empty.")
    thick = [axis for axis, size in enumerate(truth.shape) if size > 1]
    if not thick:
        return np.zeros(1), np.zeros(1)
    shape = tuple(truth.shape[axis] for axis in thick)
    spacing = [float(spacing[axis]) for axis in thick]
    truth, prediction = truth.reshape(shape), prediction.reshape(shape)
    # Outside the box around both masks there is no surface, so the distance maps stop there.
    box = ndimage.find_objects((truth | prediction).view(np.uint8))[0]
    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in (truth[box], prediction[box])]
    forward, backward = (
        ndimage.distance_transform_edt(~to, sampling=spacing)[of]
        for of, to in (surfaces, surfaces[::-1])
    )
    return forward, backward


def _check_spacing(mask, spacing):
    if len(spacing) != mask.ndim:
        raise ValueError(f"Expected {mask.ndim} values in spacing, got {tuple(spacing)}.")
