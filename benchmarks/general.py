"""One general model: `unigan init`, `prepare` and `train` with no setting on every labelled folder.

Nothing is said but the budget and the seed: the planner and the training cases decide the rest, the
system too. `run` does each folder of the data that has no row yet, in a process of its own, and
goes on with one that was killed; `forecast` says beforehand how long each would take; `table`
prints the rows as Markdown. Splits are by subject. Of up to four subjects the last one is held out
and nobody validates; where nobody can be held out, all are trained on, and the row says why it has
no held-out score.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import comparing

from keras_unigan.config import Experiment, Plan, Study
from keras_unigan.errors import CodedError

ROWS = Path(__file__).parent / "general.jsonl"
# Which of several label maps a folder is about, where its names leave that open (`--label-name`).
LABEL_NAMES = {
    "brain_t1_ixi": "tissue",
    "brain_tumour_4mod_tcga": "simple",
    "prostate_mr_us_deepreg": "gland",
    "vertebra_ct_mr_tptbox": "subreg",
}
FEW = 4
"""Subjects up to which one is held out, instead of a fifth each to validate and to test."""
NOBODY = "none: {} subjects, and no modality of one that another could be held out for"


def folders(options):
    """Names of the folders to do, in order.

    Raises:
        SystemExit: For a name that is not there.
    """
    there = sorted(p.name for p in Path(options.data).iterdir() if p.is_dir())
    missing = set(options.folders or ()) - set(there)
    if missing:
        raise SystemExit(f"No folder {', '.join(sorted(missing))} in {options.data}: {there}")
    return options.folders or there


def study_of(source, label_name=None):
    """The study of a folder with its splits: as `unigan init`, or one held out of a few.

    Args:
        source: Folder of scans.
        label_name: Word in the names of the label maps, or None.

    Returns:
        `config.Study`, its `splits.Assignment`, and why nobody is held out, or None.
    """
    from keras_unigan.data import cases, readers, splits

    whole = cases.study_of(readers.read(source, label_name=label_name), source)
    subjects = sorted({case.subject for case in whole.cases})
    held = subjects[-1] if 1 < len(subjects) <= FEW else None
    if len(subjects) <= FEW:
        whole = _given(whole, held)
    study, made, _, _ = cases.share_out(whole, splits.Scheme())
    if held and not any(case.split == "test" for case in _trained(study).cases):
        held = None
        study, made, _, _ = cases.share_out(_given(whole, None), splits.Scheme())
    study = _trained(study)
    spare = tuple(case for case in made.left_out if case.modality in study.modalities)
    made = dataclasses.replace(made, left_out=spare)
    why = None if held or len(subjects) > FEW else NOBODY.format(len(subjects))
    return study, made, why


def _given(study, held):
    """The study with one subject to test on, or nobody, and the others to train with."""
    cases = tuple(
        dataclasses.replace(case, split="test" if case.subject == held else "train")
        for case in study.cases
    )
    return dataclasses.replace(study, cases=cases)


def _trained(study):
    """The study without the modalities that no training case has: few subjects allow few."""
    seen = {case.modality for case in study.cases if case.split == "train"}
    return dataclasses.replace(
        study,
        modalities=tuple(m for m in study.modalities if m in seen),
        cases=tuple(case for case in study.cases if case.modality in seen),
    )


def prepared(name, options):
    """Study file and shards of a folder, made once; and why nobody is held out, or None.

    Raises:
        CodedError: Where the folder has no images with labels, or they cannot be used.
    """
    from keras_unigan.data import cases
    from keras_unigan.pipelines import preprocess

    folder = Path(options.work).resolve() / name
    study, shards, note = folder / "study.json", folder / "shards", folder / "held_out.json"
    if not (shards / "shards.json").is_file():
        made, assignment, why = study_of(Path(options.data).resolve() / name, LABEL_NAMES.get(name))
        folder.mkdir(parents=True, exist_ok=True)
        cases.save_split(made, assignment, study)
        note.write_text(json.dumps(why))
        preprocess.run(["--study", str(study), "--output", str(shards), "--overwrite"])
    return study, shards, json.loads(note.read_text())


def experiment_of(name, shards, options):
    """The experiment of a folder, its system chosen by the data, and the sentence on that."""
    from keras_unigan import training

    run = Path(options.work).resolve() / name / f"run_{options.steps}_{options.seed}"
    given = Experiment(str(shards), str(run), steps=options.steps, seed=options.seed)
    return training.chosen(given)


def planned(path, spatial_dims):
    """What a row says of a plan: the values that a run takes from it, and why."""
    plan = Plan.load(path)
    own = plan.configuration(spatial_dims)
    key = f"{spatial_dims}d"
    kept = ("spacing", *(f"{key}.{n}" for n in ("patch_size", "batch_size", "strides", "filters")))
    return {
        "spacing": [round(size, 3) for size in plan.spacing],
        "patch": list(own.patch_size),
        "batch": own.batch_size,
        "levels": own.levels,
        "strides": [list(stride) for stride in own.strides],
        "width": own.filters,
        "reasons": {k.removeprefix(f"{key}."): plan.reasons[k] for k in kept if k in plan.reasons},
    }


def subjects(study, split):
    """Number of subjects of a split."""
    return len({case.subject for case in study.cases if case.split == split})


def scored(run, path, study, split):
    """Dice of a split: mean over modalities, of each of them, and cases that failed; or None.

    Results for training cases lie in a folder of their own, so that the run's are the held-out's.
    """
    from keras_unigan import evaluation
    from keras_unigan.bench.one import mean

    if not any(case.split == split and case.label for case in study.cases):
        return None
    output = run / "on_train" if split == "train" else None
    found, modalities = evaluation.evaluate_run(run, path, split, output=output), {}
    for row in found["table"]:
        modalities.setdefault(row["modality"], []).append(row["dice_mean"])
    each = {modality: mean(dice) for modality, dice in modalities.items()}
    return {"dice": mean(each.values()), "modalities": each, "failed": found["failed"]}


def one(name, options):
    """Trains and scores one folder; returns its row."""
    from keras_unigan.training import fitting

    row = {"folder": name, "steps": options.steps, "seed": options.seed}
    try:
        path, shards, why = prepared(name, options)
        experiment, choice = experiment_of(name, shards, options)
        seconds = comparing.train(experiment, options.quiet)
        study, run = Study.load(path), Path(experiment.output)
        split = next((s for s in ("test", "val") if subjects(study, s)), None)
        held = scored(run, path, study, split) if split else None
        train = scored(run, path, study, "train")
    except CodedError as error:
        return row | {"refused": str(error)}
    known = held and None not in (held["dice"], train["dice"])
    gap = train["dice"] - held["dice"] if known else None
    return {
        **row,
        "model": experiment.model,
        "why": choice,
        "modalities": list(study.modalities),
        "classes": list(study.labels.foreground),
        "subjects": {s: subjects(study, s) for s in ("train", "val", "test")},
        **planned(run / "plan.json", experiment.spatial_dims),
        "held_out": split or why,
        "dice": held and {"macro": held["dice"], **held["modalities"]},
        "train_dice": {"macro": train["dice"], **train["modalities"]},
        "gap": gap,
        "failed": train["failed"] + (held["failed"] if held else 0),
        "seconds": round(seconds),
        "peak_gib": round(fitting.peak_bytes() / 2**30, 2),
    }


def rounded(value):
    """A row whose numbers have four digits."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def key_of(row):
    """What makes two rows the same run."""
    return row["folder"], row["steps"], row["seed"]


