"""A study file read with patience: what is wrong in it becomes findings, the rest stays usable."""

import dataclasses
import os

from keras_unigan.config import Case, Labels, Study, from_dict, read_json
from keras_unigan.data.checks import identity
from keras_unigan.data.checks.findings import Entry, Finding, of_study
from keras_unigan.errors import CodedError


@dataclasses.dataclass(frozen=True)
class Draft:
    """What could be read of a study.

    Attributes:
        study: `config.Study` without cases; its labels are a stand-in where `labels` is None.
        labels: `config.Labels`, or None where the file's are not valid.
        entries: `Entry` of each valid case.
        findings: What is wrong in the file itself.
        total: Number of cases in the file, valid or not.
    """

    study: Study
    labels: Labels | None
    entries: tuple[Entry, ...]
    findings: tuple[Finding, ...]
    total: int

    def path(self, name):
        """Resolves a path of a case; see `config.Study.path`."""
        return self.study.path(name)


def open_study(path):
    """Reads `study.json` as far as it goes.

    Raises:
        CodedError: KUG-D01 or KUG-D08 when there is no JSON object with cases to read.
    """
    data = read_json(path)
    if not isinstance(data, dict) or not isinstance(data.get("cases"), list):
        raise CodedError(
            "KUG-D08", path, "no object with a list of cases", "a study.json",
            fix="unigan init FOLDER -o study.json",
        )  # fmt: skip
    folder, found = os.path.dirname(os.path.abspath(path)), []
    try:
        head = Study.from_dict({**data, "cases": []}, folder, "study")
        labels: Labels | None = head.labels
    except CodedError as error:
        found.append(of_study(error.code, "error", error.found, f"{error.where}: {error.expected}"))
        names = data.get("modalities")
        names = [m for m in names if isinstance(m, str)] if isinstance(names, list) else []
        head = Study("study", tuple(dict.fromkeys(names)) or ("unknown",), _ANY, (), folder)
        labels = None
    entries, ids, splits = [], {}, {}
    for number, item in enumerate(data["cases"]):
        try:
            case = from_dict(Case, item, f"cases[{number}]")
        except CodedError as error:
            text = f"found {error.found}, expected {error.expected}."
            found.append(Finding(error.code, "error", f"case {number}", text, number=number))
            continue
        name = f"case {number}" if identity.traces(case.id) else case.id
        entry = Entry(number, case, name)
        entries.append(entry)
        found += _case_findings(entry, head, labels, ids, splits)
    return Draft(head, labels, tuple(entries), tuple(found), len(data["cases"]))


_ANY = Labels(classes={"any": (1,)})


def _case_findings(entry, head, labels, ids, splits):
    """Findings that need the study file only; fills `ids` and `splits` on the way."""
    case = entry.case
    if labels is not None:
        try:
            labels.check_annotated(case.annotated, entry.name)
        except CodedError as error:
            yield entry.of_error(error)
    if case.modality not in head.modalities:
        yield entry.finding(
            "KUG-D08", "error", f"modality {case.modality!r}", f"one of {list(head.modalities)}",
            fix="add it to modalities in study.json, or correct the case",
        )  # fmt: skip
    if head.channels > 1 and case.channel is not None:
        yield entry.finding(
            "KUG-D36", "error", f"channel {case.channel} alone", f"{head.channels} channels",
            "All images of a study have as many.",
            'leave "channel" out of the case, or "channels" out of the study',
        )  # fmt: skip
    if ids.setdefault(case.id, entry.number) != entry.number:
        yield entry.finding(
            "KUG-D13", "error", f"the case a second time (first: case {ids[case.id]})",
            "one entry a subject, visit and modality", fix="remove one, or name the visits",
        )  # fmt: skip
    first = splits.setdefault(case.subject, case.split)
    if first != case.split:
        yield entry.finding(
            "KUG-D13", "error", f"split {case.split!r} of a subject in {first!r}",
            "one split a subject", "Scores on a subject that was trained on are worth nothing.",
            "unigan check STUDY --fix DIR writes a regrouped study",
        )  # fmt: skip
