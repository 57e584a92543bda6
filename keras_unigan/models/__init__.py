"""MODELS: every training game; networks are its arguments."""

from keras_unigan.models.comparison import DistilledModel, MultiTaskModel
from keras_unigan.models.cyclegan import CycleGAN
from keras_unigan.models.gan import GAN
from keras_unigan.models.planned import PlannedModel
from keras_unigan.models.segan import SegAN
from keras_unigan.models.segan_scalar import SegANScalar
from keras_unigan.models.sifa import SIFA
from keras_unigan.models.stargan import StarGAN
from keras_unigan.models.stargan_segan import StarGANSegAN
from keras_unigan.models.supervised import SupervisedModel
from keras_unigan.models.synseg import SynSeg
from keras_unigan.models.synthesis import SynthesisGAN
from keras_unigan.models.uagan import UAGAN
from keras_unigan.models.ummkd import UMMKD
from keras_unigan.models.unified import UnifiedGAN
from keras_unigan.models.unigan import UniGAN

MODELS = {
    game.__name__: game
    for game in (
        *(SupervisedModel, MultiTaskModel, DistilledModel, SegAN, SegANScalar, CycleGAN, StarGAN),
        *(UAGAN, UnifiedGAN, UniGAN, StarGANSegAN, PlannedModel, SynthesisGAN, SynSeg),
        *(SIFA, UMMKD, GAN),
    )
}
