"""Scores of a model on the cases of a study: one row per case and name, on the case's own grid.

Dice, HD95 and ASSD are those of `metrics`, between the label file and the prediction brought back
to the scan's grid: in mm, or in pixels ("px") where the file does not say how far these lie apart;
the two are never averaged. Voxels of value 255 (not labelled) are left out of both. Where neither
holds a name there is nothing to measure: NaN, left out of means and counted. Where only one does,
Dice is 0 and the distances are the diagonal of the volume; counted too. A case that cannot be used
becomes rows with its code, and is counted.
"""

import csv
import dataclasses
import math
import os
import statistics
import time
from pathlib import Path

import numpy as np

from keras_unigan import inference, metrics
from keras_unigan.config import IGNORE, SPLITS, Case, Study, finite, write_json
from keras_unigan.data import nifti, preprocessing, volumes
from keras_unigan.errors import CodedError

COLUMNS = (
    *("case", "subject", "modality", "split", "known_modality", "name", "dice", "hd95", "assd"),
    *("unit", "n_true", "n_pred", "status", "message", "seconds"),
)
SCORES = ("dice", "hd95", "assd")
# What the truth and the prediction hold -> status of a row.
STATUS = {
    (True, True): "ok",
    (True, False): "missed",
    (False, True): "spurious",
    (False, False): "undefined",
}
OVERLAY_SLICES = 9


@dataclasses.dataclass(frozen=True)
class ScoredCase:
    """One case with its rows; the arrays are None where the case could not be used.

    Attributes:
        case: The case.
        rows: One dictionary (see `COLUMNS`) per scored name.
        image: The scan in RAS+, `data.nifti.Volume`.
        truth: Masks of each name, Boolean `(names, x, y, z)`, RAS+.
        prediction: The same of the model.
    """

    case: Case
    rows: list
    image: nifti.Volume | None = None
    truth: np.ndarray | None = None
    prediction: np.ndarray | None = None


def score_masks(truth, prediction, names, spacing, unit="mm"):
    """Scores of one case.

    Args:
        truth: Masks, Boolean `(names, x, y, z)`.
        prediction: Masks of the same shape.
        names: Name of each mask.
        spacing: Distance between voxels along each axis.
        unit: Of the distances: "mm", or "px" where 1 is a pixel.

    Returns:
        One dictionary per name: `name`, `dice`, `hd95`, `assd`, `unit`, `n_true`, `n_pred` (voxels)
        and `status`: "ok", "missed" (only the truth has it), "spurious" (only the prediction) or
        "undefined" (neither).
    """
    rows = []
    for name, true, predicted in zip(names, truth, prediction, strict=True):
        high, mean = metrics.surface_scores(true, predicted, spacing)
        sizes = int(np.count_nonzero(true)), int(np.count_nonzero(predicted))
        rows.append(
            {
                "name": name,
                "dice": metrics.dice(true, predicted),
                "hd95": high,
                "assd": mean,
                "unit": unit,
                "n_true": sizes[0],
                "n_pred": sizes[1],
                "status": STATUS[sizes[0] > 0, sizes[1] > 0],
            }
        )
    return rows


def score_cases(model, study, split="test", known_modality=True, limit=None, batch_size=4):
    """Predicts and scores the labelled cases of a split, one after the other.

    Args:
        model: What `inference.predict` takes.
        study: `config.Study`.
        split: "train", "val" or "test".
        known_modality: Whether the model is told the modality.
        limit: Only the first so many cases.
        batch_size: Windows per step.

    Yields:
        `ScoredCase`.

    Raises:
        CodedError: KUG-T02 for another split, KUG-T04 when the study has other labels than the
            model, KUG-D14 when the split has no labelled case. Other problems are in the rows.
    """
    predictor = inference.predictor_of(model)
    if split not in SPLITS:
        raise CodedError("KUG-T02", "split", f"{split!r}", f"one of {list(SPLITS)}")
    if predictor.plan.labels != study.labels:
        raise CodedError(
            "KUG-T04",
            "labels",
            f"a model of {_scheme(predictor.plan.labels)}",
            f"{_scheme(study.labels)} as in the study",
            "Scores would compare different things.",
            "use the study that the model was trained on, or train again",
        )
    cases = [c for c in study.cases if c.split == split and c.label is not None][:limit]
    if not cases:
        raise CodedError("KUG-D14", study.name, f"no labelled case in split {split!r}", "one")
    for case in cases:
        yield _score_case(predictor, study, case, known_modality, batch_size)


def _scheme(labels):
    return {name: list(labels.file_values(name)) for name in labels.foreground}


