"""What a prediction is worth: Dice while training, scores of masks on their grid, and of images.

A voxel is on the surface of a mask when one of its face neighbours is not in the mask; what lies
outside the array is not in the mask. Distances run between voxel centres, in mm. `docs/metrics.md`
has every definition, and how far other implementations agree.
"""

from keras_unigan.metrics.edges import LEAST_AXIS, edge_nmi, shift_mm
from keras_unigan.metrics.images import (
    SSIM_RADIUS,
    copy_ratio,
    hallucination,
    mae,
    nmi,
    psnr,
    ssim,
)
from keras_unigan.metrics.lesions import LesionScores, lesion_scores
from keras_unigan.metrics.overlap import dice, iou, volume_error, volume_similarity
from keras_unigan.metrics.pooled import Dice, harden
from keras_unigan.metrics.surface import (
    HD95,
    assd,
    diagonal,
    directed_distances,
    hd95,
    nsd,
    surface_scores,
)

__all__ = [
    "HD95",
    "LEAST_AXIS",
    "SSIM_RADIUS",
    "Dice",
    "LesionScores",
    "assd",
    "copy_ratio",
    "diagonal",
    "dice",
    "directed_distances",
    "edge_nmi",
    "hallucination",
    "harden",
    "hd95",
    "iou",
    "lesion_scores",
    "mae",
    "nmi",
    "nsd",
    "psnr",
    "shift_mm",
    "ssim",
    "surface_scores",
    "volume_error",
    "volume_similarity",
]
