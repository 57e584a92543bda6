"""Copies: the same content under two names, and near-duplicates that give a test set away.

Each image leaves a hash, a thumbnail of 8 KiB and a sketch of 1 KiB, so the search needs no file
again. The thumbnail finds copies of another gain, noise or size: the volume in RAS+, cut to the box
that holds its mass, at 16 voxels a side and without its low frequencies, as those are alike in all
scans of one body part; mirrored ones are compared too. The sketch finds what was cropped, however
much, or mirrored, as long as voxels kept their values: the smallest hashes of all runs of voxels.

The threshold of thumbnails was set on what was measured, with nothing held back: over 141 scans of
brains, prostates and hippocampi (up to 12 of each data set and modality), two subjects of one data
set and modality correlate by 0.927 at most, mirrored or not; copies of a third of them with noise
(5 and 10 % of the standard deviation: 0.998), another gain, gamma 0.8, blur or 0.8 times the voxels
by 0.976 at least. Where all images of a modality are
alike (phantoms of plain ellipsoids correlate by up to 0.99), the threshold rises with what is usual
among them; see `limits`. Two subjects share 6 % of their runs at most; three
quarters of an image along each axis share 26 % with the whole at least (8-bit prostates), an image
that lost a voxel on every side 78 %. A copy that was cropped into the anatomy and got other values
as well can be missed (correlation 0.86).
"""

import hashlib
import itertools

import numpy as np
from scipy import ndimage

from keras_unigan.data import nifti

SIDE = 16
"""Voxels of a thumbnail along each axis."""
SIMILAR = 0.955
"""Correlation from which two thumbnails are near-duplicates."""
_SPREAD = 8.0  # how much closer than usual a copy must be
_SAMPLE = 64  # images of a modality that say what is usual
_NOISE = 0.1  # of what only one voxel in a hundred exceeds
_REDUCED = 40  # voxels along an axis before the thumbnail is cut
_HIGH_PASS = 1.0  # voxels of the thumbnail
_BLOCK = 2048
_RUN = 9  # voxels of a run
_CHANGES = 5  # steps within a run that are not 0, so that edges of plain areas do not count
_KEPT, _FEWEST = 128, 16  # hashes of a sketch
_COMMON = 50  # images from which a hash tells nothing
SHARED = 0.2
"""Share of runs from which two sketches are of one image."""


def signature(volume):
    """What is kept of an image.

    Args:
        volume: `nifti.Volume`.

    Returns:
        blake2b digest of the RAS+ values as float32 (so that orientation, compression and voxel
        type make no difference), what `thumbnail` and what `sketch` return.
    """
    array = np.ascontiguousarray(nifti.to_ras(volume).array, np.float32)
    digest = hashlib.blake2b(repr(array.shape).encode(), digest_size=16)
    digest.update(array)
    if array.ndim > 3:
        # Sums of channels show the same places, and are the same where the values are.
        array = np.ascontiguousarray(array.sum(axis=-1))
    return digest.hexdigest(), thumbnail(array), sketch(array)


def sketch(array):
    """The smallest hashes of runs of voxels along x, read from either end.

    Args:
        array: float32 (x, y, z).

    Returns:
        uint64 array of `_KEPT` hashes at most, sorted; None for images that are too plain.
    """
    if len(array) < _RUN:
        return None
    half = _RUN // 2
    bits = (array + np.float32(0)).view(np.uint32)
    mixed = bits * np.uint32(0x9E3779B1)
    mixed ^= mixed >> np.uint32(15)
    inner = slice(half, len(array) - half)
    # One run in eight, chosen by its own values, so that a copy chooses the same ones.
    chosen = mixed[half - 1 : -half - 1] + mixed[half + 1 : len(array) - half + 1]
    chosen = (chosen ^ mixed[inner]) & np.uint32(7) == 0
    chosen &= bits[half - 1 : -half - 1] != bits[inner]
    x, y, z = np.nonzero(chosen)
    runs = np.stack([bits[x + i, y, z] for i in range(_RUN)], axis=1).astype(np.uint64)
    runs = runs[np.count_nonzero(np.diff(runs, axis=1), axis=1) >= _CHANGES]
    powers = np.array([pow(0x9E3779B97F4A7C15, i + 1, 2**64) for i in range(_RUN)], np.uint64)
    hashes = np.minimum(runs @ powers, runs[:, ::-1] @ powers)
    hashes ^= hashes >> np.uint64(29)
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    hashes ^= hashes >> np.uint64(32)
    found = np.unique(hashes)[:_KEPT]
    return found if len(found) >= _FEWEST else None


