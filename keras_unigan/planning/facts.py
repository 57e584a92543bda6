"""Measured facts of cases, and the fingerprint of a study that they add up to.

`measure` looks at one case, `merge` adds two sets of facts up exactly (order and grouping make no
difference), `fingerprint` closes them.
"""

import dataclasses
import math
from fractions import Fraction

import numpy as np
from scipy import ndimage

from keras_unigan.config import IGNORE, Fingerprint, ModalityFingerprint
from keras_unigan.data import preprocessing
from keras_unigan.errors import CodedError
from keras_unigan.planning.histogram import Histogram

CORE_DEPTH = 2
"""Outermost layers of labelled voxels that the core of the foreground does without."""


@dataclasses.dataclass(frozen=True)
class Facts:
    """Facts of some cases of one modality, exact under `merge` in any order.

    Of images of several channels they are of the first one, with those of the others inside.

    Attributes:
        count: Foreground voxels.
        total: Sum of their intensities.
        squares: Sum of their squares.
        histogram: Their intensities.
        core: Intensities of those that lie deeper than `CORE_DEPTH` voxels.
        schemes: Scheme that files' own tags ask for -> number of cases.
        cases: Case id -> its shape, spacing, scaled percentiles and voxels per scored name.
        others: Facts of each further channel.
    """

    count: int = 0
    total: Fraction = Fraction(0)
    squares: Fraction = Fraction(0)
    histogram: Histogram = dataclasses.field(default_factory=Histogram)
    core: Histogram = dataclasses.field(default_factory=Histogram)
    schemes: dict[str, int] = dataclasses.field(default_factory=dict)
    cases: dict[str, tuple] = dataclasses.field(default_factory=dict)
    others: tuple["Facts", ...] = ()


def core_of(mask):
    """Voxels of a mask that lie deeper than `CORE_DEPTH` voxels; the end of the image is no border.

    Args:
        mask: bool (x, y, z). An axis of one voxel has no depth.
    """
    cross = ndimage.generate_binary_structure(mask.ndim, 1)
    return ndimage.binary_erosion(mask, cross, iterations=CORE_DEPTH, border_value=1)


def measure(volume, label, labels, where, annotated=None):
    """Facts of one case.

    Foreground is what is labelled; where nothing is, what is not background.

    Args:
        volume: `nifti.Volume` of the image.
        label: `nifti.Volume` of the label map, or None.
        labels: `config.Labels`.
        where: Case id.
        annotated: Names as of `config.Case.annotated`.

    Returns:
        `Facts`.

    Raises:
        CodedError: As `preprocessing.align` does.
    """
    ras, index_map = preprocessing.align(volume, label, labels, where, annotated)
    box = preprocessing.crop_box(ras.array)
    counts = np.zeros(IGNORE + 1, np.int64)
    foreground = None
    if index_map is not None:
        counts = np.bincount(index_map.ravel(), minlength=IGNORE + 1)
        foreground = (index_map > 0) & (index_map < IGNORE)
    if foreground is None or not foreground.any():
        foreground = preprocessing.nonbackground(ras.array)
    members = np.array(labels.membership).T @ counts[: len(labels.values)]
    voxels = dict(zip(labels.names, (int(n) for n in members), strict=True))
    shape = tuple(s.stop - s.start for s in box)
    sizes = tuple(voxels[name] for name in labels.foreground)
    core = core_of(foreground)
    several = np.moveaxis(ras.array, -1, 0) if ras.array.ndim > 3 else [ras.array]
    found = []
    for array in several:
        mean, sd, low, high = (float(v) for v in preprocessing.statistics(array))
        # A channel in which nothing is stained is the same everywhere.
        scaled = (low - mean) / (sd or 1.0), (high - mean) / (sd or 1.0)
        values = array[foreground].astype(np.float64)
        facts = Facts(
            count=int(values.size),
            total=Fraction(float(values.sum())),
            squares=Fraction(float(np.square(values).sum())),
            histogram=Histogram.of(values),
            core=Histogram.of(array[core]),
            schemes={volume.scheme: 1} if volume.scheme else {},
            cases={where: (shape, ras.spacing, scaled, sizes)},
        )
        found.append(facts)
    return dataclasses.replace(found[0], others=tuple(found[1:]))


def merge(first, second):
    """Facts of the cases of both; exact, so that order and grouping make no difference."""
    schemes = sorted({*first.schemes, *second.schemes})
    return Facts(
        count=first.count + second.count,
        total=first.total + second.total,
        squares=first.squares + second.squares,
        histogram=first.histogram.merge(second.histogram),
        core=first.core.merge(second.core),
        schemes={s: first.schemes.get(s, 0) + second.schemes.get(s, 0) for s in schemes},
        cases={**first.cases, **second.cases},
        others=tuple(map(merge, first.others, second.others)),
    )


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
    return Fingerprint({m: _close_all(facts[m], study.labels) for m in study.modalities})


OF_CHANNELS = ("mean", "sd", "low", "high", "scaled_low", "scaled_high", "core_low", "core_high")
"""Fields of `config.ModalityFingerprint` that each channel has of its own."""


def _close_all(facts, labels):
    closed = [_close(channel, labels) for channel in (facts, *facts.others)]
    if len(closed) == 1:
        return closed[0]
    each = {name: tuple(getattr(c, name) for c in closed) for name in OF_CHANNELS}
    each = {name: None if None in values else values for name, values in each.items()}
    return dataclasses.replace(closed[0], **each)


def _close(facts, labels):
    mean = facts.total / facts.count
    variance = max(facts.squares / facts.count - mean**2, Fraction(0))
    cases = [facts.cases[k] for k in sorted(facts.cases)]
    scaled = np.median([c[2] for c in cases], axis=0)
    voxels = np.sum([c[3] for c in cases], axis=0)
    inside = facts.core.total
    return ModalityFingerprint(
        cases=len(cases),
        shapes=tuple(c[0] for c in cases),
        spacings=tuple(c[1] for c in cases),
        mean=float(mean),
        sd=math.sqrt(variance),
        low=facts.histogram.percentile(0.5),
        high=facts.histogram.percentile(99.5),
        scaled_low=float(scaled[0]),
        scaled_high=float(scaled[1]),
        voxels={n: int(v) for n, v in zip(labels.foreground, voxels, strict=True)},
        core_share=inside / facts.count,
        core_low=facts.core.percentile(0.5) if inside else None,
        core_high=facts.core.percentile(99.5) if inside else None,
        schemes=facts.schemes,
    )
