"""Measured facts of a study, and the plan made of them: pure functions of numbers (methods.md §7).

`measure` looks at one case, `merge` adds two sets of facts up exactly (the order makes no
difference), `fingerprint` closes them, `make_plan` decides. Each decision comes with its reason.
"""

import collections
import dataclasses
import math
from fractions import Fraction

import numpy as np

from keras_unigan.config import (
    IGNORE,
    Configuration,
    Fingerprint,
    ModalityFingerprint,
    Normalization,
    Plan,
)
from keras_unigan.data import preprocessing
from keras_unigan.errors import CodedError

CT_NAMES = ("ct", "cta", "ldct", "ncct", "cect")
"""Modalities in Hounsfield units; all others have arbitrary units ("mr")."""

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


@dataclasses.dataclass(frozen=True)
class Facts:
    """Facts of some cases of one modality, exact under `merge` in any order.

    Attributes:
        count: Foreground voxels.
        total: Sum of their intensities.
        squares: Sum of their squares.
        histogram: Intensity, rounded to 12 significant bits -> number of foreground voxels. Whole
            numbers up to 4096, so Hounsfield units too, are exact; others within 0.025 %.
        cases: Case id -> its shape, spacing, scaled percentiles and voxels per scored name.
    """

    count: int = 0
    total: Fraction = Fraction(0)
    squares: Fraction = Fraction(0)
    histogram: dict[float, int] = dataclasses.field(default_factory=dict)
    cases: dict[str, tuple] = dataclasses.field(default_factory=dict)


