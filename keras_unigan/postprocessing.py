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

from keras_unigan.config import finite, read_json, write_json
from keras_unigan.errors import CodedError

FILE = "postprocessing.json"
LARGEST, SMALL = "largest_component", "minimum_size"


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
        learned: What `postprocessing.json` says beside them, see `step_selection.learn`; empty for
            steps that were given by hand.
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
