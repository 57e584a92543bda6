"""What the command line names: models that segment, and scans to be shown."""

import contextlib
import os
import re
from pathlib import Path

from keras_unigan.config import Plan, Study, read_json
from keras_unigan.data import volumes
from keras_unigan.errors import CodedError, did_you_mean
from keras_unigan.viewing.gallery import Entry, Gallery, Model

_RUN = ("network.keras", "ensemble.json")
_SERVED = re.compile(r"(?P<address>[^/\s]+:\d+)/(?P<name>[^/\s]+)")


@contextlib.contextmanager
def open_model(text):
    """The model that a text names, ready to segment.

    Args:
        text: Run folder, or one that stands for several (`ensemble.json`), with the
            post-processing that it has learned; folder of the numbered versions of an exported
            model, which an embedded server then serves; or `HOST:PORT/NAME` of a server.

    Yields:
        `Model`.

    Raises:
        CodedError: KUG-T04 for another folder, KUG-S01 to KUG-S06 for a server.
    """
    path = Path(text)
    if _is_run(path):
        from keras_unigan import prediction  # TensorFlow, which scans alone do not need

        loaded = prediction.load(path)

        def segment(source, modality, output, channel):
            return prediction.predict(loaded, source, modality, output, channel=channel)

        yield Model(path.resolve().name, "run", loaded.plan, segment)
        return
    served = None if path.exists() else _SERVED.fullmatch(str(text))
    with contextlib.ExitStack() as stack:
        if served:
            address, name, kind = served["address"], served["name"], "served"
        elif _has_versions(path):
            from keras_unigan.serving.server import Server

            server = stack.enter_context(Server(model_base_path=path))
            address, name, kind = server.grpc_addr, path.resolve().name, "exported"
        else:
            raise CodedError(
                "KUG-T04",
                text,
                "no network.keras and no versions of an exported model",
                "a run folder, an exported model or HOST:PORT/NAME of a server",
                fix="unigan train shards -o RUN, or unigan export RUN -o MODELS",
            )
        from keras_unigan.serving.client import Client

        client = stack.enter_context(Client(address, name))
        plan = Plan.from_dict(client.describe()["plan"], f"{address} {name}")

        def ask(source, modality, output, channel):
            return client.segment(source, modality, output, channel=channel)

        yield Model(name, kind, plan, ask)


def _is_run(path):
    return any((path / name).is_file() for name in _RUN)


def _has_versions(path):
    return path.is_dir() and any(
        p.name.isdigit() and (p / "saved_model.pb").is_file() for p in path.iterdir()
    )


def is_model(text):
    """Whether a text names something for `open_model` rather than a scan or a study."""
    path = Path(text)
    if path.exists():
        return _is_run(path) or _has_versions(path)
    return _SERVED.fullmatch(str(text)) is not None


def needs_serving(text):
    """Whether `open_model` asks a server for it, which takes the extra `[serving]`."""
    return not _is_run(Path(text))


def check_models(models):
    """Raises KUG-T02 for more than one thing that segments."""
    if len(models) > 1:
        raise CodedError("KUG-T02", models[1], "a second model", "one")


def open_gallery(sources, model=None, label=None, predicted=None, split=None, modality=None):
    """A gallery of what the command line names.

    Args:
        sources: Texts: one `study.json`, scans (files of any kind, folders of DICOM), folders of
            scans, and ids of cases of the study, which are then the only ones of it.
        model: `Model`, or None.
        label: Label map of the one scan.
        predicted: Label map that a model has made of the one scan, or a folder of those that
            `unigan predict` has made of the cases or scans.
        split: Only the cases of this split.
        modality: Of scans that are no cases.

    Returns:
        `Gallery`; the entries are in the order of the sources.

    Raises:
        CodedError: KUG-T02 for sources that do not go together, KUG-D01 for what is not there, and
            as `Study.load`.
    """
    studies = [s for s in sources if str(s).endswith(".json")]
    if len(studies) > 1:
        raise CodedError("KUG-T02", studies[1], "a second study", "one")
    study = Study.load(studies[0]) if studies else None
    others = [s for s in sources if s not in studies]
    paths = [s for s in others if os.path.exists(s)]
    ids = [s for s in others if s not in paths]
    cases = _cases(study, ids, split)
    entries = [
        Entry(
            case.id,
            study.path(case.image),
            study.path(case.label),
            _made(predicted, case.id),
            case.modality,
            case.split,
            case.channel,
        )
        for case in cases
    ]
    found = [path for source in paths for path in _scans(source)]
    single = len(entries) + len(found) == 1
    for option, value in (("--label", label), ("--prediction", predicted)):
        if value is not None and not single and not os.path.isdir(value):
            raise CodedError("KUG-T02", option, f"it with {len(entries) + len(found)} scans", "one")
        if value is not None and not os.path.exists(value):
            raise CodedError("KUG-D01", value, "no such file", f"the label map of {option}")
    for path in found:
        stem = volumes.stem(path) or path.name
        made = predicted if single else None
        if predicted is not None and os.path.isdir(predicted):
            made = _made(predicted, stem)
        entries.append(Entry(path.name, str(path), label, made, modality))
    labels = study.labels if study else model.plan.labels if model else None
    channels = study.channels if study else model.plan.channels if model else 1
    return Gallery(entries, labels, model, channels)


def _cases(study, ids, split):
    if study is None:
        if ids:
            raise CodedError(
                "KUG-D01", ids[0], "no such file", "a scan, a study.json, a run or a model"
            )
        return []
    known = {case.id: case for case in study.cases}
    for name in ids:
        if name not in known:
            hint = did_you_mean(name, known)
            raise CodedError(
                "KUG-D01", name, f"no such file and no such case{hint}", "a case of the study"
            )
    chosen = [known[name] for name in ids] if ids else list(study.cases)
    chosen = [case for case in chosen if split in (None, case.split)]
    if not chosen:
        raise CodedError("KUG-D14", study.name, f"no case in split {split!r}", "one")
    return chosen


def _scans(source):
    """Paths of the scans that an existing path names."""
    path = Path(source)
    if path.is_file():
        return [path]
    found = [p for p in volumes.scans_in(path) if not f"_{volumes.stem(p)}".endswith("_seg")]
    if not found:
        raise CodedError(
            "KUG-D01",
            source,
            "no scan",
            f"a folder of DICOM, or files {', '.join(volumes.ENDINGS)}",
        )
    return found


def _made(folder, name):
    """File that `unigan predict` has written for a case or scan into a folder, or None."""
    if folder is None or not os.path.isdir(folder):
        return folder
    endings = (".nii.gz", ".nii", ".png", ".tif")
    found = (Path(folder, f"{name}_seg{ending}") for ending in endings)
    return next((str(path) for path in found if path.is_file()), None)


def study_of_run(run):
    """Path of the study that a run was last scored on, where `run.json` names one that is there."""
    path = Path(run) / "run.json"
    entries = read_json(path) if path.is_file() else []
    studies = [entry.get("inputs", {}).get("study") for entry in entries]
    return next((s for s in reversed(studies) if s and os.path.isfile(s)), None)
