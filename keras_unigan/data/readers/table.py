"""CSV tables: one row an image."""

import csv
from pathlib import Path

from keras_unigan.config import SPLITS, Case
from keras_unigan.data.readers import common
from keras_unigan.data.readers.common import Found
from keras_unigan.errors import CodedError, did_you_mean

NAMES = ";"
"""Stands between the names of one cell."""


def read(path):
    """Reads subject, modality, image; label, split, site, visit, channel, annotated optional.

    Other columns are ignored. Paths are relative to the table, absolute, or URIs. A `split` that is
    filled in is kept. A `channel` counts from 0. `annotated` holds names with `;` between them.
    Commas, semicolons or tabs separate columns.

    Args:
        path: Local CSV file.

    Returns:
        `Found`: cases with absolute paths, in the order of the rows.

    Raises:
        CodedError: KUG-D01 for a missing or empty table, KUG-D02 where no row has a label, KUG-D07
            when it is no text, KUG-D08 naming a missing column, empty cell, unknown split, bad
            channel, or annotated names without a label.
    """
    path = Path(path).resolve()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CodedError("KUG-D07", path, "bytes that are no UTF-8 text", "a CSV file") from error
    first = text.partition("\n")[0]
    reader = csv.DictReader(text.splitlines(), delimiter=max(",;\t", key=first.count))
    columns = [(c or "").strip().lower() for c in reader.fieldnames or []]
    reader.fieldnames = columns
    for column in ("subject", "modality", "image"):
        if column not in columns:
            raise CodedError(
                "KUG-D08",
                path,
                f"columns {columns}{did_you_mean(column, columns)}",
                f"a column {column!r}",
                fix="name the columns subject, modality, image, label (and split, site, visit)",
            )
    cases = [_case(row, path, number) for number, row in enumerate(reader, start=2)]
    if not cases:
        raise CodedError("KUG-D01", path, "a table without rows", "one row an image")
    common.check_labelled(cases, [], path)
    return Found(tuple(cases))


def _case(row, path, number):
    where = f"{path} line {number}"
    row = {k: (v or "").strip() for k, v in row.items() if isinstance(v, str) or v is None}
    empty = [c for c in ("subject", "modality", "image") if not row[c]]
    if empty:
        raise CodedError("KUG-D08", where, f"no {empty[0]}", "a value there")
    split = row.get("split", "").lower() or None
    if split is not None and split not in common.SPLIT_NAMES:
        hint = did_you_mean(split, common.SPLIT_NAMES)
        raise CodedError("KUG-D08", where, f"split {split!r}{hint}", f"one of {SPLITS}")
    channel = row.get("channel") or None
    if channel is not None and not (channel.isascii() and channel.isdigit()):
        raise CodedError("KUG-D08", where, f"channel {channel!r}", "a whole number from 0, or none")
    annotated = [n.strip() for n in row.get("annotated", "").split(NAMES) if n.strip()]
    return Case(
        subject=row["subject"],
        modality=row["modality"].lower(),
        image=common.absolute(path.parent, row["image"]),
        label=common.absolute(path.parent, row.get("label")),
        split=common.SPLIT_NAMES.get(split),
        site=row.get("site") or None,
        visit=row.get("visit") or None,
        channel=None if channel is None else int(channel),
        annotated=tuple(annotated) or None,
    )
