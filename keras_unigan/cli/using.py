"""`unigan predict`, `evaluate` and `report`: what a run is good for."""

from shlex import quote
from typing import Annotated

import typer

from keras_unigan.cli import batch, deriving
from keras_unigan.cli.common import (
    Device,
    Json,
    Limit,
    Modality,
    Overwrite,
    Printer,
    Quiet,
    claim,
    each,
    table,
    use_device,
)
from keras_unigan.cli.translating import evaluate_translations
from keras_unigan.errors import CodedError


def predict(
    model: Annotated[
        str,
        typer.Argument(metavar="RUN", help="Run folder, exported model, or HOST:PORT/NAME."),
    ],
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="Files, folders or globs; or study.json. Beam options after `--`: -- --runner=…"
        ),
    ],
    output: Annotated[str, typer.Option("--output", "-o", help="A file, or a folder for many.")],
    modality: Modality = None,
    channel: Annotated[
        int | None, typer.Option(min=0, help="Channel of files that hold several, from 0.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of a study; left out: all.")] = None,
    bids: Annotated[
        bool,
        typer.Option("--bids", help="Write BIDS derivatives: dseg, probseg and their tables."),
    ] = False,
    limit: Limit = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
):
    """Segments scans; each label map lands on its scan's own grid."""
    from keras_unigan import inference

    printer = Printer(json, quiet)
    beam = [text for text in inputs if text.startswith("--")]
    inputs = [text for text in inputs if not text.startswith("--")]
    flags = {"modality": modality, "channel": channel, "limit": limit, "overwrite": overwrite}
    if bids:
        deriving.predict(printer, model, inputs, output, split, {**flags, "device": device}, beam)
        return
    if batch.is_job(model, inputs, beam):
        use_device(device)
        batch.predict(printer, model, inputs, output, split, flags, beam)
        return
    if split is not None:
        raise CodedError("KUG-T02", "--split", split, "a study.json as the input")
    pairs = inference.outputs_for(inputs, output, pictured=True)[:limit]
    for _, target in pairs:
        claim(target, overwrite)
    use_device(device)
    loaded = inference.load(model)
    known = {"modality": modality, "channel": channel}
    each(printer, pairs, lambda s, t: inference.predict(loaded, s, output=t, **known))


def evaluate(
    run: Annotated[str, typer.Argument(help="Run folder.")],
    study: Annotated[str, typer.Argument(help="study.json")],
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    unknown_modality: Annotated[
        bool, typer.Option("--unknown-modality", help="Do not tell the model the modality.")
    ] = False,
    translations: Annotated[
        bool, typer.Option(help="Score translations too, where the run makes them.")
    ] = True,
    segmentor: Annotated[
        str | None,
        typer.Option(help="Run that judges the anatomy of translations; left out: this one."),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="mm that a surface may be off for NSD.")
    ] = 2.0,
    hd95: Annotated[
        str, typer.Option(metavar="pooled|max", help="Definition of HD95 (docs/metrics.md).")
    ] = "pooled",
    lesion_overlap: Annotated[
        float, typer.Option(help="IoU from which on a predicted lesion is a true one.")
    ] = 0.1,
    limit: Limit = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
):
    """Scores a run on a split: overlap, surfaces and lesions per modality; its translations."""
    from keras_unigan.aggregation import ScoreOptions

    options = ScoreOptions(hd95=hd95, tolerance=tolerance, lesion_overlap=lesion_overlap)
    use_device(device)
    from keras_unigan import evaluation, inference, translation, translation_scores

    printer, known = Printer(json, quiet), not unknown_modality
    network = inference.load_network(run)
    translates = translations and translation.translates(run, network)
    segments = translation.segments(network)
    if segments:
        claim(evaluation.metrics_files(run, known)[0], overwrite)
    if translates:
        claim(translation_scores.translation_files(run)[0], overwrite)
    summary: dict = {"failed": 0}
    if segments:
        summary = evaluation.evaluate_run(
            run, study, split=split, known_modality=known, limit=limit, options=options
        )
        show_scores(printer, summary)
        printer.say(*[f"Wrote {path}" for path in summary["outputs"]])
    if translates:
        found = evaluate_translations(printer, run, study, split, known, segmentor, limit)
        summary = {**summary, "translation": found}
        summary["failed"] = max(summary["failed"], found["failed"])
    printer.result(summary, f"unigan report {quote(run)}")
    if summary["failed"]:
        raise typer.Exit(3)


def show_scores(printer, summary):
    """Prints the per-modality table, the macro Dice, and what the means are of."""
    if not printer.silent:
        # What fits into 80 columns; the files hold all of it.
        heads = {"dice_mean": "Dice", "dice_sd": "sd", "nsd_mean": "NSD", "hd95_mean": "HD95"}
        # Studies in which some names were looked for in some cases only have one count more.
        apart = ("unannotated",) if summary["unannotated"] else ()
        keys = ("modality", "name", "n", "undefined", *apart, *heads, "unit")
        rows = [tuple(row[key] for key in keys) for row in summary["table"]]
        title = f"{summary['split']} split, original grid"
        table(title, [heads.get(key, key) for key in keys], rows)
    counted = f"macro Dice {summary['macro_dice']:.2f} of {summary['cases']} cases"
    if summary["undefined"]:
        counted += f"; {summary['undefined']} undefined scores (nothing there, nothing found) "
        counted += "are in no mean"
    if summary["unannotated"]:
        counted += f"; {summary['unannotated']} scores of names that were not annotated in a case "
        counted += "are in no mean"
    if summary["failed"]:
        counted += f"; {summary['failed']} cases that could not be used count as 0"
    if summary["labelled"] > summary["cases"]:
        counted += f"; only the first of {summary['labelled']}"
    printer.say(counted)


def report(
    run: Annotated[str, typer.Argument(help="Run folder.")],
    study: Annotated[str | None, typer.Option(help="study.json: adds the splits.")] = None,
    json: Json = False,
):
    """Writes report.html: one offline page with curves, tables and overlays."""
    from keras_unigan import report as report_module

    path = report_module.write(run, study)
    Printer(json).say(f"Wrote {path}")
    Printer(json).result({"report": str(path)}, f"unigan export {run} -o models/unigan")
