"""From what a layout says to a study: checks, classes, splits, paths.

`data.readers` read folders and tables; here their cases become a `config.Study`.
"""

import collections
import dataclasses
import os
from pathlib import Path

import numpy as np

from keras_unigan.config import IGNORE, Labels, Study
from keras_unigan.data import copies, readers, splits, volumes
from keras_unigan.data.channels import merged
from keras_unigan.data.readers.common import listed
from keras_unigan.errors import CodedError, did_you_mean


def label_values(name):
    """Values in a label file.

    Args:
        name: Local path of a label map.

    Returns:
        Set of whole numbers 0 to 255.

    Raises:
        CodedError: KUG-D05 for values that are no classes, KUG-D06 for those that are no numbers,
            KUG-D08 for a label map at a URI, and what `volumes.read` raises.
    """
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
            "give the label file, or map its values to 1 to 254; with --label NAME=VALUE for each "
            "class, unigan check lists all such files",
        )
    return {int(v) for v in whole}


def classes_of(study):
    """Classes that the label maps of each subject show, as far as they can be read.

    Args:
        study: `config.Study`.

    Returns:
        Subject -> set of scored names, for subjects with a label map that was read. What was not
        annotated in a case does not count.
    """
    values, found = {}, {}
    for case in study.cases:
        path = study.path(case.label)
        if path is None:
            continue
        if path not in values:
            try:
                values[path] = label_values(path)
            except CodedError:
                # `unigan check` says what is wrong with it; here nothing can be balanced by it.
                values[path] = None
        if values[path] is not None:
            own = found.setdefault(case.subject, set())
            own |= {
                n
                for n in case.annotated or study.labels.foreground
                if values[path] & set(study.labels.file_values(n))
            }
    return found


def scan_labels(cases):
    """Finds the values in label files: one class `label_<value>` each.

    Args:
        cases: Cases whose label maps are local files.

    Returns:
        `config.Labels`.

    Raises:
        CodedError: KUG-D05 where no file has a class, and as `label_values`.
    """
    values = set()
    for name in sorted({c.label for c in cases if c.label}):
        values |= label_values(name)
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
        labels: See `study_of`; also for `name`.
        name: Name of the study.
        reader: Key of `readers.READERS`; None detects it.

    Returns:
        `config.Study` with absolute paths.

    Raises:
        CodedError: Those of `readers.read` and `study_of`.
    """
    return study_of(readers.read(path, reader), path, labels, name)


def study_of(found, path, labels=None, name=None, channels=None):
    """Makes a study of what a reader found.

    Args:
        found: `readers.common.Found`.
        path: Folder or CSV file that was read.
        labels: `config.Labels`; None takes those of the layout, else scans the label files.
        name: Name of the study; None takes the layout's, else the path's.
        channels: Channels of each image; None takes those of the layout: one, unless it says more.

    Returns:
        `config.Study` with absolute paths.

    Raises:
        CodedError: Those of `check_study` and `scan_labels`; KUG-D36 for a file of which other
            channels are named than all.
    """
    channels = channels or found.channels
    modalities = found.modalities or tuple(sorted({c.modality for c in found.cases}))
    if channels > 1 and any(c.channel is not None for c in found.cases):
        whole = merged(found.cases, channels)
        found = dataclasses.replace(found, cases=whole)
        modalities = tuple(dict.fromkeys(c.modality for c in whole))
    own = Path(path).resolve().name.removesuffix(".csv").removesuffix(".tsv")
    name, labels = name or found.name or own, labels or found.labels
    # Checked before labels are read, so that a missing file is named with its case. What was
    # annotated is checked when the names are known.
    bare = tuple(dataclasses.replace(c, annotated=None) for c in found.cases)
    check_study(Study(name, modalities, labels or Labels(classes={"any": (1,)}), bare))
    return Study(
        name,
        modalities,
        labels or scan_labels(found.cases),
        found.cases,
        normalization={m: s for m, s in found.normalization.items() if m in modalities},
        channels=channels,
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

    No image is opened: copies are not looked for and classes are not balanced, which `share_out`
    does.

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


def share_out(study, scheme, fold=None, content=True):
    """Splits a study by what its files hold: subjects that share a scan stay together.

    Args:
        study: `config.Study` with all cases; splits that they have stay as `splits.assign` says.
        scheme: `splits.Scheme`.
        fold: Which fold to make of several; None: the first.
        content: Whether to open all files: images to find copies among them, label maps to balance
            classes. Without, subjects that share a file still stay together.

    Returns:
        `config.Study` of the fold, its `splits.Assignment`, list of `copies.Copy`, and the ids of
        cases whose images could not be searched.

    Raises:
        CodedError: As `splits.assign` does.
    """
    found, unread = copies.find(study) if content else ([], [])
    classes = classes_of(study) if content else {}
    made = splits.assign(study, scheme, classes, [copy.subjects for copy in found], fold)
    return *made, found, unread


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


def save_split(study, made, output):
    """Writes a study and, beside it, its assignment file; paths are relative to their folder.

    Args:
        study: `config.Study`.
        made: `splits.Assignment`.
        output: Path of the study file.

    Returns:
        Path of the assignment file.
    """
    left = dataclasses.replace(study, cases=made.left_out)
    made = dataclasses.replace(made, left_out=relative_to(left, output).cases)
    relative_to(study, output).save(output)
    path = splits.path_of(output)
    made.save(path)
    return path
