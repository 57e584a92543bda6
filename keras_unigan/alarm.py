"""Is a scan of a kind that the run was trained on: the alarm for unknown modalities.

What is looked at are statistics of the normalised image and of each level of the discriminator that
carries the domain head, down to the domain logits. (The logits alone do not do it: a head that
tells T1 from CT may be surer of another organ than of what it was trained on.) Of each level the
Mahalanobis distance to the training volumes of the modality is taken, in units of what a training
volume has from the others; the level that is furthest off is the score. Scans of unknown modality
are compared with every modality, each normalised as it; the nearest one counts.

Reference: Lee et al. 2018, A simple unified framework for detecting out-of-distribution samples and
adversarial attacks, arXiv:1807.03888 (distances at every level); the threshold is split-conformal.
"""

import dataclasses
import math
import warnings
from pathlib import Path

import numpy as np

from keras_unigan import inference
from keras_unigan.config import Plan, finite, read_json, write_json
from keras_unigan.data.windows import sliding_window
from keras_unigan.errors import CodedError

NETWORK, FITTED, FILE = "alarm.keras", "alarm.npz", "alarm.json"
FALSE_ALARMS = 0.05
"""Share of scans like those of training that may raise an alarm, where there are enough to tell."""
BINS = 17
SHRINKAGE = 0.1
"""Share of a level's mean variance that is added to all its directions."""


class Descriptor:
    """Statistics of a volume at each level: the means over its windows.

    Args:
        discriminator: Discriminator with the head "classify".
        plan: `config.Plan` that it was trained with.
    """

    def __init__(self, discriminator, plan):
        import keras
        import tensorflow as tf

        from keras_unigan import layers

        self.discriminator, self.plan = discriminator, plan
        self.spatial_dims = discriminator.spatial_dims
        maps = [layer.output for layer in discriminator.layers if layer.name.startswith("act_")]
        image, (_, logits) = discriminator.inputs[0], discriminator.outputs
        levels = [_image_statistics(image), *map(_map_statistics, maps), logits]
        network = keras.Model(image, levels)
        self.levels = ("image", *(f"level {n}" for n in range(len(maps))), "domain logits")
        normalization = layers.IntensityNormalization.from_plan(plan)
        shape = (None, *discriminator.patch_size, image.shape[-1])

        @tf.function(
            input_signature=[
                tf.TensorSpec(shape, tf.float32),
                tf.TensorSpec((), tf.int32),
                tf.TensorSpec((None, *plan.statistics_shape), tf.float32),
            ]
        )
        def run(patches, domain, statistics):
            domain = tf.repeat(domain, tf.shape(patches)[0])
            found = network(normalization(patches, domain, statistics), training=False)
            return [tf.cast(level, tf.float32) for level in found]

        self._run = run

    def __call__(self, prepared, modality, batch_size=16):
        """Statistics of a volume that is normalised as of a modality.

        Args:
            prepared: `data.preprocessing.Prepared` on the plan's grid.
            modality: Name in the plan.
            batch_size: Windows per step.

        Returns:
            List of vectors, one a level.
        """
        domain, seen = np.int32(self.plan.modalities.index(modality)), []

        def look(patches):
            shape = (len(patches), *self.plan.statistics_shape)
            rows = np.broadcast_to(np.asarray(prepared.statistics, np.float32), shape)
            seen.append([level.numpy() for level in self._run(patches, domain, rows)])
            # The windows are those of a segmentation; there is nothing to put together here.
            return np.zeros((*patches.shape[:-1], 1), np.float32)

        slices = self.plan.configuration(self.spatial_dims).slices
        windows = self.discriminator.patch_size, 0.0, batch_size, slices
        sliding_window(prepared.image, look, *windows)
        return [np.concatenate(level).mean(axis=0) for level in zip(*seen, strict=True)]


def _spatial(x):
    return tuple(range(1, len(x.shape) - 1))


