"""What happens around the steps of `fit`: budget, history, best network, checkpoints, progress.

They share one `State`, which a checkpoint saves, so that a resumed run goes on with its counts; a
callback that is used alone makes its own. `Budget` stands first in the list, because it counts.
"""

from keras_unigan.callbacks.checkpoints import BestNetwork, Checkpoint
from keras_unigan.callbacks.counting import Budget, State, StopOnNonFinite
from keras_unigan.callbacks.health import Health
from keras_unigan.callbacks.history import Curves, EventLog, History
from keras_unigan.callbacks.pair_grid import PairGrid
from keras_unigan.callbacks.progress import Progress, summary_line
from keras_unigan.callbacks.translation_grid import TranslationGrid

__all__ = [
    "BestNetwork",
    "Budget",
    "Checkpoint",
    "Curves",
    "EventLog",
    "Health",
    "History",
    "PairGrid",
    "Progress",
    "State",
    "StopOnNonFinite",
    "TranslationGrid",
    "summary_line",
]
