"""Scores of a model on the cases of a study: one row per case and name, on the case's own grid.

They are those of `metrics` (see docs/metrics.md), between the label file and the prediction brought
back to the scan's grid: in mm, or in pixels ("px") where the file does not say how far these lie
apart; the two are never averaged. Voxels of value 255 (not labelled) are left out of both. Where
neither holds a name there is nothing to measure: NaN, left out of means and counted. Where only one
does, overlaps are 0 and the distances are the diagonal of the volume; counted too. A name that was
not annotated in a case has no truth there and no score. A case that cannot be used becomes rows
with its code, counted as if everything had been missed (`aggregation`). A scan that raises the
run's alarm is told, and counts like any other.
"""

import dataclasses
import hashlib
import importlib.metadata
import math
import os
import platform
import time
from pathlib import Path

import numpy as np

from keras_unigan import metrics, prediction
from keras_unigan.aggregation import (
    BIASES,
    COLUMNS,
    DISTANCES,
    SCORES,
    STATUS,
    UNANNOTATED,
    ScoreOptions,
    mean,
    summarize,
    worst,
    write_csv,
)
from keras_unigan.config import (
    IGNORE,
    Case,
    Study,
    finite,
    read_json,
    write_json,
)
from keras_unigan.data import nifti, volumes
from keras_unigan.errors import CodedError
from keras_unigan.overlays import best_median_worst, save_overlay
from keras_unigan.postprocessing import predicted_masks
from keras_unigan.truth import (
    check_labels,
    index_map_of,
    labelled,
    public_message,
    read_case,
    true_masks,
)

__all__ = [
    "COLUMNS",
    "SCORES",
    "ScoreOptions",
    "ScoredCase",
    "best_median_worst",
    "evaluate_run",
    "mean",
    "metrics_files",
    "predicted_masks",
    "public_message",
    "save_overlay",
    "score_cases",
    "score_masks",
    "summarize",
    "true_masks",
    "write_csv",
]


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


def score_masks(truth, prediction, names, spacing, unit="mm", options=None):
    """Scores of one case.

    Args:
        truth: Masks, Boolean `(names, x, y, z)`.
        prediction: Masks of the same shape.
        names: Name of each mask.
        spacing: Distance between voxels along each axis.
        unit: Of the distances: "mm", or "px" where 1 is a pixel (then volumes are not known).
        options: `aggregation.ScoreOptions`.

    Returns:
        One dictionary per name with what `aggregation.COLUMNS` has of masks. `status` is "ok",
        "missed" (only the truth has it), "spurious" (only the prediction) or "undefined" (neither).
    """
    options = options or ScoreOptions()
    masks = zip(names, truth, prediction, strict=True)
    return [_score_mask(*each, spacing, unit, options) for each in masks]


def _score_mask(name, true, predicted, spacing, unit, options):
    high, average, near = metrics.surface_scores(
        true, predicted, spacing, options.hd95, options.tolerance
    )
    sizes = int(np.count_nonzero(true)), int(np.count_nonzero(predicted))
    lesions = metrics.lesion_scores(true, predicted, options.lesion_overlap)
    status = STATUS[sizes[0] > 0, sizes[1] > 0]
    row = {
        "name": name,
        "dice": metrics.dice(true, predicted),
        "iou": metrics.iou(true, predicted),
        "hd95": high,
        "assd": average,
        "nsd": near,
        "volume_similarity": metrics.volume_similarity(true, predicted),
        "lesion_f1": lesions.f1,
        "lesion_sensitivity": lesions.sensitivity,
        "unit": unit,
        "n_true": sizes[0],
        "n_pred": sizes[1],
    }
    volume = metrics.volume_error(true, predicted, spacing)
    known = unit == "mm"
    row |= {
        "volume_true_ml": volume.true_ml if known else math.nan,
        "volume_pred_ml": volume.predicted_ml if known else math.nan,
        "volume_error_ml": volume.signed_ml if known else math.nan,
        "volume_error": volume.relative,
        "false_positives": lesions.false_positives,
        "lesions_true": lesions.true,
        "lesions_pred": lesions.predicted,
        "lesions_found": lesions.found,
    }
    return {**row, "status": status}


