"""Scores of translations: against paired references where there are some, and of the anatomy kept.

Images are compared in normalised units ([-1, 1], each by its own modality), since MR has no units
of its own, over the voxels of the reference that are not background. Anatomy is judged by one
segmentor that sees the scan and its translation as they lie on disk, and by where edges lie, which
needs none. Beside every translator stands `copy`: the input as if it were its own translation.
"""

import dataclasses
import math
import time
from pathlib import Path

import numpy as np

from keras_unigan import evaluation, fidelity, inference, layers, metrics, translation
from keras_unigan.config import IGNORE, SPLITS, Study, finite, write_json
from keras_unigan.data import nifti, preprocessing, volumes
from keras_unigan.errors import CodedError

IMAGE_SCORES = ("mae", "psnr", "ssim", "nmi")
ANATOMY_SCORES = ("anatomy_dice", "label_dice", "hallucination")
SOURCE_SCORES = ("edge_nmi", "shift_mm", "copy_ratio")
SCORES = (*IMAGE_SCORES, *SOURCE_SCORES, *ANATOMY_SCORES)
COLUMNS = (
    *("case", "subject", "split", "known_modality", "source", "target", "method", "paired"),
    *(*SCORES, "status", "message", "seconds"),
)
DATA_RANGE = 2.0
COPY = "copy"


def copy_input(plan):
    """Translator that changes nothing: the baseline that every score has to beat.

    Returns:
        Function like `translation.Translator`.
    """
    normalization = layers.IntensityNormalization.from_plan(plan)

    def translate(patches, source, target, statistics):
        index = -1 if source is None else plan.modalities.index(source)
        shape = (len(patches), *plan.statistics_shape)
        rows = np.broadcast_to(np.asarray(statistics, np.float32), shape)
        return np.asarray(normalization(patches, np.full(len(patches), index, np.int32), rows))

    return translate


def translation_rows(
    translators,
    plan,
    study,
    split="test",
    segmentor=None,
    known_modality=True,
    spatial_dims=2,
    limit=None,
    batch_size=4,
    observe=None,
):
    """Scores every case of a split in every other modality, by every translator.

    Where a translator knows some modalities only (`Translator.serves`), the others are left out
    for all, so that means are of the same translations.

    Args:
        translators: Method -> function like `translation.Translator`; `copy_input` is one.
        plan: `config.Plan` that they share.
        study: `config.Study`.
        split: "train", "val" or "test".
        segmentor: What `inference.predictor_of` takes; None leaves the anatomy out.
        known_modality: Whether translators and segmentor are told the modality of the scan. The
            target is always known.
        spatial_dims: Configuration of the plan that gives the window.
        limit: Only the first so many cases.
        batch_size: Windows per step.
        observe: Called with the case, the target, the method, the translation in [-1, 1] on the
            RAS+ grid, and what the case's translations share; see `fidelity.Observer`.

    Yields:
        One dictionary per case, target and method, see `COLUMNS`, and `names`: per scored name its
        own `ANATOMY_SCORES`. NaN where there is nothing to measure: no paired reference (another
        case of the same subject and visit in the target modality, on the same grid), no segmentor,
        no label map. `anatomy_dice`: segmentation before against after. `label_dice`: truth against
        after. `hallucination`, `edge_nmi`, `shift_mm` (pixels of a file without spacing),
        `copy_ratio`: see `metrics`; the last three compare the translation with its source.

    Raises:
        CodedError: KUG-T02 for another split, KUG-D14 when it has no case. Other problems are in
            the rows.
    """
    if split not in SPLITS:
        raise CodedError("KUG-T02", "split", f"{split!r}", f"one of {list(SPLITS)}")
    cases = [c for c in study.cases if c.split == split]
    if not cases:
        raise CodedError("KUG-D14", study.name, f"no case in split {split!r}", "one")
    predictor = None if segmentor is None else inference.predictor_of(segmentor)
    for case in cases[:limit]:
        common = {
            "case": case.id,
            "subject": case.subject,
            "split": split,
            "known_modality": known_modality,
            "source": case.modality,
        }
        targets = [
            m
            for m in plan.modalities
            if m != case.modality and _serve(translators.values(), case.modality, m)
        ]
        if not targets:
            continue
        try:
            modality = inference.check_modality(plan, case.modality) if known_modality else None
            settings = predictor, modality, spatial_dims, batch_size
            scene = _Scene.read(case, study, plan, *settings)
        except CodedError as error:
            failed = dict.fromkeys((*SCORES, "seconds"), math.nan)
            failed |= {"paired": False, "status": error.code, "names": {}}
            failed["message"] = evaluation.public_message(error, study)
            for target in targets:
                yield from (
                    {**common, "target": target, "method": m, **failed} for m in translators
                )
            continue
        for target in targets:
            reference, problem = _reference(case, target, study, plan, scene.image)
            for method, translate in translators.items():
                start = time.perf_counter()
                image = translation.translate_prepared(
                    *(scene.prepared, scene.inside, plan, translate, modality, target),
                    *(spatial_dims, batch_size),
                )
                seconds = round(time.perf_counter() - start, 3)
                row = {**common, "target": target, "method": method, "seconds": seconds}
                row |= {"paired": reference is not None, "status": "ok", "message": problem}
                if observe is not None:
                    observe(case, target, method, image, scene)
                row |= {**_compare(reference, image), **scene.kept(image)}
                yield {**row, **scene.anatomy(image, target)}


