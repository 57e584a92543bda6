"""Images from label maps, label maps from noise, and the critic of made label maps.

Anatomy is passed on as planes `(batch, *spatial, outputs + 1)`: the target of every output of the
plan, and last whether a voxel is inside the body. Everything drawn depends on seeds alone, one pair
of whole numbers a sample, so that a pair of image and label map can be made again anywhere.
"""

import keras
import tensorflow as tf

from keras_unigan.layers import check_strides, conv, instance_norm, strided_conv

INSIDE = -0.99
"""Normalised intensity above which a voxel is taken to be inside the body."""


def normals(seeds, shape, salt):
    """Normal numbers of each sample, the same for the same seed wherever and with whom it is drawn.

    Args:
        seeds: Whole numbers `(batch, 2)`.
        shape: Shape of what is drawn for one sample.
        salt: Whole number: another one draws other numbers.

    Returns:
        float32 `(batch, *shape)`.
    """
    seeds = tf.cast(seeds, tf.int64) + tf.constant([0, salt], tf.int64)
    return tf.map_fn(
        lambda seed: tf.random.stateless_normal(shape, seed),
        seeds,
        fn_output_signature=tf.float32,
    )


def anatomy(image, target):
    """Planes of real images.

    The inside is where most of a voxel's neighbours (five along each axis) are brighter than the
    background: single dark voxels do not make a hole.

    Args:
        image: `(batch, *spatial, channels)`, normalised.
        target: `(batch, *spatial, outputs)`.
    """
    bright = tf.cast(tf.reduce_max(image, axis=-1, keepdims=True) > INSIDE, tf.float32)
    dims = len(image.shape) - 2
    pooled = tf.nn.avg_pool(bright, (5,) * dims, 1, "SAME")
    return tf.concat([tf.cast(target, tf.float32), tf.cast(pooled > 0.5, tf.float32)], axis=-1)


@keras.saving.register_keras_serializable(package="keras_unigan")
class ImageRenderer(keras.Model):
    """Image of a modality that shows a given anatomy.

    The planes are encoded by strided convolutions; on the way back from the coarsest map each
    normalised map gets a scale and an offset a voxel from the code of its level (spatially adaptive
    normalisation), and a scale and an offset a channel from modality and style. Outside of the body
    the image is -1.

    Args:
        planes: Channels of the anatomy, the inside last.
        channels: Channels of the image.
        domains: Number of modalities.
        latent: Normal numbers a sample that decide the style of an image.
        filters: Width at full resolution; it doubles with each level, up to eight times.
        strides: Per level one stride per axis; None: four levels of 2.
        spatial_dims: 2 or 3.

    Input shape: `[(batch, *spatial, planes + 1), (batch, domains + latent)]`: the planes and one of
        normal numbers (grain); modality, one-hot, and style. Sides divisible by all strides.
    Output shape: `(batch, *spatial, channels)`, float32 in [-1, 1].
    Reference: Park et al. 2019, SPADE, arXiv:1903.07291.
    """

    def __init__(
        self,
        planes=3,
        channels=1,
        domains=2,
        latent=16,
        filters=32,
        strides=None,
        spatial_dims=2,
        name="image_renderer",
    ):
        strides = [(2,) * spatial_dims] * 4 if strides is None else strides
        strides = check_strides(strides, spatial_dims)
        shown = keras.Input((*[None] * spatial_dims, planes + 1), name="anatomy")
        code = keras.Input((domains + latent,), name="code")
        layer = conv(spatial_dims)
        x = layer(filters, 3, padding="same", activation="relu", name="encode_0")(shown)
        encoded = [x]
        for level, stride in enumerate(strides, 1):
            x = strided_conv(x, spatial_dims, filters, 3, stride, f"encode_{level}")
            encoded.append(x := keras.layers.ReLU(name=f"encode_{level}_act")(x))
        widths = [filters * min(2**level, 8) for level in range(len(encoded))]
        x = layer(widths[-1], 3, padding="same", name="coarsest")(x)
        for level in reversed(range(len(encoded))):
            x = _adaptive(x, encoded[level], code, widths[level], f"render_{level}")
            if level:
                # Nearest neighbours: the next convolution smooths them.
                up = {2: keras.layers.UpSampling2D, 3: keras.layers.UpSampling3D}[spatial_dims]
                x = up(strides[level - 1], name=f"up_{level}")(x)
        x = keras.layers.LeakyReLU(0.2, name="last_act")(x)
        x = layer(
            channels, 3, padding="same", activation="tanh", dtype="float32", name="intensity"
        )(x)
        inside = keras.ops.cast(shown[..., planes - 1 : planes], "float32")
        super().__init__([shown, code], inside * (x + 1.0) - 1.0, name=name)
        self.planes, self.channels, self.domains = planes, channels, domains
        self.latent, self.filters, self.strides = latent, filters, strides
        self.spatial_dims, self.code_size = spatial_dims, domains + latent

    def render(self, planes, target, seeds, training=False):
        """Images of the modality `target` that show `planes`.

        Args:
            planes: `(batch, *spatial, planes)`.
            target: int32 `(batch,)`.
            seeds: Whole numbers `(batch, 2)`, for style and grain.
            training: As of the network's own call.
        """
        planes = tf.convert_to_tensor(planes)
        grain = normals(seeds, tf.concat([tf.shape(planes)[1:-1], [1]], axis=0), 1)
        grain = tf.ensure_shape(grain, [*planes.shape[:-1], 1])
        return self.paint(planes, grain, target, self.style(seeds), training)

    def paint(self, planes, grain, target, style, training=False):
        """As `render`, of grain `(batch, *spatial, 1)` and style `(batch, latent)` at hand."""
        code = tf.concat([tf.one_hot(target, self.domains), style], axis=-1)
        return self([tf.concat([planes, grain], axis=-1), code], training=training)

    @staticmethod
    def anatomy(image, target):
        """Planes of real images; see the function `anatomy`."""
        return anatomy(image, target)

    def style(self, seeds):
        """The style of each seed, float32 `(batch, latent)`."""
        return tf.ensure_shape(normals(seeds, (self.latent,), 2), [None, self.latent])

    def get_config(self):
        return {
            "planes": self.planes,
            "channels": self.channels,
            "domains": self.domains,
            "latent": self.latent,
            "filters": self.filters,
            "strides": self.strides,
            "spatial_dims": self.spatial_dims,
            "name": self.name,
        }


