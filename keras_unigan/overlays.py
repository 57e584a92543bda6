"""Slices of scored cases for the report: which cases are looked at, and what of them is kept."""

import math

import numpy as np

from keras_unigan.aggregation import distinct
from keras_unigan.data import preprocessing

OVERLAY_SLICES = 9
PLANES = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}
"""Plane -> axes of a RAS+ volume that run to the right and up in a picture of it."""


def best_median_worst(candidates):
    """Chooses the cases to look at: per modality the best, the median and the worst by Dice.

    Args:
        candidates: Dictionaries with `modality` and `dice`.

    Returns:
        The chosen ones, each with `rank`; a case has one rank only, cases without Dice have none.
    """
    chosen = []
    for modality in distinct(candidates, "modality"):
        own = [c for c in candidates if c["modality"] == modality and not math.isnan(c["dice"])]
        own.sort(key=lambda c: -c["dice"])
        last = len(own) - 1
        ranks = {0: "best", last // 2: "median", last: "worst"} if last > 1 else {}
        ranks = {0: "best", 1: "worst"} if last == 1 else {0: "only"} if last == 0 else ranks
        chosen += [{**own[place], "rank": rank} for place, rank in ranks.items()]
    return chosen


def _ends(array):
    """The 0.5 and 99.5 percentile of a volume; of several channels their means."""
    found = preprocessing.statistics(array)
    return found[..., 2].mean(), found[..., 3].mean()


def save_overlay(path, scored):
    """Saves the slices of a case that the report draws, compressed.

    In each of `PLANES` the slice with the most labelled foreground (`middle`) and others spread
    over its extent: grey values 0..255 between the 0.5 and 99.5 percentile (`image`), masks of
    `truth` and `prediction`, their places (`slices`); then `spacing` and `names`. Keys of planes
    other than the axial one begin with their name. A picture has its one plane only.

    Args:
        path: `.npz` path.
        scored: `evaluation.ScoredCase` with arrays.
    """
    low, high = _ends(scored.image.array)
    found = {}
    for plane, axes in PLANES.items():
        if plane == "axial" or min(scored.image.shape[axis] for axis in axes) > 1:
            prefix = "" if plane == "axial" else f"{plane}_"
            kept = _slices(scored, axes, low, high)
            found |= {f"{prefix}{key}": value for key, value in kept.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        **found,
        spacing=scored.image.spacing,
        names=np.array([row["name"] for row in scored.rows]),
    )


def _slices(scored, axes, low, high):
    """Slices whose sides are two axes: image and masks `(n[, names], across, up)`."""
    axis = ({0, 1, 2} - set(axes)).pop()
    foreground = scored.truth.any(0) if scored.truth.any() else scored.prediction.any(0)
    area = foreground.sum(axes)
    found = np.flatnonzero(area) if area.any() else np.arange(len(area))
    middle = int(np.argmax(area)) if area.any() else len(area) // 2
    spread = np.linspace(found[0], found[-1], OVERLAY_SLICES).round().astype(int)
    slices = np.unique([*spread, middle])
    shown = scored.image.array.take(slices, axis).astype(np.float32)
    if shown.ndim > 3:  # the report draws one grey value a voxel
        shown = shown.mean(axis=-1)
    grey = (shown - low) / max(high - low, 1e-6)
    return {
        "image": np.moveaxis((grey.clip(0, 1) * 255).astype(np.uint8), axis, 0),
        "truth": np.moveaxis(scored.truth.take(slices, axis + 1), axis + 1, 0),
        "prediction": np.moveaxis(scored.prediction.take(slices, axis + 1), axis + 1, 0),
        "slices": slices,
        "middle": middle,
    }
