"""Do the modalities of a run share one feature space: what its bottleneck tells of the modality.

Vectors are the bottleneck of the segmentor, averaged over each window. A network that has learnt
features of the anatomy alone gives the same cloud for every modality: a probe cannot tell them
apart (accuracy near chance), the squared MMD is near 0, and the centroids of a class lie together.
None of this is a score of segmentation: features of no use to anyone align perfectly.

References: Gretton et al. 2012, A kernel two-sample test, JMLR 13 (unbiased MMD, median heuristic);
Alain and Bengio 2016, Understanding intermediate layers using linear classifier probes,
arXiv:1610.01644.
"""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
from scipy import optimize, special

from keras_unigan import inference
from keras_unigan.config import Study, finite, write_json
from keras_unigan.data import preprocessing, volumes
from keras_unigan.data.windows import sliding_window
from keras_unigan.errors import CodedError
from keras_unigan.truth import check_labels, labelled, public_message

FILE, PICTURE = "alignment.json", "alignment.png"
WINDOWS = 32
"""Most windows of one case, evenly spaced, so that large volumes do not count for more."""
FOLDS = 5
_UP = ("Conv2DTranspose", "Conv3DTranspose", "UpSampling2D", "UpSampling3D", "LinearUpSampling")
_LEAST = 0.25
"""Cells of the bottleneck that a class must fill in a window to have a vector there."""


class Bottleneck:
    """The deepest map of a segmentor, for raw windows.

    Args:
        predictor: `inference.Predictor`.

    Raises:
        CodedError: KUG-T04 for a network with a bottleneck for each modality, or none.
    """

    def __init__(self, predictor):
        import keras

        from keras_unigan import layers

        self.network, self.plan = predictor.network, predictor.plan
        self.spatial_dims = predictor.spatial_dims
        up = [
            layer
            for layer in getattr(self.network, "layers", ())
            if type(layer).__name__ in _UP and not layer.name.startswith("translation")
        ]
        coded = len(self.network.inputs) > 1
        if not up or up[0].name.startswith("m0_") or (coded and not hasattr(self.network, "code")):
            raise CodedError(
                "KUG-T04",
                "alignment",
                f"a {type(self.network).__name__}, which has no bottleneck that modalities share",
                "a network with one, e.g. of joint, uagan or unigan",
            )
        tensor = up[0].input
        self.layer, self.coded = tensor.path if hasattr(tensor, "path") else tensor.name, coded
        self._model = keras.Model(self.network.inputs, tensor)
        self._normalize = layers.IntensityNormalization.from_plan(self.plan)

    def __call__(self, patches, modality, statistics):
        """Maps `(batch, *coarse, features)` of raw windows `(batch, *patch, channels)`."""
        count = len(patches)
        index = -1 if modality is None else self.plan.modalities.index(modality)
        domain = np.full(count, index, np.int32)
        shape = (count, *self.plan.statistics_shape)
        rows = np.broadcast_to(np.asarray(statistics, np.float32), shape)
        image = self._normalize(patches, domain, rows)
        inputs = [image, self.network.code(domain, domain)] if self.coded else image
        return np.asarray(self._model(inputs, training=False), np.float32)


@dataclasses.dataclass(frozen=True)
class Vectors:
    """Bottleneck vectors of the windows of some cases.

    Attributes:
        features: `(windows, n)`.
        modality: Of each window's scan, `(windows,)` of text.
        subject: The same.
        case: The same.
        classes: Name -> vectors of the windows that hold it, averaged over it, `(windows, n)`; NaN
            where a window does not.
    """

    features: np.ndarray
    modality: np.ndarray
    subject: np.ndarray
    case: np.ndarray
    classes: dict[str, np.ndarray]


