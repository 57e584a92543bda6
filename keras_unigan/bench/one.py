"""One run of the bench, in a process of its own: `python -m keras_unigan.bench.one TASK ROW`.

Its own process, so that its memory is its own, and a system that fails takes nothing with it.
"""

import dataclasses
import json
import math
import resource
import statistics
import sys
import time
from pathlib import Path

from keras_unigan.config import Experiment, TrainOptions, finite, from_dict, write_json
from keras_unigan.errors import CodedError

SCORES = ("dice", "hd95", "assd")


def row_of(task):
    """Trains and scores one run; returns its row.

    Args:
        task: Dict of `experiment` (as `config.Experiment`), `study`, `split`.

    Returns:
        Dict; of a system that refuses the study, `refused` says why.
    """
    # A run that was interrupted goes on; one that is done is only scored again.
    experiment = from_dict(Experiment, task["experiment"], "experiment")
    row = {"system": experiment.model, "seed": experiment.seed, "steps": experiment.steps}
    row |= {"batch_size": experiment.train.batch_size, "augment": experiment.train.augment}
    row["filters"] = experiment.network.get("filters")
    try:
        return row | measured(experiment, task["study"], task["split"])
    except CodedError as error:
        return row | {"refused": str(error)}


def measured(experiment, study, split):
    """What a row holds beside what was asked for."""
    from keras_unigan import evaluation, inference, training
    from keras_unigan.networks import counting
    from keras_unigan.training import folds

    folder = Path(experiment.output)
    started = time.perf_counter()
    if not folds.finished(folder):
        resume = (folder / "checkpoints" / "state.json").is_file()
        training.run(experiment, resume=resume, overwrite=not resume, quiet=True)
    seconds = time.perf_counter() - started
    scores = evaluation.evaluate_run(folder, study, split)
    network, plan = training.load_run(folder)
    history = (folder / "history.csv").read_text().splitlines()
    names = history[0].split(",")
    steps = _column(history, names, "step_seconds")
    # How large the segmentor's gradient is, and how much it changes from step to step.
    gradient = {
        name: mean(_column(history, names, name))
        for name in ("segmentor_gradient_norm", "segmentor_gradient_sd")
        if name in names
    }
    return {
        "parameters": sum(math.prod(variable.shape) for variable in network.trainable_variables),
        "macs": counting.network_macs(
            network, plan.configuration(experiment.spatial_dims).patch_size
        ),
        # Of the fastest epoch: other work on the machine only ever makes one slower.
        "step_seconds": min(steps),
        "train_seconds": seconds,
        "inference_seconds": _inference(inference.Predictor(network, plan), study, split),
        "peak_gib": _peak_bytes() / 2**30,
        "val_dice": max(_column(history, names, "val_dice"), default=None),
        **gradient,
        "macro_dice": scores["macro_dice"],
        "modalities": _of_modalities(scores),
        "undefined": scores["undefined"],
        "failed": scores["failed"],
        "run": str(folder),
    }


def _column(history, names, name):
    """Numbers of a column of `history.csv`; none where it has no such column."""
    if name not in names:
        return []
    values = [line.split(",")[names.index(name)] for line in history[1:]]
    return [float(value) for value in values if value]


def _of_modalities(scores):
    """Modality -> mean of each score over its names."""
    found = {}
    for row in scores["table"]:
        found.setdefault(row["modality"], []).append(row)
    return {
        modality: {score: mean([row[f"{score}_mean"] for row in rows]) for score in SCORES}
        for modality, rows in found.items()
    }


def _peak_bytes():
    """Most bytes of memory that this process has held."""
    from keras_unigan.training import fitting

    # What the system counts of a process by itself begins with the memory of the one that made it.
    own = fitting.peak_bytes()
    # Kibibytes on Linux, bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return own or unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def mean(values):
    """Mean of the numbers that are defined, or None where there is none."""
    kept = [value for value in values if value is not None and value == value]
    return statistics.fmean(kept) if kept else None


def _inference(predictor, path, split):
    """Median seconds of one scan, its graph being built; of at most five scans."""
    from keras_unigan import prediction
    from keras_unigan.config import Study

    study = Study.load(path)
    cases = [case for case in study.cases if case.split == split][:5]
    seconds = []
    for case in [*cases[:1], *cases]:
        started = time.perf_counter()
        prediction.predict(predictor, study.path(case.image), case.modality)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def main(arguments=None):
    """Runs a task and writes its row."""
    task, row = sys.argv[1:] if arguments is None else arguments
    found = row_of(json.loads(Path(task).read_text()))
    write_json(row, finite(found))


def experiment_dict(**fields):
    """JSON of an `Experiment`, its training options given as a dictionary."""
    train = TrainOptions(**fields.pop("train", {}))
    return dataclasses.asdict(Experiment(train=train, **fields))


if __name__ == "__main__":
    main()
