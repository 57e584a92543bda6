"""`unigan bench`."""

from pathlib import Path
from typing import Annotated

import typer

from keras_unigan.cli.common import NOTICE, Json, Printer, Quiet, use_device
from keras_unigan.errors import CodedError


def bench(
    output: Annotated[str, typer.Option("--output", "-o", help="Folder; a bench there goes on.")],
    study: Annotated[
        str | None, typer.Argument(help="study.json whose test cases are scored.")
    ] = None,
    shards: Annotated[str | None, typer.Argument(help="Its folder of shards.")] = None,
    phantoms: Annotated[
        bool, typer.Option("--phantoms", help="Make phantoms, and take a small budget.")
    ] = False,
    systems: Annotated[
        str | None, typer.Option(help="Names, with commas; left out: all that segment.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds, with commas.")] = "0",
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps of each run.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples a step.")] = None,
    filters: Annotated[
        int | None, typer.Option(min=1, help="Width of the main network; left out: the plan's.")
    ] = None,
    augment: Annotated[str, typer.Option(help="Level of augmentation, of all systems.")] = "light",
    spatial_dims: Annotated[int, typer.Option(min=2, max=3, help="2 or 3.")] = 2,
    split: Annotated[str, typer.Option(help="What is scored: val or test.")] = "test",
    json: Json = False,
    quiet: Quiet = False,
):
    """Trains every system with one budget; a table, a figure, and tests against the plain U-Net."""
    from keras_unigan import bench as benching

    printer = Printer(json, quiet)
    if phantoms == (study is not None) or (study is not None and shards is None):
        raise CodedError(
            "KUG-T02",
            "bench",
            "a study and --phantoms" if phantoms else "no study, or no shards",
            "study.json and its shards, or --phantoms",
            fix="unigan bench study.json shards -o bench, or unigan bench --phantoms -o bench",
        )
    budget = dict(benching.PHANTOMS) if phantoms else {}
    asked = {"steps": steps, "batch_size": batch_size, "filters": filters}
    budget |= {key: value for key, value in asked.items() if value is not None}
    settings = benching.Settings(**budget, augment=augment, spatial_dims=spatial_dims, split=split)
    names = systems.split(",") if systems else None
    try:
        numbers = [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise CodedError("KUG-T02", "--seeds", seeds, "whole numbers with commas") from None
    use_device("auto")
    printer.say(NOTICE)
    if phantoms:
        study, shards = benching.phantom_study(Path(output) / "phantoms")
    benching.run(study, shards, output, names, numbers, settings, printer.say)
    result = benching.write(output)
    if not printer.silent:
        print((Path(output) / "table.md").read_text(encoding="utf-8"))
    printer.say(*[f"Wrote {path}" for path in result["outputs"]])
    printer.result(result)
