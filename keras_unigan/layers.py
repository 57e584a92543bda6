"""Blocks that two or more networks use, and the one layer that normalises intensities.

`IntensityNormalization` runs inside `tf.data` for training and inside the SavedModel for serving,
so that the two cannot drift.
"""

import dataclasses

import keras

from keras_unigan.config import UNKNOWN

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


def max_pool(spatial_dims, size, name):
    """Max pooling over 2 or 3 spatial axes."""
    if spatial_dims == 2:
        return keras.layers.MaxPooling2D(size, name=name)
    # TensorFlow has no float16 kernel of this for CPUs; the maximum is the same in float32.
    return keras.layers.MaxPooling3D(size, dtype="float32", name=name)


def strided_conv(x, spatial_dims, filters, kernel, strides, name, **options):
    """Convolution with `(kernel - 1) // 2` zeros on each side, of any size.

    Keras' "same" pads a stride-2 convolution more on the far side, unless an even kernel meets an
    even size; there it is used, because it costs no copy of the map.

    Args:
        x: `(batch, *spatial, channels)`.
        spatial_dims: 2 or 3.
        filters: Channels of the result.
        kernel: One number, or one per axis.
        strides: One number, or one per axis.
        name: Name of the convolution.
        **options: Further arguments of the convolution.
    """
    kernel = (kernel,) * spatial_dims if isinstance(kernel, int) else tuple(kernel)
    even = all(side is not None and side % 2 == 0 for side in x.shape[1:-1])
    if even and strides == 2 and set(kernel) == {4}:
        return conv(spatial_dims)(filters, 4, 2, padding="same", name=name, **options)(x)
    x = zero_padding(spatial_dims, tuple((k - 1) // 2 for k in kernel), f"{name}_pad")(x)
    return conv(spatial_dims)(filters, kernel, strides, name=name, **options)(x)


def zero_padding(spatial_dims, sides, name):
    """Layer that adds zeros on both sides of each spatial axis."""
    padding = {2: keras.layers.ZeroPadding2D, 3: keras.layers.ZeroPadding3D}[spatial_dims]
    return padding(sides, name=name)


def instance_norm(name, scale=False):
    """Instance norm, with or without a learnt scale and offset of each channel.

    Reference: Ulyanov et al. 2016, Instance normalization, arXiv:1607.08022.
    """
    return keras.layers.GroupNormalization(
        groups=-1, epsilon=1e-5, center=scale, scale=scale, name=name
    )


def check_strides(strides, spatial_dims):
    """Strides per level as a tuple of tuples.

    Raises:
        ValueError: For a level that does not have one entry per axis.
    """
    strides = tuple(tuple(stride) for stride in strides)
    for stride in strides:
        if len(stride) != spatial_dims:
            raise ValueError(f"Expected strides of {spatial_dims} axes, got {stride}.")
    return strides


def level_kernel(strides, level):
    """Convolution kernel of a level: 1 along an axis that is pooled only further down, else 3.

    Args:
        strides: Stride from each level to the next.
        level: Index; `len(strides)` is the deepest level.
    """
    axes = range(len(strides[0]))
    waits = [level < len(strides) and strides[level][axis] == 1 for axis in axes]
    ahead = [any(stride[axis] > 1 for stride in strides[level:]) for axis in axes]
    pooled = [any(stride[axis] > 1 for stride in strides[:level]) for axis in axes]
    return tuple(1 if waits[a] and ahead[a] and not pooled[a] else 3 for a in axes)


def domain_code(domain, domains, unknown=False):
    """One-hot code of domain indices, float32.

    Args:
        domain: int `(batch,)`; anything that is no index, such as -1, is the unknown domain.
        domains: Number of domains.
        unknown: Whether the unknown domain has a place of its own, the last; else it is zeros.

    Returns:
        `(batch, domains)`, or `(batch, domains + 1)` with `unknown`.
    """
    domain = keras.ops.cast(domain, "int32")
    known = keras.ops.logical_and(domain >= 0, domain < domains)
    index = keras.ops.where(known, domain, domains)
    code = keras.ops.one_hot(index, domains + 1, dtype="float32")
    return code if unknown else code[:, :domains]


def batch_norm(name):
    """Batch norm of this package.

    Momentum 0.9, because Keras' 0.99 leaves inference statistics stale in short runs; statistics
    are those of the global batch, so that the number of replicas does not change a run.
    """
    return keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, synchronized=True, name=name)


@keras.saving.register_keras_serializable(package="keras_unigan")
class FiLM(keras.layers.Layer):
    """Scale and offset of each channel, from tables with one row per entry of a code.

    Behind an instance norm without its own, this is conditional instance norm. A code that is no
    one-hot vector mixes rows.

    Call arguments: `[x, code]`, `(batch, *spatial, channels)` and `(batch, codes)`.
    Output shape: as `x`.
    Reference: Dumoulin et al. 2017, A learned representation for artistic style, arXiv:1610.07629.
    """

    def build(self, input_shape):
        (*_, channels), (_, codes) = input_shape
        self.gamma = self.add_weight((codes, channels), "ones", name="gamma")
        self.beta = self.add_weight((codes, channels), "zeros", name="beta")

    def call(self, inputs):
        x, code = inputs
        shape = (-1, *[1] * (len(x.shape) - 2), x.shape[-1])
        gamma, beta = (keras.ops.matmul(code, table) for table in (self.gamma, self.beta))
        return x * keras.ops.reshape(gamma, shape) + keras.ops.reshape(beta, shape)

    def compute_output_shape(self, input_shape):
        return input_shape[0]


@keras.saving.register_keras_serializable(package="keras_unigan")
class LabelPlanes(keras.layers.Layer):
    """Joins an image with one constant plane per entry of a code.

    Only behind zero padding: instance norm takes out what is the same everywhere, so a plane acts
    through the borders alone.

    Call arguments: `[image, code]`, `(batch, *spatial, channels)` and `(batch, codes)`.
    Output shape: `(batch, *spatial, channels + codes)`.
    Reference: Choi et al. 2018, StarGAN, arXiv:1711.09020.
    """

    def call(self, inputs):
        image, code = inputs
        code = keras.ops.reshape(code, (-1, *[1] * (len(image.shape) - 2), code.shape[-1]))
        planes = keras.ops.zeros_like(image[..., :1]) + code
        return keras.ops.concatenate([image, planes], axis=-1)

    def compute_output_shape(self, input_shape):
        image, code = input_shape
        return (*image[:-1], image[-1] + code[-1])


@keras.saving.register_keras_serializable(package="keras_unigan")
class LocalContrast(keras.layers.Layer):
    """Joins an image with itself in units of the contrast around each voxel.

    The new channels are `(x - mean) / sd` with the mean and standard deviation of a cube around
    the voxel (cut at the border). They hardly change where a window or gain squeezes the
    intensities of a tissue into a small part of [-1, 1], as in a modality that was never seen.

    Args:
        size: Side of the cube, voxels, odd.
        floor: Least standard deviation, so that noise in flat places is not blown up.

    Input shape: `(batch, *spatial, channels)`.
    Output shape: `(batch, *spatial, 2 * channels)`; the new channels lie in about [-3, 3].
    """

    def __init__(self, size=15, floor=0.02, name=None, **kwargs):
        super().__init__(name=name, **kwargs)
        self.size, self.floor = size, floor

    def call(self, image):
        x = keras.ops.cast(image, "float32")
        pool = lambda y: keras.ops.average_pool(y, self.size, 1, "same")  # noqa: E731
        mean = pool(x)
        variance = keras.ops.maximum(pool(x**2) - mean**2, 0.0)
        local = (x - mean) / keras.ops.sqrt(variance + self.floor**2)
        return keras.ops.concatenate([image, keras.ops.cast(local, image.dtype)], axis=-1)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], 2 * input_shape[-1])

    def get_config(self):
        return {**super().get_config(), "size": self.size, "floor": self.floor}


