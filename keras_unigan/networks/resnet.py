"""The residual translators and the patch discriminator of CycleGAN."""

import keras

from keras_unigan.layers import conv, conv_transpose, instance_norm, zero_padding

DIMS = 2


@keras.saving.register_keras_serializable(package="keras_unigan")
class ResNetTranslator(keras.Model):
    """Two halvings, residual blocks, two doublings; image to image, or image to logits.

    Args:
        channels: Channels of the image.
        classes: Channels of the logits. None (a translator): as many channels as the image has,
            through tanh.
        filters: Width of the first convolution; the paper has 64.
        blocks: Number of residual blocks.

    Input shape: `(batch, height, width, channels)`; sides divisible by 4, and 8 or more.
    Output shape: `(batch, height, width, channels or classes)`, float32.
    Reference: Zhu et al. 2017, CycleGAN, arXiv:1703.10593; as a segmentor: Huo et al. 2018,
        SynSeg-Net, arXiv:1810.06498.
    """

    def __init__(self, channels=1, classes=None, filters=64, blocks=9, name="resnet_translator"):
        options = {"kernel_initializer": keras.initializers.RandomNormal(stddev=0.02)}
        x = image = keras.Input((None, None, channels), name="image")
        x = conv(DIMS)(filters, 7, name="first", **options)(_reflect(x, 3))
        x = _norm_relu(x, "first")
        for level in (1, 2):
            x = zero_padding(DIMS, 1, f"down_{level}_pad")(x)
            x = conv(DIMS)(filters * 2**level, 3, 2, name=f"down_{level}", **options)(x)
            x = _norm_relu(x, f"down_{level}")
        for block in range(blocks):
            # Not `name`, which is the model's.
            own = f"block_{block}"
            y = conv(DIMS)(4 * filters, 3, name=f"{own}_conv_0", **options)(_reflect(x, 1))
            y = _norm_relu(y, own)
            y = conv(DIMS)(4 * filters, 3, name=f"{own}_conv_1", **options)(_reflect(y, 1))
            y = instance_norm(f"{own}_norm_1")(y)
            x = keras.layers.Add(name=f"{own}_sum")([x, y])
        for level in (1, 0):
            x = conv_transpose(DIMS)(filters * 2**level, 3, 2, name=f"up_{level}", **options)(x)
            # The mirror image of `down`: "same" would leave the map half a pixel aside.
            x = keras.layers.Cropping2D(((1, 0), (1, 0)), name=f"up_{level}_crop")(x)
            x = _norm_relu(x, f"up_{level}")
        outputs, activation = (channels, "tanh") if classes is None else (classes, None)
        last = conv(DIMS)(
            outputs, 7, activation=activation, dtype="float32", name="outputs", **options
        )
        super().__init__(image, last(_reflect(x, 3)), name=name)
        self.channels, self.classes = channels, classes
        self.filters, self.blocks, self.spatial_dims = filters, blocks, DIMS

    def get_config(self):
        return {
            "channels": self.channels,
            "classes": self.classes,
            "filters": self.filters,
            "blocks": self.blocks,
            "name": self.name,
        }


