"""SIFANetwork and its discriminators: translation and segmentation around one encoder."""

import keras

from keras_unigan.layers import batch_norm, conv, conv_transpose, instance_norm, strided_conv
from keras_unigan.networks.resnet import as_second, check_pair, translate_pair
from keras_unigan.networks.segan import LinearUpSampling

DIMS = 2
DEEP = 512 // 16
"""Channels of the encoder's last map, in widths of its first one."""


@keras.saving.register_keras_serializable(package="keras_unigan")
class SIFANetwork(keras.Model):
    """Translator to the second modality; encoder of it, which two segmentors and a decoder share.

    Layers: `forth`, the translator; `labels`, encoder and segmentors, from an image to its logits,
    the logits of the encoder's shallower map and its last map; `decoder`, from that map and the
    image to an image of the first modality. Translator and decoder add to the image what they find.

    Args:
        channels: Channels of the image.
        classes: Channels of the logits.
        pair: Indices of the labelled and of the other modality in the plan.
        filters: Width of the encoder's first convolution; that of translator and decoder is twice
            as large. The authors have 16.
        dropout: Share of the encoder's values that are dropped in training.

    Input shape: `(batch, height, width, channels)`; sides divisible by 8.
    Output shape: list of logits, logits of the shallower map (`(batch, height, width, classes)`),
        and of the image as of the second, and as of the first modality, float32.
    Reference: Chen et al. 2020, SIFA, arXiv:2002.02255.

    Raises:
        ValueError: For a pair that is not of two modalities.
    """

    main_layer = "labels"

    def __init__(
        self, channels=1, classes=2, pair=(0, 1), filters=16, dropout=0.25, name="sifa_network"
    ):
        pair = check_pair(pair)
        image = keras.Input((None, None, channels), name="image")
        forth = _translator(channels, 2 * filters)(image)
        *logits, latent = _labels(channels, classes, filters, dropout)(image)
        back = _decoder(channels, filters)([latent, image])
        super().__init__(image, [*logits, forth, back], name=name)
        self.channels, self.classes, self.pair = channels, classes, pair
        self.filters, self.dropout, self.spatial_dims = filters, dropout, DIMS

    @property
    def forth(self):
        """The translator from the first modality to the second."""
        return self.get_layer("forth")

    @property
    def labels(self):
        """Encoder and segmentors, from an image of the second modality."""
        return self.get_layer("labels")

    @property
    def decoder(self):
        """From the encoder's last map and its image to an image of the first modality."""
        return self.get_layer("decoder")

    def back(self, image, training=False):
        """Images of the second modality as of the first."""
        image = keras.ops.convert_to_tensor(image)
        latent = self.labels(image, training=training)[-1]
        return self.decoder([latent, image], training=training)

    def segment(self, image, domain, training=False):
        """Logits, float32; images of the first modality are translated to the second before."""
        image = as_second(self, image, domain, training)
        return self.labels(image, training=training)[0]

    def translate(self, image, source, target, training=False):
        """Images in the modality `target`, float32; as of `PairTranslator`."""
        return translate_pair(self, image, source, target, training)

    def get_config(self):
        return {
            "channels": self.channels,
            "classes": self.classes,
            "pair": list(self.pair),
            "filters": self.filters,
            "dropout": self.dropout,
            "name": self.name,
        }


def _kernel(sd=0.02):
    return {"kernel_initializer": keras.initializers.TruncatedNormal(stddev=sd)}


def _in_relu(x, name):
    return keras.layers.ReLU(name=f"{name}_act")(instance_norm(f"{name}_norm", scale=True)(x))


def _residual(x, name, bias):
    """Two convolutions with instance norm beside the map itself."""
    y, width = x, x.shape[-1]
    for i in range(2):
        own = f"{name}_conv_{i}"
        y = conv(DIMS)(width, 3, padding="same", use_bias=bias, name=own, **_kernel())(y)
        y = instance_norm(f"{name}_norm_{i}", scale=True)(y)
        if i == 0:
            y = keras.layers.ReLU(name=f"{name}_act")(y)
    return keras.layers.ReLU(name=f"{name}_out")(keras.layers.Add(name=f"{name}_sum")([x, y]))


def _up(x, width, name):
    options = {"padding": "same", "name": name, **_kernel()}
    return _in_relu(conv_transpose(DIMS)(width, 3, 2, **options)(x), name)


def _added(x, image, bias):
    """The image plus what the last convolution finds, through tanh."""
    options = {"padding": "same", "use_bias": bias, "dtype": "float32", "name": "found"}
    x = conv(DIMS)(image.shape[-1], 7, **options, **_kernel())(x)
    x = keras.layers.Add(dtype="float32", name="added")([image, x])
    return keras.layers.Activation("tanh", dtype="float32", name="translated")(x)


def _translator(channels, width):
    """Two halvings, nine residual blocks, two doublings."""
    image = keras.Input((None, None, channels), name="image")
    with keras.name_scope("forth"):
        x = conv(DIMS)(width, 7, padding="same", name="first", **_kernel())(image)
        x = _in_relu(x, "first")
        for level in (1, 2):
            name = f"down_{level}"
            x = _in_relu(strided_conv(x, DIMS, width * 2**level, 3, 2, name, **_kernel()), name)
        for block in range(9):
            x = _residual(x, f"block_{block}", True)
        for level in (1, 0):
            x = _up(x, width * 2**level, f"up_{level}")
        outputs = _added(x, image, True)
    return keras.Model(image, outputs, name="forth")


