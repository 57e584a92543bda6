"""The comparison networks: a U-Net that modalities share in one way or another.

A sample goes through every modality's part, and a one-hot code picks one (`parts.Routed`): the same
numbers as to run that part alone, at the price of running them all. For an image of unknown
modality the code is the same for all, so the parts are averaged.
"""

import keras

from keras_unigan.layers import LabelPlanes, check_strides, conv, domain_code
from keras_unigan.networks.parts import Parts, Routed, Stacked
from keras_unigan.networks.unet import UNet


class ModalNetwork(keras.Model):
    """Segmentor that is told the modality: constructor, code and configuration of them all.

    Args:
        channels: Channels of the image.
        classes: Channels of the logits.
        domains: Number of modalities.
        filters: Width of the first level; each level doubles it.
        levels: Number of poolings.
        strides: Pooling stride per level and axis; overrides `levels`. As in `UNet`.
        spatial_dims: 2 or 3.

    Input shape: `[(batch, *spatial, channels), (batch, domains)]`: image, and the one-hot code of
        its modality (`code`); each side divisible by the product of its strides.
    Output shape: `(batch, *spatial, classes)`, float32 logits; with further tasks, a list that
        begins with them.

    Raises:
        ValueError: For strides that do not have one entry per axis.
    """

    def __init__(
        self,
        channels=1,
        classes=2,
        domains=3,
        filters=32,
        levels=4,
        strides=None,
        spatial_dims=2,
        name=None,
    ):
        strides = [(2,) * spatial_dims] * levels if strides is None else strides
        strides = check_strides(strides, spatial_dims)
        image = keras.Input((*[None] * spatial_dims, channels), name="image")
        code = keras.Input((domains,), name="code")
        sizes = (channels, classes, domains)
        outputs = self.connect(image, code, filters, strides, *sizes)
        super().__init__([image, code], outputs, name=name)
        self.channels, self.classes, self.domains = sizes
        self.filters, self.levels, self.strides = filters, len(strides), strides
        self.spatial_dims, self.code_size = spatial_dims, domains

    @staticmethod
    def connect(image, code, filters, strides, channels, classes, domains):
        """Outputs of image and code."""
        raise NotImplementedError

    def code(self, domain):
        """Code of int `(batch,)` modalities; that of an unknown one, -1, is equal for all."""
        code = domain_code(domain, self.domains)
        unknown = 1.0 - keras.ops.sum(code, axis=-1, keepdims=True)
        return code + unknown / self.domains

    def segment(self, image, domain, training=False):
        """Logits, float32."""
        return self.tasks(image, domain, training)[0]

    def tasks(self, image, domain, training=False):
        """List of all outputs, the logits first."""
        outputs = self([keras.ops.convert_to_tensor(image), self.code(domain)], training=training)
        return outputs if isinstance(outputs, list) else [outputs]

    def get_config(self):
        return {
            "channels": self.channels,
            "classes": self.classes,
            "domains": self.domains,
            "filters": self.filters,
            "levels": self.levels,
            "strides": [list(s) for s in self.strides],
            "spatial_dims": self.spatial_dims,
            "name": self.name,
        }


@keras.saving.register_keras_serializable(package="keras_unigan")
class IndividualUNets(ModalNetwork):
    """One U-Net for each modality; of an unknown one, the mean of all logits.

    Arguments and shapes as of `ModalNetwork`. Each sample trains the U-Net of its own modality,
    also where it is normalised as of an unknown one (`separate`).
    """

    separate = True

    @staticmethod
    def connect(image, code, filters, strides, channels, classes, domains):
        parts = Parts(filters, strides)
        each = [
            parts.head(parts.unet(image, f"m{m}_"), classes, f"m{m}_logits") for m in range(domains)
        ]
        return Routed(name="logits", dtype="float32")([code, *each])


@keras.saving.register_keras_serializable(package="keras_unigan")
class ConditionalUNet(ModalNetwork):
    """One U-Net that is told the modality by planes beside the image.

    Arguments and shapes as of `ModalNetwork`.
    """

    @staticmethod
    def connect(image, code, filters, strides, channels, classes, domains):
        parts = Parts(filters, strides)
        x = LabelPlanes(name="planes")([image, code])
        return parts.head(parts.unet(x), classes)


