"""How far a run has come: the state, the budget, and the end of a run that cannot learn."""

import dataclasses
import math
import time

import keras

from keras_unigan.errors import CodedError


@dataclasses.dataclass
class State:
    """What a run has done so far.

    Attributes:
        epochs: Epochs finished.
        steps: Steps made, those of the epoch under way included.
        epoch_steps: Steps made in the epoch under way.
        seconds: Seconds of training and validation, over all sessions.
        best: Best validation Dice, or None.
        best_epoch: Epoch (from 1) of it, or None.
        stale: Validations since then.
        weights: File of the weights that belong to this state, or None.
        finished: Whether the budget is used up and the last epoch validated.
    """

    epochs: int = 0
    steps: int = 0
    epoch_steps: int = 0
    seconds: float = 0.0
    best: float | None = None
    best_epoch: int | None = None
    stale: int = 0
    weights: str | None = None
    finished: bool = False


class Budget(keras.callbacks.Callback):
    """Counts steps and seconds, and stops the run at the last step or minute.

    `fit` begins an epoch at its first step only. One that an earlier session broke off is ended
    here, after the steps that were left of it.

    Args:
        steps: Steps in all, or None.
        minutes: Minutes in all, or None.
        state: `State` that is counted up.
    """

    def __init__(self, steps=None, minutes=None, state=None):
        super().__init__()
        self.steps, self.minutes = steps, minutes
        self.state = State() if state is None else state

    def on_train_begin(self, logs=None):
        """Starts the clock."""
        self._seconds, self._start = self.state.seconds, time.monotonic()

    @property
    def seconds(self):
        """Seconds of the run so far, earlier sessions included."""
        return self._seconds + time.monotonic() - self._start

    def on_epoch_begin(self, epoch, logs=None):
        """Notes whether an earlier session has made a part of the epoch."""
        self._broken, self._paused = self.state.epoch_steps > 0, False

    def on_train_batch_end(self, batch, logs=None):
        """Counts a step; the epoch's validation still follows the last one."""
        self.state.steps += 1
        self.state.epoch_steps += 1
        self.state.seconds = self.seconds
        late = self.minutes is not None and self.seconds >= 60 * self.minutes
        if late or (self.steps is not None and self.state.steps >= self.steps):
            self.model.stop_training = True
        elif self._broken and self.state.epoch_steps == self.params["steps"]:
            self.model.stop_training = self._paused = True

    def on_epoch_end(self, epoch, logs=None):
        """Moves the state to the end of the epoch."""
        if self._paused:
            self.model.stop_training = False
        self.state.epochs, self.state.epoch_steps = epoch + 1, 0
        self.state.seconds = self.seconds


class StopOnNonFinite(keras.callbacks.Callback):
    """Ends a run in which no step of an epoch could be used.

    Single steps that are not finite are skipped and counted by the game.

    Args:
        state: `State` of the run.

    Raises:
        CodedError: KUG-T05 at the end of such an epoch.
    """

    def __init__(self, state=None):
        super().__init__()
        self.state = State() if state is None else state

    def on_epoch_begin(self, epoch, logs=None):
        """Counts from 0, or from the steps of an earlier session."""
        self._steps = self.state.epoch_steps

    def on_train_batch_end(self, batch, logs=None):
        """Counts a step."""
        self._steps += 1

    def on_epoch_end(self, epoch, logs=None):
        """Looks at the loss and the number of skipped steps of the epoch."""
        loss, skipped = logs.get("loss", 0.0), logs.get("skipped", 0)
        if math.isfinite(loss) and skipped < self._steps:
            return
        raise CodedError(
            "KUG-T05",
            f"epoch {epoch + 1}",
            f"no step with finite loss and gradients in {self._steps} (mean loss {loss:.3g})",
            "finite ones",
            "Such steps change nothing, so the model cannot learn.",
            "lower the rate: --set train.learning_rate=1e-4; under mixed_float16 try "
            "--set train.mixed_precision=mixed_bfloat16",
        )