def _decoder(channels, filters):
    """Four residual blocks and three doublings."""
    image = keras.Input((None, None, channels), name="image")
    x = latent = keras.Input((None, None, DEEP * filters), name="latent")
    width = 2 * filters
    with keras.name_scope("decoder"):
        options = {"padding": "same", "use_bias": False, "name": "first", **_kernel()}
        x = _in_relu(conv(DIMS)(4 * width, 3, **options)(x), "first")
        for block in range(4):
            x = _residual(x, f"block_{block}", False)
        for level, own in enumerate((2 * width, 2 * width, width)):
            x = _up(x, own, f"up_{level}")
        outputs = _added(x, image, False)
    return keras.Model([latent, image], outputs, name="decoder")


def _labels(channels, classes, filters, dropout):
    """The encoder, by 8, and a 1-wide convolution on its last and on its shallower map."""

    def convolved(x, width, name, size=3, act=True, **options):
        # Only the dilated ones have a bias in the authors' network.
        bias = "dilation_rate" in options
        own = {"padding": "same", "use_bias": bias, "name": name, **_kernel(0.01)}
        x = conv(DIMS)(width, size, **own, **options)(x)
        x = batch_norm(f"{name}_norm")(keras.layers.Dropout(dropout, name=f"{name}_drop")(x))
        return keras.layers.ReLU(name=f"{name}_act")(x) if act else x

    def residual(x, width, name, **options):
        y = convolved(x, width, f"{name}_conv_0", **options)
        y = convolved(y, width, f"{name}_conv_1", act=False, **options)
        beside = (width - x.shape[-1]) // 2
        if beside:
            x = keras.ops.pad(x, ((0, 0), (0, 0), (0, 0), (beside, beside)))
        return keras.layers.ReLU(name=f"{name}_out")(keras.layers.Add(name=f"{name}_sum")([x, y]))

    image = keras.Input((None, None, channels), name="image")
    with keras.name_scope("labels"):
        x = residual(convolved(image, filters, "first", 7), filters, "block_0")
        pool = lambda x, n: keras.layers.MaxPooling2D(2, name=f"pool_{n}")(x)  # noqa: E731
        x = residual(pool(x, 0), 2 * filters, "block_1")
        x = pool(residual(residual(pool(x, 1), 4 * filters, "block_2"), 4 * filters, "block_3"), 2)
        for number, width in enumerate((8, 8, 16, 16, 16, 16, 32, 32), 4):
            x = residual(x, width * filters, f"block_{number}")
        low = x
        for number in range(2):
            x = residual(x, DEEP * filters, f"dilated_{number}", dilation_rate=2)
        for number in range(2):
            x = convolved(x, DEEP * filters, f"last_{number}")
        heads = []
        for name, y in (("logits", x), ("logits_low", low)):
            options = {"use_bias": False, "dtype": "float32", "name": name, **_kernel(0.01)}
            y = keras.layers.Dropout(dropout, name=f"{name}_drop")(
                conv(DIMS)(classes, 1, **options)(y)
            )
            heads.append(LinearUpSampling(8, dtype="float32", name=f"{name}_up")(y))
    return keras.Model(image, [*heads, x], name="labels")


@keras.saving.register_keras_serializable(package="keras_unigan")
class SIFADiscriminator(keras.Model):
    """The patch discriminator in SIFA's form: no biases, norms with scale and offset.

    Args:
        channels: Channels of what it judges, an image or the masks of all classes.
        scores: Scores a patch; the second one, of images, tells those that were translated there
            and back from those that were only translated.
        filters: Width of the first convolution; the authors have 64.

    Input shape: `(batch, height, width, channels)`.
    Output shape: `(batch, *map, scores)`, float32 logits; 19x19 for 128x128.
    Reference: Chen et al. 2020, SIFA, arXiv:2002.02255.
    """

    def __init__(self, channels=1, scores=1, filters=64, name="sifa_discriminator"):
        x = image = keras.Input((None, None, channels), name="image")
        for level, stride in enumerate((2, 2, 2, 1, 1)):
            last = level == 4
            x = keras.layers.ZeroPadding2D(2, name=f"conv_{level}_pad")(x)
            options = {"use_bias": False, "name": f"conv_{level}", **_kernel()}
            options |= {"dtype": "float32", "name": "patches"} if last else {}
            x = conv(DIMS)(scores if last else filters * 2**level, 4, stride, **options)(x)
            if 0 < level < 4:
                x = instance_norm(f"norm_{level}", scale=True)(x)
            if not last:
                x = keras.layers.LeakyReLU(0.2, name=f"act_{level}")(x)
        super().__init__(image, x, name=name)
        self.channels, self.scores, self.filters = channels, scores, filters
        self.spatial_dims = DIMS

    def get_config(self):
        return {
            "channels": self.channels,
            "scores": self.scores,
            "filters": self.filters,
            "name": self.name,
        }
