"""Pictures of the page: figures as PNG, and slices of scans for the page's own script to draw."""

import base64
import io
import itertools
import math

import matplotlib.figure
import matplotlib.image
import numpy as np

from keras_unigan.overlays import PLANES

COLOURS = ("#ff5a36", "#35c3ff", "#8ae234", "#ffd23f", "#c77dff", "#ff8fab", "#4be1c3")
SIDE = 256
"""Most pixels along a side of an embedded slice; larger ones are thinned out."""
LOSSLESS = 2**17
"""Pixels of slices from which on they are packed with loss, which nobody sees in that many."""
PANELS = 24
"""Most panels of one figure."""
_LEVELS = {"WATCH": "#d9822b", "FAIL": "#c0182f"}


def embed(data, kind="png"):
    """Data URI of the bytes of a picture."""
    return f"data:image/{kind};base64," + base64.b64encode(data).decode()


def _png(figure, dpi=90):
    """Data URI of a figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return embed(buffer.getvalue())


def colours(scores):
    """Name -> colour, in the order in which names are scored."""
    names = dict.fromkeys(row["name"] for score in scores for row in score["table"])
    return dict(zip(names, itertools.cycle(COLOURS), strict=False))


def _is_dice(name):
    return name.startswith("val_dice") and "loss" not in name


def curves(history, signs=()):
    """Validation Dice, and every other logged term in a panel of its own.

    A vertical line in the panel of its term says since when a sign of bad health lasts.

    Args:
        history: Rows of `history.csv`.
        signs: Of `health.findings`, or None.

    Returns:
        List of `{"title", "src"}`.
    """
    if not history:
        return []
    names = dict.fromkeys(key for row in history for key in row)
    axis = "step" if "step" in names else "epoch"
    terms = [
        n
        for n in names
        if n not in ("epoch", "step", "seconds", "step_seconds") and not _is_dice(n)
    ]
    terms = list(dict.fromkeys(n.removeprefix("val_") for n in terms))
    pictures = []
    dice = [n for n in names if _is_dice(n)]
    if dice:
        figure = matplotlib.figure.Figure(figsize=(8, 3.2), layout="constrained")
        panel = figure.subplots()
        for name in dice:
            _plot(panel, history, axis, name, name.removeprefix("val_"), "-", name == "val_dice")
        panel.set(xlabel=axis, ylabel="validation Dice", ylim=(0, 1))
        panel.legend(fontsize=8, loc="lower right")
        pictures.append({"title": "Validation Dice of the averaged weights", "src": _png(figure)})
    if terms:
        figure, panels = _grid(len(terms), 2.1)
        for panel, term in zip(panels, terms, strict=False):
            _plot(panel, history, axis, term, "training", "-")
            _plot(panel, history, axis, f"val_{term}", "validation", "--")
            _mark(panel, history, axis, [s for s in signs or () if s.term == term])
            panel.set_title(term, fontsize=9)
            panel.tick_params(labelsize=7)
            if len(panel.lines) > 1:
                panel.legend(fontsize=7, loc="upper right")
        pictures.append({"title": "Terms of the game, one panel each", "src": _png(figure)})
    return pictures


def _grid(count, height):
    """A figure with so many panels of so many inches, three in a row.

    Margins are fixed: a layout engine draws all of it twice over.
    """
    columns = min(3, count)
    rows = -(-count // columns)
    width, tall = 8, height * rows
    figure = matplotlib.figure.Figure(figsize=(width, tall))
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    inside = 1 - 0.65 / height
    figure.subplots_adjust(
        left=0.6 / width,
        right=1 - 0.1 / width,
        bottom=0.4 / tall,
        top=1 - 0.25 / tall,
        wspace=0.3 if columns > 1 else 0,
        hspace=(1 - inside) / inside,
    )
    for panel in panels[count:]:
        panel.set_axis_off()
    return figure, panels


def _plot(panel, history, axis, name, label, style, strong=False):
    points = [(r.get(axis, i), r[name]) for i, r in enumerate(history) if name in r]
    if points:
        panel.plot(*zip(*points, strict=True), style, label=label, lw=2.2 if strong else 1.2)


def _mark(panel, history, axis, signs):
    for sign in signs:
        at = next((r for i, r in enumerate(history) if r.get("epoch", i + 1) == sign.since), None)
        if at is not None:
            panel.axvline(
                at.get(axis, sign.since), color=_LEVELS[sign.level], lw=1, ls=":", label=sign.level
            )


def bland_altman(agreement):
    """Difference of predicted and true volumes over their mean, a panel a modality and name.

    Args:
        agreement: Of `sections.agreement`, or None.

    Returns:
        Data URI, or "" where no volume is known; the first `PANELS` of those that have points.
    """
    shown = [a for a in agreement or () if a["n"]][:PANELS]
    if not shown:
        return ""
    figure, panels = _grid(len(shown), 2.3)
    for panel, found in zip(panels, shown, strict=False):
        panel.scatter(*zip(*found["points"], strict=True), s=10, alpha=0.6)
        panel.axhline(0, color="grey", lw=0.8)
        panel.axhline(found["bias"], color="#0b63a5", lw=1.4)
        for limit in (found["low"], found["high"]):
            if math.isfinite(limit):
                panel.axhline(limit, color="#0b63a5", lw=1, ls="--")
        panel.set_title(f"{found['modality']} {found['name']} (n={found['n']})", fontsize=9)
        panel.tick_params(labelsize=7)
        panel.set_xlabel("mean of both, ml", fontsize=7)
        panel.set_ylabel("predicted − true, ml", fontsize=7)
    return _png(figure)


def forests(found):
    """Differences with their intervals, a figure for each table of a comparison.

    Args:
        found: One of `sections.comparisons`.

    Returns:
        List of data URIs, "" for tables without numbers or with more than `PANELS` rows.
    """
    return [_forest(table) for table in found["tables"]]


def _forest(table):
    rows = [r for r in table["rows"] if _is_number(r["difference"])]
    if not rows or len(rows) > PANELS:
        return ""
    figure = matplotlib.figure.Figure(figsize=(8, 0.8 + 0.28 * len(rows)), layout="constrained")
    panel = figure.subplots()
    for place, row in enumerate(rows):
        ends = [row["low"], row["high"]]
        if all(map(_is_number, ends)):
            panel.plot(ends, [place, place], color="#0b63a5", lw=1.6)
        panel.plot(row["difference"], place, "o", color="#0b63a5", ms=5)
    panel.axvline(0, color="grey", lw=0.8)
    names = [f"{r['modality']} {r['name']} (n={r['n']})" for r in rows]
    panel.set_yticks(range(len(rows)), names, fontsize=8)
    panel.set_ylim(len(rows) - 0.5, -0.5)
    unit = f" {table['unit']}" if table["unit"] else ""
    better = table["a"] if table["more"] else table["b"]
    panel.set_xlabel(
        f"{table['score']}{unit}: {table['a']} − {table['b']} (right of 0: {better} is better)",
        fontsize=8,
    )
    panel.tick_params(axis="x", labelsize=7)
    return _png(figure)


def _is_number(value):
    return isinstance(value, (int, float)) and math.isfinite(value)


def overlays(run, scores):
    """Slices of the chosen cases in three planes; of the first scores that have any.

    Returns:
        List of dictionaries with `case`, `modality`, `rank`, `dice`, `names` and `planes` (see
        `_sprites`).
    """
    score = next((s for s in scores if s.get("overlays")), None)
    found = []
    for chosen in score["overlays"] if score else ():
        path = run / chosen["file"]
        if path.is_file():
            with np.load(path) as arrays:
                found.append({**chosen, "planes": _planes(arrays, colours(scores))})
    return found


def _planes(arrays, palette):
    """What the page's script draws of one case.

    Returns:
        Dictionary `colours` of the names in the case, and `planes`: of each one with `plane`,
        `slices` (their places), `middle` (index of the slice to begin with), `width` and `height`
        of a slice in pixels, `aspect` (mm up over mm across of a pixel), `scan` (data URI of the
        slices, one below the other) and `masks` (the same; red: truth, green: prediction, each the
        number of the last name that holds the pixel, counted from 1).
    """
    names = [str(name) for name in arrays["names"]]
    planes = []
    for plane, (across, up) in PLANES.items():
        prefix = "" if plane == "axial" else f"{plane}_"
        if f"{prefix}image" not in arrays:
            continue
        image = arrays[f"{prefix}image"]
        step = max(1, math.ceil(max(image.shape[1:]) / SIDE))
        masks = [_painted(arrays[f"{prefix}{kind}"]) for kind in ("truth", "prediction")]
        image, *masks = (array[:, ::step, ::step] for array in (image, *masks))
        places = arrays[f"{prefix}slices"]
        spacing = arrays["spacing"]
        planes.append(
            {
                "plane": plane,
                "slices": places.tolist(),
                "middle": int(np.searchsorted(places, arrays[f"{prefix}middle"])),
                "width": image.shape[1],
                "height": image.shape[2],
                "aspect": round(float(spacing[up] / spacing[across]), 5),
                "scan": _strip(image, "png" if image.size < LOSSLESS else "jpeg"),
                "masks": _strip(np.stack([*masks, np.zeros_like(image)], -1), "png"),
            }
        )
    return {"colours": [palette.get(name, COLOURS[0]) for name in names], "planes": planes}


def _painted(masks):
    """Number of the last name that holds each pixel, from 1; uint8 of masks `(n, names, …)`."""
    painted = np.zeros((masks.shape[0], *masks.shape[2:]), np.uint8)
    for number in range(masks.shape[1]):
        painted[masks[:, number]] = number + 1
    return painted


def _strip(slices, kind):
    """Data URI of slices `(n, across, up[, 3])`, one below the other, up being up."""
    turned = np.swapaxes(slices, 1, 2)[:, ::-1]
    pixels = turned.reshape(-1, *turned.shape[2:])
    pixels = np.stack([pixels] * 3, -1) if pixels.ndim == 2 else pixels
    buffer = io.BytesIO()
    options = {"quality": 85} if kind == "jpeg" else {"optimize": True}
    metadata = None if kind == "jpeg" else {"Software": None}
    matplotlib.image.imsave(
        buffer, np.ascontiguousarray(pixels), format=kind, metadata=metadata, pil_kwargs=options
    )
    return embed(buffer.getvalue(), kind)
