"""Folders and tables to a study: who was scanned, in which modality, with which label map.

A reader turns a path into `Case`s with absolute paths; one error lists all problems of its kind.
`READERS` names them; a new layout is one function and one line there.
"""

import collections
import csv
import dataclasses
import difflib
import os
from pathlib import Path

import numpy as np

from keras_unigan.config import IGNORE, SPLITS, Case, Labels, Study
from keras_unigan.data import nifti, splits
from keras_unigan.errors import CodedError, did_you_mean

_ENDINGS = (".nii.gz", ".nii")
_LABEL_NAMES = ("seg", "label", "labels")
_SPLIT_NAMES = {
    **{name: name for name in SPLITS},
    **{"training": "train", "validation": "val", "valid": "val", "testing": "test"},
}
_LAYOUTS = (
    "<subject>_<modality>.nii.gz beside <subject>_seg.nii.gz, flat or in a folder per subject, "
    "or a CSV file with columns subject, modality, image, label"
)


def _listed(names, limit=10):
    """The first names, and how many more there are."""
    names = [str(n) for n in names]
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _stem(path):
    """File name without `.nii` or `.nii.gz`."""
    return next(path.name[: -len(e)] for e in _ENDINGS if path.name.lower().endswith(e))


def read_folder(folder):
    """Reads `<subject>_<modality>.nii.gz` beside `<subject>_seg.nii.gz`.

    Files lie flat or in a folder per subject; there `<modality>.nii.gz` beside `seg.nii.gz` is
    enough. `<subject>_<modality>_seg.nii.gz` is the label map of that modality alone. The modality
    is what follows the last underscore. `label` and `labels` do as well as `seg`.

    Args:
        folder: Local folder.

    Returns:
        List of `Case` with absolute paths, sorted by file name.

    Raises:
        CodedError: KUG-D01 without images or for a name without underscore, KUG-D02 for label maps
            without an image or where no image has one, KUG-D13 for one case in two files.
    """
    folder = Path(folder).resolve()
    everything = sorted(p for p in [*folder.glob("*"), *folder.glob("*/*")] if p.is_file())
    files = [p for p in everything if p.name.lower().endswith(_ENDINGS)]
    files = [p for p in files if not p.name.startswith(".")]
    images, labels = {}, {}
    for path in files:
        subject, name = _split_name(path, folder)
        target, key = (labels, subject) if name in _LABEL_NAMES else (images, (subject, name))
        if key in target:
            raise CodedError(
                "KUG-D13",
                " ".join([key] if target is labels else key),
                f"{target[key]} and {path}",
                "one file a subject and modality",
                fix="begin each name with its subject, or list the files in a CSV",
            )
        target[key] = path
    if not images:
        raise CodedError(
            "KUG-D01",
            folder,
            f"no image among {len(everything)} files ({len(labels)} label maps)",
            _LAYOUTS,
            fix="give the folder that holds the images, or a CSV file",
        )
    found, used = [], set()
    for (subject, modality), path in sorted(images.items(), key=lambda item: str(item[1])):
        own = f"{subject}_{modality}"
        key = next((k for k in (own, subject) if k in labels), None)
        used.add(key)
        label = str(labels[key]) if key else None
        found.append(Case(subject=subject, modality=modality, image=str(path), label=label))
    _check_labelled(found, {k: p for k, p in labels.items() if k not in used}, folder)
    return found


def _split_name(path, folder):
    """Subject and lower-case modality (or label word) that a file name stands for."""
    subject, underscore, name = _stem(path).rpartition("_")
    if not underscore and path.parent == folder:
        raise CodedError(
            "KUG-D01",
            path,
            "a name without an underscore",
            _LAYOUTS,
            fix=f"rename it to {_stem(path)}_<modality>.nii.gz, or write a CSV file",
        )
    return (subject if underscore else path.parent.name), name.lower()


def _check_labelled(cases, orphans, folder):
    """Raises KUG-D02 for label maps that no image claims, and without any label map."""
    bare = [Path(c.image).name for c in cases if c.label is None]
    if orphans:
        pairs = []
        names = bare or [Path(c.image).name for c in cases]
        for path in orphans.values():
            near = difflib.get_close_matches(path.name, names, 1)
            pairs.append(path.name + (f" (perhaps of {near[0]})" if near else ""))
        raise CodedError(
            "KUG-D02",
            folder,
            f"{len(orphans)} label maps without image: {_listed(pairs)}",
            "an image of the same subject beside each",
            "A misspelt name would leave its image unlabelled in silence.",
            "rename the files so that <subject> is the same, or move the label maps away",
        )
    if len(bare) == len(cases):
        raise CodedError(
            "KUG-D02",
            folder,
            f"{len(cases)} images and no label map",
            f"label maps named <subject>_{_LABEL_NAMES[0]}.nii.gz for at least some",
            fix="add label maps, or write a CSV file with a label column",
        )


