"""What `--init-from` gains over a fresh start with few subjects; one JSON line a run, in a file.

`run` trains for each task a source (once, seed 0), then the target from it and from scratch, with
the same subjects, steps and settings, and adds the rows that are missing; `table` prints them as
Markdown. The subjects of a target change with the seed. Tasks:

- `hippocampus`: other data. Source: the semi-real brains, their T1 among four modalities. Target:
  hippocampus crops, expert labels.
- `ixi`: other data of the same anatomy. Source: as above, without the subjects of this target.
  Target: the real T1 scans. (The semi-real brains were made from this study: other contrast, the
  same labels, other subjects.)
- `classes`: other classes. Source: coarse classes of two subjects of each modality. Target: the
  seven fine ones, on other subjects.
- `added ct`: an added modality. Source: FLAIR, T1 and T2. Target: these and CT, few subjects of
  each; the codes of the old ones are kept.

The first two have one modality, which only systems that do not translate can learn from. Where the
target would be planned otherwise, it takes the strides of the source, whose networks it continues.
"""

import csv
import dataclasses
import itertools
import random
import statistics
from pathlib import Path

import comparing
import quality

from keras_unigan.config import Labels, Plan
from keras_unigan.data import cases
from keras_unigan.pipelines import preprocess
from keras_unigan.training.building import translates

ROWS = Path(__file__).parent / "transfer.jsonl"
FINE = quality.LABELS
COARSE = {"csf": (1,), "grey": (2, 4), "white": (3, 7), "hindbrain": (5, 6)}
TISSUES = {name: values for name, values in FINE.items() if name != "lesion"}
HIPPOCAMPUS = {"anterior": (1,), "posterior": (2,)}
OLD = ("flair", "t1", "t2")


