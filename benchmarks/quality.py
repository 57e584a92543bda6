"""Compares systems at one budget on the semi-real brains; one JSON line a run, kept in a file.

`run` trains and scores what has no row yet and adds the row; `table` prints the rows as Markdown.
Everything is trained, tuned and chosen within `unpaired_train`; `paired_val` is only tested on.
"""

import csv
import dataclasses
import itertools
import json
import statistics
from pathlib import Path

import comparing

from keras_unigan import evaluation
from keras_unigan.config import Experiment, Labels, Study, TrainOptions
from keras_unigan.data import atlas, cases
from keras_unigan.pipelines import preprocess

DATASET = "brain_semireal_t1_t2_flair_ct"
LABELS = {
    name: (value,)
    for value, name in enumerate(
        ("csf", "cortex", "white", "deep", "brainstem", "cerebellum", "lesion"), start=1
    )
}
MODALITIES = ("ct", "flair", "t1", "t2")
ROWS = Path(__file__).parent / "quality.jsonl"
GRADIENTS = ("segmentor_gradient_norm", "segmentor_gradient_sd")
BENCH = Path(__file__).parent / "bench" / "semireal.jsonl"

NO_D = {"adversarial_weight": 0.0, "domain_weight": 0.0}
ADAM, MUON = {"optimizer": "adam"}, {"optimizer": "muon"}
TAUGHT = {"consistency_weight": 1.0}
HALF = {"unknown_fraction": 0.5}
CONTRAST = {"augment": "contrast", "contrast_fraction": 0.25, "unknown_fraction": 0.33}
# Name in the tables -> system, options of its game, of its segmentor, and of training.
SYSTEMS = {
    "joint": ("joint", {}, {}, {}),
    "joint, adam": ("joint", {}, {}, ADAM),
    "joint, half unknown": ("joint", {}, {}, HALF),
    "joint, contrast": ("joint", {}, {}, CONTRAST),
    "segan": ("segan", {}, {}, {}),
    "segan, muon": ("segan", {}, {}, MUON),
    "segan_paper": ("segan_paper", {}, {}, {}),
    "segan_scalar": ("segan_scalar", {}, {}, {}),
    "segan_scalar, muon": ("segan_scalar", {}, {}, MUON),
    "stargan": ("stargan", {}, {}, {}),
    "stargan, muon": ("stargan", {}, {}, MUON),
    "stargan+segan": ("stargan+segan", {}, {}, {}),
    "uagan": ("uagan", {}, {}, {}),
    "uagan, muon": ("uagan", {}, {}, MUON),
    "unified_gan": ("unified_gan", {}, {}, {}),
    "unified_gan, muon": ("unified_gan", {}, {}, MUON),
    "unigan": ("unigan", {}, {}, {}),
    "unigan, half unknown": ("unigan", {}, {}, HALF),
    "unigan, contrast": ("unigan", {}, {}, CONTRAST),
    "unigan, no D": ("unigan", NO_D, {}, {}),
    "unigan, no C": ("unigan", {"multi_scale_weight": 0.0}, {}, {}),
    "unigan, no shape": ("unigan", {"shape_weight": 0.0}, {}, {}),
    "unigan, consistency": ("unigan", TAUGHT, {}, {}),
    "unigan, contrast, consistency": ("unigan", TAUGHT, {}, CONTRAST),
    "unigan, KD": ("unigan", {"distillation_weight": 0.5}, {}, {}),
    "unigan, difference": ("unigan", {}, {"conditioning": "difference", "se_levels": 1}, {}),
    "unigan, concat": ("unigan", {}, {"conditioning": "concat"}, {}),
    "unigan, film": ("unigan", {}, {"conditioning": "film"}, {}),
    "unigan, multiply": ("unigan", {"mask_mode": "multiply"}, {}, {}),
    "unigan, shared critic": ("unigan", {"critic_mode": "shared"}, {}, {}),
}
ATLAS = ", atlas"
# Setting -> modalities with labels in training, modalities in training, subjects of each.
SETTINGS = {
    "full": (MODALITIES, MODALITIES, None),
    "labels in t1 only": (("t1",), MODALITIES, None),
    "ct never seen": (("flair", "t1", "t2"), ("flair", "t1", "t2"), None),
    "two subjects": (MODALITIES, MODALITIES, 2),
    # The others' training scans labelled by an atlas of T1's (`unigan prelabel`).
    f"labels in t1 only{ATLAS}": (("t1",), MODALITIES, None),
    **{f"only {m}": ((m,), (m,), None) for m in MODALITIES},
}


def base_study(data):
    """All cases; five subjects of each modality to learn from, of which one is to choose by."""
    rows, data = [], Path(data).resolve()
    with open(data / "manifest.csv", newline="") as file:
        for row in csv.DictReader(file):
            if row["dataset"] == DATASET:
                split = "test" if row["pairing"] == "paired_val" else ""
                paths = {key: str(data / row[key]) for key in ("image", "label")}
                rows.append({**row, **paths, "split": split})
    return rows


