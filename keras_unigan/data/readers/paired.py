"""Folders of images and of label maps side by side: `images/a.nii.gz`, `labels/a.nii.gz`."""

import dataclasses
import re
from pathlib import Path

from keras_unigan.config import Case
from keras_unigan.data.readers import common, names
from keras_unigan.data.readers.common import SPLIT_NAMES, Found

_IMAGES = ("image", "images", "img", "imgs", "scans")
_LABELS = (*names.LABELS, *names.MASKS, "segs", "segmentations", "annotations", "lbl")
_PART = re.compile(r"(images?|labels?|masks?)(tr|ts|va)$")
_PARTS = {"tr": None, "ts": "test", "va": "val"}


@dataclasses.dataclass(frozen=True)
class _Pair:
    """A folder of images and that of their label maps.

    Attributes:
        images: Folder.
        labels: Folder, or None.
        prefix: What stands beside the word for images in its name, or "".
        split: Split that its name or the folder around it says, or None.
    """

    images: Path
    labels: Path | None
    prefix: str
    split: str | None


def pairs(root, label_name=None):
    """Folders of images up to two levels down, with their label maps.

    Args:
        root: Local folder.
        label_name: Word in the name of the folder of label maps, in place of the usual ones.

    Returns:
        Sorted list; empty where no folder of images has one of label maps beside it.
    """
    folders = [p for pattern in ("*", "*/*") for p in Path(root).glob(pattern) if p.is_dir()]
    folders = sorted(p for p in folders if not p.name.startswith("."))
    found = []
    for folder in folders:
        kind, prefix, part = _describe(folder, None)
        if kind != "images":
            continue
        labels = [
            p for p in folders
            if p.parent == folder.parent and _describe(p, label_name) == ("labels", prefix, part)
        ]  # fmt: skip
        around = folder.parent.name.lower() if folder.parent != Path(root) else ""
        split = SPLIT_NAMES.get(around, _PARTS.get(part))
        found.append(_Pair(folder, labels[0] if labels else None, prefix, split))
    return found if any(pair.labels for pair in found) else []


def _describe(folder, label_name):
    """Kind ("images", "labels" or None), other words, and part ("tr", "ts", "va" or "")."""
    words, part = names.words(folder.name), ""
    match = _PART.match(words[-1]) if words else None
    if match:
        words, part = [*words[:-1], match[1]], match[2]
    kind = next((w for w in words if w in _IMAGES), None)
    if kind is not None and (label_name is None or not names.bears(folder.name, label_name)):
        return "images", "_".join(w for w in words if w != kind), part
    marks = _LABELS if label_name is None else names.words(label_name)
    if any(w in marks for w in words):
        return "labels", "_".join(w for w in words if w not in marks), part
    return None, "", part


def read(folder, label_name=None, modality=None):
    """Reads folders of images beside folders of label maps with the same file names.

    `images` and `labels` (or `masks`, …); `fixed_images` and `fixed_labels`, where what stands
    before is the modality; `imagesTr`, `imagesTs`; all of them in `train`, `val` and `test`, too,
    which are then the splits. Else a word in the name of a file or, at last, of the folder itself
    says the modality. Files of one name in several folders of images are of one subject.

    Args:
        folder: Local folder.
        label_name: Word in the names of the folders of label maps, in place of the usual ones.
        modality: Modality of all files.

    Returns:
        `Found`, sorted by path.

    Raises:
        CodedError: KUG-D01 without images, KUG-D02 for label maps without an image or where no
            image has one, KUG-D13 for two files of one subject and modality, KUG-T03 where no name
            says the modality.
    """
    folder = Path(folder).resolve()
    images, orphans, places = {}, [], {}
    for pair in pairs(folder, label_name):
        labels = {_plain(names.stem(p)): p for p in _files(pair.labels)} if pair.labels else {}
        for path in _files(pair.images):
            stem = re.sub(r"_0000$", "", names.stem(path))
            subject, name = _subject(stem, modality or pair.prefix, folder)
            common.add(images, (subject, name), path)
            places[path] = labels.pop(_plain(stem), None), pair.split
        orphans += labels.values()
    if not images:
        raise common.no_images(folder, len(list(folder.glob("*/*"))), len(orphans))
    cases = []
    for (subject, name), path in sorted(images.items(), key=lambda item: str(item[1])):
        label, split = places[path]
        cases.append(Case(subject, name, str(path), None if label is None else str(label), split))
    common.check_labelled(cases, orphans, folder)
    return Found(tuple(cases))


def _files(folder):
    return names.scans(folder.iterdir())[0]


def _plain(stem):
    """A name without the words for label maps at its end."""
    return re.sub(rf"[_-]({'|'.join(_LABELS)})$", "", stem.lower())


def _subject(stem, modality, folder):
    """Subject and modality of a file."""
    if modality:
        return stem, modality.lower()
    parts = stem.split("_")
    known = next((p for p in reversed(parts) if p.lower() in names.MODALITIES), None)
    if known is not None and len(parts) > 1:
        return "_".join(p for p in parts if p is not known), known.lower()
    known = next((w for w in names.words(folder.name) if w in names.MODALITIES), None)
    if known is None:
        raise names.unknown_modality(folder, [stem])
    return stem, known
