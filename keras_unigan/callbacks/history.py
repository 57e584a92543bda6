"""What a run leaves for people: `history.csv`, event files and `progress.png`."""

import csv
import math
import os
import statistics
import time
from pathlib import Path

import keras
import matplotlib.figure
import tensorflow as tf

from keras_unigan.callbacks.counting import State


class History(keras.callbacks.Callback):
    """Writes `history.csv`: one row an epoch: step, seconds (of the run, and of a step), all logs.

    Keras' `CSVLogger` fixes the columns in the first epoch and cannot take rows back; a resumed run
    has to drop those after its checkpoint, and validation may not run every epoch.

    Args:
        path: The file; rows of epochs that the state has are kept.
        state: `State` of the run.
    """

    def __init__(self, path, state=None):
        super().__init__()
        self.path, self.state = Path(path), State() if state is None else state
        self.rows, self._step_seconds, self._began = [], [], None
        if self.path.is_file():
            with self.path.open(newline="") as file:
                read = [{k: float(v) for k, v in r.items() if v} for r in csv.DictReader(file)]
            self.rows = [row for row in read if row["epoch"] <= self.state.epochs]

    def on_epoch_begin(self, epoch, logs=None):
        """Forgets the times of the epoch before."""
        self._step_seconds = []

    def on_train_batch_begin(self, batch, logs=None):
        """Starts the clock of a step."""
        self._began = time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        """Stops it."""
        self._step_seconds.append(time.monotonic() - self._began)

    def on_epoch_end(self, epoch, logs=None):
        """Adds the row of an epoch."""
        known = {"epoch": epoch + 1, "step": self.state.steps, "seconds": self.state.seconds}
        # The median leaves out the step that builds the graph, and waits for data once in a while.
        known["step_seconds"] = statistics.median(self._step_seconds or [float("nan")])
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
