"""Writes BraTS names."""

import re

from keras_unigan.data.readers import brats
from keras_unigan.data.writers import common
from keras_unigan.data.writers.common import Written

_OLD = re.compile(r"brats[A-Za-z0-9_]*", re.IGNORECASE)
_NEW = re.compile(r"BraTS-[A-Z]+-\d+", re.IGNORECASE)


def write(study, folder):
    """Writes one folder a subject and visit: `BraTS-UNI-00000-000/…-<modality>.nii.gz`, `…-seg`.

    Subjects with BraTS names, old or new, keep them.

    Args:
        study: `config.Study` with absolute paths.
        folder: Empty folder.

    Returns:
        `Written`.
    """
    groups = common.groups(study, common.grid)
    # The space makes a modality "seg" another text than the word for label maps, and does not stay.
    taken = [f"{word} " for word in brats.LABELS]
    words = common.unique([*taken, *study.modalities], "[^a-z0-9]")
    places = {}
    for group, (name, joint) in zip(groups, _names(groups), strict=True):
        base = folder / name / f"{name}{joint}"
        label = None
        if group.label is not None:
            label = base.with_name(f"{base.name}seg{common.ending(group.label)}")
            common.put(group.label, label)
        for case in group.cases:
            end = ".nii.gz" if case.channel is not None else common.ending(case.image)
            image = base.with_name(f"{base.name}{words[case.modality]}{end}")
            common.put(case.image, image, case.channel)
            places[case.id] = (image, None, label)
    return Written(common.with_files(study, places))


def _names(groups):
    """Folder name of each group, and what stands before the modality."""
    keys = [(g.cases[0].subject, g.cases[0].visit) for g in groups]
    used, subjects = set(), list(dict.fromkeys(subject for subject, _ in keys))
    for (subject, visit), group in zip(keys, groups, strict=True):
        if _NEW.fullmatch(subject) and re.fullmatch(r"\d{3}", visit or ""):
            name, joint = f"{subject}-{visit}", "-"
        elif _OLD.fullmatch(subject) and visit is None and _old_words(group):
            name, joint = subject, "_"
        else:
            name, joint = None, "-"
        number = 0
        while name is None or name.lower() in used:
            name, joint = f"BraTS-UNI-{subjects.index(subject):05d}-{number:03d}", "-"
            number += 1
        used.add(name.lower())
        yield name, joint


def _old_words(group):
    return all(case.modality in brats.MODALITIES for case in group.cases)
