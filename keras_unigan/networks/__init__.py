"""NETWORKS: every network that a system can name; tensor in, tensor out."""

from keras_unigan.networks.segan import SegANCritic, SegANSegmentor
from keras_unigan.networks.unet import UNet

NETWORKS = {
    "UNet": UNet,
    "SegANSegmentor": SegANSegmentor,
    "SegANCritic": SegANCritic,
}
