"""Files from which a run goes on, and its best network."""

import math
import os
import time
import warnings
from pathlib import Path

import keras
import numpy as np

from keras_unigan.callbacks.counting import State
from keras_unigan.config import from_dict, read_json, write_json
from keras_unigan.errors import CodedError

STATE = "state.json"


class BestNetwork(keras.callbacks.Callback):
    """Saves `model.network` (the averaged segmentor) whenever the validation Dice is the best yet.

    What the game keeps beside it (`kept`) goes to files of their names. A run without validation,
    or without a segmentor to validate, saves after every epoch.

    Args:
        path: The `.keras` file.
        patience: Validations without a better one after which the run stops; 0 is never.
        state: `State` of the run.
    """

    def __init__(self, path, patience=0, state=None):
        super().__init__()
        self.path, self.patience = Path(path), patience
        self.state = State() if state is None else state

    @property
    def waited(self):
        """Whether the patience is used up."""
        return bool(self.patience) and self.state.stale >= self.patience

    def on_epoch_end(self, epoch, logs=None):
        """Compares and saves."""
        if "val_dice" not in logs:
            if not self.state.best_epoch:
                self.save()
            return
        dice = logs["val_dice"]
        # Nothing to be scored (NaN) is no better than anything.
        if self.state.best_epoch is None or dice > (self.state.best or 0.0):
            self.save()
            self.state.best = dice if math.isfinite(dice) else None
            self.state.best_epoch, self.state.stale = epoch + 1, 0
            return
        self.state.stale += 1
        if self.waited:
            self.model.stop_training = True

    def save(self):
        """Writes each file through a rename."""
        networks = {self.path: self.model.network}
        for name, network in getattr(self.model, "kept", {}).items():
            networks[self.path.with_name(name)] = network
        for path, network in networks.items():
            temporary = path.with_name(f".{os.getpid()}.{path.name}")
            network.save(temporary)
            temporary.replace(path)


class Checkpoint(keras.callbacks.Callback):
    """Saves all that the next step depends on, after every epoch and within long ones.

    That is the weights, optimizers and averages (`*.weights.h5`), what Keras leaves out of that
    file (`*.npz`: states of random generators, and the metrics of an epoch that is under way), and
    `State`. The state names its weights, and replaces the one before in one rename: a run killed at
    any moment finds files that fit. (Keras' `BackupAndRestore` writes them one after the other.)

    Args:
        folder: Folder of the checkpoint.
        state: `State` of the run.
        seconds: Most seconds of an epoch that a kill may lose, or None.
        steps: Most steps of an epoch that a kill may lose, or None.
        audit: `data.audit.Audit` that is brought up to each checkpoint, or None.
    """

    def __init__(self, folder, state=None, seconds=None, steps=None, audit=None):
        super().__init__()
        self.folder, self.state = Path(folder), State() if state is None else state
        self.seconds, self.steps, self.audit = seconds, steps, audit
        self._metrics = []

    def on_train_begin(self, logs=None):
        """Saves the start, so that a run killed in its first epoch can be resumed too."""
        self._saved = (time.monotonic(), self.state.steps)
        if self.state.weights is None:
            self.save()

    def on_epoch_begin(self, epoch, logs=None):
        """Puts back the metrics of an epoch that is under way: `fit` has just set them to 0."""
        if self._metrics:
            variables = metric_variables(self.model)
            for variable, value in zip(variables, self._metrics, strict=True):
                variable.assign(value)
            self._metrics = []

    def on_train_batch_end(self, batch, logs=None):
        """Saves when too much would be lost; the last step of an epoch waits for its end."""
        then, steps = self._saved
        late = self.seconds is not None and time.monotonic() - then >= self.seconds
        many = self.steps is not None and self.state.steps - steps >= self.steps
        last = self.model.stop_training or self.state.epoch_steps == self.params["steps"]
        if (late or many) and not last:
            self.save()

    def on_epoch_end(self, epoch, logs=None):
        """Saves."""
        self.save()

    def save(self):
        """Writes weights, the rest, and then the state that names them."""
        if self.audit:
            self.audit.advance(self.state.steps, self.state.epochs + bool(self.state.epoch_steps))
        self.folder.mkdir(parents=True, exist_ok=True)
        stem = f"step_{self.state.steps:08d}"
        self.state.weights = f"{stem}.weights.h5"
        self.model.save_weights(self.folder / self.state.weights, overwrite=True)
        under_way = metric_variables(self.model) if self.state.epoch_steps else []
        arrays = {
            f"{kind}_{i:04d}": keras.ops.convert_to_numpy(variable)
            for kind, variables in (("rest", rest(self.model)), ("metric", under_way))
            for i, variable in enumerate(variables)
        }
        np.savez(self.folder / f"{stem}.npz", **arrays)
        self.save_state()
        for path in self.folder.glob("step_*"):
            if path.name not in (self.state.weights, f"{stem}.npz"):
                path.unlink()
        self._saved = (time.monotonic(), self.state.steps)

    def save_state(self):
        """Writes the state alone."""
        write_json(self.folder / STATE, self.state)

    def restore(self, model, folder=None):
        """Puts the checkpoint that the state names into a game.

        Args:
            model: Game, built as it was.
            folder: Folder of the checkpoint where it is not that which is written to.

        Raises:
            CodedError: KUG-T04 when it does not fit the game.
        """
        path = Path(folder or self.folder) / str(self.state.weights)
        try:
            load_weights(model, path)
            with np.load(str(path).removesuffix(".weights.h5") + ".npz") as file:
                arrays = {key: file[key] for key in file.files}
            values = [arrays[key] for key in sorted(arrays) if key.startswith("rest")]
            for variable, value in zip(rest(model), values, strict=True):
                variable.assign(value)
        except (ValueError, KeyError, OSError) as error:
            raise CodedError(
                "KUG-T04",
                path,
                f"weights that do not load ({error})",
                "weights of this architecture",
            ) from error
        self._metrics = [arrays[key] for key in sorted(arrays) if key.startswith("metric")]

    @staticmethod
    def read(folder):
        """Returns the `State` of a checkpoint folder.

        Raises:
            CodedError: KUG-T04 when there is none.
        """
        folder = Path(folder)
        if not (folder / STATE).is_file():
            raise CodedError(
                "KUG-T04",
                folder,
                "no checkpoint",
                "a run that has begun to train",
                fix="train with --overwrite in place of --resume",
            )
        return from_dict(State, read_json(folder / STATE), str(folder / STATE))


def load_weights(model, path):
    """Loads a weights file that must fit as a whole.

    Keras passes over what it finds no group for in the file with a warning, and leaves the fresh
    weights.

    Raises:
        ValueError: For a file of other networks.
        OSError: For a file that is not there, or damaged.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Skipping nested container")
        try:
            model.load_weights(path)
        except UserWarning as warning:
            raise ValueError(str(warning).split(".")[0]) from warning


def metric_variables(model):
    """Sums and counts of the metrics of training."""
    return [variable for metric in model.metrics for variable in metric.variables]


def rest(model):
    """Variables that `save_weights` leaves out: the states of random generators."""
    saved = {id(variable) for variable in model.weights}
    return [variable for variable in model.variables if id(variable) not in saved]