def _serve(translators, source, target):
    """Whether all translators know both modalities; functions know all."""
    return all(getattr(t, "serves", lambda *_: True)(source, target) for t in translators)


def _reference(case, target, study, plan, image):
    """Normalised scan of the same subject in another modality with its mask, and why there is none.

    Returns:
        `(((x, y, z[, channels]) float32, mask), "")`, or `(None, reason)`.
    """
    keys = (case.subject, case.visit, target, case.split)
    found = [c for c in study.cases if (c.subject, c.visit, c.modality, c.split) == keys]
    if not found:
        return None, ""
    try:
        path = study.path(found[0].image)
        reference = nifti.to_ras(volumes.read_image(path, plan.channels, found[0].channel))
        preprocessing.check_image(reference, found[0].id)
    except CodedError as error:
        return None, evaluation.public_message(error, study)
    if reference.shape != image.shape or not np.allclose(reference.affine, image.affine, atol=0.1):
        return None, f"{found[0].id} lies on another grid"
    mask = preprocessing.nonbackground(reference.array)
    array = reference.array.astype(np.float32)
    array = array if array.ndim > 3 else array[..., None]
    statistics = preprocessing.statistics(reference.array)
    truth = copy_input(plan)(array[None], target, target, statistics)[0]
    return (truth if plan.channels > 1 else truth[..., 0], mask), ""


def _compare(reference, image):
    if reference is None:
        return dict.fromkeys(IMAGE_SCORES, math.nan)
    truth, mask = reference
    if truth.ndim > 3:
        parts = zip(np.moveaxis(truth, -1, 0), np.moveaxis(image, -1, 0), strict=True)
        each = [_compare((one, mask), other) for one, other in parts]
        return {score: evaluation.mean([e[score] for e in each]) for score in IMAGE_SCORES}
    wide = any(size > 2 * metrics.SSIM_RADIUS for size in truth.shape)
    return {
        "mae": metrics.mae(truth, image, mask),
        "psnr": metrics.psnr(truth, image, DATA_RANGE, mask),
        "ssim": metrics.ssim(truth, image, DATA_RANGE, mask) if wide else math.nan,
        "nmi": metrics.nmi(truth, image, mask),
    }


