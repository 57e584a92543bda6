"""`unigan tune`: what validation cases teach about a trained run."""

from shlex import quote
from typing import Annotated

import typer

from keras_unigan.cli.common import (
    Device,
    Json,
    Overwrite,
    Printer,
    Quiet,
    Tta,
    claim,
    table,
    use_device,
)
from keras_unigan.errors import CodedError


def tune(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Run folder; several: their mean.")
    ],
    study: Annotated[str, typer.Argument(help="study.json; its test cases are left alone.")],
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="Of several runs: folder that stands for their mean."),
    ] = None,
    tta: Tta = "none",
    unknown_modality: Annotated[
        bool, typer.Option("--unknown-modality", help="Do not tell the model the modality.")
    ] = False,
    overwrite: Overwrite = False,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
):
    """Learns on validation cases: post-processing, and an alarm for scans unlike training's."""
    if (len(runs) > 1) != (output is not None):
        raise CodedError(
            "KUG-T02",
            "--output",
            f"{output or 'none'} with {len(runs)} run{'s' * (len(runs) > 1)}",
            "a folder for several runs, and none for one, which keeps its own",
            fix="unigan tune RUN RUN study.json -o ENSEMBLE",
        )
    from keras_unigan import alarm, inference, postprocessing, prediction, translation

    folder = output or runs[0]
    for name in (postprocessing.FILE, alarm.FILE):
        claim(f"{folder}/{name}", overwrite)
    use_device(device)
    from keras_unigan import tuning

    printer = Printer(json, quiet)
    if output is not None:
        # All runs have to fit before the folder stands for them.
        prediction.load(runs, postprocessing=False, alarm=False)
        prediction.save_ensemble(output, runs)
        printer.say(f"Wrote {output}/{prediction.ENSEMBLE}")
    summary: dict = {"outputs": []}
    if output is not None or translation.segments(inference.load_network(folder)):
        learned = tuning.learn_postprocessing(folder, study, tta, not unknown_modality)
        show(printer, learned)
        summary |= {"steps": learned.described, **learned.learned}
        summary["outputs"].append(f"{folder}/{postprocessing.FILE}")
        printer.say(f"Wrote {folder}/{postprocessing.FILE}")
    else:
        printer.say("No post-processing: the run only translates")
    if output is None:
        summary["alarm"] = tuning.learn_alarm(folder, study, not unknown_modality)
        show_alarm(printer, summary["alarm"])
        if "threshold" in summary["alarm"]:
            summary["outputs"].append(f"{folder}/{alarm.FILE}")
            printer.say(f"Wrote {folder}/{alarm.FILE}")
    printer.result(summary, f"unigan evaluate {quote(folder)} {quote(study)}")
    if summary.get("failed") or summary.get("alarm", {}).get("failed"):
        raise typer.Exit(3)


def show(printer, learned):
    """Prints what was tried on which cases, and what came of it."""
    facts = learned.learned
    counted = f"{len(facts['cases'])} validation cases of {facts['subjects']} subjects"
    if not printer.silent:
        rows = [
            (row["modality"], row["name"], row["cases"], row["before"], row["after"])
            for row in facts["table"]
        ]
        columns = ("modality", "name", "cases", "before", "after")
        table(f"Dice of {counted}", columns, rows, keys=2)
        for tried in facts["tried"]:
            kept = "kept" if tried["kept"] else "left"
            printer.say(f"{kept}: {tried['step']}: {tried['reason']}")
    for case, message in facts["failed"].items():
        printer.say(f"{case}: {message}")
    kept = ", ".join(map(str, learned.steps)) or "nothing"
    printer.say(f"Dice {facts['dice_before']:.4f} -> {facts['dice_after']:.4f} by {kept}")


def show_alarm(printer, found):
    """Prints what the alarm was fitted to and when it is raised, or why there is none."""
    if "threshold" not in found:
        printer.say(f"No alarm for scans unlike those of training: {found['reason']}")
        return
    seen = ", ".join(f"{count} {modality}" for modality, count in found["training"].items())
    printer.say(
        f"Alarm above {found['threshold']:.3g}: fitted to training volumes ({seen}); of scans like "
        f"the {len(found['validation'])} validation volumes at most {found['false_alarms']:.0%} "
        "raise it"
    )
    for case, message in found["failed"].items():
        printer.say(f"{case}: {message}")