def thumbnail(array):
    """High-pass image of unit length: float16 (side, side, side), one voxel where there is one."""
    array = _reduce(np.nan_to_num(array, nan=0.0, posinf=0.0, neginf=0.0))
    corner = np.median(array[np.ix_(*[(0, -1)] * 3)])
    mass = np.abs(array - corner)
    # Noise in the background has mass too, and would move the box.
    mass = np.maximum(mass - _NOISE * np.quantile(mass, 0.99), 0.0)
    total = float(mass.sum())
    if not total > 0:
        return None
    places, blur = [], []
    for axis, size in enumerate(array.shape):
        line = mass.sum(axis=tuple(a for a in range(3) if a != axis)) / total
        share = np.concatenate([[0.0], np.cumsum(line)])
        first, last = np.interp([0.02, 0.98], share, np.arange(size + 1))
        count = SIDE if size > 1 else 1
        step = (last - first) / count
        places.append(first + (np.arange(count) + 0.5) * step - 0.5)
        blur.append(0.4 * step if size > 1 else 0.0)
    smooth = ndimage.gaussian_filter(array, blur)
    small = ndimage.map_coordinates(
        smooth, np.meshgrid(*places, indexing="ij"), order=1, mode="nearest"
    )
    detail = small - ndimage.gaussian_filter(small, _HIGH_PASS)
    detail -= detail.mean()
    length = float(np.linalg.norm(detail))
    return (detail / length).astype(np.float16) if length > 1e-6 * total / array.size else None


def _reduce(array):
    """Means over blocks, so that no axis has more than `_REDUCED` voxels."""
    for axis, size in enumerate(array.shape):
        if size > _REDUCED:
            array = _means(np.moveaxis(array, axis, 0), size)
            array = np.moveaxis(array, 0, axis)
    return array.astype(np.float32)


def _means(array, size):
    """Means over `_REDUCED` blocks of equal width along the first axis, voxels shared by parts.

    Whole voxels alone would make a mirrored image another one.
    """
    edges = np.arange(_REDUCED + 1) * size / _REDUCED
    weights = np.clip(
        np.minimum(edges[1:, None], np.arange(1, size + 1))
        - np.maximum(edges[:-1, None], np.arange(size)),
        0,
        None,
    )
    weights = (weights * _REDUCED / size).astype(np.float32)
    return np.tensordot(weights, array, 1)


def same_content(hashes):
    """Pairs of images with one content.

    Args:
        hashes: Key of a case -> hash.

    Returns:
        List of (first key, later key): each later one beside the first of its kind.
    """
    first, pairs = {}, []
    for key, digest in hashes.items():
        if first.setdefault(digest, key) != key:
            pairs.append((first[digest], key))
    return pairs


