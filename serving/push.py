"""Publishing a SavedModel: a hidden copy, a digest manifest, one rename to the next number.

Killed at any point, a server sees the whole version or none of it. TensorFlow is imported only
where a model is exported, a warm-up file written, or the base is an object store (see `stores`).
"""

import contextlib
import fcntl
import os
import posixpath
import shutil
import tempfile
import time
import uuid
from pathlib import Path

from keras_unigan.errors import CodedError, of_the_disk
from keras_unigan.serving import blessings, folders, stores, wire

_HIDDEN = ".push-"
_WITHDRAWN = ".withdrawn-"
_LAST = ".last_version"
WAIT_SECONDS = 300.0


def push(source, base, keep=None, *, force=False, server=None, model=None, seconds=WAIT_SECONDS):
    """Publishes a SavedModel that its gates let through, and waits until a server has it.

    Args:
        source: Folder with `saved_model.pb` and verdicts (see `blessings`).
        base: Model folder, or URI of an object store.
        keep: See `publish`; older versions go only once the new one is available.
        force: Whether a model without any verdict is published. One that failed a gate never is.
        server: gRPC address of a server of this base; None does not wait.
        model: Name of the model there; None takes the last part of the base.
        seconds: Longest wait.

    Returns:
        As `publish`, with `blessings`: gates that let it through.

    Raises:
        CodedError: KUG-S07 for a model without verdict, with a negative one, or that did not become
            available: it is withdrawn then. KUG-S06 when the source is no SavedModel.
    """
    _check(source, keep)
    verdicts = blessings.demand(source, force)
    result = publish(source, base)
    if server is not None and result["pushed"]:
        name = model or posixpath.basename(str(base).rstrip("/"))
        problem = _unavailable(server, name, result["version"], seconds)
        if problem:
            withdraw(base, result["version"])
            raise CodedError(
                "KUG-S07",
                f"{server} {name}",
                f"version {result['version']}: {problem}",
                "AVAILABLE",
                "The version was withdrawn; the one before is served.",
                "see the server's log, mend the model and push again",
            )
    if keep is not None:
        _drop(base, keep)
    return {**result, "blessings": sorted(verdicts)}


def publish(source, base, keep=None):
    """Publishes a SavedModel folder as the next version of a model, whatever it holds.

    Numbers count up and are never used again, because a server does not try a failed number twice.
    Pushes at the same time wait for each other; in an object store they get numbers of their own.

    Args:
        source: Folder with `saved_model.pb`.
        base: Model folder, made if missing, or URI of an object store.
        keep: Number of versions to keep; None keeps all.

    Returns:
        Dict: `pushed` (False when the newest version holds the same bytes), `destination`,
        `version`, `digest`.

    Raises:
        CodedError: KUG-S06 when the source is no SavedModel; KUG-E04 for a disk that is full.
    """
    source = Path(source)
    _check(source, keep)
    if stores.is_store(base):
        result = _publish_to_store(source, str(base))
    else:
        result = _publish_to_folder(source, Path(base))
    if keep is not None:
        _drop(base, keep)
    return result


def _check(source, keep):
    if not (Path(source) / "saved_model.pb").is_file():
        raise CodedError(
            "KUG-S06", source, "no saved_model.pb", "a SavedModel", fix="unigan export RUN -o BASE"
        )
    if keep is not None and keep < 1:
        raise ValueError(f"Expected keep of at least 1, got {keep}.")


def _publish_to_store(source, base):
    manifest, present = folders.describe(source), stores.scan(base)
    digest = manifest["digest"]
    if present and stores.digest(present[max(present)]) == digest:
        return _result(False, present[max(present)], max(present), digest)
    number, target = stores.publish(source, base, manifest)
    return _result(True, target, number, digest)


def _copy(source, target):
    """Copies a file; `copytree` would go on after an `OSError`, and lose its number."""
    try:
        return shutil.copy2(source, target)
    except OSError as error:
        known = of_the_disk(error, target)
        if known is None:
            raise
        raise known from None


def _publish_to_folder(source, base):
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
            shutil.copytree(
                source, hidden, ignore=shutil.ignore_patterns(folders.MANIFEST), copy_function=_copy
            )
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
        except OSError as error:
            raise of_the_disk(error, base) or error from None
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
    return _result(True, destination, number, digest)


