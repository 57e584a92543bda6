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
    Postprocessing,
    Printer,
    Quiet,
    Tta,
    cell,
    claim,
    each,
    some,
    table,
    use_device,
)
from keras_unigan.cli.translating import evaluate_translations
from keras_unigan.errors import CodedError


def predict(
    model: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="Run folder (several: their mean), exported model, or HOST:PORT/NAME.",
        ),
    ],
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="[RUN]... INPUTS...",
            help="Files, folders or globs; or study.json. Beam options after `--`: -- --runner=…",
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
    tta: Tta = "none",
    postprocessing: Postprocessing = True,
    uncertainty: Annotated[
        bool, typer.Option("--uncertainty", help="Write maps of the uncertainty beside it.")
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
    runs, inputs = batch.split_runs(model, inputs)
    method: dict = {"tta": tta, "postprocessing": postprocessing}
    if bids:
        if uncertainty:
            raise CodedError("KUG-T02", "--uncertainty", "it with --bids", "one of them")
        flags |= {"device": device, **method}
        deriving.predict(printer, runs, inputs, output, split, flags, beam)
        return
    if batch.is_job(model, inputs, beam):
        several = len(runs) > 1 or batch.is_ensemble(model)
        given = {"--tta": tta != "none", "--uncertainty": uncertainty, "several runs": several}
        batch.refuse_with_job({**given, "--no-postprocessing": not postprocessing})
        use_device(device)
        batch.predict(printer, model, inputs, output, split, flags, beam)
        return
    if split is not None:
        raise CodedError("KUG-T02", "--split", split, "a study.json as the input")
    pairs = inference.outputs_for(inputs, output, pictured=True)[:limit]
    for _, target in pairs:
        claim(target, overwrite)
    use_device(device)
    from keras_unigan import prediction

    for _, target in pairs if uncertainty else ():
        for path in prediction.map_paths(target).values():
            claim(path, overwrite)
    loaded = prediction.load(runs if len(runs) > 1 else model, **method)
    say_method(printer, loaded)
    known = {"modality": modality, "channel": channel}

    def segment(source, target):
        written = prediction.predict(loaded, source, output=target, uncertain=uncertainty, **known)
        return list(written[1].values()) if uncertainty else None

    each(printer, pairs, segment)


def say_method(printer, ensemble):
    """Says how label maps are made, where it is not one run asked once."""
    if len(ensemble.predictors) > 1:
        printer.say(f"Mean of {len(ensemble.predictors)} runs: {', '.join(ensemble.names)}")
    if ensemble.tta != "none":
        printer.say(f"Mean over views: {ensemble.tta}")
    if ensemble.postprocessing and ensemble.postprocessing.steps:
        steps = ", ".join(map(str, ensemble.postprocessing.steps))
        learned = ensemble.postprocessing.learned.get("method", {}).get("tta", ensemble.tta)
        other = "" if learned == ensemble.tta else f" (learnt with --tta {learned})"
        printer.say(f"Post-processing learnt on validation{other}: {steps}")


def evaluate(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Run folder; several: their mean.")
    ],
    study: Annotated[str, typer.Argument(help="study.json")],
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="Folder for the scores; left out: the run's own."),
    ] = None,
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
    tta: Tta = "none",
    postprocessing: Postprocessing = True,
    alignment: Annotated[
        bool,
        typer.Option("--alignment", help="Say too what the bottleneck tells of the modality."),
    ] = False,
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
    from keras_unigan import evaluation, inference, prediction, translation, translation_scores

    printer, known = Printer(json, quiet), not unknown_modality
    run, folder = runs[0], output or runs[0]
    several = len(runs) > 1 or prediction.members(run) != [run]
    if len(runs) > 1 and output is None:
        fix = "add -o FOLDER, or unigan tune RUN RUN study.json -o FOLDER"
        raise CodedError("KUG-T02", "--output", f"none for {len(runs)} runs", "a folder", fix=fix)
    network = None if several else inference.load_network(run)
    # Scores of translations are those of a generator, and belong to its run.
    own = translations and not several and output is None
    translates = own and translation.translates(run, network)
    segments = several or translation.segments(network)
    if segments:
        claim(evaluation.metrics_files(folder, known)[0], overwrite)
    if translates:
        claim(translation_scores.translation_files(run, known)[0], overwrite)
    if alignment:
        if several or not segments:
            what = "several runs" if several else "a run that only translates"
            raise CodedError("KUG-T02", "--alignment", what, "one run that segments")
        claim(f"{run}/alignment.json", overwrite)
    summary: dict = {"failed": 0}
    if segments:
        model = prediction.load(runs if len(runs) > 1 else run, tta, postprocessing)
        say_method(printer, model)
        settings = {"split": split, "known_modality": known, "limit": limit, "options": options}
        summary = evaluation.evaluate_run(model, study, output=folder, **settings)
        show_scores(printer, summary)
        printer.say(*[f"Wrote {path}" for path in summary["outputs"]])
    if translates:
        found = evaluate_translations(printer, run, study, split, known, segmentor, limit)
        summary = {**summary, "translation": found}
        summary["failed"] = max(summary["failed"], found["failed"])
    if alignment:
        summary["alignment"] = evaluate_alignment(printer, run, study, split, known, limit)
    printer.result(summary, f"unigan report {quote(folder)}")
    if summary["failed"]:
        raise typer.Exit(3)


