"""NETWORKS: every network that a system can name; tensor in, tensor out."""

from keras_unigan.networks.comparison import (
    ConditionalUNet,
    CrossModalityUNet,
    DomainNormUNet,
    DualStreamUNet,
    EarlyFusionUNet,
    ExcitedUNet,
    IndividualUNets,
    LateFusionUNet,
    PADNet,
    SharedLatentUNet,
    YShapeUNet,
)
from keras_unigan.networks.resnet import PairTranslator, PatchDiscriminator, ResNetTranslator
from keras_unigan.networks.segan import SegANCritic, SegANScalarCritic, SegANSegmentor
from keras_unigan.networks.segan_isic import SegANISICCritic, SegANISICSegmentor
from keras_unigan.networks.stargan import StarGANDiscriminator, StarGANGenerator
from keras_unigan.networks.uagan import UAGANGenerator
from keras_unigan.networks.unet import UNet
from keras_unigan.networks.unified import UnifiedGenerator

NETWORKS = {
    "UNet": UNet,
    "SegANSegmentor": SegANSegmentor,
    "SegANCritic": SegANCritic,
    "SegANScalarCritic": SegANScalarCritic,
    "SegANISICSegmentor": SegANISICSegmentor,
    "SegANISICCritic": SegANISICCritic,
    "StarGANGenerator": StarGANGenerator,
    "StarGANDiscriminator": StarGANDiscriminator,
    "UAGANGenerator": UAGANGenerator,
    "UnifiedGenerator": UnifiedGenerator,
    "ResNetTranslator": ResNetTranslator,
    "PairTranslator": PairTranslator,
    "PatchDiscriminator": PatchDiscriminator,
    "IndividualUNets": IndividualUNets,
    "ConditionalUNet": ConditionalUNet,
    "DomainNormUNet": DomainNormUNet,
    "EarlyFusionUNet": EarlyFusionUNet,
    "LateFusionUNet": LateFusionUNet,
    "CrossModalityUNet": CrossModalityUNet,
    "SharedLatentUNet": SharedLatentUNet,
    "DualStreamUNet": DualStreamUNet,
    "YShapeUNet": YShapeUNet,
    "PADNet": PADNet,
    "ExcitedUNet": ExcitedUNet,
}
