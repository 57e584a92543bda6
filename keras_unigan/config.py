"""Study, Fingerprint, Plan and Experiment: frozen dataclasses to and from JSON.

Standard library only, so that the command line and the Beam workers import it at once. Every reader
is strict: an unknown or missing key is named, with the nearest known one.
"""

import dataclasses
import hashlib
import json
import math
import os
import posixpath
import types
import typing
from pathlib import Path

from keras_unigan.errors import CodedError, did_you_mean

IGNORE = 255
"""Label-map index of a voxel that nobody labelled (also the file value)."""

SPLITS = ("train", "val", "test")

SCHEMES = ("ct", "mr", "xray", "pet_suv", "spect_counts", "ultrasound", "microscopy")
"""Ways to normalise intensities: the keys of `layers.NORMALIZATIONS`."""


UNKNOWN = ("percentiles", "equalized")
"""Ways to normalise an image of unknown modality."""


def check_scheme(scheme, where):
    """Raises KUG-D08 for a name that is not in `SCHEMES`."""
    if scheme not in SCHEMES:
        raise CodedError(
            "KUG-D08", where, f"{scheme!r}{did_you_mean(scheme, SCHEMES)}", f"one of {SCHEMES}"
        )


def _plain(value):
    """Turns dataclasses and tuples into what `json` writes."""
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return {
            f.name: _plain(getattr(value, f.name)) for f in fields if f.metadata.get("json", True)
        }
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def _typed(kind, value, where):
    """Reads a JSON value as `kind`; raises `CodedError` that names the place."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType or origin is typing.Union:
        if value is None and type(None) in arguments:
            return None
        return _typed(next(a for a in arguments if a is not type(None)), value, where)
    if dataclasses.is_dataclass(kind):
        return from_dict(kind, value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise CodedError("KUG-D08", where, f"{type(value).__name__}", "a list")
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_typed(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(value))
        if len(value) != len(arguments):
            raise CodedError("KUG-D08", where, f"{len(value)} values", f"{len(arguments)}")
        return tuple(
            _typed(a, v, f"{where}[{i}]")
            for i, (a, v) in enumerate(zip(arguments, value, strict=True))
        )
    if origin is dict or kind is dict:
        if not isinstance(value, dict):
            raise CodedError("KUG-D08", where, f"{type(value).__name__}", "an object")
        if not arguments:
            return dict(value)
        return {str(k): _typed(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    if kind is typing.Any:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise CodedError("KUG-D08", where, f"{value!r}", f"a value of type {kind.__name__}")
    return value


def from_dict(cls, data, where):
    """Builds the dataclass `cls` from a JSON object; unknown and missing keys are errors.

    Raises:
        CodedError: KUG-D08 naming the key.
    """
    if not isinstance(data, dict):
        raise CodedError("KUG-D08", where, type(data).__name__, "an object")
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls) if f.metadata.get("json", True)}
    for key in data:
        if key not in known:
            hint = did_you_mean(key, known)
            raise CodedError(
                "KUG-D08", f"{where}.{key}", f"unknown key {key!r}{hint}", f"one of {list(known)}"
            )
    for name, field in known.items():
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if required and name not in data:
            raise CodedError("KUG-D08", where, f"no key {name!r}", "that key")
    return cls(**{k: _typed(hints[k], v, f"{where}.{k}") for k, v in data.items()})


def read_json(path):
    """Reads a JSON file.

    Raises:
        CodedError: KUG-D01 when the file is missing, KUG-D08 when it is not JSON.
    """
    path = Path(path)
    if not path.is_file():
        raise CodedError("KUG-D01", path, "no such file", "a JSON file")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CodedError("KUG-D08", path, f"text that is not JSON ({error})", "JSON") from error


def finite(value):
    """The same data with None for NaN and infinities, which JSON does not know."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path, data):
    """Writes JSON through a temporary sibling and a rename, so that no reader sees half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(_plain(data), indent=2) + "\n", encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True)
class Labels:
    """How file values become label-map indices and training targets.

    Exactly one of `classes` and `regions` is given. With `classes` (exclusive), index 0 is the
    background (file value 0) and class `k` holds its file values. With `regions` (ordered, possibly
    overlapping), each file value has its own index and a target is one map per region.

    Attributes:
        classes: Class name -> file values merged into it, in order; without the background.
        regions: Region name -> file values inside it, outermost first.
    """

    classes: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    regions: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if bool(self.classes) == bool(self.regions):
            raise CodedError(
                "KUG-D08", "labels", "both or neither of labels and regions", "exactly one of them"
            )
        seen = {}
        for name, values in (self.classes or self.regions).items():
            if not values:
                raise CodedError("KUG-D08", f"labels.{name}", "no value", "at least one")
            for value in values:
                if not 1 <= value < IGNORE:
                    raise CodedError(
                        "KUG-D08",
                        f"labels.{name}",
                        f"value {value}",
                        "1 to 254 (0 is the background, 255 not labelled)",
                    )
                if self.classes and value in seen:
                    raise CodedError(
                        "KUG-D08",
                        f"labels.{name}",
                        f"value {value} also in {seen[value]!r}",
                        "each value in one class (overlapping ones are `regions`)",
                    )
                seen[value] = name

    @property
    def overlapping(self):
        """Whether targets are regions (sigmoid) and not exclusive classes (softmax)."""
        return bool(self.regions)

    @property
    def names(self):
        """Name of each network output: background and classes, or the regions."""
        return tuple(self.regions) if self.regions else ("background", *self.classes)

    @property
    def foreground(self):
        """Names that are scored: all outputs but the background."""
        return tuple(self.regions) if self.regions else tuple(self.classes)

    @property
    def values(self):
        """File values of each label-map index, index 0 being the background."""
        if self.classes:
            return ((0,), *(tuple(v) for v in self.classes.values()))
        found = sorted({v for values in self.regions.values() for v in values})
        return ((0,), *((v,) for v in found))

    @property
    def membership(self):
        """Matrix (label-map index, output) of 0 and 1: the target of each index."""
        if self.classes:
            count = len(self.classes) + 1
            return tuple(tuple(int(i == j) for j in range(count)) for i in range(count))
        return tuple(
            tuple(int(values[0] in region) for region in self.regions.values())
            for values in self.values
        )

    @property
    def output_values(self):
        """File value that a file of ours holds for each output.

        A merged class writes its first value. A region writes its first value that no later region
        holds, so that nested regions painted in order give the study's own values back.
        """
        if self.classes:
            return (0, *(v[0] for v in self.classes.values()))
        regions = list(self.regions.values())
        result = []
        for i, values in enumerate(regions):
            later = {v for region in regions[i + 1 :] for v in region}
            result.append(next((v for v in values if v not in later), values[0]))
        return tuple(result)

    def file_values(self, name):
        """File values of one scored name."""
        return tuple((self.classes or self.regions)[name])


@dataclasses.dataclass(frozen=True)
class Case:
    """One scan: a subject at one visit in one modality, with its label map where there is one.

    Attributes:
        subject: Subject; the split is decided by it.
        modality: Lower-case modality, e.g. "t1" or "ct".
        image: Path relative to the study file, absolute path or URI.
        label: The same for the label map; None where not labelled.
        split: "train", "val", "test", or None before splitting.
        site: Where it was acquired, if known.
        visit: Which visit, if there are several.
        channel: Which channel of a file with several the image is, counted from 0; None for a file
            that holds this image alone.
    """

    subject: str
    modality: str
    image: str
    label: str | None = None
    split: str | None = None
    site: str | None = None
    visit: str | None = None
    channel: int | None = None

    def __post_init__(self):
        if self.channel is not None and self.channel < 0:
            raise CodedError("KUG-D08", self.id, f"channel {self.channel}", "0 or more")
        if self.split is not None and self.split not in SPLITS:
            raise CodedError("KUG-D08", self.id, f"split {self.split!r}", f"one of {SPLITS}")
        if self.modality != self.modality.lower() or not self.modality:
            raise CodedError("KUG-D08", self.id, f"modality {self.modality!r}", "lower case")

    @property
    def id(self):
        """`subject[_visit]_modality`: unique in a study."""
        return "_".join(p for p in (self.subject, self.visit, self.modality) if p)


@dataclasses.dataclass(frozen=True)
class Study:
    """What there is: modalities, labels and cases. Read and written as `study.json`.

    Attributes:
        name: Short name of the study.
        modalities: Lower-case names, in the order of their domain index.
        labels: Classes or regions.
        cases: All cases.
        folder: Folder of the study file, from which relative paths count; not in the JSON.
        normalization: Modality -> name in `SCHEMES`, where neither its files nor its name say how
            its intensities are to be normalised, or say it wrongly.
    """

    name: str
    modalities: tuple[str, ...]
    labels: Labels
    cases: tuple[Case, ...]
    folder: str = dataclasses.field(default=".", metadata={"json": False})
    normalization: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if len(set(self.modalities)) != len(self.modalities) or not self.modalities:
            raise CodedError(
                "KUG-D08", "study.modalities", f"{list(self.modalities)}", "distinct names"
            )
        for modality, scheme in self.normalization.items():
            if modality not in self.modalities:
                hint = did_you_mean(modality, self.modalities)
                raise CodedError(
                    "KUG-D08",
                    "study.normalization",
                    f"modality {modality!r}{hint}",
                    f"one of {list(self.modalities)}",
                )
            check_scheme(scheme, f"study.normalization.{modality}")
        ids, splits = set(), {}
        for case in self.cases:
            if case.modality not in self.modalities:
                hint = did_you_mean(case.modality, self.modalities)
                raise CodedError(
                    "KUG-D08",
                    case.id,
                    f"modality {case.modality!r}{hint}",
                    f"one of {list(self.modalities)}",
                )
            if case.id in ids:
                raise CodedError(
                    "KUG-D13", case.id, "the case twice", "one entry a subject, visit and modality"
                )
            ids.add(case.id)
            other = splits.setdefault(case.subject, case.split)
            if other != case.split:
                raise CodedError(
                    "KUG-D13",
                    case.subject,
                    f"splits {other!r} and {case.split!r}",
                    "one split a subject",
                    "Scores on a subject that was trained on are worth nothing.",
                    "give the subject one split",
                )

    def path(self, name):
        """Resolves a path of a case: URIs and absolute paths stay, others are under the study."""
        if name is None or "://" in name or os.path.isabs(name):
            return name
        if "://" in self.folder:
            return posixpath.join(self.folder, name)
        return os.path.join(self.folder, name)

    def to_dict(self):
        """The JSON object; `labels` or `regions` stand at the top."""
        data = _plain(self)
        labels = data.pop("labels")
        key = "regions" if self.labels.overlapping else "labels"
        data[key] = labels["regions" if self.labels.overlapping else "classes"]
        data["cases"] = [{k: v for k, v in c.items() if v is not None} for c in data["cases"]]
        if not self.normalization:
            del data["normalization"]
        return {"name": data["name"], "modalities": data["modalities"], key: data[key], **data}

    @classmethod
    def from_dict(cls, data, folder=".", where="study"):
        """Reads the JSON object strictly.

        Raises:
            CodedError: KUG-D08 naming the key, KUG-D13 for repeated cases or split subjects.
        """
        if not isinstance(data, dict):
            raise CodedError("KUG-D08", where, type(data).__name__, "an object")
        data = dict(data)
        known = ("name", "modalities", "labels", "regions", "cases", "normalization")
        for key in data:
            if key not in known:
                raise CodedError(
                    "KUG-D08",
                    f"{where}.{key}",
                    f"unknown key {key!r}{did_you_mean(key, known)}",
                    f"one of {list(known)}",
                )
        schemes = {"classes": data.pop("labels", {}), "regions": data.pop("regions", {})}
        for key, scheme in schemes.items():
            name = "labels" if key == "classes" else "regions"
            if not isinstance(scheme, dict):
                raise CodedError("KUG-D08", f"{where}.{name}", type(scheme).__name__, "an object")
            schemes[key] = {k: [v] if isinstance(v, int) else v for k, v in scheme.items()}
        for key in ("modalities", "cases"):
            if key not in data:
                raise CodedError("KUG-D08", where, f"no key {key!r}", "that key")
        data.setdefault("name", "study")
        labels = from_dict(Labels, schemes, f"{where}.labels")
        hints = typing.get_type_hints(cls)
        values = {k: _typed(hints[k], v, f"{where}.{k}") for k, v in data.items()}
        return cls(labels=labels, folder=str(folder), **values)

    @classmethod
    def load(cls, path):
        """Reads `study.json`; relative paths then count from its folder."""
        return cls.from_dict(read_json(path), os.path.dirname(os.path.abspath(path)), str(path))

    def save(self, path):
        """Writes `study.json` atomically."""
        write_json(path, self.to_dict())


@dataclasses.dataclass(frozen=True)
class ModalityFingerprint:
    """Measured facts of the training cases of one modality.

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
    mean: float
    sd: float
    low: float
    high: float
    scaled_low: float
    scaled_high: float
    voxels: dict[str, int]
    core_share: float = 0.0
    core_low: float | None = None
    core_high: float | None = None
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

    Attributes:
        scheme: Name in `SCHEMES`.
        mean: Data-set mean.
        sd: Data-set standard deviation.
        low: Value after the z-score that becomes -1.
        high: Value after the z-score that becomes 1.
    """

    scheme: str
    mean: float
    sd: float
    low: float
    high: float

    def __post_init__(self):
        check_scheme(self.scheme, "plan.normalization.scheme")
        numbers = (self.mean, self.sd, self.low, self.high)
        if not all(map(math.isfinite, numbers)) or not self.sd > 0 or not self.high > self.low:
            raise CodedError(
                "KUG-D08",
                "plan.normalization",
                f"mean {self.mean}, sd {self.sd}, low {self.low}, high {self.high}",
                "finite numbers, sd > 0 and high > low",
            )


@dataclasses.dataclass(frozen=True)
class Configuration:
    """Sizes of one network configuration (2-D or 3-D).

    Attributes:
        patch_size: Patch in voxels, one entry per spatial axis (x, y[, z]).
        batch_size: Patches per step.
        strides: Pooling stride per level and axis; the patch is divisible by their product.
        filters: Base width.
    """

    patch_size: tuple[int, ...]
    batch_size: int
    strides: tuple[tuple[int, ...], ...]
    filters: int

    def __post_init__(self):
        dims = len(self.patch_size)
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

    @property
    def recipe(self):
        """sha256 over all that decides the bytes of a record: labels, modalities and geometry."""
        keys = ("modalities", "labels", "spacing", "nearest_axis", "version")
        data = {k: _plain(getattr(self, k)) for k in keys}
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()

    def to_dict(self):
        """The JSON object."""
        return _plain(self)

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


AUGMENT_LEVELS = ("none", "light", "standard", "contrast")
TARGETS = ("permute", "uniform")
OPTIMIZERS = ("adam", "muon")


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """How a run is trained; each field is `--set train.<field>=value`.

    Attributes:
        batch_size: Global batch; None takes the plan's.
        patch_size: Patch in voxels; None takes the plan's.
        steps_per_epoch: Steps between two validations.
        optimizer: "muon" or "adam", of the main network; None takes the system's own.
        learning_rate: Highest rate of that optimizer; None takes its own.
        adversary_rate: The same for discriminators and critics, whose optimizers stay.
        unknown_fraction: Share of samples normalised as if the modality were not known.
        foreground_fraction: Least share of draws that hold foreground.
        augment: "none"; "light" (flips, intensity, gamma, noise); "standard" (also affine, elastic,
            bias field, blur, low resolution); "contrast" (standard, and a random contrast on a
            share of the samples). See `data.augmentation`.
        contrast_fraction: Share of samples that "contrast" gives a random contrast; they count as
            of unknown modality.
        allow_missing_classes: Whether a translating game may train where a class occurs in the
            labelled cases of some modalities only.
        targets: How a translating game's target modalities are drawn: "permute" (those of the
            batch in another order) or "uniform" (each modality alike).
        pair_subjects: Whether a training subject with several modalities gives all of them. If not,
            it gives one, always the same.
        ema_decay: Decay of the weight average that validates and is exported.
        patience: Validations without a better Dice before the run stops; 0 is never.
        mixed_precision: Keras dtype policy: "float32", "mixed_bfloat16" or "mixed_float16".
        jit_compile: Whether steps are compiled by XLA.
        accumulate: Micro-batches that a batch is cut into; their gradients are averaged.
        checkpoint_seconds: Most seconds of an epoch that a kill may lose; None: the whole epoch.
        checkpoint_steps: Most steps of an epoch that a kill may lose; None: as many as it has.
    """

    batch_size: int | None = None
    patch_size: tuple[int, ...] | None = None
    steps_per_epoch: int = 50
    optimizer: str | None = None
    learning_rate: float | None = None
    adversary_rate: float | None = None
    unknown_fraction: float = 0.15
    foreground_fraction: float = 0.34
    # Any: files of version 0.1.0 hold true or false, and the check says what that is now.
    augment: typing.Any = "light"
    contrast_fraction: float = 0.5
    targets: str = "permute"
    pair_subjects: bool = False
    ema_decay: float = 0.999
    patience: int = 0
    mixed_precision: str = "float32"
    jit_compile: bool = False
    accumulate: int = 1
    allow_missing_classes: bool = False
    checkpoint_seconds: float | None = 60.0
    checkpoint_steps: int | None = None

    def __post_init__(self):
        choices = {
            "augment": AUGMENT_LEVELS,
            "targets": TARGETS,
            "optimizer": (None, *OPTIMIZERS),
        }
        for name, known in choices.items():
            value, fix = getattr(self, name), ""
            if isinstance(value, bool) and name == "augment":
                fix = f'write "{"light" if value else "none"}" for {str(value).lower()}'
            if value not in known:
                names = [k for k in known if k is not None]
                found, expected = f"{value!r}{did_you_mean(value, names)}", f"one of {names}"
                raise CodedError("KUG-T02", f"train.{name}", found, expected, fix=fix)
        checks = {
            "accumulate": self.accumulate > 0,
            "checkpoint_seconds": self.checkpoint_seconds is None or self.checkpoint_seconds >= 0,
            "checkpoint_steps": self.checkpoint_steps is None or self.checkpoint_steps > 0,
            "batch_size": self.batch_size is None or self.batch_size > 0,
            "steps_per_epoch": self.steps_per_epoch > 0,
            "learning_rate": self.learning_rate is None or self.learning_rate > 0,
            "adversary_rate": self.adversary_rate is None or self.adversary_rate > 0,
            "unknown_fraction": 0 <= self.unknown_fraction <= 1,
            "foreground_fraction": 0 <= self.foreground_fraction <= 1,
            "contrast_fraction": 0 <= self.contrast_fraction <= 1,
            "ema_decay": 0 <= self.ema_decay < 1,
            "patience": self.patience >= 0,
            "mixed_precision": self.mixed_precision
            in ("float32", "mixed_bfloat16", "mixed_float16"),
        }
        for name, good in checks.items():
            if not good:
                raise CodedError(
                    "KUG-T02", f"train.{name}", f"{getattr(self, name)}", "a value in its range"
                )


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One run: data, system, budget and options; `config.json` of a run folder.

    Attributes:
        shards: Folder of shards.
        output: Run folder.
        model: Name in `systems.SYSTEMS`.
        spatial_dims: 2 or 3.
        seed: Seed of weights, sampling and augmentation.
        replicas: Number of replicas under MirroredStrategy.
        minutes: Stop after this many minutes of training.
        epochs: Stop after this many epochs.
        steps: Stop after this many steps.
        horizon: Steps for which learning rates and ramps are made. None is the budget; a resumed
            run keeps that of its first session, so that more budget does not bend them.
        deterministic: Whether every operation gives the same bits in every run, at some cost.
        init_from: Run folder whose networks the run starts from, or None.
        train: Options of the run.
        network: Constructor arguments that override the system's for its segmentor.
        game: Constructor arguments that override the system's for its game.
    """

    shards: str
    output: str
    model: str = "segan"
    spatial_dims: int = 2
    seed: int = 0
    replicas: int = 1
    minutes: float | None = None
    epochs: int | None = None
    steps: int | None = None
    horizon: int | None = None
    deterministic: bool = False
    init_from: str | None = None
    train: TrainOptions = dataclasses.field(default_factory=TrainOptions)
    network: dict[str, typing.Any] = dataclasses.field(default_factory=dict)
    game: dict[str, typing.Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        given = [n for n in ("minutes", "epochs", "steps") if getattr(self, n) is not None]
        if len(given) > 1:
            raise CodedError(
                "KUG-T02", "budget", " and ".join(given), "one of minutes, epochs and steps"
            )
        for name in given:
            if not getattr(self, name) > 0:
                raise CodedError("KUG-T02", name, f"{getattr(self, name)}", "more than 0")
        if self.spatial_dims not in (2, 3):
            raise CodedError("KUG-T02", "spatial_dims", f"{self.spatial_dims}", "2 or 3")
        for name in ("replicas", "horizon"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise CodedError("KUG-T02", name, f"{getattr(self, name)}", "at least 1")

    @classmethod
    def load(cls, path):
        """Reads `config.json`."""
        return from_dict(cls, read_json(path), str(path))

    def save(self, path):
        """Writes `config.json` atomically."""
        write_json(path, self)

    def override(self, settings):
        """Returns a copy with `key=value` settings applied, e.g. `train.batch_size=4`.

        Values are JSON; what is not JSON is taken as text. Keys of `network` and `game` are checked
        against their constructors when the model is built.

        Raises:
            CodedError: KUG-T02 naming an unknown key or a value of the wrong type.
        """
        data = _plain(self)
        for setting in settings:
            key, equals, text = setting.partition("=")
            if not equals:
                raise CodedError("KUG-T02", "--set", repr(setting), "key=value")
            try:
                value = json.loads(text)
            except json.JSONDecodeError:
                value = text
            group, _, name = key.partition(".")
            if group in ("network", "game") and name:
                data[group][name] = value
            elif group == "train" and name in data["train"]:
                data["train"][name] = value
            elif not name and key in data and key not in ("train", "network", "game"):
                data[key] = value
            else:
                known = [*(k for k in data if k not in ("train", "network", "game"))]
                known += [f"train.{k}" for k in data["train"]] + ["network.…", "game.…"]
                raise CodedError(
                    "KUG-T02", "--set", f"{key!r}{did_you_mean(key, known)}", f"one of {known}"
                )
        try:
            return from_dict(type(self), data, "--set")
        except CodedError as error:
            if error.code != "KUG-D08":
                raise
            raise CodedError("KUG-T02", error.where, error.found, error.expected) from error
