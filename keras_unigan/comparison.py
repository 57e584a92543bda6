"""Two systems on the same cases: paired differences per modality and name, with their doubt.

The unit is the subject: scores of one subject's cases are averaged first, as they are no
independent evidence. A system may be several runs ("individual": one specialist a modality). Only
the JSON files of `evaluation` are read, so no model is loaded.
"""

import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np

from keras_unigan.aggregation import (
    DISTANCES,
    SCORES,
    UNANNOTATED,
    distinct,
    failed,
    unit_of,
    worst,
)
from keras_unigan.config import read_json
from keras_unigan.errors import CodedError
from keras_unigan.paired_tests import holm, paired_statistics

FILES = {True: "metrics.json", False: "metrics_unknown.json"}
"""Whether the modality was told -> file of a run folder."""
ALPHA = 0.05
FEW = 10
"""Subjects below which a bootstrap says less than it seems to."""
UNSEEN = "KUG-T03"
"""Status of the cases of a modality that a specialist does not know."""

COLUMNS = (
    *("known_modality", "score", "a", "b", "modality", "name", "n", "undefined", "failed_a"),
    *("failed_b", "mean_a", "mean_b", "difference", "low", "high", "wins", "ties", "losses"),
    *("p", "p_holm", "least_p", "rank_biserial", "cohen_dz", "unit"),
)


@dataclasses.dataclass(frozen=True)
class System:
    """What is compared: the scores of one run, or of several that share the modalities.

    Attributes:
        name: What tables call it.
        parts: Run folders or metrics files.
        scored: Whether the modality was told -> the content of the metrics files, one a part.
    """

    name: str
    parts: tuple
    scored: dict


def read_system(text):
    """A system of the command line.

    Args:
        text: `runs/a`, `metrics.json`, `name=runs/a`, or `name=runs/ct,runs/t1` for specialists.

    Raises:
        CodedError: KUG-T04 for a path without scores, KUG-D08 for a file that is none.
    """
    name, equals, paths = text.partition("=")
    parts = tuple(p for p in (paths if equals else text).split(",") if p)
    if not parts:
        raise CodedError("KUG-T02", text, "no run", "name=RUN[,RUN…]")
    found: dict = {}
    for part in parts:
        contents = {c["known_modality"]: c for c in _read_scores(part)}
        for known, content in contents.items():
            found.setdefault(known, []).append(content)
    whole = {known: c for known, c in found.items() if len(c) == len(parts)}
    if not equals:
        name = "+".join(_short(part) for part in parts)
    return System(name, parts, whole)


def _short(part):
    path = Path(part)
    return path.parent.name if path.name in FILES.values() and path.parent.name else path.name


def _read_scores(part):
    path = Path(part)
    files = [path] if path.is_file() else [path / name for name in FILES.values()]
    files = [file for file in files if file.is_file()]
    if not files:
        raise CodedError(
            "KUG-T04", part, "no scores", "metrics.json", fix=f"unigan evaluate {part} study.json"
        )
    contents = [read_json(file) for file in files]
    for file, content in zip(files, contents, strict=True):
        missing = {"rows", "known_modality", "split"} - set(content)
        if missing:
            raise CodedError(
                "KUG-D08", file, f"no {', '.join(sorted(missing))}", "scores of `unigan evaluate`"
            )
    return contents


def compare(systems, scores=("dice", "hd95"), alpha=ALPHA, seed=0):
    """Compares every pair of systems, modality told and kept back apart.

    Args:
        systems: At least two `System`.
        scores: Keys of `aggregation.SCORES`.
        alpha: Level after Holm's correction, which covers all tests of one score and one way to
            predict.
        seed: Of the bootstrap.

    Returns:
        Dict: `alpha`, `systems` (name -> parts), `rows` (see `COLUMNS`; `a` is better where wins
        outnumber losses, whatever the sign of `difference`, which is a minus b) and `notes`
        (sentences a reader needs: what small numbers cannot show, what was left out).

    Raises:
        CodedError: KUG-T02 for an unknown score or fewer than two systems, KUG-T07 where the
            systems were scored on other cases, labels or definitions, KUG-T04 where no way to
            predict was scored for all.
    """
    _check(systems, scores, alpha)
    rows, notes = [], []
    for known in (True, False):
        present = [s for s in systems if known in s.scored]
        told = "told" if known else "kept back"
        if len(present) < len(systems) and present:
            lacking = ", ".join(s.name for s in systems if s not in present)
            notes.append(f"Modality {told}: not scored for {lacking}, so left out.")
        if not known:
            routed = [s.name for s in present if len(s.parts) > 1]
            present = [s for s in present if len(s.parts) == 1]
            if routed and len(present) > 1:
                names = ", ".join(routed)
                notes.append(f"Modality kept back: {names} cannot choose a specialist without it.")
        if len(present) < 2:
            continue
        joined = {s.name: _joined(s, known) for s in present}
        notes += _other_ways(present, known, told)
        for score in scores:
            found = _table(joined, score, known, seed)
            rows += found
            notes += _doubts(found, alpha, told)
    if not rows:
        raise CodedError(
            "KUG-T04",
            " ".join(s.name for s in systems),
            "no way to predict (modality told or kept back) that two of them were scored in",
            "metrics.json of both",
            fix="unigan evaluate RUN study.json for each",
        )
    return {
        "alpha": alpha,
        "systems": {s.name: list(s.parts) for s in systems},
        "rows": rows,
        "notes": notes,
    }


