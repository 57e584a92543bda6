"""Is the anatomy of a translation where that of its source is: edges, which need no reference."""

import math

import numpy as np
from scipy import ndimage

from keras_unigan.metrics.images import nmi

SIGMA = 1.0
"""Voxels over which images are smoothed before their edges are taken."""
LEAST_AXIS = 8
"""An axis of fewer voxels shows no edges of its own, and no shift."""


def edges(image, spacing):
    """Magnitude of the gradient per mm, after a little smoothing.

    Args:
        image: `(x, y)` or `(x, y, z)`.
        spacing: mm per voxel of each axis; axes of fewer than `LEAST_AXIS` voxels are left out.

    Returns:
        float64 of the same shape.

    Raises:
        ValueError: Where no axis is long enough.
    """
    image = np.asarray(image, np.float64)
    squares = np.zeros_like(image)
    for axis in _axes(image.shape):
        smooth = image
        for other in _axes(image.shape):
            smooth = ndimage.gaussian_filter1d(smooth, SIGMA, other, mode="nearest")
        squares += (np.gradient(smooth, axis=axis) / float(spacing[axis])) ** 2
    return np.sqrt(squares)


def _axes(shape):
    found = [axis for axis, size in enumerate(shape) if size >= LEAST_AXIS]
    if not found:
        raise ValueError(f"Expected an axis of at least {LEAST_AXIS} voxels, got shape {shape}.")
    return found


def edge_nmi(source, translation, spacing, mask=None):
    """Normalised mutual information of the edges of an image and of its translation.

    Contrast may change, and turn over; where there is an edge may not.

    Args:
        source: Image, `(x, y)` or `(x, y, z)`.
        translation: Image of the same shape.
        spacing: mm per voxel of each axis.
        mask: Voxels that count, or None for all.

    Returns:
        A float in 1..2, see `nmi`.
    """
    return nmi(edges(source, spacing), edges(translation, spacing), mask, bins=32)


def shift_mm(source, translation, spacing):
    """How far the anatomy of a translation as a whole lies off that of its source, in mm.

    The peak of the phase correlation of both images' edges, which needs no registration and no
    common contrast; refined between voxels by a parabola along each axis.

    Args:
        source: See `edge_nmi`; also for `translation` and `spacing`.
        translation: As said.
        spacing: As said.

    Returns:
        A float of 0 or more; NaN where one of them has no edge.

    Reference: Kuglin and Hines 1975, The phase correlation image alignment method.
    """
    first, second = edges(source, spacing), edges(translation, spacing)
    if not np.ptp(first) or not np.ptp(second):
        return math.nan
    axes, window = _axes(first.shape), np.ones(first.shape)
    for axis in axes:
        # The edges of the array itself do not move.
        taper = np.hanning(first.shape[axis] + 2)[1:-1]
        window = window * np.expand_dims(taper, [a for a in range(first.ndim) if a != axis])
    spectra = [np.fft.fftn((e - e.mean()) * window, axes=axes) for e in (first, second)]
    cross = np.conj(spectra[0]) * spectra[1]
    # Frequencies of no power have no phase; all slices of a flat stack move together.
    cross /= np.maximum(np.abs(cross), 1e-3 * np.abs(cross).max())
    still = tuple(axis for axis in range(first.ndim) if axis not in axes)
    surface = np.fft.ifftn(cross, axes=axes).real.sum(axis=still, keepdims=True)
    peak = np.unravel_index(np.argmax(surface), surface.shape)
    moved = []
    for axis in axes:
        size = surface.shape[axis]
        places = [(peak[axis] + step) % size for step in (-1, 0, 1)]
        before, here, after = (surface[(*peak[:axis], n, *peak[axis + 1 :])] for n in places)
        bend = before - 2 * here + after
        refined = peak[axis] + (0.5 * (before - after) / bend if bend < 0 else 0.0)
        refined = (refined + size / 2) % size - size / 2
        moved.append(refined * float(spacing[axis]))
    return float(np.linalg.norm(moved))
