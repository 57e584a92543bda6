"""`unigan prelabel`."""

from shlex import quote
from typing import Annotated

import typer

from keras_unigan.cli.common import Json, Overwrite, Printer, Quiet, claim
from keras_unigan.config import Study


def prelabel(
    study: Annotated[str, typer.Argument(help="study.json with splits.")],
    output: Annotated[
        str, typer.Option("--output", "-o", help="Folder for label maps and study.json.")
    ],
    confidence: Annotated[
        float, typer.Option(min=0, max=0.99, help="Least probability of a voxel that is labelled.")
    ] = 0.6,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
):
    """Labels the unlabelled training scans by an atlas of the labelled ones."""
    from keras_unigan.data import atlas

    printer = Printer(json, quiet)
    claim(output, overwrite)
    made, report = atlas.prelabel(Study.load(study), output, confidence, printer.say)
    path = atlas.save(made, output)
    found = report["dice"]
    known = [f"{name} {value:.2f}" for name, value in found.items() if value is not None]
    if known:
        printer.say(
            f"Dice in labelled scans that the atlas of the others labelled: {', '.join(known)}"
        )
    left = [name for name in found if name not in report["annotated"]]
    if left:
        printer.say(f"Not labelled, as the atlas does not find it: {', '.join(left)}")
    for case, message in report["failed"].items():
        printer.say(f"{case}: {message}")
    count = len(report["prelabelled"])
    printer.say(f"Labelled {count} scans by {len(report['labelled'])}; wrote {path}")
    shards = quote(f"{output}/shards")
    printer.result({"study": path, **report}, f"unigan prepare {quote(path)} -o {shards}")
    if report["failed"]:
        raise typer.Exit(3)
