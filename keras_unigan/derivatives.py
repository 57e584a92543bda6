"""BIDS derivatives of a model: label maps (`dseg`), probabilities (`probseg`) and what they mean.

A scan whose name is BIDS keeps its entities; any other becomes `sub-<its name>`. The suffix of the
scan, which a derivative replaces, stays as `desc`, so that two modalities of one visit do not meet.
Reference: BIDS 1.10, imaging derivatives, https://bids-specification.readthedocs.io.
"""

import dataclasses
import importlib.metadata
import os
import re
from pathlib import Path

from keras_unigan import prediction
from keras_unigan.config import read_json, write_json
from keras_unigan.data import nifti, volumes
from keras_unigan.errors import CodedError

VERSION = "1.10.0"
DESCRIPTION = "dataset_description.json"
DATATYPES = ("anat", "ct", "pet", "func", "dwi", "perf", "micr")
"""Folders whose name a derivative keeps; other scans go to `anat`."""
_RAW = "raw"
_BIDS = re.compile(r"sub-[A-Za-z0-9]+(_[a-z]+-[A-Za-z0-9]+)*_[A-Za-z0-9]+")


@dataclasses.dataclass(frozen=True)
class Scan:
    """One scan and where its derivatives go.

    Attributes:
        image: Path of the scan.
        entities: BIDS entities of its name, e.g. "sub-01_ses-2_run-1".
        suffix: What its name ends in, e.g. "T1w"; becomes `desc`.
        datatype: Folder below the subject.
        modality: Name in the plan, or None where it is not known.
        channel: See `config.Case`.
    """

    image: str
    entities: str
    suffix: str
    datatype: str = "anat"
    modality: str | None = None
    channel: int | None = None

    def stem(self, label=""):
        """Path below the folder of derivatives, without `_dseg` or `_probseg` and ending."""
        visit = re.search(r"_(ses-[A-Za-z0-9]+)", self.entities)
        parts = [self.entities.split("_")[0], *(visit.groups() if visit else ()), self.datatype]
        # The standard's order of entities: label before desc.
        named = [self.entities, *([f"label-{label}"] if label else []), f"desc-{self.suffix}"]
        return "/".join([*parts, "_".join(named)])


def scan_of(path, modality=None, channel=None):
    """`Scan` of a file; a BIDS name keeps its entities."""
    name, folder = volumes.stem(path) or Path(path).name, Path(path).parent.name
    if _BIDS.fullmatch(name):
        entities, _, suffix = name.rpartition("_")
        kept = [e for e in entities.split("_") if not e.startswith("desc-")]
        datatype = folder if folder in DATATYPES else "anat"
        return Scan(str(path), "_".join(kept), suffix, datatype, modality, channel)
    suffix = _plain(modality or "image")
    return Scan(str(path), f"sub-{_plain(name)}", suffix, "anat", modality, channel)


def scans_of(study, split=None):
    """`Scan`s of a study's cases; subject and visit are the study's own.

    Args:
        study: `config.Study`.
        split: Only this split; None takes all cases.

    Raises:
        CodedError: KUG-D14 when the split has no case.
    """
    found = []
    for case in study.cases:
        if split in (None, case.split):
            visit = f"_ses-{_plain(case.visit)}" if case.visit else ""
            entities, path = f"sub-{_plain(case.subject)}{visit}", study.path(case.image)
            scan = Scan(path, entities, _plain(case.modality), "anat", case.modality, case.channel)
            found.append(scan)
    if not found:
        raise CodedError("KUG-D14", study.name, f"no case in split {split!r}", "at least one")
    return found


def _plain(text):
    """Letters and digits of a text, as BIDS labels have no others."""
    return re.sub("[^A-Za-z0-9]", "", text) or "unnamed"


def check_names(scans):
    """Refuses scans that would write the same file.

    Raises:
        CodedError: KUG-E02.
    """
    stems = [scan.stem() for scan in scans]
    twice = next((s for s in stems if stems.count(s) > 1), None)
    if twice is not None:
        raise CodedError(
            "KUG-E02",
            twice,
            "two scans of that name",
            "one",
            "BIDS labels hold letters and digits only.",
            "use two output folders, or a study.json with subjects and visits",
        )


