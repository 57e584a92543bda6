"""`unigan translate`, and the table of translations of `unigan evaluate`."""

from typing import Annotated

import typer

from keras_unigan.cli.common import (
    NOTICE,
    Device,
    Json,
    Limit,
    Modality,
    Overwrite,
    Printer,
    Quiet,
    cell,
    claim,
    each,
    some,
    table,
    use_device,
)


def translate(
    run: Annotated[str, typer.Argument(help="Run folder of a system that translates.")],
    inputs: Annotated[list[str], typer.Argument(help="Files, folders or globs.")],
    to: Annotated[str, typer.Option(help="Modality to translate to.")],
    output: Annotated[str, typer.Option("--output", "-o", help="A file, or a folder for many.")],
    modality: Modality = None,
    limit: Limit = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
):
    """Makes the images another modality would show, marked SYNTHETIC, on each scan's own grid."""
    from keras_unigan import inference

    printer = Printer(json, quiet)
    pairs = inference.outputs_for(inputs, output, f"to_{to.lower()}")[:limit]
    for _, target in pairs:
        claim(target, overwrite)
    use_device(device)
    from keras_unigan import translation

    model = translation.load(run, alarm=True)
    translation.check_target(model.plan, to)
    printer.say(f"Synthetic images. {NOTICE}")

    def one(source, target):
        translation.translate(model, source, to, modality=modality, output=target)

    each(printer, pairs, one)


def evaluate_translations(printer, run, study, split, known_modality, segmentor, limit):
    """Scores the translations of a run, prints their table and returns the summary."""
    from keras_unigan import translation_scores

    summary = translation_scores.evaluate_run(run, study, split, known_modality, segmentor, limit)
    # What fits into a terminal; the files hold all of it.
    scores = ("mae", "psnr", "ssim", "anatomy_dice", "hallucination")
    columns = ("from, to", "method", "pairs", "MAE", "PSNR", "SSIM", "anatomy", "invented")
    if not printer.silent:
        rows = [
            (
                f"{row['source']}, {row['target']}",
                row["method"],
                row["paired"],
                *(row[score] for score in scores),
            )
            for row in summary["table"]
        ]
        for method, means in summary["macro"].items():
            rows.append(("macro", method, "", *(means[score] for score in scores)))
        table(f"translations, {split} split, normalised units", columns, rows, keys=2)
        heads = ("from, to", "method", "edge NMI", "shift mm", "copied")
        kept = ("edge_nmi", "shift_mm", "copy_ratio")
        rows = [
            (f"{row['source']}, {row['target']}", row["method"], *(row[score] for score in kept))
            for row in summary["table"]
        ]
        table("translations against their source", heads, rows, keys=2)
    say_sets(printer, summary)
    if summary["failed"]:
        printer.say(
            f"{summary['failed']} cases that could not be used are in no mean, of no method"
        )
        problems = [f"{case}: {text}" for case, text in summary["problems"].items()]
        printer.say(*some(problems, summary["outputs"][0]))
    printer.say(*[f"Wrote {path}" for path in summary["outputs"]])
    return summary


def say_sets(printer, summary):
    """Prints what only shows in sets of translations: distances, and copies of training scans."""
    from keras_unigan.translation_scores import COPY

    if not printer.silent and summary["distances"]:
        rows = [
            (row["target"], row["method"], row["made_cases"], *(_between(row, k) for k in _SETS))
            for row in summary["distances"]
        ]
        heads = ("to", "method", "cases", "Fréchet (95 %)", "kernel (95 %)")
        table("sets of translations and of scans", heads, rows, keys=2)
        printer.say(f"Features are {summary['features']}")
    elif summary["reason"]:
        printer.say(f"No distances of sets: {summary['reason']}")
    made = [row for row in summary["memorisation"] if row["method"] != COPY]
    near = [row for row in made if row["usual"] is not None]
    if near:
        copies, count = (sum(row[key] for row in near) for key in ("copies", "cases"))
        printer.say(f"{copies} of {count} translations are nearly a training scan of their target")


_SETS = ("frechet", "kernel")


def _between(row, key):
    return f"{cell(row[key])} ({cell(row[f'{key}_low'])}, {cell(row[f'{key}_high'])})"