def _score_case(predictor, study, case, known_modality, batch_size):
    labels, start = predictor.plan.labels, time.perf_counter()
    common = {
        "case": case.id,
        "subject": case.subject,
        "modality": case.modality,
        "split": case.split,
        "known_modality": known_modality,
    }
    try:
        volume = volumes.read(study.path(case.image), case.channel)
        preprocessing.check_image(volume, case.id)
        image, label = nifti.to_ras(volume), nifti.to_ras(volumes.read(study.path(case.label)))
        preprocessing.check_pair(image, label, case.id)
        index_map = preprocessing.encode_labels(label.array, labels, case.id)
        start = time.perf_counter()
        _, probabilities = inference.segment_volume(
            volume,
            predictor.plan,
            predictor,
            case.modality if known_modality else None,
            predictor.spatial_dims,
            batch_size,
            case.id,
        )
        seconds = round(time.perf_counter() - start, 3)
    except CodedError as error:
        nan = float("nan")
        failed = {"dice": nan, "hd95": nan, "assd": nan, "unit": None}
        failed |= {"n_true": None, "n_pred": None}
        failed |= {"status": error.code, "message": public_message(error, study), "seconds": nan}
        return ScoredCase(case, [{**common, "name": n, **failed} for n in labels.foreground])
    labelled = index_map != IGNORE
    truth = true_masks(index_map, labels)
    prediction = predicted_masks(probabilities, labels) & labelled
    unit = "mm" if volume.spacing_known else "px"
    rows = score_masks(truth, prediction, labels.foreground, image.spacing, unit)
    rows = [{**common, **row, "message": "", "seconds": seconds} for row in rows]
    return ScoredCase(case, rows, image, truth, prediction)


def public_message(error, study):
    """Message of an error for results, which are passed around: without the study's own folder."""
    return str(error).replace(os.path.join(study.folder, ""), "")


def true_masks(index_map, labels):
    """Mask of each scored name from label-map indices; 255 is in none."""
    membership = np.zeros((len(labels.names), IGNORE + 1), bool)
    membership[:, : len(labels.values)] = np.transpose(labels.membership)
    first = len(labels.names) - len(labels.foreground)
    return np.stack([row[index_map] for row in membership[first:]])


def predicted_masks(probabilities, labels):
    """Mask of each scored name: regions above one half, classes where they are most probable."""
    if labels.overlapping:
        return np.moveaxis(probabilities > 0.5, -1, 0)
    best = np.argmax(probabilities, axis=-1)
    return np.stack([best == index for index in range(1, probabilities.shape[-1])])


def summarize(rows):
    """Means of rows, first over cases, then over names, then over modalities.

    Args:
        rows: Rows of `ScoredCase`.

    Returns:
        Dictionary with `cases`, `failed` (cases that could not be used), `macro_<score>`,
        `modalities` (modality -> mean over names of each score, `unit`, `cases`, `failed`,
        `seconds` per case) and `table`: per modality and name `n` (cases that count), `undefined`,
        `missed`, `spurious`, `failed`, `unit`, and of each score `<score>_mean` and `<score>_sd`
        (sample standard deviation). Scores are `dice`, `hd95`, `assd`; NaN where there is nothing
        to average, and for distances in different units ("mixed").
    """
    table, modalities = [], {}
    for modality in _distinct(rows, "modality"):
        own = [r for r in rows if r["modality"] == modality]
        lines = [
            _line(modality, name, [r for r in own if r["name"] == name])
            for name in _distinct(own, "name")
        ]
        first = [r for r in own if r["name"] == lines[0]["name"]]
        modalities[modality] = {
            **_means(lines, "{}_mean"),
            "unit": _unit(own),
            "cases": len(first),
            "failed": lines[0]["failed"],
            "seconds": mean([r["seconds"] for r in first]),
        }
        table += lines
    return {
        "cases": sum(m["cases"] for m in modalities.values()),
        "failed": sum(m["failed"] for m in modalities.values()),
        **{f"macro_{s}": v for s, v in _means(modalities.values(), "{}").items()},
        "unit": _unit(rows),
        "modalities": modalities,
        "table": table,
    }


def _unit(rows):
    """Unit of the distances of rows; "mixed" for several, None for none."""
    units = {row["unit"] for row in rows} - {None}
    return units.pop() if len(units) == 1 else "mixed" if units else None


def _means(lines, key):
    """Mean of each score; NaN for distances where units differ."""
    mixed = _unit(lines) == "mixed"
    return {
        score: mean([float("nan") if mixed and score != "dice" else line[key.format(score)]
                     for line in lines])
        for score in SCORES
    }  # fmt: skip


def _line(modality, name, rows):
    states = [r["status"] for r in rows]
    line = {"modality": modality, "name": name}
    line["n"] = sum(s in ("ok", "missed", "spurious") for s in states)
    line |= {state: states.count(state) for state in ("undefined", "missed", "spurious")}
    line["failed"] = sum(s not in STATUS.values() for s in states)
    line["unit"] = _unit(rows)
    for score in SCORES:
        values = [r[score] for r in rows if not math.isnan(r[score])]
        if line["unit"] == "mixed" and score != "dice":
            values = []
        line[f"{score}_mean"] = mean(values)
        line[f"{score}_sd"] = statistics.stdev(values) if len(values) > 1 else float("nan")
    return line


