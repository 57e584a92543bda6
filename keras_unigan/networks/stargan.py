"""StarGAN: one generator for all pairs of modalities, and its discriminator."""

import keras

from keras_unigan.layers import (
    LabelPlanes,
    check_strides,
    conv,
    conv_transpose,
    domain_code,
    halving_kernel,
    instance_norm,
    level_kernel,
    strided_conv,
)

MOST_LAYERS, MOST_HALVINGS = 6, 2
THIN = 16
"""Voxels below which an axis has no say in the depth of a discriminator, if others have more."""


@keras.saving.register_keras_serializable(package="keras_unigan")
class StarGANGenerator(keras.Model):
    """Image to image of the modality that a label plane names.

    Args:
        channels: Channels of the image.
        domains: Number of modalities; one plane each.
        filters: Width of the first convolution; the paper has 64.
        blocks: Number of residual blocks.
        strides: Stride of each halving and axis, e.g. that of a plan, of which the first two count:
            deeper down there is no detail left to translate. None is the paper's: two that halve
            every axis. As in `UNet`, convolutions do not reach along a coarse axis until it is
            first halved.
        spatial_dims: 2 or 3.

    Input shape: `[(batch, *spatial, channels), (batch, domains)]`; each side divisible by the
        product of its strides.
    Output shape: `(batch, *spatial, channels)`, float32 in [-1, 1].
    Reference: Choi et al. 2018, StarGAN, arXiv:1711.09020.

    Raises:
        ValueError: For strides that do not have one entry per axis, or none at all.
    """

    def __init__(
        self,
        channels=1,
        domains=2,
        filters=64,
        blocks=6,
        strides=None,
        spatial_dims=2,
        name="stargan_generator",
    ):
        strides = [(2,) * spatial_dims] * MOST_HALVINGS if strides is None else strides
        strides = check_strides(strides, spatial_dims)
        if not strides:
            raise ValueError("Expected strides of at least one level, got none.")
        depth = min(len(strides), MOST_HALVINGS)
        # 7 along the axes that the finest level reaches along.
        wide = tuple(7 if k > 1 else 1 for k in level_kernel(strides, 0))
        deepest = level_kernel(strides, depth)
        image = keras.Input((*[None] * spatial_dims, channels), name="image")
        code = keras.Input((domains,), name="code")
        options = {
            "padding": "same",
            "use_bias": False,
            "kernel_initializer": keras.initializers.RandomNormal(stddev=0.02),
        }
        layer, up = conv(spatial_dims), conv_transpose(spatial_dims)
        x = LabelPlanes(name="planes")([image, code])
        x = _norm_relu(layer(filters, wide, name="first", **options)(x), "first")
        for level in range(depth):
            width, name = filters * 2 ** (level + 1), f"down_{level + 1}"
            kernel, stride = halving_kernel(strides, level), strides[level]
            # A 4-wide stride-2 "same" convolution pads 1 on each side of an even axis.
            x = _norm_relu(layer(width, kernel, stride, name=name, **options)(x), name)
        width = filters * 2**depth
        for block in range(blocks):
            y = layer(width, deepest, name=f"block_{block}_conv_0", **options)(x)
            y = _norm_relu(y, f"block_{block}")
            y = layer(width, deepest, name=f"block_{block}_conv_1", **options)(y)
            y = instance_norm(f"block_{block}_norm_1", scale=True)(y)
            x = keras.layers.Add(name=f"block_{block}_sum")([x, y])
        for level in reversed(range(depth)):
            kernel, stride = halving_kernel(strides, level), strides[level]
            x = up(filters * 2**level, kernel, stride, name=f"up_{level}", **options)(x)
            x = _norm_relu(x, f"up_{level}")
        translated = layer(
            channels, wide, activation="tanh", dtype="float32", name="translated", **options
        )(x)
        super().__init__([image, code], translated, name=name)
        self.channels, self.domains, self.filters = channels, domains, filters
        self.blocks, self.strides, self.spatial_dims = blocks, strides, spatial_dims
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
            "strides": [list(s) for s in self.strides],
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
            at 2 or more, but not more than 6. An axis of less than 16 voxels beside longer ones
            does not hold them up: it is halved while it has 4.
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
        for level, (kernel, stride) in enumerate(_halvings(patch_size, depth)):
            width = min(filters * 2**level, max_dim or filters * 2**level)
            options = {"name": f"conv_{level}", "kernel_initializer": initializer}
            x = strided_conv(x, spatial_dims, width, kernel, stride, **options)
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
    shortest = min([side for side in patch_size if side >= THIN] or patch_size)
    depth = min(MOST_LAYERS, shortest.bit_length() - 2) if layers is None else layers
    if depth < 1 or shortest < 2**depth:
        least = 2 ** max(depth, 2)
        raise ValueError(f"Expected patch_size of {least} or more on each axis, got {patch_size}.")
    return depth


def _halvings(patch_size, depth):
    """Kernel and stride of each convolution: one number each, where they are those of all axes."""
    sides = list(patch_size)
    thin = [side < THIN <= max(patch_size) for side in sides]
    for _ in range(depth):
        # A thin axis that has come to its end is looked along, and halved no more.
        ended = [is_thin and side < 4 for is_thin, side in zip(thin, sides, strict=True)]
        stride = tuple(1 if end else 2 for end in ended)
        sides = [side // s for side, s in zip(sides, stride, strict=True)]
        yield (tuple(3 if end else 4 for end in ended), stride) if any(ended) else (4, 2)
