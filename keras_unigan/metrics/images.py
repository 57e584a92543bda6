"""How alike two images are: MAE, PSNR, SSIM and NMI; and what a translation invents."""

import numpy as np
from scipy import ndimage

from keras_unigan.metrics.overlap import masks_of

SSIM_RADIUS, SSIM_SIGMA = 5, 1.5


def mae(reference, image, mask=None):
    """Mean absolute difference of two images; NaN where the mask is empty.

    Args:
        reference: The true image, any shape.
        image: Image of the same shape.
        mask: Voxels that count, or None for all.
    """
    reference, image = _images(reference, image, mask)
    return float(np.abs(reference - image).mean()) if reference.size else float("nan")


def psnr(reference, image, data_range, mask=None):
    """Peak signal-to-noise ratio in dB: `10 log10(data_range^2 / mean squared difference)`.

    Args:
        reference: See `mae`; also for `image` and `mask`.
        image: As said.
        data_range: Largest minus smallest value that an image can have.
        mask: As said.

    Returns:
        A float, infinite for equal images.
    """
    reference, image = _images(reference, image, mask)
    if not reference.size:
        return float("nan")
    error = np.mean((reference - image) ** 2)
    return float(10 * np.log10(data_range**2 / error)) if error else float("inf")


def ssim(reference, image, data_range, mask=None):
    """Structural similarity, the mean over voxels whose window lies inside the image.

    The window is a Gaussian of standard deviation 1.5 cut to 11 voxels, along every axis of at
    least 11 voxels: a volume of few slices is compared slice by slice.

    Args:
        reference: See `psnr`; `(x, y)` or `(x, y, z)`.
        image: As said.
        data_range: As said.
        mask: Voxels whose similarity counts; the windows see all voxels.

    Returns:
        A float up to 1; NaN where no voxel counts.

    Reference: Wang et al. 2004, Image quality assessment, doi:10.1109/TIP.2003.819861.

    Raises:
        ValueError: Where no axis has 11 voxels.
    """
    counted = np.ones(np.shape(reference), bool) if mask is None else np.asarray(mask, bool)
    x, y = (np.asarray(a, np.float64) for a in (reference, image))
    if x.shape != y.shape or counted.shape != x.shape:
        raise ValueError(f"Expected images and mask of one shape, got {x.shape} and {y.shape}.")
    axes = [axis for axis, size in enumerate(x.shape) if size > 2 * SSIM_RADIUS]
    if not axes:
        raise ValueError(f"Expected an axis of at least 11 voxels, got shape {x.shape}.")

    def smooth(values):
        for axis in axes:
            values = ndimage.gaussian_filter1d(values, SSIM_SIGMA, axis, radius=SSIM_RADIUS)
        return values

    mean_x, mean_y = smooth(x), smooth(y)
    small, contrast = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    covariance = smooth(x * y) - mean_x * mean_y
    variances = smooth(x * x + y * y) - mean_x**2 - mean_y**2
    luminance = (2 * mean_x * mean_y + small) / (mean_x**2 + mean_y**2 + small)
    values = luminance * (2 * covariance + contrast) / (variances + contrast)
    margins = [SSIM_RADIUS if axis in axes else 0 for axis in range(x.ndim)]
    inside = tuple(slice(m, n - m) for m, n in zip(margins, x.shape, strict=True))
    chosen = values[inside][counted[inside]]
    return float(chosen.mean()) if chosen.size else float("nan")


def nmi(reference, image, mask=None, bins=64):
    """Normalised mutual information `(H(x) + H(y)) / H(x, y)`: 1 independent, 2 one determines.

    It does not ask for the same intensities, only for one to tell the other.

    Args:
        reference: See `mae`; also for `image` and `mask`.
        image: As said.
        mask: As said.
        bins: Bins of the histogram along each image's own range.

    Returns:
        A float in 1..2; NaN for two constant images.

    Reference: Studholme et al. 1999, An overlap invariant entropy measure of 3D medical image
    alignment, doi:10.1016/S0031-3203(98)00091-0.
    """
    reference, image = _images(reference, image, mask)
    if not reference.size:
        return float("nan")
    share = np.histogram2d(reference, image, bins)[0] / reference.size
    single, joint = (_entropy(share.sum(1)) + _entropy(share.sum(0))), _entropy(share)
    return float(single / joint) if joint > 0 else float("nan")


def _entropy(share):
    share = share[share > 0]
    return float(-np.sum(share * np.log(share)))


def _images(reference, image, mask):
    """Values of both inside the mask, flat, float64."""
    reference, image = np.asarray(reference, np.float64), np.asarray(image, np.float64)
    if reference.shape != image.shape or (mask is not None and np.shape(mask) != image.shape):
        raise ValueError(
            f"Expected images and mask of one shape, got {reference.shape} and {image.shape}."
        )
    chosen = slice(None) if mask is None else np.asarray(mask, bool).ravel()
    return reference.ravel()[chosen], image.ravel()[chosen]


UNCHANGED = 0.05
"""Change of a normalised voxel, of a range of 2, up to which it counts as copied."""


def copy_ratio(source, translation, mask=None, tolerance=UNCHANGED):
    """Share of voxels that a translation leaves as they were.

    Args:
        source: Normalised image, any shape.
        translation: Image of the same shape.
        mask: Voxels that count, or None for all.
        tolerance: Largest change of a voxel that counts as none.

    Returns:
        A float in 0..1, 1 for a copy; NaN where the mask is empty. Tissue that looks alike in both
        modalities is rightly copied: compare with the ratio of a true image of the target.
    """
    source, translation = _images(source, translation, mask)
    return (
        float(np.mean(np.abs(source - translation) <= tolerance)) if source.size else float("nan")
    )


def hallucination(translated, original, truth=None):
    """Share of what a segmentor finds in a translation that is not in its source.

    A voxel is hallucinated when the segmentor puts it into the mask in the translation, and neither
    the same segmentor in the source image nor the truth does. So the segmentor's own mistakes, made
    in both images, are not blamed on the translation.

    Args:
        translated: Mask in the translation.
        original: Mask of the same segmentor in the source image.
        truth: True mask, where there is one.

    Returns:
        A float in 0..1; NaN where nothing is found in the translation.
    """
    translated, original = masks_of(translated, original)
    known = original if truth is None else original | masks_of(truth, original)[0]
    found = np.count_nonzero(translated)
    return np.count_nonzero(translated & ~known) / found if found else float("nan")