def _distinct(rows, key):
    return list(dict.fromkeys(row[key] for row in rows))


def mean(values):
    """Mean of what is not NaN; NaN of nothing."""
    values = [v for v in values if not math.isnan(v)]
    return statistics.fmean(values) if values else float("nan")


def metrics_files(run, known_modality=True):
    """Paths of the JSON and CSV that `evaluate_run` writes into a run folder."""
    stem = "metrics" if known_modality else "metrics_unknown"
    return Path(run) / f"{stem}.json", Path(run) / f"{stem}.csv"


def evaluate_run(run, study, split="test", known_modality=True, limit=None, say=None):
    """Scores a run folder and writes the result there: JSON, CSV and slices for the report.

    Args:
        run: Run folder.
        study: `config.Study`, or path of its file.
        split: "train", "val" or "test".
        known_modality: Whether the model is told the modality; if not, the files are
            `metrics_unknown.*`.
        limit: Only the first so many cases.
        say: Called with one sentence per case.

    Returns:
        The dictionary of `summarize` with `split`, `known_modality` and `outputs` (paths written).

    Raises:
        CodedError: See `score_cases` and `inference.load`.
    """
    study = study if isinstance(study, Study) else Study.load(study)
    json_path, csv_path = metrics_files(run, known_modality)
    folder, prefix = Path(run) / "samples", "known-" if known_modality else "unknown-"
    rows, candidates = [], []
    for scored in score_cases(run, study, split, known_modality, limit):
        if not rows:
            for old in folder.glob(f"{prefix}*.npz"):
                old.unlink()
        rows += scored.rows
        score = mean([row["dice"] for row in scored.rows])
        if scored.image is not None:
            path = folder / f"{prefix}{len(candidates):04d}.npz"
            save_overlay(path, scored)
            candidates.append(
                {
                    "case": scored.case.id,
                    "modality": scored.case.modality,
                    "dice": score,
                    "file": f"samples/{path.name}",
                }
            )
        if say:
            problem = scored.rows[0]["message"]
            say(f"{scored.case.id}: " + (problem or f"Dice {score:.3f}"))
    overlays = best_median_worst(candidates)
    for name in {c["file"] for c in candidates} - {o["file"] for o in overlays}:
        (Path(run) / name).unlink()
    summary = {"split": split, "known_modality": known_modality, **summarize(rows)}
    summary["overlays"] = overlays
    write_json(json_path, finite({**summary, "rows": rows}))
    write_csv(csv_path, rows)
    return {**summary, "outputs": [str(json_path), str(csv_path)]}


def write_csv(path, rows, columns=COLUMNS):
    """Writes rows with the given columns, NaN as nothing, through a rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in rows:
            writer.writerow({k: "" if v is None else v for k, v in finite(row).items()})
    temporary.replace(path)


def best_median_worst(candidates):
    """Chooses the cases to look at: per modality the best, the median and the worst by Dice.

    Args:
        candidates: Dictionaries with `modality` and `dice`.

    Returns:
        The chosen ones, each with `rank`; a case has one rank only, cases without Dice have none.
    """
    chosen = []
    for modality in _distinct(candidates, "modality"):
        own = [c for c in candidates if c["modality"] == modality and not math.isnan(c["dice"])]
        own.sort(key=lambda c: -c["dice"])
        last = len(own) - 1
        ranks = {0: "best", last // 2: "median", last: "worst"} if last > 1 else {}
        ranks = {0: "best", 1: "worst"} if last == 1 else {0: "only"} if last == 0 else ranks
        chosen += [{**own[place], "rank": rank} for place, rank in ranks.items()]
    return chosen


def save_overlay(path, scored):
    """Saves the slices of a case that the report draws, compressed.

    The slice with the most labelled foreground (`middle`) and others spread over its extent: grey
    values 0..255 between the 0.5 and 99.5 percentile, masks of truth and prediction, spacing.

    Args:
        path: `.npz` path.
        scored: `ScoredCase` with arrays.
    """
    foreground = scored.truth.any(0) if scored.truth.any() else scored.prediction.any(0)
    area = foreground.sum((0, 1))
    found = np.flatnonzero(area) if area.any() else np.arange(len(area))
    middle = int(np.argmax(area)) if area.any() else len(area) // 2
    spread = np.linspace(found[0], found[-1], OVERLAY_SLICES).round().astype(int)
    slices = np.unique([*spread, middle])
    low, high = preprocessing.statistics(scored.image.array)[2:]
    grey = (scored.image.array[..., slices].astype(np.float32) - low) / max(high - low, 1e-6)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        image=np.moveaxis((grey.clip(0, 1) * 255).astype(np.uint8), -1, 0),
        truth=np.moveaxis(scored.truth[..., slices], -1, 0),
        prediction=np.moveaxis(scored.prediction[..., slices], -1, 0),
        slices=slices,
        middle=middle,
        spacing=scored.image.spacing,
        names=np.array([row["name"] for row in scored.rows]),
    )
