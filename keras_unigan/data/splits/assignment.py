"""The assignment file: which subject is in which split and fold, and which modality it gives.

It lies beside the study (`study.json`, `study.assignment.json`) and holds the cases that the study
leaves out, so that every fold of it can be made without the folder that it came from.
"""

import dataclasses
from pathlib import Path

from keras_unigan.config import SPLITS, Case, from_dict, read_json, write_json
from keras_unigan.errors import CodedError

VERSION = 1


@dataclasses.dataclass(frozen=True)
class Scheme:
    """How subjects are shared out.

    Attributes:
        fractions: Shares of train, val and test. With folds, train and val share what test leaves;
            where each site is the test set once, train and val share the other sites.
        folds: Number of folds, each of which validates once; None for one split.
        leave_one_site_out: Whether each site is the test set once.
        pairs: Whether a training subject gives all its modalities instead of one.
        seed: Seed of all that is drawn.
    """

    fractions: tuple[float, float, float] = (0.6, 0.2, 0.2)
    folds: int | None = None
    leave_one_site_out: bool = False
    pairs: bool = False
    seed: int = 0

    def __post_init__(self):
        if (
            len(self.fractions) != 3
            or min(self.fractions) < 0
            or abs(sum(self.fractions) - 1) > 1e-6
        ):
            raise ValueError(
                f"Expected fractions of train, val and test that sum to 1, got {self.fractions}."
            )
        if self.fractions[0] <= 0:
            raise ValueError(f"Expected a positive fraction for train, got {self.fractions[0]}.")
        if self.folds is not None and self.folds < 2:
            raise CodedError("KUG-T02", "folds", f"{self.folds}", "2 or more")
        if self.folds is not None and self.leave_one_site_out:
            raise CodedError(
                "KUG-T02", "folds", "folds beside leave-one-site-out", "one of them",
                "There the sites are the folds.",
            )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a subject stands.

    Attributes:
        split: "train", "val" or "test" in the fold of the file.
        fold: Number of its fold; None for those that are never validated on.
        modality: The one that it gives when it is trained or validated on; None for all.
        group: First of the subjects that it must not be torn from; itself where it is alone.
        classes: Classes that its label maps show, where they were read.
    """

    split: str
    fold: int | None
    modality: str | None
    group: str
    classes: tuple[str, ...] = ()

    def __post_init__(self):
        if self.split not in SPLITS:
            raise CodedError("KUG-D08", "assignment", f"split {self.split!r}", f"one of {SPLITS}")


@dataclasses.dataclass(frozen=True)
class Assignment:
    """All places of a study; read and written as `<study>.assignment.json`.

    Attributes:
        study: Name of the study.
        scheme: How it was made.
        subjects: Subject -> `Place`.
        fold: Fold that `split` of each place is of; None where there are none.
        sites: Name of the site of each fold, where each is the test set once.
        left_out: Cases that this fold does not use, paths as in the study.
        version: Version of this schema.
    """

    study: str
    scheme: Scheme
    subjects: dict[str, Place]
    fold: int | None = None
    sites: tuple[str, ...] = ()
    left_out: tuple[Case, ...] = ()
    version: int = VERSION

    def __post_init__(self):
        if self.version != VERSION:
            raise CodedError(
                "KUG-D08", "assignment.version", f"{self.version}", f"{VERSION}",
                fix="make the split again: unigan split study.json --overwrite",
            )  # fmt: skip

    @property
    def folds(self):
        """Number of folds; 0 where there are none."""
        return len(self.sites) or self.scheme.folds or 0

    @property
    def groups(self):
        """Tuples of subjects that were kept together, those of one subject left out."""
        members: dict = {}
        for subject, place in self.subjects.items():
            members.setdefault(place.group, []).append(subject)
        return tuple(tuple(m) for m in members.values() if len(m) > 1)

    @classmethod
    def load(cls, path):
        """Reads the file strictly.

        Raises:
            CodedError: KUG-D01 missing, KUG-D08 not valid.
        """
        return from_dict(cls, read_json(path), str(path))

    def save(self, path):
        """Writes the file atomically; what is None is left out."""

        def fields(item):
            found = dataclasses.asdict(item)
            return {k: v for k, v in found.items() if v is not None and v != ()}

        data = fields(self)
        # A fold that is None means something: this subject is never validated on.
        data["subjects"] = {s: {"fold": None, "modality": None} | fields(p)
                            for s, p in self.subjects.items()}  # fmt: skip
        data["left_out"] = [fields(case) for case in self.left_out]
        write_json(path, data)


def path_of(study):
    """Path of the assignment file of a study file."""
    path = Path(study)
    return path.with_name(f"{path.name.removesuffix('.json')}.assignment.json")