@keras.saving.register_keras_serializable(package="keras_unigan")
class DomainNormUNet(ModalNetwork):
    """One U-Net whose instance norms have a scale and an offset for each modality.

    Arguments and shapes as of `ModalNetwork`.
    Reference: Karani et al. 2018, A lifelong learning approach to brain MR segmentation across
    scanners and protocols, arXiv:1805.10170; with the distillation of Dou et al. 2020,
    arXiv:2001.03111.
    """

    @staticmethod
    def connect(image, code, filters, strides, channels, classes, domains):
        parts = Parts(filters, strides, code=code)
        return parts.head(parts.unet(image), classes)


@keras.saving.register_keras_serializable(package="keras_unigan")
class EarlyFusionUNet(ModalNetwork):
    """One U-Net with input channels for each modality, of which the absent ones are zeros.

    Arguments and shapes as of `ModalNetwork`.
    """

    @staticmethod
    def connect(image, code, filters, strides, channels, classes, domains):
        parts = Parts(filters, strides)
        x = Stacked(name="stacked")([code, *[image] * domains])
        return parts.head(parts.unet(x), classes)


@keras.saving.register_keras_serializable(package="keras_unigan")
class LateFusionUNet(ModalNetwork):
    """A whole U-Net for each modality; a last block sees the finest maps of all.

    Arguments and shapes as of `ModalNetwork`. Maps of absent modalities are zeros.
    Reference: Nie et al. 2016, Fully convolutional networks for multi-modality isointense infant
    brain image segmentation, ISBI 2016.
    """

    @staticmethod
    def connect(image, code, filters, strides, channels, classes, domains):
        parts = Parts(filters, strides)
        each = [parts.unet(image, f"m{m}_") for m in range(domains)]
        x = Stacked(name="stacked")([code, *each])
        return parts.head(parts.block(x, 0, "fusion"), classes)


@keras.saving.register_keras_serializable(package="keras_unigan")
class CrossModalityUNet(ModalNetwork):
    """An encoder for each modality, whose maps a convolution across modalities joins at each level.

    The kernel reaches over all modalities and one voxel, so it is a 1-wide convolution of the maps
    side by side. Maps of absent modalities are zeros. One centre, one decoder.

    Arguments and shapes as of `ModalNetwork`. The paper's ConvLSTM over slices is left out.
    Reference: Tseng et al. 2017, Joint sequence learning and cross-modality convolution for 3D
    biomedical segmentation, arXiv:1704.07754.
    """

    @staticmethod
    def connect(image, code, filters, strides, channels, classes, domains):
        parts = Parts(filters, strides)
        levels, _ = parts.each_encoded(image, domains)
        fused = []
        for level, maps in enumerate(levels):
            x = Stacked(name=f"stacked_{level}")([code, *maps])
            options = {"kernel_initializer": "he_normal", "name": f"across_{level}"}
            fused.append(conv(parts.dims)(filters * 2**level, 1, **options)(x))
        x = parts.pool(fused[-1], parts.levels - 1, "fused_")
        return parts.head(parts.decode(parts.centre(x), fused), classes)


@keras.saving.register_keras_serializable(package="keras_unigan")
class YShapeUNet(ModalNetwork):
    """An encoder for each modality, one centre and decoder for all.

    Arguments and shapes as of `ModalNetwork`.
    Reference: the "Y" stream of Valindria et al. 2018, Multi-modal learning from unpaired images,
    WACV 2018.
    """

    @staticmethod
    def connect(image, code, filters, strides, channels, classes, domains):
        parts = Parts(filters, strides)
        skips, x = _own_encoders(parts, image, code, domains)
        return parts.head(parts.decode(parts.centre(x), skips), classes)


@keras.saving.register_keras_serializable(package="keras_unigan")
class DualStreamUNet(ModalNetwork):
    """Encoders and decoders for each modality; the deepest level and the centre serve all.

    Arguments and shapes as of `ModalNetwork`.
    Reference: the "X" stream of Valindria et al. 2018, Multi-modal learning from unpaired images,
    WACV 2018.
    """

    @staticmethod
    def connect(image, code, filters, strides, channels, classes, domains):
        parts = Parts(filters, strides)
        last = parts.levels - 1
        skips, x = _own_encoders(parts, image, code, domains, last)
        shared = parts.block(x, last, f"encoder_{last}")
        skips, x = [*skips, shared], parts.centre(parts.pool(shared, last))
        each = [
            parts.head(parts.decode(x, skips, f"m{m}_"), classes, f"m{m}_logits")
            for m in range(domains)
        ]
        return Routed(name="logits", dtype="float32")([code, *each])


