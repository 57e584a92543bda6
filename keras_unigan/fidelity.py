"""Do sets of translations look like sets of scans, without being those that were trained on.

Fréchet and kernel distance, with intervals, and the nearest training scan of each translation.

The features are in-house: the bottleneck of this package's own segmentor, averaged over windows.
They are not those of an Inception network, so numbers compare within a study and a judge only, and
never with published FID or KID. Sets of one study are small: read the intervals, which come from
drawing cases again, and not the numbers alone.

References: Heusel et al. 2017, GANs trained by a two time-scale update rule, arXiv:1706.08500
(Fréchet distance); Bińkowski et al. 2018, Demystifying MMD GANs, arXiv:1801.01401 (kernel
distance).
"""

import math

import numpy as np
from scipy import linalg

from keras_unigan import layers, translation
from keras_unigan.alignment import Bottleneck, pooled_windows
from keras_unigan.data import nifti, preprocessing, volumes
from keras_unigan.errors import CodedError
from keras_unigan.synthesis import memorisation

COMPONENTS = 8
"""Principal components of the scans on which the Fréchet distance is taken: a covariance of more
numbers than there are windows has no meaning."""
DRAWS = 200
MOST_CASES = 32
"""Training cases of a modality that translations are compared with one by one."""
FEATURES = "in-house: bottleneck of the judging segmentor, not Inception; within one study only"


def frechet_distance(real, made):
    """Squared Fréchet distance of Gaussians fitted to two sets.

    Args:
        real: `(n, f)`, more rows than columns.
        made: `(m, f)`, the same.

    Returns:
        A float of 0 or more; NaN for fewer than two rows.
    """
    if min(len(real), len(made)) < 2:
        return math.nan
    apart = real.mean(axis=0) - made.mean(axis=0)
    first, second = (np.atleast_2d(np.cov(rows, rowvar=False)) for rows in (real, made))
    # The trace of the root of the product, through a symmetric matrix of the same eigenvalues.
    values, vectors = linalg.eigh(first)
    root = vectors * np.sqrt(np.maximum(values, 0.0)) @ vectors.T
    both = np.sqrt(np.maximum(linalg.eigvalsh(root @ second @ root), 0.0)).sum()
    return max(float(apart @ apart + np.trace(first) + np.trace(second) - 2 * both), 0.0)


def kernel_distance(real, made):
    """Unbiased squared MMD with the cubic kernel `(x y / f + 1)^3`; may be below 0.

    Args:
        real: `(n, f)`.
        made: `(m, f)`.

    Returns:
        A float; NaN for fewer than two rows.
    """
    n, m = len(real), len(made)
    if min(n, m) < 2:
        return math.nan
    kernel = lambda a, b: (a @ b.T / a.shape[1] + 1.0) ** 3  # noqa: E731
    within = [
        (found.sum() - np.trace(found)) / (len(found) * (len(found) - 1))
        for found in (kernel(real, real), kernel(made, made))
    ]
    return float(sum(within) - 2 * kernel(real, made).mean())


