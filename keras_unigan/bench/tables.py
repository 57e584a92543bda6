"""Pages of a bench: a table, a figure, and each system against the baseline."""

import statistics
from pathlib import Path

import matplotlib.figure

from keras_unigan import comparison
from keras_unigan.aggregation import write_csv
from keras_unigan.bench.one import mean
from keras_unigan.bench.runs import key_of, read_rows
from keras_unigan.config import finite, write_json

BASELINE = "joint"
HEADS = ("parameters", "MACs", "s a step", "s a scan", "peak GiB")


def write(output, baseline=BASELINE):
    """Writes `table.md`, `bench.json`, `comparison.csv` and `bench.png` of the rows of a bench.

    Args:
        output: Folder of the bench.
        baseline: System that the others are compared with, where it has a row.

    Returns:
        Dict: `systems` (the lines of the table), `refused` (system -> why), `comparisons`,
        `outputs`.
    """
    output = Path(output)
    rows = {key_of(row): row for row in read_rows(output)}.values()
    refused = {row["system"]: row["refused"] for row in rows if "refused" in row}
    groups: dict = {}
    for row in rows:
        if "refused" not in row:
            groups.setdefault(row["system"], []).append(row)
    lines = sorted(map(_line, groups.values()), key=lambda line: -(line["macro_dice"] or 0.0))
    compared = _compare(groups, baseline)
    paths = {name: output / name for name in ("table.md", "bench.json", "bench.png")}
    paths["table.md"].write_text(page(lines, refused, compared, baseline) + "\n", encoding="utf-8")
    result = {"systems": lines, "refused": refused, "comparisons": compared}
    write_json(paths["bench.json"], finite(result))
    if compared:
        paths["comparison.csv"] = output / "comparison.csv"
        found = [
            {"system": c["system"], "seed": c["seed"], **r} for c in compared for r in c["rows"]
        ]
        write_csv(paths["comparison.csv"], found, ("system", "seed", *comparison.COLUMNS))
    if lines:
        _figure(lines, groups, paths["bench.png"])
    outputs = [str(path) for path in paths.values() if path.is_file()]
    return {**result, "outputs": outputs}


def _line(rows):
    """Line of the table: means over the seeds of a system, and their spread."""
    modalities = {
        modality: {
            score: mean([row["modalities"].get(modality, {}).get(score) for row in rows])
            for score in ("dice", "hd95", "assd")
        }
        for modality in dict.fromkeys(m for row in rows for m in row["modalities"])
    }
    dice = [row["macro_dice"] for row in rows if row["macro_dice"] is not None]
    return {
        "system": rows[0]["system"],
        "seeds": len(rows),
        "macro_dice": mean(dice),
        "least_dice": min(dice, default=None),
        "most_dice": max(dice, default=None),
        "modalities": modalities,
        **{key: rows[0][key] for key in ("parameters", "macs")},
        **{
            key: statistics.median(row[key] for row in rows)
            for key in ("step_seconds", "inference_seconds", "peak_gib")
        },
        "undefined": sum(row["undefined"] for row in rows),
        "failed": sum(row["failed"] for row in rows),
    }


def _compare(groups, baseline):
    """Each system against the baseline, seed by seed, paired over subjects."""
    before = {row["seed"]: row["run"] for row in groups.get(baseline, ())}
    found = []
    for name, rows in groups.items():
        for row in rows if name != baseline else ():
            if row["seed"] in before:
                systems = [
                    comparison.read_system(f"{name}={row['run']}"),
                    comparison.read_system(f"{baseline}={before[row['seed']]}"),
                ]
                result = comparison.compare(systems, ("dice",))
                found.append({"system": name, "seed": row["seed"], **_verdict(result["rows"])})
    return found


def _verdict(rows):
    """Wins, ties and losses over modalities and names, and what is significant."""
    return {
        "rows": rows,
        **{key: sum(row[key] for row in rows) for key in ("wins", "ties", "losses")},
        "better": sum(_significant(row) and row["difference"] > 0 for row in rows),
        "worse": sum(_significant(row) and row["difference"] < 0 for row in rows),
        "tests": len(rows),
    }


def _significant(row):
    return row["p_holm"] is not None and row["p_holm"] < comparison.ALPHA


def page(lines, refused, compared, baseline):
    """The table as Markdown."""
    modalities = list(dict.fromkeys(m for line in lines for m in line["modalities"]))
    heads = ["system", *(f"Dice {m}" for m in modalities), "Dice", "HD95", "ASSD", *HEADS]
    text = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for line in lines:
        of = line["modalities"]
        cells = [line["system"], *(_number(of.get(m, {}).get("dice")) for m in modalities)]
        cells.append(_spread(line))
        for score in ("hd95", "assd"):
            cells.append(_number(mean([scores[score] for scores in of.values()]), 1))
        cells += [f"{line['parameters']:,}", f"{line['macs'] / 1e9:.2f} G"]
        cells += [_number(line[k], 2) for k in ("step_seconds", "inference_seconds", "peak_gib")]
        text.append(f"| {' | '.join(cells)} |")
    if refused:
        text += ["", "Refused by the study:", ""]
        text += [f"- {name}: {why}" for name, why in refused.items()]
    if compared:
        text += ["", f"Against {baseline}, Dice of each subject and name, paired:", ""]
        heads = ("system", "seed", "win/tie/loss", "better", "worse", "tests")
        text += [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
        for one in compared:
            counts = "/".join(str(one[key]) for key in ("wins", "ties", "losses"))
            cells = [one["system"], one["seed"], counts, one["better"], one["worse"], one["tests"]]
            text.append(f"| {' | '.join(map(str, cells))} |")
        text += ["", "better, worse: tests below 0.05 after Holm's correction (Wilcoxon)."]
    return "\n".join(text)


def _number(value, digits=3):
    return "–" if value is None else f"{value:.{digits}f}"


def _spread(line):
    text = _number(line["macro_dice"])
    if line["seeds"] == 1 or line["macro_dice"] is None:
        return text
    return f"{text} ({line['least_dice']:.3f} to {line['most_dice']:.3f})"


def _figure(lines, groups, path):
    """Macro Dice of each system, every seed a point, beside its multiply-adds."""
    figure = matplotlib.figure.Figure(
        figsize=(9, 1.2 + 0.28 * len(lines)), layout="constrained", dpi=120
    )
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    names = [line["system"] for line in lines][::-1]
    for place, line in enumerate(reversed(lines)):
        values = [row["macro_dice"] for row in groups[line["system"]]]
        values = [value for value in values if value is not None]
        left.plot(values, [place] * len(values), "o", color="tab:blue", alpha=0.6)
        left.plot([line["macro_dice"] or 0.0], [place], "|", color="black", markersize=12)
        right.barh(place, line["macs"] / 1e9, color="tab:gray")
    left.set_yticks(range(len(names)), names)
    left.set_xlabel("Dice, macro over modalities")
    right.set_xlabel("multiply-adds of a patch, 10^9")
    right.set_xscale("log")
    for panel in (left, right):
        panel.grid(axis="x", alpha=0.3)
    figure.savefig(path)
