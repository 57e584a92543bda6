"""Fingerprint and Plan: what was measured, and what was decided from it."""

import dataclasses
import hashlib
import json
import math

from keras_unigan.config.files import (
    UNKNOWN,
    check_scheme,
    from_dict,
    plain,
    rare,
    read_json,
    write_json,
)
from keras_unigan.config.studies import Labels, Values
from keras_unigan.errors import CodedError, did_you_mean


@dataclasses.dataclass(frozen=True)
class ModalityFingerprint:
    """Measured facts of the training cases of one modality.

    Of images of several channels, what concerns intensities has one number for each.

    Attributes:
        cases: Number of readable training cases.
        shapes: Shape of each case after the crop to what is not background, in voxels, RAS+.
        spacings: Spacing of each case in mm, RAS+.
        mean: Mean intensity of the foreground voxels.
        sd: Their standard deviation.
        low: Their 0.5 percentile.
        high: Their 99.5 percentile.
        scaled_low: Median over cases of (0.5 percentile - mean) / sd of the volume's own
            non-background voxels.
        scaled_high: The same of the 99.5 percentile.
        voxels: Label-map voxels per scored name.
        core_share: Share of the foreground voxels that are not near its border
            (`planning.CORE_DEPTH`).
        core_low: 0.5 percentile of those alone; None where there are none.
        core_high: Their 99.5 percentile.
        schemes: Name in `SCHEMES` that the files' own tags ask for -> number of cases.
    """

    cases: int
    shapes: tuple[tuple[int, int, int], ...]
    spacings: tuple[tuple[float, float, float], ...]
    mean: Values
    sd: Values
    low: Values
    high: Values
    scaled_low: Values
    scaled_high: Values
    voxels: dict[str, int]
    core_share: float = 0.0
    core_low: Values | None = None
    core_high: Values | None = None
    schemes: dict[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """Measured facts of a study's training cases, one entry per modality."""

    modalities: dict[str, ModalityFingerprint]

    @classmethod
    def load(cls, path):
        """Reads `fingerprint.json`."""
        return from_dict(cls, read_json(path), str(path))

    def save(self, path):
        """Writes `fingerprint.json` atomically."""
        write_json(path, self)


@dataclasses.dataclass(frozen=True)
class Normalization:
    """Intensity normalisation of one modality (`layers.IntensityNormalization`).

    "ct" and "pet_suv" are windows of the data set: `mean + sd * low` becomes -1 and
    `mean + sd * high` 1, so that a window can also be written as it is, with mean 0 and sd 1. "mr",
    "xray" and "ultrasound" use the same limits with each volume's own mean and deviation,
    "spect_counts" the upper one, from 0. "microscopy" uses each volume's own 0.5 and 99.5
    percentile; its numbers here only say what is usual, for images that are made.

    Images of several channels have one number a channel in each place.

    Attributes:
        scheme: Name in `SCHEMES`.
        mean: Data-set mean.
        sd: Data-set standard deviation.
        low: Value after the z-score that becomes -1.
        high: Value after the z-score that becomes 1.
    """

    scheme: str
    mean: Values
    sd: Values
    low: Values
    high: Values

    @property
    def channels(self):
        """Number of channels that the numbers are for; 0 where they differ in it."""
        counts = {len(v) if isinstance(v, tuple) else 1 for v in self._numbers}
        return counts.pop() if len(counts) == 1 else 0

    @property
    def _numbers(self):
        return self.mean, self.sd, self.low, self.high

    def __post_init__(self):
        check_scheme(self.scheme, "plan.normalization.scheme")
        columns = [v if isinstance(v, tuple) else (v,) for v in self._numbers]
        rows = list(zip(*columns, strict=False)) if self.channels else [()]
        good = [len(r) == 4 and all(map(math.isfinite, r)) and r[1] > 0 and r[3] > r[2]
                for r in rows]  # fmt: skip
        if not all(good):
            raise CodedError(
                "KUG-D08",
                "plan.normalization",
                f"mean {self.mean}, sd {self.sd}, low {self.low}, high {self.high}",
                "finite numbers, as many of each, sd > 0 and high > low",
            )


@dataclasses.dataclass(frozen=True)
class Configuration:
    """Sizes of one network configuration (2-D or 3-D).

    Attributes:
        patch_size: Patch in voxels, one entry per spatial axis (x, y[, z]).
        batch_size: Patches per step.
        strides: Pooling stride per level and axis; the patch is divisible by their product.
        filters: Base width.
        slices: Neighbouring slices that a 2-D network sees as channels, odd; the middle one is what
            it segments (2.5-D).
    """

    patch_size: tuple[int, ...]
    batch_size: int
    strides: tuple[tuple[int, ...], ...]
    filters: int
    slices: int = rare(1)

    def __post_init__(self):
        dims = len(self.patch_size)
        if self.slices < 1 or self.slices % 2 == 0 or (self.slices > 1 and dims != 2):
            raise CodedError(
                "KUG-T02",
                "slices",
                f"{self.slices} in {dims}-D",
                "an odd number, in 3-D 1",
                "The middle slice is the one that is segmented.",
                "--set train.slices=3",
            )
        wrong = [s for s in self.strides if len(s) != dims or min(s) < 1]
        if dims not in (2, 3) or wrong or min(self.filters, *self.patch_size) < 1:
            raise CodedError(
                "KUG-D08",
                "plan.configurations",
                f"patch_size {self.patch_size}, strides {self.strides}, filters {self.filters}",
                "2 or 3 sides, as many strides a level, all of them and filters 1 or more",
            )
        for axis, size in enumerate(self.patch_size):
            if size % self.divisor[axis]:
                raise CodedError(
                    "KUG-T02",
                    "patch_size",
                    f"{self.patch_size}",
                    f"sizes divisible by {self.divisor}",
                    fix="choose a multiple, or fewer levels",
                )
        if self.batch_size < 1:
            raise CodedError("KUG-T02", "batch_size", f"{self.batch_size}", "at least 1")

    @property
    def spatial_dims(self):
        """2 or 3."""
        return len(self.patch_size)

    @property
    def levels(self):
        """Number of poolings."""
        return len(self.strides)

    @property
    def divisor(self):
        """Product of the strides along each axis."""
        result = [1] * len(self.patch_size)
        for stride in self.strides:
            result = [r * s for r, s in zip(result, stride, strict=True)]
        return tuple(result)


def halvings(patch, spacing, most=None):
    """Strides per level of a network that halves a patch.

    An axis is halved while it has at least 8 voxels and its spacing is at most twice the finest of
    those that can be halved.

    Args:
        patch: Voxels along each axis.
        spacing: Millimetres along each axis.
        most: Most levels, or None.

    Returns:
        Tuple of levels, each a tuple of 1 or 2 per axis.
    """
    size, step = list(patch), list(spacing)
    levels: list[tuple[int, ...]] = []
    while most is None or len(levels) < most:
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


PLAN_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Plan:
    """Decided settings, shared by preparation, training, inference and export: `plan.json`.

    Attributes:
        study: Name of the study.
        modalities: Modalities in the order of their domain index.
        labels: Classes or regions.
        spacing: Voxel spacing after resampling in mm, (x, y, z).
        nearest_axis: Axis (0, 1, 2) resampled by nearest neighbour because it is much coarser than
            the others, or None.
        normalization: Modality -> normalisation.
        configurations: "2d" and, where volumes have depth, "3d".
        overlap: Share of the patch by which sliding windows advance less than a full patch.
        unknown: How an image of unknown modality is normalised: "percentiles" (its volume's 0.5 and
            99.5 percentile become -1 and 1) or "equalized" (that, then `layers.equalize`).
        reasons: Setting -> one sentence saying why it has its value.
        version: Version of this schema.
        channels: Numbers a voxel of every image; see `Study`.
    """

    study: str
    modalities: tuple[str, ...]
    labels: Labels
    spacing: tuple[float, float, float]
    nearest_axis: int | None
    normalization: dict[str, Normalization]
    configurations: dict[str, Configuration]
    overlap: float = 0.5
    # What files that do not say it were made for; the planner writes "equalized".
    unknown: str = "percentiles"
    reasons: dict[str, str] = dataclasses.field(default_factory=dict)
    version: int = PLAN_VERSION
    channels: int = rare(1)

    def __post_init__(self):
        if self.version != PLAN_VERSION:
            raise CodedError(
                "KUG-D09",
                "plan.version",
                f"{self.version}",
                f"{PLAN_VERSION}",
                fix="unigan plan study.json -o plan.json",
            )
        if not all(math.isfinite(s) and s > 0 for s in self.spacing):
            raise CodedError("KUG-D08", "plan.spacing", f"{self.spacing}", "positive values in mm")
        if self.nearest_axis not in (None, 0, 1, 2):
            raise CodedError(
                "KUG-D08", "plan.nearest_axis", f"{self.nearest_axis}", "0, 1, 2 or null"
            )
        if not self.configurations:
            raise CodedError("KUG-D08", "plan.configurations", "none", '"2d", "3d" or both')
        if set(self.normalization) != set(self.modalities):
            raise CodedError(
                "KUG-D08",
                "plan.normalization",
                f"{sorted(self.normalization)}",
                f"one entry for each of {list(self.modalities)}",
            )
        for modality, normalization in self.normalization.items():
            if normalization.channels != self.channels:
                raise CodedError(
                    "KUG-D08",
                    f"plan.normalization.{modality}",
                    f"numbers for {normalization.channels} channels",
                    f"{self.channels}: one for each channel",
                )
        if self.unknown not in UNKNOWN:
            hint = did_you_mean(self.unknown, UNKNOWN)
            raise CodedError("KUG-D08", "plan.unknown", f"{self.unknown!r}{hint}", f"{UNKNOWN}")
        if not 0 <= self.overlap < 1:
            raise CodedError("KUG-D08", "plan.overlap", f"{self.overlap}", "0 <= overlap < 1")
        for name, configuration in self.configurations.items():
            if name != f"{configuration.spatial_dims}d":
                raise CodedError(
                    "KUG-D08",
                    f"plan.configurations.{name}",
                    f"a patch of {configuration.spatial_dims} axes",
                    'names "2d" and "3d" that fit',
                )
            if self.channels > 1 and configuration.slices > 1:
                raise CodedError(
                    "KUG-T02",
                    "slices",
                    f"{configuration.slices} of images of {self.channels} channels",
                    "1",
                    "Either colours or neighbouring slices are the channels of a network.",
                    "--set train.slices=1, or a 3-D network: --set spatial_dims=3",
                )

    def configuration(self, spatial_dims):
        """Configuration for 2 or 3 spatial axes.

        Raises:
            CodedError: KUG-T02 when the plan has none.
        """
        name = f"{spatial_dims}d"
        if name not in self.configurations:
            raise CodedError(
                "KUG-T02",
                "spatial_dims",
                f"{spatial_dims}",
                f"a configuration of the plan: {sorted(self.configurations)}",
            )
        return self.configurations[name]

    def inputs(self, spatial_dims):
        """Channels of a network's input: those of the images, or the slices of a 2.5-D stack."""
        return self.channels * self.configuration(spatial_dims).slices

    @property
    def statistics_shape(self):
        """Shape of an image's statistics: four numbers, of several channels a row for each."""
        return (4,) if self.channels == 1 else (self.channels, 4)

    @property
    def recipe(self):
        """sha256 over all that decides the bytes of a record: labels, modalities and geometry."""
        keys = ("modalities", "labels", "spacing", "nearest_axis", "version")
        # One channel is what all records had before there were more.
        keys += ("channels",) * (self.channels > 1)
        data = {k: plain(getattr(self, k)) for k in keys}
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()

    def to_dict(self):
        """The JSON object."""
        return plain(self)

    @classmethod
    def from_dict(cls, data, where="plan"):
        """Reads the JSON object strictly; see `from_dict`."""
        return from_dict(cls, data, where)

    @classmethod
    def load(cls, path):
        """Reads `plan.json`."""
        return cls.from_dict(read_json(path), str(path))

    def save(self, path):
        """Writes `plan.json` atomically."""
        write_json(path, self)
