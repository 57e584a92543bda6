"""SegAN, skin-lesion form: a deep residual segmentor with large kernels, and its critic."""

import keras
import tensorflow as tf

from keras_unigan.layers import batch_norm, conv, strided_conv, zero_padding
from keras_unigan.networks.segan import critic_conv, critic_level

DIMS = 2
KERNELS = (7, 5, 5, 5, 5)
CRITIC_KERNELS = (7, 5, 4, 4, 4, 3)
WIDTHS = (1, 2, 4, 8, 8)  # in units of `filters`
LEAKY, RELU = 0.2, 0.0  # slope below zero, in the encoder and in the decoder


@keras.saving.register_keras_serializable(package="keras_unigan")
class ResizeLike(keras.layers.Layer):
    """Bilinear resize of a map to the size of another one (half-pixel rule).

    Call arguments: `[x, like]`, both `(batch, height, width, channels)`.
    Output shape: that of `like` with the channels of `x`.
    """

    def call(self, inputs):
        x, like = inputs
        return tf.cast(tf.image.resize(x, tf.shape(like)[1:3]), x.dtype)

    def compute_output_shape(self, input_shape):
        x, like = input_shape
        return (*like[:-1], x[-1])


@keras.saving.register_keras_serializable(package="keras_unigan")
class SegANISICSegmentor(keras.Model):
    """Eight convolutions down to a few pixels and back, residual blocks, separable large kernels.

    Args:
        channels: Channels of the image.
        classes: Channels of the logits.
        filters: Width of the first convolution; the published net has 64.

    Input shape: `(batch, height, width, channels)`; sides of 33 or more.
    Output shape: `(batch, height, width, classes)`, float32 logits.
    Reference: Xue et al. 2018, Adversarial learning with multi-scale loss for skin lesion
        segmentation, ISBI; large kernels: Peng et al. 2017, arXiv:1703.02719.
    """

    def __init__(self, channels=1, classes=1, filters=64, name="segan_isic_segmentor"):
        x = image = keras.Input((None, None, channels), name="image")
        maps = []
        for level, (width, kernel) in enumerate(zip(WIDTHS, KERNELS, strict=True)):
            x = _conv(x, width * filters, kernel, f"down_{level}", LEAKY, 2, norm=level > 0)
            x = _residual(x, f"down_{level}_residual", LEAKY)
            maps.append(x)
        x = _short(_conv(x, 16 * filters, 4, "down_5", LEAKY, 2), "down_5_short", LEAKY)
        maps.append(x)
        x = _conv(x, 32 * filters, 3, "down_6", LEAKY, 2)
        maps.append(x)
        x = _conv(x, 8 * filters, 1, "down_7", LEAKY)

        x = _conv(x, 32 * filters, 1, "up_7", RELU)
        x = _conv(_joined(x, maps, 6), 16 * filters, 3, "up_6", RELU)
        x = _short(x, "up_6_short", RELU)
        x = _conv(_joined(x, maps, 5), 8 * filters, 3, "up_5", RELU)
        x = _residual(x, "up_5_residual", RELU)
        for level, kernel, width in ((4, 7, 8), (3, 7, 4), (2, 9, 2), (1, 9, 1), (0, 11, 1)):
            below = _joined(x, maps, level, image)
            x = _large_kernel(below, width * filters, kernel, f"up_{level}")
            x = _residual(x, f"up_{level}_residual", RELU)
        logits = conv(DIMS)(
            classes,
            5,
            padding="same",
            use_bias=False,
            kernel_initializer="he_normal",
            dtype="float32",
            name="logits",
        )(x)
        super().__init__(image, logits, name=name)
        self.channels, self.classes = channels, classes
        self.filters, self.spatial_dims = filters, DIMS

    def get_config(self):
        return {
            "channels": self.channels,
            "classes": self.classes,
            "filters": self.filters,
            "name": self.name,
        }


