"""Labelled cases of a study, read as they are scored: on the scan's own grid, in RAS+."""

import os

import numpy as np

from keras_unigan.config import IGNORE, SPLITS
from keras_unigan.data import nifti, preprocessing, volumes
from keras_unigan.errors import CodedError


def labelled(study, split):
    """Cases of a split that have a label map.

    Raises:
        CodedError: KUG-T02 for another split.
    """
    if split not in SPLITS:
        raise CodedError("KUG-T02", "split", f"{split!r}", f"one of {list(SPLITS)}")
    return [c for c in study.cases if c.split == split and c.label is not None]


def check_labels(plan, study):
    """Refuses a study of other labels than those of a model.

    Raises:
        CodedError: KUG-T04.
    """
    if plan.labels != study.labels:
        raise CodedError(
            "KUG-T04",
            "labels",
            f"a model of {_scheme(plan.labels)}",
            f"{_scheme(study.labels)} as in the study",
            "Scores would compare different things.",
            "use the study that the model was trained on, or train again",
        )


def _scheme(labels):
    return {name: list(labels.file_values(name)) for name in labels.foreground}


def read_case(study, case, plan):
    """A labelled case as it is scored.

    Args:
        study: `config.Study`.
        case: One of its cases, with a label map.
        plan: `config.Plan` of the model.

    Returns:
        `(volume, image, index_map)`: `data.nifti.Volume` on the native grid and in RAS+, and uint8
        label-map indices in RAS+.

    Raises:
        CodedError: KUG-D01 to KUG-D12, KUG-D36 and KUG-E01 for a case that cannot be used.
    """
    path = study.path(case.image)
    volume = volumes.read_image(path, plan.channels, case.channel)
    preprocessing.check_image(volume, case.id)
    image, label = nifti.to_ras(volume), nifti.to_ras(volumes.read(study.path(case.label)))
    preprocessing.check_pair(image, label, case.id)
    return volume, image, index_map_of(label, plan.labels, case)


def index_map_of(label, labels, case):
    """Label-map indices of a label map in RAS+; what was not annotated is background."""
    index_map = preprocessing.encode_labels(label.array, labels, case.id)
    return preprocessing.forget_unannotated(index_map, labels, case.annotated)


def true_masks(index_map, labels):
    """Mask of each scored name from label-map indices; 255 is in none."""
    membership = np.zeros((len(labels.names), IGNORE + 1), bool)
    membership[:, : len(labels.values)] = np.transpose(labels.membership)
    first = len(labels.names) - len(labels.foreground)
    return np.stack([row[index_map] for row in membership[first:]])


def public_message(error, study):
    """Message of an error for results, which are passed around: without the study's own folder."""
    return str(error).replace(os.path.join(study.folder, ""), "")