def _roughness(x):
    """Mean distance of neighbours along all axes, of each channel: what noise adds."""
    import keras

    steps = []
    for axis in _spatial(x):
        if x.shape[axis] > 1:
            cut = [slice(None)] * len(x.shape)
            ahead, behind = list(cut), list(cut)
            ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
            steps.append(abs(x[tuple(ahead)] - x[tuple(behind)]))
    if not steps:
        return []
    return [sum(keras.ops.mean(step, axis=_spatial(step)) for step in steps)]


def _image_statistics(image):
    """Histogram with soft bins, and roughness."""
    import keras

    width = 2.0 / (BINS - 1)
    found = []
    for centre in np.linspace(-1.0, 1.0, BINS):
        share = keras.ops.relu(1.0 - abs(image - float(centre)) / width)
        found.append(keras.ops.mean(share, axis=_spatial(image)))
    return keras.ops.concatenate([*found, *_roughness(image)], axis=-1)


def _map_statistics(x):
    """Mean, standard deviation and roughness of each channel."""
    import keras

    x = keras.ops.cast(x, "float32")
    found = [keras.ops.mean(x, axis=_spatial(x)), keras.ops.std(x, axis=_spatial(x))]
    return keras.ops.concatenate([*found, *_roughness(x)], axis=-1)


@dataclasses.dataclass(frozen=True)
class Level:
    """Training volumes at one level.

    Attributes:
        means: Mean statistics of each modality, `(modalities, n)`.
        residuals: Training volumes less the mean of their modality, `(volumes, n)`.
        typical: Median distance of a training volume to the others.
    """

    means: np.ndarray
    residuals: np.ndarray
    typical: float = 1.0

    @classmethod
    def fit(cls, vectors, domains, count):
        """From training volumes.

        Args:
            vectors: Their statistics, `(volumes, n)`.
            domains: Modality of each, `(volumes,)`.
            count: Number of modalities; each needs two volumes or more.
        """
        vectors, domains = np.asarray(vectors, np.float64), np.asarray(domains)
        whole = cls._of(vectors, domains, count)
        apart = []
        for n in range(len(vectors)):
            others = np.arange(len(vectors)) != n
            left = cls._of(vectors[others], domains[others], count)
            apart.append(left.distance(vectors[n], domains[n]))
        return dataclasses.replace(whole, typical=max(float(np.median(apart)), 1e-12))

    @classmethod
    def _of(cls, vectors, domains, count):
        means = np.stack([vectors[domains == domain].mean(axis=0) for domain in range(count)])
        return cls(means, vectors - means[domains])

    def distance(self, vector, domain):
        """Squared Mahalanobis distance to a modality, per number, in units of `typical`.

        All modalities share one covariance, to which `SHRINKAGE` of its mean variance is added.
        """
        apart = np.asarray(vector, np.float64) - self.means[domain]
        freedom = max(len(self.residuals) - len(self.means), 1)
        shrunk = SHRINKAGE * (self.residuals**2).sum() / freedom / len(apart) + 1e-12
        # There are far fewer volumes than numbers: the inverse is taken between volumes.
        inner = self.residuals @ self.residuals.T + freedom * shrunk * np.eye(len(self.residuals))
        along = self.residuals @ apart
        found = (apart @ apart - along @ np.linalg.solve(inner, along)) / shrunk
        return max(float(found), 0.0) / len(apart) / float(self.typical)


