"""`unigan demo`: the whole road on phantoms."""

import importlib
from typing import Annotated

import typer

from keras_unigan.cli.common import (
    NOTICE,
    Device,
    Json,
    Overwrite,
    Printer,
    Quiet,
    Seed,
    claim,
    need,
    use_device,
)
from keras_unigan.cli.using import show_scores


def demo(
    output: Annotated[str, typer.Option("--output", "-o", help="Folder to fill.")] = "unigan_demo",
    modalities: Annotated[
        str,
        typer.Option(
            help="Comma-separated phantom modalities, e.g. mr,ct,pet,spect,xray,microscopy, "
            "or microscopy,he (in colour)."
        ),
    ] = "ct,t1,flair",
    model: Annotated[str, typer.Option(help="A name of `unigan models`.")] = "segan",
    steps: Annotated[int | None, typer.Option(help="Training steps.")] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
):
    """Runs the whole road on phantoms: prepare, train, evaluate, export, serve, ask, report."""
    from keras_unigan.data import phantoms

    printer = Printer(json, quiet)
    claim(output, overwrite)
    use_device(device)
    need("keras_unigan.pipelines.preprocess", "pipelines")
    need("keras_unigan.serving.server", "serving")
    if set(phantoms.FLAT) & set(modalities.split(",")):
        need("PIL", "formats")
    demo_module = importlib.import_module("keras_unigan.demo")
    result = demo_module.run(
        output, modalities.split(","), model, steps, seed, printer.say, printer.silent
    )
    show_scores(printer, result["scores"])
    printer.say(*[f"{what}: {path}" for what, path in result["outputs"].items()], NOTICE)
    printer.result(
        result, f"unigan predict {result['outputs']['run']} YOUR_SCAN.nii.gz -o seg.nii.gz"
    )