def score_cases(
    model,
    study,
    split="test",
    known_modality=True,
    limit=None,
    batch_size=4,
    options=None,
    tta="none",
    postprocessing=True,
):
    """Predicts and scores the labelled cases of a split, one after the other.

    Args:
        model: What `prediction.predict` takes.
        study: `config.Study`.
        split: "train", "val" or "test".
        known_modality: Whether the model is told the modality.
        limit: Only the first so many cases.
        batch_size: Windows per step.
        options: `aggregation.ScoreOptions`.
        tta: See `prediction.load`; also for `postprocessing`.
        postprocessing: As said.

    Yields:
        `ScoredCase`.

    Raises:
        CodedError: KUG-T02 for another split, KUG-T04 when the study has other labels than the
            model, KUG-D14 when the split has no labelled case. Other problems are in the rows.
    """
    ensemble = prediction.load(model, tta, postprocessing)
    check_labels(ensemble.plan, study)
    cases = labelled(study, split)[:limit]
    if not cases:
        raise CodedError("KUG-D14", study.name, f"no labelled case in split {split!r}", "one")
    for case in cases:
        yield _score_case(
            ensemble, study, case, known_modality, batch_size, options or ScoreOptions()
        )


def _score_case(ensemble, study, case, known_modality, batch_size, options):
    labels, start = ensemble.plan.labels, time.perf_counter()
    common = {
        "case": case.id,
        "subject": case.subject,
        "modality": case.modality,
        "split": case.split,
        "known_modality": known_modality,
    }
    try:
        volume, image, index_map = read_case(study, case, ensemble.plan)
        start = time.perf_counter()
        told = case.modality if known_modality else None
        found = ensemble.segment_volume(volume, told, batch_size, case.id)
        seconds = round(time.perf_counter() - start, 3)
    except CodedError as error:
        message = public_message(error, study)
        state = {"message": message, "seconds": math.nan, "alarm": None, "alarm_raised": None}
        rows = [{**row, "status": error.code} for row in _failed_rows(study, case, labels)]
        return ScoredCase(case, [{**common, **r, **state} for r in _with_truth(rows, case)])
    truth, annotated = true_masks(index_map, labels), index_map != IGNORE
    masks = found.masks & annotated
    unit = "mm" if volume.spacing_known else "px"
    rows = score_masks(truth, masks, labels.foreground, image.spacing, unit, options)
    heard = found.reading
    state = {"message": "", "seconds": seconds}
    state |= {"alarm": heard and heard.score, "alarm_raised": heard and heard.raised}
    rows = [{**common, **row, **state} for row in _with_truth(rows, case)]
    return ScoredCase(case, rows, image, truth, masks)


def _with_truth(rows, case):
    """Rows of a case, of which those of names that were not annotated say just that."""
    if case.annotated is None:
        return rows
    return [
        row
        if row["name"] in case.annotated
        else {
            **dict.fromkeys(row),
            **dict.fromkeys(SCORES, math.nan),
            **{key: row[key] for key in ("name", "n_pred")},
            "status": UNANNOTATED,
        }
        for row in rows
    ]


def _failed_rows(study, case, labels):
    """Rows of a case that cannot be used: the worst scores that its label map has room for."""
    count, unit, distance = dict.fromkeys(labels.foreground), None, math.inf
    try:
        label = nifti.to_ras(volumes.read(study.path(case.label)))
        masks = true_masks(index_map_of(label, labels, case), labels)
    except CodedError:
        pass  # What the row says of the case is its first problem; this one may be the same.
    else:
        count = {n: int(np.count_nonzero(m)) for n, m in zip(count, masks, strict=True)}
        unit = "mm" if label.spacing_known else "px"
        distance = metrics.diagonal(label.shape, label.spacing)
    nothing = dict.fromkeys(
        ("n_pred", "volume_true_ml", "volume_pred_ml", "lesions_true", "lesions_pred"), None
    )
    nothing |= dict.fromkeys(("lesions_found", *BIASES), None)
    scores = {s: worst(s, distance if s in DISTANCES else math.inf) for s in SCORES}
    return [{"name": n, **scores, "unit": unit, "n_true": count[n], **nothing} for n in count]


def metrics_files(run, known_modality=True):
    """Paths of the JSON and CSV that `evaluate_run` writes into a run folder."""
    stem = "metrics" if known_modality else "metrics_unknown"
    return Path(run) / f"{stem}.json", Path(run) / f"{stem}.csv"


