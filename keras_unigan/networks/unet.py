"""UNet: the plain encoder and decoder with skips, in 2-D and 3-D."""

import keras

from keras_unigan.layers import LocalContrast, check_strides
from keras_unigan.networks.parts import Parts


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
        outputs = self.connect(x, filters, strides, channels, classes)
        super().__init__(image, outputs, name=name)
        self.channels, self.classes, self.filters = channels, classes, filters
        self.local_contrast = local_contrast
        self.levels, self.strides, self.spatial_dims = len(strides), strides, spatial_dims

    @staticmethod
    def connect(x, filters, strides, channels, classes):
        """Outputs of what the first level sees."""
        parts = Parts(filters, strides)
        return parts.head(parts.unet(x), classes)

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
