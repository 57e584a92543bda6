"""`unigan convert`: the same study in another layout."""

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from keras_unigan.cli.common import DryRun, Json, Overwrite, Printer, Quiet
from keras_unigan.config import Study


def convert(
    source: Annotated[str, typer.Argument(help="study.json, or a folder or CSV in any layout.")],
    to: Annotated[str, typer.Option("--to", help="bids, msd, nnunet, brats or csv.")],
    output: Annotated[str, typer.Option("--output", "-o", help="New folder, or table.csv.")],
    reader: Annotated[
        str | None, typer.Option(help="Layout of a source folder; left out: by looking.")
    ] = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
):
    """Writes a study as BIDS, MSD, nnU-Net, BraTS or CSV; reading it back loses nothing."""
    from keras_unigan.data import cases, splits, writers

    printer = Printer(json, quiet)
    path, left = Path(source), ()
    if path.is_file() and path.suffix.lower() == ".json" and reader is None:
        study = Study.load(path)
        if splits.path_of(path).is_file():
            left = splits.Assignment.load(splits.path_of(path)).left_out
    else:
        study = cases.read_study(source, reader=reader)
    notes = writers.convert(study, to, output, overwrite, dry_run)
    if left:
        notes = [
            *notes,
            f"{len(left)} scans that the split leaves out are not converted, as {source} does not "
            "hold them: unigan init with --pairs keeps all, or convert the folder itself",
        ]
    subjects = len({case.subject for case in study.cases})
    printer.say(
        f"{len(study.cases)} cases of {subjects} subjects, modalities "
        f"{', '.join(study.modalities)}",
        *[f"Note: {note}" for note in notes],
        f"Would write {output}" if dry_run else f"Wrote {output}",
    )
    result = {"output": output, "layout": to, "cases": len(study.cases), "notes": notes}
    printer.result(result, f"unigan init {quote(output)} -o study.json")