@dataclasses.dataclass(frozen=True)
class _Scene:
    """What all translations of one case share.

    Attributes:
        image: The scan in RAS+.
        source: The scan as `copy` gives it.
        prepared: The scan on the plan's grid.
        inside: What is not background.
        plan: Plan of the translators.
        predictor: The segmentor, or None.
        original: Masks in the scan, Boolean `(names, x, y, z)`, or None.
        truth: Masks of the label map, or None.
        annotated: For each name 1 where the label map shows it, else 0.
        labelled: Where the label map knows.
        batch_size: Windows per step.
    """

    image: nifti.Volume
    source: np.ndarray
    prepared: preprocessing.Prepared
    inside: np.ndarray
    plan: object
    predictor: object
    original: np.ndarray | None
    truth: np.ndarray | None
    annotated: tuple[int, ...]
    labelled: np.ndarray
    batch_size: int

    @classmethod
    def read(cls, case, study, plan, predictor, modality, spatial_dims, batch_size):
        path = study.path(case.image)
        volume = volumes.read_image(path, plan.channels, case.channel)
        image = nifti.to_ras(volume)
        prepared = preprocessing.prepare(image, plan, None, case.id)
        truth, labelled = None, np.ones(image.shape, bool)
        original, annotated = None, ()
        if predictor is not None:
            original = _masks(image, predictor, modality, batch_size)
            labels = predictor.plan.labels
            if case.label is not None and labels == study.labels:
                label = volumes.read(study.path(case.label))
                names = case.annotated
                index_map = preprocessing.align(image, label, labels, case.id, names)[1]
                annotated = labels.annotated(names)
                truth, labelled = evaluation.true_masks(index_map, labels), index_map != IGNORE
        inside = preprocessing.nonbackground(image.array)
        # By the road of a translation, so that what resampling takes is not blamed on it.
        settings = plan, copy_input(plan), modality, modality, spatial_dims, batch_size
        source = translation.translate_prepared(prepared, inside, *settings)
        scans = image, source, prepared, inside, plan, predictor, original
        return cls(*scans, truth, annotated, labelled, batch_size)

    def kept(self, translation):
        """`SOURCE_SCORES` of a translation."""
        pairs = [a.reshape(*self.inside.shape, -1) for a in (self.source, translation)]
        channels = zip(*(np.moveaxis(a, -1, 0) for a in pairs), strict=True)
        each = [self._kept(*pair) for pair in channels]
        return {score: evaluation.mean([e[score] for e in each]) for score in SOURCE_SCORES}

    def _kept(self, source, translation):
        found = dict.fromkeys(SOURCE_SCORES, math.nan)
        found["copy_ratio"] = metrics.copy_ratio(source, translation, self.inside)
        if max(source.shape) >= metrics.LEAST_AXIS:
            spacing = self.image.spacing
            found["edge_nmi"] = metrics.edge_nmi(source, translation, spacing, self.inside)
            found["shift_mm"] = metrics.shift_mm(source, translation, spacing)
        return found

    def anatomy(self, normalised, target):
        """`ANATOMY_SCORES`, means over names, and `names`."""
        nothing = dict.fromkeys(ANATOMY_SCORES, math.nan)
        if self.predictor is None:
            return {**nothing, "names": {}}
        array = translation.to_intensities(normalised, self.inside, self.plan.normalization[target])
        known = target if target in self.predictor.plan.modalities else None
        if array.min() == array.max():  # a translator that paints one grey finds nothing
            found = np.zeros_like(self.original)
        else:
            synthetic = nifti.Volume(array, self.image.affine)
            found = _masks(synthetic, self.predictor, known, self.batch_size)
        names = {}
        for i, name in enumerate(self.predictor.plan.labels.foreground):
            truth = None
            if self.truth is not None and self.annotated[i]:
                truth = self.truth[i]
            names[name] = {
                "anatomy_dice": metrics.dice(self.original[i], found[i]),
                "label_dice": math.nan
                if truth is None
                else metrics.dice(truth, found[i] & self.labelled),
                "hallucination": metrics.hallucination(found[i], self.original[i], truth),
            }
        means = {s: evaluation.mean([n[s] for n in names.values()]) for s in ANATOMY_SCORES}
        return {**means, "names": names}


def _masks(volume, predictor, modality, batch_size):
    """Masks of a segmentor in a RAS+ volume; its modality is left out where it never saw it."""
    known = modality if modality in predictor.plan.modalities else None
    _, probabilities = inference.segment_volume(
        volume, predictor.plan, predictor, known, predictor.spatial_dims, batch_size
    )
    return evaluation.predicted_masks(probabilities, predictor.plan.labels)