def limits(thumbnails, kinds, subjects):
    """From which correlation on two images of a kind are near-duplicates.

    `SIMILAR`; more where even the quarter of pairs that are least alike is close to it, as then
    thumbnails tell subjects badly apart; 0.967 at most for the data that `SIMILAR` was set on.

    Args:
        thumbnails: Key -> array of `thumbnail`.
        kinds: Key -> modality.
        subjects: Key -> subject; two images of one say nothing about what is usual.

    Returns:
        Dict key -> correlation.
    """
    keys_of: dict = {}
    for key, image in thumbnails.items():
        keys_of.setdefault((kinds[key], image.shape), []).append(key)
    found = {}
    for (_, shape), keys in keys_of.items():
        # Evenly over all of them: neighbours in a list are often of one site.
        chosen = keys[:: -(-len(keys) // _SAMPLE)]
        score = _closeness(thumbnails, chosen, chosen, shape)
        own = [subjects[key] for key in chosen]
        pairs = [score[i, j] for j in range(len(own)) for i in range(j) if own[i] != own[j]]
        usual = np.quantile(pairs, 0.25) if len(pairs) > 2 else 0.0
        limit = max(SIMILAR, 1.0 - (1.0 - float(usual)) / _SPREAD)
        found |= dict.fromkeys(keys, limit)
    return found


def _closeness(thumbnails, rows, columns, shape):
    """Correlation of each image with each other one, mirrored or not, whichever is higher."""
    axes = [a + 1 for a, size in enumerate(shape) if size > 1]
    turns = [c for n in range(len(axes) + 1) for c in itertools.combinations(axes, n)]
    left, right = _stack(thumbnails, rows), _stack(thumbnails, columns)
    return np.max([_flat(left) @ _flat(np.flip(right, t)).T for t in turns], axis=0)


def near(thumbnails, groups, threshold=SIMILAR):
    """Pairs of images in different groups whose thumbnails correlate, mirrored or not.

    Args:
        thumbnails: Key -> array of `thumbnail`.
        groups: Key -> split or subject; keys of one group are not compared, nor those without.
        threshold: Least correlation, or key -> that of each image; of two the higher one counts.

    Returns:
        List of (key, key, correlation), the earlier key first, the closest pair first.
    """
    shapes: dict = {}
    for key, image in thumbnails.items():
        if groups[key] is not None:
            shapes.setdefault(image.shape, []).append(key)
    found = []
    for shape, keys in shapes.items():
        numbers = {group: n for n, group in enumerate(dict.fromkeys(groups[k] for k in keys))}
        own = np.array([numbers[groups[k]] for k in keys])
        if len(numbers) < 2:
            continue
        least = [threshold[k] if isinstance(threshold, dict) else threshold for k in keys]
        least = np.array(least)
        for i, j in itertools.combinations_with_replacement(range(0, len(keys), _BLOCK), 2):
            rows, columns = (slice(n, n + _BLOCK) for n in (i, j))
            score = _closeness(thumbnails, keys[rows], keys[columns], shape)
            good = score > np.maximum(least[rows, None], least[None, columns])
            good &= own[rows, None] != own[None, columns]
            found += [
                (keys[i + r], keys[j + c], float(score[r, c]))
                for r, c in np.argwhere(good)
                if i + r < j + c
            ]
    return sorted(found, key=lambda pair: -pair[2])


def same_runs(sketches, groups, threshold=SHARED):
    """Pairs of images in different groups that share runs of voxels: one is a part of the other.

    Args:
        sketches: Key -> array of `sketch`.
        groups: As in `near`.
        threshold: Least share of runs.

    Returns:
        List of (key, key, share), the earlier key first, the closest pair first.
    """
    holders: dict = {}
    for key, hashes in sketches.items():
        if groups[key] is not None:
            for value in hashes.tolist():
                holders.setdefault(value, []).append(key)
    order = {key: n for n, key in enumerate(sketches)}
    pairs = {
        pair
        for keys in holders.values()
        if len(keys) <= _COMMON
        for pair in itertools.combinations(keys, 2)
        if groups[pair[0]] != groups[pair[1]]
    }
    found = []
    for a, b in sorted(pairs, key=lambda pair: (order[pair[0]], order[pair[1]])):
        size = min(len(sketches[a]), len(sketches[b]))
        union = np.union1d(sketches[a], sketches[b])[:size]
        share = np.isin(union, np.intersect1d(sketches[a], sketches[b])).mean()
        if share >= threshold:
            found.append((a, b, float(share)))
    return sorted(found, key=lambda pair: -pair[2])


def _stack(thumbnails, keys):
    return np.stack([thumbnails[k] for k in keys]).astype(np.float32)


def _flat(images):
    return images.reshape(len(images), -1)