def squeeze_excitation(x, units, name):
    """Scales each channel by a gate that sees the mean of all channels (no biases).

    Args:
        x: `(batch, *spatial, channels)`.
        units: Width of the layer between; the paper has channels / 16.
        name: Prefix of the layers' names.

    Reference: Hu et al. 2018, Squeeze-and-excitation networks, arXiv:1709.01507.
    """
    pool = {
        4: keras.layers.GlobalAveragePooling2D,
        5: keras.layers.GlobalAveragePooling3D,
    }[len(x.shape)]
    # A mean over so many voxels loses its digits in half precision.
    gate = pool(keepdims=True, dtype="float32", name=f"{name}_mean")(x)
    gate = keras.layers.Dense(units, "relu", use_bias=False, name=f"{name}_squeeze")(gate)
    gate = keras.layers.Dense(x.shape[-1], "sigmoid", use_bias=False, name=f"{name}_excite")(gate)
    return keras.layers.Multiply(name=f"{name}_scale")([x, gate])


def _data_set(statistics, parameters):
    """Window of the whole data set: the z-score limits of `parameters`, in raw intensities."""
    low = parameters["mean"] + parameters["sd"] * parameters["low"]
    high = parameters["mean"] + parameters["sd"] * parameters["high"]
    one = keras.ops.ones_like(statistics[..., 0])
    return low * one, high * one


def _own_scores(statistics, parameters):
    """The same z-score limits, but counted in the volume's own mean and standard deviation."""
    mean, sd = statistics[..., 0], statistics[..., 1]
    return mean + sd * parameters["low"], mean + sd * parameters["high"]


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


def segment_logits(network, image, domain, training=False):
    """Logits of any network that segments, whether or not it asks for the modality.

    Args:
        network: Segmentor of one input, or a generator with a method `segment`.
        image: `(batch, *spatial, channels)`, normalised.
        domain: int32 `(batch,)`, index of each image's modality; -1 for unknown.
        training: As of the network's own call.

    Returns:
        float32 `(batch, *spatial, outputs)`.
    """
    if hasattr(network, "segment"):
        return network.segment(image, domain, training=training)
    return network(image, training=training)


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
    total = 0.0
    for part in range(EQUAL_PARTS):
        low, high = (keras.ops.reshape(edges[:, part + i], shape) for i in (0, 1))
        # A part of one value has no width: it is a step.
        width = keras.ops.maximum(high - low, 1e-6)
        total = total + keras.ops.clip((image - low) / width, 0.0, 1.0)
    return 2.0 * total / EQUAL_PARTS - 1.0


@keras.saving.register_keras_serializable(package="keras_unigan")
class IntensityNormalization(keras.layers.Layer):
    """Raw intensities to [-1, 1], each modality in its own way.

    A known modality uses its scheme of `NORMALIZATIONS`. An unknown one (domain -1, or any number
    that is no index) maps the volume's own 0.5 and 99.5 percentiles to -1 and 1, and may then be
    equalized. Always float32, whatever the dtype policy: the raw range of CT does not fit bfloat16.

    Args:
        modalities: Names in the order of their domain index.
        parameters: Modality -> `scheme`, `mean`, `sd`, `low`, `high` (see `config.Normalization`).
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