def _other_ways(systems, known, told):
    """Says what differs beside the networks: views, runs that are averaged, post-processing."""
    ways = {s.name: sorted({_made(content) for content in s.scored[known]}) for s in systems}
    if len({way for found in ways.values() for way in found}) > 1:
        shown = "; ".join(f"{name}: {', '.join(found)}" for name, found in ways.items())
        yield f"Modality {told}: label maps were not made in one way ({shown})."


def _made(content):
    """How the label maps were made that a metrics file is about."""
    method = content.get("method") or {}
    runs, steps = len(method.get("runs") or ()), len(method.get("postprocessing") or ())
    parts = [f"mean of {runs} runs"] * (runs > 1)
    if method.get("tta", "none") != "none":
        parts.append(f"--tta {method['tta']}")
    if steps:
        parts.append(f"{steps} step{'s' * (steps > 1)} of post-processing")
    return " and ".join(parts) or "the network alone"


def _check(systems, scores, alpha):
    if len(systems) < 2:
        raise CodedError("KUG-T02", "systems", f"{len(systems)}", "at least two")
    names = [s.name for s in systems]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise CodedError(
            "KUG-T02", "systems", f"{twice[0]!r} twice", "names that differ", fix="NAME=RUN"
        )
    for score in scores:
        if score not in SCORES:
            raise CodedError("KUG-T02", "--score", repr(score), f"one of {list(SCORES)}")
    if not 0 < alpha < 1:
        raise CodedError("KUG-T02", "--alpha", f"{alpha}", "between 0 and 1")


def _joined(system, known):
    """Content of one system: of several parts, each modality's rows from its specialist."""
    contents = system.scored[known]
    if len(contents) == 1:
        return contents[0]
    rows = []
    for modality in distinct([r for c in contents for r in c["rows"]], "modality"):
        own = [[r for r in c["rows"] if r["modality"] == modality] for c in contents]
        fit = [r for r in own if any(row["status"] not in (UNSEEN, UNANNOTATED) for row in r)]
        if len(fit) != 1:
            raise CodedError(
                "KUG-T07",
                f"{system.name}, {modality}",
                f"{len(fit)} of {len(contents)} runs that know it",
                "one specialist a modality",
                fix="name one run that was trained on it, evaluated on the whole study",
            )
        rows += fit[0]
    first = contents[0]
    for other, part in zip(contents[1:], system.parts[1:], strict=True):
        _same_way(first, other, system.parts[0], part)
    return {**first, "rows": rows}


def _same_way(one, other, a, b):
    """Refuses scores of other splits or definitions."""
    for key in ("split", "options"):
        if one.get(key) != other.get(key):
            raise CodedError(
                "KUG-T07",
                f"{a}, {b}",
                f"{key} {one.get(key)} and {other.get(key)}",
                "the same",
                "Scores of another kind do not compare.",
                "unigan evaluate both the same way",
            )


def _pairs(one, other, a, b):
    """Rows of the same case and name side by side; refuses other cases and other truths."""
    _same_way(one, other, a, b)
    tables = [{(r["case"], r["name"]): r for r in c["rows"]} for c in (one, other)]
    only = set(tables[0]) ^ set(tables[1])
    if only:
        sides = [len(set(t) & only) for t in tables]
        shown = ", ".join(" ".join(key) for key in sorted(only)[:3])
        raise CodedError(
            "KUG-T07",
            f"{a}, {b}",
            f"{sides[0]} rows only in the first and {sides[1]} only in the second ({shown})",
            "the same cases and names",
            "Whoever leaves out hard cases would win.",
            "unigan evaluate both on the same study and split, without --limit",
        )
    for key, first in tables[0].items():
        sizes = first["n_true"], tables[1][key]["n_true"]
        known = [row["status"] != UNANNOTATED for row in (first, tables[1][key])]
        if (None not in sizes and sizes[0] != sizes[1]) or len(set(known)) > 1:
            pairs = zip(sizes, known, strict=True)
            shown = [f"{n} true voxels" if yes else "not annotated" for n, yes in pairs]
            raise CodedError(
                "KUG-T07",
                f"{a}, {b}",
                f"{key[0]} {key[1]} of {shown[0]} and {shown[1]}",
                "the same label maps",
                fix="unigan evaluate both on the same study",
            )
    return [(first, tables[1][key]) for key, first in tables[0].items()]


