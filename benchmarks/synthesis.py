"""Do synthetic pairs help a segmentor that has few subjects? One JSON line a run, kept in a file.

Two subjects of each modality of the semi-real brains are all there is to learn from. A synthesiser
is trained on them, makes pairs, and the same U-Net is trained for the same number of steps on the
scans alone and on scans and pairs together. `run` does what has no row yet, `table` prints the rows
as Markdown. `paired_val` is only tested on; pairs are judged by the run's own segmentor, which has
seen the same two subjects and no others.
"""

import json
import statistics
from pathlib import Path

import comparing
import quality

from keras_unigan import synthesis
from keras_unigan.config import Experiment, TrainOptions
from keras_unigan.pipelines import preprocess

SETTING = "two subjects"
ROWS = Path(__file__).parent / "synthesis.jsonl"
# Name in the table -> system that makes the pairs and how; None: scans alone.
ARMS = {
    "scans": None,
    "scans, contrast": None,
    "scans and deform": ("synthesis", "deform"),
    "scans and noise": ("synthesis", "noise"),
    "scans and translate": ("unigan", "translate"),
}


def trained(system, shards, folder, seed, options, augment="light", name=None):
    """Run folder of a system, trained where it is not yet."""
    output = comparing.run_folder(folder, name or system, seed, options)
    experiment = Experiment(
        shards=str(shards),
        output=str(output),
        model=system,
        seed=seed,
        steps=options.steps,
        train=TrainOptions(
            batch_size=options.batch,
            steps_per_epoch=options.steps_per_epoch,
            augment=augment,
            allow_missing_classes=True,
        ),
        network={"filters": options.filters},
    )
    return output, comparing.train(experiment, options.quiet)


def pairs_of(arm, shards, folder, seed, options):
    """Folder of the pairs of an arm, and what their summary says."""
    system, method = ARMS[arm]
    run, _ = trained(system, shards, folder, seed, options)
    output = folder / "pairs" / f"{system}_{method}_{seed}_{options.pairs}"
    if not (output / "summary.json").is_file():
        synthesis.synthesize(
            run,
            output,
            options.pairs,
            method,
            study=folder / "study.json",
            seed=seed,
            least_dice=options.least_dice,
        )
    return output, json.loads((output / "summary.json").read_text())


def one(arm, seed, options):
    """Trains and scores one run; returns its row."""
    shards, whole, folder = quality.prepared(options.data, SETTING, options.work)
    row = {"arm": arm, "seed": seed, "pairs": 0, **comparing.budget(options)}
    if ARMS[arm] is not None:
        pairs, summary = pairs_of(arm, shards, folder, seed, options)
        row["pairs"] = summary["accepted"]
        row |= {key: summary[key] for key in ("made", "acceptance_rate", "memorisation", "gate")}
        plan, shards = Path(shards) / "plan.json", pairs / "shards"
        if not (shards / "shards.json").is_file():
            study = str(pairs / "study.json")
            job = ["--study", study, "--output", str(shards), "--plan", str(plan), "--overwrite"]
            preprocess.run(job)
    augment = "contrast" if arm.endswith("contrast") else options.augment
    run, seconds = trained("joint", shards, folder, seed, options, augment, f"joint {arm}")
    test = quality.score(run, whole, quality.MODALITIES, known=True)
    macro = statistics.fmean(scores["dice"] for scores in test.values())
    return {**row, "test": test, "macro": round(macro, 4), "train_seconds": round(seconds)}


def run(options):
    """Adds the rows that are missing."""
    keys = ("arm", "seed", *comparing.budget(options))
    done = {tuple(row[key] for key in keys) for row in comparing.read_rows(options.rows)}
    for seed in options.seeds:
        for arm in options.arms:
            budget = comparing.budget(options)
            if (arm, seed, *budget.values()) not in done:
                comparing.add_row(options.rows, one(arm, seed, options))


def table(options):
    """Prints a Markdown table: mean and spread over seeds."""
    groups: dict = {}
    for row in comparing.read_rows(options.rows):
        groups.setdefault(row["arm"], []).append(row)
    heads = ("trained on", *quality.MODALITIES, "macro", "pairs kept of made", "copies", "seeds")
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for arm, rows in groups.items():
        cells = [quality.spread([r["test"][m]["dice"] for r in rows]) for m in quality.MODALITIES]
        cells.append(quality.spread([r["macro"] for r in rows]))
        made = [r for r in rows if "made" in r]
        kept = f"{sum(r['pairs'] for r in made)} of {sum(r['made'] for r in made)}"
        copies = sum(r["memorisation"]["copies"] for r in made)
        cells += [kept, str(copies)] if made else ["–", "–"]
        print(f"| {arm} | {' | '.join(cells)} | {len(rows)} |")


def main():
    parser = comparing.parser(__doc__, ROWS)
    parser.add_argument("--arms", type=lambda s: s.split(";"), default=list(ARMS))
    parser.add_argument("--pairs", type=int, default=40, help="pairs that each arm is given")
    parser.add_argument("--least_dice", type=float, default=0.7)
    options = parser.parse_args()
    {"run": run, "table": table}[options.action](options)


if __name__ == "__main__":
    main()