def manifest(data, dataset):
    """Rows of a dataset with whole paths, modality in lower case."""
    data = Path(data).resolve()
    with (data / "manifest.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["dataset"] == dataset:
                paths = {key: str(data / row[key]) for key in ("image", "label")}
                yield {**row, **paths, "modality": row["modality"].lower()}


def semireal(data):
    """Training subjects of the semi-real brains by modality, in order; and the rows to test on."""
    subjects: dict = {modality: [] for modality in quality.MODALITIES}
    test = []
    for row in sorted(manifest(data, quality.DATASET), key=lambda row: row["subject"]):
        if row["pairing"] == "paired_val":
            test.append(row)
        else:
            subjects[row["modality"]].append(row)
    return subjects, test


def split(train, val=(), test=()):
    """Rows with their split."""
    parts = {"train": train, "val": val, "test": test}
    return [{**row, "split": name} for name, rows in parts.items() for row in rows]


def few(rows, count, seed):
    """Some rows, others for another seed."""
    return random.Random(seed).sample(rows, count)


def four_of_each(data):
    """Source of the tasks on other data: the last subject of each modality is to choose by."""
    subjects, _ = semireal(data)
    train = [row for rows in subjects.values() for row in rows[:-1]]
    return split(train, [rows[-1] for rows in subjects.values()])


def hippocampus(data, count, seed):
    """The last ten to test on, two to choose by."""
    rows = sorted(manifest(data, "hippocampus_t1_msd"), key=lambda row: row["subject"])
    return split(few(rows[:-12], count, seed), rows[-12:-10], rows[-10:])


def ixi(data, count, seed):
    """Subjects that the source was not trained on; those of `paired_val` to test on."""
    subjects, test = semireal(data)
    new = {rows[-1]["subject"] for rows in subjects.values()}
    kept = {row["subject"] for row in test}
    rows = sorted(manifest(data, "brain_t1_ixi"), key=lambda row: row["subject"])
    *train, val = few([row for row in rows if row["subject"] in new], count + 1, seed)
    return split(train, [val], [row for row in rows if row["subject"] in kept])


def two_of_each(data):
    """Source of the task on other classes: the first two subjects of each modality."""
    subjects, _ = semireal(data)
    train = [row for rows in subjects.values() for row in rows[:2]]
    return split(train, [rows[2] for rows in subjects.values()])


def other_classes(data, count, seed):
    """Subjects that its source did not see; the same to choose by."""
    subjects, test = semireal(data)
    train = [row for rows in subjects.values() for row in few(rows[3:], count, seed)]
    return split(train, [rows[2] for rows in subjects.values()], test)


def without_ct(data):
    """Source of the task on an added modality."""
    return [row for row in four_of_each(data) if row["modality"] in OLD]


def added_ct(data, count, seed):
    """Few subjects of each of the four modalities."""
    subjects, test = semireal(data)
    train = [row for rows in subjects.values() for row in few(rows[:-1], count, seed)]
    return split(train, [rows[-1] for rows in subjects.values()], test)


@dataclasses.dataclass(frozen=True)
class Task:
    """What a source and a target are trained on.

    Attributes:
        source: Name and function(data) -> rows of the source, and its classes.
        target: Function(data, count, seed) -> rows of the target.
        labels: Classes of the target.
        modalities: Those of the target.
    """

    source: tuple
    target: object
    labels: dict
    modalities: tuple = quality.MODALITIES


WHOLE = ("four_of_each", four_of_each, FINE)
TASKS = {
    "hippocampus": Task(WHOLE, hippocampus, HIPPOCAMPUS, ("t1",)),
    "ixi": Task(WHOLE, ixi, TISSUES, ("t1",)),
    "classes": Task(("two_of_each", two_of_each, COARSE), other_classes, FINE),
    "added ct": Task(("without_ct", without_ct, FINE), added_ct, FINE),
}


def prepared(rows, labels, folder):
    """Study of rows that have a split, and shards of what is trained and validated; made once."""
    whole, shards = folder / "whole.json", folder / "shards"
    if not (shards / "shards.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        table = folder / "cases.csv"
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        study = cases.init_study(table, labels=Labels(classes=labels), name=folder.name)
        study.save(whole)
        learnt = tuple(case for case in study.cases if case.split != "test")
        dataclasses.replace(study, cases=learnt).save(folder / "study.json")
        study = str(folder / "study.json")
        preprocess.run(["--study", study, "--output", str(shards), "--overwrite"])
    return whole, shards


def source_run(task, system, options):
    """Run folder of a source, trained if it is not there."""
    name, rows, labels = TASKS[task].source
    folder = Path(options.work) / "transfer" / name
    _, shards = prepared(rows(options.data), labels, folder)
    own = {"steps": options.source_steps or options.steps, "tag": options.tag}
    own = type(options)(**{**vars(options), **own})
    output = comparing.run_folder(folder, system, 0, own)
    comparing.train(quality.experiment_of(system, name, 0, own, shards, output), options.quiet)
    return output


def fitted(experiment, shards, source):
    """The experiment with the strides of a source, and a patch that they divide."""
    before, own = (Plan.load(p / "plan.json").configuration(2) for p in (source, Path(shards)))
    if before.strides == own.strides:
        return experiment
    patch = [-(-side // d) * d for side, d in zip(own.patch_size, before.divisor, strict=True)]
    return dataclasses.replace(
        experiment,
        network={**experiment.network, "strides": [list(s) for s in before.strides]},
        train=dataclasses.replace(experiment.train, patch_size=tuple(patch)),
    )


def one(key, options):
    """Trains and scores one target; returns its row."""
    task, system, count, seed = (key[k] for k in ("task", "system", "few", "seed"))
    own = TASKS[task]
    folder = Path(options.work) / "transfer" / f"{task}_{count}_{seed}".replace(" ", "_")
    whole, shards = prepared(own.target(options.data, count, seed), own.labels, folder)
    source = source_run(task, system, options)
    name = f"{system}_{key['start']}"
    output = comparing.run_folder(folder, name, seed, options)
    experiment = quality.experiment_of(system, task, seed, options, shards, output)
    experiment = fitted(experiment, shards, source)
    if key["start"] == "init":
        experiment = dataclasses.replace(experiment, init_from=str(source))
    seconds = comparing.train(experiment, options.quiet)
    test = quality.score(output, whole, own.modalities, known=True)
    return {
        **key,
        "train_seconds": round(seconds),
        "test": test,
        "macro": round(statistics.fmean(scores["dice"] for scores in test.values()), 4),
    }


def run(options):
    """Adds the rows that are missing."""
    wanted = itertools.product(
        options.seeds, options.tasks, options.systems, options.few, ("scratch", "init")
    )
    for seed, task, system, count, start in wanted:
        if len(TASKS[task].modalities) < 2 and translates(quality.SYSTEMS[system][0]):
            print(f"{task} has one modality, and {system} translates: left out")
            continue
        key = {"task": task, "system": system, "few": count, "seed": seed, "start": start}
        key |= {**comparing.budget(options), "source_steps": options.source_steps or options.steps}
        rows = comparing.read_rows(options.rows)
        if not any(key.items() <= row.items() for row in rows):
            comparing.add_row(options.rows, one(key, options))


def gains(pairs, value):
    """Scratch, continued and their difference over seeds, as texts.

    Args:
        pairs: List of rows from scratch and continued, a pair a seed.
        value: Function from a row to a number.
    """
    before, after = ([value(row) for row in rows] for rows in zip(*pairs, strict=True))
    gained = [b - a for a, b in zip(before, after, strict=True)]
    return [quality.spread(numbers) for numbers in (before, after, gained)]


def table(options):
    """Prints one Markdown table: mean Dice from scratch and continued, paired by seed."""
    groups: dict = {}
    for row in comparing.read_rows(options.rows):
        size = tuple(
            row[k] for k in ("task", "system", "few", "steps", "source_steps", "filters", "tag")
        )
        groups.setdefault(size, {}).setdefault(row["seed"], {})[row["start"]] = row
    heads = ("task", "system", "subjects a modality", "steps", "scored", "scratch", "continued")
    heads = (*heads, "gain", "seeds")
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for (task, system, count, steps, *_, tag), seeds in groups.items():
        pairs = [(both["scratch"], both["init"]) for both in seeds.values() if len(both) == 2]
        if not pairs:
            continue
        scored = {"all": TASKS[task].modalities}
        if task == "added ct":
            scored = {"ct": ("ct",), "the old three": OLD}
        for name, modalities in scored.items():
            mean = lambda row, own=modalities: statistics.fmean(  # noqa: E731
                row["test"][m]["dice"] for m in own
            )
            cells = gains(pairs, mean)
            own = [task, system + tag, str(count), str(steps), name, *cells, str(len(pairs))]
            print(f"| {' | '.join(own)} |")


def main():
    parser = comparing.parser(__doc__, ROWS)
    parser.add_argument("--tasks", type=lambda s: s.split(";"), default=list(TASKS))
    parser.add_argument("--systems", type=lambda s: s.split(";"), default=["joint", "unigan"])
    parser.add_argument(
        "--few",
        type=lambda s: [int(n) for n in s.split(",")],
        default=[1, 2],
        help="subjects of each modality in the target: 1 or 2",
    )
    parser.add_argument("--source_steps", type=int, help="steps of a source; those of a target")
    options = parser.parse_args()
    {"run": run, "table": table}[options.action](options)


if __name__ == "__main__":
    main()