def rollback(base):
    """Takes the newest version away, so that servers of the latest one go back to the one before.

    Args:
        base: Model folder, or URI of an object store.

    Returns:
        Dict: `withdrawn` and `version` (the newest that is left).

    Raises:
        CodedError: KUG-S06 when there is no earlier version.
    """
    present = sorted(_scan(base))
    if len(present) < 2:
        raise CodedError(
            "KUG-S06", base, f"versions {present}", "two or more", "There is nothing to go back to."
        )
    withdraw(base, present[-1])
    return {"withdrawn": present[-1], "version": present[-2]}


def withdraw(base, number):
    """Takes one version out of sight; its number is not given again.

    In a folder the newest one withdrawn stays, hidden, for whoever wants to know what was wrong.
    """
    path = _scan(base)[number]
    if stores.is_store(base):
        stores.remove(path)
        return
    base = Path(base)
    with _locked(base):
        _write_last(base, max(number, _last(base)))
        for left in base.glob(f"{_WITHDRAWN}*"):
            shutil.rmtree(left)
        os.rename(path, base / f"{_WITHDRAWN}{number}")
        _sync(base)


def _scan(base):
    if stores.is_store(base):
        return stores.scan(str(base))
    return folders.scan(base) if Path(base).is_dir() else {}


def _unavailable(server, model, number, seconds):
    """Why a version is not available on a server after a wait; empty where it is."""
    from keras_unigan.serving.client import Client

    until, problem = time.monotonic() + seconds, "the server does not know it"
    with Client(server, model, retries=0) as client:
        while time.monotonic() < until:
            try:
                found = {item["version"]: item for item in client.status()}.get(number)
            except CodedError as error:
                found, problem = None, error.found
            if found is not None:
                if found["state"] == "AVAILABLE":
                    return ""
                problem = f"{found['state']} {found['error_message']}".strip()
                if found["state"] == "END" or found["error_code"]:
                    return problem
            time.sleep(min(0.2, seconds / 10))
    return problem


def export_model(
    network,
    plan,
    base,
    keep=None,
    *,
    translator=None,
    classifier=None,
    synthesizer=None,
    facts=None,
    ceilings=None,
):
    """Exports, checks and publishes a segmentor.

    Args:
        network: Segmentor that gives logits of normalised images.
        plan: `config.Plan` that it was trained with.
        base: Model folder, or URI of an object store.
        keep: See `publish`.
        translator: Network that translates, where it is not the segmentor.
        classifier: Discriminator with a domain head.
        synthesizer: Mask generator and renderer.
        facts: For the model card; see `exporting.cards.facts_of_run`.
        ceilings: `gates.Ceilings`.

    Returns:
        As `publish`, with `infra_check`: the report of `gates.infra_check`.

    Raises:
        CodedError: KUG-S05 when the export does not answer as the network does, KUG-T04 when the
            network does not fit the plan. Nothing is published then.
    """
    from keras_unigan import export
    from keras_unigan.exporting import cards
    from keras_unigan.serving import gates

    local = not stores.is_store(base)
    made = local and not Path(base).exists()
    if local:
        Path(base).mkdir(parents=True, exist_ok=True)
    try:
        # Beside the versions, where there is room for one.
        with tempfile.TemporaryDirectory(prefix=".export-", dir=base if local else None) as folder:
            staging = Path(folder) / "model"
            others = {"translator": translator, "classifier": classifier}
            others["synthesizer"] = synthesizer
            card = export.export(network, plan, staging, facts=facts, **others)
            names = list(card["signatures"])
            write_warmup(staging, export.example_inputs(network, plan, names=names))
            report = gates.infra_check(staging, network, plan, ceilings=ceilings, **others)
            versions = card["versions"]
            card["verified_servers"] = [
                f"keras_unigan {versions['keras_unigan']} on TensorFlow {versions['tensorflow']}"
            ]
            cards.write(staging, card)
            blessings.write(staging, "infra", report)
            return {**publish(staging, base, keep), "infra_check": report}
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
    if stores.is_store(base):
        present = stores.scan(str(base))
        for number in sorted(present)[:-keep]:
            stores.remove(present[number])
        return
    base = Path(base)
    with _locked(base):
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
