"""Readers of layouts: a folder or table to cases with absolute paths, labels and modalities.

`READERS` names them; a new layout is one small file, one line there and one in `detect`.
"""

import dataclasses
from pathlib import Path

from keras_unigan.config import read_json
from keras_unigan.data.readers import (
    bids,
    brats,
    common,
    folder,
    msd,
    names,
    nnunet,
    paired,
    sidecar,
    table,
)
from keras_unigan.errors import CodedError, did_you_mean

READERS = {
    "folder": folder.read,
    "csv": table.read,
    "bids": bids.read,
    "msd": msd.read,
    "nnunet": nnunet.read,
    "brats": brats.read,
    "paired": paired.read,
}
"""Layout -> reader: path to `common.Found`."""

_TOLD = ("folder", "paired")


def detect(path, label_name=None):
    """Name of the reader for a path, by its looks.

    Args:
        path: A `.csv` or `.tsv` file, or a folder.
        label_name: See `read`.

    Returns:
        Key of `READERS`.

    Raises:
        CodedError: KUG-D01 when the path is missing (with the nearest one) or another kind of file.
    """
    path = Path(path)
    if path.is_dir():
        return _detect_folder(path, label_name)
    if path.is_file() and path.suffix.lower() in (".csv", ".tsv"):
        return "csv"
    if path.exists():
        raise CodedError("KUG-D01", path, "a file that is no CSV", common.LAYOUTS)
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = did_you_mean(path.name, siblings)
    raise CodedError(
        "KUG-D01", path, f"no such file or folder{hint}", common.LAYOUTS, fix="check the spelling"
    )


def _detect_folder(path, label_name):
    description = path / "dataset.json"
    if description.is_file():
        data = read_json(description)
        suffixed = any(path.glob("imagesTr/*_0000.*"))
        return "nnunet" if suffixed or "channel_names" in data else "msd"
    subjects = [p for pattern in ("sub-*", "sub-*/ses-*") for p in path.glob(pattern)]
    if any((p / datatype).is_dir() for p in subjects for datatype in bids.DATATYPES):
        return "bids"
    if 2 * len(brats.scans(path)) > len(names.scans(names.below(path))[0]):
        # A folder of many studies, of which one has these names, is none of BraTS.
        return "brats"
    return "paired" if paired.pairs(path, label_name) else "folder"


def read(path, reader=None, label_name=None, modality=None):
    """Reads a folder or table in any layout, with what its sidecar adds.

    Args:
        path: Folder or CSV file.
        reader: Key of `READERS`; None looks at the path.
        label_name: Word in the names of the label maps, for layouts that go by names alone.
        modality: Modality of files whose names say none, for these layouts.

    Returns:
        `common.Found`.

    Raises:
        CodedError: KUG-T02 for an unknown reader, or names for a layout that needs none; those of
            `detect`, the reader and the sidecar.
    """
    if reader is not None and reader not in READERS:
        hint = did_you_mean(reader, READERS)
        raise CodedError("KUG-T02", "reader", f"{reader!r}{hint}", f"one of {list(READERS)}")
    detected = detect(path, label_name)
    chosen = reader or detected
    told = {"label_name": label_name, "modality": modality}
    told = {key: value for key, value in told.items() if value is not None}
    if told and chosen not in _TOLD:
        flags = " and ".join(f"--{key.replace('_', '-')}" for key in told)
        raise CodedError(
            "KUG-T02", flags, f"a folder of layout {chosen}, which says that itself",
            f"one of {list(_TOLD)}", fix="leave it out, or add --reader folder",
        )  # fmt: skip
    found = sidecar.apply(READERS[chosen](path, **told), path)
    return dataclasses.replace(found, left=_left(found, path))


def _left(found, path):
    """Scans in a folder that its study does not use."""
    if not Path(path).is_dir():
        return found.left
    used = {name for case in found.cases for name in (case.image, case.label)}
    scans = names.scans(names.below(Path(path).resolve()))[0]
    return tuple(sorted({*found.left, *(str(p) for p in scans)} - used))
