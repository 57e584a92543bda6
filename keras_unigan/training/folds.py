"""One run for each fold of the subjects: cross-validation, and the members of an ensemble."""

import dataclasses
import json
import math
import statistics
from pathlib import Path

from keras_unigan.errors import CodedError
from keras_unigan.training.choosing import chosen
from keras_unigan.training.running import run


def fold_folder(output, fold):
    """Run folder of a fold."""
    return Path(output) / f"fold_{fold}"


def finished(folder):
    """Whether the last session of a run folder ended with its budget."""
    path = Path(folder) / "run.json"
    if not path.is_file():
        return False
    sessions = [entry for entry in json.loads(path.read_text()) if entry["command"] == "train"]
    return bool(sessions) and sessions[-1]["status"] == "finished"


def run_folds(experiment, count, resume=False, overwrite=False, say=print, **options):
    """Trains a system once for each fold, which validates it, on all other subjects.

    Args:
        experiment: `config.Experiment`; its `output` gets one run folder a fold.
        count: Folds, two or more. Subjects of the test split are in none of them.
        resume: Go on with what was begun, and leave alone what is done.
        overwrite: Replace earlier runs in these folders.
        say: Called with a sentence before each fold.
        **options: Of `run`.

    Returns:
        Dict: `output`, `runs` (folders), `folds` (what `run` gave, or None for one that was done),
        `dice` (best validation Dice of each that was trained), `mean_dice`, `sd_dice`.

    Raises:
        CodedError: KUG-T02 for fewer than two folds; as `run`.
    """
    if count < 2:
        raise CodedError("KUG-T02", "--folds", f"{count}", "2 or more")
    experiment, why = chosen(experiment, count)
    if why:
        say(why)
    runs, found = [], []
    for fold in range(count):
        folder = fold_folder(experiment.output, fold)
        train = dataclasses.replace(experiment.train, folds=count, fold=fold)
        own = dataclasses.replace(experiment, output=str(folder), train=train)
        runs.append(str(folder))
        if resume and finished(folder):
            say(f"fold {fold}: done before")
            found.append(None)
            continue
        say(f"fold {fold} of {count}: {folder}")
        begun = resume and (folder / "checkpoints" / "state.json").is_file()
        found.append(run(own, resume=begun, overwrite=overwrite, **options))
    dice = [one["best_dice"] for one in found if one and math.isfinite(one["best_dice"])]
    return {
        "output": str(experiment.output),
        "runs": runs,
        "folds": found,
        "dice": dice,
        "mean_dice": statistics.fmean(dice) if dice else math.nan,
        "sd_dice": statistics.stdev(dice) if len(dice) > 1 else math.nan,
    }
