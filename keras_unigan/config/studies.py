"""Labels, Case, Study: what there is to learn from."""

import dataclasses
import os
import posixpath
import typing

from keras_unigan.config.files import (
    IGNORE,
    MOST_CHANNELS,
    SPLITS,
    check_scheme,
    from_dict,
    plain,
    rare,
    read_json,
    typed,
    write_json,
)
from keras_unigan.errors import CodedError, did_you_mean


def synthetic_error(where, split):
    """Returns KUG-D37 for a synthetic image in a split whose scores count.

    Args:
        where: The case or file.
        split: Its split.
    """
    return CodedError(
        "KUG-D37",
        where,
        f"a synthetic image in {split}",
        "scans in val and test",
        "A score on what a network made says nothing of patients.",
        "give it the split train, or leave it out",
    )


def prelabelled_error(where, place, fix):
    """Returns KUG-D39 for a label map of an atlas where scores count.

    Args:
        where: The case.
        place: What it is in, or among.
        fix: What to do.
    """
    return CodedError(
        "KUG-D39",
        where,
        f"a label map made by an atlas {place}",
        "label maps that a person made",
        "A score against it would say how well the atlas is imitated.",
        fix,
    )


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

    def annotated(self, names):
        """For each scored name 1 where it is in `names`, else 0; all 1 for None."""
        return tuple(int(names is None or name in names) for name in self.foreground)

    def unannotated_indices(self, names):
        """Label-map indices that belong to none of `names` though they belong to a scored name."""
        first = len(self.names) - len(self.foreground)
        kept = self.annotated(names)
        return tuple(
            index
            for index, row in enumerate(self.membership)
            if any(row[first:]) and not any(m and a for m, a in zip(row[first:], kept, strict=True))
        )

    def check_annotated(self, names, where):
        """Raises KUG-D08 for a name that is not scored; see `Case.annotated`."""
        for name in names or ():
            if name not in self.foreground:
                raise CodedError(
                    "KUG-D08",
                    where,
                    f"annotated {name!r}{did_you_mean(name, self.foreground)}",
                    f"some of {list(self.foreground)}",
                )


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
        annotated: Classes or regions that were looked for when the label map was made; None for
            all. Of the others nothing is known: what the label map calls background may be any of
            them, and so may voxels that it gives to them.
        synthetic: Whether a network made the image: such a case may be trained on, and nothing
            else.
        prelabelled: Whether an atlas made the label map (`data.atlas`): the same.
    """

    subject: str
    modality: str
    image: str
    label: str | None = None
    split: str | None = None
    site: str | None = None
    visit: str | None = None
    channel: int | None = None
    annotated: tuple[str, ...] | None = None
    synthetic: bool = rare(False)
    prelabelled: bool = rare(False)

    def __post_init__(self):
        if self.channel is not None and self.channel < 0:
            raise CodedError("KUG-D08", self.id, f"channel {self.channel}", "0 or more")
        if self.annotated is not None and not (self.annotated and self.label):
            raise CodedError(
                "KUG-D08",
                self.id,
                "annotated without a label map" if self.annotated else "annotated without a name",
                "names of what was looked for when the label map was made",
                fix="leave annotated out for all names, and label too where nothing is annotated",
            )
        if self.split is not None and self.split not in SPLITS:
            raise CodedError("KUG-D08", self.id, f"split {self.split!r}", f"one of {SPLITS}")
        if self.synthetic and self.split in SPLITS[1:]:
            raise synthetic_error(self.id, self.split)
        if self.prelabelled and self.split in SPLITS[1:]:
            raise prelabelled_error(self.id, f"in {self.split}", "give it the split train")
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
        channels: Numbers a voxel of every image, e.g. 3 for the colours of a stain. A network has
            one input, so they are the same for all modalities.
    """

    name: str
    modalities: tuple[str, ...]
    labels: Labels
    cases: tuple[Case, ...]
    folder: str = dataclasses.field(default=".", metadata={"json": False})
    normalization: dict[str, str] = dataclasses.field(default_factory=dict)
    channels: int = rare(1)

    def __post_init__(self):
        if not 1 <= self.channels <= MOST_CHANNELS:
            raise CodedError(
                "KUG-D08", "study.channels", f"{self.channels}", f"1 to {MOST_CHANNELS}"
            )
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
            self.labels.check_annotated(case.annotated, case.id)
            if self.channels > 1 and case.channel is not None:
                raise CodedError(
                    "KUG-D36",
                    case.id,
                    f"channel {case.channel} alone",
                    f"{self.channels} channels, as study.json says",
                    "All images of a study have as many.",
                    'leave "channel" out of the case, or "channels" out of the study',
                )
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
        data = plain(self)
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
        known = ("name", "modalities", "labels", "regions", "cases", "normalization", "channels")
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
        values = {k: typed(hints[k], v, f"{where}.{k}") for k, v in data.items()}
        return cls(labels=labels, folder=str(folder), **values)

    @classmethod
    def load(cls, path):
        """Reads `study.json`; relative paths then count from its folder."""
        return cls.from_dict(read_json(path), os.path.dirname(os.path.abspath(path)), str(path))

    def save(self, path):
        """Writes `study.json` atomically."""
        write_json(path, self.to_dict())


Values = float | tuple[float, ...]
"""One number; of images of several channels one for each."""
