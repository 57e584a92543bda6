"""Dice while training (`Dice`), and Dice, HD95 and ASSD of masks on their grid (arrays).

A voxel is on the surface of a mask when one of its face neighbours is not in the mask; what lies
outside the array is not in the mask. Distances run between voxel centres, in mm.
"""

import keras
import numpy as np
from scipy import ndimage


@keras.saving.register_keras_serializable(package="keras_unigan")
class Dice(keras.metrics.Metric):
    """Dice of hard predictions, from voxel counts summed over the whole data set.

    Counts are kept per modality and output, so the size of the batch does not change the result.
    `result()` is a dictionary: `dice` (mean over modalities of the mean over outputs) and
    `dice_<modality>` (mean over outputs). An output that neither the truth nor the prediction holds
    has no Dice and is left out of its mean; a mean of nothing is NaN. Samples of unknown modality
    count as one more modality in `dice`.

    Args:
        modalities: Names in the order of their domain index.
        names: Name of each network output.
        background: Whether output 0 is the background, which is not scored.
        name: Name of the metric and of its entries.
    """

    def __init__(self, modalities, names, background=True, name="dice", dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.modalities, self.names = tuple(modalities), tuple(names)
        self.background = background
        # (modality and "unknown", output, [true positive, false positive, false negative])
        self.counts = self.add_variable(
            (len(self.modalities) + 1, len(self.names), 3), "zeros", name="counts"
        )

    @classmethod
    def from_plan(cls, plan, name="dice"):
        """Builds the metric for a `config.Plan`."""
        return cls(plan.modalities, plan.labels.names, not plan.labels.overlapping, name=name)

    def update_state(self, truth, prediction, valid, domain):
        """Adds a batch.

        Args:
            truth: One-hot (or multi-hot, for regions) truth, `(batch, *spatial, outputs)`.
            prediction: Hard prediction of the same shape (see `harden`).
            valid: 1 where the voxel is labelled, `(batch, *spatial)`.
            domain: Domain index of each sample, `(batch,)`; negative for unknown.
        """
        ops = keras.ops
        truth, prediction = ops.cast(truth, self.dtype), ops.cast(prediction, self.dtype)
        valid = ops.cast(valid, self.dtype)[..., None]
        axes = tuple(range(1, len(truth.shape) - 1))
        hit = ops.sum(valid * truth * prediction, axes)
        predicted, true = ops.sum(valid * prediction, axes), ops.sum(valid * truth, axes)
        counts = ops.stack([hit, predicted - hit, true - hit], axis=-1)
        rows = len(self.modalities) + 1
        domain = ops.where(domain < 0, rows - 1, domain)
        # Not a matrix product: reduced-precision ones would round counts on a GPU.
        share = ops.one_hot(domain, rows, dtype=self.dtype)[:, :, None, None]
        self.counts.assign(self.counts + ops.sum(share * counts[:, None], axis=0))

    def table(self):
        """Dice per modality (and unknown, last) and scored output; NaN where there is none."""
        counts = self.counts[:, int(self.background) :]
        size = 2 * counts[..., 0] + counts[..., 1] + counts[..., 2]
        return keras.ops.where(
            size > 0, 2 * counts[..., 0] / keras.ops.maximum(size, 1), float("nan")
        )

    def result(self):
        """Dictionary of `dice` and `dice_<modality>`; scalars in 0..1 or NaN."""
        rows = _mean_of_finite(self.table())
        result = {self.name: _mean_of_finite(rows)}
        for index, modality in enumerate(self.modalities):
            result[f"{self.name}_{modality}"] = rows[index]
        return result

    def get_config(self):
        """Constructor arguments."""
        return {
            "modalities": self.modalities,
            "names": self.names,
            "background": self.background,
            "name": self.name,
            "dtype": self.dtype,
        }


def _mean_of_finite(values):
    """Mean over the last axis without NaN; NaN where nothing is left."""
    ops = keras.ops
    good = ops.logical_not(ops.isnan(values))
    count = ops.sum(ops.cast(good, values.dtype), axis=-1)
    total = ops.sum(ops.where(good, values, 0.0), axis=-1)
    return ops.where(count > 0, total / ops.maximum(count, 1), float("nan"))


def harden(probabilities, overlapping):
    """Hard prediction of 0 and 1, `(batch, *spatial, outputs)`, from probabilities.

    Args:
        probabilities: `(batch, *spatial, outputs)`.
        overlapping: True for regions (each above one half), False for classes (one-hot argmax).
    """
    if overlapping:
        return keras.ops.cast(probabilities > 0.5, probabilities.dtype)
    best = keras.ops.argmax(probabilities, axis=-1)
    return keras.ops.one_hot(best, probabilities.shape[-1], dtype=probabilities.dtype)


def dice(truth, prediction):
    """Dice of two masks: twice the common voxels over the voxels of both.

    Returns:
        A float in 0..1; NaN when both masks are empty, 0 when one is.
    """
    truth, prediction = _masks(truth, prediction)
    size = np.count_nonzero(truth) + np.count_nonzero(prediction)
    return 2.0 * np.count_nonzero(truth & prediction) / size if size else float("nan")


def hd95(truth, prediction, spacing):
    """95th percentile of the pooled two-directional surface distances, in mm.

    See `surface_scores` for arguments and empty masks.
    """
    return surface_scores(truth, prediction, spacing)[0]


def assd(truth, prediction, spacing):
    """Mean of the surface distances of both directions, in mm.

    See `surface_scores` for arguments and empty masks.
    """
    return surface_scores(truth, prediction, spacing)[1]


def surface_scores(truth, prediction, spacing):
    """HD95 and ASSD at once (one pair of distance maps).

    Args:
        truth: Mask, `(x, y)` or `(x, y, z)`; an axis of one voxel is left out, so that a one-slice
            volume is measured in its plane.
        prediction: Mask of the same shape.
        spacing: mm per voxel of each axis.

    Returns:
        `(hd95, assd)` in mm: NaN when both masks are empty; when one is, the diagonal of the array,
        which no distance inside it can exceed.
    """
    truth, prediction = _masks(truth, prediction)
    if len(spacing) != truth.ndim:
        raise ValueError(f"Expected {truth.ndim} values in spacing, got {tuple(spacing)}.")
    if not truth.any() and not prediction.any():
        return float("nan"), float("nan")
    thick = [axis for axis, size in enumerate(truth.shape) if size > 1]
    spacing = np.asarray([spacing[axis] for axis in thick], float)
    shape = tuple(truth.shape[axis] for axis in thick)
    if not truth.any() or not prediction.any():
        diagonal = float(np.linalg.norm(np.asarray(shape) * spacing))
        return diagonal, diagonal
    if not thick:
        return 0.0, 0.0
    distances = _surface_distances(truth.reshape(shape), prediction.reshape(shape), spacing)
    return float(np.percentile(distances, 95)), float(np.mean(distances))


def _masks(truth, prediction):
    """Both as Boolean arrays of one shape."""
    truth, prediction = np.asarray(truth).astype(bool), np.asarray(prediction).astype(bool)
    if truth.shape != prediction.shape:
        raise ValueError(
            f"Expected truth and prediction of one shape, got {truth.shape} and {prediction.shape}."
        )
    return truth, prediction


def _surface_distances(truth, prediction, spacing):
    """Distances of each surface voxel to the other surface, both directions pooled."""
    # Outside the box around both masks there is no surface, so the distance maps stop there.
    box = ndimage.find_objects((truth | prediction).view(np.uint8))[0]
    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in (truth[box], prediction[box])]
    distances = [
        ndimage.distance_transform_edt(~to, sampling=spacing)[of]
        for of, to in (surfaces, surfaces[::-1])
    ]
    return np.concatenate(distances)


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
    translated, original = _masks(translated, original)
    known = original if truth is None else original | _masks(truth, original)[0]
    found = np.count_nonzero(translated)
    return np.count_nonzero(translated & ~known) / found if found else float("nan")
