"""The folder of synthetic pairs: images, label maps, where each came from, and a study of them."""

import dataclasses
import json
from pathlib import Path

import numpy as np

from keras_unigan import __version__, translation
from keras_unigan.config import Case, Study, write_json
from keras_unigan.data import nifti, preprocessing
from keras_unigan.errors import CodedError
from keras_unigan.synthesis.judging import LEAST_DICE, LEAST_PROBABILITY, Judge
from keras_unigan.synthesis.making import Maker
from keras_unigan.synthesis.memorisation import Audit

TRIES = 10
"""Pairs that are made, at most, for each that is asked for."""


def synthesize(
    run,
    output,
    count,
    method=None,
    to=None,
    judge=None,
    least_dice=LEAST_DICE,
    least_probability=LEAST_PROBABILITY,
    shards=None,
    study=None,
    seed=0,
    progress=None,
):
    """Makes synthetic pairs until enough have passed the gate, and writes those.

    Args:
        run: Run folder with a translator, or of the systems "synthesis" or "gan".
        output: Folder that is filled: `images/`, `labels/`, each image with a `.json` beside it,
            `provenance.jsonl` (every pair that was made, kept or not), `summary.json`, and
            `study.json`, in which all of them are for training.
        count: Pairs that are wanted.
        method: See `making.METHODS`; None: the first that the run can of noise and translate.
        to: One modality to make; None makes all in turn.
        judge: Run folder of another segmentor of the same shards; None asks the run's own.
        least_dice: See `Judge`.
        least_probability: See `Judge`.
        shards: Folder of shards; None takes those that the run was trained on.
        study: `study.json` whose cases `study.json` of the output holds too, or None.
        seed: The same seed makes the same pairs.
        progress: Called with the pairs kept, tried and wanted after each that was made.

    Returns:
        What `summary.json` holds.

    Raises:
        CodedError: KUG-T02 for a method that the run cannot, or a number out of range; KUG-T03 for
            an unknown modality; KUG-T04 for a run that does not fit; KUG-D08 for a study of other
            labels; KUG-D14 for shards without labels.
    """
    for name, value, top in (
        ("--count", count, float("inf")),
        ("--least-dice", least_dice, 1.0),
        ("--least-probability", least_probability, 1.0),
    ):
        if not 0 <= value <= top or (name == "--count" and value < 1):
            raise CodedError("KUG-T02", name, f"{value}", "1 or more" if top > 1 else "0 to 1")
    maker = Maker(run, method, shards)
    plan, targets = maker.plan, maker.targets(to)
    others = _others(study, plan)
    gate = Judge(run, plan, judge, least_dice, least_probability)
    audit = Audit(lambda modality: _scans(maker, modality))
    folder = Path(output)
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    cases, lines = [], []
    with (folder / "provenance.jsonl").open("w", encoding="utf-8") as file:
        for attempt in range(TRIES * count):
            target = targets[len(cases) % len(targets)]
            pair = maker.make(target, np.random.default_rng([seed, attempt]))
            verdict = gate(pair)
            line = {
                "attempt": attempt,
                "method": maker.method,
                "modality": target,
                "source": pair.source,
                "source_modality": pair.source_modality,
                **dataclasses.asdict(verdict),
                "image": None,
            }
            if verdict.accepted:
                near = audit(pair.image if pair.image.ndim == 3 else pair.image.mean(-1), target)
                cases.append(_write(folder, len(cases) + 1, pair, maker, line, near))
                line |= {"image": cases[-1].image, "label": cases[-1].label, "nearest": near}
            lines.append(line)
            file.write(json.dumps(line) + "\n")
            if progress is not None:
                progress(len(cases), attempt + 1, count)
            if len(cases) == count:
                break
    name = f"{plan.study}_synthetic"
    whole = Study(
        name if others is None else others.name,
        plan.modalities,
        plan.labels,
        (*(others.cases if others else ()), *cases),
        normalization={m: n.scheme for m, n in plan.normalization.items()},
        channels=plan.channels,
    )
    whole.save(folder / "study.json")
    summary = _summary(maker, gate, lines, count, seed, folder)
    write_json(folder / "summary.json", summary)
    return summary


