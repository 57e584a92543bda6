"""From an experiment to a run folder: strategy, streams, game, fit, checkpoints."""

import contextlib
import dataclasses
import functools
import importlib.metadata
import os
import platform
import shutil
import time
from pathlib import Path

import tensorflow as tf

from keras_unigan import callbacks
from keras_unigan.config import Experiment, Plan, read_json, write_json
from keras_unigan.data import datasets
from keras_unigan.errors import CodedError
from keras_unigan.training.building import build_model

DEFAULT_STEPS = 1000
"""Steps of a run without a budget: some minutes on two cores at the planner's sizes."""

# What a run makes, and `overwrite` removes; nothing else in the folder is touched.
RUN_FILES = (
    *("config.json", "plan.json", "network.keras", "run.json", "history.csv", "progress.png"),
    *("checkpoints", "tb"),
)
# What was made of the network since, and is false of another one.
SCORES: tuple[str, ...] = (
    "metrics.json",
    "metrics.csv",
    "metrics_unknown.json",
    "metrics_unknown.csv",
)
SCORES += ("samples", "report.html")
# A resumed run may have another budget, and may have been moved with its shards.
_FREE = ("shards", "output", "replicas", "minutes", "epochs", "steps")


@functools.cache
def strategy_for(replicas):
    """Distribution over GPUs where there are any, else over logical CPU devices.

    One for each number in a process: a second MirroredStrategy would use the first one's collective
    keys again, and TensorFlow then aborts.

    Args:
        replicas: Their number. One is the default strategy: the same code without the copies.

    Raises:
        CodedError: KUG-T02 when there are fewer devices.
    """
    if replicas == 1:
        return tf.distribute.get_strategy()
    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    if kind == "CPU":
        cpu = tf.config.list_physical_devices("CPU")[0]
        configured = tf.config.get_logical_device_configuration(cpu) or [None]
        # Once TensorFlow has run something, its devices are fixed.
        with contextlib.suppress(RuntimeError):
            if len(configured) < replicas:
                devices = [tf.config.LogicalDeviceConfiguration()] * replicas
                tf.config.set_logical_device_configuration(cpu, devices)
    devices = tf.config.list_logical_devices(kind)
    if len(devices) < replicas:
        raise CodedError(
            "KUG-T02",
            "replicas",
            f"{replicas} replicas and {len(devices)} {kind} devices",
            "one device each",
            fix=f"--replicas {len(devices)}",
        )
    return tf.distribute.MirroredStrategy([d.name for d in devices[:replicas]])


def budget_of(experiment):
    """Steps of an experiment, `DEFAULT_STEPS` without a budget, or None when minutes decide."""
    if experiment.minutes is not None:
        return None
    if experiment.epochs is not None:
        return experiment.epochs * experiment.train.steps_per_epoch
    return experiment.steps or DEFAULT_STEPS


def _parts(experiment, start_step=0):
    """Strategy, streams, plan and game of an experiment."""
    options, dims = experiment.train, experiment.spatial_dims
    strategy = strategy_for(experiment.replicas)
    train, val, plan = datasets.load(
        experiment.shards,
        dims,
        seed=experiment.seed,
        options=options,
        start_step=start_step,
        endless=True,
    )
    batch_size = plan.configuration(dims).batch_size
    if batch_size % experiment.replicas:
        raise CodedError(
            "KUG-T02",
            "train.batch_size",
            f"{batch_size} over {experiment.replicas} replicas",
            "a multiple of the replicas",
        )
    with strategy.scope():
        model = build_model(
            experiment.model,
            plan,
            dims,
            experiment.seed,
            experiment.network,
            experiment.game,
            options,
        )
    return train, val, plan, model


