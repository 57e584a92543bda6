"""Compares translations at one budget on the semi-real brains; one JSON line a run, in a file.

`run` trains what has no run yet (or takes the run that `quality.py` left in `--work`), translates
the scans of `paired_val` to every other modality, scores them against the subject's own scans, and
adds the row; `table` prints the rows as Markdown. The anatomy is judged by one segmentor for all
(`--judge`, a `joint` run of the full setting). "cyclegan a-b" is one run a pair; the table puts
those of a seed together. Such a run sees the same batches and learns from the samples of its pair.

A copy keeps all its anatomy, and a judge that knows the source's contrast finds it again: anatomy
Dice says something beside SSIM only, and for translations that are no copies.
"""

import dataclasses
import itertools
import statistics
import time
from pathlib import Path

import comparing
import quality

from keras_unigan import inference, translation, translation_scores
from keras_unigan.config import Plan, Study

ROWS = Path(__file__).parent / "translation.jsonl"
COPY = "copy"
PAIRS = list(itertools.combinations(quality.MODALITIES, 2))
CYCLEGANS = {f"cyclegan {a}-{b}": ("cyclegan", {"pair": [a, b]}, {}, {}) for a, b in PAIRS}
# `quality.experiment_of` finds systems by name.
quality.SYSTEMS.update(CYCLEGANS)
SYSTEMS = (COPY, *CYCLEGANS, "stargan", "uagan", "unified_gan", "unigan")
COLUMNS = {
    "mae": "MAE",
    "psnr": "PSNR dB",
    "ssim": "SSIM",
    "nmi": "NMI",
    "anatomy_dice": "anatomy Dice",
    "label_dice": "label Dice",
    "hallucination": "hallucination",
}


def test_study(whole, subjects):
    """Study of the first test subjects, all for None."""
    study = Study.load(whole)
    test = [case for case in study.cases if case.split == "test"]
    chosen = sorted({case.subject for case in test})[:subjects]
    return dataclasses.replace(study, cases=tuple(c for c in test if c.subject in chosen))


def score(method, translator, plan, study, judge):
    """Scores of each source > target, and their mean.

    Args:
        method: Name in the rows.
        translator: `translation.Translator`, or a function like it.
        plan: Its `config.Plan`.
        study: Study with test cases.
        judge: `inference.Predictor` that judges the anatomy.
    """
    scored = translation_scores.translation_rows({method: translator}, plan, study, "test", judge)
    rows = list(scored)
    bad = [row for row in rows if row["status"] != "ok" or not row["paired"]]
    if bad or not rows:
        raise SystemExit(f"{method}: no score for {bad[:1] or 'any case'}")
    summary = translation_scores.summarize(rows)
    pairs = {
        f"{line['source']}>{line['target']}": comparing.rounded({c: line[c] for c in COLUMNS})
        for line in summary["table"]
    }
    return {"pairs": pairs, "macro": comparing.rounded(summary["macro"][method])}


def one(system, seed, options, judge):
    """Trains and scores one run; returns its row."""
    shards, whole, folder = quality.prepared(options.data, options.setting, options.work)
    seconds = 0.0
    if system == COPY:
        plan = Plan.load(shards / "plan.json")
        translator = translation_scores.copy_input(plan)
    else:
        output = comparing.run_folder(folder, system, seed, options)
        experiment = quality.experiment_of(system, options.setting, seed, options, shards, output)
        seconds = comparing.train(experiment, options.quiet)
        translator = translation.load(output)
        plan = translator.plan
    started = time.perf_counter()
    scores = score(system, translator, plan, test_study(whole, options.subjects), judge)
    return {
        **key_of(system, seed, options),
        "train_seconds": round(seconds),
        "score_seconds": round(time.perf_counter() - started),
        **scores,
    }


def key_of(system, seed, options):
    """What makes two rows the same run."""
    key = {"setting": options.setting, "system": system, "seed": seed, **comparing.budget(options)}
    judge = Path(options.judge).resolve().name
    return {**key, "subjects": options.subjects, "judge": judge}


