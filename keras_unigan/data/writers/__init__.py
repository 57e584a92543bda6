"""Writers of layouts: a study to a folder or table that its reader reads back as the same study.

What a layout cannot say goes into `unigan.json` (see `data.readers.sidecar`).
"""

import os
import shutil
from pathlib import Path

from keras_unigan.data import cases
from keras_unigan.data.readers import READERS, sidecar
from keras_unigan.data.readers.common import Found
from keras_unigan.data.writers import bids, brats, common, msd, nnunet, table
from keras_unigan.errors import CodedError, did_you_mean

WRITERS = {
    "bids": bids.write,
    "msd": msd.write,
    "nnunet": nnunet.write,
    "brats": brats.write,
    "csv": table.write,
}
"""Layout -> writer: study and empty folder (or new table) to `common.Written`."""


def convert(study, layout, output, overwrite=False, dry_run=False):
    """Writes a study in another layout; all of it appears in one rename.

    Images and label maps are copied byte by byte; a channel of a larger file, and images that one
    file must hold together, keep their voxels, scale and affine. "csv" writes a table that names
    the files where they lie.

    Args:
        study: `config.Study` of local files; NIfTI, except for "csv".
        layout: Key of `WRITERS`.
        output: New folder; for "csv" a path ending in `.csv`.
        overwrite: Whether an earlier conversion at `output` may go. Nothing else is ever replaced.
        dry_run: Whether to check alone and write nothing.

    Returns:
        Sentences on what other software will not take.

    Raises:
        CodedError: KUG-T02 for an unknown layout, one that cannot hold the images, or a table of
            another ending, KUG-E02 when
            something lies at `output`, those of `cases.check_study`, KUG-D07 for damaged files,
            KUG-D08 for URIs, KUG-D10 for other files than NIfTI.
    """
    if layout not in WRITERS:
        hint = did_you_mean(layout, WRITERS)
        raise CodedError("KUG-T02", "--to", f"{layout!r}{hint}", f"one of {list(WRITERS)}")
    if layout == "msd" and study.channels > 1:
        raise CodedError(
            "KUG-T02",
            "--to",
            f"msd of images of {study.channels} channels",
            "another layout",
            "MSD names a modality for each channel of a file.",
            "--to nnunet or csv",
        )
    output = Path(output).resolve()
    if layout == "csv" and output.suffix.lower() != ".csv":
        raise CodedError("KUG-T02", "--output", f"{output.name}", "a name ending in .csv")
    cases.check_study(study)
    study = common.located(study, every_kind=layout == "csv")
    _refuse_existing(output, study, overwrite)
    if dry_run:
        return []
    output.parent.mkdir(parents=True, exist_ok=True)
    hidden = output.with_name(f".{os.getpid()}.{output.name}")
    try:
        if layout != "csv":
            hidden.mkdir()
        notes = _write(study, layout, hidden)
        _publish(hidden, output)
    finally:
        _remove(hidden)
    return notes


def _write(study, layout, path):
    """Writes, reads back with the layout's reader alone, and notes what is then missing."""
    written = WRITERS[layout](study, path)
    head = (study.labels, study.modalities, study.name, study.normalization)
    wanted = Found(tuple(written.cases), *head, channels=study.channels)
    # The reader of an MSD file with few channels asks the sidecar for their names.
    early = {"version": sidecar.VERSION, "layout": layout, "files": written.files}
    sidecar.write(path, early)
    found = READERS[layout](path)
    sidecar.write(path, sidecar.difference(found, wanted, path, layout, written.files))
    return written.notes


def _refuse_existing(output, study, overwrite):
    images = [Path(os.path.realpath(c.image)) for c in study.cases]
    inside = [path for path in images if path.is_relative_to(output)]
    if inside:
        raise CodedError(
            "KUG-E02", output, f"{len(inside)} images of the study itself", "another folder"
        )
    if output.is_dir() and not any(output.iterdir()):
        return
    if output.exists() and not overwrite:
        raise CodedError(
            "KUG-E02", output, "something there already", "a new path", fix="add --overwrite"
        )
    if output.exists() and not sidecar.location(output).is_file():
        raise CodedError(
            "KUG-E02",
            output,
            f"something without a {sidecar.NAME}",
            "an earlier conversion",
            "Only what this command wrote is replaced.",
            "choose a new path",
        )


def _publish(hidden, output):
    if hidden.is_dir():
        old = hidden.with_name(f"{hidden.name}.old")
        if output.exists():
            output.replace(old)
        hidden.replace(output)
        shutil.rmtree(old, ignore_errors=True)
    else:
        sidecar.location(hidden).replace(sidecar.location(output))
        hidden.replace(output)


def _remove(hidden):
    if hidden.is_dir():
        shutil.rmtree(hidden)
    for path in (hidden, sidecar.location(hidden)):
        path.unlink(missing_ok=True)
