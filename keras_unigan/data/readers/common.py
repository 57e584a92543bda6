"""What readers share: what they return, names of files, headers, and the errors of all layouts."""

import collections
import dataclasses
import difflib
import gzip
import io
import os
from pathlib import Path

import nibabel as nib

from keras_unigan.config import SPLITS, Case, Labels
from keras_unigan.errors import CodedError

ENDINGS = (".nii.gz", ".nii")
SPLIT_NAMES = {
    **{name: name for name in SPLITS},
    **{"training": "train", "validation": "val", "valid": "val", "testing": "test"},
}
LAYOUTS = (
    "one of the layouts understood: BIDS (sub-*/anat, label maps *_dseg in derivatives), MSD "
    "(dataset.json, imagesTr), nnU-Net raw (dataset.json, imagesTr/*_0000.nii.gz), BraTS "
    "(BraTS19_*_flair.nii.gz or BraTS-GLI-*-t2f.nii.gz), folders images and labels with the same "
    "names, <subject>_<modality>.nii.gz (or a DICOM folder or zip file of that name) beside "
    "<subject>_seg.nii.gz, flat or in a folder per subject, or a CSV file with columns subject, "
    "modality, image, label"
)
_MOST_SEEN = 5000


@dataclasses.dataclass(frozen=True)
class Found:
    """What a layout says of a study.

    Attributes:
        cases: Cases with absolute paths; a split only where the layout gives one.
        labels: Classes or regions, or None where only the label files tell.
        modalities: In the order of their domain index; empty where the layout knows no order.
        name: Name of the study, or None.
        normalization: As of a study.
        left: Scans in the folder that are not used: made of others, or of no known name.
        channels: As of a study.
    """

    cases: tuple[Case, ...]
    labels: Labels | None = None
    modalities: tuple[str, ...] = ()
    name: str | None = None
    normalization: dict[str, str] = dataclasses.field(default_factory=dict)
    left: tuple[str, ...] = ()
    channels: int = 1


def listed(names, limit=10):
    """The first names, and how many more there are."""
    names = [str(n) for n in names]
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def stem(path):
    """File name without `.nii` or `.nii.gz`; None for other names."""
    name = Path(path).name
    return next((name[: -len(e)] for e in ENDINGS if name.lower().endswith(e)), None)


def scans(paths):
    """Those of the paths that are NIfTI files and not hidden, sorted."""
    return sorted(p for p in paths if stem(p) and not p.name.startswith(".") and p.is_file())


def absolute(folder, name):
    """A path of a table or description: URIs stay, others count from the folder; None if empty."""
    if not name:
        return None
    return name if "://" in name else os.path.normpath(os.path.join(folder, name))


def seen(folder):
    """Sentence on what lies in a folder: endings with their counts, and the first folders."""
    endings, folders, count = collections.Counter(), [], 0
    for root, names, files in os.walk(folder):
        names[:] = sorted(n for n in names if not n.startswith("."))
        folders += [os.path.relpath(os.path.join(root, n), folder) for n in names]
        for file in files:
            two = file.lower().split(".")[1:][-2:]
            endings["." + ".".join(two if two[-1:] == ["gz"] else two[-1:])] += 1
        count += len(files)
        if count > _MOST_SEEN:
            break
    parts = [f"{n} *{e}" if e != "." else f"{n} without ending" for e, n in endings.most_common(6)]
    parts += [f"folders {listed(folders, 5)}"] if folders else []
    return "; ".join(parts) or "nothing"