def _table(joined, score, known, seed):
    """Rows of one score: every pair of systems, modality and name; Holm over all of them."""
    rows = []
    for (a, one), (b, other) in itertools.combinations(joined.items(), 2):
        pairs = _pairs(one, other, a, b)
        keys = dict.fromkeys((x["modality"], x["name"]) for x, _ in pairs)
        for modality, name in keys:
            own = [p for p in pairs if (p[0]["modality"], p[0]["name"]) == (modality, name)]
            head = {"known_modality": known, "score": score, "a": a, "b": b}
            head |= {"modality": modality, "name": name}
            rows.append({**head, **_paired(own, score, seed)})
    corrected = holm([row["p"] for row in rows])
    return [{**row, "p_holm": p} for row, p in zip(rows, corrected, strict=True)]


def _paired(pairs, score, seed):
    """Statistics of one modality and name."""
    unit = unit_of([row for pair in pairs for row in pair])
    mixed = score in DISTANCES and unit == "mixed"
    pairs = [pair for pair in pairs if pair[0]["status"] != UNANNOTATED]
    # What both rightly leave empty says nothing; what one of them does is a success of that one.
    defined = [p for p in pairs if any(r["status"] != "undefined" for r in p)]
    subjects: dict = {}
    empty = 0
    for pair, values in zip(defined, _values(defined, score), strict=True):
        if any(map(math.isnan, values)):  # e.g. the sensitivity to lesions that are not there
            empty += 1
        else:
            subjects.setdefault(pair[0]["subject"], []).append(values)
    means = np.array([np.mean(v, axis=0) for v in ({} if mixed else subjects).values()])
    means = means.reshape(-1, 2)
    return {
        "n": len(means),
        "undefined": len(pairs) - len(defined) + empty,
        "failed_a": sum(failed(p[0]) for p in pairs),
        "failed_b": sum(failed(p[1]) for p in pairs),
        "mean_a": float(means[:, 0].mean()) if len(means) else math.nan,
        "mean_b": float(means[:, 1].mean()) if len(means) else math.nan,
        **paired_statistics(means[:, 0] - means[:, 1], SCORES[score][1], seed),
        "unit": unit if score in DISTANCES else None,
    }


def _values(pairs, score):
    """Scores of each pair; the best there is for a rightly empty prediction beside a wrong one."""
    known = [r[score] for pair in pairs for r in pair if r.get(score) is not None]
    # A case of unknown size is as far off as the farthest of the others.
    farthest = worst(score, max(known, default=math.nan))
    for pair in pairs:
        yield [_value(row, score, farthest) for row in pair]


def _value(row, score, farthest):
    if row["status"] == "undefined":
        return 1.0 if SCORES[score][1] > 0 else 0.0
    if row.get(score) is not None:
        return row[score]
    return farthest if failed(row) else math.nan


def _doubts(rows, alpha, told):
    """What a reader of one score's rows has to know of small numbers."""
    notes, tests, score = [], len(rows), SCORES[rows[0]["score"]][0]
    head = f"{score}, modality {told}"
    blind = [r for r in rows if tests * r["least_p"] > alpha]
    if blind:
        most = max(r["n"] for r in blind)
        least = min(r["least_p"] for r in blind)
        notes.append(
            f"{head}: {len(blind)} of {tests} tests have too few subjects (n up to {most}) for "
            f"{alpha:g} after Holm's first step: the least p of n={most} is {least:.2g}, times "
            f"{tests} tests {min(1, tests * least):.2g}. Read the intervals and effect sizes, and "
            "do not take the lack of a small p for equality."
        )
    few = sorted({r["n"] for r in rows if 1 < r["n"] < FEW})
    if few:
        found = ", ".join(map(str, few))
        notes.append(f"{head}: bootstrap intervals of n={found} are likely too narrow.")
    count = sum(r["failed_a"] + r["failed_b"] for r in rows)
    if count:
        notes.append(f"{head}: {count} failed scores count as the worst.")
    count = sum(r["undefined"] for r in rows)
    if count:
        notes.append(f"{head}: {count} pairs undefined for both (nothing there, nothing to score).")
    mixed = sum(r["unit"] == "mixed" for r in rows)
    if mixed:
        notes.append(f"{head}: {mixed} rows mix mm and pixels, and have no numbers.")
    return notes
