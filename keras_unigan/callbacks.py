"""What happens around the steps of `fit`: budget, history, best network, checkpoints, progress.

They share one `State`, which a checkpoint saves, so that a resumed run goes on with its counts; a
callback that is used alone makes its own. `Budget` stands first in the list, because it counts.
"""

import csv
import dataclasses
import datetime
import math
import os
import time
from pathlib import Path

import keras
import matplotlib.figure
import rich.console
import rich.progress
import tensorflow as tf

from keras_unigan.config import from_dict, read_json, write_json
from keras_unigan.errors import CodedError

STATE = "state.json"


@dataclasses.dataclass
class State:
    """What a run has done so far.

    Attributes:
        epochs: Epochs finished.
        steps: Steps in them.
        seconds: Seconds of training and validation, over all sessions.
        best: Best validation Dice, or None.
        best_epoch: Epoch (from 1) of it, or None.
        stale: Validations since then.
        weights: File of the weights that belong to this state, or None.
    """

    epochs: int = 0
    steps: int = 0
    seconds: float = 0.0
    best: float | None = None
    best_epoch: int | None = None
    stale: int = 0
    weights: str | None = None


class Budget(keras.callbacks.Callback):
    """Counts steps and seconds, and stops the run at the last step or minute.

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
        self._steps, self._seconds = self.state.steps, self.state.seconds
        self._start = time.monotonic()

    @property
    def seconds(self):
        """Seconds of the run so far, earlier sessions included."""
        return self._seconds + time.monotonic() - self._start

    def on_train_batch_end(self, batch, logs=None):
        """Counts a step; the epoch's validation still follows the last one."""
        self._steps += 1
        late = self.minutes is not None and self.seconds >= 60 * self.minutes
        if late or (self.steps is not None and self._steps >= self.steps):
            self.model.stop_training = True

    def on_epoch_end(self, epoch, logs=None):
        """Moves the state to the end of the epoch."""
        self.state.epochs, self.state.steps = epoch + 1, self._steps
        self.state.seconds = self.seconds


class StopOnNonFinite(keras.callbacks.Callback):
    """Ends a run in which no step of an epoch could be used.

    Single steps that are not finite are skipped and counted by the game.

    Raises:
        CodedError: KUG-T05 at the end of such an epoch.
    """

    def on_epoch_begin(self, epoch, logs=None):
        """Counts from 0."""
        self._steps = 0

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


class History(keras.callbacks.Callback):
    """Writes `history.csv`: one row an epoch, its step, seconds and all logs.

    Keras' `CSVLogger` fixes the columns in the first epoch and cannot take rows back; a resumed run
    has to drop those after its checkpoint, and validation may not run every epoch.

    Args:
        path: The file; rows of epochs that the state has are kept.
        state: `State` of the run.
    """

    def __init__(self, path, state=None):
        super().__init__()
        self.path, self.state = Path(path), State() if state is None else state
        self.rows = []
        if self.path.is_file():
            with self.path.open(newline="") as file:
                read = [{k: float(v) for k, v in r.items() if v} for r in csv.DictReader(file)]
            self.rows = [row for row in read if row["epoch"] <= self.state.epochs]

    def on_epoch_end(self, epoch, logs=None):
        """Adds the row of an epoch."""
        known = {"epoch": epoch + 1, "step": self.state.steps, "seconds": self.state.seconds}
        self.rows.append({**known, **logs})
        self.write()

    def write(self):
        """Writes all rows at once, through a rename."""
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows({k: f"{v:.6g}" for k, v in row.items()} for row in self.rows)
        temporary.replace(self.path)


class BestNetwork(keras.callbacks.Callback):
    """Saves `model.network` (the averaged segmentor) whenever the validation Dice is the best yet.

    A run without validation saves it after every epoch.

    Args:
        path: The `.keras` file.
        patience: Validations without a better one after which the run stops; 0 is never.
        state: `State` of the run.
    """

    def __init__(self, path, patience=0, state=None):
        super().__init__()
        self.path, self.patience = Path(path), patience
        self.state = State() if state is None else state

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
        if self.patience and self.state.stale >= self.patience:
            self.model.stop_training = True

    def save(self):
        """Writes the file through a rename."""
        temporary = self.path.with_name(f".{os.getpid()}.{self.path.name}")
        self.model.network.save(temporary)
        temporary.replace(self.path)