def read_vectors(predictor, study, cases, known_modality=True, batch_size=8, failed=None):
    """`Vectors` of labelled cases.

    Args:
        predictor: `inference.Predictor`.
        study: `config.Study`.
        cases: Cases of it with label maps.
        known_modality: Whether the network is told the modality.
        batch_size: Windows per step.
        failed: Dictionary that gets case -> why it could not be used.

    Raises:
        CodedError: KUG-T04 for a network without a bottleneck, KUG-D14 where no case can be used.
    """
    bottleneck, labels = Bottleneck(predictor), predictor.plan.labels
    parts, failed = [], {} if failed is None else failed
    for case in cases:
        try:
            plan = predictor.plan
            volume = volumes.read_image(study.path(case.image), plan.channels, case.channel)
            label = volumes.read(study.path(case.label))
            prepared = preprocessing.prepare(volume, plan, label, case.id, case.annotated)
        except CodedError as error:
            failed[case.id] = public_message(error, study)
            continue
        maps, shares = _windows(bottleneck, prepared, case.modality, known_modality, batch_size)
        pooled = maps.reshape(len(maps), -1, maps.shape[-1])
        one = {"all": pooled.mean(axis=1)}
        first = len(labels.names) - len(labels.foreground)
        for index, name in enumerate(labels.foreground, first):
            weight = shares[..., index].reshape(len(maps), -1)
            total = weight.sum(axis=1, keepdims=True)
            mean = np.einsum("wp,wpf->wf", weight, pooled) / np.maximum(total, 1e-9)
            one[name] = np.where(total >= _LEAST, mean, np.nan)
        parts.append((case, one))
    if not parts:
        raise CodedError("KUG-D14", study.name, "no labelled case that can be used", "some")
    stacked = {key: np.concatenate([one[key] for _, one in parts]) for key in parts[0][1]}
    owner = [case for case, one in parts for _ in range(len(one["all"]))]
    named = ([c.modality for c in owner], [c.subject for c in owner], [c.id for c in owner])
    return Vectors(stacked.pop("all"), *map(np.array, named), stacked)


def pooled_windows(bottleneck, prepared, modality, batch_size=8):
    """Vectors of a scan: the bottleneck, averaged over each of its windows.

    Args:
        bottleneck: `Bottleneck`.
        prepared: `data.preprocessing.Prepared` on its plan's grid.
        modality: Name in the plan, or None.
        batch_size: Windows per step.

    Returns:
        float32 `(windows, features)`, at most `WINDOWS` of them.
    """
    maps = _maps(bottleneck, prepared, modality, batch_size)
    return maps.reshape(len(maps), -1, maps.shape[-1]).mean(axis=1)


def _maps(bottleneck, prepared, modality, batch_size):
    slices = bottleneck.plan.configuration(bottleneck.spatial_dims).slices
    patches = _cut(bottleneck, prepared.image, slices)
    return np.concatenate(
        [
            bottleneck(patches[n : n + batch_size], modality, prepared.statistics)
            for n in range(0, len(patches), batch_size)
        ]
    )


def _cut(bottleneck, volume, slices):
    """Windows of a volume, side by side; the same ones of every volume of its size."""
    chosen, seen = bottleneck.plan.configuration(bottleneck.spatial_dims), []

    def look(patches):
        seen.append(patches)
        return np.zeros((*patches.shape[:-1], 1), np.float32)

    sliding_window(volume, look, chosen.patch_size, 0.0, 8, slices)
    patches = np.concatenate(seen)
    return patches[np.unique(np.linspace(0, len(patches) - 1, WINDOWS).astype(int))]


def _windows(bottleneck, prepared, modality, known_modality, batch_size):
    """Bottleneck maps of windows of a case, and the share of each output in each of their cells."""
    plan, dims = bottleneck.plan, bottleneck.spatial_dims
    chosen = plan.configuration(dims)
    maps = _maps(bottleneck, prepared, modality if known_modality else None, batch_size)
    label_map = prepared.label_map.astype(np.float32)
    indices = _cut(bottleneck, label_map, 1)[..., 0].astype(np.int64)
    # Not labelled (255) is part of no output.
    membership = np.zeros((256, len(plan.labels.names)), np.float32)
    membership[: len(plan.labels.values)] = plan.labels.membership
    share = membership[indices]
    for axis, (size, coarse) in enumerate(zip(chosen.patch_size, maps.shape[1:-1], strict=True), 1):
        cells = (*share.shape[:axis], coarse, size // coarse, *share.shape[axis + 1 :])
        share = share.reshape(cells).mean(axis=axis + 1)
    return maps, share


def standardize(features):
    """Each number less its mean, over its standard deviation; one that never changes is 0."""
    sd = features.std(axis=0)
    return (features - features.mean(axis=0)) / np.where(sd > 1e-12, sd, 1.0)


def fit_probe(features, targets, count, penalty=1.0):
    """Multinomial logistic regression.

    Args:
        features: `(n, f)`, standardised.
        targets: int `(n,)`, 0 to count - 1.
        count: Number of classes.
        penalty: Weight of half the squared weights beside the sum of the cross-entropies.

    Returns:
        Weights `(f + 1, count)`; the last row is the offset, which is not penalised.
    """
    x = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    truth = np.eye(count)[targets]

    def loss(flat):
        weights = flat.reshape(x.shape[1], count)
        logits = x @ weights
        log = logits - special.logsumexp(logits, axis=1, keepdims=True)
        value = -(truth * log).sum() + penalty / 2 * (weights[:-1] ** 2).sum()
        gradient = x.T @ (np.exp(log) - truth)
        gradient[:-1] += penalty * weights[:-1]
        return value, gradient.ravel()

    start = np.zeros(x.shape[1] * count)
    found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 200})
    return found.x.reshape(x.shape[1], count)