def header(path):
    """Reads a NIfTI header alone and as it stands on disk, with the scale of its voxels.

    Args:
        path: Local `.nii` or `.nii.gz` file.

    Returns:
        NIfTI-1 or NIfTI-2 header.

    Raises:
        CodedError: KUG-D01 missing, KUG-D07 damaged or not NIfTI.
    """
    path = Path(path)
    if not path.is_file():
        raise CodedError("KUG-D01", path, "no such file", "a NIfTI file")
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as file:
            data = file.read(540)
        second = data[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c")
        kind = nib.Nifti2Header if second else nib.Nifti1Header
        return kind.from_fileobj(io.BytesIO(data), check=False)
    except (OSError, EOFError, ValueError, nib.wrapstruct.WrapStructError) as error:
        raise CodedError(
            "KUG-D07",
            path,
            f"a file that ends early or is no NIfTI ({type(error).__name__})",
            "a whole .nii or .nii.gz file",
            fix="copy the file again from its source, or leave the case out",
        ) from error


def channels(path):
    """Number of channels that a NIfTI file declares: 1 for one image."""
    count = 1
    for size in header(path).get_data_shape()[3:]:
        count *= int(size)
    return count


def add(files, key, path):
    """Puts a path into a dictionary under a key of its own.

    Raises:
        CodedError: KUG-D13 when another file has that key.
    """
    if key in files:
        raise CodedError(
            "KUG-D13",
            key if isinstance(key, str) else " ".join(k for k in key if k),
            f"{files[key]} and {path}",
            "one file a subject, visit and modality",
            fix="begin each name with its subject, or list the files in a CSV",
        )
    files[key] = path


def check_labelled(cases, orphans, where, candidates=None):
    """Checks that label maps and images meet.

    Args:
        cases: All cases that were found.
        orphans: Paths of label maps that no image claims.
        where: Folder or table.
        candidates: Function that says what to do about files that look like label maps, or "".

    Raises:
        CodedError: KUG-D02 for label maps without an image, and where no image has a label map.
    """
    bare = [Path(c.image).name for c in cases if c.label is None]
    if orphans:
        pairs, names = [], bare or [Path(c.image).name for c in cases]
        for path in orphans:
            near = difflib.get_close_matches(path.name, names, 1)
            pairs.append(path.name + (f" (perhaps of {near[0]})" if near else ""))
        raise CodedError(
            "KUG-D02",
            where,
            f"{len(orphans)} label maps without image: {listed(pairs)}",
            "an image of the same subject beside each",
            "A misspelt name would leave its image unlabelled in silence.",
            "rename the files so that <subject> is the same, or move the label maps away",
        )
    if len(bare) == len(cases):
        said = candidates() if candidates else ""
        raise CodedError(
            "KUG-D02",
            where,
            f"{len(cases)} images and no label map",
            "label maps (<subject>_seg.nii.gz in plain folders) for at least some",
            fix=f"{said or 'add label maps'}, or write a CSV file with a label column",
        )


def no_images(folder, files, labels=0, expected=LAYOUTS):
    """KUG-D01 for a folder without images."""
    return CodedError(
        "KUG-D01",
        folder,
        f"no image among {files} files ({labels} label maps); seen: {seen(folder)}",
        expected,
        fix="give the folder that holds the images, or a CSV file",
    )


def labels_of(values, where):
    """`Labels` of `name -> file value or values`, as JSON descriptions give them.

    A name with several values is a region when another name shares a value with it, else a class
    of merged values. Value 0 and a name "background" are the background.

    Args:
        values: Dictionary of names to whole numbers or lists of them.
        where: What an error calls the file.

    Raises:
        CodedError: KUG-D08 when a value is no whole number, or as `Labels` does.
    """
    scheme = {}
    for name, value in values.items():
        numbers = value if isinstance(value, (list, tuple)) else [value]
        try:
            whole = tuple(int(n) for n in numbers)
        except (TypeError, ValueError):
            raise CodedError(
                "KUG-D08", f"{where} labels", f"{name!r}: {value!r}", "whole numbers"
            ) from None
        if str(name).lower() != "background" and whole != (0,):
            scheme[str(name)] = whole
    flat = [n for numbers in scheme.values() for n in numbers]
    key = "classes" if len(set(flat)) == len(flat) else "regions"
    return Labels(**{key: scheme})
