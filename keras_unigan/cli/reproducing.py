"""`unigan reproduce`: the same run again, and whether it says the same."""

import dataclasses
from typing import Annotated

import typer

from keras_unigan.cli.common import Device, DryRun, Json, Overwrite, Printer, Quiet, use_device


def reproduce(
    run: Annotated[str, typer.Argument(metavar="RUN_JSON", help="run.json, or its run folder.")],
    output: Annotated[str, typer.Option("--output", "-o", help="Run folder of the new run.")],
    shards: Annotated[
        str | None, typer.Option(help="Where the shards are now; left out: where they were.")
    ] = None,
    study: Annotated[
        str | None, typer.Option(help="Where study.json is now; left out: where it was.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Difference of a score up to which it is the same.")
    ] = 1e-6,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
):
    """Trains and evaluates a run again from its run.json, and compares every score."""
    printer = Printer(json, quiet)
    use_device(device)
    from keras_unigan import reproduction

    recipe = reproduction.read_recipe(run, shards, output)
    if dry_run:
        notes = reproduction.check_inputs(recipe, study)
        steps, model = recipe.experiment.steps, recipe.experiment.model
        printer.say(f"Would train {model} for {steps} steps into {output}", *notes)
        printer.result({"experiment": dataclasses.asdict(recipe.experiment), "notes": notes})
        return
    result = reproduction.reproduce(recipe, study, tolerance, overwrite, printer.silent)
    printer.say(*result["notes"])
    if result["missing"]:
        printer.say(f"{result['missing']} rows are in one of the runs only")
    worst = max(result["largest"], key=lambda score: result["largest"][score])
    printer.say(
        f"{'The same' if result['same'] else 'NOT the same'}: {result['rows']} rows, largest "
        f"difference {result['largest'][worst]:.2g} ({worst})"
    )
    printer.result(result, f"unigan compare {recipe.folder} {output}")
    if not result["same"]:
        raise typer.Exit(3)