def child(action, name, options):
    """Runs one folder in a process of its own, so that its memory is its own; its exit code."""
    command = [sys.executable, __file__, action, "--folders", name, "--data", options.data]
    command += ["--steps", str(options.steps), "--seed", str(options.seed)]
    command += ["--work", options.work, "--rows", options.rows, *["--quiet"] * options.quiet]
    return subprocess.run(command, check=False).returncode


def run(options):
    """Adds the rows that are missing; a folder that fails leaves the others alone."""
    done, failed = {key_of(row) for row in comparing.read_rows(options.rows)}, []
    for name in folders(options):
        if (name, options.steps, options.seed) in done:
            continue
        # What was prepared before training counts nowhere in its memory.
        if child("prepare", name, options) or child("one", name, options):
            failed.append(name)
    if failed:
        raise SystemExit(f"No row of {', '.join(failed)}: their last words are above.")


def prepare(options):
    """Makes the shards of the folders; what refuses them is said by their rows."""
    for name in folders(options):
        try:
            prepared(name, options)
        except CodedError as error:
            print(f"{name}: {error}", file=sys.stderr)


def train_one(options):
    """Adds the rows of the folders, in this process."""
    for name in folders(options):
        comparing.add_row(options.rows, rounded(one(name, options)))


def forecast(options):
    """Prints one JSON line a folder on what its run would take, from a probe of a few steps."""
    from keras_unigan import training

    for name in folders(options):
        row = {"folder": name, "steps": options.steps}
        try:
            _, shards, _ = prepared(name, options)
            experiment, choice = experiment_of(name, shards, options)
            row |= {"why": choice, **planned(shards / "plan.json", experiment.spatial_dims)}
            del row["reasons"]
            found = training.forecast(experiment)
            row |= {
                "minutes": round(found["seconds"] / 60, 1),
                "core_minutes": round(found["core_seconds"] / 60, 1),
                "step_seconds": round(found["probe"]["step"], 2),
                "busy_cores": round(found["probe"]["others"] or 0.0, 1),
                "memory_gib": round(found["memory_bytes"] / 2**30, 2),
            }
        except CodedError as error:
            row["refused"] = str(error)
        print(json.dumps(row), flush=True)