def _adaptive(x, encoded, code, width, name):
    """Residual block, normalised to what the anatomy and the code ask for."""
    dims = len(x.shape) - 2
    layer, old = conv(dims), x.shape[-1]
    y = instance_norm(f"{name}_norm")(x)
    for which, features in (("anatomy", encoded), ("code", code)):
        if which == "anatomy":
            change = layer(2 * old, 3, padding="same", name=f"{name}_{which}")(features)
        else:
            change = keras.layers.Dense(2 * old, name=f"{name}_{which}")(features)
            change = keras.layers.Reshape((*[1] * dims, 2 * old), name=f"{name}_{which}_map")(
                change
            )
        scale, offset = keras.ops.split(change, 2, axis=-1)
        y = y * (1.0 + scale) + offset
    y = keras.layers.LeakyReLU(0.2, name=f"{name}_act")(y)
    y = layer(width, 3, padding="same", name=f"{name}_conv")(y)
    if width != old:
        x = layer(width, 1, use_bias=False, name=f"{name}_short")(x)
    return keras.layers.Add(name=f"{name}_sum")([x, y])


@keras.saving.register_keras_serializable(package="keras_unigan")
class MaskGenerator(keras.Model):
    """Anatomy from noise.

    Args:
        planes: Channels of the anatomy, the inside last.
        patch_size: Sides of what it makes; divisible by all strides.
        overlapping: Whether the outputs are regions, and not exclusive classes.
        latent: Normal numbers a sample.
        filters: Width at full resolution; it doubles with each level, up to eight times.
        strides: Per level one stride per axis; None: four levels of 2.
        spatial_dims: 2 or 3.

    Input shape: `(batch, latent)`.
    Output shape: `(batch, *patch_size, planes)`, float32 in [0, 1]. Exclusive classes are the
        softmax with one output more, for what is outside: the background holds it, too.
    Reference: Gulrajani et al. 2017, arXiv:1704.00028 (the game that it is trained in).

    Raises:
        ValueError: For a patch that the strides do not divide.
    """

    def __init__(
        self,
        planes=3,
        patch_size=(128, 128),
        overlapping=False,
        latent=128,
        filters=16,
        strides=None,
        spatial_dims=2,
        name="mask_generator",
    ):
        strides = [(2,) * spatial_dims] * 4 if strides is None else strides
        strides, patch_size = check_strides(strides, spatial_dims), tuple(patch_size)
        coarse = list(patch_size)
        for stride in strides:
            coarse = [side / s for side, s in zip(coarse, stride, strict=True)]
        if len(patch_size) != spatial_dims or any(side != int(side) for side in coarse):
            raise ValueError(f"Expected patch_size divisible by {strides}, got {patch_size}.")
        coarse = [int(side) for side in coarse]
        layer, depth = conv(spatial_dims), len(strides)
        width = filters * min(2**depth, 8)
        z = keras.Input((latent,), name="latent")
        size = width
        for side in coarse:
            size *= side
        x = keras.layers.Dense(size, name="dense")(z)
        x = keras.layers.Reshape((*coarse, width), name="coarsest")(x)
        up = {2: keras.layers.UpSampling2D, 3: keras.layers.UpSampling3D}[spatial_dims]
        for level in reversed(range(depth)):
            # One group: instance norm would take out how much there is of anything.
            x = keras.layers.GroupNormalization(1, epsilon=1e-5, name=f"norm_{level}")(x)
            x = keras.layers.ReLU(name=f"act_{level}")(x)
            x = up(strides[level], name=f"up_{level}")(x)
            width = filters * min(2**level, 8)
            x = layer(width, 3, padding="same", name=f"conv_{level}")(x)
        x = keras.layers.LeakyReLU(0.2, name="last_act")(x)
        logits = layer(planes, 3, padding="same", dtype="float32", name="logits")(x)
        super().__init__(z, _planes(logits, overlapping), name=name)
        self.planes, self.patch_size, self.overlapping = planes, patch_size, overlapping
        self.latent, self.filters = latent, filters
        self.strides, self.spatial_dims = strides, spatial_dims

    def sample(self, seeds, training=False):
        """Planes `(batch, *patch_size, planes)` of whole numbers `(batch, 2)`."""
        z = tf.ensure_shape(normals(seeds, (self.latent,), 3), [None, self.latent])
        return self(z, training=training)

    def get_config(self):
        return {
            "planes": self.planes,
            "patch_size": list(self.patch_size),
            "overlapping": self.overlapping,
            "latent": self.latent,
            "filters": self.filters,
            "strides": self.strides,
            "spatial_dims": self.spatial_dims,
            "name": self.name,
        }


