"""Is a version good enough: scores on a named study, against thresholds and the served version.

Value thresholds bound the score itself, change thresholds how far it may fall below the version
that is served now; both count for all cases together and for each modality by itself.
"""

import dataclasses
import math
from pathlib import Path

import numpy as np

from keras_unigan import aggregation, evaluation, inference
from keras_unigan.config import Plan, Study
from keras_unigan.errors import CodedError
from keras_unigan.exporting import cards
from keras_unigan.serving import blessings, folders
from keras_unigan.serving.servable import Servable
from keras_unigan.serving.status import ServingError

ALL = "all"


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """What a version has to reach; None is no threshold.

    Attributes:
        minimum: Least mean Dice, of the modalities together and of each.
        most_drop: Most that a mean Dice may be below that of the served version.

    Raises:
        CodedError: KUG-T02 for values outside [0, 1].
    """

    minimum: float | None = None
    most_drop: float | None = None

    def __post_init__(self):
        for name in ("minimum", "most_drop"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise CodedError("KUG-T02", name, f"{value}", "0 to 1")

    @property
    def given(self):
        """Whether there is any."""
        return self.minimum is not None or self.most_drop is not None


class SavedPredictor(inference.Predictor):
    """Probabilities of raw patches from a SavedModel folder, as a server gives them.

    Args:
        folder: SavedModel that this package exported.

    Raises:
        CodedError: KUG-S06 for another folder.
    """

    def __init__(self, folder):
        card = cards.read(folder)
        try:
            self._servable = Servable(folder)
        except ServingError as error:
            raise CodedError("KUG-S06", folder, str(error), "a SavedModel that loads") from None
        if card is None:
            raise CodedError("KUG-S06", folder, "no model card", "a model of `unigan export`")
        self.plan = Plan.from_dict(card["plan"], str(folder))
        self.spatial_dims = card["spatial_dims"]
        self.row = self.plan.statistics_shape

    def __call__(self, patches, modality, statistics):
        """See `inference.Predictor`."""
        count = len(patches)
        rows = np.broadcast_to(np.asarray(statistics, np.float32), (count, *self.row))
        inputs = {
            "image": np.asarray(patches, np.float32),
            "modality": np.array([(modality or "").encode()] * count, object),
            "statistics": rows,
        }
        return self._servable.predict("segment", inputs, ["probabilities"])["probabilities"]

    def close(self):
        """Frees the model."""
        self._servable.close()


def scores(folder, study, split="val", known_modality=True):
    """Mean Dice of a SavedModel on the labelled cases of a split.

    Returns:
        `all` and each modality -> mean Dice; NaN where nothing could be measured.
    """
    predictor = SavedPredictor(folder)
    try:
        found = evaluation.score_cases(predictor, study, split, known_modality)
        rows = [row for case in found for row in case.rows]
    finally:
        predictor.close()
    summary = aggregation.summarize(rows)
    modalities = {name: values["dice"] for name, values in summary["modalities"].items()}
    return {ALL: summary["macro_dice"], **modalities}


def quality_gate(candidate, study, thresholds, baseline=None, split="val", known_modality=True):
    """Judges a version on a study.

    Without a threshold nothing is blessed: nobody said what is good enough. Without a baseline
    change thresholds are skipped, and value thresholds still count.

    Args:
        candidate: SavedModel folder to judge.
        study: `config.Study`, or path of its file.
        thresholds: `Thresholds`.
        baseline: SavedModel folder of the served version, or None.
        split: "train", "val" or "test".
        known_modality: Whether the model is told the modality.

    Returns:
        Report: `passed`, `reason` (of a refusal, else ""), `study`, `split`, `thresholds`,
        `baseline` (whether there was one), `slices` (`all` and each modality -> `candidate`,
        `baseline`, `passed`, `reason`).

    Raises:
        CodedError: KUG-T04 for a study of other labels, KUG-D14 without cases, KUG-S06 for a folder
            that is no model.
    """
    study = study if isinstance(study, Study) else Study.load(study)
    own = scores(candidate, study, split, known_modality)
    served = {} if baseline is None else scores(baseline, study, split, known_modality)
    slices = {}
    for name, value in own.items():
        before = served.get(name)
        reason = _reason(value, before, thresholds)
        slices[name] = {"candidate": value, "baseline": before}
        slices[name] |= {"passed": not reason, "reason": reason}
    wrong = [f"{name}: {found['reason']}" for name, found in slices.items() if found["reason"]]
    reason = "; ".join(wrong) if thresholds.given else "no threshold was given"
    return {
        "passed": not reason,
        "reason": reason,
        "study": study.name,
        "split": split,
        "known_modality": known_modality,
        "metric": "dice",
        "thresholds": dataclasses.asdict(thresholds),
        "baseline": Path(baseline).name if baseline is not None else None,
        "slices": slices,
    }


def served(base):
    """Newest version of a local model folder, which new ones are compared with; None without."""
    present = folders.scan(base) if Path(base).is_dir() else {}
    return present[max(present)] if present else None


def judge(candidate, study, thresholds, baseline=None, split="val", known_modality=True):
    """Judges a folder and writes the verdict beside it; see `quality_gate`.

    Returns:
        `(path of the verdict, report)`.
    """
    report = quality_gate(candidate, study, thresholds, baseline, split, known_modality)
    return blessings.write(candidate, "quality", report), report


def _reason(value, before, thresholds):
    """Why a score is not good enough, or an empty text."""
    if math.isnan(value):
        return "nothing could be measured"
    if thresholds.minimum is not None and value < thresholds.minimum:
        return f"Dice {value:.4f}, below {thresholds.minimum:g}"
    if thresholds.most_drop is None or before is None or math.isnan(before):
        return ""
    if value < before - thresholds.most_drop:
        return f"Dice {value:.4f}, more than {thresholds.most_drop:g} below {before:.4f}"
    return ""