class Checkpoint(keras.callbacks.Callback):
    """Saves weights, optimizers, averages and `State` after every epoch.

    The state names its weights, and replaces the one before in one rename: a run killed at any
    moment finds a pair that fits. (Keras' `BackupAndRestore` writes the two one after the other.)

    Args:
        folder: Folder of the checkpoint.
        state: `State` of the run.
    """

    def __init__(self, folder, state=None):
        super().__init__()
        self.folder, self.state = Path(folder), State() if state is None else state

    def on_train_begin(self, logs=None):
        """Saves the start, so that a run killed in its first epoch can be resumed too."""
        if self.state.weights is None:
            self.on_epoch_end(-1)

    def on_epoch_end(self, epoch, logs=None):
        """Saves."""
        self.folder.mkdir(parents=True, exist_ok=True)
        before = self.state.weights
        name = f"epoch_{self.state.epochs:06d}.weights.h5"
        self.model.save_weights(self.folder / name, overwrite=True)
        self.state.weights = name
        self.save_state()
        if before not in (None, name):
            (self.folder / before).unlink(missing_ok=True)

    def save_state(self):
        """Writes the state alone."""
        write_json(self.folder / STATE, self.state)

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


class EventLog(keras.callbacks.Callback):
    """Writes the logs of each epoch for TensorBoard, under `train` and `validation`.

    Keras' own callback needs the `tensorboard` package, which TensorFlow no longer brings along;
    only looking at the files does.

    Args:
        folder: Folder of the event files.
        state: `State` of the run.
    """

    def __init__(self, folder, state=None):
        super().__init__()
        self.folder, self.state = Path(folder), State() if state is None else state
        kind = tf.compat.v1.SummaryMetadata
        self._metadata = kind(plugin_data=kind.PluginData(plugin_name="scalars"))
        self._metadata.data_class = 1  # DATA_CLASS_SCALAR
        self._writers = {}

    def on_epoch_end(self, epoch, logs=None):
        """Writes one scalar a log entry, at the step of the run."""
        for name, value in logs.items():
            part = "validation" if name.startswith("val_") else "train"
            if part not in self._writers:
                self._writers[part] = tf.summary.create_file_writer(str(self.folder / part))
            with self._writers[part].as_default(step=self.state.steps):
                tag = f"epoch_{name.removeprefix('val_')}"
                tf.summary.write(tag, tf.constant(value, tf.float32), metadata=self._metadata)
        for writer in self._writers.values():
            writer.flush()


class Curves(keras.callbacks.Callback):
    """Draws `progress.png`: losses and validation Dice over the steps.

    Args:
        path: The picture.
        history: `History` whose rows are drawn.
        every: Least seconds between two drawings; the last one is always made.
    """

    def __init__(self, path, history, every=20.0):
        super().__init__()
        self.path, self.history, self.every = Path(path), history, every
        self._drawn = -math.inf

    def on_epoch_end(self, epoch, logs=None):
        """Draws if the last drawing is old."""
        if time.monotonic() - self._drawn >= self.every:
            self.draw()

    def draw(self):
        """Draws all rows."""
        figure = matplotlib.figure.Figure(figsize=(10, 4), layout="constrained")
        panels = dict(zip(("loss", "dice"), figure.subplots(1, 2), strict=True))
        names = list(dict.fromkeys(key for row in self.history.rows for key in row))
        for name in names:
            kind = "dice" if name.startswith("val_dice") and "loss" not in name else "loss"
            if kind == "loss" and ("loss" not in name and "l1" not in name):
                continue
            points = [(r["step"], r[name]) for r in self.history.rows if name in r]
            style = "--" if name.startswith("val_") and kind == "loss" else "-"
            panels[kind].plot(*zip(*points, strict=True), style, marker=".", label=name)
        for kind, title in (
            ("loss", "losses"),
            ("dice", "validation Dice of the averaged weights"),
        ):
            panels[kind].set(title=title, xlabel="step")
            if panels[kind].lines:
                panels[kind].legend(fontsize="small")
        panels["dice"].set_ylim(0, 1)
        temporary = self.path.with_name(f".{os.getpid()}.{self.path.name}")
        figure.savefig(temporary, dpi=100)
        temporary.replace(self.path)
        self._drawn = time.monotonic()