def evaluate_run(
    run,
    study,
    split="test",
    known_modality=True,
    limit=None,
    say=None,
    options=None,
    tta="none",
    postprocessing=True,
    output=None,
):
    """Scores a run folder and writes the result there: JSON, CSV and slices for the report.

    Args:
        run: Run folder, a folder with `ensemble.json`, or what else `prediction.load` takes.
        study: `config.Study`, or path of its file.
        split: "train", "val" or "test".
        known_modality: Whether the model is told the modality; if not, the files are
            `metrics_unknown.*`.
        limit: Only the first so many cases.
        say: Called with one sentence per case.
        options: `aggregation.ScoreOptions`.
        tta: See `prediction.load`; also for `postprocessing`.
        postprocessing: As said.
        output: Folder for the results; None: the run's own.

    Returns:
        The dictionary of `summarize` with `split`, `known_modality`, `labelled` (labelled cases of
        the split, of which `limit` may have taken fewer), `problems` (case -> why it could not be
        used), `alarm` (`threshold`, and `raised`: cases that are unlike those of training; None for
        a run without an alarm), `options`, `method` (`prediction.Ensemble.method`) and `outputs`
        (paths written).

    Raises:
        CodedError: See `score_cases` and `prediction.load`; KUG-T02 for several runs without an
            output.
    """
    if output is None and not isinstance(run, (str, os.PathLike)):
        raise CodedError("KUG-T02", "output", "none", "a folder for the results of several runs")
    ensemble = prediction.load(run, tta, postprocessing)
    run = output or run
    method = ensemble.method
    path = None if isinstance(study, Study) else study
    study = study if isinstance(study, Study) else Study.load(study)
    options, start = options or ScoreOptions(), time.perf_counter()
    json_path, csv_path = metrics_files(run, known_modality)
    folder, prefix = Path(run) / "samples", "known-" if known_modality else "unknown-"
    rows, candidates = [], []
    for scored in score_cases(ensemble, study, split, known_modality, limit, options=options):
        if not rows:
            for old in folder.glob(f"{prefix}*.npz"):
                old.unlink()
        rows += scored.rows
        score = mean([row["dice"] for row in scored.rows])
        if scored.image is not None:
            place = folder / f"{prefix}{len(candidates):04d}.npz"
            save_overlay(place, scored)
            candidates.append(
                {
                    "case": scored.case.id,
                    "modality": scored.case.modality,
                    "dice": score,
                    "file": f"samples/{place.name}",
                }
            )
        if say:
            problem = scored.rows[0]["message"]
            say(f"{scored.case.id}: " + (problem or f"Dice {score:.3f}"))
    overlays = best_median_worst(candidates)
    for name in {c["file"] for c in candidates} - {o["file"] for o in overlays}:
        (Path(run) / name).unlink()
    settings = {"split": split, "known_modality": known_modality}
    summary = {**settings, "labelled": len(labelled(study, split)), **summarize(rows)}
    summary["problems"] = {row["case"]: row["message"] for row in rows if row["message"]}
    summary["alarm"] = ensemble.alarm and {
        "threshold": ensemble.alarm.threshold,
        "raised": list(dict.fromkeys(row["case"] for row in rows if row["alarm_raised"])),
    }
    summary |= {"options": dataclasses.asdict(options), "method": method, "overlays": overlays}
    write_json(json_path, finite({**summary, "rows": rows}))
    write_csv(csv_path, rows)
    summary |= {"outputs": [str(json_path), str(csv_path)]}
    entry = {}
    if path is not None:
        digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        entry["inputs"] = {"study": os.fspath(path), "study_sha256": digest}
    settings |= {"limit": limit, "options": dataclasses.asdict(options)}
    entry |= {"settings": {**settings, "method": method}}
    entry |= {"outputs": [json_path.name, csv_path.name], "macro_dice": summary["macro_dice"]}
    _record(run, {**entry, "seconds": round(time.perf_counter() - start, 1)})
    return summary


def _record(run, entry):
    """Adds this evaluation to `run.json`."""
    path = Path(run) / "run.json"
    entries = read_json(path) if path.is_file() else []
    packages = ("keras-unigan", "keras", "tensorflow", "numpy", "scipy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    versions["python"] = platform.python_version()
    entry = {"command": "evaluate", "status": "finished", "versions": versions, **entry}
    write_json(path, [*entries, finite(entry)])
