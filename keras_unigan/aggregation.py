"""From rows of scores to means that nothing missing can raise.

A row is one case and name; `evaluation` makes them. Where neither truth nor prediction holds the
name, there is nothing to measure: the row is left out of every mean and counted. A case that could
not be used at all counts as the worst: 0, and the largest distance its volume has room for. So
neither an empty prediction of something that is there, nor a case that fails, ever helps a mean.
A name that nobody looked for in a case (`config.Case.annotated`) is left out too, counted apart.
Standard library only, so that tables of scores are read at once.
"""

import csv
import dataclasses
import math
import os
import statistics

from keras_unigan.config import finite
from keras_unigan.errors import CodedError

SCORES = {
    "dice": ("Dice", +1),
    "iou": ("IoU", +1),
    "hd95": ("HD95", -1),
    "assd": ("ASSD", -1),
    "nsd": ("NSD", +1),
    "volume_similarity": ("volume similarity", +1),
    "lesion_f1": ("lesion F1", +1),
    "lesion_sensitivity": ("lesion sensitivity", +1),
}
"""Score -> what people call it, and +1 where more is better, -1 where less is."""
DISTANCES = ("hd95", "assd")
"""Scores with a unit, which do not mix."""
BIASES = ("volume_error_ml", "volume_error", "false_positives")
"""Signed errors and counts. They are averaged too, and rank nothing: none is worst for a miss."""
STATUS = {
    (True, True): "ok",
    (True, False): "missed",
    (False, True): "spurious",
    (False, False): "undefined",
}
"""(truth has the name, prediction has it) -> status of a row; others are the code of an error."""
UNANNOTATED = "unannotated"
"""Status of a row without a truth: its name was not annotated in the case."""

COLUMNS = (
    *("case", "subject", "modality", "split", "known_modality", "name", *SCORES),
    *("unit", "n_true", "n_pred", "volume_true_ml", "volume_pred_ml", *BIASES),
    *("lesions_true", "lesions_pred", "lesions_found", "status", "message", "seconds"),
    *("alarm", "alarm_raised"),
)


@dataclasses.dataclass(frozen=True)
class ScoreOptions:
    """What of the scores may be chosen; part of every result, as other choices do not compare.

    Attributes:
        hd95: Definition of HD95, one of `metrics.HD95`.
        tolerance: Of NSD, in mm (in pixels where a file does not say its spacing).
        lesion_overlap: IoU from which on a predicted lesion is a true one.
    """

    hd95: str = "pooled"
    tolerance: float = 2.0
    lesion_overlap: float = 0.1

    def __post_init__(self):
        if self.hd95 not in ("pooled", "max"):
            raise CodedError("KUG-T02", "hd95", repr(self.hd95), "pooled or max")
        if not self.tolerance >= 0:
            raise CodedError("KUG-T02", "tolerance", f"{self.tolerance}", "0 or more")
        if not 0 < self.lesion_overlap <= 1:
            found = f"{self.lesion_overlap}"
            raise CodedError("KUG-T02", "lesion_overlap", found, "above 0 and up to 1")


def failed(row):
    """Whether a row is of a case that could not be used."""
    return row["status"] not in (*STATUS.values(), UNANNOTATED)


def value_of(row, score):
    """A score of a row; the worst for a case that could not be used; NaN where there is none.

    A row without a known size (of a file that nothing could read) has an infinite distance.
    """
    value = row.get(score)
    value = math.nan if value is None else value
    if failed(row) and math.isnan(value):
        return worst(score)
    return value


def worst(score, distance=math.inf):
    """The worst value of a score, `distance` being the largest that there is room for."""
    return 0.0 if SCORES[score][1] > 0 else distance


def summarize(rows):
    """Means of rows, first over cases, then over names, then over modalities.

    Args:
        rows: Rows of `evaluation.ScoredCase`.

    Returns:
        Dictionary with `cases`, `failed` (cases that could not be used), `undefined` and
        `unannotated` (rows left out of the means), `macro_<score>`, `unit`, `modalities` (modality
        -> mean over names of each score, `unit`, `cases`, `failed`, `undefined`, `unannotated`,
        `seconds` per case) and `table`: per modality and name `n` (cases that count), `undefined`,
        `unannotated`, `missed`, `spurious`, `failed` (inside `n`), `unit`, and of each score
        `<score>_mean`, `<score>_sd` (sample standard deviation) and `<score>_n`; of `BIASES` too.
        NaN where there is nothing to average, and for distances in different units ("mixed");
        infinite for distances of a case of unknown size.
    """
    table, modalities = [], {}
    for modality in distinct(rows, "modality"):
        own = [r for r in rows if r["modality"] == modality]
        lines = [
            _line(modality, name, [r for r in own if r["name"] == name])
            for name in distinct(own, "name")
        ]
        first = [r for r in own if r["name"] == lines[0]["name"]]
        modalities[modality] = {
            **_means(lines, "{}_mean"),
            "unit": unit_of(own),
            "cases": len(first),
            "failed": len({r["case"] for r in own if failed(r)}),
            **{key: sum(line[key] for line in lines) for key in ("undefined", UNANNOTATED)},
            "seconds": mean([r["seconds"] for r in first]),
        }
        table += lines
    keys = ("cases", "failed", "undefined", UNANNOTATED)
    counts = {key: sum(m[key] for m in modalities.values()) for key in keys}
    return {
        **counts,
        **{f"macro_{s}": v for s, v in _means(modalities.values(), "{}").items()},
        "unit": unit_of(rows),
        "modalities": modalities,
        "table": table,
    }


def unit_of(rows):
    """Unit of the distances of rows; "mixed" for several, None for none."""
    units = {row["unit"] for row in rows} - {None}
    return units.pop() if len(units) == 1 else "mixed" if units else None


def _means(lines, key):
    """Mean of each score; NaN for distances where units differ."""
    mixed = unit_of(lines) == "mixed"
    return {
        score: mean([math.nan if mixed and score in DISTANCES else line[key.format(score)]
                     for line in lines])
        for score in SCORES
    }  # fmt: skip


def _line(modality, name, rows):
    states = [r["status"] for r in rows]
    line = {"modality": modality, "name": name}
    counted = ("undefined", UNANNOTATED, "missed", "spurious")
    line |= {state: states.count(state) for state in counted}
    line["n"] = len(states) - line["undefined"] - line[UNANNOTATED]
    line["failed"] = sum(failed(r) for r in rows)
    line["unit"] = unit_of(rows)
    for score in (*SCORES, *BIASES):
        found = [value_of(r, score) if score in SCORES else r.get(score) for r in rows]
        values = [v for v in found if v is not None and not math.isnan(v)]
        if line["unit"] == "mixed" and score in DISTANCES:
            values = []
        line[f"{score}_mean"] = mean(values)
        line[f"{score}_sd"] = spread(values)
        line[f"{score}_n"] = len(values)
    return line


def distinct(rows, key):
    """Values of a key, in the order of their first row."""
    return list(dict.fromkeys(row[key] for row in rows))


def mean(values):
    """Mean of what is not NaN; NaN of nothing."""
    values = [v for v in values if not math.isnan(v)]
    return statistics.fmean(values) if values else math.nan


def spread(values):
    """Sample standard deviation; NaN for fewer than two values or infinite ones."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return math.nan
    return statistics.stdev(values)


def write_csv(path, rows, columns=COLUMNS):
    """Writes rows with the given columns, NaN and infinity as nothing, through a rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in rows:
            writer.writerow({k: "" if v is None else v for k, v in finite(row).items()})
    temporary.replace(path)
