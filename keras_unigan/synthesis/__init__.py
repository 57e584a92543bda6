"""Synthetic images with their label maps from a trained run: made, judged, written down.

`making` has the three ways to make a pair, `judging` the gate that it must pass, `memorisation` the
distance to what was trained on, `writing` the folder that is left behind.
"""

from keras_unigan.synthesis.making import METHODS, Maker
from keras_unigan.synthesis.writing import synthesize

__all__ = ["METHODS", "Maker", "synthesize"]