def read_csv(path):
    """Reads a table with the columns subject, modality, image; label, split, site, visit optional.

    Other columns are ignored. Paths are relative to the table, absolute, or URIs. A `split` that is
    filled in is kept. Commas, semicolons or tabs separate.

    Args:
        path: Local CSV file.

    Returns:
        List of `Case` with absolute paths, in the order of the rows.

    Raises:
        CodedError: KUG-D01 for a missing or empty table, KUG-D02 where no row has a label, KUG-D07
            when it is no text, KUG-D08 naming a missing column, empty cell or unknown split.
    """
    path = Path(path).resolve()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CodedError("KUG-D07", path, "bytes that are no UTF-8 text", "a CSV file") from error
    first = text.partition("\n")[0]
    reader = csv.DictReader(text.splitlines(), delimiter=max(",;\t", key=first.count))
    columns = [(c or "").strip().lower() for c in reader.fieldnames or []]
    reader.fieldnames = columns
    for column in ("subject", "modality", "image"):
        if column not in columns:
            raise CodedError(
                "KUG-D08",
                path,
                f"columns {columns}{did_you_mean(column, columns)}",
                f"a column {column!r}",
                fix="name the columns subject, modality, image, label (and split, site, visit)",
            )
    cases = []
    for number, row in enumerate(reader, start=2):
        row = {k: (v or "").strip() for k, v in row.items() if isinstance(v, str) or v is None}
        empty = [c for c in ("subject", "modality", "image") if not row[c]]
        if empty:
            raise CodedError("KUG-D08", f"{path} line {number}", f"no {empty[0]}", "a value there")
        split = row.get("split", "").lower() or None
        if split is not None and split not in _SPLIT_NAMES:
            hint = did_you_mean(split, _SPLIT_NAMES)
            where = f"{path} line {number}"
            raise CodedError("KUG-D08", where, f"split {split!r}{hint}", f"one of {SPLITS}")
        cases.append(
            Case(
                subject=row["subject"],
                modality=row["modality"].lower(),
                image=_absolute(path.parent, row["image"]),
                label=_absolute(path.parent, row.get("label")),
                split=_SPLIT_NAMES.get(split),
                site=row.get("site") or None,
                visit=row.get("visit") or None,
            )
        )
    if not cases:
        raise CodedError("KUG-D01", path, "a table without rows", "one row an image")
    _check_labelled(cases, {}, path)
    return cases


def _absolute(folder, name):
    if not name:
        return None
    return name if "://" in name else os.path.normpath(os.path.join(folder, name))


def detect(path):
    """Name of the reader for a path: "csv" for `.csv` and `.tsv` files, "folder" for folders.

    Raises:
        CodedError: KUG-D01 when the path is missing (with the nearest one) or something else.
    """
    path = Path(path)
    if path.is_dir():
        return "folder"
    if path.is_file() and path.suffix.lower() in (".csv", ".tsv"):
        return "csv"
    if path.exists():
        raise CodedError("KUG-D01", path, "a file that is no CSV", _LAYOUTS)
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = did_you_mean(path.name, siblings)
    raise CodedError(
        "KUG-D01", path, f"no such file or folder{hint}", _LAYOUTS, fix="check the spelling"
    )


