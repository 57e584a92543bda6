"""`unigan compare`: systems against one another on the same cases."""

from pathlib import Path
from typing import Annotated

import typer

from keras_unigan.cli.common import Json, Overwrite, Printer, Quiet, Seed, claim, table


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN…",
            help="Run folders or metrics files; NAME=RUN renames one, and "
            "individual=runs/ct,runs/t1 makes one system of a specialist a modality.",
        ),
    ],
    score: Annotated[
        list[str] | None,
        typer.Option(help="Score to compare, e.g. dice, hd95, nsd; may be repeated."),
    ] = None,
    alpha: Annotated[float, typer.Option(help="Level after Holm's correction.")] = 0.05,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Also write to a .json or .csv file.")
    ] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
):
    """Compares runs case by case: Wilcoxon with Holm, bootstrap intervals, effect sizes."""
    from keras_unigan import comparison
    from keras_unigan.aggregation import write_csv
    from keras_unigan.config import finite, write_json
    from keras_unigan.errors import CodedError

    printer = Printer(json, quiet)
    path = None if output is None else Path(output)
    if path is not None:
        if path.suffix not in (".json", ".csv"):
            raise CodedError("KUG-T02", "--output", path.name, "a name ending in .json or .csv")
        claim(path, overwrite, file=True)
    systems = [comparison.read_system(run) for run in runs]
    scores = tuple(dict.fromkeys(score or ("dice", "hd95")))
    result = comparison.compare(systems, scores, alpha, seed)
    if not printer.silent:
        _show(result)
    printer.say(*result["notes"])
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".json":
            write_json(path, finite(result))
        else:
            write_csv(path, result["rows"], comparison.COLUMNS)
        printer.say(f"Wrote {path}")
    printer.result(result)


def _show(result):
    """One table for each score, pair of systems and way to predict."""
    from keras_unigan.aggregation import SCORES

    groups: dict = {}
    for row in result["rows"]:
        key = (row["score"], row["known_modality"], row["a"], row["b"])
        groups.setdefault(key, []).append(row)
    for (score, known, a, b), rows in groups.items():
        columns = ("modality", "name", "n", "undefined", a, b, "a - b", "95 %", "win/tie/loss")
        cells = [
            (
                *(row[key] for key in ("modality", "name", "n", "undefined", "mean_a", "mean_b")),
                row["difference"],
                f"{row['low']:.3f} to {row['high']:.3f}" if row["n"] > 1 else "–",
                f"{row['wins']}/{row['ties']}/{row['losses']}",
                row["p"],
                row["p_holm"],
                row["rank_biserial"],
            )
            for row in rows
        ]
        unit = f" {rows[0]['unit'] or ''}".rstrip()
        told = "told" if known else "kept back"
        title = f"{SCORES[score][0]}{unit}, {a} against {b}, modality {told}"
        table(title, (*columns, "p", "p Holm", "effect"), cells, keys=2)
