"""BraTS names, old (`BraTS19_X_flair`), new (`BraTS-GLI-00000-000-t2f`) and of 2012 to 2015."""

import re
from pathlib import Path

from keras_unigan.config import Case
from keras_unigan.data.readers import common
from keras_unigan.data.readers.common import Found

NEW = re.compile(r"(BraTS-[A-Z]+-\d+)-(\d{3})-([a-z0-9]+)", re.IGNORECASE)
MODALITIES = ("t1", "t1c", "t1ce", "t1gd", "t1n", "t2", "t2w", "t2f", "flair")
"""Words that name a modality in old names."""

LABELS = ("seg", "truth", "otmulticlass", "ot")
"""Words that name a label map."""

_DEPTH = 3


def read(folder):
    """Reads folders `BraTS…` of one subject each, at most two folders down (HGG, LGG).

    New names give subject (`BraTS-GLI-00000`), visit (`000`) and modality (`t1n`). In old ones the
    folder is the subject and a word of the file name is the modality: `BraTS19_X_flair`,
    `VSD.Brain.XX.O.MR_T1c.123`, `Flair_normalised`. `seg`, `truth`, `OT` and `OTMultiClass` mark
    label maps. Files with none of these words (masks of the brain) are left out.

    Args:
        folder: Local folder.

    Returns:
        `Found`, sorted by subject, visit and modality.

    Raises:
        CodedError: KUG-D01 without images, KUG-D02 for label maps without an image or where no
            image has one, KUG-D13 for two files of one modality.
    """
    folder = Path(folder).resolve()
    images, labels, files = {}, {}, scans(folder)
    for path in files:
        subject, visit, name = parse(path)
        if name in LABELS:
            common.add(labels, (subject, visit), path)
        elif name is not None:
            common.add(images, (subject, visit, name), path)
    if not images:
        raise common.no_images(folder, len(files), len(labels))
    cases = [
        Case(subject, name, str(path), _text(labels.get((subject, visit))), visit=visit)
        for (subject, visit, name), path in sorted(images.items(), key=lambda i: _order(i[0]))
    ]
    known = {(c.subject, c.visit) for c in cases}
    orphans = [path for key, path in labels.items() if key not in known]
    common.check_labelled(cases, orphans, folder)
    return Found(tuple(cases))


def scans(folder):
    """NIfTI files in folders whose name begins with `BraTS`, however it is written."""
    found = []
    for depth in range(1, _DEPTH + 1):
        found += [
            p for p in Path(folder).glob("/".join(["*"] * depth)) if brats_folder(p.parent, folder)
        ]
    return common.scans(found)


def brats_folder(path, root):
    """Whether a folder stands for one subject by its name; the root never does."""
    return path.name.lower().startswith(("brats", "vsd.brain")) and (path != Path(root))


def parse(path):
    """Subject, visit or None, and word for the modality or label map, or None, of a file."""
    stem = common.stem(path)
    new = NEW.fullmatch(stem)
    if new:
        return new[1], new[2], new[3].lower()
    words = stem
    if stem.lower().startswith(path.parent.name.lower()):
        words = stem[len(path.parent.name) :]
    found = [w for w in re.split(r"[^A-Za-z0-9]+", words.lower()) if w in (*MODALITIES, *LABELS)]
    return path.parent.name, None, found[-1] if found else None


def _order(key):
    return tuple(part or "" for part in key)


def _text(path):
    return None if path is None else str(path)