@keras.saving.register_keras_serializable(package="keras_unigan")
class PairTranslator(keras.Model):
    """Two residual translators, one for each direction between two modalities.

    As a function of one image it gives both translations; `translate` picks the one that is asked
    for.

    Args:
        channels: Channels of the image.
        pair: Indices of the two modalities in the plan; the order tells the translators apart.
        filters: Width of the first convolutions; the paper has 64.
        blocks: Number of residual blocks of each.

    Input shape: `(batch, height, width, channels)`; sides divisible by 4, and 8 or more.
    Output shape: list of two `(batch, height, width, channels)`, float32 in [-1, 1]: the image as
        of the second, and as of the first modality.
    Reference: Zhu et al. 2017, CycleGAN, arXiv:1703.10593.

    Raises:
        ValueError: For a pair that is not of two modalities.
    """

    # What an image goes through (`counting`).
    main_layer = "forth"

    def __init__(self, channels=1, pair=(0, 1), filters=64, blocks=9, name="pair_translator"):
        pair = check_pair(pair)
        image = keras.Input((None, None, channels), name="image")
        options = {"channels": channels, "filters": filters, "blocks": blocks}
        outputs = []
        for direction in ("forth", "back"):
            # Built apart, the variables of both would have the same paths.
            with keras.name_scope(direction):
                outputs.append(ResNetTranslator(**options, name=direction)(image))
        super().__init__(image, outputs, name=name)
        self.channels, self.pair = channels, pair
        self.filters, self.blocks, self.spatial_dims = filters, blocks, DIMS

    @property
    def forth(self):
        """The translator from the first modality to the second."""
        return self.get_layer("forth")

    @property
    def back(self):
        """The translator from the second modality to the first."""
        return self.get_layer("back")

    def translate(self, image, source, target, training=False):
        """Images in the modality `target`, float32.

        An image that has that modality stays as it is, and one of unknown modality (-1) is taken
        for the other one of the pair. NaN where source or target is a modality beyond the pair.

        Args:
            image: `(batch, height, width, channels)`.
            source: int `(batch,)`.
            target: int `(batch,)`.
            training: Whether the pass is one of training.
        """
        return translate_pair(self, image, source, target, training)

    def get_config(self):
        return {
            "channels": self.channels,
            "pair": list(self.pair),
            "filters": self.filters,
            "blocks": self.blocks,
            "name": self.name,
        }


@keras.saving.register_keras_serializable(package="keras_unigan")
class SynSegNetwork(keras.Model):
    """The translators of CycleGAN and a residual segmentor of the second modality's images.

    Args:
        channels: Channels of the image.
        classes: Channels of the logits.
        pair: Indices of the labelled and of the other modality in the plan.
        filters: Width of the first convolutions; the paper has 64.
        blocks: Number of residual blocks of each.

    Input shape: `(batch, height, width, channels)`; sides divisible by 4, and 8 or more.
    Output shape: list of the logits `(batch, height, width, classes)` and of the image as of the
        second, and as of the first modality, float32.
    Reference: Huo et al. 2019, SynSeg-Net, arXiv:1810.06498.

    Raises:
        ValueError: For a pair that is not of two modalities.
    """

    main_layer = "segmentor"

    def __init__(
        self, channels=1, classes=2, pair=(0, 1), filters=64, blocks=9, name="synseg_network"
    ):
        pair = check_pair(pair)
        image = keras.Input((None, None, channels), name="image")
        options = {"channels": channels, "filters": filters, "blocks": blocks}
        outputs = []
        for part, own in (("segmentor", {"classes": classes}), ("forth", {}), ("back", {})):
            with keras.name_scope(part):
                outputs.append(ResNetTranslator(**options, **own, name=part)(image))
        super().__init__(image, outputs, name=name)
        self.channels, self.classes, self.pair = channels, classes, pair
        self.filters, self.blocks, self.spatial_dims = filters, blocks, DIMS

    @property
    def segmentor(self):
        """The segmentor of images of the second modality, without its tanh."""
        return self.get_layer("segmentor")

    @property
    def forth(self):
        """The translator from the first modality to the second."""
        return self.get_layer("forth")

    @property
    def back(self):
        """The translator from the second modality to the first."""
        return self.get_layer("back")

    def segment(self, image, domain, training=False):
        """Logits, float32; images of the first modality are translated to the second before."""
        return self.segmentor(as_second(self, image, domain, training), training=training)

    def translate(self, image, source, target, training=False):
        """Images in the modality `target`, float32; as of `PairTranslator`."""
        return translate_pair(self, image, source, target, training)

    def get_config(self):
        return {
            "channels": self.channels,
            "classes": self.classes,
            "pair": list(self.pair),
            "filters": self.filters,
            "blocks": self.blocks,
            "name": self.name,
        }


