"""Label maps for training scans that nobody labelled, from those that somebody did: an atlas.

Where only one modality has labels, a network that learns from them follows intensities, which mean
something else in the others. What the modalities do share is where things are. So the labelled
subjects' label maps, laid over one another, say how often a voxel at a place of the body is of each
class; and the scans of another modality say by expectation maximisation how bright each class is
there. Both together label the scan. Nothing has to be registered but the boxes around the bodies.

It needs anatomy that lies at about the same place in every subject. `check` measures that: each
labelled scan is labelled by the atlas of the others.

Reference: Van Leemput et al. 1999, Automated model-based tissue classification of MR images of the
brain, doi:10.1109/42.811270; Ashburner & Friston 2005, Unified segmentation,
doi:10.1016/j.neuroimage.2005.02.018. Here classes have histograms and not Gaussians, so that one
with a rim or several tissues can be described, and there is no deformation.
"""

import collections
import dataclasses
import os

import numpy as np
from scipy import ndimage

from keras_unigan.config import IGNORE, SPLITS
from keras_unigan.data import nifti, preprocessing, volumes
from keras_unigan.data.cases import relative_to
from keras_unigan.errors import CodedError

GRID = (64, 64, 64)
"""Voxels of the atlas, over the box around each body."""

BLUR = 2.0
"""Standard deviation in voxels of the atlas by which subjects may lie apart."""

FLOOR = 1e-4
"""What every class has everywhere, so that none is ruled out by place alone."""

BINS, BIN_BLUR = 128, 1.5
ROUNDS = 15
"""Rounds of expectation maximisation; the histograms hardly move after ten."""

CONFIDENCE = 0.6
"""Least probability of a voxel that is labelled; the others are left to nobody (255)."""

LEAST_DICE = 0.3
"""A name that the atlas finds worse than that in labelled scans is not annotated by it."""

CHECKED = 5
"""Labelled scans that `check` labels by the others."""

MARK = "keras_unigan: labels of an atlas, not of a person"


@dataclasses.dataclass(frozen=True)
class Scan:
    """A scan as the atlas sees it.

    Attributes:
        volume: `data.nifti.Volume` in its own orientation.
        box: Slices of the box around the body, in RAS+.
        ranks: uint8 intensities in RAS+ as ranks among those of the scan, 0 outside the body.
        coarse: The ranks within the box, at the voxels of the atlas.
    """

    volume: nifti.Volume
    box: tuple[slice, ...]
    ranks: np.ndarray
    coarse: np.ndarray


def stretch(array, shape, order=1):
    """An array resampled to a shape, corner to corner."""
    factors = [new / old for new, old in zip(shape, array.shape, strict=True)]
    return ndimage.zoom(array, factors, order=order, mode="nearest", grid_mode=True)


def ranked(array):
    """Intensities as `BINS` - 1 ranks of equally many voxels, 1 the darkest; background is 0.

    Ranks know no window, gain or unit, so that scans of one modality can be counted together.
    """
    inside = preprocessing.nonbackground(array)
    edges = np.quantile(array[inside], np.linspace(0, 1, BINS)[1:-1])
    return np.where(inside, 1 + np.searchsorted(edges, array, side="right"), 0).astype(np.uint8)


def body_box(array):
    """Slices of the box around the largest part that is not background."""
    inside = preprocessing.nonbackground(array)
    parts, count = ndimage.label(ndimage.binary_opening(inside, iterations=2))
    if not count:
        return preprocessing.crop_box(array, inside)
    sizes = np.bincount(parts.ravel())[1:]
    return ndimage.find_objects(parts)[int(np.argmax(sizes))]


def read_scan(study, case):
    """Reads a scan of one channel.

    Raises:
        CodedError: KUG-D01 to KUG-D12 for one that cannot be used.
    """
    volume = volumes.read_image(study.path(case.image), 1, case.channel)
    preprocessing.check_image(volume, case.id)
    array = nifti.to_ras(volume).array
    ranks, box = ranked(array), body_box(array)
    coarse = np.rint(stretch(ranks[box].astype(np.float32), GRID)).astype(np.uint8)
    return Scan(volume, box, ranks, coarse)


def read_truth(study, case, scan):
    """Label-map indices of a labelled case in RAS+, uint8; 255 where nobody looked."""
    label = nifti.to_ras(volumes.read(study.path(case.label)))
    preprocessing.check_pair(nifti.to_ras(scan.volume), label, case.id)
    return preprocessing.encode_labels(label.array, study.labels, case.id)


