"""LOSSES: pure functions of tensors, float32 inside."""

from keras_unigan.losses.consistency import multi_scale_l1_flat, multi_scale_l1_level
from keras_unigan.losses.segmentation import (
    class_cross_entropy,
    region_cross_entropy,
    soft_dice,
)

LOSSES = {
    "soft_dice": soft_dice,
    "class_cross_entropy": class_cross_entropy,
    "region_cross_entropy": region_cross_entropy,
    "multi_scale_l1_level": multi_scale_l1_level,
    "multi_scale_l1_flat": multi_scale_l1_flat,
}