def _rounded(values):
    """float32 values with 12 significant bits."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + np.uint32(1 << 11)) & np.uint32(0xFFFFF000)).view(np.float32)


def measure(volume, label, labels, where):
    """Facts of one case.

    Foreground is what is labelled; where nothing is, what is not background.

    Args:
        volume: `nifti.Volume` of the image.
        label: `nifti.Volume` of the label map, or None.
        labels: `config.Labels`.
        where: Case id.

    Returns:
        `Facts`.

    Raises:
        CodedError: As `preprocessing.align` does.
    """
    ras, index_map = preprocessing.align(volume, label, labels, where)
    mean, sd, low, high = (float(v) for v in preprocessing.statistics(ras.array))
    box = preprocessing.crop_box(ras.array)
    counts = np.zeros(IGNORE + 1, np.int64)
    foreground = None
    if index_map is not None:
        counts = np.bincount(index_map.ravel(), minlength=IGNORE + 1)
        foreground = (index_map > 0) & (index_map < IGNORE)
    if foreground is None or not foreground.any():
        foreground = preprocessing.nonbackground(ras.array)
    values = ras.array[foreground].astype(np.float64)
    keys, numbers = np.unique(_rounded(values), return_counts=True)
    members = np.array(labels.membership).T @ counts[: len(labels.values)]
    voxels = dict(zip(labels.names, (int(n) for n in members), strict=True))
    case = (
        tuple(s.stop - s.start for s in box),
        ras.spacing,
        ((low - mean) / sd, (high - mean) / sd),
        tuple(voxels[name] for name in labels.foreground),
    )
    return Facts(
        count=int(values.size),
        total=Fraction(float(values.sum())),
        squares=Fraction(float(np.square(values).sum())),
        histogram=dict(zip(keys.tolist(), numbers.tolist(), strict=True)),
        cases={where: case},
    )


def merge(first, second):
    """Facts of the cases of both; exact, so that order and grouping make no difference."""
    histogram = collections.Counter(first.histogram)
    histogram.update(second.histogram)
    return Facts(
        count=first.count + second.count,
        total=first.total + second.total,
        squares=first.squares + second.squares,
        histogram=dict(histogram),
        cases={**first.cases, **second.cases},
    )


def percentile(histogram, share):
    """Percentile of counted values, interpolated linearly as `numpy.percentile` does.

    Args:
        histogram: Value -> count.
        share: 0 to 100.
    """
    values = sorted(histogram)
    ends = np.cumsum([histogram[v] for v in values])
    position = (int(ends[-1]) - 1) * share / 100
    below, above = math.floor(position), math.ceil(position)
    low, high = (values[int(np.searchsorted(ends, i, side="right"))] for i in (below, above))
    return low + (high - low) * (position - below)


def fingerprint(study, facts):
    """Closes measured facts.

    Args:
        study: `config.Study`.
        facts: Modality -> `Facts` of its training cases.

    Returns:
        `config.Fingerprint`, modalities in the study's order, cases in that of their ids.

    Raises:
        CodedError: KUG-D14 naming the modalities without a usable training case.
    """
    bare = [m for m in study.modalities if m not in facts]
    if bare:
        raise CodedError(
            "KUG-D14",
            study.name,
            f"no usable training case of {', '.join(bare)}",
            "at least one of each modality",
            "What was never seen cannot be planned for.",
            "see the dead letters, or change the splits or the modalities of the study",
        )
    return Fingerprint({m: _close(facts[m], study.labels) for m in study.modalities})


def _close(facts, labels):
    mean = facts.total / facts.count
    variance = max(facts.squares / facts.count - mean**2, Fraction(0))
    cases = [facts.cases[k] for k in sorted(facts.cases)]
    scaled = np.median([c[2] for c in cases], axis=0)
    voxels = np.sum([c[3] for c in cases], axis=0)
    return ModalityFingerprint(
        cases=len(cases),
        shapes=tuple(c[0] for c in cases),
        spacings=tuple(c[1] for c in cases),
        mean=float(mean),
        sd=math.sqrt(variance),
        low=percentile(facts.histogram, 0.5),
        high=percentile(facts.histogram, 99.5),
        scaled_low=float(scaled[0]),
        scaled_high=float(scaled[1]),
        voxels={n: int(v) for n, v in zip(labels.foreground, voxels, strict=True)},
    )


def make_plan(study, fingerprint, memory_gib=MEMORY_GIB):
    """Decides spacing, normalisation, patch, depth and batch for all modalities together.

    Args:
        study: `config.Study`.
        fingerprint: `config.Fingerprint` of its training cases.
        memory_gib: Memory for the activations of one step; see `MEMORY_GIB`.

    Returns:
        `config.Plan` with a 2-D configuration and, where volumes have depth, a 3-D one.

    Raises:
        CodedError: KUG-D12 when a modality's foreground is constant, KUG-T02 for memory that is
            not positive.
    """
    if not memory_gib > 0:
        raise CodedError("KUG-T02", "memory", f"{memory_gib}", "more than 0 GiB")
    facts = [fingerprint.modalities[m] for m in study.modalities]
    shapes = np.array([s for f in facts for s in f.shapes])
    spacings = np.array([s for f in facts for s in f.spacings])
    reasons = {}
    spacing, nearest_axis = _spacing(shapes, spacings, reasons)
    sizes = np.array(
        [
            preprocessing.target_shape(n, s, spacing)
            for n, s in zip(shapes.tolist(), spacings.tolist(), strict=True)
        ]
    )
    normalization = {
        m: _normalization(m, f, reasons) for m, f in zip(study.modalities, facts, strict=True)
    }
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
    return Plan(
        study=study.name,
        modalities=study.modalities,
        labels=study.labels,
        spacing=spacing,
        nearest_axis=nearest_axis,
        normalization=normalization,
        configurations=configurations,
        reasons=reasons,
    )


def _spacing(shapes, spacings, reasons):
    """Target spacing in mm and the axis, if any, that is resampled by nearest neighbour."""
    target, size = np.median(spacings, axis=0), np.median(shapes, axis=0)
    reasons["spacing"] = f"median of {len(spacings)} training cases"
    real = [axis for axis in range(3) if size[axis] > 1]
    worst = max(real, key=lambda axis: target[axis]) if len(real) > 1 else None
    nearest_axis = None
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


def _normalization(modality, facts, reasons):
    """Scheme and range of a modality that become -1 to 1."""
    scheme = "ct" if modality in CT_NAMES else "mr"
    sd = facts.sd
    if scheme == "ct":
        low, high = ((v - facts.mean) / (sd or 1.0) for v in (facts.low, facts.high))
        why = "Hounsfield units: the data set's own mean, deviation and percentiles"
    else:
        low, high = facts.scaled_low, facts.scaled_high
        why = "arbitrary units: each volume's own mean and deviation, then the median percentiles"
    if not high > low or not sd > 0:
        raise CodedError(
            "KUG-D12",
            modality,
            f"foreground intensities from {facts.low:g} to {facts.high:g}, deviation {sd:g}",
            "foreground that varies",
            "Constant intensities cannot be normalised.",
            f"look at the {modality} images and their label maps",
        )
    reasons[f"normalization.{modality}"] = why
    return Normalization(scheme=scheme, mean=facts.mean, sd=sd, low=float(low), high=float(high))


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
    size, step = list(patch), list(spacing)
    levels = []
    while len(levels) < MAX_LEVELS:
        axes = range(len(size))
        able = [a for a in axes if size[a] >= 8 and size[a] % 2 == 0]
        if not able:
            break
        finest = min(step[a] for a in able)
        level = tuple(2 if a in able and step[a] <= 2 * finest else 1 for a in axes)
        levels.append(level)
        size = [n // s for n, s in zip(size, level, strict=True)]
        step = [n * s for n, s in zip(step, level, strict=True)]
    return tuple(levels)


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
    key, shrunk = f"{dims}d", False
    while True:
        strides = strides_of(patch, spacing)
        used = activation_bytes(patch, strides)
        if 2 * used <= budget and math.prod(patch) <= _VOXEL_LIMIT[dims]:
            break
        able = [a for a in range(dims) if patch[a] > _MULTIPLE]
        if not able:
            break
        axis = max(able, key=lambda a: (patch[a] / median[a], patch[a]))
        patch[axis] -= _MULTIPLE
        shrunk = True
    wanted = int(min(budget // used, 0.05 * voxels // math.prod(patch)))
    batch = max(2, wanted)
    shape = " x ".join(f"{n:g}" for n in median)
    reasons[f"{key}.patch_size"] = (
        f"median volume {shape} voxels, up to a multiple of {_MULTIPLE}"
        + (f", then shrunk until two samples fit into {memory_gib:g} GiB" if shrunk else "")
    )
    reasons[f"{key}.batch_size"] = (
        f"what {memory_gib:g} GiB hold at {used / 2**20:.0f} MiB a sample, "
        "at least 2 and at most 5 % of the training voxels"
    )
    reasons[f"{key}.strides"] = (
        "axes are halved while they have 8 voxels and are within twice the finest spacing, "
        f"at most {MAX_LEVELS} times"
    )
    return Configuration(
        patch_size=tuple(patch), batch_size=batch, strides=strides, filters=FILTERS
    )
