"""Raw intensities to [-1, 1]: the one layer that does it, and what it is made of.

It runs inside `tf.data` for training and inside the SavedModel for serving, so that the two cannot
drift.
"""

import dataclasses

import keras
import numpy as np

from keras_unigan.config import UNKNOWN

LOW_QUANTILE, HIGH_QUANTILE = 0.005, 0.995


def _number(parameters, name):
    """A parameter as float32: one number, or of several channels a number for each."""
    return np.asarray(parameters[name], np.float32)


def _data_set(statistics, parameters):
    """Window of the whole data set: the z-score limits of `parameters`, in raw intensities."""
    mean, sd, low, high = (np.float64(parameters[n]) for n in ("mean", "sd", "low", "high"))
    one = keras.ops.ones_like(statistics[..., 0])
    return np.float32(mean + sd * low) * one, np.float32(mean + sd * high) * one


def _own_scores(statistics, parameters):
    """The same z-score limits, but counted in the volume's own mean and standard deviation."""
    mean, sd = statistics[..., 0], statistics[..., 1]
    return mean + sd * _number(parameters, "low"), mean + sd * _number(parameters, "high")


def _own_gain(statistics, parameters):
    """From 0, which means none in every volume, to the upper limit of `_own_scores`."""
    _, high = _own_scores(statistics, parameters)
    return keras.ops.zeros_like(high), high


def _own_percentiles(statistics, parameters):
    """The volume's own 0.5 and 99.5 percentile."""
    return statistics[..., 2], statistics[..., 3]


# scheme -> function(statistics (..., 4), parameters) -> raw intensities that become -1 and 1.
# Clipping to the percentiles, z-scoring and mapping to [-1, 1] is one affine map and one clip, so a
# scheme only has to say where the two ends lie.
NORMALIZATIONS = {
    "ct": _data_set,  # Hounsfield units
    "mr": _own_scores,
    "xray": _own_scores,
    "pet_suv": _data_set,  # the planner puts its lower end at an uptake of 0
    "spect_counts": _own_gain,
    "ultrasound": _own_scores,
    "microscopy": _own_percentiles,
}


def volume_statistics(image, per_channel=False):
    """Mean, standard deviation, 0.5 and 99.5 percentile of what is not background.

    Equals `data.preprocessing.statistics` for one volume; here in tensor ops for whole batches. The
    background is the value that all corner voxels share; without one, all voxels count.

    Args:
        image: `(batch, *spatial, channels)`, raw intensities.
        per_channel: Whether each channel has its own; else all count together.

    Returns:
        float32 `(batch, 4)`, or `(batch, channels, 4)`.
    """
    image = keras.ops.cast(image, "float32")
    if per_channel:
        channels = image.shape[-1]
        each = [volume_statistics(image[..., c : c + 1]) for c in range(channels)]
        return keras.ops.stack(each, axis=1)
    corners = image
    for axis in range(1, len(image.shape) - 1):
        corners = keras.ops.take(corners, [0, -1], axis=axis)
    batch = keras.ops.shape(image)[0]
    corners = keras.ops.reshape(corners, (batch, -1))
    values = keras.ops.reshape(image, (batch, -1))
    background = corners[:, :1]
    shared = keras.ops.all(corners == background, axis=1, keepdims=True)
    counted = keras.ops.logical_not(keras.ops.logical_and(shared, values == background))
    # A volume of one value would have nothing left.
    counted = keras.ops.logical_or(counted, ~keras.ops.any(counted, axis=1, keepdims=True))
    weight = keras.ops.cast(counted, "float32")
    total = keras.ops.sum(weight, axis=1)
    mean = keras.ops.sum(values * weight, axis=1) / total
    variance = keras.ops.sum(weight * (values - mean[:, None]) ** 2, axis=1) / total
    # Background sorts behind everything that counts; ranks then run over the first `total` values.
    ordered = keras.ops.sort(keras.ops.where(counted, values, float("inf")), axis=1)
    percentiles = []
    for quantile in (LOW_QUANTILE, HIGH_QUANTILE):
        rank = quantile * (total - 1)
        below = keras.ops.floor(rank)
        above = keras.ops.minimum(below + 1, total - 1)
        ends = keras.ops.stack([below, above], axis=1)
        found = keras.ops.take_along_axis(ordered, keras.ops.cast(ends, "int32"), axis=1)
        percentiles.append(found[:, 0] + (rank - below) * (found[:, 1] - found[:, 0]))
    return keras.ops.stack([mean, keras.ops.sqrt(variance), *percentiles], axis=1)


