"""One offline HTML page about a run: scores, overlays, curves, settings with reasons, environment.

It reads only files of the run folder (and of its shards and study, where they are still there), and
says which ones it did not find. Pictures are embedded; the page loads nothing.
"""

import base64
import csv
import io
import math
import os
from pathlib import Path

import jinja2
import matplotlib.figure
import numpy as np

from keras_unigan import health
from keras_unigan.config import SPLITS, Study, read_json
from keras_unigan.errors import CodedError
from keras_unigan.systems import SYSTEMS

NOTICE = "For research use only: not a medical device."
COLOURS = ("#ff5a36", "#35c3ff", "#8ae234", "#ffd23f", "#c77dff", "#ff8fab", "#4be1c3")
# (file, heading) of the two ways to predict.
SCORES = (
    ("metrics.json", "The model was told the modality"),
    ("metrics_unknown.json", "The modality was kept from the model"),
)


def write(run, study=None):
    """Writes `report.html` into a run folder.

    Args:
        run: Run folder.
        study: `config.Study` or path of its file, for the list of subjects per split; None: only
            the counts of the shards' manifest, if it is there.

    Returns:
        Path of the page.

    Raises:
        CodedError: KUG-T04 when the folder holds no plan and no scores.
    """
    run = Path(run)
    parts = {n: _json(run / f"{n}.json") for n in ("config", "plan", "run")}
    if parts["plan"] is None and not any((run / name).is_file() for name, _ in SCORES):
        raise CodedError(
            "KUG-T04",
            run,
            "neither plan.json nor metrics.json",
            "a run folder",
            fix="unigan train shards -o RUN, then unigan evaluate RUN study.json",
        )
    shards = Path((parts["config"] or {}).get("shards", run / "shards"))
    study = study if study is None or isinstance(study, Study) else Study.load(study)
    scores = [
        {"title": title, "file": name, **_json(run / name)}
        for name, title in SCORES
        if (run / name).is_file()
    ]
    history = _history(run / "history.csv")
    system = SYSTEMS.get((parts["config"] or {}).get("model"))
    page = _template().render(
        notice=NOTICE,
        title=(parts["plan"] or {}).get("study", run.name),
        run=run.name,
        system=system,
        config=_shorten(parts["config"]),
        plan=parts["plan"],
        environment=_shorten(parts["run"]),
        scores=scores,
        curves=_curves(history),
        history=_history_facts(history),
        health=_health(history, parts["plan"]),
        translation=_translation(run),
        overlays=_overlays(run, scores),
        colours=dict(zip(_names(scores), _cycle(COLOURS), strict=False)),
        fingerprint=_json(_first(run / "fingerprint.json", shards / "fingerprint.json")),
        splits=_splits(study, _json(shards / "shards.json")),
    )
    path = run / "report.html"
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)
    return path