def memberships(truth, scan, count):
    """Label-map indices as shares at the atlas's voxels.

    Args:
        truth: Of `read_truth`.
        scan: `Scan` of the case.
        count: Number of indices.

    Returns:
        float32 `(count, *GRID)`; 0 throughout where nobody looked.
    """
    own = truth[scan.box]
    return np.stack([stretch((own == index).astype(np.float32), GRID) for index in range(count)])


def prior_of(share):
    """Probability of each index at each voxel of the atlas.

    Args:
        share: Mean of the subjects' `memberships`, which is blurred.
    """
    blurred = [ndimage.gaussian_filter(index, BLUR) for index in share]
    prior = np.maximum(blurred, 0.0) + FLOOR
    return prior / prior.sum(axis=0)


def histograms(prior, scans):
    """How often each index has each rank in the scans of one modality, by EM.

    Args:
        prior: `(indices, *GRID)`.
        scans: Their `coarse` ranks, each of shape `GRID`.

    Returns:
        `(indices, BINS)`, rows that sum to 1.
    """
    likely = np.ones((len(prior), BINS))
    for _ in range(ROUNDS):
        counts = np.zeros_like(likely)
        for ranks in scans:
            posterior = prior * likely[:, ranks]
            posterior /= posterior.sum(axis=0)
            for row, weights in zip(counts, posterior, strict=True):
                row += np.bincount(ranks.ravel(), weights.ravel(), BINS)
        likely = ndimage.gaussian_filter1d(counts, BIN_BLUR, axis=1) + 1e-3
        likely /= likely.sum(axis=1, keepdims=True)
    return likely


def label(prior, likely, scan, confidence=CONFIDENCE):
    """Label-map indices of a scan in RAS+, uint8; 255 where no index has the confidence.

    Args:
        prior: Of `prior_of`.
        likely: Of `histograms`, for the scan's modality.
        scan: `Scan`.
        confidence: Least probability.
    """
    ranks = scan.ranks[scan.box]
    best, index, total = np.zeros(ranks.shape), np.zeros(ranks.shape, np.uint8), 0.0
    # One index after the other: all at once would not fit for large scans.
    for place, row in enumerate(prior):
        found = np.maximum(stretch(row, ranks.shape), 0.0) * likely[place][ranks]
        total = total + found
        index = np.where(found > best, place, index).astype(np.uint8)
        best = np.maximum(best, found)
    sure = best >= confidence * np.maximum(total, np.finfo(float).tiny)
    result = np.zeros(scan.ranks.shape, np.uint8)
    result[scan.box] = np.where(sure, index, IGNORE)
    return result


def check(study, cases, total, confidence=CONFIDENCE):
    """Dice of each name in labelled scans that the atlas of the others labels.

    Args:
        study: `config.Study`.
        cases: Labelled cases that the atlas was made of.
        total: Sum of their `memberships`.
        confidence: As in `label`.

    Returns:
        Name -> mean Dice over the first `CHECKED` cases, of voxels that were labelled; NaN where no
        truth has the name, or with fewer than two cases.
    """
    found = collections.defaultdict(list)
    for case in cases[:CHECKED] if len(cases) > 1 else ():
        scan = read_scan(study, case)
        truth = read_truth(study, case, scan)
        others = total - memberships(truth, scan, len(total))
        prior = prior_of(others / (len(cases) - 1))
        made = label(prior, histograms(prior, [scan.coarse]), scan, confidence)
        asked = (made != IGNORE) & (truth != IGNORE)
        for name, own in _indices(study.labels).items():
            first, second = (np.isin(array, own) & asked for array in (truth, made))
            if first.any():
                both = np.count_nonzero(first & second)
                found[name].append(2 * both / (np.count_nonzero(first) + np.count_nonzero(second)))
    return {name: float(np.mean(found[name] or np.nan)) for name in study.labels.foreground}


def _indices(labels):
    """Name -> label-map indices that belong to it."""
    first = len(labels.names) - len(labels.foreground)
    columns = np.transpose(labels.membership)[first:]
    return {n: np.flatnonzero(c) for n, c in zip(labels.foreground, columns, strict=True)}


