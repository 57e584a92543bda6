"""SYSTEMS: which networks play which game under one name; plain data.

`training.build_model` reads this table, and `unigan models` prints it. Network entries name a class
of `networks.NETWORKS` and the constructor arguments that differ from its defaults; `game` names a
class of `models.MODELS`. What depends on the data (channels, classes, strides) comes from the plan.
`train` fills options of `config.TrainOptions` that a run leaves open.

`parameters` are those of the main network, `total_parameters` those of all networks that train, its
adversaries too (which are the deeper, the larger the patch), and `macs` the multiply-adds of one
patch through the main network: for patches of 128x128, one channel, two classes and three
modalities where a comment says nothing else.
"""

from typing import Any

from keras_unigan.systems.adversarial import ADVERSARIAL
from keras_unigan.systems.needs import PAIR, PAIRS_MADE, TRANSLATED
from keras_unigan.systems.supervised import SUPERVISED

__all__ = ["PAIR", "PAIRS_MADE", "SYSTEMS", "TRANSLATED"]

SYSTEMS: dict[str, dict[str, Any]] = {**SUPERVISED, **ADVERSARIAL}