def _others(path, plan):
    """The study whose cases are to stand beside the synthetic ones, its paths absolute, or None."""
    if path is None:
        return None
    study = Study.load(path)
    if study.labels != plan.labels or tuple(study.modalities) != tuple(plan.modalities):
        raise CodedError(
            "KUG-D08",
            path,
            f"modalities {list(study.modalities)} and labels {list(study.labels.names)}",
            f"{list(plan.modalities)} and {list(plan.labels.names)}, as the run has",
            fix="give the study that the run's shards were prepared from",
        )
    cases = tuple(
        dataclasses.replace(case, image=study.path(case.image), label=study.path(case.label))
        for case in study.cases
    )
    return dataclasses.replace(study, cases=cases)


def _scans(maker, modality):
    """Training cases of a modality and their images in [-1, 1], of the channel's mean."""
    from keras_unigan import layers

    normalization = layers.IntensityNormalization.from_plan(maker.plan)
    number = np.array([maker.plan.modalities.index(modality)], np.int32)
    for place in maker.sources.of(modality):
        source = maker.sources.read(place)
        image = source.image if source.image.ndim > 3 else source.image[..., None]
        normal = normalization(image[None].astype(np.float32), number, source.statistics[None])
        yield source.case, np.asarray(normal)[0].mean(-1)


def _write(folder, number, pair, maker, line, near):
    """Writes one pair; returns its `Case`."""
    plan, name = maker.plan, f"SYNTHETIC_{number:05d}"
    image = f"images/{name}_{pair.target}.nii.gz"
    label = f"labels/{name}_{pair.target}.nii.gz"
    raw = translation.to_intensities(pair.image, pair.inside, plan.normalization[pair.target])
    values = preprocessing.decode_labels(pair.label_map, plan.labels)
    nifti.write(folder / image, raw, affine=pair.affine, description=translation.MARK)
    nifti.write(folder / label, values, affine=pair.affine, description=translation.MARK)
    record = {
        "Synthetic": True,
        "Method": maker.method,
        "Modality": pair.target,
        "LabelMap": label,
        "Source": pair.source,
        "SourceModality": pair.source_modality,
        "Dice": line["dice"],
        "Probability": line["probability"],
        "Nearest": near,
        "Study": plan.study,
        "Generator": f"keras_unigan {__version__}",
        "Notice": translation.NOTICE,
    }
    write_json(translation.sidecar(folder / image), record)
    return Case(name, pair.target, image, label, "train", synthetic=True)


def _summary(maker, gate, lines, count, seed, folder):
    """What `summary.json` holds."""
    kept = [line for line in lines if line["accepted"]]
    reasons = {}
    for line in lines:
        if not line["accepted"]:
            reasons[line["reason"]] = reasons.get(line["reason"], 0) + 1
    near = [line["nearest"] for line in kept]
    ratios = [n["distance"] / n["usual"] for n in near if n["distance"] is not None and n["usual"]]
    return {
        "run": str(maker.run),
        "method": maker.method,
        "seed": seed,
        "wanted": count,
        "made": len(lines),
        "accepted": len(kept),
        "acceptance_rate": len(kept) / len(lines),
        "rejected": reasons,
        "modalities": {
            m: sum(line["modality"] == m for line in kept) for m in maker.plan.modalities
        },
        "gate": {
            "least_dice": gate.least_dice,
            "least_probability": gate.least_probability,
            "own_segmentor": gate.own,
            "domain_head": gate.classifier is not None,
            "mean_dice": float(np.mean([line["dice"] for line in kept])) if kept else None,
        },
        "memorisation": {
            "compared": len(ratios),
            "copies": sum(bool(n["copy"]) for n in near),
            # 1: as far from the nearest training case as training cases are from one another.
            "median_ratio": float(np.median(ratios)) if ratios else None,
            "least_ratio": float(np.min(ratios)) if ratios else None,
        },
        "output": str(folder),
        "study": str(folder / "study.json"),
    }
