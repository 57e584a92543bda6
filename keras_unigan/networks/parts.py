"""Parts of a U-Net from which the comparison networks are put together."""

import keras

from keras_unigan.layers import (
    FiLM,
    conv,
    conv_transpose,
    instance_norm,
    level_kernel,
    max_pool,
    squeeze_excitation,
)

REDUCTION = 16
"""Channels per unit of the squeezed layer of squeeze-and-excitation."""


@keras.saving.register_keras_serializable(package="keras_unigan")
class Routed(keras.layers.Layer):
    """Sum of maps, each weighted by its entry of a code; with a one-hot code, one of them.

    Call arguments: list of the code `(batch, n)` and n maps `(batch, *spatial, channels)`.
    Output shape: that of one map.
    """

    def call(self, inputs):
        code, *maps = inputs
        return keras.ops.sum(
            keras.ops.stack([_weighted(m, code[:, n]) for n, m in enumerate(maps)]), axis=0
        )

    def compute_output_shape(self, input_shape):
        return input_shape[1]


@keras.saving.register_keras_serializable(package="keras_unigan")
class Stacked(keras.layers.Layer):
    """Maps side by side, each times its entry of a code: absent modalities are zeros.

    Call arguments: as of `Routed`.
    Output shape: `(batch, *spatial, n * channels)`.
    """

    def call(self, inputs):
        code, *maps = inputs
        return keras.ops.concatenate([_weighted(m, code[:, n]) for n, m in enumerate(maps)], -1)

    def compute_output_shape(self, input_shape):
        _, *maps = input_shape
        return (*maps[0][:-1], sum(m[-1] for m in maps))


def _weighted(x, weight):
    """A map times one number a sample."""
    weight = keras.ops.cast(weight, x.dtype)
    return x * keras.ops.reshape(weight, (-1, *[1] * (len(x.shape) - 1)))


class Parts:
    """Builds parts of a U-Net by the names of their layers."""

    def __init__(self, filters, strides, code=None, excited=False):
        self.filters, self.strides, self.dims = filters, strides, len(strides[0])
        self.code, self.excited = code, excited
        self.levels = len(strides)

    def block(self, x, level, name, width=None):
        """Two times convolution, instance norm, leaky ReLU."""
        width = width or self.filters * 2**level
        kernel = level_kernel(self.strides, level) if level < self.levels else 3
        for i in range(2):
            x = conv(self.dims)(
                width,
                kernel,
                padding="same",
                kernel_initializer="he_normal",
                name=f"{name}_conv_{i}",
            )(x)
            x = instance_norm(f"{name}_norm_{i}")(x)
            if self.code is not None:
                x = FiLM(name=f"{name}_film_{i}")([x, self.code])
            x = keras.layers.LeakyReLU(0.01, name=f"{name}_act_{i}")(x)
        if self.excited:
            x = squeeze_excitation(x, max(1, width // REDUCTION), f"{name}_se")
        return x

    def pool(self, x, level, prefix=""):
        return max_pool(self.dims, self.strides[level], f"{prefix}pool_{level}")(x)

    def encode(self, x, prefix="", levels=None):
        """Maps of the first `levels` levels, and what goes on to the next one."""
        skips = []
        for level in range(self.levels if levels is None else levels):
            x = self.block(x, level, f"{prefix}encoder_{level}")
            skips.append(x)
            x = self.pool(x, level, prefix)
        return skips, x

    def centre(self, x, prefix=""):
        return self.block(x, self.levels, f"{prefix}centre")

    def decode(self, x, skips, prefix=""):
        """Map of the finest level."""
        for level, stride in reversed(list(enumerate(self.strides))):
            width = self.filters * 2**level
            x = conv_transpose(self.dims)(
                width, stride, stride, kernel_initializer="he_normal", name=f"{prefix}up_{level}"
            )(x)
            x = keras.layers.Concatenate(name=f"{prefix}skip_{level}")([skips[level], x])
            x = self.block(x, level, f"{prefix}decoder_{level}")
        return x

    def head(self, x, channels, name="logits"):
        return conv(self.dims)(channels, 1, dtype="float32", name=name)(x)

    def unet(self, x, prefix=""):
        """Finest map of a whole U-Net."""
        skips, x = self.encode(x, prefix)
        return self.decode(self.centre(x, prefix), skips, prefix)

    def each_encoded(self, image, domains, levels=None):
        """Skips of every modality's encoder, level by level, and what comes after them."""
        found = [self.encode(image, f"m{m}_", levels) for m in range(domains)]
        return list(zip(*[skips for skips, _ in found], strict=True)), [x for _, x in found]
