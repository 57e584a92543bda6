"""UnifiedGenerator: one encoder, a decoder that segments and one that translates."""

import keras

from keras_unigan.layers import (
    FiLM,
    LabelPlanes,
    LocalContrast,
    check_strides,
    conv,
    conv_transpose,
    domain_code,
    instance_norm,
    level_kernel,
    squeeze_excitation,
    strided_conv,
)

CONDITIONING = ("difference", "concat", "film", "film+difference", "decoder")
SQUEEZED = 6  # units between the two dense layers of a cross-task skip


@keras.saving.register_keras_serializable(package="keras_unigan")
class UnifiedGenerator(keras.Model):
    """Shared encoder with two decoders: logits of the image, and the image in another modality.

    Args:
        channels: Channels of the image.
        classes: Channels of the logits.
        domains: Number of modalities.
        filters: Width of the first stage; each stage doubles it, up to 512 in 2-D and 320 in 3-D.
        strides: Stride from each stage to the next, per axis. Until a coarse axis is first
            strided, convolutions do not reach along it (methods.md §1).
        se_levels: Number of levels, from the finest, at which squeezed and excited maps of the
            translation decoder are added to those of the segmentation decoder.
        conditioning: How the network learns what to make, and what `code` returns:
            "difference" (paper): planes of target minus source; zeros ask for no translation.
            "concat": planes of the target, with one more for "unknown".
            "film": the same code chooses scale and offset after each instance norm of the
            bottleneck and of the translation decoder.
            "film+difference": both, the difference first.
            "decoder": as "film", but in the translation decoder only. With `se_levels=0` the
            logits then do not depend on the code at all.
        spatial_dims: 2 or 3.
        local_contrast: Whether the image comes with itself in units of its local contrast.

    Input shape: `[(batch, *spatial, channels), (batch, code_size)]`; each side divisible by the
        product of its strides.
    Output shape: `[(batch, *spatial, classes), (batch, *spatial, channels)]`, float32 logits and
        image in [-1, 1].
    Reference: Yuan et al. 2020, Unified generative adversarial networks for multimodal
        segmentation from unpaired 3D medical images, doi:10.1016/j.media.2020.101731.

    Raises:
        ValueError: For unknown conditioning, strides that do not have one entry per axis, or more
            `se_levels` than levels.
    """

    def __init__(
        self,
        channels=1,
        classes=2,
        domains=2,
        filters=32,
        strides=((2, 2),) * 4,
        se_levels=1,
        conditioning="difference",
        spatial_dims=2,
        local_contrast=False,
        name="unified_generator",
    ):
        if conditioning not in CONDITIONING:
            raise ValueError(f"Expected conditioning in {CONDITIONING}, got {conditioning!r}.")
        strides = check_strides(strides, spatial_dims)
        if not 0 <= se_levels <= len(strides):
            raise ValueError(f"Expected se_levels from 0 to {len(strides)}, got {se_levels}.")
        widest = {2: 512, 3: 320}[spatial_dims]
        widths = [min(filters * 2**level, widest) for level in range(len(strides) + 1)]
        planes, tables = _code_sizes(conditioning, domains)

        image = keras.Input((*[None] * spatial_dims, channels), name="image")
        code = keras.Input((planes + tables,), name="code")
        table_code = code[:, planes:] if tables else None
        x = LocalContrast(name="local_contrast")(image) if local_contrast else image
        x = LabelPlanes(name="planes")([x, code[:, :planes]]) if planes else x
        skips = []
        for level, width in enumerate(widths):
            stride = strides[level - 1] if level else 1
            kernel = level_kernel(strides, level)
            bottleneck = level == len(strides) and conditioning != "decoder"
            film = table_code if bottleneck else None
            x = _stage(x, width, kernel, stride, f"encoder_{level}", film)
            skips.append(x)

        segmentation = translation = skips.pop()
        for level in reversed(range(len(strides))):
            width, stride, kernel = widths[level], strides[level], level_kernel(strides, level)
            names = [f"{task}_{level}" for task in ("segmentation", "translation")]
            segmentation = _up(segmentation, skips[level], width, stride, kernel, names[0])
            translation = _up(
                translation, skips[level], width, stride, kernel, names[1], table_code
            )
            if level < se_levels:
                across = squeeze_excitation(translation, SQUEEZED, f"across_{level}")
                segmentation = keras.layers.Add(name=f"across_{level}")([segmentation, across])
        head = {"kernel_size": 1, "use_bias": False, "dtype": "float32"}
        logits = conv(spatial_dims)(classes, name="logits", **head)(segmentation)
        translated = conv(spatial_dims)(channels, activation="tanh", name="translated", **head)(
            translation
        )
        super().__init__([image, code], [logits, translated], name=name)
        self.channels, self.classes, self.domains = channels, classes, domains
        self.filters, self.strides, self.se_levels = filters, strides, se_levels
        self.conditioning, self.spatial_dims = conditioning, spatial_dims
        self.code_size, self.local_contrast = planes + tables, local_contrast

    def code(self, source, target):
        """Code that asks for `target`, float32 `(batch, code_size)`.

        Args:
            source: int `(batch,)`, domain of the image; -1 for unknown.
            target: int `(batch,)`, domain of the image to make. -1: no translation; for tables
                and planes of the target, the code of the unknown modality.
        """
        parts = []
        if "difference" in self.conditioning:
            difference = domain_code(target, self.domains) - domain_code(source, self.domains)
            asked = keras.ops.cast(keras.ops.cast(target, "int32") >= 0, "float32")
            parts.append(difference * asked[:, None])
        if self.conditioning != "difference":
            parts.append(domain_code(target, self.domains, unknown=True))
        return keras.ops.concatenate(parts, axis=-1)

    def translate(self, image, source, target, training=False):
        """Images in the modality `target`, float32; domains as for `code`."""
        image = keras.ops.convert_to_tensor(image)
        return self([image, self.code(source, target)], training=training)[1]

    def segment(self, image, domain, training=False):
        """Logits, float32; "difference" makes no use of `domain`."""
        image = keras.ops.convert_to_tensor(image)
        return self([image, self.code(domain, domain)], training=training)[0]

    def get_config(self):
        return {
            "channels": self.channels,
            "classes": self.classes,
            "domains": self.domains,
            "filters": self.filters,
            "strides": [list(s) for s in self.strides],
            "se_levels": self.se_levels,
            "conditioning": self.conditioning,
            "spatial_dims": self.spatial_dims,
            "local_contrast": self.local_contrast,
            "name": self.name,
        }


