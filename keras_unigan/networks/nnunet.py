"""PlannedUNet: the U-Net of nnU-Net, whose depth follows the patch, with a head at every level."""

import keras

from keras_unigan.layers import (
    check_strides,
    conv,
    conv_transpose,
    instance_norm,
    level_kernel,
    strided_conv,
)

WIDEST = {2: 512, 3: 320}
"""Most channels of a stage, by the number of spatial axes."""


@keras.saving.register_keras_serializable(package="keras_unigan")
class PlannedUNet(keras.Model):
    """Stages of two convolutions with instance norm, halved by strides; logits at every level.

    Args:
        channels: Channels of the image.
        classes: Channels of the logits.
        filters: Width of the first stage; each stage doubles it, up to `widest`.
        strides: Stride from each stage to the next and axis, e.g. `((2, 2, 1), (2, 2, 2))`; None
            halves every axis five times. As in `UNet`, convolutions do not reach along a coarse
            axis until it is first halved.
        spatial_dims: 2 or 3.
        widest: Most channels of a stage; None is 512 in 2-D and 320 in 3-D.

    Input shape: `(batch, *spatial, channels)`; each side divisible by the product of its strides.
    Output shape: list of float32 logits `(batch, *sides, classes)`, one for every level of the
        decoder, the finest first; that one has the sides of the image.
    Reference: Isensee et al. 2021, nnU-Net, doi:10.1038/s41592-020-01008-z.

    Raises:
        ValueError: For strides that do not have one entry per axis, or none at all.
    """

    # How often an axis is halved follows from the patch and the spacing alone, not from the cap
    # that plans put on it for the other networks (`training.building`).
    planned = True

    def __init__(
        self,
        channels=1,
        classes=2,
        filters=32,
        strides=None,
        spatial_dims=2,
        widest=None,
        name="planned_unet",
    ):
        strides = [(2,) * spatial_dims] * 5 if strides is None else strides
        strides = check_strides(strides, spatial_dims)
        if not strides:
            raise ValueError("Expected strides of at least one level, got none.")
        most = WIDEST[spatial_dims] if widest is None else widest
        widths = [min(filters * 2**stage, most) for stage in range(len(strides) + 1)]
        x = image = keras.Input((*[None] * spatial_dims, channels), name="image")
        skips = []
        for stage, width in enumerate(widths):
            stride = strides[stage - 1] if stage else None
            x = _stage(x, width, level_kernel(strides, stage), f"encoder_{stage}", stride)
            skips.append(x)
        outputs = []
        for level, stride in reversed(list(enumerate(strides))):
            x = conv_transpose(spatial_dims)(
                widths[level],
                stride,
                stride,
                kernel_initializer="he_normal",
                name=f"up_{level}",
            )(x)
            x = keras.layers.Concatenate(name=f"skip_{level}")([skips[level], x])
            x = _stage(x, widths[level], level_kernel(strides, level), f"decoder_{level}")
            head = "logits" if level == 0 else f"logits_{level}"
            outputs.insert(0, conv(spatial_dims)(classes, 1, dtype="float32", name=head)(x))
        super().__init__(image, outputs, name=name)
        self.channels, self.classes, self.filters = channels, classes, filters
        self.strides, self.spatial_dims, self.widest = strides, spatial_dims, widest

    def segment(self, image, domain, training=False):
        """Logits of the finest level, float32, whatever the modality."""
        return self.tasks(image, domain, training)[0]

    def tasks(self, image, domain, training=False):
        """List of the logits of all levels, the finest first."""
        outputs = self(keras.ops.convert_to_tensor(image), training=training)
        return outputs if isinstance(outputs, list) else [outputs]

    def get_config(self):
        return {
            "channels": self.channels,
            "classes": self.classes,
            "filters": self.filters,
            "strides": [list(s) for s in self.strides],
            "spatial_dims": self.spatial_dims,
            "widest": self.widest,
            "name": self.name,
        }


def _stage(x, width, kernel, name, stride=None):
    """Two times convolution, instance norm with scale and offset, leaky ReLU."""
    dims = len(kernel)
    for i in range(2):
        options = {"kernel_initializer": "he_normal", "name": f"{name}_conv_{i}"}
        if stride is not None and i == 0:
            x = strided_conv(x, dims, width, kernel, stride, **options)
        else:
            x = conv(dims)(width, kernel, padding="same", **options)(x)
        x = instance_norm(f"{name}_norm_{i}", scale=True)(x)
        x = keras.layers.LeakyReLU(0.01, name=f"{name}_act_{i}")(x)
    return x
