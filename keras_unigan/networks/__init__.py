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
from keras_unigan.networks.gan import PairDiscriminator, PairGenerator
from keras_unigan.networks.nnunet import PlannedUNet
from keras_unigan.networks.own import SplitGenerator, WrappedSegmentor
from keras_unigan.networks.resnet import (
    PairTranslator,
    PatchDiscriminator,
    ResNetTranslator,
    SynSegNetwork,
)
from keras_unigan.networks.segan import SegANCritic, SegANScalarCritic, SegANSegmentor
from keras_unigan.networks.segan_isic import SegANISICCritic, SegANISICSegmentor
from keras_unigan.networks.sifa import SIFADiscriminator, SIFANetwork
from keras_unigan.networks.stargan import StarGANDiscriminator, StarGANGenerator
from keras_unigan.networks.synthesis import ImageRenderer, MaskCritic, MaskGenerator
from keras_unigan.networks.uagan import UAGANGenerator
from keras_unigan.networks.ummkd import CompactDilatedNet
from keras_unigan.networks.unet import UNet
from keras_unigan.networks.unified import UnifiedGenerator

__all__ = ["NETWORKS", "SplitGenerator", "WrappedSegmentor"]

NETWORKS = {
    "UNet": UNet,
    "PlannedUNet": PlannedUNet,
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
    "PairGenerator": PairGenerator,
    "PairDiscriminator": PairDiscriminator,
    "PatchDiscriminator": PatchDiscriminator,
    "SynSegNetwork": SynSegNetwork,
    "CompactDilatedNet": CompactDilatedNet,
    "SIFANetwork": SIFANetwork,
    "SIFADiscriminator": SIFADiscriminator,
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
    "ImageRenderer": ImageRenderer,
    "MaskGenerator": MaskGenerator,
    "MaskCritic": MaskCritic,
}
