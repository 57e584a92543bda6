"""The health of a run while it runs."""

import dataclasses
from pathlib import Path

import keras

from keras_unigan import health
from keras_unigan.config import write_json


class Health(keras.callbacks.Callback):
    """Judges the history after every epoch and writes `health.json`; stands behind `History`.

    Args:
        path: The file.
        history: `History` whose rows are judged.

    Attributes:
        verdict: `health.Verdict` of the last epoch.
    """

    def __init__(self, path, history):
        super().__init__()
        self.path, self.history = Path(path), history
        self.verdict = health.verdict(history.rows)

    def on_epoch_end(self, epoch, logs=None):
        """Judges and writes."""
        plan = getattr(self.model, "plan", None)
        found = health.findings(self.history.rows, plan and len(plan.modalities))
        self.verdict = next(iter(found), health.Verdict())
        signs = [dataclasses.asdict(each) for each in found]
        write_json(self.path, {"level": self.verdict.level, "epoch": epoch + 1, "signs": signs})