def make_study(data, setting, folder):
    """Writes the studies of a setting: what is trained on, and what is tested on."""
    labelled, present, subjects = SETTINGS[setting]
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "cases.csv"
    rows = base_study(data)
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    whole = cases.init_study(
        table, labels=Labels(classes=LABELS), name="semireal", fractions=(0.8, 0.2, 0.0)
    )
    whole.save(folder / "whole.json")
    counted, kept = {}, []
    for case in sorted(whole.cases, key=lambda case: case.id):
        if case.split == "test" or case.modality not in present:
            continue
        key = (case.split, case.modality)
        counted[key] = counted.get(key, 0) + 1
        if case.split == "train" and subjects is not None and counted[key] > subjects:
            continue
        if case.modality not in labelled:
            case = dataclasses.replace(case, label=None)
        kept.append(case)
    study = Study("semireal", tuple(sorted(present)), whole.labels, tuple(kept))
    if setting.endswith(ATLAS):
        study, report = atlas.prelabel(study, str(folder))
        print(json.dumps({"dice": report["dice"], "annotated": report["annotated"]}), flush=True)
    study.save(folder / "study.json")
    return folder / "study.json", folder / "whole.json"


def prepared(data, setting, work):
    """Shards of a setting and its test study, made once."""
    folder = Path(work) / setting.replace(" ", "_")
    shards = folder / "shards"
    study, whole = folder / "study.json", folder / "whole.json"
    if not (shards / "shards.json").is_file():
        study, whole = make_study(data, setting, folder)
        preprocess.run(["--study", str(study), "--output", str(shards), "--overwrite"])
    return shards, whole, folder


def score(run, whole, modalities, known):
    """Mean Dice, HD95 and ASSD of each modality over names and subjects of `paired_val`.

    Args:
        run: Run folder.
        whole: Study with all test cases.
        modalities: Which are scored.
        known: Whether the network is told the modality.
    """
    study, rows = Study.load(whole), {modality: [] for modality in modalities}
    chosen = [c for c in study.cases if c.split == "test" and c.modality in rows]
    if chosen:
        part = dataclasses.replace(study, cases=tuple(chosen))
        for scored in evaluation.score_cases(run, part, known_modality=known):
            rows[scored.case.modality] += scored.rows
    return {
        modality: {
            name: round(evaluation.mean([row[name] for row in found]), 4)
            for name in ("dice", "hd95", "assd")
        }
        for modality, found in rows.items()
    }


def experiment_of(system, setting, seed, options, shards, output):
    """The `Experiment` of a row."""
    model, game, network, training_options = SYSTEMS[system]
    train = TrainOptions(
        **{
            "batch_size": options.batch,
            "steps_per_epoch": options.steps_per_epoch,
            "augment": options.augment,
            # With two subjects of a modality one class may be missing by chance.
            "allow_missing_classes": True,
            "learning_rate": options.learning_rate,
            **training_options,
            **json.loads(options.train),
        }
    )
    return Experiment(
        shards=str(shards),
        output=str(output),
        model=model,
        seed=seed,
        steps=options.steps,
        train=train,
        network={"filters": options.filters, **network, **json.loads(options.network)},
        game={**game, **json.loads(options.game)},
    )


def key_of(row):
    """What makes two rows the same run."""
    return tuple(row[name] for name in ("setting", "system", "seed", "steps", "batch", "filters"))


def one(system, setting, seed, options):
    """Trains and scores one run; returns its row."""
    shards, whole, folder = prepared(options.data, setting, options.work)
    output = comparing.run_folder(folder, system, seed, options)
    experiment = experiment_of(system, setting, seed, options, shards, output)
    seconds = comparing.train(experiment, options.quiet)
    with (output / "history.csv").open(newline="") as file:
        history = list(csv.DictReader(file))
    row = {
        **{"setting": setting, "system": system, "seed": seed, "steps": options.steps},
        **{"batch": options.batch, "filters": options.filters, "tag": options.tag},
        "augment": experiment.train.augment,
        "learning_rate": options.learning_rate,
        "train_seconds": round(seconds),
    }
    for name in GRADIENTS:
        values = [float(r[name]) for r in history if r.get(name)]
        if values:
            row[name] = round(statistics.fmean(values), 4)
    found = [float(r["val_dice"]) for r in history if r.get("val_dice")]
    row["val_dice"] = round(max(found), 4) if found else None
    if "val_dice" in history[-1]:
        present = SETTINGS[setting][1]
        row["known"] = score(output, whole, present, known=True)
        # A specialist is asked for its own modality only.
        asked = MODALITIES if options.unknown else sorted({*MODALITIES} - {*present})
        others = asked if len(present) > 1 else ()
        row["unknown"] = score(output, whole, others, known=False)
        # As a user would ask: a modality that the run has not seen cannot be named.
        row["test"] = {**row["unknown"], **row["known"]}
        row["macro"] = round(statistics.fmean(m["dice"] for m in row["test"].values()), 4)
    return row


