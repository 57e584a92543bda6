"""BIDS: `sub-01/[ses-1/]anat/sub-01_T1w.nii.gz`, label maps `*_dseg` in `derivatives`."""

import csv
import json
import re
from pathlib import Path

from keras_unigan.config import SPLITS, Case, read_json
from keras_unigan.data.readers import common
from keras_unigan.data.readers.common import Found
from keras_unigan.errors import CodedError, did_you_mean

DATATYPES = ("anat", "ct", "pet", "us", "nm", "xr", "micr")
"""Folders that hold single images; series over time (func, dwi, perf) are left out."""

_WEIGHTED = {"t1w": "t1", "t2w": "t2", "pdw": "pd"}
_OTHER = ("dseg", "probseg", "mask", "defacemask")


def read(folder):
    """Reads the images of a data set and the label maps (`*_dseg`) of its derivatives.

    The modality is the suffix in lower case, with `T1w`, `T2w`, `PDw` as `t1`, `t2`, `pd` and a `c`
    behind it for images with contrast agent (`ce-…`). A label map belongs to the images under
    `Sources` in its JSON file, else to all of its subject and session. Those in another space
    (`space-…`) are left out. `dseg.tsv` names the classes; the columns `site` and `split` of
    `participants.tsv` are read.

    Args:
        folder: Local folder.

    Returns:
        `Found`, sorted by path; subjects and visits are the labels of `sub-` and `ses-`.

    Raises:
        CodedError: KUG-D01 without images, KUG-D02 for label maps without an image or where no
            image has one, KUG-D08 for tables or JSON files that are not valid, KUG-D13 for several
            images of one modality or several label maps of one image.
    """
    folder = Path(folder).resolve()
    everything = common.scans([*folder.glob("sub-*/*/*"), *folder.glob("sub-*/ses-*/*/*")])
    images = {}
    for path in everything:
        if path.parent.name in DATATYPES and modality_of(path) is not None:
            values = entities(path)
            common.add(images, (values["sub"], values.get("ses"), modality_of(path)), path)
    if not images:
        raise common.no_images(folder, len(everything), expected="images as sub-01/anat/*_T1w.nii")
    labels, orphans = _labels(folder, images)
    people = _participants(folder / "participants.tsv")
    cases = []
    for (subject, visit, modality), path in sorted(images.items(), key=lambda item: str(item[1])):
        more = people.get(f"sub-{subject}", {})
        label = labels.get(path)
        place = {"label": None if label is None else str(label), "visit": visit}
        cases.append(Case(subject, modality, str(path), **place, **more))
    common.check_labelled(cases, orphans, folder)
    return Found(tuple(cases), _classes(folder), (), _name(folder))


def entities(path):
    """Entities of a file name, `sub-01_ses-2_T1w` -> {"sub": "01", "ses": "2"}; `sub` always."""
    parts = [p.partition("-") for p in (common.stem(path) or "").split("_")[:-1]]
    values = {key: value for key, dash, value in parts if dash}
    first = next((p for p in Path(path).parts if p.startswith("sub-")), "sub-")
    return {"sub": first[4:], **values}


def modality_of(path):
    """Modality that a file name stands for, or None for files that are no image."""
    suffix = common.stem(path).rpartition("_")[2].lower()
    if suffix in _OTHER or "-" in suffix:
        return None
    name = _WEIGHTED.get(suffix, suffix)
    return f"{name}c" if "ce" in entities(path) else name


def _labels(folder, images):
    """Image -> label map, and label maps that no image claims."""
    patterns = ("derivatives/*/sub-*/**/*_dseg.nii*", "sub-*/**/*_dseg.nii*")
    files = common.scans({p for pattern in patterns for p in folder.glob(pattern)})
    files = [p for p in files if entities(p).get("space", "orig") == "orig"]
    claimed, orphans = {}, []
    # Those with sources first: what they claim is theirs alone.
    for path in sorted(files, key=lambda p: (_sources(p, folder) is None, str(p))):
        own, values = _sources(path, folder), entities(path)
        if own is None:
            key = (values["sub"], values.get("ses"))
            own = [p for k, p in images.items() if k[:2] == key]
            own = [p for p in own if not _has_own(p, claimed, folder)]
        own = [p for p in own if p in images.values()]
        if not own:
            orphans.append(path)
        for image in own:
            if image in claimed:
                raise CodedError(
                    "KUG-D13",
                    image,
                    f"label maps {claimed[image].relative_to(folder)} and "
                    f"{path.relative_to(folder)}",
                    "one label map an image",
                    "Which one is meant cannot be told.",
                    "move one of them away, or list the files in a CSV",
                )
            claimed[image] = path
    return claimed, orphans


def _has_own(image, claimed, folder):
    return image in claimed and _sources(claimed[image], folder) is not None


def _sources(path, folder):
    """Images that the JSON file beside a label map names, or None."""
    file = path.with_name(f"{common.stem(path)}.json")
    if not file.is_file():
        return None
    data = read_json(file)
    found = data.get("Sources") if isinstance(data, dict) else None
    if not isinstance(found, list):
        return None
    # bids:<dataset>:<path>; an empty data set is the one that the derivative belongs to.
    return [folder / re.sub(r"^bids:[^:]*:", "", str(name)) for name in found]


def _rows(path):
    """Rows of a table with tabs; "n/a" is left out."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CodedError("KUG-D08", path, "bytes that are no UTF-8 text", "a table") from error
    for row in csv.DictReader(text.splitlines(), delimiter="\t"):
        yield {k: v.strip() for k, v in row.items() if k and v and v.strip() not in ("", "n/a")}


def _participants(path):
    """Participant -> site and split."""
    people = {}
    for row in _rows(path) if path.is_file() else ():
        split = row.get("split", "").lower()
        if split and split not in common.SPLIT_NAMES:
            hint = did_you_mean(split, common.SPLIT_NAMES)
            raise CodedError("KUG-D08", path, f"split {split!r}{hint}", f"one of {SPLITS}")
        more = {"site": row.get("site"), "split": common.SPLIT_NAMES.get(split)}
        people[row.get("participant_id", "")] = more
    return people


def _classes(folder):
    """Classes of the `dseg.tsv` of the derivatives, or None; value 0 is the background."""
    tables = sorted({*folder.glob("derivatives/*/*dseg.tsv"), *folder.glob("*dseg.tsv")})
    if not tables:
        return None
    values = {}
    for row in _rows(tables[0]):
        if "index" not in row or "name" not in row:
            raise CodedError("KUG-D08", tables[0], f"a row {row}", "columns index and name")
        if row["index"] != "255":
            values.setdefault(row["name"], []).append(row["index"])
    return common.labels_of(values, tables[0])


def _name(folder):
    file = folder / "dataset_description.json"
    if not file.is_file():
        return None
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CodedError("KUG-D08", file, f"text that is not JSON ({error})", "JSON") from error
    return data.get("Name") or None if isinstance(data, dict) else None