def summarize(rows):
    """Means of rows over cases, then over pairs of modalities.

    Args:
        rows: Rows of `translation_rows`.

    Returns:
        Dictionary with `cases`, `failed`, `problems` (case -> why it could not be used), `table`
        (per method, source and target: `n`, `failed`, `paired`, the mean of each of `SCORES` and
        `<score>_n`, the translations in which it is defined) and `macro` (method -> mean over the
        table's pairs). A scan that cannot be read is left out of the means of every method alike.
    """
    table = []
    keys = dict.fromkeys((r["source"], r["target"], r["method"]) for r in rows)
    for source, target, method in keys:
        own = [
            r for r in rows if (r["source"], r["target"], r["method"]) == (source, target, method)
        ]
        good = [r for r in own if r["status"] == "ok"]
        line = {"source": source, "target": target, "method": method, "n": len(good)}
        line |= {"failed": len(own) - len(good), "paired": sum(r["paired"] for r in good)}
        line |= {s: evaluation.mean([r[s] for r in good]) for s in SCORES}
        table.append(line | {f"{s}_n": sum(not math.isnan(r[s]) for r in good) for s in SCORES})
    methods = dict.fromkeys(row["method"] for row in rows)
    return {
        "cases": len({r["case"] for r in rows}),
        "failed": len({r["case"] for r in rows if r["status"] != "ok"}),
        "problems": {r["case"]: r["message"] for r in rows if r["status"] != "ok"},
        "table": table,
        "macro": {
            m: {s: evaluation.mean([t[s] for t in table if t["method"] == m]) for s in SCORES}
            for m in methods
        },
    }


def translation_files(run, known_modality=True):
    """Paths of the JSON and CSV that `evaluate_run` writes into a run folder."""
    stem = "translation" if known_modality else "translation_unknown"
    return Path(run) / f"{stem}.json", Path(run) / f"{stem}.csv"


def _own_segmentor(run, translator):
    """What segments in a run that translates, or None."""
    if translation.segments(translator.network):
        return inference.Predictor(translator.network, translator.plan)
    both = (Path(run) / "translator.keras").is_file()
    return inference.load(run) if both else None


def evaluate_run(
    run, study, split="test", known_modality=True, segmentor=None, limit=None, say=None
):
    """Scores the translations of a run folder beside copies of the input, and writes both there.

    Args:
        run: Run folder.
        study: `config.Study`, or path of its file.
        split: "train", "val" or "test".
        known_modality: Whether the model is told the modality of the scan; if not, the files are
            `translation_unknown.*`.
        segmentor: Run folder whose segmentor judges the anatomy; None: the run's own, if it has
            one.
        limit: Only the first so many cases.
        say: Called with one sentence per case.

    Returns:
        The dictionaries of `summarize` and of `fidelity.Observer.summary`, with `split`,
        `known_modality`, `segmentor` (name of its folder) and `outputs` (paths written).

    Raises:
        CodedError: KUG-T04 for a folder without a run, or one that does not translate; see
            `translation_rows`.
    """
    study = study if isinstance(study, Study) else Study.load(study)
    translator = translation.load(run)
    judge = run if segmentor is None else segmentor
    segmentor = segmentor or _own_segmentor(run, translator)
    judge = Path(judge).resolve().name if segmentor else None
    segmentor = segmentor and inference.predictor_of(segmentor)
    observer = fidelity.Observer(translator.plan, study, segmentor)
    rows: list[dict] = []
    for row in translation_rows(
        {translator.name: translator, COPY: copy_input(translator.plan)},
        translator.plan,
        study,
        split,
        segmentor,
        known_modality,
        translator.spatial_dims,
        limit,
        observe=observer,
    ):
        if say and (not rows or rows[-1]["case"] != row["case"]):
            say(f"{row['case']}: " + (row["message"] or "translated"))
        rows.append(row)
    summary = {"split": split, "known_modality": known_modality, "segmentor": judge}
    summary |= {**summarize(rows), **observer.summary()}
    json_path, csv_path = translation_files(run, known_modality)
    write_json(json_path, finite({**summary, "rows": rows}))
    evaluation.write_csv(csv_path, [{c: row[c] for c in COLUMNS} for row in rows], COLUMNS)
    return {**summary, "outputs": [str(json_path), str(csv_path)]}
