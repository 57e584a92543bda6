"""Splits that cannot leak: by subject, balanced, in folds, by site, one modality a subject."""

from keras_unigan.data.splits.assignment import Assignment, Place, Scheme, path_of
from keras_unigan.data.splits.balance import one_modality
from keras_unigan.data.splits.schemes import assign, split, take_fold, whole

__all__ = [
    "Assignment",
    "Place",
    "Scheme",
    "assign",
    "one_modality",
    "path_of",
    "split",
    "take_fold",
    "whole",
]