def run(options):
    """Adds the rows that are missing."""
    rows = comparing.read_rows(options.rows)
    done = {(*key_of(row), row.get("tag", "")) for row in rows}
    wanted = itertools.product(options.seeds, options.settings, options.systems)
    for seed, setting, system in wanted:
        key = (setting, system, seed, options.steps, options.batch, options.filters, options.tag)
        if key in done:
            continue
        row = one(system, setting, seed, options)
        comparing.add_row(options.rows, row)


def bench_rows():
    """Rows of `unigan bench` on the full setting, as rows of this file.

    The bench trains the same study with the same options, so that no run has to be made twice.
    """
    for row in comparing.read_rows(BENCH):
        if "refused" not in row:
            same = {name: row[name] for name in ("system", "seed", "steps", "filters", "augment")}
            same |= {name: row[name] for name in GRADIENTS if name in row}
            yield {
                **{"setting": "full", "batch": row["batch_size"], "tag": "", **same},
                "train_seconds": row["train_seconds"],
                "test": row["modalities"],
                "macro": row["macro_dice"],
            }


def individuals(rows):
    """Rows of "individual" in the full setting: four specialists of one seed and budget."""
    found = {}
    for row in rows:
        if row["setting"].startswith("only ") and "test" in row:
            key = tuple(row[k] for k in ("system", "seed", "steps", "batch", "filters", "tag"))
            found.setdefault(key, []).append(row)
    for parts in found.values():
        if len(parts) == len(MODALITIES):
            test = {m: scores for row in parts for m, scores in row["test"].items()}
            macro = statistics.fmean(scores["dice"] for scores in test.values())
            seconds = sum(row["train_seconds"] for row in parts)
            name = parts[0]["system"].replace("joint", "individual")
            own = {"setting": "full", "system": name, "test": test, "macro": macro}
            yield {**parts[0], **own, "train_seconds": seconds}


def table(options):
    """Prints a Markdown table for each setting and budget: mean and spread over seeds.

    Gradient: standard deviation of the segmentor's gradient norm over the steps of an epoch,
    divided by its mean, both averaged over epochs.
    """
    groups, rows = {}, [*comparing.read_rows(options.rows), *bench_rows()]
    specialists = individuals(rows)
    rows = [row for row in rows if not row["setting"].startswith("only ")]
    for row in [*rows, *specialists]:
        if "test" in row:
            setting = row["setting"].removesuffix(ATLAS)
            system = row["system"] + row["setting"][len(setting) :] + row["tag"]
            budget = (setting, row["steps"], row["batch"], row["filters"])
            groups.setdefault(budget, {}).setdefault(system, []).append(row)
    for (setting, steps, batch, filters), systems in groups.items():
        print(f"\n### {setting} ({steps} steps of {batch}, width {filters})\n")
        heads = [*MODALITIES, "macro", "HD95 mm", "ASSD mm", "gradient", "seeds", "train s"]
        print(f"| system | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}")
        for system, rows in sorted(systems.items(), key=best_first):
            cells = [spread([r["test"][m]["dice"] for r in rows]) for m in MODALITIES]
            cells.append(spread([r["macro"] for r in rows]))
            for name in ("hd95", "assd"):
                each = [statistics.fmean(m[name] for m in r["test"].values()) for r in rows]
                cells.append(f"{statistics.fmean(each):.1f}")
            norms = [tuple(r[name] for name in GRADIENTS) for r in rows if GRADIENTS[0] in r]
            cells.append(spread([sd / norm for norm, sd in norms], 2) if norms else "–")
            cells += [str(len(rows)), f"{statistics.median(r['train_seconds'] for r in rows):.0f}"]
            print(f"| {system} | {' | '.join(cells)} |")


def best_first(group):
    """Sorts the systems of a table by their mean."""
    return -statistics.fmean(row["macro"] for row in group[1])


def spread(values, digits=3):
    """Mean, and lowest and highest where there are several."""
    text = f"{statistics.fmean(values):.{digits}f}"
    if len(values) == 1:
        return text
    return f"{text} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main():
    parser = comparing.parser(__doc__, ROWS)
    parser.add_argument("--systems", type=lambda s: s.split(";"), default=list(SYSTEMS))
    parser.add_argument("--settings", type=lambda s: s.split(";"), default=["full"])
    parser.add_argument(
        "--unknown", action="store_true", help="also score trained modalities as unknown"
    )
    options = parser.parse_args()
    {"run": run, "table": table}[options.action](options)


if __name__ == "__main__":
    main()