class UnlikeTraining(UserWarning):
    """A scan raised the alarm of a run (`unigan tune`); the text is that of KUG-D38."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """What the alarm says of a scan.

    Attributes:
        score: How far it is off, in units of a training volume from the others.
        threshold: What validation volumes stay below.
        nearest: Modality that it is most like.
        level: Level that is furthest off.
    """

    score: float
    threshold: float
    nearest: str
    level: str

    @property
    def raised(self):
        """Whether the scan is unlike those of training."""
        return self.score > self.threshold

    def warn(self, where, modality):
        """Warns (`UnlikeTraining`) of a scan that raised the alarm; see `warning`."""
        if self.raised:
            warnings.warn(str(self.warning(where, modality)), UnlikeTraining, stacklevel=3)

    def warning(self, where, modality):
        """KUG-D38 for a scan that raised the alarm; to be shown, not raised."""
        told = f"as {modality}" if modality else "as any modality of the run"
        hint = ""
        if modality and self.nearest != modality:
            hint = f"it is most like {self.nearest}: check --modality"
        return CodedError(
            "KUG-D38",
            where,
            f"a scan that scores {self.score:.3g} {told} ({self.level})",
            f"at most {self.threshold:.3g}, as of validation scans",
            "The run never saw its like, so what it makes of it may mean nothing.",
            hint or "look at the result before using it",
        )


class Alarm:
    """Compares scans with those of training.

    Args:
        descriptor: `Descriptor`.
        fitted: A `Level` for each of its levels.
        threshold: Score above which the alarm is raised; infinite while it is learnt.
    """

    def __init__(self, descriptor, fitted, threshold=math.inf):
        self.descriptor, self.fitted, self.threshold = descriptor, fitted, threshold
        self.plan = descriptor.plan

    def read(self, prepared, modality=None):
        """`Reading` of a scan.

        Args:
            prepared: `data.preprocessing.Prepared` on the plan's grid.
            modality: Name in the plan, or None where it is not known.
        """
        scores = {}
        for domain, name in enumerate(self.plan.modalities):
            found = self.descriptor(prepared, name)
            pairs = zip(self.fitted, found, self.descriptor.levels, strict=True)
            scores[name] = max((level.distance(v, domain), label) for level, v, label in pairs)
        nearest = min(scores, key=lambda name: scores[name][0])
        score, label = scores[modality or nearest]
        return Reading(score, self.threshold, nearest, label)

    def save(self, folder, facts):
        """Writes the network, what was fitted, and `alarm.json`; returns the path of the last."""
        folder = Path(folder)
        self.descriptor.discriminator.save(folder / NETWORK)
        arrays = {}
        for number, level in enumerate(self.fitted):
            for field, value in dataclasses.asdict(level).items():
                arrays[f"{field}_{number}"] = np.asarray(value, np.float32)
        np.savez_compressed(folder / FITTED, **arrays)
        write_json(folder / FILE, finite({"threshold": self.threshold, **facts}))
        return folder / FILE

    @classmethod
    def load(cls, folder):
        """The alarm of a run folder; None where none was learnt.

        Raises:
            CodedError: KUG-T04 for a network that Keras cannot load.
        """
        folder = Path(folder)
        if not (folder / FILE).is_file():
            return None
        discriminator = inference.load_network(folder, NETWORK)
        descriptor = Descriptor(discriminator, Plan.load(folder / "plan.json"))
        fields = [field.name for field in dataclasses.fields(Level)]
        with np.load(folder / FITTED) as arrays:
            stored = range(len(descriptor.levels))
            fitted = [Level(*(arrays[f"{field}_{n}"] for field in fields)) for n in stored]
        threshold = read_json(folder / FILE)["threshold"]
        return cls(descriptor, fitted, math.inf if threshold is None else threshold)


def conformal_threshold(scores, rate=FALSE_ALARMS):
    """Threshold that another scan of the same kind exceeds with a known probability at most.

    Args:
        scores: Scores of validation scans, which nothing was fitted to.
        rate: Wanted probability.

    Returns:
        `(threshold, probability)`: the score of rank `ceil((n + 1) (1 - rate))`; of fewer scans
        than that needs, the largest one, and 1 / (n + 1).
    """
    ordered = sorted(scores)
    rank = math.ceil((len(ordered) + 1) * (1 - rate))
    if rank > len(ordered):
        return ordered[-1], 1 / (len(ordered) + 1)
    return ordered[rank - 1], (len(ordered) + 1 - rank) / (len(ordered) + 1)


def auroc(normal, strange):
    """Probability that a strange scan scores higher than a normal one; ties count one half."""
    pairs = np.subtract.outer(np.asarray(strange, float), np.asarray(normal, float))
    return float(np.mean((pairs > 0) + 0.5 * (pairs == 0))) if pairs.size else math.nan
