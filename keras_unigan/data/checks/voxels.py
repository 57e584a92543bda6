"""Intensities of an image, and values of a label map."""

import numpy as np

from keras_unigan.config import IGNORE
from keras_unigan.data import preprocessing
from keras_unigan.errors import CodedError

_CT = ("ct", "cta", "ldct", "ncct", "cect", "cbct")
_MR = (
    *("mr", "mri", "t1", "t2", "pd", "flair", "t1w", "t2w", "pdw", "t1c", "t1ce", "t1gd", "t1n"),
    *("t2f", "t2star", "dwi", "adc", "swi", "mra", "bold", "asl", "dce", "dixon", "stir"),
)
_NEVER_NEGATIVE = (
    *("us", "ultrasound", "pet", "spect", "nm", "xray", "cr", "dx", "mg"),
    *("microscopy", "he", "oct", "fundus"),
)
KNOWN = frozenset((*_CT, *_MR, *_NEVER_NEGATIVE))
"""Modalities whose usual intensities are known here; others are checked less, never refused."""

_SAMPLE = 400_000  # voxels that percentiles look at
_CLIPPED = 0.01  # share of the non-background at the very maximum
_TINY = 8  # voxels


def image_findings(entry, array):
    """Findings on the voxels of an image.

    Args:
        entry: The case.
        array: Shape (x, y, z) or (x, y, z, channels), any numeric type.
    """
    finite = array
    if array.dtype.kind == "f":
        good = np.isfinite(array)
        wrong = int(array.size - good.sum())
        if wrong:
            yield entry.finding(
                "KUG-D06", "error", f"{wrong} NaN or infinite voxels of {array.size}",
                "finite values", "One such voxel spoils every step that sees it.",
                "unigan check STUDY --fix DIR writes the background value in a copy", "image",
            )  # fmt: skip
            finite = array[good]
    if not finite.size:
        return
    low, high = float(finite.min()), float(finite.max())
    if low == high:
        yield entry.finding(
            "KUG-D12", "error", f"{low:g} in every voxel", "an image",
            "There is nothing to learn from or to normalise.",
            "leave the case out, or export it again", "image",
        )  # fmt: skip
        return
    yield from _range(entry, low, high)
    several = np.moveaxis(array, -1, 0) if array.ndim > 3 else [array]
    yield from next(filter(None, (list(_clipped(entry, a, high)) for a in several)), [])


def _range(entry, low, high):
    modality, found = entry.case.modality, None
    level, fix = "warning", "declare another modality in study.json, or correct the values"
    if modality in _CT:
        expected = "Hounsfield units: air near -1000"
        if low >= 0:
            found = "no negative value"
            if high > 1:
                fix += " (scanner values without their intercept: subtract 1024)"
    elif modality in _MR:
        expected = "the scale of MR, which has no Hounsfield units"
        if low <= -500 and high >= 200 and low >= -4096:
            found = "values like Hounsfield units"
            fix = 'declare the modality "ct" in study.json'
    elif modality in _NEVER_NEGATIVE:
        expected = "values from 0 upwards"
        if low < -0.01 * high:
            found = "negative values"
    if found is None and modality in KNOWN and low >= 0 and high <= 1:
        found, level, expected = "values from 0 to 1", "info", f"unscaled {modality}"
        fix = "nothing, where all cases of the modality are scaled alike"
    if found is not None:
        yield entry.finding(
            "KUG-D25", level, f"{found} (range {low:.4g} to {high:.4g})", expected,
            "Normalisation goes by the modality.", fix, "image",
        )  # fmt: skip


