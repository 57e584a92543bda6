"""Writes a CSV table that names the files where they lie."""

import csv
import os

from keras_unigan.data.readers.table import NAMES
from keras_unigan.data.writers import common
from keras_unigan.data.writers.common import Written

COLUMNS = ("subject", "modality", "image", "label", "split", "site", "visit", "channel")
RARE = ("annotated",)
"""Columns of tables in which some row has them."""


def write(study, path):
    """Writes one row an image; paths are relative to the table.

    Args:
        study: `config.Study` with absolute paths.
        path: The table.

    Returns:
        `Written`.
    """
    folder = path.parent.resolve()
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        rare = tuple(c for c in RARE if any(getattr(case, c) is not None for case in study.cases))
        writer.writerow((*COLUMNS, *rare))
        for case in study.cases:
            row = {c: getattr(case, c) for c in (*COLUMNS, *rare)}
            for name in ("image", "label"):
                row[name] = row[name] and os.path.relpath(row[name], folder).replace(os.sep, "/")
            if row.get("annotated"):
                row["annotated"] = NAMES.join(row["annotated"])
            writer.writerow(["" if v is None else v for v in row.values()])
    places = {c.id: (c.image, c.channel, c.label) for c in study.cases}
    return Written(common.with_files(study, places))
