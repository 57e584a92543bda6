"""Which system plays in a run that names none: by what its training cases can teach."""

import dataclasses
import warnings
from pathlib import Path

import tensorflow as tf

from keras_unigan.config import Experiment
from keras_unigan.data import catalogue, datasets, records
from keras_unigan.errors import CodedError
from keras_unigan.training.building import check_cases, own_options
from keras_unigan.training.devices import strategy_for

TRANSLATING, PLAIN = "unigan", "joint"
"""The system where a translating game can be played, and that for all other data."""


def chosen(experiment, folds=None):
    """Gives an experiment that names no system the one that its data allow.

    `unigan` where the training cases, as the run would draw them, have two modalities and nothing
    else that a translating game refuses; else `joint`. A run that starts from another one plays
    what that played. A name that was given stays, and then nothing is read.

    Args:
        experiment: `config.Experiment`.
        folds: Number of folds, each of which becomes a run of the same system; None for one run.

    Returns:
        The `config.Experiment` with the name of a system; and a sentence that says which and why,
        None where it had one.

    Raises:
        CodedError: As `datasets.load` of the shards; KUG-T04 where `init_from` is no run.
    """
    if experiment.model is not None:
        return experiment, None
    if experiment.init_from:
        past = Path(experiment.init_from, "config.json")
        if not past.is_file():
            raise CodedError("KUG-T04", experiment.init_from, "no run", "a run folder")
        name, why = Experiment.load(past).model, f"as in {experiment.init_from}"
    else:
        # Devices are fixed as soon as a record is read.
        strategy_for(experiment.replicas)
        name, why = _by_cases(experiment, folds)
    return dataclasses.replace(experiment, model=name), f"model: {name}, {why}"


# As `datasets.load`: nothing has Python branches on tensors.
@tf.autograph.experimental.do_not_convert
def _by_cases(experiment, folds):
    """Name of a system, and why."""
    dims, own = experiment.spatial_dims, experiment.train
    planned = datasets.plan_of(experiment.shards)
    manifest = records.Manifest.load(experiment.shards, verify=False, plan=planned)
    plan = datasets.configure(planned, dims, own_options(TRANSLATING, own, planned))
    parts = [(own.folds, own.fold)] if folds is None else [(folds, n) for n in range(folds)]
    used = ("train", "val") if parts[0][0] > 1 else ("train",)
    found = {m for split in used for m in manifest.splits.get(split, {})}
    for part in parts if len(found) > 1 else ():
        pairs = experiment.seed, own.pair_subjects
        cases = catalogue.collect(manifest, plan, 0, *pairs, *part)["train"]
        found = {plan.modalities[domain] for domain in cases.domains}
        if len(found) < 2:
            break
        try:
            # What is worth a warning is said when the run itself reads its cases.
            with warnings.catch_warnings(action="ignore"):
                datasets.check_translating(cases, plan, dims, own)
            check_cases(TRANSLATING, experiment.game, plan, *catalogue.counts(cases, plan))
        except CodedError as error:
            text = f"{error.where}: found {error.found}, expected {error.expected}"
            return PLAIN, f"as {TRANSLATING} cannot train on these data ({error.code} {text})"
    names = ", ".join(m for m in plan.modalities if m in found)
    if len(found) < 2:
        return PLAIN, f"as the training cases have one modality ({names or 'none'})"
    return TRANSLATING, f"as the training cases have {len(found)} modalities ({names})"
