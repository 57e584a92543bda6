"""Training: a system by its name (`build_model`), a run folder from an experiment (`run`)."""

from keras_unigan.training.building import build_model, load_model, load_run, own_options
from keras_unigan.training.choosing import chosen
from keras_unigan.training.folds import run_folds
from keras_unigan.training.forecasting import forecast, sentences
from keras_unigan.training.running import DEFAULT_STEPS, describe, run, strategy_for

__all__ = [
    "DEFAULT_STEPS",
    "build_model",
    "chosen",
    "describe",
    "forecast",
    "load_model",
    "load_run",
    "own_options",
    "run",
    "run_folds",
    "sentences",
    "strategy_for",
]
