"""From an experiment to a run folder: strategy, streams, game, fit, checkpoints."""

import dataclasses
import functools
import importlib.metadata
import os
import platform
import shutil
import time
from pathlib import Path

import keras
import tensorflow as tf

from keras_unigan import callbacks
from keras_unigan.config import Experiment, Plan, read_json, write_json
from keras_unigan.data import audit, datasets, records
from keras_unigan.errors import CodedError
from keras_unigan.training import fitting, transfer
from keras_unigan.training.building import build_model, check_cases, own_options, translates
from keras_unigan.training.choosing import chosen
from keras_unigan.training.devices import Workers, strategy_for
from keras_unigan.training.session import Session

DEFAULT_STEPS = 1000
"""Steps of a run without a budget: some minutes on two cores at the planner's sizes."""

# What a run makes, and `overwrite` removes; nothing else in the folder is touched.
RUN_FILES = (
    *("config.json", "plan.json", "network.keras", "run.json", "history.csv", "progress.png"),
    *(
        "audit.csv",
        "audit.json",
        "translator.keras",
        "renderer.keras",
        "mask_generator.keras",
        "translations.png",
        "pairs.png",
        "health.json",
        "checkpoints",
        "tb",
    ),
)
# What was made of the network since, and is false of another one.
SCORES: tuple[str, ...] = (
    "metrics.json",
    "metrics.csv",
    "metrics_unknown.json",
    "metrics_unknown.csv",
    "translation.json",
    "translation.csv",
)
SCORES += ("samples", "report.html", "postprocessing.json", "alignment.json", "alignment.png")
SCORES += ("alarm.json", "alarm.npz", "alarm.keras", "comparison.json", "reproduction.json")
SCORES += ("translation_unknown.json", "translation_unknown.csv")
# A resumed run may have another budget, and may have been moved with its shards.
_FREE = ("shards", "output", "replicas", "minutes", "epochs", "steps")


def budget_of(experiment):
    """Steps of an experiment, `DEFAULT_STEPS` without a budget, or None when minutes decide."""
    if experiment.minutes is not None:
        return None
    if experiment.epochs is not None:
        return experiment.epochs * experiment.train.steps_per_epoch
    return experiment.steps or DEFAULT_STEPS


def _with_horizon(experiment):
    """The experiment with the steps for which its schedules are made."""
    horizon = experiment.horizon or budget_of(experiment) or DEFAULT_STEPS
    return dataclasses.replace(experiment, horizon=horizon)


def _parts(experiment, start_step=0, seen=None):
    """Streams, plan and game of an experiment."""
    dims = experiment.spatial_dims
    planned = datasets.plan_of(experiment.shards)
    options = own_options(experiment.model, experiment.train, planned)
    if experiment.deterministic:
        # TensorFlow then refuses random operations without a seed, also before the game is built.
        keras.utils.set_random_seed(experiment.seed)
        tf.config.experimental.enable_op_determinism()
    strategy = strategy_for(experiment.replicas)
    train, val, plan = datasets.load(
        experiment.shards,
        dims,
        seed=experiment.seed,
        options=options,
        start_step=start_step,
        endless=True,
        translating=translates(experiment.model),
        seen=seen,
        check=functools.partial(check_cases, experiment.model, experiment.game),
    )
    batch_size, replicas = plan.configuration(dims).batch_size, strategy.num_replicas_in_sync
    if batch_size % (replicas * options.accumulate):
        raise CodedError(
            "KUG-T02",
            "train.batch_size",
            f"{batch_size} over {replicas} replicas, each in {options.accumulate} micro-batches",
            f"a multiple of {replicas * options.accumulate}",
            "Every part of a batch has the same size.",
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
            total_steps=experiment.horizon,
        )
    return train, val, plan, model


def describe(experiment):
    """What `run` would do, as a dictionary; writes nothing and makes no step.

    Raises:
        CodedError: As `run`, but for the run folder.
    """
    experiment = _with_horizon(chosen(experiment)[0])
    _, val, plan, model = _parts(experiment)
    configuration = plan.configuration(experiment.spatial_dims)
    networks = {role: getattr(model, role).count_params() for role in model.roles}
    result = {
        "model": experiment.model,
        "modalities": list(plan.modalities),
        "outputs": list(plan.labels.names),
        "patch_size": list(configuration.patch_size),
        "batch_size": configuration.batch_size,
        "parameters": networks,
        "steps": budget_of(experiment),
        "minutes": experiment.minutes,
        "horizon": experiment.horizon,
        "validation_batches": 0 if val is None else int(val.cardinality()),
        "output": experiment.output,
    }
    if experiment.init_from:
        result["init_from"] = transfer.initialize(model, plan, experiment.init_from)
    return result