def describe(experiment):
    """What `run` would do, as a dictionary; writes nothing and makes no step.

    Raises:
        CodedError: As `run`, but for the run folder.
    """
    _, val, plan, model = _parts(experiment)
    chosen = plan.configuration(experiment.spatial_dims)
    networks = {role: getattr(model, role).count_params() for role in model.roles}
    return {
        "model": experiment.model,
        "modalities": list(plan.modalities),
        "outputs": list(plan.labels.names),
        "patch_size": list(chosen.patch_size),
        "batch_size": chosen.batch_size,
        "parameters": networks,
        "steps": budget_of(experiment),
        "minutes": experiment.minutes,
        "validation_batches": 0 if val is None else int(val.cardinality()),
        "output": experiment.output,
    }


def run(experiment, resume=False, overwrite=False, quiet=False, console=None):
    """Trains a system and fills its run folder (see `RUN_FILES`).

    `network.keras` is the averaged segmentor at its best validation Dice, or the last one when
    there is no validation case. A run that was interrupted or killed goes on, with `resume`, from
    its last whole epoch.

    Args:
        experiment: `config.Experiment`; without a budget it runs `DEFAULT_STEPS`.
        resume: Go on from the last checkpoint; the budget counts what was done before.
        overwrite: Replace an earlier run in the folder.
        quiet: Print no progress.
        console: `rich.console.Console` for progress; None is standard output.

    Returns:
        Dict: `output`, `model`, `epochs`, `steps`, `seconds`, `best_dice` (NaN without validation),
        `best_epoch`, `skipped_steps`, `outputs`.

    Raises:
        CodedError: KUG-E02 when the folder is not empty; KUG-T04 when there is nothing to resume or
            it had other settings; KUG-T02 when its budget is used up, or for settings that do not
            fit; KUG-T05 when no step of an epoch was finite; as `datasets.load`.
        KeyboardInterrupt: As it came; the last checkpoint is whole.
    """
    started, folder = time.monotonic(), Path(experiment.output)
    state = _resumed(folder, experiment) if resume else callbacks.State()
    if not resume and not overwrite and folder.exists() and any(folder.iterdir()):
        raise CodedError(
            "KUG-E02",
            folder,
            "files in it",
            "a new or empty folder",
            "Nothing is overwritten silently.",
            "choose another --output, or give --resume or --overwrite",
        )
    train, val, plan, model = _parts(experiment, state.steps)
    if resume:
        _restore(model, plan, folder, state)
    else:
        _clear(folder, RUN_FILES)
    _clear(folder, SCORES)
    folder.mkdir(parents=True, exist_ok=True)
    experiment.save(folder / "config.json")
    plan.save(folder / "plan.json")
    session = _Session(experiment, folder, state, quiet, console)
    status = "failed"
    try:
        session.fit(model, train, val)
        status = "finished"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        session.close()
        seconds = round(time.monotonic() - started, 1)
        _record(folder, experiment, state, status, seconds)
    return {
        "output": str(folder),
        "model": experiment.model,
        "epochs": state.epochs,
        "steps": state.steps,
        "seconds": round(state.seconds, 1),
        "best_dice": float("nan") if state.best is None else state.best,
        "best_epoch": state.best_epoch,
        "skipped_steps": int(model.skipped_steps.numpy()),
        "outputs": [str(folder / n) for n in RUN_FILES if (folder / n).exists()],
    }