def run(options):
    """Adds the rows that are missing."""
    if options.judge is None:
        raise SystemExit("give --judge the folder of a joint run of the full setting")
    judge = inference.load(options.judge)
    for seed, system in itertools.product(options.seeds, options.systems):
        # A copy has neither weights nor a seed.
        key = key_of(system, options.seeds[0] if system == COPY else seed, options)
        rows = comparing.read_rows(options.rows)
        if not any(key.items() <= row.items() for row in rows):
            comparing.add_row(options.rows, one(system, key["seed"], options, judge))


def merged(rows):
    """Rows with those of "cyclegan a-b" of one seed and budget put together."""
    parts: dict = {}
    for row in rows:
        if row["system"] not in CYCLEGANS:
            yield row
            continue
        names = ("setting", "seed", "steps", "batch", "filters", "tag", "subjects")
        parts.setdefault(tuple(row[n] for n in names), []).append(row)
    for own in parts.values():
        pairs = {pair: scores for row in own for pair, scores in row["pairs"].items()}
        yield {
            **own[0],
            "system": "cyclegan",
            "pairs": pairs,
            "macro": {c: mean([scores[c] for scores in pairs.values()]) for c in COLUMNS},
            "train_seconds": sum(row["train_seconds"] for row in own),
        }


def mean(values):
    """Mean of the numbers among values; None where there are none."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def spread(values):
    """`quality.spread` of the numbers among values."""
    known = [value for value in values if value is not None]
    return quality.spread(known) if known else "–"


def table(options):
    """Prints two Markdown tables for each budget: means over directions, and each direction."""
    groups: dict = {}
    for row in merged(comparing.read_rows(options.rows)):
        size = (row["setting"], row["steps"], row["batch"], row["filters"], row["subjects"])
        groups.setdefault(size, {}).setdefault(row["system"] + row["tag"], []).append(row)
    for (setting, steps, batch, filters, subjects), systems in groups.items():
        of = "" if subjects is None else f", first {subjects} test subjects"
        print(f"\n### {setting} ({steps} steps of {batch}, width {filters}{of})\n")
        heads = [*COLUMNS.values(), "directions", "seeds", "train s"]
        print(f"| system | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}")
        for system, rows in systems.items():
            cells = [spread([row["macro"][c] for row in rows]) for c in COLUMNS]
            cells += [f"{len(rows[0]['pairs'])} of {2 * len(PAIRS)}", str(len(rows))]
            cells.append(f"{statistics.median(row['train_seconds'] for row in rows):.0f}")
            print(f"| {system} | {' | '.join(cells)} |")
        for name in options.columns:
            directions = sorted({pair for rows in systems.values() for pair in rows[0]["pairs"]})
            print(f"\n{COLUMNS[name]} (mean over seeds):\n")
            heads = [pair.replace(">", " → ") for pair in directions]
            print(f"| system | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}")
            for system, rows in systems.items():
                cells = [
                    mean([row["pairs"].get(pair, {}).get(name) for row in rows])
                    for pair in directions
                ]
                cells = ["–" if cell is None else f"{cell:.3f}" for cell in cells]
                print(f"| {system} | {' | '.join(cells)} |")


def main():
    parser = comparing.parser(__doc__, ROWS)
    parser.add_argument("--systems", type=lambda s: s.split(";"), default=list(SYSTEMS))
    parser.add_argument("--setting", choices=list(quality.SETTINGS), default="full")
    parser.add_argument("--judge", help="run folder of the segmentor that judges the anatomy")
    parser.add_argument("--subjects", type=int, help="only the first so many test subjects")
    parser.add_argument(
        "--columns",
        type=lambda s: s.split(","),
        default=list(COLUMNS)[:5],
        help="scores of which `table` shows each direction",
    )
    options = parser.parse_args()
    {"run": run, "table": table}[options.action](options)


if __name__ == "__main__":
    main()
