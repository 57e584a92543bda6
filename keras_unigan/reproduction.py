"""Does a run give the same scores again? Trains and evaluates it anew from its `run.json`.

`run.json` says the settings, the seed, the versions and the sha256 of what went in. With
`deterministic` a run on the same kind of device and the same versions is the same to the bit;
without, threads may add numbers in another order.
"""

import dataclasses
import hashlib
import importlib.metadata
import math
import platform
from pathlib import Path

from keras_unigan import evaluation, training
from keras_unigan.aggregation import SCORES, ScoreOptions
from keras_unigan.config import Experiment, finite, from_dict, read_json, write_json
from keras_unigan.errors import CodedError
from keras_unigan.postprocessing import Postprocessing

TOLERANCE = 1e-6
"""Difference of a score up to which two runs are the same."""
RESULT = "reproduction.json"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a `run.json` says of the last training in its folder, and of the scores since.

    Attributes:
        folder: Of the `run.json`.
        experiment: `config.Experiment`, its budget in the steps that were made.
        shards_sha256: Of the shards' manifest; None where an older version did not note it.
        versions: Package -> version.
        evaluations: Entries of `evaluate`, at most one with the modality told and one without.
    """

    folder: Path
    experiment: Experiment
    shards_sha256: str | None
    versions: dict
    evaluations: tuple


def read_recipe(path, shards=None, output=None):
    """Reads a `run.json`.

    Args:
        path: The file, or its run folder.
        shards: Where the shards are now; None: where they were.
        output: Run folder of the new run; None: that of the old one.

    Raises:
        CodedError: KUG-T04 where nothing was trained to its end, or not evaluated since.
    """
    file = Path(path) / "run.json" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise CodedError("KUG-T04", file, "no such file", "run.json of a run folder")
    entries = read_json(file)
    trained = [i for i, e in enumerate(entries) if e.get("command") == "train"]
    if not trained or entries[trained[-1]]["status"] != "finished":
        raise CodedError(
            "KUG-T04",
            file,
            f"a training that {entries[trained[-1]]['status']}" if trained else "no training",
            "a finished one",
            fix="unigan train SHARDS -o RUN",
        )
    entry = entries[trained[-1]]
    since = [e for e in entries[trained[-1] + 1 :] if e.get("command") == "evaluate"]
    # The last of each: earlier files were replaced by it.
    since = {e["settings"]["known_modality"]: e for e in since}
    if not since:
        raise CodedError(
            "KUG-T04",
            file,
            "no evaluation since the training",
            "scores to compare with",
            fix=f"unigan evaluate {file.parent} study.json",
        )
    experiment = from_dict(Experiment, entry["config"], f"{file} config")
    experiment = dataclasses.replace(
        experiment,
        shards=str(shards or experiment.shards),
        output=str(output or experiment.output),
        # What was done, whatever the clock allowed then; the schedules keep their horizon.
        steps=entry["outputs"]["steps"],
        epochs=None,
        minutes=None,
    )
    digest = entry["inputs"].get("shards_sha256")
    return Recipe(file.parent, experiment, digest, entry["versions"], tuple(since.values()))


def check_inputs(recipe, study=None):
    """Refuses data that is not what the run saw.

    Args:
        recipe: `Recipe`.
        study: Path of the study; None: where it was.

    Returns:
        Notes: what differs from then without being wrong, and what cannot be promised.

    Raises:
        CodedError: KUG-D09 for other shards, KUG-T07 for another study, KUG-D01 for missing ones.
    """
    manifest = Path(recipe.experiment.shards) / "shards.json"
    _same(manifest, recipe.shards_sha256, "KUG-D09", "--shards")
    for entry in recipe.evaluations:
        path = study or entry.get("inputs", {}).get("study")
        if path is None:
            raise CodedError("KUG-T02", "--study", "no path in run.json", "study.json")
        _same(Path(path), entry.get("inputs", {}).get("study_sha256"), "KUG-T07", "--study")
    notes = []
    for name, then in recipe.versions.items():
        now = platform.python_version() if name == "python" else importlib.metadata.version(name)
        if now != then:
            notes.append(f"{name} {now} now, {then} then.")
    if not recipe.experiment.deterministic:
        notes.append(
            "The run was not made with --deterministic: threads may add numbers in another order."
        )
    return notes


def _same(path, digest, code, flag):
    if not path.is_file():
        raise CodedError("KUG-D01", path, "no such file", "what the run saw", fix=f"{flag} PATH")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest is not None and found != digest:
        raise CodedError(
            code,
            path,
            f"sha256 {found[:12]}…",
            f"{digest[:12]}…, as in run.json",
            "Another file would give another run.",
            f"{flag} PATH of the one that was used",
        )


def reproduce(recipe, study=None, tolerance=TOLERANCE, overwrite=False, quiet=False):
    """Trains and evaluates again, and compares all scores of all cases.

    Args:
        recipe: `Recipe` with the new run's folder.
        study: Path of the study; None: where it was.
        tolerance: Difference of a score up to which it is the same.
        overwrite: Replace an earlier run in the new folder.
        quiet: Print no progress.

    Returns:
        Dict: `same` (whether all are within the tolerance), `largest` (score -> largest
        difference), `rows` (compared), `missing` (rows that only one run has), `notes`, `output`.
        `reproduction.json` in the new folder holds it too.

    Raises:
        CodedError: See `check_inputs`, `training.run` and `evaluation.evaluate_run`; KUG-T02 for
            the folder of the run itself.
    """
    output = Path(recipe.experiment.output)
    if output.resolve() == recipe.folder.resolve():
        raise CodedError("KUG-T02", "--output", f"{output}, the run itself", "another folder")
    notes = check_inputs(recipe, study)
    before = [_rows(recipe.folder, e["settings"]["known_modality"]) for e in recipe.evaluations]
    training.run(recipe.experiment, overwrite=overwrite, quiet=quiet)
    largest, missing, rows = dict.fromkeys(SCORES, 0.0), 0, 0
    for entry, old in zip(recipe.evaluations, before, strict=True):
        settings = entry["settings"]
        evaluation.evaluate_run(
            output,
            study or entry["inputs"]["study"],
            settings["split"],
            settings["known_modality"],
            settings["limit"],
            options=ScoreOptions(**settings["options"]),
            **_method(settings),
        )
        new = _rows(output, settings["known_modality"])
        missing += len(set(old) ^ set(new))
        for key in set(old) & set(new):
            rows += 1
            for score in SCORES:
                apart = _apart(old[key].get(score), new[key].get(score))
                largest[score] = max(largest[score], apart)
    same = missing == 0 and max(largest.values()) <= tolerance
    result = {"same": same, "largest": largest, "rows": rows, "missing": missing}
    result |= {"notes": notes, "tolerance": tolerance, "output": str(output)}
    write_json(output / RESULT, finite(result))
    return result


def _method(settings):
    """What label maps were made with; steps that validation taught then count as settings now."""
    method = settings.get("method", {"tta": "none", "postprocessing": []})
    steps = Postprocessing.of_steps(method["postprocessing"])
    return {"tta": method["tta"], "postprocessing": steps}


def _rows(folder, known_modality):
    """(case, name) -> row of a run's scores."""
    file, _ = evaluation.metrics_files(folder, known_modality)
    if not file.is_file():
        raise CodedError("KUG-T04", folder, f"no {file.name}", "the scores that run.json speaks of")
    rows = read_json(file)["rows"]
    return {(row["case"], row["name"]): row for row in rows}


def _apart(one, other):
    """Difference of two scores; infinite where only one is defined."""
    if one is None or other is None:
        return 0.0 if one is other else math.inf
    return abs(one - other)
