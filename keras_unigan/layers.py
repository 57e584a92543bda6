"""Blocks that two or more networks use, and the one layer that normalises intensities.

`IntensityNormalization` runs inside `tf.data` for training and inside the SavedModel for serving,
so that the two cannot drift.
"""

import dataclasses

import keras

LOW_QUANTILE, HIGH_QUANTILE = 0.005, 0.995


def conv(spatial_dims):
    """Convolution class for 2 or 3 spatial axes.

    Raises:
        ValueError: For any other number.
    """
    if spatial_dims not in (2, 3):
        raise ValueError(f"Expected spatial_dims 2 or 3, got {spatial_dims!r}.")
    return {2: keras.layers.Conv2D, 3: keras.layers.Conv3D}[spatial_dims]


def conv_transpose(spatial_dims):
    """Transposed convolution class for 2 or 3 spatial axes."""
    return {2: keras.layers.Conv2DTranspose, 3: keras.layers.Conv3DTranspose}[spatial_dims]


def max_pool(spatial_dims):
    """Max-pooling class for 2 or 3 spatial axes."""
    return {2: keras.layers.MaxPooling2D, 3: keras.layers.MaxPooling3D}[spatial_dims]


def batch_norm(name):
    """Batch norm of this package.

    Momentum 0.9, because Keras' 0.99 leaves inference statistics stale in short runs; statistics
    are those of the global batch, so that the number of replicas does not change a run.
    """
    return keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, synchronized=True, name=name)


def _ct(statistics, parameters):
    """Window of the whole data set: the z-score limits of `parameters`, in raw intensities."""
    low = parameters["mean"] + parameters["sd"] * parameters["low"]
    high = parameters["mean"] + parameters["sd"] * parameters["high"]
    one = keras.ops.ones_like(statistics[:, 0])
    return low * one, high * one


def _mr(statistics, parameters):
    """The same z-score limits, but counted in the volume's own mean and standard deviation."""
    mean, sd = statistics[:, 0], statistics[:, 1]
    return mean + sd * parameters["low"], mean + sd * parameters["high"]


# scheme -> function(statistics (B, 4), parameters) -> raw intensities (B,) that become -1 and 1.
# Clipping to the percentiles, z-scoring and mapping to [-1, 1] is one affine map and one clip, so a
# scheme only has to say where the two ends lie.
NORMALIZATIONS = {"ct": _ct, "mr": _mr}


def volume_statistics(image):
    """Mean, standard deviation, 0.5 and 99.5 percentile of what is not background.

    Equals `data.preprocessing.statistics` for one volume; here in tensor ops for whole batches. The
    background is the value that all corner voxels share; without one, all voxels count.

    Args:
        image: `(batch, *spatial, channels)`, raw intensities; all channels count together.

    Returns:
        float32 `(batch, 4)`.
    """
    image = keras.ops.cast(image, "float32")
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


@keras.saving.register_keras_serializable(package="keras_unigan")
class IntensityNormalization(keras.layers.Layer):
    """Raw intensities to [-1, 1], each modality in its own way.

    A known modality uses its scheme of `NORMALIZATIONS`. An unknown one (domain -1, or any number
    that is no index) maps the volume's own 0.5 and 99.5 percentiles to -1 and 1. Always float32,
    whatever the dtype policy: the raw range of CT does not fit bfloat16.

    Args:
        modalities: Names in the order of their domain index.
        parameters: Modality -> `scheme`, `mean`, `sd`, `low`, `high` (see `config.Normalization`).

    Call arguments:
        image: `(batch, *spatial, channels)`, raw intensities of any numeric dtype.
        domain: int32 `(batch,)`, index of each image's modality; -1 for unknown.
        statistics: float32 `(batch, 4)`: mean, standard deviation, 0.5 and 99.5 percentile of the
            WHOLE volume. A row of zeros asks for the statistics of the image itself.

    Output shape: as `image`, float32.
    Reference: Isensee et al. 2021, nnU-Net, doi:10.1038/s41592-020-01008-z, per modality.

    Raises:
        ValueError: For a modality without parameters or an unknown scheme.
    """

    def __init__(self, modalities, parameters, name="intensity_normalization", **kwargs):
        super().__init__(name=name, **{**kwargs, "dtype": "float32", "trainable": False})
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
        return cls(plan.modalities, parameters)

    def call(self, image, domain, statistics):
        image = keras.ops.cast(image, "float32")
        statistics = keras.ops.cast(statistics, "float32")
        missing = keras.ops.all(statistics == 0, axis=1, keepdims=True)
        # The sort is the dear part: only where some row asks for it.
        statistics = keras.ops.cond(
            keras.ops.any(missing),
            lambda: keras.ops.where(missing, volume_statistics(image), statistics),
            lambda: statistics,
        )
        ends = [
            NORMALIZATIONS[self.parameters[m]["scheme"]](statistics, self.parameters[m])
            for m in self.modalities
        ]
        ends.append((statistics[:, 2], statistics[:, 3]))
        low, high = (keras.ops.stack(column, axis=1) for column in zip(*ends, strict=True))
        unknown = len(self.modalities)
        domain = keras.ops.cast(domain, "int32")
        known = keras.ops.logical_and(domain >= 0, domain < unknown)
        row = keras.ops.where(known, domain, unknown)[:, None]
        shape = (-1, *[1] * (len(image.shape) - 1))
        low = keras.ops.reshape(keras.ops.take_along_axis(low, row, axis=1), shape)
        high = keras.ops.reshape(keras.ops.take_along_axis(high, row, axis=1), shape)
        # A constant volume has no width: it becomes -1 throughout.
        width = keras.ops.where(high > low, high - low, 1.0)
        return keras.ops.clip(2.0 * (image - low) / width - 1.0, -1.0, 1.0)

    def compute_output_shape(self, image_shape, domain_shape=None, statistics_shape=None):
        return image_shape

    def get_config(self):
        config = super().get_config()
        return {**config, "modalities": self.modalities, "parameters": self.parameters}
