"""The gate: whether a segmentor finds in a made image what its label map says."""

import dataclasses
from pathlib import Path

import numpy as np

from keras_unigan import classification, inference, translation
from keras_unigan.config import Plan
from keras_unigan.data import preprocessing
from keras_unigan.data.windows import sliding_window
from keras_unigan.errors import CodedError
from keras_unigan.metrics import overlap

LEAST_DICE, LEAST_PROBABILITY = 0.7, 0.5
MOST_SLICES = 8
"""Slices of a volume that the domain head is asked about."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the gate says of a pair.

    Attributes:
        accepted: Whether it passes.
        reason: Why it does not, or "".
        dice: Mean Dice over the names that the label map shows, or None where it shows none.
        probability: Of the target modality by the domain head, or None without one.
    """

    accepted: bool
    reason: str
    dice: float | None
    probability: float | None


class Judge:
    """Judges pairs by the segmentor and the domain head of a run.

    Args:
        run: Run folder.
        plan: Its `config.Plan`.
        judge: Run folder of the segmentor; None takes `run`, whose generator may have been trained
            to please it.
        least_dice: Mean Dice that a pair needs.
        least_probability: Probability of its modality that it needs.

    Raises:
        CodedError: KUG-T04 for a run whose network does not segment, or that is of other shards.
    """

    def __init__(
        self,
        run,
        plan,
        judge=None,
        least_dice=LEAST_DICE,
        least_probability=LEAST_PROBABILITY,
    ):
        from keras_unigan import layers

        self.own = judge is None or Path(judge).resolve() == Path(run).resolve()
        self.plan = plan if self.own else Plan.load(Path(judge) / "plan.json")
        if self.plan.recipe != plan.recipe:
            raise CodedError(
                "KUG-T04",
                judge,
                "a run of other modalities, labels or spacing",
                f"those of {run}",
                fix="train it on the same shards",
            )
        self.predictor = inference.Predictor(inference.load_network(judge or run), self.plan)
        self.classifier = classification.load(run)
        self.least_dice, self.least_probability = least_dice, least_probability
        self.normalization = layers.IntensityNormalization.from_plan(plan)

    def __call__(self, pair):
        """`Verdict` on a `making.Pair`."""
        raw = translation.to_intensities(
            pair.image, pair.inside, self.plan.normalization[pair.target]
        )
        if not np.isfinite(raw).all():
            return Verdict(False, "values that are not finite", None, None)
        if not pair.inside.any() or np.ptp(raw) == 0:
            return Verdict(False, "an empty image", None, None)
        row = preprocessing.statistics(raw, pair.inside)
        probability = self._probability(pair, raw, row)
        dice = self._dice(pair, raw, row)
        if dice is None:
            return Verdict(False, "nothing labelled", None, probability)
        if dice < self.least_dice:
            return Verdict(False, f"Dice below {self.least_dice:g}", dice, probability)
        if probability is not None and probability < self.least_probability:
            reason = f"probability of {pair.target} below {self.least_probability:g}"
            return Verdict(False, reason, dice, probability)
        return Verdict(True, "", dice, probability)

    def _dice(self, pair, raw, row):
        dims = self.predictor.spatial_dims
        chosen, labels = self.plan.configuration(dims), self.plan.labels
        probabilities = sliding_window(
            raw,
            lambda patches: self.predictor(patches, pair.target, row),
            chosen.patch_size,
            self.plan.overlap,
            4,
            chosen.slices,
        )
        table = np.array(labels.membership, bool)
        first = len(labels.names) - len(labels.foreground)
        truth = table[pair.label_map][..., first:]
        if labels.overlapping:
            found = probabilities > 0.5
        else:
            found = table[np.argmax(probabilities, axis=-1)][..., first:]
        scores = [
            overlap.dice(truth[..., n], found[..., n])
            for n in range(truth.shape[-1])
            if truth[..., n].any()
        ]
        return float(np.mean(scores)) if scores else None

    def _probability(self, pair, raw, row):
        """Mean probability of the target modality; 2-D heads see the slices with most in them."""
        if self.classifier is None:
            return None
        import tensorflow as tf

        raw = raw[..., None] if raw.ndim == 3 else raw
        if self.classifier.spatial_dims == 2:
            amounts = np.count_nonzero(pair.label_map, axis=(0, 1))
            chosen = np.sort(np.argsort(-amounts, kind="stable")[:MOST_SLICES])
            images = np.moveaxis(raw[:, :, chosen], 2, 0)
        else:
            images = raw[None]
        count, number = len(images), self.plan.modalities.index(pair.target)
        rows = np.broadcast_to(row, (count, *self.plan.statistics_shape)).astype(np.float32)
        normal = self.normalization(images, np.full(count, number, np.int32), rows)
        if normal.shape[-1] != self.classifier.channels:
            normal = tf.repeat(normal, self.classifier.channels, axis=-1)
        _, logits = self.classifier(
            classification.centred(normal, self.classifier.patch_size), training=False
        )
        return float(tf.reduce_mean(tf.nn.softmax(tf.cast(logits, tf.float32))[:, number]))
