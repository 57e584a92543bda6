"""Sliding windows over a volume: where they lie, how much they weigh, and the sum of their answers.

NumPy only, so that an exported graph can repeat the same weights.
"""

import itertools
import math

import numpy as np


def window_weights(size, patch, overlap=0.5):
    """Windows along one axis: where they start and how much their voxels weigh.

    Weights are Gaussian around the window's middle with a standard deviation of an eighth of the
    window, divided by their sum over all windows that hold the voxel. So they add up to 1 at every
    voxel, and over several axes the weights are the product of those of each axis.

    Args:
        size: Voxels of the axis, at least `patch`.
        patch: Voxels of a window.
        overlap: Share of the window by which two neighbours overlap at least.

    Returns:
        `(starts, weights)`: integers `(windows,)` and float32 `(windows, patch)`.
    """
    step = max(patch * (1 - overlap), 1)
    count = 1 + math.ceil((size - patch) / step)
    starts = np.arange(count) * (size - patch) // max(count - 1, 1)
    offsets = (np.arange(patch) - (patch - 1) / 2) / (patch / 8)
    gaussian = np.exp(-(offsets**2) / 2)
    total = np.zeros(size)
    for start in starts:
        total[start : start + patch] += gaussian
    weights = [gaussian / total[start : start + patch] for start in starts]
    return starts, np.stack(weights).astype(np.float32)


def sliding_window(volume, predict, patch_size, overlap=0.5, batch_size=4, slices=1, progress=None):
    """Probabilities of a whole volume from overlapping windows with Gaussian weights.

    2-D windows go over every slice `volume[:, :, k]`, batched across slices. Where the volume is
    smaller than the window, its minimum is put around it and cut off again; of a stack of slices,
    also above and below the volume, as in `data.sampling.example`.

    Args:
        volume: Raw intensities, `(x, y, z)`, or `(x, y, z, channels)`.
        predict: Function from raw patches `(batch, *patch, channels)`, float32, to probabilities
            `(batch, *patch, outputs)`. The last batch may be smaller.
        patch_size: Window in voxels, 2 or 3 values.
        overlap: Share of the window by which neighbours overlap at least, 0 <= overlap < 1.
        batch_size: Windows per call of `predict`.
        slices: Odd number of slices that a 2-D window of one channel shows as its channels, the
            segmented one in the middle.
        progress: Called with the windows done and their number, after each batch.

    Returns:
        float32 `(x, y, z, outputs)`.
    """
    flat = len(patch_size) == 2
    window = (*patch_size, 1) if flat else tuple(patch_size)
    if volume.ndim not in (3, 4) or len(window) != 3 or batch_size < 1 or not 0 <= overlap < 1:
        raise ValueError(
            "Expected a volume of 3 axes, a patch of 2 or 3, batch_size >= 1 and 0 <= overlap < 1, "
            f"got {volume.shape}, {tuple(patch_size)}, {batch_size} and {overlap}."
        )
    if slices < 1 or slices % 2 == 0 or (slices > 1 and (volume.ndim > 3 or not flat)):
        raise ValueError(
            "Expected slices to be odd, and 1 but for 2-D windows of one channel, "
            f"got {slices} of {volume.shape} for {tuple(patch_size)}."
        )
    grid = volume.shape[:3]
    missing = [max(w - n, 0) for n, w in zip(grid, window, strict=True)]
    margins = [(m // 2, m - m // 2) for m in missing]
    around = [*margins, (0, 0)] if volume.ndim > 3 else margins
    padded = np.pad(np.asarray(volume, np.float32), around, constant_values=volume.min())
    sizes = padded.shape[:3]
    axes = [window_weights(n, w, overlap) for n, w in zip(sizes, window, strict=True)]
    if slices > 1:
        beside = [(0, 0), (0, 0), (slices // 2,) * 2]
        padded = np.pad(padded, beside, constant_values=volume.min())
    tiles = list(itertools.product(*(range(len(starts)) for starts, _ in axes)))
    result = None
    for begin in range(0, len(tiles), batch_size):
        batch = tiles[begin : begin + batch_size]
        starts = [[s[i] for (s, _), i in zip(axes, tile, strict=True)] for tile in batch]
        boxes = [
            tuple(slice(s, s + w) for s, w in zip(start, window, strict=True)) for start in starts
        ]
        # In a volume with slices put around it, a window begins where its stack does.
        shown = [(x, y, slice(z.start, z.stop + slices - 1)) for x, y, z in boxes]
        patches = np.stack([padded[box] for box in shown])
        if volume.ndim == 3 and not flat:
            patches = patches[..., None]
        elif volume.ndim > 3 and flat:
            patches = patches[:, :, :, 0]
        probabilities = np.asarray(predict(patches))
        if probabilities.shape[:-1] != patches.shape[:-1]:
            raise ValueError(
                f"Expected predict to keep batch and patch {patches.shape[:-1]}, "
                f"got {probabilities.shape}."
            )
        probabilities = probabilities[:, :, :, None] if flat else probabilities
        if result is None:
            result = np.zeros((*sizes, probabilities.shape[-1]), np.float32)
        for tile, box, values in zip(batch, boxes, probabilities, strict=True):
            x, y, z = (w[i] for (_, w), i in zip(axes, tile, strict=True))
            weight = x[:, None, None] * y[:, None] * z
            result[box] += values * weight[..., None]
        if progress is not None:
            progress(begin + len(batch), len(tiles))
    inside = tuple(slice(b, b + n) for (b, _), n in zip(margins, grid, strict=True))
    return result[inside]
