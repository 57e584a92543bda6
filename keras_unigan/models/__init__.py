"""MODELS: every training game; networks are its arguments."""

from keras_unigan.models.segan import SegAN
from keras_unigan.models.supervised import SupervisedModel

MODELS = {"SupervisedModel": SupervisedModel, "SegAN": SegAN}
