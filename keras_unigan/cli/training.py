"""`unigan train`: from shards to a run folder."""

import dataclasses
import math
import sys
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from keras_unigan.cli import foreseeing
from keras_unigan.cli.common import (
    Device,
    DryRun,
    Json,
    Overwrite,
    Printer,
    Quiet,
    RunMemory,
    Set,
    use_device,
)
from keras_unigan.config import Experiment, Plan, TrainOptions


def train(
    shards: Annotated[str, typer.Argument(help="Folder that `unigan prepare` wrote.")],
    output: Annotated[str, typer.Option("--output", "-o", help="Run folder.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="A name of `unigan models`; left out: unigan, or joint where the training cases "
            "have one modality or a translating game cannot learn from them."
        ),
    ] = None,
    spatial_dims: Annotated[int | None, typer.Option(help="2 or 3; left out: 2.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Budget in minutes.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Budget in epochs.")] = None,
    steps: Annotated[int | None, typer.Option(help="Budget in steps.")] = None,
    replicas: Annotated[
        int | None, typer.Option(help="Replicas under MirroredStrategy; left out: 1.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything; left out: 0.")] = None,
    augment: Annotated[
        str | None,
        typer.Option(help="none, light, standard, contrast or paint; left out: the system's own."),
    ] = None,
    accumulate: Annotated[
        int | None, typer.Option(help="Micro-batches that a batch is cut into; left out: 1.")
    ] = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="The same bits in every run; slower.")
    ] = False,
    init_from: Annotated[
        str | None, typer.Option(metavar="RUN", help="Start from the networks of another run.")
    ] = None,
    horizon: Annotated[
        int | None,
        typer.Option(help="Steps that rates and ramps are made for; left out: the budget."),
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(min=2, help="One run for each fold of the subjects; output: their mean."),
    ] = None,
    memory: RunMemory = None,
    settings: Set = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint.")
    ] = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
):
    """Trains a system on shards; the best weights by validation Dice become network.keras."""
    printer = Printer(json, quiet)
    budget = {"minutes": minutes, "epochs": epochs, "steps": steps}
    given: dict = {"model": model, "spatial_dims": spatial_dims, "seed": seed, "replicas": replicas}
    given |= {"deterministic": deterministic or None, "init_from": init_from, "horizon": horizon}
    given = {key: value for key, value in given.items() if value is not None}
    options = {"augment": augment, "accumulate": accumulate}
    options = {key: value for key, value in options.items() if value is not None}
    if any(value is not None for value in budget.values()):
        given |= budget
    config = Path(output) / "config.json"
    # A resumed run keeps what it was started with, but for what is said now.
    known = dataclasses.asdict(Experiment.load(config)) if resume and config.is_file() else {}
    known |= {"shards": shards, "output": output, **given}
    known["train"] = TrainOptions(**{**known.get("train", {}), **options})
    experiment = Experiment(**known).override(settings or [])
    use_device(device)
    from keras_unigan import training

    if dry_run:
        experiment, why = training.chosen(experiment, folds)
        printer.say(*[why] * bool(why))
        data = training.describe(experiment)
        own = Path(shards, "plan.json")
        if own.is_file():
            prefix = f"{experiment.spatial_dims}d."
            printer.say(*foreseeing.plan_lines(Plan.load(own), prefix))
        printer.say(*[f"{k}: {v}" for k, v in data.items()])
        found = training.forecast(experiment, memory)
        printer.say(*training.sentences(found))
        printer.result({**data, "forecast": found})
        return
    ways = {"resume": resume, "overwrite": overwrite, "quiet": printer.silent}
    ways["memory_gib"] = memory
    try:
        if folds is not None:
            _cross_validate(printer, experiment, folds, ways)
            return
        summary = training.run(experiment, **ways)
    except KeyboardInterrupt:
        more = "" if folds is None else f" --folds {folds} and what else was said"
        again = f"unigan train {shards} -o {output} --resume{more}"
        print(f"Interrupted. Go on with: {again}", file=sys.stderr)
        raise typer.Exit(5) from None
    best = summary["best_dice"]
    kept = "no validation case, so the last weights" if math.isnan(best) else f"Dice {best:.3f}"
    printer.say(f"Wrote {output}: best validation: {kept}")
    printer.result(summary, f"unigan evaluate {quote(output)} study.json")


def _cross_validate(printer, experiment, folds, options):
    """Trains a run for each fold; their folder then stands for the mean of all."""
    from keras_unigan import prediction, training

    summary = training.run_folds(experiment, folds, say=printer.say, **options)
    prediction.save_ensemble(experiment.output, summary["runs"])
    dice = ", ".join(f"{value:.3f}" for value in summary["dice"])
    printer.say(f"best validation Dice of each fold: {dice or 'none'}")
    if len(summary["dice"]) > 1:
        printer.say(f"mean {summary['mean_dice']:.3f}, sd {summary['sd_dice']:.3f}")
    printer.say(f"Wrote {experiment.output}: it stands for the mean of {folds} runs")
    printer.result(summary, f"unigan evaluate {quote(experiment.output)} study.json")