def run(experiment, resume=False, overwrite=False, quiet=False, console=None, memory_gib=None):
    """Trains a system and fills its run folder (see `RUN_FILES`).

    `network.keras` is the averaged segmentor at its best validation Dice, or the last one when
    there is no validation case. A run that was interrupted or killed at any moment goes on, with
    `resume`, from its last checkpoint, and ends as if nothing had been: `deterministic` makes that
    true to the bit. With a cluster in `TF_CONFIG` the processes train together, each on its share
    of every batch, and the first of them writes the folder.

    Args:
        experiment: `config.Experiment`; without a budget it runs `DEFAULT_STEPS`, and without a
            system the one that `chosen` takes.
        resume: Go on from the last checkpoint; the budget counts what was done before.
        overwrite: Replace an earlier run in the folder.
        quiet: Print no progress.
        console: `rich.console.Console` for progress; None is standard output.
        memory_gib: GiB of memory that the run may take; None takes what is free.

    Returns:
        Dict: `output`, `model`, `epochs`, `steps`, `seconds`, `best_dice` (NaN without validation),
        `best_epoch`, `skipped_steps`, `outputs`.

    Raises:
        CodedError: KUG-E02 when the folder is not empty; KUG-T04 when there is nothing to resume or
            it had other settings, or `init_from` is of another architecture; KUG-T02 when its
            budget is used up, or for settings that do not fit; KUG-T06 when memory will not hold
            a step (of one replica; see `fitting.check_memory`); KUG-T05 when no step of an epoch
            was finite; as `datasets.load`.
        KeyboardInterrupt: As it came; the last checkpoint is whole.
    """
    started, folder, workers = time.monotonic(), Path(experiment.output), Workers.read()
    if workers.count > 1 and experiment.minutes is not None:
        raise CodedError(
            "KUG-T02",
            "minutes",
            f"{experiment.minutes} minutes for {workers.count} workers",
            "steps or epochs",
            "Each worker has its own clock, and all must stop at the same step.",
        )
    why = None
    if resume:
        experiment, state = _resumed(folder, experiment)
    else:
        state = callbacks.State()
        if workers.chief and not overwrite and folder.exists() and any(folder.iterdir()):
            raise CodedError(
                "KUG-E02",
                folder,
                "files in it",
                "a new or empty folder",
                "Nothing is overwritten silently.",
                "choose another --output, or give --resume or --overwrite",
            )
        experiment, why = chosen(experiment)
        experiment = _with_horizon(experiment)
    seen = audit.Seen()
    train, val, plan, model = _parts(experiment, state.steps, seen)
    if workers.count == experiment.replicas == 1:
        limit = None if memory_gib is None else int(memory_gib * 2**30)
        fitting.check_memory(experiment, plan, model, train.element_spec, limit)
    report = None
    if resume:
        _check_plan(plan, folder)
    elif experiment.init_from:
        report = transfer.initialize(model, plan, experiment.init_from)
    total = budget_of(experiment)
    session = Session(experiment, total, folder, state, seen, workers, quiet, console)
    if resume:
        session.checkpoint.restore(model, folder / "checkpoints")
    if workers.chief:
        _clear(folder, SCORES if resume else (*RUN_FILES, *SCORES))
        folder.mkdir(parents=True, exist_ok=True)
        experiment.save(folder / "config.json")
        plan.save(folder / "plan.json")
    if why and session.progress:
        session.progress.console.print(why)
    if report and session.progress:
        session.progress.console.print(transfer.text(report))
    status = "failed"
    try:
        session.fit(model, train, val)
        status = "finished"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        session.close()
        if workers.chief:
            seconds = round(time.monotonic() - started, 1)
            _record(folder, experiment, state, status, seconds, report)
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


def _resumed(folder, experiment):
    """Experiment and state of the run that an experiment goes on with; refuses other settings."""
    if not (folder / "config.json").is_file():
        raise CodedError(
            "KUG-T04", folder, "no run", "a run folder to resume", fix="train without --resume"
        )
    state = callbacks.Checkpoint.read(folder / "checkpoints")
    before = Experiment.load(folder / "config.json")
    if experiment.horizon is None:
        experiment = dataclasses.replace(experiment, horizon=before.horizon)
    if experiment.model is None:
        experiment = dataclasses.replace(experiment, model=before.model)
    for field in dataclasses.fields(Experiment):
        old, new = getattr(before, field.name), getattr(experiment, field.name)
        if field.name == "train":
            # How often a run is saved is no part of what it computes.
            same = {n: getattr(new, n) for n in ("checkpoint_seconds", "checkpoint_steps")}
            old = dataclasses.replace(old, **same)
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
    spent = state.seconds >= 60 * minutes if minutes else state.steps >= steps
    if spent and state.finished:
        raise CodedError(
            "KUG-T02",
            folder,
            f"a finished run ({state.steps} steps, {state.seconds / 60:.1f} minutes)",
            "budget that is left",
            fix="give more --steps, --epochs or --minutes",
        )
    return experiment, state


def _check_plan(plan, folder):
    """Refuses shards of another plan than that of the run."""
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


def _clear(folder, names):
    """Removes files of an earlier run, and nothing else."""
    for name in names:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _record(folder, experiment, state, status, seconds, report):
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
        "inputs": {
            "shards": os.fspath(experiment.shards),
            # The manifest holds the sha256 of each shard.
            "shards_sha256": records.sha256(os.path.join(experiment.shards, "shards.json")),
        },
        "outputs": {"run": str(folder), "epochs": state.epochs, "steps": state.steps},
        "seconds": seconds,
    }
    entry |= {"init_from": report} if report else {}
    write_json(path, [*entries, entry])
