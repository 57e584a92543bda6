"""PairGenerator and PairDiscriminator: image and masks together, from noise."""

import keras

from keras_unigan.layers import LabelPlanes, batch_norm, check_strides, conv, conv_transpose
from keras_unigan.networks.synthesis import normals

WIDEST = 512
"""Most channels of a map."""


def _sizes(patch_size, strides, filters, spatial_dims):
    """Strides, the coarsest grid, and the width of each level, the finest first.

    Raises:
        ValueError: For strides of other axes than the patch, or that do not divide it.
    """
    strides = [(2,) * spatial_dims] * 4 if strides is None else strides
    strides, patch = check_strides(strides, spatial_dims), tuple(patch_size)
    coarse = list(patch)
    for stride in strides:
        coarse = [n // s if n % s == 0 else 0 for n, s in zip(coarse, stride, strict=False)]
    if len(patch) != spatial_dims or min(coarse) < 1:
        raise ValueError(
            f"Expected a patch of {spatial_dims} axes that {strides} halve, got {patch}."
        )
    return strides, tuple(coarse), [min(filters * 2**n, WIDEST) for n in range(len(strides) + 1)]


def _kernel(stride):
    """Sides of a kernel: 4 along an axis that is halved or doubled, else 3."""
    return tuple(4 if s > 1 else 3 for s in stride)


@keras.saving.register_keras_serializable(package="keras_unigan")
class PairGenerator(keras.Model):
    """Image and mask logits of a modality from one vector of noise.

    The same vector gives the same pair: both come from one map.

    Args:
        channels: Channels of the image.
        classes: Channels of the mask logits.
        domains: Number of modalities.
        patch_size: Sides of what is made.
        latent: Length of the vector of noise.
        filters: Width of the finest level; each coarser one doubles it, up to 512.
        strides: Stride from each level to the coarser one, as in `UNet`; None: four levels of 2.
        spatial_dims: 2 or 3.

    Input shape: `[(batch, latent), (batch, domains)]`: normal numbers, and the one-hot code of the
        modality.
    Output shape: `[(batch, *patch_size, channels), (batch, *patch_size, classes)]`, float32: the
        image in [-1, 1], and logits.
    Reference: Goodfellow et al. 2014, arXiv:1406.2661; with the layers of Radford et al. 2015,
        DCGAN, arXiv:1511.06434.

    Raises:
        ValueError: For strides that do not divide the patch.
    """

    def __init__(
        self,
        channels=1,
        classes=2,
        domains=1,
        patch_size=(128, 128),
        latent=128,
        filters=64,
        strides=None,
        spatial_dims=2,
        name="pair_generator",
    ):
        strides, coarse, widths = _sizes(patch_size, strides, filters, spatial_dims)
        options = {"kernel_initializer": keras.initializers.RandomNormal(stddev=0.02)}
        noise = keras.Input((latent,), name="noise")
        code = keras.Input((domains,), name="code")
        x = keras.layers.Concatenate(name="asked")([noise, code])
        size = widths[-1]
        for side in coarse:
            size *= side
        # What a batch norm follows needs no bias.
        x = keras.layers.Dense(size, use_bias=False, name="first", **options)(x)
        x = keras.layers.Reshape((*coarse, widths[-1]), name="coarsest")(x)
        x = keras.layers.ReLU(name="first_act")(batch_norm("first_norm")(x))
        for level, stride in reversed(list(enumerate(strides))):
            x = conv_transpose(spatial_dims)(
                widths[level],
                _kernel(stride),
                stride,
                padding="same",
                use_bias=False,
                name=f"up_{level}",
                **options,
            )(x)
            x = batch_norm(f"up_{level}_norm")(x)
            x = keras.layers.ReLU(name=f"up_{level}_act")(x)
        heads = {"image": (channels, "tanh"), "logits": (classes, None)}
        outputs = [
            conv(spatial_dims)(
                n, 3, padding="same", activation=f, dtype="float32", name=head, **options
            )(x)
            for head, (n, f) in heads.items()
        ]
        super().__init__([noise, code], outputs, name=name)
        self.channels, self.classes, self.domains = channels, classes, domains
        self.patch_size, self.latent, self.filters = tuple(patch_size), latent, filters
        self.strides, self.spatial_dims, self.code_size = strides, spatial_dims, domains

    def sample(self, seeds, domain, training=False):
        """Image and mask logits of each pair of whole numbers, whoever stands beside it.

        Args:
            seeds: Whole numbers `(batch, 2)`.
            domain: int `(batch,)`, index of the modality that is asked for.
            training: Whether the pass is one of training, where pairs of a batch share statistics.
        """
        code = keras.ops.one_hot(domain, self.domains, dtype="float32")
        return self([normals(seeds, (self.latent,), 0), code], training=training)

    def get_config(self):
        return {
            "channels": self.channels,
            "classes": self.classes,
            "domains": self.domains,
            "patch_size": list(self.patch_size),
            "latent": self.latent,
            "filters": self.filters,
            "strides": [list(s) for s in self.strides],
            "spatial_dims": self.spatial_dims,
            "name": self.name,
        }


@keras.saving.register_keras_serializable(package="keras_unigan")
class PairDiscriminator(keras.Model):
    """Whether image and masks are a real pair of a modality; the generator's mirror image.

    Args:
        channels: Channels of image and masks together.
        domains: Number of modalities.
        patch_size: Sides of what it sees.
        filters: Width of the first convolution; each one doubles it, up to 512.
        strides: Stride of each convolution, as in `PairGenerator`.
        spatial_dims: 2 or 3.

    Input shape: `[(batch, *patch_size, channels), (batch, domains)]`.
    Output shape: `(batch, 1)`, float32 logit.
    Reference: Goodfellow et al. 2014, arXiv:1406.2661; Radford et al. 2015, arXiv:1511.06434.

    Raises:
        ValueError: For strides that do not divide the patch.
    """

    def __init__(
        self,
        channels=3,
        domains=1,
        patch_size=(128, 128),
        filters=64,
        strides=None,
        spatial_dims=2,
        name="pair_discriminator",
    ):
        strides, _, widths = _sizes(patch_size, strides, filters, spatial_dims)
        options = {"kernel_initializer": keras.initializers.RandomNormal(stddev=0.02)}
        pair = keras.Input((*patch_size, channels), name="pair")
        code = keras.Input((domains,), name="code")
        x = LabelPlanes(name="planes")([pair, code])
        for level, stride in enumerate(strides):
            x = conv(spatial_dims)(
                widths[level],
                _kernel(stride),
                stride,
                padding="same",
                name=f"down_{level}",
                **options,
            )(x)
            x = keras.layers.LeakyReLU(0.2, name=f"down_{level}_act")(x)
        x = keras.layers.Flatten(name="flat")(x)
        logit = keras.layers.Dense(1, dtype="float32", name="logit", **options)(x)
        super().__init__([pair, code], logit, name=name)
        self.channels, self.domains, self.patch_size = channels, domains, tuple(patch_size)
        self.filters, self.strides = filters, strides
        self.spatial_dims, self.code_size = spatial_dims, domains

    def get_config(self):
        return {
            "channels": self.channels,
            "domains": self.domains,
            "patch_size": list(self.patch_size),
            "filters": self.filters,
            "strides": [list(s) for s in self.strides],
            "spatial_dims": self.spatial_dims,
            "name": self.name,
        }
