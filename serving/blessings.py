"""Verdicts on a SavedModel, as files beside it: TFX's names, each bound to the bytes it judged.

`blessing/INFRA_BLESSED` or `blessing/INFRA_NOT_BLESSED` says whether a server can run it,
`blessing/BLESSED` or `blessing/NOT_BLESSED` whether it is good enough; each holds the report. The
folder is no part of the digest, so a verdict does not change what it is about.
"""

from pathlib import Path

from keras_unigan.config import finite, read_json, write_json
from keras_unigan.errors import CodedError
from keras_unigan.serving import folders

# Gate -> names of its files: passed, not passed.
NAMES = {
    "infra": ("INFRA_BLESSED", "INFRA_NOT_BLESSED"),
    "quality": ("BLESSED", "NOT_BLESSED"),
}


def write(folder, gate, report):
    """Writes the verdict of a gate, in place of an earlier one.

    Args:
        folder: SavedModel folder, whole: later changes make the verdict void.
        gate: Key of `NAMES`.
        report: JSON-ready, with `passed`.

    Returns:
        Path of the file.
    """
    chosen, other = NAMES[gate] if report["passed"] else reversed(NAMES[gate])
    place = Path(folder) / folders.BLESSING
    digest = folders.describe(folder)["digest"]
    write_json(place / chosen, {"digest": digest, **finite(report)})
    (place / other).unlink(missing_ok=True)
    return place / chosen


def read(folder):
    """Verdicts on the bytes that a folder holds now: gate -> report.

    A verdict on other bytes is left out: it says nothing of these.
    """
    digest, found = folders.describe(folder)["digest"], {}
    for gate, names in NAMES.items():
        for name in names:
            path = Path(folder) / folders.BLESSING / name
            if path.is_file():
                report = read_json(path)
                # The name counts, so that an edit of the file cannot turn it.
                if report.get("digest") == digest:
                    found[gate] = {**report, "passed": name == names[0]}
    return found


def demand(folder, force=False):
    """Verdicts that allow a push.

    Args:
        folder: SavedModel folder.
        force: Whether a folder without any verdict is let through.

    Returns:
        As `read`.

    Raises:
        CodedError: KUG-S07 for a verdict that is negative, or none at all without `force`.
    """
    found = read(folder)
    refused = [gate for gate, report in found.items() if not report["passed"]]
    if refused:
        reason = found[refused[0]].get("reason", "see its report")
        raise CodedError(
            "KUG-S07",
            folder,
            f"{NAMES[refused[0]][1]}: {reason}",
            NAMES[refused[0]][0],
            "A model that failed a check is not published, not even by force.",
            "mend what the report names, export again and check again",
        )
    if not found and not force:
        raise CodedError(
            "KUG-S07",
            folder,
            "no verdict on these bytes",
            " or ".join(passed for passed, _ in NAMES.values()),
            "Nobody has checked that a server can run it.",
            "--run RUN checks it against its run, --study STUDY its quality; --force does without",
        )
    return found
