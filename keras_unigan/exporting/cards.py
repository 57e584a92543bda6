"""The model card: what a client needs, and what a person has to know before using a model."""

import json
from pathlib import Path

import keras
import tensorflow as tf

import keras_unigan
from keras_unigan.config import finite, read_json, write_json

NOTICE = "For research use only: not a medical device."
CARD_FILE = "assets.extra/model_card.json"
PAGE_FILE = "assets.extra/model_card.md"
_METRICS = {"modality named": "metrics.json", "modality withheld": "metrics_unknown.json"}


def model_card(network, plan, multiples, signatures, facts=None):
    """The card of a model; JSON-ready.

    It holds the whole plan, so that a client resamples, windows and names labels as training did.

    Args:
        network: Segmentor.
        plan: Its `config.Plan`.
        multiples: Numbers that divide the sides which the network takes.
        signatures: Name -> what it is for.
        facts: See `facts_of_run`; None: nothing is known of data and scores.
    """
    dims, labels = network.spatial_dims, plan.labels
    return {
        "study": plan.study,
        "network": type(network).__name__,
        "spatial_dims": dims,
        "channels": network.channels,
        "labels": {
            "names": list(labels.names),
            "overlapping": labels.overlapping,
            "output_values": list(labels.output_values),
        },
        "decision": "probability above 0.5, later regions on top"
        if labels.overlapping
        else "highest probability",
        "modalities": list(plan.modalities),
        "modality_required": False,
        "spacing": list(plan.spacing),
        "nearest_axis": plan.nearest_axis,
        "patch_size": list(plan.configuration(dims).patch_size),
        "overlap": plan.overlap,
        "side_multiples": list(multiples),
        "orientation": "RAS+",
        "normalization": plan.to_dict()["normalization"],
        "signatures": dict(signatures),
        "plan": plan.to_dict(),
        "graph_def": {
            "producer": tf.version.GRAPH_DEF_VERSION,
            "min_consumer": tf.version.GRAPH_DEF_VERSION_MIN_CONSUMER,
        },
        "versions": {
            "keras_unigan": keras_unigan.__version__,
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
        },
        "verified_servers": [],
        "training": None,
        "metrics": {},
        "licence": "not stated",
        **(facts or {}),
        "notice": NOTICE,
    }


def facts_of_run(run, licence=None):
    """What a run folder says of its training and its scores.

    Args:
        run: Run folder.
        licence: Terms that the model may be used under, as its owner states them.

    Returns:
        Dict for `model_card`: `training` (system, seed, training samples per modality), `metrics`
        (which names were given -> split, cases and means per modality) and `licence`.
    """
    run = Path(run)
    config, audit = (_read(run / name) for name in ("config.json", "audit.json"))
    facts = {
        "training": {
            "system": config.get("model"),
            "seed": config.get("seed"),
            "seen": audit.get("modalities", audit.get("sums")),
        },
        "metrics": {},
    }
    for what, name in _METRICS.items():
        found = _read(run / name)
        if found:
            kept = ("split", "cases", "failed", "macro_dice", "unit", "modalities")
            facts["metrics"][what] = {key: found.get(key) for key in kept}
            facts["metrics"][what]["not_in_model"] = beyond_model(found.get("method"))
    if licence:
        facts["licence"] = licence
    return facts


def beyond_model(method):
    """What scores were taken with that an exported model does not do, in words; may be empty.

    Args:
        method: `prediction.Ensemble.method`, or None.
    """
    method = method or {}
    found = []
    if len(method.get("runs", ())) > 1:
        found.append(f"the mean of {len(method['runs'])} runs")
    if method.get("tta", "none") != "none":
        found.append(f"the mean over views ({method['tta']})")
    if method.get("postprocessing"):
        found.append("post-processing")
    return found


def _read(path):
    return read_json(path) if path.is_file() else {}


def text(card):
    """The card as one line of JSON."""
    return json.dumps(finite(card))


def write(folder, card):
    """Writes a card into a SavedModel folder, as JSON and as a page to read."""
    folder = Path(folder)
    write_json(folder / CARD_FILE, finite(card))
    (folder / PAGE_FILE).write_text(page(card), encoding="utf-8")


def read(folder):
    """The card of a SavedModel folder, or None where it has none."""
    path = Path(folder) / CARD_FILE
    return read_json(path) if path.is_file() else None


def page(card):
    """The card as Markdown."""
    labels = card["labels"]
    values = labels["output_values"]
    if labels["overlapping"]:
        named = [f"{n} = {v}" for n, v in zip(labels["names"], values, strict=True)]
    else:
        named = [f"{v} = {n}" for n, v in zip(labels["names"], values, strict=True)]
    versions = ", ".join(f"{name} {version}" for name, version in card["versions"].items())
    graph = card["graph_def"]
    servers = ", ".join(card["verified_servers"]) or "none yet"
    must = "always" if card["modality_required"] else "not needed; naming it normalises as trained"
    lines = [
        f"# {card['study']}: {card['network']}, {card['spatial_dims']}-D",
        "",
        f"**{card['notice']}**",
        "",
        f"- Modalities: {', '.join(card['modalities'])} (to be named: {must})",
        f"- Labels in files: {', '.join(named)}; {card['decision']}",
        f"- Grid: {card['orientation']}, spacing {_times(card['spacing'])} mm, windows of "
        f"{_times(card['patch_size'])} voxels, overlap {card['overlap']:g}",
        f"- Training: {_training(card['training'])}",
        f"- Versions: {versions}; GraphDef {graph['producer']}, read from "
        f"{graph['min_consumer']} on",
        f"- Verified servers: {servers}",
        f"- Licence: {card['licence']}",
        "",
        "| signature | for |",
        "|---|---|",
        *[f"| `{name}` | {what} |" for name, what in card["signatures"].items()],
        "",
    ]
    for what, found in card["metrics"].items():
        lines += [
            f"Scores on split {found['split']!r}, {what} ({found['cases']} cases):",
            "",
            "| modality | cases | Dice | HD95 | ASSD |",
            "|---|---|---|---|---|",
            *[
                f"| {name} | {row['cases']} | {_score(row['dice'])} | {_score(row['hd95'])} | "
                f"{_score(row['assd'])} |"
                for name, row in found["modalities"].items()
            ],
            "",
        ]
        if found.get("not_in_model"):
            lines[-1:] = [
                "",
                f"Taken with {_and(found['not_in_model'])}, which this model lacks.",
                "",
            ]
    if not card["metrics"]:
        lines += ["Scores: none were measured before the export (`unigan evaluate`).", ""]
    return "\n".join(lines)


def _and(words):
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _times(numbers):
    return " x ".join(f"{n:g}" for n in numbers)


def _score(value):
    return "–" if value is None or value != value else f"{value:.3f}"


def _training(training):
    if not training:
        return "not stated"
    return f"system {training['system'] or 'not stated'}, seed {training['seed']}"