def summary_line(logs):
    """Loss terms, then Dice with its modalities, as text."""
    parts = []
    for name, value in logs.items():
        hidden = name.startswith("val_") or name.endswith("_norm")
        if not hidden and (name != "skipped" or value):
            parts.append(f"{name} {value:.3g}")
    if "val_dice" in logs:
        prefix = "val_dice_"
        each = ", ".join(
            f"{k.removeprefix(prefix)} {v:.2f}"
            for k, v in logs.items()
            if k.startswith(prefix) and k != f"{prefix}loss"
        )
        parts.append(f"Dice {logs['val_dice']:.3f} ({each})")
    return "  ".join(parts)


class Progress(keras.callbacks.Callback):
    """A bar with ETA, speed, loss terms and Dice on a terminal; elsewhere one line an epoch.

    Args:
        budget: `Budget` of the run.
        total: Steps of the run, or None when minutes decide.
        console: `rich.console.Console`; None writes to standard output.
    """

    def __init__(self, budget, total=None, console=None):
        super().__init__()
        self.budget, self.total = budget, total
        self.console = console or rich.console.Console(highlight=False, soft_wrap=True)
        self._bar = None

    def on_train_begin(self, logs=None):
        """Opens the bar."""
        self._first, self._start, self._shown = self.budget.state.steps, None, 0.0
        if self.console.is_terminal:
            columns = ("{task.description}", rich.progress.BarColumn(), "{task.fields[text]}")
            self._bar = rich.progress.Progress(*columns, console=self.console, transient=True)
            self._task = self._bar.add_task("starting", total=1.0, text="")
            self._bar.start()

    def on_epoch_begin(self, epoch, logs=None):
        """Notes the epoch."""
        self._epoch, self._epoch_steps, self._epoch_start = epoch + 1, 0, time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        """Moves the bar, a few times a second."""
        now = time.monotonic()
        self._epoch_steps += 1
        # The first step holds the tracing of the graph; it says nothing about the speed.
        self._start = self._start or (now, self._steps)
        if self._bar is not None and now - self._shown > 0.25:
            self._shown = now
            text = f"{self.speed:.1f} it/s  eta {self.eta()}  {summary_line(logs)}"
            self._bar.update(
                self._task,
                description=f"epoch {self._epoch}",
                completed=self.share(),
                text=text,
            )

    @property
    def _steps(self):
        return self.budget._steps

    @property
    def speed(self):
        """Steps per second since the first one, validation included."""
        seconds = time.monotonic() - self._start[0]
        return (self._steps - self._start[1]) / max(seconds, 1e-6)

    def share(self):
        """Part of the budget that is used up, 0 to 1."""
        if self.total is None:
            return min(1.0, self.budget.seconds / (60 * self.budget.minutes))
        return min(1.0, self._steps / self.total)

    def eta(self):
        """Time left, as text."""
        if self.total is None:
            seconds = 60 * self.budget.minutes - self.budget.seconds
        else:
            if not self.speed:  # the first step, which traced the graph, tells nothing
                return "?"
            seconds = (self.total - self._steps) / self.speed
        if not 0 <= seconds < 1e7:
            return "?" if seconds > 0 else "0:00:00"
        return str(datetime.timedelta(seconds=round(seconds)))

    def on_epoch_end(self, epoch, logs=None):
        """Prints the line of an epoch."""
        of = "" if self.total is None else f"/{self.total}"
        rate = self._epoch_steps / (time.monotonic() - self._epoch_start)
        self.console.print(
            f"epoch {epoch + 1}  step {self._steps}{of}  {rate:.1f} it/s  eta {self.eta()}  "
            f"{summary_line(logs)}"
        )

    def close(self):
        """Closes the bar, also after an interruption."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
