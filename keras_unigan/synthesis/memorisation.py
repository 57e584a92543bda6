"""How near made images are to what was trained on: a copy of a patient is no synthetic image."""

import numpy as np
import scipy.ndimage

SIDE = 32
"""Sides of the thumbnails that are compared."""
PER_CASE = 16
"""Slices of a training case that are compared with, spread over it."""
NEAR = 0.5
"""Share of the nearest distance between real cases below which a made image counts as a copy."""


def thumbnail(image):
    """A slice in [-1, 1], brought to `SIDE` x `SIDE` and to mean 0 and deviation 1, flat."""
    image = np.asarray(image, np.float32)
    image = image.mean(-1) if image.ndim > 2 else image
    factors = [SIDE / side for side in image.shape]
    smooth = scipy.ndimage.gaussian_filter(image, [max(0.0, 0.5 / f - 0.5) for f in factors])
    small = scipy.ndimage.zoom(smooth, factors, order=1, grid_mode=True, mode="nearest")
    return ((small - small.mean()) / max(small.std(), 1e-6)).ravel()


def slices(image, most=PER_CASE):
    """Thumbnails of slices that are not empty, spread over a volume `(x, y, z)`."""
    used = np.flatnonzero(np.ptp(image, axis=(0, 1)) > 0)
    if not len(used):
        return np.zeros((0, SIDE**2))
    chosen = used[np.unique(np.linspace(0, len(used) - 1, most).astype(int))]
    return np.stack([thumbnail(image[:, :, k]) for k in chosen])


class Audit:
    """Nearest distances to the training cases of each modality.

    Distances are root mean square differences of thumbnails of slices; see `thumbnail`. What is
    near is said by the training cases themselves: the distance of each to the nearest other one.

    Args:
        images: Function from a modality to pairs of case and image `(x, y, z)` in [-1, 1].
    """

    def __init__(self, images):
        self._images, self._banks = images, {}

    def bank(self, modality):
        """Thumbnails, the case of each, and the median distance of a case to its nearest one."""
        if modality not in self._banks:
            rows, names = [], []
            for case, image in self._images(modality):
                own = slices(image)
                rows.append(own)
                names += [case] * len(own)
            rows = np.concatenate(rows) if rows else np.zeros((0, SIDE**2))
            names = np.array(names)
            usual = [
                nearest(rows[names == name], rows[names != name])[0]
                for name in sorted(set(names.tolist()))
                if (names != name).any()
            ]
            self._banks[modality] = rows, names, float(np.median(usual)) if usual else None
        return self._banks[modality]

    def __call__(self, image, modality):
        """Dict of the nearest training case of a made image.

        Args:
            image: `(x, y, z)` in [-1, 1].
            modality: Its modality.

        Returns:
            `distance`, `case`, `usual` (median distance of a training case to the nearest other;
            None for a single case) and `copy` (whether it is below `NEAR` of that; None without).
        """
        rows, names, usual = self.bank(modality)
        own = slices(image)
        if not len(rows) or not len(own):
            return {"distance": None, "case": None, "usual": usual, "copy": None}
        distance, place = nearest(own, rows)
        near = None if usual is None else bool(distance < NEAR * usual)
        return {"distance": distance, "case": str(names[place]), "usual": usual, "copy": near}


def nearest(rows, others):
    """Least root mean square difference of any row to any other, and the place of that other."""
    squares = (rows**2).sum(1)[:, None] + (others**2).sum(1)[None] - 2 * rows @ others.T
    place = int(np.argmin(squares.min(axis=0)))
    return float(np.sqrt(max(squares.min(), 0.0) / rows.shape[1])), place
