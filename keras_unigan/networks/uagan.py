"""UAGAN: a stream that segments and a stream that translates, which listen to each other."""

import keras

from keras_unigan.layers import (
    LabelPlanes,
    conv,
    conv_transpose,
    domain_code,
    instance_norm,
    max_pool,
)

DIMS = 2


@keras.saving.register_keras_serializable(package="keras_unigan")
class UAGANGenerator(keras.Model):
    """Two U-Nets with one centre; at each level, each decoder attends to the other encoder.

    With the maps `own` and `aux` of both encoders at one level, a decoder's skip is
    `own + sigmoid(conv(aux)) * act(norm(conv(aux)))`.

    Args:
        channels: Channels of the image.
        classes: Channels of the logits.
        domains: Number of modalities; one plane each for the translation stream.
        filters: Width of the first level; each level doubles it.
        levels: Number of poolings.
        dropout: Share of the deepest skip that is dropped in training.

    Input shape: `[(batch, height, width, channels), (batch, domains)]`; sides divisible by
        `2**levels`.
    Output shape: `[(batch, height, width, classes), (batch, height, width, channels)]`, float32
        logits and image; the image is linear, without tanh.
    Reference: Yuan et al. 2019, Unified attentional generative adversarial network for brain tumor
        segmentation from multimodal unpaired images, arXiv:1907.03548.
    """

    def __init__(
        self,
        channels=1,
        classes=2,
        domains=2,
        filters=64,
        levels=4,
        dropout=0.5,
        name="uagan_generator",
    ):
        image = keras.Input((None, None, channels), name="image")
        code = keras.Input((domains,), name="code")
        widths = [filters * 2**level for level in range(levels)]
        inputs = {"segmentation": image, "translation": LabelPlanes(name="planes")([image, code])}
        deepest, skips = {}, {}
        for task, x in inputs.items():
            deepest[task], skips[task] = _encode(x, widths, dropout, task)
        centre = _Block(2 * widths[-1], "centre")
        decoded = {
            task: _decode(centre(deepest[task]), widths, skips[task], skips[other], task)
            for task, other in (("segmentation", "translation"), ("translation", "segmentation"))
        }
        head = {"kernel_size": 1, "dtype": "float32"}
        logits = conv(DIMS)(classes, name="logits", **head)(decoded["segmentation"])
        translated = conv(DIMS)(channels, name="translated", **head)(decoded["translation"])
        super().__init__([image, code], [logits, translated], name=name)
        self.channels, self.classes, self.domains = channels, classes, domains
        self.filters, self.levels, self.dropout = filters, levels, dropout
        self.spatial_dims, self.code_size = DIMS, domains

    def code(self, source, target):
        """One-hot code of `target`, int `(batch,)`, zeros for -1; `source` makes no difference."""
        return domain_code(target, self.domains)

    def translate(self, image, source, target, training=False):
        """Images in the modality `target`, float32."""
        image = keras.ops.convert_to_tensor(image)
        return self([image, self.code(source, target)], training=training)[1]

    def segment(self, image, domain, training=False):
        """Logits, float32, with the image's own modality as the target."""
        image = keras.ops.convert_to_tensor(image)
        return self([image, self.code(domain, domain)], training=training)[0]

    def get_config(self):
        return {
            "channels": self.channels,
            "classes": self.classes,
            "domains": self.domains,
            "filters": self.filters,
            "levels": self.levels,
            "dropout": self.dropout,
            "name": self.name,
        }


class _Block:
    """Two times convolution, instance norm, leaky ReLU; its weights serve every call."""

    def __init__(self, width, name):
        self.steps = []
        for i in range(2):
            self.steps += [
                conv(DIMS)(
                    width,
                    3,
                    padding="same",
                    kernel_initializer="he_normal",
                    name=f"{name}_conv_{i}",
                ),
                instance_norm(f"{name}_norm_{i}"),
                keras.layers.LeakyReLU(0.01, name=f"{name}_act_{i}"),
            ]

    def __call__(self, x):
        for step in self.steps:
            x = step(x)
        return x


def _encode(x, widths, dropout, task):
    """Map behind the last pooling, and the skips from the finest level on."""
    skips = []
    for level, width in enumerate(widths):
        name = f"{task}_encoder_{level}"
        x = skip = _Block(width, name)(x)
        if level == len(widths) - 1:
            skip = keras.layers.Dropout(dropout, name=f"{name}_dropout")(x)
        skips.append(skip)
        x = max_pool(DIMS, 2, f"{name}_pool")(x)
    return x, skips


def _decode(x, widths, own, aux, task):
    """Finest map of a decoder."""
    for level, width in reversed(list(enumerate(widths))):
        name = f"{task}_decoder_{level}"
        options = {"padding": "same", "kernel_initializer": "he_normal"}
        gate = conv(DIMS)(width, 3, activation="sigmoid", name=f"{name}_gate", **options)
        message = conv(DIMS)(width, 3, name=f"{name}_message", **options)(aux[level])
        message = instance_norm(f"{name}_message_norm")(message)
        message = keras.layers.LeakyReLU(0.01, name=f"{name}_message_act")(message)
        message = keras.layers.Multiply(name=f"{name}_attended")([gate(aux[level]), message])
        skip = keras.layers.Add(name=f"{name}_heard")([own[level], message])
        x = conv_transpose(DIMS)(width, 2, 2, kernel_initializer="he_normal", name=f"{name}_up")(x)
        x = keras.layers.Concatenate(name=f"{name}_skip")([skip, x])
        x = _Block(width, name)(x)
    return x