def distances(real, made, draws=DRAWS, seed=0):
    """Both distances of two sets of cases, with 95 % intervals over cases.

    The intervals are basic bootstrap ones: sets drawn again hold cases twice, which moves both
    distances up, and that much is taken off again.

    Args:
        real: List of arrays `(windows, f)`, one a scan.
        made: The same, one a translation.
        draws: Times that cases are drawn again.
        seed: Of the draws.

    Returns:
        Dictionary of `frechet`, `kernel` and for each `_low` and `_high` (NaN for fewer than two
        cases on a side), `real_cases`, `made_cases`, `real_windows`, `made_windows`.
    """
    rows = np.concatenate(real)
    mean, sd = rows.mean(axis=0), rows.std(axis=0)
    scale = np.where(sd > 1e-12, sd, 1.0)
    real, made = ([(part - mean) / scale for part in parts] for parts in (real, made))
    _, _, directions = np.linalg.svd(np.concatenate(real), full_matrices=False)
    basis = directions[: max(1, min(COMPONENTS, len(rows) // 4))].T

    def both(first, second):
        first, second = np.concatenate(first), np.concatenate(second)
        return frechet_distance(first @ basis, second @ basis), kernel_distance(first, second)

    result = dict(zip(("frechet", "kernel"), both(real, made), strict=True))
    random, drawn = np.random.default_rng(seed), []
    if min(len(real), len(made)) > 1:
        for _ in range(draws):
            parts = [[p[n] for n in random.integers(0, len(p), len(p))] for p in (real, made)]
            drawn.append(both(*parts))
    for place, name in enumerate(("frechet", "kernel")):
        values = [d[place] for d in drawn]
        ends = np.percentile(values, (97.5, 2.5)) if values else (math.nan, math.nan)
        low, high = (2 * result[name] - float(end) for end in ends)
        result |= {f"{name}_low": max(low, 0.0) if name == "frechet" else low}
        result |= {f"{name}_high": max(high, 0.0) if name == "frechet" else high}
    counts = {"real_cases": len(real), "made_cases": len(made)}
    counts |= {"real_windows": len(rows), "made_windows": sum(map(len, made))}
    return result | counts


class Collector:
    """Features of scans and of translations, as a segmentor sees them on disk.

    Args:
        predictor: `inference.Predictor` of the judge.

    Raises:
        CodedError: KUG-T04 for a judge whose modalities share no bottleneck.
    """

    def __init__(self, predictor):
        self.bottleneck, self.plan = Bottleneck(predictor), predictor.plan
        self.real: dict[str, list] = {}
        self.made: dict[tuple[str, str], list] = {}

    def see_scan(self, volume, modality, where):
        """Adds a scan; a modality that the judge does not know is left out."""
        if modality in self.plan.modalities:
            prepared = preprocessing.prepare(volume, self.plan, None, where)
            vectors = pooled_windows(self.bottleneck, prepared, modality)
            self.real.setdefault(modality, []).append(vectors)

    def see_translation(self, target, method, array, affine):
        """Adds a translation, as intensities of the target; one of a single grey has no features.

        Args:
            target: Modality.
            method: What made it.
            array: Intensities on the RAS+ grid.
            affine: Of that grid.
        """
        if target in self.plan.modalities and array.min() < array.max():
            prepared = preprocessing.prepare(nifti.Volume(array, affine), self.plan, None, method)
            vectors = pooled_windows(self.bottleneck, prepared, target)
            self.made.setdefault((target, method), []).append(vectors)

    def rows(self):
        """One dictionary per target and method: those of `distances`."""
        found = []
        for (target, method), made in self.made.items():
            if target in self.real:
                row = {"target": target, "method": method}
                found.append(row | distances(self.real[target], made))
        return found


def collector(predictor):
    """`Collector` of a judge, and why there is none.

    Returns:
        `(Collector, "")`, or `(None, reason)`.
    """
    if predictor is None:
        return None, "no segmentor to take features of"
    try:
        return Collector(predictor), ""
    except CodedError as error:
        return None, str(error)


class Observer:
    """Follows `translation_scores.translation_rows`: what only shows in sets of translations.

    Args:
        plan: `config.Plan` of the translators.
        study: `config.Study`; its training cases are what might have been learnt by heart.
        predictor: `inference.Predictor` of the judge, or None.
    """

    def __init__(self, plan, study, predictor):
        self.plan, self.study = plan, study
        self.collector, self.reason = collector(predictor)
        self._seen: set[str] = set()
        self._audit = memorisation.Audit(self._training_images)
        self._nearest: dict[tuple[str, str], list] = {}

    def __call__(self, case, target, method, image, scene):
        """Takes note of one translation.

        Args:
            case: `config.Case` of the source.
            target: Modality.
            method: What made it.
            image: Translation in [-1, 1] on the RAS+ grid.
            scene: What all translations of the case share: `image`, `inside`.
        """
        if self.collector is not None:
            if case.id not in self._seen:
                self.collector.see_scan(scene.image, case.modality, case.id)
            raw = translation.to_intensities(image, scene.inside, self.plan.normalization[target])
            self.collector.see_translation(target, method, raw, scene.image.affine)
        self._seen.add(case.id)
        found = self._audit(_grey(image), target)
        self._nearest.setdefault((target, method), []).append({"source": case.id, **found})

    def _training_images(self, modality):
        """Training cases of a modality, normalised, those that can be read."""
        normalize, count = layers.IntensityNormalization.from_plan(self.plan), 0
        index = np.array([self.plan.modalities.index(modality)], np.int32)
        for case in self.study.cases:
            if case.split == "train" and case.modality == modality and count < MOST_CASES:
                try:
                    path = self.study.path(case.image)
                    read = volumes.read_image(path, self.plan.channels, case.channel)
                    preprocessing.check_image(read, case.id)
                except CodedError:
                    continue
                count += 1
                array = nifti.to_ras(read).array.astype(np.float32)
                shown = array if array.ndim > 3 else array[..., None]
                rows = preprocessing.statistics(array)[None]
                image = np.asarray(normalize(shown[None], index, rows))[0]
                inside = preprocessing.nonbackground(array)[..., None]
                yield case.id, _grey(np.where(inside, image, -1.0))

    def summary(self):
        """What was found, JSON-ready.

        Returns:
            Dictionary with `features` (what they are), `distances` (rows of `Collector.rows`),
            `reason` (why there are none), and `memorisation`: per target and method `cases`,
            `copies`, `distance` (median to the nearest training scan), `usual` (median of a
            training scan to the nearest other) and `nearest` (one a translation, see
            `synthesis.memorisation`).
        """
        found = []
        for (target, method), rows in self._nearest.items():
            known = [row["distance"] for row in rows if row["distance"] is not None]
            line = {"target": target, "method": method, "cases": len(rows)}
            line["copies"] = sum(bool(row["copy"]) for row in rows)
            line["distance"] = float(np.median(known)) if known else math.nan
            found.append({**line, "usual": rows[0]["usual"], "nearest": rows})
        made = self.collector.rows() if self.collector else []
        reason = self.reason if not self.collector else ""
        return {
            "features": FEATURES,
            "distances": made,
            "reason": reason,
            "memorisation": found,
        }


def _grey(image):
    """An image without its channels."""
    return image.mean(axis=-1) if image.ndim > 3 else image
