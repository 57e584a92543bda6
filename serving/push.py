"""Publishing a SavedModel: a hidden copy, a digest manifest, one rename to the next number.

Killed at any point, a server sees the whole version or none of it. TensorFlow is imported only
where a model is exported or a warm-up file written.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import uuid
from pathlib import Path

from keras_unigan.errors import CodedError
from keras_unigan.serving import folders, wire

_HIDDEN = ".push-"
_LAST = ".last_version"


def push(source, base, keep=None):
    """Publishes a SavedModel folder as the next version of a model.

    Numbers count up and are never used again, because a server does not try a failed number twice.
    Pushes at the same time wait for each other.

    Args:
        source: Folder with `saved_model.pb`.
        base: Model folder; made if missing.
        keep: Number of versions to keep; None keeps all.

    Returns:
        Dict: `pushed` (False when the newest version holds the same bytes), `destination`,
        `version`, `digest`.

    Raises:
        CodedError: KUG-S06 when the source is no SavedModel.
    """
    source, base = Path(source), Path(base)
    if not (source / "saved_model.pb").is_file():
        raise CodedError(
            "KUG-S06", source, "no saved_model.pb", "a SavedModel", fix="unigan export RUN -o BASE"
        )
    if keep is not None and keep < 1:
        raise ValueError(f"Expected keep of at least 1, got {keep}.")
    base.mkdir(parents=True, exist_ok=True)
    with _locked(base):
        for left in base.glob(f"{_HIDDEN}*"):
            shutil.rmtree(left)  # of a push that was killed
        present = folders.scan(base)
        digest = folders.describe(source)["digest"]
        if present and folders.digest(present[max(present)]) == digest:
            return _result(False, present[max(present)], max(present), digest)
        hidden = base / f"{_HIDDEN}{uuid.uuid4().hex}"
        try:
            shutil.copytree(source, hidden, ignore=shutil.ignore_patterns(folders.MANIFEST))
            copied = folders.write_manifest(hidden)["digest"]
            if copied != digest:
                raise CodedError(
                    "KUG-S06", source, "files that changed during the copy", "a folder at rest"
                )
            _sync_tree(hidden)
            number = max([*present, _last(base)], default=0) + 1
            _write_last(base, number)
            destination = base / str(number)
            hidden.rename(destination)
            _sync(base)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
        if keep is not None:
            _drop(base, keep)
    return _result(True, destination, number, digest)


def export_model(network, plan, base, keep=None):
    """Exports, checks and publishes a segmentor.

    Args:
        network: Segmentor that gives logits of normalised images.
        plan: `config.Plan` that it was trained with.
        base: Model folder.
        keep: See `push`.

    Returns:
        As `push`, with `infra_check`: the report of `gates.infra_check`.

    Raises:
        CodedError: KUG-S05 when the export does not answer as the network does, KUG-T04 when the
            network does not fit the plan. Nothing is published then.
    """
    from keras_unigan import export
    from keras_unigan.serving import gates

    base = Path(base)
    made = not base.exists()
    base.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".export-", dir=base) as folder:
            staging = Path(folder) / "model"
            export.export(network, plan, staging)
            write_warmup(staging, export.example_inputs(network, plan))
            report = gates.infra_check(staging, network, plan)
            return {**push(staging, base, keep), "infra_check": report}
    finally:
        if made and not folders.scan(base):
            shutil.rmtree(base)


def write_warmup(folder, requests):
    """Writes requests that a server answers before it shows a version.

    Args:
        folder: SavedModel folder.
        requests: Signature -> inputs (name -> array); synthetic, never data of a patient.
    """
    import tensorflow as tf

    path = Path(folder) / "assets.extra" / "tf_serving_warmup_requests"
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, inputs in requests.items():
            log = wire.prediction_log_pb2.PredictionLog()
            request = log.predict_log.request
            request.model_spec.name = "warmup"
            request.model_spec.signature_name = signature
            for name, array in inputs.items():
                wire.fill(request.inputs[name], array, tensor_content=True)
            writer.write(log.SerializeToString())


def _result(pushed, destination, version, digest):
    return {
        "pushed": pushed,
        "destination": str(destination),
        "version": version,
        "digest": digest,
    }


@contextlib.contextmanager
def _locked(base):
    with open(base / ".push.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _last(base):
    """Highest number ever given, even if its folder is gone."""
    try:
        return int((base / _LAST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0


def _write_last(base, number):
    temporary = base / f"{_LAST}.new"
    temporary.write_text(f"{number}\n", encoding="utf-8")
    _sync(temporary)
    temporary.replace(base / _LAST)


def _drop(base, keep):
    present = folders.scan(base)
    for number in sorted(present)[:-keep]:
        gone = base / f"{_HIDDEN}{uuid.uuid4().hex}"
        os.rename(present[number], gone)  # out of sight before any file is missing
        shutil.rmtree(gone)


def _sync_tree(folder):
    for path in [folder, *folder.rglob("*")]:
        _sync(path)


def _sync(path):
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