HEADS = (
    *("folder", "system", "modalities", "classes", "subjects: train, val, test", "patch, batch"),
    *("levels, width", "spacing, mm", "Dice held out", "of each modality", "Dice in training"),
    *("gap", "steps", "minutes", "peak GiB"),
)


def table(options):
    """Prints the rows as a Markdown table, then what was decided for each folder and why."""
    rows = comparing.read_rows(options.rows)
    print(f"| {' | '.join(HEADS)} |\n|{'---|' * len(HEADS)}")
    for row in rows:
        if "refused" not in row:
            print(f"| {' | '.join(map(str, cells(row)))} |")
    for row in rows:
        print(f"\n**{row['folder']}**, seed {row['seed']}\n")
        if "refused" in row:
            print(f"- {row['refused']}")
            continue
        print(f"- {row['why']}")
        if row["dice"] is None:
            print(f"- held out: {row['held_out']}")
        for setting, why in row["reasons"].items():
            print(f"- {setting}: {why}")


def cells(row):
    """Cells of a row of the table."""
    dice = row["dice"] or {"macro": None}
    each = ", ".join(f"{m} {number(d)}" for m, d in dice.items() if m != "macro")
    return (
        *(row["folder"], row["model"], ", ".join(row["modalities"]), len(row["classes"])),
        ", ".join(str(row["subjects"][split]) for split in ("train", "val", "test")),
        f"{'x'.join(map(str, row['patch']))}, {row['batch']}",
        f"{row['levels']}, {row['width']}",
        " x ".join(f"{size:g}" for size in row["spacing"]),
        *(number(dice["macro"]), each or "–", number(row["train_dice"]["macro"])),
        *(number(row["gap"]), row["steps"], f"{row['seconds'] / 60:.1f}", row["peak_gib"]),
    )


def number(value):
    """A Dice, or a dash."""
    return "–" if value is None else f"{value:.3f}"


ACTIONS = {
    **{"run": run, "forecast": forecast, "table": table},
    # What `run` starts for each folder.
    **{"prepare": prepare, "one": train_one},
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=ACTIONS, nargs="?", default="table")
    parser.add_argument("--folders", type=lambda s: s.split(","), help="names; left out: all")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", default="general_runs")
    parser.add_argument("--rows", default=str(ROWS))
    parser.add_argument("--data", default=os.environ.get("UNIGAN_DATA", "../shared/data"))
    parser.add_argument("--quiet", action="store_true")
    options = parser.parse_args()
    ACTIONS[options.action](options)


if __name__ == "__main__":
    main()
