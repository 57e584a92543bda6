"""Words in the names of files and folders that say what a file is."""

import collections
import os
import re
import zipfile
from pathlib import Path

import numpy as np

from keras_unigan.data import volumes
from keras_unigan.data.readers import common
from keras_unigan.errors import CodedError

MODALITIES = frozenset(
    (
        *("t1", "t1w", "t1n", "t1c", "t1ce", "t1gd", "t1post", "t2", "t2w", "t2f", "flair", "fla"),
        *("pd", "pdw", "adc", "dwi", "swi", "mr", "mri", "ct", "cta", "cbct", "us", "pet", "spect"),
        *("nm", "ultrasound", "xray", "xr", "cr", "dx", "mg", "micr", "microscopy"),
    )
)
"""Words that name a modality wherever they stand; others do at the end of a name only."""

LABELS = ("seg", "label", "labels", "dseg", "segmentation", "truth", "groundtruth", "gt", "gold")
"""Words that name a label map."""

MASKS = ("mask", "masks", "msk", "brainmask", "roi")
"""Words that name one where no file bears one of `LABELS`."""

VISIT = re.compile(r"(study|visit|session|ses|timepoint|tp|scan|baseline|followup)[-_]?\d*", re.I)
"""Folders, or beginnings of names, that tell visits of one subject apart."""

_MOST_KINDS = 20  # kinds of files that are looked into
_EVEN = 0.5  # share of voxels like the next one from which an image is a drawing of areas


def words(text):
    """Lower-case words of a name."""
    return [word for word in re.split(r"[^A-Za-z0-9]+", str(text).lower()) if word]


def bears(name, wanted):
    """Whether a name holds all words of another."""
    return set(words(wanted)) <= set(words(name))


def candidates(paths, ending):
    """What to do about files without label maps, going by what they hold.

    Args:
        paths: Files that are not known as label maps.
        ending: Path -> word that tells its kind of file.

    Returns:
        Sentence for an error, or "" where no file looks like a label map.
    """
    kinds = collections.defaultdict(list)
    for path in paths:
        kinds[ending(path)].append(path)
    looked = {word: holds_labels(kinds[word][0]) for word in sorted(kinds)[:_MOST_KINDS]}
    if all(looked.values()) and len(kinds) == len(paths) > 1:
        return "they look like label maps themselves: give the folder that holds their images too"
    found = [f"--label-name {word}" for word, good in looked.items() if good and word]
    return f"say which files they are: {' or '.join(found)}" if found else ""


def holds_labels(path):
    """Whether a file's voxels could be a label map: whole numbers in areas of one value."""
    try:
        array = volumes.read(path).array
    except CodedError:
        return False
    if not np.isfinite(array).all() or array.min() != 0 or (array != np.rint(array)).any():
        return False
    inside = array[:-1] != 0
    return bool(inside.any() and (array[:-1] == array[1:])[inside].mean() > _EVEN)


def stem(path):
    """Name without the ending of any kind of scan, that of a folder as it is; None for others."""
    return volumes.stem(path) or (Path(path).name if Path(path).is_dir() else None)


def below(folder):
    """All files in a folder and the folders in it, however deep, but for hidden ones; sorted."""
    found, seen = [], set()
    for root, folders, files in os.walk(folder, followlinks=True):
        # A link may lead back to where it came from.
        if os.path.realpath(root) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(root))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(root, name) for name in sorted(files) if not name.startswith(".")]
    return found


def series(paths):
    """DICOM images among files: folders of slices, zip archives, and files that are one image each.

    Args:
        paths: Paths of files.

    Returns:
        Sorted paths. A file `.dcm` is an image by itself where its name ends in the word of a
        modality (`p1_xray.dcm`), else it is a slice of what its folder holds.
    """
    found, slices = set(), collections.defaultdict(list)
    for path in paths:
        ending = volumes.ending(path)
        single = ending == ".dcm" and {*words(volumes.stem(path))[-1:]} & MODALITIES
        if single or (ending == ".zip" and _holds_slices(path)):
            found.add(path)
        elif ending in (None, ".dcm") and path.name != "DICOMDIR":
            slices[path.parent].append(path)
    return sorted(found | {at for at, inside in slices.items() if volumes.holds_dicom(inside)})


def _holds_slices(path):
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.lower().endswith(".dcm"):
                    return True
                with archive.open(name) as file:
                    if file.read(132)[128:] == b"DICM":
                        return True
    except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError):
        pass  # Damaged, encrypted, or packed in a way that `zipfile` does not know: no scan for us.
    return False


def scans(paths):
    """Those of the paths that are scans, and those that are but pictures of scans.

    Where there are volumes, a picture is a scan only if its name ends in a word of a modality or
    label map and no volume bears the same name.

    Args:
        paths: Paths of anything.

    Returns:
        Two sorted lists.
    """
    found = sorted(p for p in paths if not p.name.startswith(".") and p.is_file())
    found = [p for p in found if volumes.ending(p) not in _NEVER]
    solid = {p.parent / stem(p) for p in found if volumes.ending(p) not in PICTURES}
    known = (*MODALITIES, *LABELS, *MASKS)
    previews = [
        p
        for p in found
        if solid
        and volumes.ending(p) in PICTURES
        and (p.parent / stem(p) in solid or words(stem(p))[-1:] not in [[w] for w in known])
    ]
    return [p for p in found if p not in previews], previews


PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_NEVER = (None, ".img", ".img.gz", ".dcm", ".zip")


def unknown_modality(folder, found):
    """KUG-T03 for files whose names say no modality."""
    return CodedError(
        "KUG-T03",
        folder,
        f"no modality in names such as {common.listed(found, 3)}",
        "a word such as t1, flair or ct in the names of files or folders",
        fix="say it: --modality t1",
    )