def probe_accuracy(features, modality, subject):
    """How well a linear probe tells the modality of windows of subjects that it was not fitted to.

    Args:
        features: `(windows, n)`.
        modality: Of each window.
        subject: Of each window; all windows of a subject lie in one fold.

    Returns:
        Dictionary with `balanced_accuracy` (mean over modalities, over all folds together),
        `chance`, and `folds`; NaN and 0 where a modality has fewer than two subjects.
    """
    names, targets = np.unique(modality, return_inverse=True)
    owned = {s: tuple(sorted(set(modality[subject == s]))) for s in sorted(set(subject))}
    least = min(sum(name in own for own in owned.values()) for name in names)
    folds = min(FOLDS, least)
    result = {"balanced_accuracy": float("nan"), "chance": 1 / len(names), "folds": 0}
    if len(names) < 2 or folds < 2:
        return result
    # Subjects of one modality come one after the other, so that each fold gets some of each.
    order = sorted(owned, key=lambda s: (owned[s], s))
    fold = {s: n % folds for n, s in enumerate(order)}
    place, right = np.array([fold[s] for s in subject]), np.zeros(len(targets), bool)
    for number in range(folds):
        held = place == number
        mean, sd = features[~held].mean(axis=0), features[~held].std(axis=0)
        scaled = (features - mean) / np.where(sd > 1e-12, sd, 1.0)
        weights = fit_probe(scaled[~held], targets[~held], len(names))
        answer = np.argmax(scaled[held] @ weights[:-1] + weights[-1], axis=1)
        right[held] = answer == targets[held]
    accuracy = [right[targets == n].mean() for n in range(len(names))]
    return {**result, "balanced_accuracy": float(np.mean(accuracy)), "folds": folds}


def mmd2(first, second):
    """Unbiased squared maximum mean discrepancy with a Gaussian kernel; may be below 0.

    Args:
        first: `(n, f)`, two rows or more.
        second: `(m, f)`, the same.

    Returns:
        A float; NaN for fewer rows. The kernel's width is the median distance of all rows.
    """
    n, m = len(first), len(second)
    if min(n, m) < 2:
        return float("nan")
    rows = np.concatenate([first, second]).astype(np.float64)
    squares = (rows**2).sum(axis=1)
    apart = np.maximum(squares[:, None] + squares[None] - 2 * rows @ rows.T, 0.0)
    width = np.median(apart[np.triu_indices(n + m, 1)])
    kernel = np.exp(-apart / (2 * width)) if width > 0 else np.ones_like(apart)
    within = [(part.sum() - np.trace(part)) / (len(part) * (len(part) - 1))
              for part in (kernel[:n, :n], kernel[n:, n:])]  # fmt: skip
    return float(sum(within) - 2 * kernel[:n, n:].mean())


def centroid_distance(first, second):
    """Distance of two clouds' means, in units of their spread (root of the mean total variance)."""
    first, second = (rows[~np.isnan(rows).any(axis=1)] for rows in (first, second))
    if min(len(first), len(second)) < 2:
        return float("nan")
    spread = np.sqrt((first.var(axis=0, ddof=1).sum() + second.var(axis=0, ddof=1).sum()) / 2)
    apart = np.linalg.norm(first.mean(axis=0) - second.mean(axis=0))
    return float(apart / spread) if spread > 0 else float("nan")


