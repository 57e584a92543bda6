"""Scores of two masks from voxel counts: overlap and volume."""

import dataclasses
import math

import numpy as np


def dice(truth, prediction):
    """Dice of two masks: twice the common voxels over the voxels of both.

    Returns:
        A float in 0..1; NaN when both masks are empty, 0 when one is.
    """
    truth, prediction = masks_of(truth, prediction)
    size = np.count_nonzero(truth) + np.count_nonzero(prediction)
    return 2.0 * np.count_nonzero(truth & prediction) / size if size else float("nan")


def iou(truth, prediction):
    """Intersection over union (Jaccard index) of two masks.

    Returns:
        A float in 0..1; NaN when both masks are empty, 0 when one is.
    """
    truth, prediction = masks_of(truth, prediction)
    union = np.count_nonzero(truth | prediction)
    return np.count_nonzero(truth & prediction) / union if union else float("nan")


@dataclasses.dataclass(frozen=True)
class VolumeError:
    """Volumes of two masks, and how far the predicted one is off.

    Attributes:
        true_ml: Volume of the truth in ml.
        predicted_ml: Volume of the prediction in ml.
    """

    true_ml: float
    predicted_ml: float

    @property
    def signed_ml(self):
        """Predicted minus true volume in ml; positive for too much."""
        return self.predicted_ml - self.true_ml

    @property
    def relative(self):
        """Signed error over the true volume: -1 is nothing found; NaN for an empty truth."""
        return self.signed_ml / self.true_ml if self.true_ml else math.nan


def volume_error(truth, prediction, spacing):
    """Volumes in ml and their signed and relative error.

    An error of volume says nothing about place, and a missed object (-1) is not its worst value:
    look at it beside an overlap, and rank models by `volume_similarity`.

    Args:
        truth: Mask.
        prediction: Mask of the same shape.
        spacing: mm per voxel of each axis; of a mask `(x, y)` the volume is that of 1 mm depth.

    Returns:
        `VolumeError`.
    """
    truth, prediction = masks_of(truth, prediction)
    if len(spacing) != truth.ndim:
        raise ValueError(f"Expected {truth.ndim} values in spacing, got {tuple(spacing)}.")
    voxel = math.prod(float(s) for s in spacing) / 1000
    return VolumeError(np.count_nonzero(truth) * voxel, np.count_nonzero(prediction) * voxel)


def volume_similarity(truth, prediction):
    """`1 - |P - T| / (P + T)` of the voxels of both: 1 for equal volumes, 0 where one is empty.

    Returns:
        A float in 0..1; NaN when both masks are empty.

    Reference: Taha and Hanbury 2015, Metrics for evaluating 3D medical image segmentation,
    doi:10.1186/s12880-015-0068-x.
    """
    truth, prediction = masks_of(truth, prediction)
    true, predicted = np.count_nonzero(truth), np.count_nonzero(prediction)
    size = true + predicted
    return 1 - abs(true - predicted) / size if size else float("nan")


def masks_of(truth, prediction):
    """Both as Boolean arrays of one shape."""
    truth, prediction = np.asarray(truth).astype(bool), np.asarray(prediction).astype(bool)
    if truth.shape != prediction.shape:
        raise ValueError(
            f"Expected truth and prediction of one shape, got {truth.shape} and {prediction.shape}."
        )
    return truth, prediction
