"""SegAN, paper form: a segmentor and the critic whose feature pyramid it has to match."""

import keras
import tensorflow as tf

from keras_unigan.layers import batch_norm, conv


@keras.saving.register_keras_serializable(package="keras_unigan")
class LinearUpSampling(keras.layers.Layer):
    """Doubles each spatial axis by linear interpolation, in 2-D and 3-D.

    Voxel centres keep their place (half-pixel rule, edges repeated). Keras' `UpSampling2D` does the
    same, but refuses sizes that are not known when a graph is traced, which a served network needs;
    its `UpSampling3D` only repeats.

    Input shape: `(batch, *spatial, channels)`.
    Output shape: the same with every spatial side doubled.
    """

    def call(self, inputs):
        shape = tf.shape(inputs)
        if len(inputs.shape) == 4:
            return tf.cast(tf.image.resize(inputs, 2 * shape[1:3]), inputs.dtype)
        # The plane (x, y) with z among the channels, then z as the second axis of a plane.
        batch, x, y, z, channels = tf.unstack(shape)
        plane = tf.reshape(inputs, (batch, x, y, z * channels))
        plane = tf.image.resize(plane, (2 * x, 2 * y))
        rows = tf.reshape(plane, (batch, 4 * x * y, z, channels))
        rows = tf.image.resize(rows, (4 * x * y, 2 * z))
        volume = tf.reshape(rows, (batch, 2 * x, 2 * y, 2 * z, channels))
        return tf.ensure_shape(
            tf.cast(volume, inputs.dtype), self.compute_output_shape(inputs.shape)
        )

    def compute_output_shape(self, input_shape):
        sides = [None if side is None else 2 * side for side in input_shape[1:-1]]
        return (input_shape[0], *sides, input_shape[-1])


@keras.saving.register_keras_serializable(package="keras_unigan")
class SegANSegmentor(keras.Model):
    """Encoder of stride-2 convolutions, decoder of linear resizes, skips by concatenation.

    Args:
        channels: Channels of the image.
        classes: Channels of the logits.
        filters: Width of the first convolution; the paper has 64.
        spatial_dims: 2 or 3.

    Input shape: `(batch, *spatial, channels)`; sides divisible by 16.
    Output shape: `(batch, *spatial, classes)`, float32 logits.
    Reference: Xue et al. 2018, SegAN, arXiv:1706.01805.
    """

    def __init__(self, channels=1, classes=1, filters=64, spatial_dims=2, name="segan_segmentor"):
        x = image = keras.Input((*[None] * spatial_dims, channels), name="image")
        skips = []
        for level in range(4):
            # A 4-wide stride-2 "same" convolution pads 1 on each side of an even axis.
            x = conv(spatial_dims)(
                filters * 2**level, 4, 2, padding="same", use_bias=level == 0, name=f"down_{level}"
            )(x)
            if level > 0:
                x = batch_norm(f"down_{level}_norm")(x)
            x = keras.layers.LeakyReLU(0.2, name=f"down_{level}_act")(x)
            skips.append(x)
        for level in (2, 1, 0):
            x = LinearUpSampling(name=f"resize_{level}")(x)
            x = conv(spatial_dims)(
                filters * 2**level, 3, padding="same", use_bias=False, name=f"up_{level}"
            )(x)
            x = batch_norm(f"up_{level}_norm")(x)
            x = keras.layers.ReLU(name=f"up_{level}_act")(x)
            x = keras.layers.Concatenate(name=f"skip_{level}")([x, skips[level]])
        x = LinearUpSampling(name="resize_out")(x)
        logits = conv(spatial_dims)(classes, 3, padding="same", dtype="float32", name="logits")(x)
        super().__init__(image, logits, name=name)
        self.channels, self.classes = channels, classes
        self.filters, self.spatial_dims = filters, spatial_dims

    def get_config(self):
        return {
            "channels": self.channels,
            "classes": self.classes,
            "filters": self.filters,
            "spatial_dims": self.spatial_dims,
            "name": self.name,
        }


@keras.saving.register_keras_serializable(package="keras_unigan")
class SegANCritic(keras.Model):
    """Feature pyramid that SegAN compares for true and predicted masks.

    Args:
        channels: Channels of the masked image.
        filters: Width of each stride-2 convolution, first to last.
        constraint: How the game keeps the critic bounded: "spectral" puts spectral norm on each
            convolution and no batch norm, "clip" puts batch norm on all but the first.
        spatial_dims: 2 or 3.

    Input shape: `(batch, *spatial, channels)`; sides divisible by `2**len(filters)`.
    Output shape: list of `len(filters) + 1` tensors, the input first, each half the side before.
    Reference: Xue et al. 2018, SegAN, arXiv:1706.01805; spectral norm: Miyato et al. 2018,
    arXiv:1802.05957.

    Raises:
        ValueError: For an unknown constraint.
    """

    def __init__(
        self,
        channels=1,
        filters=(64, 128, 256),
        constraint="spectral",
        spatial_dims=2,
        name="segan_critic",
    ):
        if constraint not in ("spectral", "clip"):
            raise ValueError(f'Expected constraint "spectral" or "clip", got {constraint!r}.')
        spectral = constraint == "spectral"
        x = image = keras.Input((*[None] * spatial_dims, channels), name="masked_image")
        features = [image]
        for level, width in enumerate(filters):
            layer = conv(spatial_dims)(
                width,
                4,
                2,
                padding="same",  # 1 on each side of an even axis
                use_bias=spectral or level == 0,
                kernel_initializer=keras.initializers.RandomNormal(stddev=0.02),
                name=f"conv_{level}",
            )
            if spectral:
                layer = keras.layers.SpectralNormalization(layer, name=f"spectral_{level}")
            x = layer(x)
            if not spectral and level > 0:
                x = batch_norm(f"norm_{level}")(x)
            x = keras.layers.LeakyReLU(0.2, name=f"act_{level}")(x)
            features.append(x)
        super().__init__(image, features, name=name)
        self.channels, self.filters = channels, tuple(filters)
        self.constraint, self.spatial_dims = constraint, spatial_dims

    def get_config(self):
        return {
            "channels": self.channels,
            "filters": list(self.filters),
            "constraint": self.constraint,
            "spatial_dims": self.spatial_dims,
            "name": self.name,
        }