def prelabel(study, folder, confidence=CONFIDENCE, say=None):
    """Labels the training scans of a study that have no label map, by an atlas of those that do.

    The atlas is made of the training cases whose label maps show all names. Names that it does not
    find in labelled scans (`check`; lesions lie anywhere) are not annotated in what it labels.
    Validation and test are left alone.

    Args:
        study: `config.Study` with splits.
        folder: Where label maps go, `labels/<case>.nii.gz`.
        confidence: Least probability of a voxel that is labelled.
        say: Called with one sentence per case.

    Returns:
        The study with the new label maps, its cases `prelabelled`; and a dictionary: `labelled`
        (cases of the atlas), `prelabelled` (cases), `dice` (name -> that of `check`, None where it
        is not known), `annotated` (names), `failed` (case -> why).

    Raises:
        CodedError: KUG-D14 without labelled or without unlabelled training cases, or where none of
            the labelled can be read; KUG-D39 where the atlas finds no name.
    """
    say = say or (lambda _: None)
    train = [case for case in study.cases if case.split == SPLITS[0] and not case.synthetic]
    known = [c for c in train if c.label and not c.annotated and not c.prelabelled]
    wanted = [case for case in train if not case.label]
    for cases, what in ((known, "fully labelled"), (wanted, "unlabelled")):
        if not cases:
            raise CodedError(
                "KUG-D14",
                study.name,
                f"no {what} training case",
                "one at least",
                "An atlas of labelled training scans labels the others.",
            )
    failed: dict[str, str] = {}
    used, total = [], 0.0
    # One scan at a time: many large ones do not fit into memory together.
    for case, scan in _read(study, known, failed):
        try:
            truth = read_truth(study, case, scan)
            total = total + memberships(truth, scan, len(study.labels.values))
            used.append(case)
        except CodedError as error:
            failed[case.id] = str(error)
    if not used:
        first = f"no labelled scan that can be read ({next(iter(failed.values()))})"
        raise CodedError("KUG-D14", study.name, first, "one", fix="unigan check names them all")
    dice = check(study, used, total, confidence)
    some = np.max(total, axis=(1, 2, 3)) > 0
    seen = {name: some[own].any() for name, own in _indices(study.labels).items()}
    annotated = [n for n, d in dice.items() if seen[n] and not d < LEAST_DICE]
    if not annotated:
        raise CodedError(
            "KUG-D39",
            study.name,
            f"an atlas that finds no name in labelled scans (Dice {_text(dice)})",
            f"Dice of at least {LEAST_DICE} for one",
            "Things do not lie at about the same place in all scans.",
            "train on the labelled scans, with --augment contrast",
        )
    prior, made = prior_of(total / len(used)), {}
    for modality in study.modalities:
        own = [case for case in wanted if case.modality == modality]
        likely = histograms(prior, [scan.coarse for _, scan in _read(study, own, failed)])
        for case, scan in _read(study, [case for case in own if case.id not in failed], failed):
            index_map = label(prior, likely, scan, confidence)
            made[case.id] = _write(study, folder, case, scan, index_map, annotated)
            share = np.mean(index_map[scan.box] == IGNORE)
            say(f"{case.id}: labelled but for {share:.0%} of its box")
    cases = tuple(made.get(case.id, case) for case in study.cases)
    report = {
        "labelled": [case.id for case in used],
        "prelabelled": list(made),
        "dice": {name: None if np.isnan(value) else value for name, value in dice.items()},
        "annotated": annotated,
        "failed": failed,
    }
    return dataclasses.replace(study, cases=cases), report


def _read(study, cases, failed):
    """Case and scan of those that can be read; the others are noted in `failed`."""
    for case in cases:
        try:
            scan = read_scan(study, case)
        except CodedError as error:
            failed[case.id] = str(error)
        else:
            yield case, scan


def _text(dice):
    return ", ".join(f"{name} {value:.2f}" for name, value in dice.items())


def _write(study, folder, case, scan, index_map, annotated):
    """Writes a label map on the scan's own grid; returns the case with it."""
    values = np.full(IGNORE + 1, IGNORE, np.uint8)
    values[: len(study.labels.values)] = [own[0] for own in study.labels.values]
    path = os.path.join(folder, "labels", f"{case.id}.nii.gz")
    native = nifti.from_ras(values[index_map], scan.volume)
    nifti.write(path, native, reference=scan.volume, description=MARK)
    every = len(annotated) == len(study.labels.foreground)
    names = None if every else tuple(annotated)
    path = os.path.abspath(path)
    return dataclasses.replace(case, label=path, annotated=names, prelabelled=True)


def save(study, folder):
    """Writes the study beside its new label maps, its paths relative; returns the path."""
    path = os.path.join(folder, "study.json")
    relative_to(study, path).save(path)
    return path
