"""StarGAN: one generator for all pairs of modalities, and its discriminator."""

import keras

from keras_unigan.layers import (
    LabelPlanes,
    conv,
    conv_transpose,
    domain_code,
    instance_norm,
    strided_conv,
)

MOST_LAYERS = 6


@keras.saving.register_keras_serializable(package="keras_unigan")
class StarGANGenerator(keras.Model):
    """Image to image of the modality that a label plane names.

    Args:
        channels: Channels of the image.
        domains: Number of modalities; one plane each.
        filters: Width of the first convolution; the paper has 64.
        blocks: Number of residual blocks.
        spatial_dims: 2 or 3.

    Input shape: `[(batch, *spatial, channels), (batch, domains)]`; sides divisible by 4.
    Output shape: `(batch, *spatial, channels)`, float32 in [-1, 1].
    Reference: Choi et al. 2018, StarGAN, arXiv:1711.09020.
    """

    def __init__(
        self,
        channels=1,
        domains=2,
        filters=64,
        blocks=6,
        spatial_dims=2,
        name="stargan_generator",
    ):
        image = keras.Input((*[None] * spatial_dims, channels), name="image")
        code = keras.Input((domains,), name="code")
        options = {
            "padding": "same",
            "use_bias": False,
            "kernel_initializer": keras.initializers.RandomNormal(stddev=0.02),
        }
        layer, up = conv(spatial_dims), conv_transpose(spatial_dims)
        x = LabelPlanes(name="planes")([image, code])
        x = _norm_relu(layer(filters, 7, name="first", **options)(x), "first")
        for level in (1, 2):
            # A 4-wide stride-2 "same" convolution pads 1 on each side of an even axis.
            x = layer(filters * 2**level, 4, 2, name=f"down_{level}", **options)(x)
            x = _norm_relu(x, f"down_{level}")
        for block in range(blocks):
            y = layer(4 * filters, 3, name=f"block_{block}_conv_0", **options)(x)
            y = _norm_relu(y, f"block_{block}")
            y = layer(4 * filters, 3, name=f"block_{block}_conv_1", **options)(y)
            y = instance_norm(f"block_{block}_norm_1", scale=True)(y)
            x = keras.layers.Add(name=f"block_{block}_sum")([x, y])
        for level in (1, 0):
            x = up(filters * 2**level, 4, 2, name=f"up_{level}", **options)(x)
            x = _norm_relu(x, f"up_{level}")
        translated = layer(
            channels, 7, activation="tanh", dtype="float32", name="translated", **options
        )(x)
        super().__init__([image, code], translated, name=name)
        self.channels, self.domains, self.filters = channels, domains, filters
        self.blocks, self.spatial_dims = blocks, spatial_dims
        self.code_size = domains

    def code(self, source, target):
        """One-hot code of `target`, int `(batch,)`; `source` makes no difference."""
        return domain_code(target, self.domains)

    def translate(self, image, source, target, training=False):
        """Images in the modality `target`, float32."""
        image = keras.ops.convert_to_tensor(image)
        return self([image, self.code(source, target)], training=training)

    def get_config(self):
        return {
            "channels": self.channels,
            "domains": self.domains,
            "filters": self.filters,
            "blocks": self.blocks,
            "spatial_dims": self.spatial_dims,
            "name": self.name,
        }


def _norm_relu(x, name):
    x = instance_norm(f"{name}_norm", scale=True)(x)
    return keras.layers.ReLU(name=f"{name}_act")(x)