@keras.saving.register_keras_serializable(package="keras_unigan")
class SegANISICCritic(keras.Model):
    """Deeper feature pyramid, for masked colour images.

    Args:
        channels: Channels of the masked image.
        filters: Width of the first convolution; the published net has 64.
        constraint: "clip" (paper) puts batch norm on all but the first convolution and has no
            biases; "spectral" puts spectral norm on each, with biases and no batch norm.

    Input shape: `(batch, height, width, channels)`; sides of 33 or more.
    Output shape: list of seven tensors, the input first, each about half the side before.
    Reference: as `SegANISICSegmentor`.

    Raises:
        ValueError: For an unknown constraint.
    """

    def __init__(self, channels=1, filters=64, constraint="clip", name="segan_isic_critic"):
        x = image = keras.Input((None, None, channels), name="masked_image")
        features = [image]
        bias = constraint == "spectral"
        for level, (width, kernel) in enumerate(zip((*WIDTHS, 8), CRITIC_KERNELS, strict=True)):
            x = zero_padding(DIMS, (kernel - 1) // 2, f"pad_{level}")(x)
            layer = critic_conv(x, width * filters, kernel, bias, f"{level}")
            x = critic_level(layer, x, constraint, level > 0, f"{level}")
            features.append(x)
        super().__init__(image, features, name=name)
        self.channels, self.filters = channels, filters
        self.constraint, self.spatial_dims = constraint, DIMS

    def get_config(self):
        return {
            "channels": self.channels,
            "filters": self.filters,
            "constraint": self.constraint,
            "name": self.name,
        }


def _conv(x, width, kernel, name, slope, stride=1, norm=True):
    """Convolution, batch norm, (leaky) ReLU."""
    options = {"use_bias": False, "kernel_initializer": "he_normal", "name": name}
    if stride == 1:
        x = conv(DIMS)(width, kernel, padding="same", **options)(x)
    else:
        x = strided_conv(x, DIMS, width, kernel, stride, **options)
    if norm:
        x = batch_norm(f"{name}_norm")(x)
    return _act(x, slope, f"{name}_act")


def _act(x, slope, name):
    return keras.layers.LeakyReLU(slope, name=name)(x) if slope else keras.layers.ReLU(name=name)(x)


def _residual(x, name, slope):
    """`x + act(conv1(act(conv3(act(conv1(x))))))`, twice as wide in between, without norms."""
    width, y = x.shape[-1], x
    for i, (factor, kernel) in enumerate(((2, 1), (2, 3), (1, 1))):
        y = _conv(y, factor * width, kernel, f"{name}_{i}", slope, norm=False)
    return keras.layers.Add(name=f"{name}_sum")([x, y])


def _short(x, name, slope):
    """`x` plus one 1x1 convolution of it."""
    return keras.layers.Add(name=f"{name}_sum")([x, _conv(x, x.shape[-1], 1, name, slope)])


def _joined(x, maps, level, image=None):
    """Joined to the encoder's map, in the size of the next larger map (the image's behind that)."""
    x = keras.layers.Concatenate(name=f"skip_{level}")([x, maps[level]])
    larger = maps[level - 1] if level else image
    return ResizeLike(name=f"resize_{level}")([x, larger])


def _large_kernel(x, width, kernel, name):
    """Sum of two separable `kernel x kernel` convolutions, batch norm, ReLU."""
    branches = []
    for first, second in (((kernel, 1), (1, kernel)), ((1, kernel), (kernel, 1))):
        y = x
        for i, size in enumerate((first, second)):
            y = conv(DIMS)(
                width,
                size,
                padding="same",
                kernel_initializer="he_normal",
                name=f"{name}_{len(branches)}_{i}",
            )(y)
        branches.append(y)
    x = keras.layers.Add(name=f"{name}_sum")(branches)
    return _act(batch_norm(f"{name}_norm")(x), RELU, f"{name}_act")