def _planes(logits, overlapping):
    """Planes of logits, of which the last one is for the outside, or for the inside of regions."""
    if overlapping:
        return keras.ops.sigmoid(logits)
    found = keras.ops.softmax(logits, axis=-1)
    outside = found[..., -1:]
    rest = found[..., 1:-1]
    return keras.ops.concatenate([found[..., :1] + outside, rest, 1.0 - outside], axis=-1)


@keras.saving.register_keras_serializable(package="keras_unigan")
class MaskCritic(keras.Model):
    """Scores of anatomies, patch by patch: high for those of real label maps.

    Args:
        planes: Channels of the anatomy.
        filters: Width of the first convolution; each one doubles it.
        layers: Number of stride-2 convolutions.
        spatial_dims: 2 or 3.

    Input shape: `(batch, *spatial, planes)`.
    Output shape: `(batch, *map, 1)`, float32; no norm, as the gradient penalty asks for.
    Reference: Gulrajani et al. 2017, arXiv:1704.00028.
    """

    def __init__(self, planes=3, filters=32, layers=4, spatial_dims=2, name="mask_critic"):
        x = shown = keras.Input((*[None] * spatial_dims, planes), name="anatomy")
        for level in range(layers):
            width = filters * min(2**level, 8)
            x = strided_conv(x, spatial_dims, width, 4, 2, f"conv_{level}")
            x = keras.layers.LeakyReLU(0.2, name=f"act_{level}")(x)
        last = conv(spatial_dims)(1, 3, padding="same", dtype="float32", name="score")
        super().__init__(shown, last(x), name=name)
        self.planes, self.filters, self.depth = planes, filters, layers
        self.spatial_dims = spatial_dims

    def get_config(self):
        return {
            "planes": self.planes,
            "filters": self.filters,
            "layers": self.depth,
            "spatial_dims": self.spatial_dims,
            "name": self.name,
        }