@keras.saving.register_keras_serializable(package="keras_unigan")
class StarGANDiscriminator(keras.Model):
    """Real or made, patch by patch, and of which modality.

    Args:
        channels: Channels of the image.
        domains: Number of modalities.
        patch_size: Sides of the image; they fix the kernel of the domain head.
        filters: Width of the first convolution; each one doubles it.
        layers: Number of stride-2 convolutions. None: as many as keep every side of the last map
            at 2 or more, but not more than 6.
        max_dim: Largest width; None for no limit.
        head: "classify" (paper): one map of patches, and a classifier of the modality.
            "multi": one map of patches per modality and no classifier.
        slope: Slope of the leaky ReLUs below 0.
        first_slope: Slope of the first of them; None: as the others. UAGAN has 0.001.
        head_bias: Whether the convolutions of the heads have biases.
        spatial_dims: 2 or 3.

    Input shape: `(batch, *patch_size, channels)`; any size with the head "multi".
    Output shape: "classify": list of `(batch, *map, 1)` patch logits and `(batch, domains)` domain
        logits; "multi": list of `(batch, *map, domains)` patch logits. All float32.
    Reference: Choi et al. 2018, StarGAN, arXiv:1711.09020; head "multi": Liu et al. 2019, FUNIT,
        arXiv:1905.01723.

    Raises:
        ValueError: For an unknown head, or a patch size that does not fit.
    """

    def __init__(
        self,
        channels=1,
        domains=2,
        patch_size=(128, 128),
        filters=64,
        layers=None,
        max_dim=None,
        head="classify",
        slope=0.01,
        first_slope=None,
        head_bias=False,
        spatial_dims=2,
        name="stargan_discriminator",
    ):
        if head not in ("classify", "multi"):
            raise ValueError(f'Expected head "classify" or "multi", got {head!r}.')
        patch_size = tuple(patch_size)
        depth = _depth(patch_size, layers, spatial_dims)
        initializer = keras.initializers.RandomNormal(stddev=0.02)
        sides = patch_size if head == "classify" else [None] * spatial_dims
        x = image = keras.Input((*sides, channels), name="image")
        for level in range(depth):
            width = min(filters * 2**level, max_dim or filters * 2**level)
            x = strided_conv(
                x, spatial_dims, width, 4, 2, f"conv_{level}", kernel_initializer=initializer
            )
            first = slope if first_slope is None else first_slope
            x = keras.layers.LeakyReLU(slope if level else first, name=f"act_{level}")(x)
        options = {
            "use_bias": head_bias,
            "kernel_initializer": initializer,
            "dtype": "float32",
        }
        patches = 1 if head == "classify" else domains
        outputs = [conv(spatial_dims)(patches, 3, padding="same", name="source", **options)(x)]
        if head == "classify":
            kernel = x.shape[1:-1]
            logits = conv(spatial_dims)(domains, kernel, name="domain", **options)(x)
            outputs.append(keras.layers.Reshape((domains,), dtype="float32", name="logits")(logits))
        super().__init__(image, outputs, name=name)
        # `layers` of a Keras model are its layers.
        self.channels, self.domains, self.patch_size = channels, domains, patch_size
        self.filters, self.depth, self.max_dim = filters, depth, max_dim
        self.head, self.slope, self.first_slope = head, slope, first_slope
        self.head_bias, self.spatial_dims = head_bias, spatial_dims

    def get_config(self):
        return {
            "channels": self.channels,
            "domains": self.domains,
            "patch_size": list(self.patch_size),
            "filters": self.filters,
            "layers": self.depth,
            "max_dim": self.max_dim,
            "head": self.head,
            "slope": self.slope,
            "first_slope": self.first_slope,
            "head_bias": self.head_bias,
            "spatial_dims": self.spatial_dims,
            "name": self.name,
        }


def _depth(patch_size, layers, spatial_dims):
    """Number of stride-2 convolutions that the patch allows, or the number asked for."""
    if len(patch_size) != spatial_dims:
        raise ValueError(f"Expected patch_size of {spatial_dims} axes, got {patch_size}.")
    depth = min(MOST_LAYERS, min(patch_size).bit_length() - 2) if layers is None else layers
    if depth < 1 or min(patch_size) < 2**depth:
        least = 2 ** max(depth, 2)
        raise ValueError(f"Expected patch_size of {least} or more on each axis, got {patch_size}.")
    return depth