class _Session:
    """The callbacks of one call of `run`."""

    def __init__(self, experiment, folder, state, quiet, console):
        self.experiment, self.state = experiment, state
        self.total = budget_of(experiment)
        self.budget = callbacks.Budget(self.total, experiment.minutes, state)
        self.history = callbacks.History(folder / "history.csv", state)
        self.best = callbacks.BestNetwork(
            folder / "network.keras", experiment.train.patience, state
        )
        self.checkpoint = callbacks.Checkpoint(folder / "checkpoints", state)
        self.curves = callbacks.Curves(folder / "progress.png", self.history)
        board = callbacks.EventLog(folder / "tb", state)
        self.callbacks = [self.budget, callbacks.StopOnNonFinite(), self.history, self.best]
        self.callbacks += [board, self.checkpoint, self.curves]
        self.progress = None if quiet else callbacks.Progress(self.budget, self.total, console)

    def fit(self, model, train, val):
        """Trains until the budget ends; the last epoch is always validated."""
        steps, epochs = self.experiment.train.steps_per_epoch, self.state.epochs
        # Minutes, and not this number, end a run that has them.
        epochs += 10**6 if self.total is None else -(-(self.total - self.state.steps) // steps)
        # Tiles only go forward, at about a third of a step: at most a quarter of the time.
        every = 1 if val is None else -(-int(val.cardinality()) // steps)
        model.fit(
            train,
            epochs=epochs,
            initial_epoch=self.state.epochs,
            steps_per_epoch=steps,
            validation_data=val,
            validation_freq=every,
            callbacks=[*self.callbacks, *([self.progress] if self.progress else [])],
            shuffle=False,
            verbose=0,
        )
        row = self.history.rows[-1]
        if val is not None and "val_loss" not in row:
            logs = model.evaluate(val, verbose=0, return_dict=True)
            scores = {f"val_{name}": value for name, value in logs.items()}
            row.update(scores)
            self.best.on_epoch_end(self.state.epochs - 1, scores)
            self.history.write()
            self.checkpoint.save_state()
            if self.progress:
                self.progress.console.print(f"last epoch  {callbacks.summary_line(scores)}")
        self.curves.draw()

    def close(self):
        """Leaves the terminal as it was."""
        if self.progress:
            self.progress.close()


def _resumed(folder, experiment):
    """State of the run that an experiment goes on with; refuses other settings."""
    if not (folder / "config.json").is_file():
        raise CodedError(
            "KUG-T04", folder, "no run", "a run folder to resume", fix="train without --resume"
        )
    state = callbacks.Checkpoint.read(folder / "checkpoints")
    before = Experiment.load(folder / "config.json")
    for field in dataclasses.fields(Experiment):
        old, new = getattr(before, field.name), getattr(experiment, field.name)
        if field.name not in _FREE and old != new:
            raise CodedError(
                "KUG-T04",
                folder,
                f"{field.name} {new}",
                f"the run's own {old}",
                "A run cannot change its settings on the way.",
                "give the same settings as before, or another --output",
            )
    steps, minutes = budget_of(experiment), experiment.minutes
    if (steps is not None and state.steps >= steps) or (minutes and state.seconds >= 60 * minutes):
        raise CodedError(
            "KUG-T02",
            folder,
            f"a finished run ({state.steps} steps, {state.seconds / 60:.1f} minutes)",
            "budget that is left",
            fix="give more --steps, --epochs or --minutes",
        )
    return state


def _restore(model, plan, folder, state):
    """Puts weights, optimizers and averages of a checkpoint into the game."""
    before = Plan.load(folder / "plan.json")
    if before.to_dict() != plan.to_dict():
        keys = [k for k, v in plan.to_dict().items() if before.to_dict()[k] != v]
        raise CodedError(
            "KUG-T04",
            folder,
            f"shards whose plan differs in {', '.join(keys)}",
            "the plan of the run",
            fix="give the shards that the run was trained on",
        )
    path = folder / "checkpoints" / str(state.weights)
    try:
        model.load_weights(path)
    except (ValueError, KeyError, OSError) as error:
        raise CodedError(
            "KUG-T04", path, f"weights that do not load ({error})", "weights of this architecture"
        ) from error


def _clear(folder, names):
    """Removes files of an earlier run, and nothing else."""
    for name in names:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _record(folder, experiment, state, status, seconds):
    """Adds this session to `run.json`."""
    path = folder / "run.json"
    entries = read_json(path) if path.is_file() else []
    packages = ("keras-unigan", "keras", "tensorflow", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    entry = {
        "command": "train",
        "status": status,
        "versions": {"python": platform.python_version(), **versions},
        "config": experiment,
        "seed": experiment.seed,
        "inputs": {"shards": os.fspath(experiment.shards)},
        "outputs": {"run": str(folder), "epochs": state.epochs, "steps": state.steps},
        "seconds": seconds,
    }
    write_json(path, [*entries, entry])