def measure(vectors):
    """What the vectors tell of the modality; JSON-ready.

    Args:
        vectors: `Vectors`.

    Returns:
        Dictionary with `windows` and `subjects` (modality -> number), `probe`
        (`probe_accuracy`), `mmd2` (`mean` over pairs and `pairs`), `centroids` (per class `name`,
        `distance`, mean over pairs, and `pairs`) and `pca` (`explained`: shares of the variance;
        `points`: one `[x, y]` a window, with `modality` and `case` in the same order).
    """
    scaled, names = standardize(vectors.features), sorted(set(vectors.modality.tolist()))
    pairs = list(itertools.combinations(names, 2))
    own = {name: vectors.modality == name for name in names}
    apart = [mmd2(scaled[own[a]], scaled[own[b]]) for a, b in pairs]
    centroids = []
    for name, rows in vectors.classes.items():
        far = [centroid_distance(rows[own[a]], rows[own[b]]) for a, b in pairs]
        centroids.append({"name": name, "distance": _mean(far), "pairs": _listed(pairs, far)})
    # A second column of zeros, so that features of one number have two components too.
    _, values, directions = np.linalg.svd(np.pad(scaled, [(0, 0), (0, 1)]), full_matrices=False)
    points = scaled @ directions[:2, :-1].T
    variance = values**2 / max((values**2).sum(), 1e-12)
    return {
        "windows": {name: int(own[name].sum()) for name in names},
        "subjects": {name: len(set(vectors.subject[own[name]])) for name in names},
        "probe": probe_accuracy(vectors.features, vectors.modality, vectors.subject),
        "mmd2": {"mean": _mean(apart), "pairs": _listed(pairs, apart)},
        "centroids": centroids,
        "pca": {
            "explained": variance[:2].tolist(),
            "points": np.round(points, 4).tolist(),
            "modality": vectors.modality.tolist(),
            "case": vectors.case.tolist(),
        },
    }


def _mean(values):
    kept = [value for value in values if value == value]
    return float(np.mean(kept)) if kept else float("nan")


def _listed(pairs, values):
    return [{"first": a, "second": b, "value": v} for (a, b), v in zip(pairs, values, strict=True)]


def draw(found, path):
    """Writes the first two principal components of the windows, a colour a modality, as PNG."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(5.5, 4.5), layout="constrained")
    panel = figure.subplots()
    points, modality = np.array(found["pca"]["points"]), np.array(found["pca"]["modality"])
    for name in found["windows"]:
        mine = points[modality == name]
        panel.scatter(mine[:, 0], mine[:, 1], s=18, alpha=0.6, label=name, linewidths=0)
    shares = [f"component {n + 1} ({s:.0%})" for n, s in enumerate(found["pca"]["explained"])]
    panel.set(xlabel=shares[0], ylabel=shares[1], title="Bottleneck of each window")
    panel.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def evaluate_run(run, study, split="test", known_modality=True, limit=None):
    """Measures the alignment of a run and writes `alignment.json` and `alignment.png` into it.

    Args:
        run: Run folder.
        study: `config.Study`, or path of its file.
        split: "train", "val" or "test"; of the labelled cases.
        known_modality: Whether the network is told the modality.
        limit: Only the first so many cases.

    Returns:
        The dictionary of `measure` with `split`, `known_modality`, `cases`, `failed`, `layer` (the
        tensor that was looked at), `features` (its channels) and `outputs` (paths written).

    Raises:
        CodedError: KUG-D14 for a split without two modalities; see `read_vectors`.
    """
    study = study if isinstance(study, Study) else Study.load(study)
    predictor = inference.load(run)
    check_labels(predictor.plan, study)
    cases, failed = labelled(study, split)[:limit], {}
    vectors = read_vectors(predictor, study, cases, known_modality, failed=failed)
    found = sorted(set(vectors.modality.tolist()))
    if len(found) < 2:
        raise CodedError("KUG-D14", study.name, f"cases of {found} only", "two modalities or more")
    settings = {"split": split, "known_modality": known_modality, "failed": failed}
    settings |= {"cases": len(set(vectors.case)), "features": vectors.features.shape[1]}
    result = {**settings, "layer": Bottleneck(predictor).layer, **measure(vectors)}
    paths = [Path(run) / FILE, Path(run) / PICTURE]
    write_json(paths[0], finite(result))
    draw(result, paths[1])
    return {**result, "outputs": [str(path) for path in paths]}
