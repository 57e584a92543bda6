"""One call of `run`: the callbacks, the steps, and what follows the last one."""

import shutil
import tempfile
from pathlib import Path

from keras_unigan import callbacks
from keras_unigan.data import audit
from keras_unigan.training import loop

PICTURES = 20
"""Pictures of translations, or of made pairs, that a run of known length leaves in `samples/`."""


class Session:
    """The callbacks of one call of `run`.

    Args:
        experiment: `config.Experiment`.
        total: Steps of the run, or None when minutes decide.
        folder: Run folder.
        state: `callbacks.State` of the run.
        seen: `audit.Seen` of the training stream.
        workers: `devices.Workers`.
        quiet: Print no progress.
        console: `rich.console.Console` for progress.
    """

    def __init__(self, experiment, total, folder, state, seen, workers, quiet, console):
        self.experiment, self.total, self.state = experiment, total, state
        self.together = workers.count > 1
        # All workers save alike, because some values can only be read by all at once; what the
        # others have written goes.
        self._scratch = None if workers.chief else tempfile.TemporaryDirectory()
        if self._scratch is not None:
            folder = self._copy(folder)
        options = experiment.train
        self.budget = callbacks.Budget(total, experiment.minutes, state)
        self.history = callbacks.History(folder / "history.csv", state)
        self.best = callbacks.BestNetwork(folder / "network.keras", options.patience, state)
        self.checkpoint = callbacks.Checkpoint(
            folder / "checkpoints",
            state,
            # Clocks differ, and workers wait for one another at each checkpoint.
            seconds=None if self.together else options.checkpoint_seconds,
            steps=options.checkpoint_steps,
            audit=audit.Audit(folder, seen, state.steps),
        )
        self.curves = callbacks.Curves(folder / "progress.png", self.history)
        board = callbacks.EventLog(folder / "tb", state)
        self.folder, health = folder, callbacks.Health(folder / "health.json", self.history)
        # The epoch that ends a run without one finite step is judged and written too.
        self.callbacks = [self.budget, self.history, health, callbacks.StopOnNonFinite(state)]
        self.callbacks.append(self.best)
        self.callbacks += [board, self.checkpoint, self.curves]
        quiet = quiet or not workers.chief
        self.progress = None if quiet else callbacks.Progress(self.budget, total, console, health)
        if self.progress:
            self.callbacks.append(self.progress)

    def _copy(self, folder):
        """Scratch folder with the rows of a run folder."""
        scratch = Path(self._scratch.name)
        if (folder / "history.csv").is_file():
            shutil.copy(folder / "history.csv", scratch)
        return scratch

    def spent(self):
        """Whether no step is left."""
        minutes = self.experiment.minutes
        if self.total is None:
            return self.state.seconds >= 60 * minutes
        return self.state.steps >= self.total

    def fit(self, model, train, val):
        """Trains until the budget ends; the last epoch is always validated."""
        steps, epochs = self.experiment.train.steps_per_epoch, self.state.epochs
        # Minutes, and not this number, end a run that has them.
        left = 10**6 if self.total is None else self.total - self.state.steps
        epochs += -(-(left + self.state.epoch_steps) // steps)
        # Tiles only go forward, at about a third of a step: at most a quarter of the time.
        every = 1 if val is None else -(-int(val.cardinality()) // steps)
        # A kill may have come after the last step, or after that which used up the patience.
        waited = self.best.waited and not self.state.finished
        self.state.finished = False
        if not self.spent() and not waited:
            pictures = 1 if self.total is None else max(1, self.total // steps // PICTURES)
            if hasattr(model.network, "sample"):
                self.callbacks.append(callbacks.PairGrid(self.folder, model.plan, pictures))
            if val is not None and model.translator is not None:
                grid = callbacks.TranslationGrid(self.folder, val, model.plan, pictures)
                self.callbacks.append(grid)
            arguments = {
                "epochs": epochs,
                "initial_epoch": self.state.epochs,
                "steps_per_epoch": steps,
                "validation_data": val,
                "validation_freq": every,
                "callbacks": self.callbacks,
            }
            if _copies(model):
                loop.fit(model, train, **arguments)
            else:
                model.fit(train, shuffle=False, verbose=0, **arguments)
        if val is not None and self.state.epochs % every:
            self.validate(model, val)
        self.state.finished = True
        self.checkpoint.save_state()
        self.curves.draw()

    def validate(self, model, val):
        """Adds the scores of the last epoch to its row."""
        if _copies(model):
            logs = loop.evaluate(model, val)
        else:
            logs = model.evaluate(val, verbose=0, return_dict=True)
        scores = {f"val_{name}": value for name, value in logs.items()}
        self.history.rows[-1].update(scores)
        self.best.set_model(model)
        self.best.on_epoch_end(self.state.epochs - 1, scores)
        self.history.write()
        if self.progress:
            self.progress.console.print(f"last epoch  {callbacks.summary_line(scores)}")

    def close(self):
        """Leaves the terminal as it was, and no scratch files."""
        if self.progress:
            self.progress.close()
        if self._scratch is not None:
            self._scratch.cleanup()


def _copies(model):
    """Whether a step is made by several replicas, which the loops of Keras do not serve."""
    return model.distribute_strategy.num_replicas_in_sync > 1
