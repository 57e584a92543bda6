"""UNet: the plain encoder and decoder with skips, in 2-D and 3-D."""

import keras

from keras_unigan.layers import (
    LocalContrast,
    check_strides,
    conv,
    conv_transpose,
    instance_norm,
    level_kernel,
    max_pool,
)


@keras.saving.register_keras_serializable(package="keras_unigan")
class UNet(keras.Model):
    """U-Net of blocks of two 3-wide convolutions with instance norm.

    Args:
        channels: Channels of the image.
        classes: Channels of the logits.
        filters: Width of the first level; each level doubles it.
        levels: Number of poolings.
        strides: Pooling stride per level and axis, e.g. `((2, 2, 1), (2, 2, 2))`; overrides
            `levels`. None pools every axis by 2. Until a coarse axis is first pooled,
            convolutions do not reach along it: they are 3x3x1 (methods.md §1).
        spatial_dims: 2 or 3.
        local_contrast: Whether the image comes with itself in units of its local contrast.

    Input shape: `(batch, *spatial, channels)`; each side divisible by the product of its strides.
    Output shape: `(batch, *spatial, classes)`, float32 logits.
    Reference: Ronneberger et al. 2015, U-Net, arXiv:1505.04597, with the blocks of UAGAN.

    Raises:
        ValueError: For strides that do not have one entry per axis.
    """

    def __init__(
        self,
        channels=1,
        classes=2,
        filters=32,
        levels=4,
        strides=None,
        spatial_dims=2,
        local_contrast=False,
        name="unet",
    ):
        strides = [(2,) * spatial_dims] * levels if strides is None else strides
        strides = check_strides(strides, spatial_dims)
        x = image = keras.Input((*[None] * spatial_dims, channels), name="image")
        if local_contrast:
            x = LocalContrast(name="local_contrast")(x)
        skips = []
        for level, stride in enumerate(strides):
            kernel = level_kernel(strides, level)
            x = _block(x, filters * 2**level, spatial_dims, f"encoder_{level}", kernel)
            skips.append(x)
            x = max_pool(spatial_dims, stride, f"pool_{level}")(x)
        x = _block(x, filters * 2 ** len(strides), spatial_dims, "centre")
        for level, stride in reversed(list(enumerate(strides))):
            width = filters * 2**level
            x = conv_transpose(spatial_dims)(
                width, stride, stride, kernel_initializer="he_normal", name=f"up_{level}"
            )(x)
            x = keras.layers.Concatenate(name=f"skip_{level}")([skips[level], x])
            kernel = level_kernel(strides, level)
            x = _block(x, width, spatial_dims, f"decoder_{level}", kernel)
        logits = conv(spatial_dims)(classes, 1, dtype="float32", name="logits")(x)
        super().__init__(image, logits, name=name)
        self.channels, self.classes, self.filters = channels, classes, filters
        self.local_contrast = local_contrast
        self.levels, self.strides, self.spatial_dims = len(strides), strides, spatial_dims

    def get_config(self):
        return {
            "channels": self.channels,
            "classes": self.classes,
            "filters": self.filters,
            "levels": self.levels,
            "strides": [list(s) for s in self.strides],
            "spatial_dims": self.spatial_dims,
            "local_contrast": self.local_contrast,
            "name": self.name,
        }


def _block(x, width, spatial_dims, name, kernel=3):
    """Two times convolution, instance norm without scale and offset, leaky ReLU."""
    for i in range(2):
        x = conv(spatial_dims)(
            width, kernel, padding="same", kernel_initializer="he_normal", name=f"{name}_conv_{i}"
        )(x)
        x = instance_norm(f"{name}_norm_{i}")(x)
        x = keras.layers.LeakyReLU(0.01, name=f"{name}_act_{i}")(x)
    return x
