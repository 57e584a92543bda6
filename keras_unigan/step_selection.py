"""Which steps of post-processing validation cases ask for; see `postprocessing`."""

import dataclasses
import math

import numpy as np
from scipy import ndimage

from keras_unigan import metrics
from keras_unigan.aggregation import mean
from keras_unigan.postprocessing import LARGEST, SMALL, Postprocessing, Step, apply_step, components

CANDIDATES = 32
"""Most sizes that are tried for one name."""
_SAME = 1e-9


@dataclasses.dataclass(frozen=True)
class Case:
    """One validation case.

    Attributes:
        modality: Of the scan.
        truth: Boolean `(names, x, y, z)`.
        prediction: The same of the model, with nothing taken out.
        judged: Where the label map knows, Boolean `(x, y, z)`.
        names: Names that were looked for in the case.
        voxel: Volume of a voxel, mm³.
    """

    modality: str
    truth: np.ndarray
    prediction: np.ndarray
    judged: np.ndarray
    names: tuple[str, ...]
    voxel: float = 1.0

    def cropped(self):
        """The same case without the voxels that no mask holds; steps find the same there."""
        some = self.truth.any(axis=0) | self.prediction.any(axis=0)
        box = (ndimage.find_objects(some.astype(np.uint8)) or [()])[0]
        if not box:
            box = (slice(0, 1),) * some.ndim
        inside = (slice(None), *box)
        return dataclasses.replace(
            self,
            truth=self.truth[inside].copy(),
            prediction=self.prediction[inside].copy(),
            judged=self.judged[box].copy(),
        )


def learn(cases, names):
    """Steps that raise the mean Dice of validation cases and lower that of no name.

    Tried in this order, each after those that were kept: the largest component of all foreground,
    that of each name, and for each name a least size of components.

    Args:
        cases: List of `Case`, none of which the network was trained on.
        names: Scored names, in the order of the masks.

    Returns:
        `Postprocessing` whose `learned` has `dice_before` and `dice_after` (mean over modalities
        of the mean over names), `table` (per modality and name: `cases`, `before`, `after`) and
        `tried` (each step with `kept`, `before`, `after` and `reason`).
    """
    names = tuple(names)
    first = scores = _scores(cases, names)
    kept, tried = [], []
    for step in [Step(LARGEST), *(Step(LARGEST, name) for name in names), *names]:
        step = _best_size(cases, names, step, scores) if isinstance(step, str) else step
        if step is None:
            continue
        changed = _changed(cases, names, step)
        after = _scores(changed, names)
        better, reason = _verdict(scores, after)
        tried.append({"step": str(step), "kept": better, "reason": reason})
        tried[-1] |= {"before": _macro(scores), "after": _macro(after)}
        if better:
            kept.append(step)
            cases, scores = changed, after
    table = [
        {"modality": modality, "name": name, "cases": len(found)}
        | {"before": mean(first[modality, name]), "after": mean(found)}
        for (modality, name), found in scores.items()
    ]
    learned = {"dice_before": _macro(first), "dice_after": _macro(scores)}
    return Postprocessing(tuple(kept), {**learned, "table": table, "tried": tried})


def _changed(cases, names, step):
    return [
        dataclasses.replace(c, prediction=apply_step(step, c.prediction, names, c.voxel))
        for c in cases
    ]


def _scores(cases, names):
    """(modality, name) -> Dice of each case that judges the name; NaN where nobody has it."""
    found = {}
    for case in cases:
        for name, truth, prediction in zip(names, case.truth, case.prediction, strict=True):
            if name in case.names:
                dice = metrics.dice(truth & case.judged, prediction & case.judged)
                found.setdefault((case.modality, name), []).append(dice)
    return found


def _macro(scores):
    """Mean over modalities of the mean over names of the mean over cases."""
    modalities = dict.fromkeys(modality for modality, _ in scores)
    return mean(
        [
            mean([mean(v) for (m, _), v in scores.items() if m == modality])
            for modality in modalities
        ]
    )


def _verdict(before, after):
    """Whether a step is kept, and why in one sentence."""
    was, now = _macro(before), _macro(after)
    change = f"mean Dice {was:.4f} -> {now:.4f}"
    for modality, name in before:
        old, new = mean(before[modality, name]), mean(after[modality, name])
        # A name that nobody has and nobody finds any more has no Dice: that is no fall.
        if new < old - _SAME:
            return False, f"{name} in {modality} would fall: {old:.4f} -> {new:.4f} ({change})"
    if not now > was + _SAME:
        return False, f"no gain: {change}"
    return True, f"{change}, and nothing falls"


def _best_size(cases, names, name, before):
    """The size of a name's components that is best to drop; None where there is nothing to drop."""
    found = [
        (c.modality, *_counted(c, names.index(name), c.voxel)) for c in cases if name in c.names
    ]
    # Voxels that nobody labelled may be right: a component has to be wrong throughout.
    sizes = {size for _, _, parts in found for size, seen, hit in parts if seen == size and not hit}
    candidates = sorted(sizes)
    if len(candidates) > CANDIDATES:
        places = np.linspace(0, len(candidates) - 1, CANDIDATES).round().astype(int)
        candidates = [candidates[place] for place in places]
    best = None
    for size in candidates:
        after = {key: [] if key[1] == name else value for key, value in before.items()}
        for modality, true, parts in found:
            left = parts[parts[:, 0] > size * (1 + 1e-6)]
            both = true + left[:, 1].sum()
            dice = 2 * left[:, 2].sum() / both if both else math.nan
            after[modality, name].append(dice)
        # Of sizes that do as well, the least.
        key = _verdict(before, after)[0], _macro(after)
        if best is None or key > best[0]:
            best = key, Step(SMALL, name, float(size))
    return best and best[1]


def _counted(case, index, voxel):
    """Of a mask the volume of its truth and, of each predicted component, three volumes.

    Returns:
        `(true, parts)`: of what is judged; `parts` `(components, 3)`: volume of the component, of
        its part that is judged, and of its part that is true.
    """
    numbers, sizes = components(case.prediction[index])
    true = case.truth[index] & case.judged
    counts = [
        np.bincount(numbers[mask], minlength=len(sizes) + 1)[1:] for mask in (case.judged, true)
    ]
    return np.count_nonzero(true) * voxel, np.stack([sizes, *counts], axis=1) * voxel
