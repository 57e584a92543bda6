"""Blocks that two or more networks use."""

import keras

from keras_unigan.errors import CodedError


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


def halving_kernel(strides, level):
    """Kernel of a convolution with the stride of a level: 4 along an axis that it halves.

    Along the others it is that of `level_kernel`.

    Args:
        strides: Stride from each level to the next.
        level: Index below `len(strides)`.
    """
    kernel = level_kernel(strides, level)
    return tuple(4 if s > 1 else k for s, k in zip(strides[level], kernel, strict=True))


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


def check_inputs(network, plan):
    """Channels of a network's input; one that does not say how many takes those of the plan.

    Raises:
        CodedError: KUG-T04 when they are not those of the plan.
    """
    wanted = plan.inputs(network.spatial_dims)
    found = getattr(network, "channels", wanted)
    if found != wanted:
        raise CodedError(
            "KUG-T04",
            network.name,
            f"a network of {found} channels",
            f"{wanted}, as the plan says",
            fix="give the plan that it was trained with",
        )
    return wanted


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
