"""Plain folders: `<subject>_<modality>.nii.gz` beside `<subject>_seg.nii.gz`."""

from pathlib import Path

from keras_unigan.config import Case
from keras_unigan.data.readers import common
from keras_unigan.data.readers.common import Found
from keras_unigan.errors import CodedError

_LABEL_NAMES = ("seg", "label", "labels")


def read(folder):
    """Reads `<subject>_<modality>.nii.gz` beside `<subject>_seg.nii.gz`.

    Files lie flat or in a folder per subject; there `<modality>.nii.gz` beside `seg.nii.gz` is
    enough. `<subject>_<modality>_seg.nii.gz` is the label map of that modality alone. The modality
    is what follows the last underscore. `label` and `labels` do as well as `seg`.

    Args:
        folder: Local folder.

    Returns:
        `Found`: cases with absolute paths, sorted by file name.

    Raises:
        CodedError: KUG-D01 without images or for a name without underscore, KUG-D02 for label maps
            without an image or where no image has one, KUG-D13 for one case in two files.
    """
    folder = Path(folder).resolve()
    everything = [p for p in [*folder.glob("*"), *folder.glob("*/*")] if p.is_file()]
    images, labels = {}, {}
    for path in common.scans(everything):
        subject, name = _split_name(path, folder)
        if name in _LABEL_NAMES:
            common.add(labels, subject, path)
        else:
            common.add(images, (subject, name), path)
    if not images:
        raise common.no_images(folder, len(everything), len(labels))
    found, used = [], set()
    for (subject, modality), path in sorted(images.items(), key=lambda item: str(item[1])):
        own = f"{subject}_{modality}"
        key = next((k for k in (own, subject) if k in labels), None)
        used.add(key)
        label = str(labels[key]) if key else None
        found.append(Case(subject=subject, modality=modality, image=str(path), label=label))
    common.check_labelled(found, [p for k, p in labels.items() if k not in used], folder)
    return Found(tuple(found))


def _split_name(path, folder):
    """Subject and lower-case modality (or label word) that a file name stands for."""
    stem = common.stem(path)
    subject, underscore, name = stem.rpartition("_")
    if not underscore and path.parent == folder:
        raise CodedError(
            "KUG-D01",
            path,
            f"a name without an underscore; seen: {common.seen(folder)}",
            common.LAYOUTS,
            fix=f"rename it to {stem}_<modality>.nii.gz, or write a CSV file",
        )
    return (subject if underscore else path.parent.name), name.lower()
