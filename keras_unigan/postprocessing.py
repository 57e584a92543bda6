"""What may be taken out of a predicted label map, learnt on validation cases and kept in a file.

Two kinds of step, both on connected components (voxels that share a corner belong together): only
the largest one is kept, of the whole foreground or of one name; or those of at most a given size
are dropped. A step is kept where it raises the mean Dice of the validation cases and lowers that of
no name in any modality. Steps only ever take voxels away.

Reference: Isensee et al. 2021, nnU-Net, doi:10.1038/s41592-020-01008-z (largest components).
"""

import dataclasses
import math
from pathlib import Path

import numpy as np
from scipy import ndimage

from keras_unigan import metrics
from keras_unigan.aggregation import mean
from keras_unigan.config import finite, read_json, write_json
from keras_unigan.errors import CodedError

FILE = "postprocessing.json"
LARGEST, SMALL = "largest_component", "minimum_size"
CANDIDATES = 32
"""Most sizes that are tried for one name."""
_SAME = 1e-9


@dataclasses.dataclass(frozen=True)
class Step:
    """One thing to take out.

    Attributes:
        kind: `LARGEST` or `SMALL`.
        name: Class or region that it looks at; None: all foreground together, of which voxels
            outside the largest component are taken from every name.
        larger_than: Of `SMALL`: volume in mm³ up to which a component is dropped (where a file
            does not say how far its voxels lie apart, each counts 1).
    """

    kind: str
    name: str | None = None
    larger_than: float | None = None

    def __post_init__(self):
        known = self.kind in (LARGEST, SMALL)
        if not known or (self.kind == SMALL) != (self.larger_than is not None):
            raise CodedError(
                "KUG-D08",
                FILE,
                f"step {self.kind!r} with larger_than {self.larger_than}",
                f"{LARGEST!r}, or {SMALL!r} with a size",
            )

    def __str__(self):
        which = self.name or "all foreground"
        if self.kind == LARGEST:
            return f"largest component of {which}"
        return f"components of {which} above {self.larger_than:g} mm³"


@dataclasses.dataclass(frozen=True)
class Postprocessing:
    """Steps in the order in which they are applied, and how they were learnt.

    Attributes:
        steps: The `Step`s that are applied.
        learned: What `postprocessing.json` says beside them, see `learn`; empty for steps that
            were given by hand.
    """

    steps: tuple[Step, ...] = ()
    learned: dict = dataclasses.field(default_factory=dict)

    @classmethod
    def of_steps(cls, steps):
        """From the dictionaries of `described`."""
        return cls(tuple(Step(**step) for step in steps))

    @property
    def described(self):
        """Steps as JSON."""
        return [dataclasses.asdict(step) for step in self.steps]

    @classmethod
    def load(cls, folder):
        """What a run folder holds; None where nothing was learnt.

        Raises:
            CodedError: KUG-D08 for a file of other content.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            return None
        try:
            found = dict(read_json(path))
            steps = tuple(Step(**step) for step in found.pop("steps"))
        except (TypeError, KeyError, ValueError) as error:
            if isinstance(error, CodedError):
                raise
            raise CodedError(
                "KUG-D08", path, f"{type(error).__name__}: {error}", "a file of `unigan tune`"
            ) from error
        return cls(steps, found)

    def save(self, folder):
        """Writes `postprocessing.json`; returns its path."""
        path = Path(folder) / FILE
        write_json(path, finite({"steps": self.described, **self.learned}))
        return path

    def apply(self, masks, names, spacing):
        """Masks without what the steps take out.

        Args:
            masks: Boolean `(names, x, y, z)`, see `predicted_masks`.
            names: Name of each mask.
            spacing: Distance between voxels along each axis.

        Returns:
            Boolean array of the same shape; the masks themselves where there is no step.

        Raises:
            CodedError: KUG-D08 for a step that looks at a name that is not there.
        """
        for step in self.steps:
            masks = apply_step(step, masks, names, math.prod(spacing))
        return masks


def predicted_masks(probabilities, labels):
    """Mask of each scored name: regions above one half, classes where they are most probable."""
    if labels.overlapping:
        return np.moveaxis(probabilities > 0.5, -1, 0)
    best = np.argmax(probabilities, axis=-1)
    return np.stack([best == index for index in range(1, probabilities.shape[-1])])


def paint(masks, labels):
    """Label map in the study's own file values from the masks of all scored names.

    Args:
        masks: Boolean `(names, ...)`; where several hold a voxel, the last one counts.
        labels: `config.Labels`.

    Returns:
        uint8 `(...)`.
    """
    values = labels.output_values[len(labels.names) - len(labels.foreground) :]
    painted = np.zeros(masks.shape[1:], np.uint8)
    for value, mask in zip(values, masks, strict=True):
        painted[mask] = value
    return painted


def components(mask):
    """Connected components, corners included.

    Args:
        mask: Boolean, any axes.

    Returns:
        `(numbers, sizes)`: int array of the mask's shape (0 outside), and voxels of each component
        from number 1 on.
    """
    numbers, count = ndimage.label(mask, np.ones((3,) * mask.ndim, bool))
    return numbers, np.bincount(numbers.ravel(), minlength=count + 1)[1:]


def apply_step(step, masks, names, voxel):
    """Masks after one step.

    Args:
        step: `Step`.
        masks: Boolean `(names, x, y, z)`.
        names: Name of each mask.
        voxel: Volume of a voxel.

    Returns:
        Boolean array of the same shape. Of several components of the largest size, the one that
        comes first in the array is kept.
    """
    if step.name is None:
        chosen = slice(None)
    elif step.name in names:
        chosen = list(names).index(step.name)
    else:
        raise CodedError("KUG-D08", FILE, f"a step for {step.name!r}", f"one of {list(names)}")
    looked_at = masks.any(axis=0) if step.name is None else masks[chosen]
    numbers, sizes = components(looked_at)
    if step.kind == LARGEST:
        kept = np.arange(len(sizes)) == (np.argmax(sizes) if len(sizes) else -1)
    else:
        kept = sizes * voxel > step.larger_than * (1 + 1e-6)
    if kept.all():
        return masks
    inside = np.concatenate([[False], kept])[numbers]
    result = masks.copy()
    result[chosen] &= inside
    return result


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