def _code_sizes(conditioning, domains):
    """Parts of the code that become planes, and that choose rows of tables."""
    return {
        "difference": (domains, 0),
        "concat": (domains + 1, 0),
        "film": (0, domains + 1),
        "film+difference": (domains, domains + 1),
        "decoder": (0, domains + 1),
    }[conditioning]


def _stage(x, width, kernel, stride, name, film=None):
    """Two times convolution, instance norm with scale and offset, leaky ReLU; the first strides."""
    spatial_dims = len(x.shape) - 2
    for i in range(2):
        options = {"name": f"{name}_conv_{i}", "kernel_initializer": "he_normal"}
        if i == 0 and stride != 1:
            x = strided_conv(x, spatial_dims, width, kernel, stride, **options)
        else:
            x = conv(spatial_dims)(width, kernel, padding="same", **options)(x)
        if film is None:
            x = instance_norm(f"{name}_norm_{i}", scale=True)(x)
        else:
            x = instance_norm(f"{name}_norm_{i}")(x)
            x = FiLM(name=f"{name}_film_{i}")([x, film])
        x = keras.layers.LeakyReLU(0.01, name=f"{name}_act_{i}")(x)
    return x


def _up(x, skip, width, stride, kernel, name, film=None):
    """Next finer map of a decoder."""
    x = conv_transpose(len(x.shape) - 2)(
        width, stride, stride, use_bias=False, kernel_initializer="he_normal", name=f"{name}_up"
    )(x)
    x = keras.layers.Concatenate(name=f"{name}_skip")([skip, x])
    return _stage(x, width, kernel, 1, name, film)