def evaluate_alignment(printer, run, study, split, known_modality, limit):
    """Measures how far modalities share the bottleneck, prints it and returns the summary."""
    from keras_unigan import alignment

    found = alignment.evaluate_run(run, study, split, known_modality, limit)
    probe = found["probe"]
    if probe["folds"]:
        printer.say(
            "A linear probe of the bottleneck tells the modality with balanced accuracy "
            f"{probe['balanced_accuracy']:.2f} (chance {probe['chance']:.2f}; "
            f"{probe['folds']} folds of subjects)"
        )
    else:
        printer.say("No probe of the bottleneck: it needs two subjects of each modality")
    apart = ", ".join(f"{row['name']} {cell(row['distance'])}" for row in found["centroids"])
    printer.say(f"squared MMD {found['mmd2']['mean']:.3f}; distance of class centroids: {apart}")
    printer.say(*[f"Wrote {path}" for path in found["outputs"]])
    return {key: value for key, value in found.items() if key != "pca"}


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
        table(title, [heads.get(key, key) for key in keys], rows, keys=2)
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
    file = summary["outputs"][0]
    printer.say(*some([f"{c}: {text}" for c, text in summary["problems"].items()], file))
    alarm = summary["alarm"]
    if alarm and alarm["raised"]:
        cases = ", ".join(some(alarm["raised"], file))
        printer.say(
            f"{len(alarm['raised'])} of {summary['cases']} cases are unlike those of training "
            f"(KUG-D38, above {alarm['threshold']:.3g}), and count like the others: {cases}"
        )


def report(
    run: Annotated[str, typer.Argument(help="Run folder.")],
    study: Annotated[str | None, typer.Option(help="study.json: adds the splits.")] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OTHER",
            help="Run, metrics file or NAME=RUN[,RUN…] to compare with, or a .json of `unigan "
            "compare -o`; may be repeated. Left out: comparison.json of the run folder.",
        ),
    ] = None,
    check: Annotated[
        str | None, typer.Option(help="What `unigan check study.json --json` has printed.")
    ] = None,
    json: Json = False,
):
    """Writes report.html: one offline page with scores, comparisons, curves and overlays."""
    from keras_unigan import report as report_module

    path = report_module.write(run, study, compare or (), check)
    Printer(json).say(f"Wrote {path}")
    Printer(json).result({"report": str(path)}, f"unigan export {run} -o models/unigan")
