"""From a fingerprint to a plan: spacing, patch, depth, batch and normalisation, with reasons."""

import math

import numpy as np

from keras_unigan.config import Configuration, Plan, halvings
from keras_unigan.data import preprocessing
from keras_unigan.errors import CodedError, did_you_mean
from keras_unigan.planning import schemes

MEMORY_GIB = 1.0
"""Memory that activations of one training step may take: what a laptop's two cores get through in
about a second. `unigan plan --memory` raises it for a GPU."""

FILTERS = 32
MAX_LEVELS = 4
# Each convolution output is held as output, normalised and activated, with gradients and workspace.
_BYTES_PER_OUTPUT = 4 * 8
_MULTIPLE = 16
_VOXEL_LIMIT = {2: 2048**2, 3: 256**3}
_MIN_DEPTH = 4


def make_plan(study, fingerprint, memory_gib=MEMORY_GIB, window="foreground"):
    """Decides spacing, normalisation, patch, depth and batch for all modalities together.

    Args:
        study: `config.Study`.
        fingerprint: `config.Fingerprint` of its training cases.
        memory_gib: Memory for the activations of one step; see `MEMORY_GIB`.
        window: Voxels that a CT window is measured on: "foreground", or "core" for those that lie
            deeper than `CORE_DEPTH` voxels in it.

    Returns:
        `config.Plan` with a 2-D configuration and, where volumes have depth, a 3-D one.

    Raises:
        CodedError: KUG-D12 when a modality's foreground is constant, KUG-D14 for a modality that
            was not measured, KUG-D36 for measures of other channels, KUG-T06 for memory that does
            not hold two of the least patches, KUG-T02 for memory that is not positive or an unknown
            window.
    """
    if not memory_gib > 0:
        raise CodedError("KUG-T02", "memory", f"{memory_gib}", "more than 0 GiB")
    if window not in schemes.WINDOWS:
        hint = did_you_mean(window, schemes.WINDOWS)
        raise CodedError("KUG-T02", "window", f"{window!r}{hint}", f"one of {schemes.WINDOWS}")
    bare = [m for m in study.modalities if m not in fingerprint.modalities]
    if bare:
        raise CodedError(
            "KUG-D14",
            study.name,
            f"a fingerprint without {', '.join(bare)}",
            "one of each modality",
            fix="unigan plan study.json",
        )
    facts = [fingerprint.modalities[m] for m in study.modalities]
    shapes = np.array([s for f in facts for s in f.shapes])
    spacings = np.array([s for f in facts for s in f.spacings])
    reasons = {}
    spacing, nearest_axis = _spacing(shapes, spacings, reasons)
    alone = {m: _median_grid(f) for m, f in zip(study.modalities, facts, strict=True)}
    if len(alone) > 1:
        each = (f"{m} {_times(grid[0])} mm" for m, grid in alone.items())
        reasons["spacing"] += f", one grid for all modalities (medians: {', '.join(each)})"
    sizes = np.array(
        [
            preprocessing.target_shape(n, s, spacing)
            for n, s in zip(shapes.tolist(), spacings.tolist(), strict=True)
        ]
    )
    normalization = {
        m: schemes.normalization(m, study.normalization.get(m), f, window, reasons)
        for m, f in zip(study.modalities, facts, strict=True)
    }
    counts = {n.channels for n in normalization.values()}
    if counts != {study.channels}:
        raise CodedError(
            "KUG-D36",
            study.name,
            f"a fingerprint of {' and '.join(map(str, sorted(counts)))} channels",
            f"{study.channels}, as the study says",
            "All images of a study have as many.",
            "unigan plan study.json",
        )
    if study.channels > 1:
        reasons["channels"] = "as the study says: a network has one input for all modalities"
    reasons["unknown"] = (
        "ranks of intensities are the same in whatever window, gain or gamma an image comes"
    )
    reasons["overlap"] = "half a patch: windows are blended, and a voxel near one's edge is in more"
    median = np.median(sizes, axis=0)
    voxels = int(sizes.prod(axis=1).sum())
    configurations = {}
    for dims in (2, 3):
        if dims == 3 and median[2] < _MIN_DEPTH:
            reasons["2d.patch_size"] += f"; no 3d: the median volume has {median[2]:g} slices"
            continue
        configurations[f"{dims}d"] = _configuration(
            median[:dims], spacing[:dims], voxels, memory_gib, reasons
        )
        if len(alone) > 1:
            each = (f"{m} {_times(grid[1][:dims])}" for m, grid in alone.items())
            reasons[f"{dims}d.patch_size"] += f" (medians as scanned: {', '.join(each)})"
    return Plan(
        study=study.name,
        modalities=study.modalities,
        labels=study.labels,
        spacing=spacing,
        nearest_axis=nearest_axis,
        normalization=normalization,
        configurations=configurations,
        unknown="equalized",
        reasons=reasons,
        channels=study.channels,
    )


def _median_grid(facts):
    """Median spacing and shape of one modality."""
    return np.median(facts.spacings, axis=0), np.median(facts.shapes, axis=0)