EQUAL_PARTS = 32
"""Parts of equal size that `equalize` cuts the voxels of an image into."""

MOST_SORTED = 1 << 16
"""Of more voxels than that, `equalize` sorts evenly spaced ones."""


def equalize(image):
    """Each intensity's rank among those of its image: a histogram that is flat.

    Background, -1 or less, stays -1 and does not count. The rest is cut into `EQUAL_PARTS` parts of
    equally many voxels, and each part is mapped linearly onto its share of [-1, 1]. Whatever
    monotone window, gain or gamma an image comes in, the result is the same; a window too wide for
    the tissue (CT) gives it back its contrast.

    Args:
        image: `(batch, *spatial, channels)` in [-1, 1]; all channels count together.

    Returns:
        The same shape, float32. It passes no gradient: ranks have none that helps.

    Reference: Pizer et al. 1987, Adaptive histogram equalization and its variations,
        doi:10.1016/S0734-189X(87)80186-X (the global form).
    """
    image = keras.ops.stop_gradient(keras.ops.cast(image, "float32"))
    batch = keras.ops.shape(image)[0]
    values = keras.ops.reshape(image, (batch, -1))
    step = keras.ops.maximum(keras.ops.shape(values)[1] // MOST_SORTED, 1)
    # Sliced by a tensor, its rank is not known any more.
    values = keras.ops.reshape(values[:, ::step], (batch, -1))
    counted = values > -1.0
    last = keras.ops.sum(keras.ops.cast(counted, "float32"), axis=1, keepdims=True) - 1.0
    ordered = keras.ops.sort(keras.ops.where(counted, values, 1.0), axis=1)
    share = keras.ops.linspace(0.0, 1.0, EQUAL_PARTS + 1)[None]
    rank = keras.ops.cast(keras.ops.maximum(share * last, 0.0), "int32")
    edges = keras.ops.take_along_axis(ordered, rank, axis=1)
    shape = (-1, *[1] * (len(image.shape) - 1))

    def add_part(part, total):
        ends = keras.ops.take(edges, keras.ops.stack([part, part + 1]), axis=1)
        low, high = (keras.ops.reshape(ends[:, i], shape) for i in (0, 1))
        # A part of one value has no width: it is a step.
        width = keras.ops.maximum(high - low, 1e-6)
        return total + keras.ops.clip((image - low) / width, 0.0, 1.0)

    # A loop of the graph: written out, its parts take seconds to trace.
    total = keras.ops.fori_loop(0, EQUAL_PARTS, add_part, keras.ops.zeros_like(image))
    return 2.0 * total / EQUAL_PARTS - 1.0


@keras.saving.register_keras_serializable(package="keras_unigan")
class IntensityNormalization(keras.layers.Layer):
    """Raw intensities to [-1, 1], each modality in its own way.

    A known modality uses its scheme of `NORMALIZATIONS`. An unknown one (domain -1, or any number
    that is no index) maps the volume's own 0.5 and 99.5 percentiles to -1 and 1, and may then be
    equalized. Always float32, whatever the dtype policy: the raw range of CT does not fit bfloat16.

    Args:
        modalities: Names in the order of their domain index.
        parameters: Modality -> `scheme`, `mean`, `sd`, `low`, `high` (see `config.Normalization`);
            of images of several channels one number for each.
        unknown: "percentiles", or "equalized": those, then `equalize`.

    Call arguments:
        image: `(batch, *spatial, channels)`, raw intensities of any numeric dtype.
        domain: int32 `(batch,)`, index of each image's modality; -1 for unknown.
        statistics: float32 `(batch, 4)`: mean, standard deviation, 0.5 and 99.5 percentile of the
            WHOLE volume; or `(batch, channels, 4)`, those of each channel, which is then normalised
            by its own. A row of zeros asks for the statistics of the image itself.

    Output shape: as `image`, float32.
    Reference: Isensee et al. 2021, nnU-Net, doi:10.1038/s41592-020-01008-z, per modality.

    Raises:
        ValueError: For a modality without parameters, an unknown scheme or another `unknown`.
    """

    def __init__(
        self,
        modalities,
        parameters,
        unknown="percentiles",
        name="intensity_normalization",
        **kwargs,
    ):
        super().__init__(name=name, **{**kwargs, "dtype": "float32", "trainable": False})
        if unknown not in UNKNOWN:
            raise ValueError(f"Expected unknown in {UNKNOWN}, got {unknown!r}.")
        self.unknown = unknown
        self.modalities = list(modalities)
        self.parameters = {m: dict(p) for m, p in parameters.items()}
        for modality in self.modalities:
            if modality not in self.parameters:
                raise ValueError(
                    f"Expected parameters for each of {self.modalities}, got none for {modality!r}."
                )
            scheme = self.parameters[modality]["scheme"]
            if scheme not in NORMALIZATIONS:
                raise ValueError(
                    f"Expected scheme of {modality!r} in {sorted(NORMALIZATIONS)}, got {scheme!r}."
                )
        self.built = True

    @classmethod
    def from_plan(cls, plan):
        """The layer for a `config.Plan`."""
        parameters = {m: dataclasses.asdict(n) for m, n in plan.normalization.items()}
        return cls(plan.modalities, parameters, plan.unknown)

    def call(self, image, domain, statistics):
        image = keras.ops.cast(image, "float32")
        statistics = keras.ops.cast(statistics, "float32")
        per_channel = len(statistics.shape) == 3
        missing = keras.ops.all(statistics == 0, axis=-1, keepdims=True)
        # The sort is the dear part: only where some row asks for it.
        statistics = keras.ops.cond(
            keras.ops.any(missing),
            lambda: keras.ops.where(missing, volume_statistics(image, per_channel), statistics),
            lambda: statistics,
        )
        ends = [
            NORMALIZATIONS[self.parameters[m]["scheme"]](statistics, self.parameters[m])
            for m in self.modalities
        ]
        ends.append(_own_percentiles(statistics, {}))
        low, high = (keras.ops.stack(column, axis=1) for column in zip(*ends, strict=True))
        unknown = len(self.modalities)
        domain = keras.ops.cast(domain, "int32")
        known = keras.ops.logical_and(domain >= 0, domain < unknown)
        row = keras.ops.where(known, domain, unknown)
        row = keras.ops.reshape(row, (-1, 1, 1) if per_channel else (-1, 1))
        channels = image.shape[-1] if per_channel else 1
        shape = (-1, *[1] * (len(image.shape) - 2), channels)
        low = keras.ops.reshape(keras.ops.take_along_axis(low, row, axis=1), shape)
        high = keras.ops.reshape(keras.ops.take_along_axis(high, row, axis=1), shape)
        # A constant volume has no width: it becomes -1 throughout.
        width = keras.ops.where(high > low, high - low, 1.0)
        result = keras.ops.clip(2.0 * (image - low) / width - 1.0, -1.0, 1.0)
        if self.unknown == "percentiles":
            return result
        known = keras.ops.reshape(known, (-1, *[1] * (len(image.shape) - 1)))
        return keras.ops.cond(
            keras.ops.all(known),
            lambda: result,
            lambda: keras.ops.where(known, result, equalize(result)),
        )

    def compute_output_shape(self, image_shape, domain_shape=None, statistics_shape=None):
        return image_shape

    def get_config(self):
        config = super().get_config()
        own = {"modalities": self.modalities, "parameters": self.parameters}
        return {**config, **own, "unknown": self.unknown}