def _template():
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("keras_unigan"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    return environment.get_template("report.html.j2")


def _number(value, digits=3):
    """A score as text; a dash where there is none."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def _first(*paths):
    return next((p for p in paths if p.is_file()), paths[0])


def _json(path):
    """Content of a JSON file, or None where there is no such file."""
    return read_json(path) if path.is_file() else None


def _shorten(value):
    """The same data with absolute paths cut to their last part: a page is passed around."""
    if isinstance(value, dict):
        return {k: _shorten(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_shorten(v) for v in value]
    if isinstance(value, str) and os.path.isabs(value):
        return Path(value).name
    return value


def _names(scores):
    return list(dict.fromkeys(row["name"] for score in scores for row in score["table"]))


def _cycle(values):
    while True:
        yield from values


def _history(path):
    """Rows of `history.csv` as numbers; an empty list where there is none."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def _health(history, plan):
    """Signs of the last epoch, the worst first; None without a history."""
    domains = len(plan["modalities"]) if plan else None
    return health.findings(history, domains) if history else None


def _translation(run):
    """Scores and last picture of translations; None for a run that made none."""
    scores, picture = _json(run / "translation.json"), run / "translations.png"
    if scores is None and not picture.is_file():
        return None
    return {"scores": scores, "picture": _embed(picture.read_bytes()) if picture.is_file() else ""}


def _is_dice(name):
    return name.startswith("val_dice") and "loss" not in name


def _history_facts(history):
    """Numbers for the summary: epochs, steps, minutes, best validation Dice, skipped steps."""
    if not history:
        return None
    scored = [r for r in history if math.isfinite(r.get("val_dice", math.nan))]
    best = max(scored, key=lambda r: r["val_dice"], default=None)
    last = history[-1]
    return {
        "epochs": len(history),
        "steps": int(last["step"]) if "step" in last else None,
        "minutes": last["seconds"] / 60 if "seconds" in last else None,
        "best_dice": best and best["val_dice"],
        "best_epoch": best and int(best.get("epoch", history.index(best) + 1)),
        "skipped": int(sum(r.get("skipped", 0) for r in history)),
    }


def _curves(history):
    """Pictures: validation Dice, and every other logged term in a panel of its own."""
    if not history:
        return []
    names = dict.fromkeys(key for row in history for key in row)
    axis = "step" if "step" in names else "epoch"
    terms = [n for n in names if n not in ("epoch", "step", "seconds") and not _is_dice(n)]
    terms = list(dict.fromkeys(n.removeprefix("val_") for n in terms))
    pictures = []
    dice = [n for n in names if _is_dice(n)]
    if dice:
        figure = matplotlib.figure.Figure(figsize=(8, 3.2), layout="constrained")
        panel = figure.subplots()
        for name in dice:
            _plot(panel, history, axis, name, name.removeprefix("val_"), "-", name == "val_dice")
        panel.set(xlabel=axis, ylabel="validation Dice", ylim=(0, 1))
        panel.legend(fontsize=8)
        pictures.append({"title": "Validation Dice of the averaged weights", "src": _png(figure)})
    if terms:
        columns = min(3, len(terms))
        rows = -(-len(terms) // columns)
        figure = matplotlib.figure.Figure(figsize=(8, 2.1 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for panel, term in zip(panels, terms, strict=False):
            _plot(panel, history, axis, term, "training", "-")
            _plot(panel, history, axis, f"val_{term}", "validation", "--")
            panel.set_title(term, fontsize=9)
            panel.tick_params(labelsize=7)
            if len(panel.lines) > 1:
                panel.legend(fontsize=7)
        for panel in panels[len(terms) :]:
            panel.set_axis_off()
        pictures.append({"title": "Terms of the game, one panel each", "src": _png(figure)})
    return pictures


def _plot(panel, history, axis, name, label, style, strong=False):
    points = [(r.get(axis, i), r[name]) for i, r in enumerate(history) if name in r]
    if points:
        panel.plot(*zip(*points, strict=True), style, label=label, lw=2.2 if strong else 1.2)


def _png(figure, dpi=90):
    """Data URI of a figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return _embed(buffer.getvalue())


def _embed(png):
    """Data URI of the bytes of a PNG file."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _overlays(run, scores):
    """Pictures of the chosen cases; of the first scores that have any."""
    score = next((s for s in scores if s.get("overlays")), None)
    overlays = []
    for chosen in score["overlays"] if score else ():
        path = run / chosen["file"]
        if path.is_file():
            with np.load(path) as arrays:
                overlays.append({**chosen, **_slices(dict(arrays), _names(scores))})
    return overlays


def _slices(arrays, names):
    """Slices of one case as pictures: the scan, and the scan with both contours."""
    colours = dict(zip(names, _cycle(COLOURS), strict=False))
    pictures = []
    for i, place in enumerate(arrays["slices"]):
        image = arrays["image"][i]
        spacing = arrays["spacing"]
        width, height = image.shape[0] * spacing[0], image.shape[1] * spacing[1]
        side = 3.0 * min(max(height / width, 0.4), 1.6)
        figure = matplotlib.figure.Figure(figsize=(6, side), facecolor="black")
        panels = figure.subplots(1, 2, gridspec_kw={"wspace": 0.01})
        figure.subplots_adjust(0, 0, 1, 1)
        for panel in panels:
            panel.imshow(
                image.T,
                cmap="gray",
                origin="lower",
                aspect=spacing[1] / spacing[0],
                vmin=0,
                vmax=255,
            )
            panel.set_axis_off()
        for name, truth, prediction in zip(
            arrays["names"], arrays["truth"][i], arrays["prediction"][i], strict=True
        ):
            for mask, style in ((truth, "solid"), (prediction, "dashed")):
                _contour(panels[1], mask, colours[str(name)], style)
        pictures.append({"place": int(place), "src": _png(figure, 80)})
    middle = int(np.searchsorted(arrays["slices"], arrays["middle"]))
    return {"pictures": pictures, "middle": middle}


def _contour(panel, mask, colour, style):
    """Outline of a mask; padded, so that it closes at the edge of the slice."""
    if mask.any():
        x, y = np.arange(-1, mask.shape[0] + 1), np.arange(-1, mask.shape[1] + 1)
        padded = np.pad(mask, 1).T.astype(float)
        panel.contour(x, y, padded, [0.5], colors=[colour], linewidths=1.3, linestyles=style)
        panel.set(xlim=(-0.5, mask.shape[0] - 0.5), ylim=(-0.5, mask.shape[1] - 0.5))


def _splits(study, manifest):
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
