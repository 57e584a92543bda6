"""Puts the parts of the page together and writes it."""

import json
import math
import os
from pathlib import Path

import jinja2

from keras_unigan import __version__, health
from keras_unigan.aggregation import SCORES
from keras_unigan.config import Study, finite, read_json
from keras_unigan.errors import CodedError
from keras_unigan.report import pictures, sections
from keras_unigan.systems import SYSTEMS

NOTICE = "For research use only: not a medical device."
# (file, heading) of the two ways to predict.
FILES = (
    ("metrics.json", "The model was told the modality"),
    ("metrics_unknown.json", "The modality was kept from the model"),
)


LEARNED = {
    "postprocessing.json": "Post-processing",
    "alarm.json": "Alarm for images of an unknown modality",
}
"""File of a run -> what a run has learned on validation cases after its training."""
LONGEST = 20
"""Most items of a list that stands in the page in full."""


def write(run, study=None, compare=(), check=None):
    """Writes `report.html` into a run folder.

    Args:
        run: Run folder.
        study: `config.Study` or path of its file, for the list of subjects per split; None: only
            the counts of the shards' manifest, if it is there.
        compare: What the run is compared with: systems as `comparison.read_system` takes them, and
            JSON files that `unigan compare -o` has written. Without any, `comparison.json` of the
            run folder, if there is one.
        check: JSON file with what `unigan check --json` printed, or None.

    Returns:
        Path of the page.

    Raises:
        CodedError: KUG-T04 when the folder holds no plan and no scores, KUG-D08 for a file that is
            no result of `unigan compare` or `check`, and as `comparison.compare`.
    """
    run = Path(run)
    config, plan, entries = (_json(run / f"{n}.json") for n in ("config", "plan", "run"))
    if plan is None and not any((run / name).is_file() for name, _ in FILES):
        raise CodedError(
            "KUG-T04",
            run,
            "neither plan.json nor metrics.json",
            "a run folder",
            fix="unigan train shards -o RUN, then unigan evaluate RUN study.json",
        )
    shards = Path((config or {}).get("shards", run / "shards"))
    study = study if study is None or isinstance(study, Study) else Study.load(study)
    scores = [
        {"title": title, "file": name, **_json(run / name)}
        for name, title in FILES
        if (run / name).is_file()
    ]
    history = sections.history(run / "history.csv")
    signs = health.findings(history, len(plan["modalities"]) if plan else None) if history else None
    fingerprint = _json(_first(run / "fingerprint.json", shards / "fingerprint.json"))
    facts = sections.history_facts(history)
    letters = sections.dead_letters(shards / "dead_letters.jsonl")
    checked = sections.checked(check)
    agreement = sections.agreement(scores[0]["rows"]) if scores else None
    comparisons = sections.comparisons(run, compare)
    overlays = pictures.overlays(run, scores)
    page = _template().render(
        notice=NOTICE,
        version=__version__,
        title=(plan or {}).get("study", run.name),
        run=run.name,
        system=SYSTEMS.get((config or {}).get("model")),
        config=_shorten(config),
        plan=plan,
        environment=_shorten(entries),
        scores=scores,
        score_names=SCORES,
        warnings=sections.warnings(scores, facts, signs, fingerprint, letters, checked),
        checked=checked,
        letters=letters,
        curves=pictures.curves(history, signs),
        history=facts,
        health=signs,
        translation=_translation(run),
        alignment=_alignment(run),
        learned={title: _brief(_json(run / name)) for name, title in LEARNED.items()},
        overlays=[{k: v for k, v in o.items() if k != "planes"} for o in overlays],
        colours=pictures.colours(scores),
        agreement=agreement,
        agreement_picture=pictures.bland_altman(agreement),
        comparisons=[{**c, "pictures": pictures.forests(c)} for c in comparisons],
        fingerprint=fingerprint,
        splits=sections.splits(study, _json(shards / "shards.json")),
        data={"cases": sections.case_table(scores), "overlays": [o["planes"] for o in overlays]},
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
    environment.filters |= {"number": number, "script": _script}
    return environment.get_template("report.html.j2")


def number(value, digits=3):
    """A score as text; a dash where there is none."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def _script(value):
    """JSON for a script element, which nothing inside can end."""
    text = json.dumps(finite(value), separators=(",", ":"), ensure_ascii=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return jinja2.utils.markupsafe.Markup(text)


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


def _brief(value):
    """The same data with long lists as the number of their items."""
    if isinstance(value, dict):
        return {k: _brief(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_brief(v) for v in value] if len(value) <= LONGEST else f"{len(value)} items"
    return value


def _alignment(run):
    """How alike modalities are inside the network: measures and picture, or None."""
    found, picture = _json(run / "alignment.json"), run / "alignment.png"
    if found is None:
        return None
    source = pictures.embed(picture.read_bytes()) if picture.is_file() else ""
    return {"facts": _brief({k: v for k, v in found.items() if k != "pca"}), "picture": source}


def _translation(run):
    """Scores and last picture of translations; None for a run that made none."""
    found = [_json(run / f"{stem}.json") for stem in ("translation", "translation_unknown")]
    scores = [one for one in found if one and one["table"]]
    picture = run / "translations.png"
    if not scores and not picture.is_file():
        return None
    source = pictures.embed(picture.read_bytes()) if picture.is_file() else ""
    scores = [{**one, "names": sections.anatomy(one.get("rows", []))} for one in scores]
    return {"scores": scores, "picture": source}