@keras.saving.register_keras_serializable(package="keras_unigan")
class SharedLatentUNet(ModalNetwork):
    """An encoder for each modality, one centre, a decoder of labels and one of each modality.

    Arguments as of `ModalNetwork`.
    Output shape: `[(batch, *spatial, classes), (batch, *spatial, channels)]`: logits, and the image
    from the decoder of its own modality.
    Reference: Kuga et al. 2017, Multi-task learning using multi-modal encoder-decoder networks with
    shared skip connections, ICCV Workshops 2017.
    """

    further = ("reconstruction",)

    @staticmethod
    def connect(image, code, filters, strides, channels, classes, domains):
        parts = Parts(filters, strides)
        skips, x = _own_encoders(parts, image, code, domains)
        x = parts.centre(x)
        logits = parts.head(parts.decode(x, skips), classes)
        images = [
            parts.head(parts.decode(x, skips, f"m{m}_"), channels, f"m{m}_image")
            for m in range(domains)
        ]
        return [logits, Routed(name="reconstruction", dtype="float32")([code, *images])]


def _own_encoders(parts, image, code, domains, levels=None):
    """Skips and next map of the encoder of each sample's modality."""
    each, ends = parts.each_encoded(image, domains, levels)
    skips = [Routed(name=f"own_{n}")([code, *maps]) for n, maps in enumerate(each)]
    return skips, Routed(name="own_end")([code, *ends])


@keras.saving.register_keras_serializable(package="keras_unigan")
class ExcitedUNet(UNet):
    """U-Net with squeeze-and-excitation after every block.

    Arguments and shapes as of `UNet`.
    Reference: Hu et al. 2018, Squeeze-and-excitation networks, arXiv:1709.01507.
    """

    @staticmethod
    def connect(x, filters, strides, channels, classes):
        parts = Parts(filters, strides, excited=True)
        return parts.head(parts.unet(x), classes)


@keras.saving.register_keras_serializable(package="keras_unigan")
class PADNet(UNet):
    """A U-Net's finest map, three tasks on it, and a label map that has heard all three.

    Tasks: label map, reconstruction of the image, boundary of the labels. With F_t the features of
    task t, the final label map is made of `F_1 + sum of sigmoid(conv F_1) * conv_t(F_t)`.

    Arguments as of `UNet`.
    Output shape: list of logits, intermediate logits `(batch, *spatial, classes)`, image
        `(batch, *spatial, channels)` and boundary logits `(batch, *spatial, 1)`, float32.
    Reference: Xu et al. 2018, PAD-Net, arXiv:1805.04409, eq. 2 (distillation C).
    """

    further = ("intermediate", "reconstruction", "boundary")

    @staticmethod
    def connect(x, filters, strides, channels, classes):
        parts = Parts(filters, strides)
        trunk = parts.unet(x)
        sizes = {"intermediate": classes, "reconstruction": channels, "boundary": 1}
        features = {task: parts.block(trunk, 0, task) for task in sizes}
        outputs = [parts.head(features[task], n, f"{task}_head") for task, n in sizes.items()]
        own = features.pop("intermediate")
        options = {"padding": "same", "kernel_initializer": "he_normal"}
        convolution = conv(parts.dims)
        gate = convolution(filters, 3, activation="sigmoid", name="gate", **options)(own)
        heard = [own]
        for task, x in features.items():
            x = convolution(filters, 3, name=f"{task}_message", **options)(x)
            heard.append(keras.layers.Multiply(name=f"{task}_heard")([gate, x]))
        x = keras.layers.Add(name="distilled")(heard)
        return [parts.head(parts.block(x, 0, "final"), classes), *outputs]

    def segment(self, image, domain, training=False):
        """Logits, float32, whatever the modality."""
        return self.tasks(image, domain, training)[0]

    def tasks(self, image, domain, training=False):
        """List of all outputs, the logits first."""
        return self(keras.ops.convert_to_tensor(image), training=training)
