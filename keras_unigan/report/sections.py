"""Data of the page's parts: plain dictionaries and lists, made of files of the run."""

import collections
import csv
import json
import math
import statistics
from pathlib import Path

from keras_unigan import comparison
from keras_unigan.aggregation import BIASES, SCORES, UNANNOTATED, distinct, failed, mean
from keras_unigan.config import SPLITS, read_json
from keras_unigan.errors import CodedError

FEW = comparison.FEW
"""Cases below which a mean, its spread and limits of agreement say little."""
UNBALANCED = 5
"""Times as many cases in one modality as in another that are worth a warning."""
SHOWN = 10
LIMITS = 1.96
"""Standard deviations about the mean difference that hold 95 % (Bland and Altman 1986)."""
OTHER = "comparison.json"


def history(path):
    """Rows of `history.csv` as numbers; an empty list where there is none."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def history_facts(rows):
    """Numbers for the summary: epochs, steps, minutes, best validation Dice, skipped steps."""
    if not rows:
        return None
    scored = [r for r in rows if math.isfinite(r.get("val_dice", math.nan))]
    best = max(scored, key=lambda r: r["val_dice"], default=None)
    last = rows[-1]
    return {
        "epochs": len(rows),
        "steps": int(last["step"]) if "step" in last else None,
        "minutes": last["seconds"] / 60 if "seconds" in last else None,
        "best_dice": best and best["val_dice"],
        "best_epoch": best and int(best.get("epoch", rows.index(best) + 1)),
        "skipped": int(sum(r.get("skipped", 0) for r in rows)),
    }


def dead_letters(path):
    """Counts per code and the first messages of the scans that could not be prepared, or None."""
    if not path.is_file():
        return None
    lines = path.read_text(encoding="utf-8").splitlines()
    letters = [json.loads(line) for line in lines if line.strip()]
    counts = collections.Counter(letter["code"] for letter in letters)
    shown = [f"{x['case']}: {x['code']}" for x in letters[:SHOWN]]
    return {"count": len(letters), "codes": dict(sorted(counts.items())), "shown": shown}


def checked(path):
    """What `unigan check --json` has found, or None.

    Raises:
        CodedError: KUG-D08 for a file of another kind.
    """
    if path is None:
        return None
    content = read_json(path)
    if not isinstance(content, dict) or not {"findings", "levels", "counts"} <= set(content):
        raise CodedError("KUG-D08", path, "no findings", "what `unigan check --json` prints")
    return content


def warnings(scores, facts, signs, fingerprint, letters, found):
    """Sentences that a reader of the numbers needs, the gravest first.

    Args:
        scores: Contents of the metrics files.
        facts: Of `history_facts`.
        signs: Of `health.findings`, or None.
        fingerprint: Content of fingerprint.json, or None.
        letters: Of `dead_letters`, or None.
        found: Of `checked`, or None.
    """
    said = [f"Health {s.level}, {s.sign}: {s.reason}." for s in signs or ()]
    if facts and facts["skipped"]:
        said.append(f"Steps skipped because a loss or gradient was not finite: {facts['skipped']}.")
    if found and found["levels"].get("error"):
        said.append(f"unigan check found {found['levels']['error']} errors in the scans.")
    if letters and letters["count"]:
        codes = ", ".join(f"{count} {code}" for code, count in letters["codes"].items())
        said.append(f"{letters['count']} scans could not be prepared ({codes}).")
    for score in scores:
        said += _doubts(score, "" if score["known_modality"] else " (modality kept back)")
    return said + list(_imbalance(fingerprint))


def _doubts(score, told):
    """What lessens the worth of one set of scores."""
    if score["split"] != "test":
        yield f"These are scores of the {score['split']} split, which the training has seen{told}."
    if score["failed"]:
        yield (
            f"{score['failed']} of {score['cases']} cases could not be used and count as the "
            f"worst{told}."
        )
    raised = (score.get("alarm") or {}).get("raised", [])
    if raised:
        more = f" and {len(raised) - SHOWN} more" if len(raised) > SHOWN else ""
        yield (
            f"{len(raised)} of {score['cases']} cases are unlike those of training (KUG-D38), and "
            f"count like the others{told}: {', '.join(raised[:SHOWN])}{more}."
        )
    if score.get("labelled", 0) > score["cases"]:
        yield f"Only the first {score['cases']} of {score['labelled']} cases were scored{told}."
    few = [f"{r['modality']} {r['name']} ({r['n']})" for r in score["table"] if r["n"] < FEW]
    if few:
        more = f" and {len(few) - SHOWN} more" if len(few) > SHOWN else ""
        yield f"Fewer than {FEW} cases behind a mean{told}: {', '.join(few[:SHOWN])}{more}."
    if score.get("undefined"):
        yield (
            f"{score['undefined']} undefined scores (nothing there, nothing found) are in no "
            f"mean{told}."
        )
    if score.get(UNANNOTATED):
        yield (
            f"{score[UNANNOTATED]} scores of names that were not annotated in a case are in no "
            f"mean{told}."
        )


def _imbalance(fingerprint):
    """Names without voxels, and modalities with few cases, in the training scans."""
    modalities = (fingerprint or {}).get("modalities", {})
    for modality, fact in modalities.items():
        for name, count in fact["voxels"].items():
            if not count:
                yield f"No voxel of {name} in the training scans of {modality}."
    cases = {m: fact["cases"] for m, fact in modalities.items() if fact["cases"]}
    if cases and max(cases.values()) >= UNBALANCED * min(cases.values()):
        shown = ", ".join(f"{m} {count}" for m, count in cases.items())
        yield f"Modalities are unbalanced in the training scans: {shown}."


def case_table(scores):
    """Rows of all cases for the page's script: short keys, four digits.

    Returns:
        Dictionary `columns` (key and heading) and `rows` (lists in the same order), or None.
    """
    if not scores:
        return None
    several = len(scores) > 1
    keys = ["case", "modality", "name", "status", *SCORES, *BIASES, "alarm_raised"]
    heads = {s: SCORES[s][0] for s in SCORES}
    heads |= {"volume_error_ml": "volume error ml", "volume_error": "volume error"}
    heads |= {"false_positives": "false pos.", "alarm_raised": "alarm"}
    if several:
        keys.insert(3, "known_modality")
        heads["known_modality"] = "modality told"
    rows = [[_short(row.get(key)) for key in keys] for score in scores for row in score["rows"]]
    used = [i for i in range(len(keys)) if any(row[i] is not None for row in rows)]
    return {
        "columns": [[keys[i], heads.get(keys[i], keys[i])] for i in used],
        "rows": [[row[i] for i in used] for row in rows],
    }


def _short(value):
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value


def agreement(rows):
    """Predicted against true volumes of each modality and name (Bland and Altman 1986).

    Args:
        rows: Rows of `evaluation`.

    Returns:
        List of dictionaries: `modality`, `name`, `n`, `left_out` (failed cases, not annotated ones,
        and those whose volume is not known or nothing for both), `bias` (mean of predicted minus
        true, ml), `sd`, `low` and `high` (limits of agreement) and `points` (mean of both, and
        their difference, of each case). NaN where there are too few.
    """
    found = []
    for modality in distinct(rows, "modality"):
        own = [r for r in rows if r["modality"] == modality]
        for name in distinct(own, "name"):
            found.append(_agreement(modality, name, [r for r in own if r["name"] == name]))
    return found


def _agreement(modality, name, rows):
    kept = [
        r
        for r in rows
        if not failed(r)
        and r["status"] not in ("undefined", UNANNOTATED)
        and None not in (r.get("volume_true_ml"), r.get("volume_pred_ml"))
    ]
    pairs = [(r["volume_true_ml"], r["volume_pred_ml"]) for r in kept]
    differences = [predicted - true for true, predicted in pairs]
    bias = mean(differences)
    sd = statistics.stdev(differences) if len(differences) > 1 else math.nan
    return {
        "modality": modality,
        "name": name,
        "n": len(kept),
        "left_out": len(rows) - len(kept),
        "bias": bias,
        "sd": sd,
        "low": bias - LIMITS * sd,
        "high": bias + LIMITS * sd,
        "points": [((true + predicted) / 2, predicted - true) for true, predicted in pairs],
    }


def anatomy(rows):
    """What translations keep of each name and what they invent; means over cases.

    Args:
        rows: Rows of translation.json, with `names`.

    Returns:
        List of dictionaries: `source`, `target`, `method`, `name`, `n` (cases), and of each score
        its mean and `<score>_n`, the cases where it is defined.
    """
    keys = ("anatomy_dice", "label_dice", "hallucination")
    groups = collections.defaultdict(list)
    for row in rows:
        for name, values in (row.get("names") or {}).items():
            groups[row["source"], row["target"], row["method"], name].append(values)
    table = []
    for (source, target, method, name), cases in groups.items():
        line = {"source": source, "target": target, "method": method, "name": name}
        line["n"] = len(cases)
        for key in keys:
            values = [c[key] for c in cases if c.get(key) is not None]
            line |= {key: mean(values), f"{key}_n": len(values)}
        table.append(line)
    return table


def comparisons(run, others):
    """Results of `comparison.compare`: of the run beside others, and of files that hold one.

    Raises:
        CodedError: KUG-D08 for a JSON file of another kind, and as `comparison.compare`.
    """
    own = Path(run) / OTHER
    others = list(others) or ([str(own)] if own.is_file() else [])
    files = [o for o in others if str(o).endswith(".json") and "=" not in str(o) and _is_result(o)]
    systems = [o for o in others if o not in files]
    found = []
    if systems:
        read = [comparison.read_system(str(s)) for s in (run, *systems)]
        found.append(comparison.compare(read))
    found += [read_json(path) for path in files]
    return [_grouped(each) for each in found]


def _is_result(path):
    """Whether a file is a result of `unigan compare`; metrics files are systems.

    Raises:
        CodedError: KUG-D01, KUG-D08.
    """
    content = read_json(path)
    if isinstance(content, dict) and {"systems", "rows", "notes"} <= set(content):
        return True
    if isinstance(content, dict) and {"rows", "known_modality"} <= set(content):
        return False
    raise CodedError(
        "KUG-D08", path, "no comparison", "what `unigan compare -o` writes, or a run folder"
    )


def _grouped(result):
    """A comparison with a table for each score, way to predict and pair of systems."""
    groups = collections.defaultdict(list)
    for row in result["rows"]:
        groups[row["score"], row["known_modality"], row["a"], row["b"]].append(row)
    tables = [
        {
            "score": SCORES[score][0],
            "more": SCORES[score][1] > 0,
            "told": known,
            "a": a,
            "b": b,
            "unit": rows[0].get("unit") or "",
            "rows": rows,
        }
        for (score, known, a, b), rows in groups.items()
    ]
    return {"tables": tables, "notes": result["notes"], "alpha": result["alpha"]}


def splits(study, manifest):
    """Cases per split and modality, and subjects per split where the study is known."""
    if study is not None:
        return {
            "counts": {
                split: {
                    m: sum(c.split == split and c.modality == m for c in study.cases)
                    for m in study.modalities
                }
                for split in SPLITS
            },
            "subjects": {
                split: sorted({c.subject for c in study.cases if c.split == split})
                for split in SPLITS
            },
        }
    if manifest is not None:
        return {"counts": manifest["splits"], "subjects": None}
    return None