def scan_labels(cases):
    """Finds the values in label files: one class `label_<value>` each.

    Args:
        cases: Cases whose label maps are local files.

    Returns:
        `config.Labels`.

    Raises:
        CodedError: KUG-D05 for values that are no classes, KUG-D08 for label maps at URIs, and what
            `nifti.read` raises.
    """
    values = set()
    for name in sorted({c.label for c in cases if c.label}):
        if "://" in name:
            raise CodedError(
                "KUG-D08",
                name,
                "a label map at a URI",
                "labels, as it is not read here",
                fix="name the classes: unigan init TABLE.csv --label NAME=VALUE",
            )
        array = nifti.read(name).array
        if not np.isfinite(array).all():
            bad = int((~np.isfinite(array)).sum())
            raise CodedError(
                "KUG-D06",
                name,
                f"{bad} voxels that are NaN or infinite",
                "whole numbers 0 to 255",
                fix="write a label map without them",
            )
        found = np.unique(array)
        whole = np.rint(found)
        if np.abs(found - whole).max(initial=0) > 1e-3 or found.min() < 0 or found.max() > IGNORE:
            raise CodedError(
                "KUG-D05",
                name,
                f"values {_listed(f'{v:g}' for v in found)}",
                "whole numbers 0 to 255",
                "These are no classes; perhaps the file is an image.",
                "give the label file, or map its values to 1 to 254",
            )
        values |= {int(v) for v in whole}
    values -= {0, IGNORE}
    if not values:
        raise CodedError(
            "KUG-D05",
            "labels",
            "no value but 0 and 255 in any label map",
            "values 1 to 254 that mark classes",
            "255 means 'not labelled', so a 0-255 mask would teach nothing.",
            "write 1 in place of 255",
        )
    return Labels(classes={f"label_{v}": (v,) for v in sorted(values)})


def check_study(study):
    """Checks what can be told without opening a file: that files exist and none stands twice.

    Raises:
        CodedError: KUG-D01 listing missing files, KUG-D13 listing images that two cases name.
    """
    names = {n: c.id for c in study.cases for n in (c.image, c.label) if n and "://" not in n}
    missing = [n for n in names if not os.path.isfile(study.path(n))]
    if missing:
        first = Path(study.path(missing[0]))
        siblings = [p.name for p in first.parent.iterdir()] if first.parent.is_dir() else []
        hint = did_you_mean(first.name, siblings)
        raise CodedError(
            "KUG-D01",
            names[missing[0]],
            f"{len(missing)} files missing: {_listed(missing)}{hint}",
            f"all {len(names)} files of the study",
            fix="correct the paths (relative ones count from the study file)",
        )
    counts = collections.Counter(c.image for c in study.cases)
    twice = [n for n, count in counts.items() if count > 1]
    if twice:
        raise CodedError(
            "KUG-D13",
            "study",
            f"{len(twice)} images in more than one case: {_listed(twice)}",
            "each image once",
            "The same image in training and test makes every score a lie.",
            "remove the second entry",
        )


def init_study(
    path,
    output=None,
    labels=None,
    name=None,
    reader=None,
    fractions=(0.6, 0.2, 0.2),
    seed=0,
):
    """Makes a study of a folder or table: reads, checks, finds the classes, splits.

    Args:
        path: Folder or CSV file.
        output: Where the study file will lie: paths are then relative to it. None: absolute paths.
        labels: `config.Labels`; None scans the label files.
        name: Name of the study; None takes the path's.
        reader: Key of `READERS`; None detects it.
        fractions: Shares of train, val and test subjects; see `splits.split`.
        seed: Seed of the split.

    Returns:
        `config.Study`, not yet written.

    Raises:
        CodedError: KUG-T02 for an unknown reader; those of the reader, `check_study` and
            `scan_labels`.
    """
    if reader is not None and reader not in READERS:
        hint = did_you_mean(reader, READERS)
        raise CodedError("KUG-T02", "reader", f"{reader!r}{hint}", f"one of {list(READERS)}")
    detected = detect(path)
    found = READERS[reader or detected](path)
    modalities = tuple(sorted({c.modality for c in found}))
    name = name or Path(path).resolve().name.removesuffix(".csv").removesuffix(".tsv")
    # Checked before labels are read, so that a missing file is named with its case.
    check_study(Study(name, modalities, labels or Labels(classes={"any": (1,)}), tuple(found)))
    study = Study(name, modalities, labels or scan_labels(found), tuple(found))
    study = splits.split(study, fractions, seed)
    return study if output is None else relative_to(study, output)


def relative_to(study, out_path):
    """Returns the study as its file at `out_path` says it: paths relative to the file's folder.

    URIs stay as they are.
    """
    folder = os.path.dirname(os.path.abspath(out_path))

    def relative(name):
        if name is None or "://" in name:
            return name
        return Path(os.path.relpath(study.path(name), folder)).as_posix()

    cases = tuple(
        dataclasses.replace(c, image=relative(c.image), label=relative(c.label))
        for c in study.cases
    )
    return dataclasses.replace(study, cases=cases, folder=folder)


READERS = {"folder": read_folder, "csv": read_csv}
"""Layout -> reader: path to list of `Case`."""
