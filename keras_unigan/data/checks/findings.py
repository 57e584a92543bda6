"""What a check says: one `Finding` per problem, and the `Report` over all of them."""

import collections
import dataclasses

from keras_unigan.errors import CODES

LEVELS = ("error", "warning", "info")
"""error: `prepare` refuses or a score would be wrong; warning: look at it; info: good to know."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One problem.

    Attributes:
        code: Key of `errors.CODES`.
        level: One of `LEVELS`.
        case: Id of the case, or "study".
        message: What was found and expected, and why it matters. Never a value of a header, nor a
            name that looks like a person's.
        fix: Command or action that helps; may be empty.
        number: Place of the case in the study file, from 0; None for the study as a whole.
        part: "image", "label", or empty.
    """

    code: str
    level: str
    case: str
    message: str
    fix: str = ""
    number: int | None = None
    part: str = ""

    def __post_init__(self):
        if self.code not in CODES:
            raise KeyError(self.code)
        if self.level not in LEVELS:
            raise ValueError(f"Expected level in {LEVELS}, got {self.level!r}.")

    def __str__(self):
        where = f"{self.case} {self.part}".strip()
        return f"{self.code} {where}: {self.message}" + (f" Fix: {self.fix}" if self.fix else "")


@dataclasses.dataclass(frozen=True)
class Entry:
    """A case with its place in the study file and the name that findings may print.

    Attributes:
        number: Place in the study file, from 0.
        case: `config.Case`.
        name: Its id, or "case N" where the id itself looks like a person's.
    """

    number: int
    case: object
    name: str

    def finding(self, code, level, found, expected, why="", fix="", part=""):
        """A `Finding` about this case, worded like `errors.CodedError`."""
        return Finding(
            code, level, self.name, wording(found, expected, why), fix, self.number, part
        )

    def of_error(self, error, part="", level="error"):
        """The `Finding` that an error of a reader amounts to; its path is left out."""
        return self.finding(
            error.code, level, error.found, error.expected, error.why, error.fix, part
        )


def of_study(code, level, found, expected, why="", fix=""):
    """A `Finding` about the study as a whole."""
    return Finding(code, level, "study", wording(found, expected, why), fix)


def wording(found, expected, why=""):
    """`found …, expected …. why`."""
    return f"found {found}, expected {expected}." + (f" {why}" if why else "")


@dataclasses.dataclass(frozen=True)
class Report:
    """All findings of a study, the worst first.

    Attributes:
        study: Path of the study file.
        cases: Number of cases in it.
        files: Number of files that were read.
        findings: Tuple of `Finding`.
        modalities: Modality -> split (or "none") -> number of cases.
        classes: Modality -> scored name -> {"cases": cases that hold it, "voxels": their sum}.
    """

    study: str
    cases: int
    files: int
    findings: tuple[Finding, ...]
    modalities: dict
    classes: dict

    @property
    def counts(self):
        """Code -> number of findings, sorted by code."""
        return dict(sorted(collections.Counter(f.code for f in self.findings).items()))

    @property
    def levels(self):
        """Level -> number of findings."""
        found = collections.Counter(f.level for f in self.findings)
        return {level: found[level] for level in LEVELS}

    def to_dict(self):
        """The JSON object of `unigan check --json`."""
        return {
            "study": self.study,
            "cases": self.cases,
            "files": self.files,
            "levels": self.levels,
            "counts": self.counts,
            "modalities": self.modalities,
            "classes": self.classes,
            "findings": [dataclasses.asdict(f) for f in self.findings],
        }


def worst_first(found):
    """Findings sorted by level, then code, then place in the study."""
    order = {level: i for i, level in enumerate(LEVELS)}
    return tuple(
        sorted(found, key=lambda f: (order[f.level], f.code, -1 if f.number is None else f.number))
    )
