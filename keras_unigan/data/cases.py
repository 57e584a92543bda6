"""From what a layout says to a study: checks, classes, splits, paths.

`data.readers` read folders and tables; here their cases become a `config.Study`.
"""

import collections
import dataclasses
import os
from pathlib import Path

import numpy as np

from keras_unigan.config import IGNORE, Labels, Study
from keras_unigan.data import readers, splits, volumes
from keras_unigan.data.readers.common import listed
from keras_unigan.errors import CodedError, did_you_mean


def scan_labels(cases):
    """Finds the values in label files: one class `label_<value>` each.

    Args:
        cases: Cases whose label maps are local files.

    Returns:
        `config.Labels`.

    Raises:
        CodedError: KUG-D05 for values that are no classes, KUG-D08 for label maps at URIs, and what
            `volumes.read` raises.
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
        array = volumes.read(name).array
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
                f"values {listed(f'{v:g}' for v in found)}",
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
    missing = [n for n in names if not os.path.exists(study.path(n))]
    if missing:
        first = Path(study.path(missing[0]))
        siblings = [p.name for p in first.parent.iterdir()] if first.parent.is_dir() else []
        hint = did_you_mean(first.name, siblings)
        raise CodedError(
            "KUG-D01",
            names[missing[0]],
            f"{len(missing)} files missing: {listed(missing)}{hint}",
            f"all {len(names)} files of the study",
            fix="correct the paths (relative ones count from the study file)",
        )
    counts = collections.Counter((c.image, c.channel) for c in study.cases)
    twice = [name for (name, _), count in counts.items() if count > 1]
    if twice:
        raise CodedError(
            "KUG-D13",
            "study",
            f"{len(twice)} images in more than one case: {listed(twice)}",
            "each image once",
            "The same image in training and test makes every score a lie.",
            "remove the second entry",
        )


def read_study(path, labels=None, name=None, reader=None):
    """Reads a folder or table as a study, with the splits that it gives itself, if any.

    Args:
        path: Folder or CSV file.
        labels: `config.Labels`; None takes those of the layout, else scans the label files.
        name: Name of the study; None takes the layout's, else the path's.
        reader: Key of `readers.READERS`; None detects it.

    Returns:
        `config.Study` with absolute paths.

    Raises:
        CodedError: Those of `readers.read`, `check_study` and `scan_labels`.
    """
    found = readers.read(path, reader)
    modalities = found.modalities or tuple(sorted({c.modality for c in found.cases}))
    own = Path(path).resolve().name.removesuffix(".csv").removesuffix(".tsv")
    name, labels = name or found.name or own, labels or found.labels
    # Checked before labels are read, so that a missing file is named with its case.
    check_study(Study(name, modalities, labels or Labels(classes={"any": (1,)}), found.cases))
    return Study(name, modalities, labels or scan_labels(found.cases), found.cases)


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
        labels: See `read_study`; also for `name` and `reader`.
        name: Name of the study.
        reader: Key of `readers.READERS`.
        fractions: Shares of train, val and test subjects; see `splits.split`.
        seed: Seed of the split.

    Returns:
        `config.Study`, not yet written.

    Raises:
        CodedError: As `read_study` does.
    """
    study = splits.split(read_study(path, labels, name, reader), fractions, seed)
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