def _clipped(entry, array, high):
    at_top = int((array == high).sum())
    if at_top < 0.1 * _CLIPPED * array.size:
        return
    mask = preprocessing.nonbackground(array)
    # A background may be the brightest of all.
    share = int((mask & (array == high)).sum()) / max(1, int(mask.sum()))
    step = max(1, array.size // _SAMPLE)
    distinct = len(np.unique(array.ravel()[::step]))
    # A few flat values are a drawing or a mask, of which the highest is no clipped range.
    if share > _CLIPPED and distinct > 16:
        yield entry.finding(
            "KUG-D24", "info", f"{share:.1%} of the body at the highest value {high:g}",
            "a range that is not clipped", "What was brighter is lost; it is used as it is.",
            "export it again with a wider window", "image",
        )  # fmt: skip


def label_findings(entry, array, labels):
    """Findings on the values of a label map.

    Args:
        entry: The case.
        array: File values, shape (x, y, z).
        labels: `config.Labels`.

    Returns:
        List of findings, and voxels of each label-map index (None where the values cannot be used).
    """
    try:
        index = preprocessing.encode_labels(array, labels, entry.name)
    except CodedError as error:
        found = entry.of_error(error, "label")
        remap = suggest_remap(array, labels)
        if error.code == "KUG-D05" and remap:
            shown = ", ".join(f"{a} -> {b}" for a, b in remap.items())
            fix = f"unigan check STUDY --fix DIR writes {shown} in a copy"
            found = entry.finding(
                error.code, "error", error.found, error.expected, error.why, fix, "label"
            )
        elif error.code == "KUG-D06":
            fix = "unigan check STUDY --fix DIR marks them as not labelled (255) in a copy"
            found = entry.finding(
                error.code, "error", error.found, error.expected, error.why, fix, "label"
            )
        return [found], None
    counts = np.bincount(index.ravel(), minlength=IGNORE + 1)
    members = counts[: len(labels.values)] @ np.array(labels.membership)
    voxels = dict(zip(labels.names, (int(n) for n in members), strict=True))
    voxels = {name: voxels[name] for name in labels.foreground}
    return list(_amounts(entry, counts, voxels)), counts


def annotated_findings(entry, counts, labels):
    """Findings on what a label map holds and was not annotated, and what it then says of the case.

    Args:
        entry: A case of the label map.
        counts: Voxels of each label-map index, as `label_findings` gives them.
        labels: `config.Labels`.

    Returns:
        List of findings, and voxels of each name that was annotated.
    """
    names, members = entry.case.annotated, np.array(labels.membership)
    voxels = dict(zip(labels.names, counts[: len(members)] @ members, strict=True))
    kept = {n: int(voxels[n]) for n in labels.foreground if names is None or n in names}
    extra = {
        labels.names[output]
        for index in labels.unannotated_indices(names)
        for output in np.flatnonzero(members[index])
        if counts[index]
    }
    if not extra:
        return [], kept
    found = ", ".join(f"{n} ({int(voxels[n])} voxels)" for n in labels.foreground if n in extra)
    finding = entry.finding(
        "KUG-D05", "warning", f"{found}, which the study does not call annotated", f"{list(kept)}",
        "These voxels count as background or anything that was not annotated.",
        "add the names to annotated of the case where every voxel of them was marked", "label",
    )  # fmt: skip
    return [finding], kept


def _amounts(entry, counts, voxels):
    used = np.flatnonzero(counts)
    labelled = [i for i in used if i != IGNORE]
    if not labelled:
        found = "no voxel that is labelled"
    elif labelled == [0]:
        found = "background only"
    elif len(used) == 1:
        found = "one class in every voxel"
    else:
        tiny = [f"{name} ({n} voxels)" for name, n in voxels.items() if 0 < n < _TINY]
        if tiny:
            yield entry.finding(
                "KUG-D23", "info", f"very little of {', '.join(tiny)}", f"{_TINY} voxels or more",
                "Resampling may lose it, and its scores are noise.", part="label",
            )  # fmt: skip
        return
    yield entry.finding(
        "KUG-D23", "warning", found, "foreground and background",
        "Right where nothing is there to mark; else it teaches what is wrong.",
        "look at the case, or leave its label out", "label",
    )  # fmt: skip


def suggest_remap(array, labels):
    """File value -> study value for a label map whose values are unknown, where that is obvious.

    It is where all values are whole, none but 0 (and 255) is known to the study, and the study has
    as many values as the file: then the order decides, e.g. 255 -> 1 or 0, 127, 254 -> 0, 1, 2.

    Returns:
        Dict without 0, or an empty one.
    """
    values = np.unique(array)
    if not np.isfinite(values).all() or (np.abs(values - np.rint(values)) > 1e-3).any():
        return {}
    found = [int(v) for v in np.rint(values) if round(v) != 0]
    known = sorted({v for group in labels.values for v in group} - {0})
    if len(found) != len(known) or set(found) & set(known) or min(found) < 0:
        return {}
    return dict(zip(found, known, strict=True))
