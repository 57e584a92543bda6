"""SegAN, paper form: a segmentor and the critic whose feature pyramid it has to match."""

import keras
import tensorflow as tf

from keras_unigan.layers import batch_norm, check_strides, conv, halving_kernel, level_kernel


@keras.saving.register_keras_serializable(package="keras_unigan")
class LinearUpSampling(keras.layers.Layer):
    """Doubles each spatial axis by linear interpolation, in 2-D and 3-D.

    Args:
        factor: By how much each axis grows, one number or one per axis; 2 unless it is given.

    Voxel centres keep their place (half-pixel rule, edges repeated). Keras' `UpSampling2D` does the
    same, but refuses sizes that are not known when a graph is traced, which a served network needs;
    its `UpSampling3D` only repeats.

    Input shape: `(batch, *spatial, channels)`.
    Output shape: the same with every spatial side doubled.
    """

    def __init__(self, factor=2, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor if isinstance(factor, int) else tuple(factor)

    def factors(self, spatial_dims):
        """By how much each axis grows, one number per axis."""
        return (self.factor,) * spatial_dims if isinstance(self.factor, int) else self.factor

    def call(self, inputs):
        shape, n = tf.shape(inputs), self.factors(len(inputs.shape) - 2)
        if len(n) == 2:
            return tf.cast(tf.image.resize(inputs, n * shape[1:3]), inputs.dtype)
        # The plane (x, y) with z among the channels, then z as the second axis of a plane.
        batch, x, y, z, channels = tf.unstack(shape)
        plane = tf.reshape(inputs, (batch, x, y, z * channels))
        plane = tf.image.resize(plane, (n[0] * x, n[1] * y))
        rows = tf.reshape(plane, (batch, n[0] * x * n[1] * y, z, channels))
        rows = tf.image.resize(rows, (n[0] * x * n[1] * y, n[2] * z))
        volume = tf.reshape(rows, (batch, n[0] * x, n[1] * y, n[2] * z, channels))
        return tf.ensure_shape(
            tf.cast(volume, inputs.dtype), self.compute_output_shape(inputs.shape)
        )

    def compute_output_shape(self, input_shape):
        sides = [
            None if side is None else n * side
            for side, n in zip(input_shape[1:-1], self.factors(len(input_shape) - 2), strict=True)
        ]
        return (input_shape[0], *sides, input_shape[-1])

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


@keras.saving.register_keras_serializable(package="keras_unigan")
class SegANSegmentor(keras.Model):
    """Encoder of stride-2 convolutions, decoder of linear resizes, skips by concatenation.

    Args:
        channels: Channels of the image.
        classes: Channels of the logits.
        filters: Width of the first convolution, which each further one doubles; the paper has 64.
        strides: Stride of each convolution of the encoder and axis, e.g. `((2, 2, 1), (2, 2, 2))`;
            None is the paper's: four that halve every axis. As in `UNet`, convolutions do not reach
            along a coarse axis until it is first halved.
        spatial_dims: 2 or 3.

    Input shape: `(batch, *spatial, channels)`; each side divisible by the product of its strides.
    Output shape: `(batch, *spatial, classes)`, float32 logits.
    Reference: Xue et al. 2018, SegAN, arXiv:1706.01805.

    Raises:
        ValueError: For strides that do not have one entry per axis, or none at all.
    """

    def __init__(
        self,
        channels=1,
        classes=1,
        filters=64,
        strides=None,
        spatial_dims=2,
        name="segan_segmentor",
    ):
        strides = [(2,) * spatial_dims] * 4 if strides is None else strides
        strides = check_strides(strides, spatial_dims)
        if not strides:
            raise ValueError("Expected strides of at least one level, got none.")
        x = image = keras.Input((*[None] * spatial_dims, channels), name="image")
        skips = []
        for level, stride in enumerate(strides):
            # A 4-wide stride-2 "same" convolution pads 1 on each side of an even axis.
            x = conv(spatial_dims)(
                filters * 2**level,
                halving_kernel(strides, level),
                stride,
                padding="same",
                use_bias=level == 0,
                name=f"down_{level}",
            )(x)
            if level > 0:
                x = batch_norm(f"down_{level}_norm")(x)
            x = keras.layers.LeakyReLU(0.2, name=f"down_{level}_act")(x)
            skips.append(x)
        for level in reversed(range(len(strides) - 1)):
            x = LinearUpSampling(strides[level + 1], name=f"resize_{level}")(x)
            kernel = level_kernel(strides, level + 1)
            x = conv(spatial_dims)(
                filters * 2**level, kernel, padding="same", use_bias=False, name=f"up_{level}"
            )(x)
            x = batch_norm(f"up_{level}_norm")(x)
            x = keras.layers.ReLU(name=f"up_{level}_act")(x)
            x = keras.layers.Concatenate(name=f"skip_{level}")([x, skips[level]])
        x = LinearUpSampling(strides[0], name="resize_out")(x)
        kernel = level_kernel(strides, 0)
        last = conv(spatial_dims)(classes, kernel, padding="same", dtype="float32", name="logits")
        super().__init__(image, last(x), name=name)
        self.channels, self.classes, self.filters = channels, classes, filters
        self.strides, self.spatial_dims = strides, spatial_dims

    def get_config(self):
        return {
            "channels": self.channels,
            "classes": self.classes,
            "filters": self.filters,
            "strides": [list(s) for s in self.strides],
            "spatial_dims": self.spatial_dims,
            "name": self.name,
        }


@keras.saving.register_keras_serializable(package="keras_unigan")
class SegANCritic(keras.Model):
    """Feature pyramid that SegAN compares for true and predicted masks.

    Args:
        channels: Channels of the masked image.
        filters: Width of each convolution, first to last.
        constraint: How the game keeps the critic bounded: "spectral" puts spectral norm on each
            convolution and no batch norm, "clip" puts batch norm on all but the first.
        strides: Stride of each convolution and axis, e.g. that of a plan; what is beyond these, and
            all for None, halves every axis. As in `UNet`, convolutions do not reach along a coarse
            axis until it is first halved.
        spatial_dims: 2 or 3.
        groups: Number of critics side by side, each with weights of its own for its share of the
            channels, e.g. one per class. Their features are joined level by level.

    Input shape: `(batch, *spatial, channels)`; each side divisible by the product of its strides.
    Output shape: list of `len(filters) + 1` tensors, the input first, each half the side before
        (of axes that are halved), the others with `groups * filters[level]` channels.
    Reference: Xue et al. 2018, SegAN, arXiv:1706.01805; spectral norm: Miyato et al. 2018,
    arXiv:1802.05957.

    Raises:
        ValueError: For an unknown constraint, or channels that cannot be shared out.
    """

    def __init__(
        self,
        channels=1,
        filters=(64, 128, 256),
        constraint="spectral",
        strides=None,
        spatial_dims=2,
        groups=1,
        name="segan_critic",
    ):
        if groups < 1 or channels % groups:
            raise ValueError(f"Expected channels divisible by groups={groups}, got {channels}.")
        image = keras.Input((*[None] * spatial_dims, channels), name="masked_image")
        if groups == 1:
            features = _trunk(image, filters, constraint, strides)
        else:
            share = channels // groups
            pyramids = [
                _trunk(image[..., g * share :][..., :share], filters, constraint, strides, f"_{g}")
                for g in range(groups)
            ]
            features = [
                keras.layers.Concatenate(name=f"joined_{level}")(maps)
                for level, maps in enumerate(zip(*pyramids, strict=True))
            ]
        super().__init__(image, [image, *features], name=name)
        self.channels, self.filters = channels, tuple(filters)
        self.constraint, self.spatial_dims, self.groups = constraint, spatial_dims, groups
        self.strides = None if strides is None else check_strides(strides, spatial_dims)

    def get_config(self):
        return {
            "channels": self.channels,
            "filters": list(self.filters),
            "constraint": self.constraint,
            "strides": None if self.strides is None else [list(s) for s in self.strides],
            "spatial_dims": self.spatial_dims,
            "groups": self.groups,
            "name": self.name,
        }


@keras.saving.register_keras_serializable(package="keras_unigan")
class SegANScalarCritic(keras.Model):
    """The trunk of `SegANCritic`, then the mean over space and one logit: true mask or predicted.

    What the multi-scale critic is measured against.

    Args:
        channels: Channels of the masked image.
        filters: Width of each convolution, first to last.
        constraint: "spectral" or "clip", as for `SegANCritic`.
        strides: As for `SegANCritic`.
        spatial_dims: 2 or 3.

    Input shape: `(batch, *spatial, channels)`; each side divisible by the product of its strides.
    Output shape: `(batch, 1)`, float32 logit.
    Reference: Goodfellow et al. 2014, arXiv:1406.2661, with the trunk of SegAN.

    Raises:
        ValueError: For an unknown constraint.
    """

    def __init__(
        self,
        channels=1,
        filters=(64, 128, 256),
        constraint="spectral",
        strides=None,
        spatial_dims=2,
        name="segan_scalar_critic",
    ):
        image = keras.Input((*[None] * spatial_dims, channels), name="masked_image")
        x = _trunk(image, filters, constraint, strides)[-1]
        mean = {2: keras.layers.GlobalAveragePooling2D, 3: keras.layers.GlobalAveragePooling3D}
        x = mean[spatial_dims](dtype="float32", name="mean")(x)
        layer = keras.layers.Dense(
            1,
            kernel_initializer=keras.initializers.RandomNormal(stddev=0.02),
            dtype="float32",
            name="logit",
        )
        if constraint == "spectral":
            layer = keras.layers.SpectralNormalization(
                layer, dtype="float32", name="spectral_logit"
            )
        super().__init__(image, layer(x), name=name)
        self.channels, self.filters = channels, tuple(filters)
        self.constraint, self.spatial_dims = constraint, spatial_dims
        self.strides = None if strides is None else check_strides(strides, spatial_dims)

    def get_config(self):
        return {
            "channels": self.channels,
            "filters": list(self.filters),
            "constraint": self.constraint,
            "strides": None if self.strides is None else [list(s) for s in self.strides],
            "spatial_dims": self.spatial_dims,
            "name": self.name,
        }


def _trunk(x, filters, constraint, strides, suffix=""):
    """Maps behind each convolution."""
    features, dims = [], len(x.shape) - 2
    # Beyond the given ones every axis is halved.
    strides = check_strides([*(strides or ()), *[(2,) * dims] * len(filters)], dims)
    for level, width in enumerate(filters):
        bias = constraint == "spectral" or level == 0
        # 1 on each side of an even axis, which every level has here.
        kernel, name = halving_kernel(strides, level), f"{level}{suffix}"
        layer = critic_conv(x, width, kernel, bias, name, strides[level], padding="same")
        x = critic_level(layer, x, constraint, level > 0, f"{level}{suffix}")
        features.append(x)
    return features


def critic_conv(x, width, kernel, bias, name, strides=2, padding="valid"):
    """Convolution layer of a critic, for maps of the rank of `x`."""
    return conv(len(x.shape) - 2)(
        width,
        kernel,
        strides,
        padding=padding,
        use_bias=bias,
        kernel_initializer=keras.initializers.RandomNormal(stddev=0.02),
        name=f"conv_{name}",
    )


def critic_level(layer, x, constraint, norm, name):
    """Map behind a convolution with what the constraint of its critic asks for.

    Args:
        layer: The convolution.
        x: `(batch, *spatial, channels)`.
        constraint: "spectral": spectral norm. "clip": batch norm where `norm` is true.
        norm: Whether this level has batch norm under "clip".
        name: Ends the names of the layers.

    Raises:
        ValueError: For an unknown constraint.
    """
    if constraint not in ("spectral", "clip"):
        raise ValueError(f'Expected constraint "spectral" or "clip", got {constraint!r}.')
    if constraint == "spectral":
        layer = keras.layers.SpectralNormalization(layer, name=f"spectral_{name}")
    x = layer(x)
    if constraint == "clip" and norm:
        x = batch_norm(f"norm_{name}")(x)
    return keras.layers.LeakyReLU(0.2, name=f"act_{name}")(x)