def _times(numbers):
    """Text of sizes, e.g. "1 x 1 x 2.5"."""
    return " x ".join(f"{round(float(n), 2):g}" for n in numbers)


def _spacing(shapes, spacings, reasons):
    """Target spacing in mm and the axis, if any, that is resampled by nearest neighbour."""
    target, size = np.median(spacings, axis=0), np.median(shapes, axis=0)
    reasons["spacing"] = f"median of {len(spacings)} training cases"
    real = [axis for axis in range(3) if size[axis] > 1]
    worst = max(real, key=lambda axis: target[axis]) if len(real) > 1 else None
    nearest_axis = None
    reasons["nearest_axis"] = "no axis is more than 3 times as coarse as the others"
    if worst is not None:
        others = [axis for axis in real if axis != worst]
        finest, fewest = max(target[others]), min(size[others])
        if target[worst] > 3 * finest:
            nearest_axis = worst
            reasons["nearest_axis"] = (
                f"axis {worst} is coarser than the others by {target[worst] / finest:.1f} (> 3)"
            )
        if target[worst] > 3 * finest and 3 * size[worst] < fewest:
            low = float(np.percentile(spacings[:, worst], 10))
            target[worst] = max(low, finest)
            reasons["spacing"] += f"; along the coarse axis {worst} the 10th percentile"
    return tuple(round(float(t), 4) for t in target), nearest_axis


def strides_of(patch, spacing):
    """Pooling strides per level.

    An axis is halved while it has at least 8 voxels and its spacing is at most twice the finest of
    those that can be halved; at most `MAX_LEVELS` times.

    Args:
        patch: Voxels along each axis.
        spacing: Millimetres along each axis.

    Returns:
        Tuple of levels, each a tuple of 1 or 2 per axis.
    """
    return halvings(patch, spacing, MAX_LEVELS)


def activation_bytes(patch, strides, filters=FILTERS):
    """Estimate of what one training sample holds in a U-Net: its convolution outputs, eightfold.

    Level 0 has 2 convolutions down, and an upsampling and 2 convolutions up, each of `filters`
    channels; every level below has twice the channels on the pooled grid; the centre has 2.
    """
    size, outputs = np.array(patch, np.float64), 0.0
    for level, stride in enumerate(strides):
        outputs += 5 * filters * 2**level * size.prod()
        size = size / np.array(stride)
    outputs += 2 * filters * 2 ** len(strides) * size.prod()
    return outputs * _BYTES_PER_OUTPUT


def _fitting(size):
    """A multiple of 16, which all networks take, or a thin axis as it is, which `UNet` takes."""
    return int(size) if size < 8 else _MULTIPLE * math.ceil(size / _MULTIPLE)


def _configuration(median, spacing, voxels, memory_gib, reasons):
    """Patch, strides and batch of one configuration."""
    dims, budget = len(median), memory_gib * 2**30
    patch = [_fitting(math.ceil(n)) for n in median]
    key, limits = f"{dims}d", {}
    while True:
        strides = strides_of(patch, spacing)
        used = activation_bytes(patch, strides)
        heavy, large = 2 * used > budget, math.prod(patch) > _VOXEL_LIMIT[dims]
        if not heavy and not large:
            break
        able = [a for a in range(dims) if patch[a] > _MULTIPLE]
        if not able:
            break
        axis = max(able, key=lambda a: (patch[a] / median[a], patch[a]))
        patch[axis] -= _MULTIPLE
        limits |= {f"until two samples fit into {memory_gib:g} GiB": None} if heavy else {}
        limits |= {f"to at most {_VOXEL_LIMIT[dims]} voxels": None} if large else {}
    if heavy and dims == 2:
        needed = 2 * used / 2**30
        raise CodedError(
            "KUG-T06",
            "memory",
            f"{needed * 1024:.0f} MiB for two samples of {_times(patch)}, the least patch",
            f"at most {memory_gib * 1024:.0f} MiB",
            "Nothing can be trained in less at the planned width.",
            f"--memory {math.ceil(needed * 100) / 100:g}; training may then take less with "
            "--set network.filters=16, --set network.filters=8 or --accumulate 2",
        )
    wanted = int(min(budget // used, 0.05 * voxels // math.prod(patch)))
    batch = max(2, wanted)
    reasons[f"{key}.patch_size"] = (
        f"median volume {_times(median)} voxels on that grid, up to a multiple of {_MULTIPLE}"
        + (f", then shrunk {' and '.join(limits)}" if limits else "")
        + (f": the least, and yet two need {2 * used / 2**20:.0f} MiB" if heavy else "")
    )
    reasons[f"{key}.batch_size"] = (
        f"what {memory_gib:g} GiB hold at {used / 2**20:.0f} MiB a sample, "
        "at least 2 and at most 5 % of the training voxels"
    )
    reasons[f"{key}.filters"] = "width of the first level; each level below doubles it"
    reasons[f"{key}.strides"] = (
        "axes are halved while they have 8 voxels and are within twice the finest spacing, "
        f"at most {MAX_LEVELS} times"
    )
    return Configuration(
        patch_size=tuple(patch), batch_size=batch, strides=strides, filters=FILTERS
    )