def check_pair(pair):
    """A pair of modality indices as a tuple.

    Raises:
        ValueError: For anything else.
    """
    pair = tuple(pair)
    if len(pair) != 2 or len(set(pair)) != 2 or min(pair) < 0:
        raise ValueError(f"Expected a pair of two modalities, got {pair}.")
    return pair


def translate_pair(network, image, source, target, training):
    """What `network.forth` and `network.back` make of images; see `PairTranslator.translate`."""
    image = keras.ops.convert_to_tensor(image)
    source, target = (keras.ops.convert_to_tensor(d) for d in (source, target))
    result = keras.ops.full_like(keras.ops.cast(image, "float32"), float("nan"))
    first, second = network.pair
    for way, here, there in ((network.forth, first, second), (network.back, second, first)):
        asked = (target == there) & ((source == here) | (source == -1))
        result = keras.ops.where(_column(asked), _if_any(asked, way, image, training), result)
    own = (source == target) & ((target == first) | (target == second))
    return keras.ops.where(_column(own), keras.ops.cast(image, "float32"), result)


def as_second(network, image, domain, training):
    """Images with those of the first modality of `network.pair` translated to the second."""
    image = keras.ops.cast(keras.ops.convert_to_tensor(image), "float32")
    own = keras.ops.convert_to_tensor(domain) == network.pair[0]
    return keras.ops.where(_column(own), _if_any(own, network.forth, image, training), image)


def _if_any(asked, way, image, training):
    """What a translator makes of a batch, or zeros where no sample asks for it."""
    return keras.ops.cond(
        keras.ops.any(asked),
        lambda: way(image, training=training),
        lambda: keras.ops.zeros_like(keras.ops.cast(image, "float32")),
    )


def _column(truth):
    """`(batch,)` as `(batch, 1, 1, 1)`."""
    return keras.ops.reshape(truth, (-1, 1, 1, 1))


def _reflect(x, width):
    """Pads height and width with their mirror image."""
    return keras.ops.pad(x, ((0, 0), (width, width), (width, width), (0, 0)), mode="reflect")


def _norm_relu(x, name):
    return keras.layers.ReLU(name=f"{name}_act")(instance_norm(f"{name}_norm")(x))


@keras.saving.register_keras_serializable(package="keras_unigan")
class PatchDiscriminator(keras.Model):
    """Real or made, for each patch of 70x70 pixels.

    Args:
        channels: Channels of the image.
        filters: Width of the first convolution; the paper has 64.

    Input shape: `(batch, height, width, channels)`.
    Output shape: `(batch, *map, 1)`, float32 logits; 19x19 for 128x128.
    Reference: Isola et al. 2017, pix2pix, arXiv:1611.07004.
    """

    def __init__(self, channels=1, filters=64, name="patch_discriminator"):
        initializer = keras.initializers.RandomNormal(stddev=0.02)
        x = image = keras.Input((None, None, channels), name="image")
        for level, stride in enumerate((2, 2, 2, 1)):
            x = zero_padding(DIMS, 2, f"conv_{level}_pad")(x)
            x = conv(DIMS)(
                filters * 2**level,
                4,
                stride,
                kernel_initializer=initializer,
                name=f"conv_{level}",
            )(x)
            if level > 0:
                x = instance_norm(f"norm_{level}")(x)
            x = keras.layers.LeakyReLU(0.2, name=f"act_{level}")(x)
        x = zero_padding(DIMS, 2, "patches_pad")(x)
        patches = conv(DIMS)(1, 4, kernel_initializer=initializer, dtype="float32", name="patches")(
            x
        )
        super().__init__(image, patches, name=name)
        self.channels, self.filters, self.spatial_dims = channels, filters, DIMS

    def get_config(self):
        return {"channels": self.channels, "filters": self.filters, "name": self.name}