def describe(folder, labels, scans, overwrite=False):
    """Writes `dataset_description.json` and `dseg.tsv`.

    Args:
        folder: Of the derivatives.
        labels: `config.Labels` of the model.
        scans: `Scan`s; where they lie in one BIDS dataset, it is linked.
        overwrite: Whether to replace the description of other software or labels.

    Raises:
        CodedError: KUG-E02 for a folder that other software or another labelling described.
    """
    folder = Path(folder)
    made_by = {
        "Name": "keras_unigan",
        "Version": importlib.metadata.version("keras-unigan"),
        "Description": "Automatic segmentation (unigan predict). For research use only.",
    }
    description = {
        "Name": "keras_unigan segmentations",
        "BIDSVersion": VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [made_by],
    }
    root = _root(scans)
    if root is not None:
        description["DatasetLinks"] = {_RAW: Path(os.path.relpath(root, folder)).as_posix()}
    values = [(0, "background"), *_values(labels).items()]
    table = "index\tname\n" + "".join(f"{value}\t{name}\n" for value, name in values)
    _refuse_others(folder, made_by["Name"], table, overwrite)
    write_json(folder / DESCRIPTION, description)
    (folder / "dseg.tsv").write_text(table, encoding="utf-8")


def _values(labels):
    """File value -> name of each scored name."""
    values = labels.output_values[len(labels.names) - len(labels.foreground) :]
    return dict(zip(values, labels.foreground, strict=True))


def _refuse_others(folder, name, table, overwrite):
    path, values = folder / DESCRIPTION, folder / "dseg.tsv"
    if overwrite or not path.is_file():
        return
    makers = [maker.get("Name") for maker in read_json(path).get("GeneratedBy", [])]
    same = values.is_file() and values.read_text(encoding="utf-8") == table
    if name not in makers or not same:
        raise CodedError(
            "KUG-E02",
            folder,
            f"derivatives of {', '.join(map(str, makers)) or 'other software'}, or other labels",
            "an empty folder, or earlier results with the same labels",
            fix="choose another --output, or add --overwrite",
        )


def _root(scans):
    """The BIDS dataset that holds all scans, or None."""
    roots = set()
    for scan in scans:
        above = Path(os.path.abspath(scan.image)).parents
        roots.add(next((p for p in above if (p / DESCRIPTION).is_file()), None))
    return roots.pop() if len(roots) == 1 else None


def segment(model, scan, folder, batch_size=4):
    """Writes the label map and the probabilities of one scan, on its own grid.

    Args:
        model: What `prediction.predict` takes.
        scan: `Scan`.
        folder: Of the derivatives.
        batch_size: Windows per step.

    Returns:
        Paths written: `dseg.nii.gz`, its sidecar, and one `probseg.nii.gz` (float32, 0..1) a name.

    Raises:
        CodedError: See `prediction.predict`.
    """
    ensemble = prediction.load(model)
    plan, folder = ensemble.plan, Path(folder)
    volume = volumes.read_image(scan.image, plan.channels, scan.channel)
    found = ensemble.segment_volume(volume, scan.modality, batch_size, str(scan.image))
    if found.reading:
        found.reading.warn(scan.image, scan.modality)
    target = folder / f"{scan.stem()}_dseg.nii.gz"
    nifti.write(target, found.label_map, volume)
    side = target.with_name(target.name.replace(".nii.gz", ".json"))
    write_json(side, {"Manual": False, "Sources": [_source(scan)]})
    written, first = [target, side], len(plan.labels.names) - len(plan.labels.foreground)
    for index, name in enumerate(plan.labels.foreground, first):
        path = folder / f"{scan.stem(_plain(name))}_probseg.nii.gz"
        nifti.write(path, nifti.from_ras(found.probabilities[..., index], volume), volume)
        written.append(path)
    return written


def _source(scan):
    """BIDS URI of a scan of a dataset; else its name."""
    root = _root([scan])
    if root is None:
        return Path(scan.image).name
    place = Path(os.path.abspath(scan.image)).relative_to(root).as_posix()
    return f"bids:{_RAW}:{place}"
