import json
import os
import shutil
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from keras_unigan import export
from keras_unigan.errors import CodedError
from keras_unigan.serving import folders, gates, push, wire
from keras_unigan.serving.status import ServingError


@pytest.fixture
def source(tmp_path):
    """Something that looks like a SavedModel."""
    folder = tmp_path / "source"
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"graph")
    (folder / "variables" / "variables.index").write_bytes(b"index")
    return folder


def change(source, text):
    (source / "saved_model.pb").write_text(text)
    return source


def visible(base):
    return sorted(name for name in os.listdir(base) if not name.startswith("."))


def test_versions_count_up_and_the_same_bytes_are_pushed_once(source, tmp_path):
    base = tmp_path / "models" / "m"
    first = push.push(source, base)
    assert first["pushed"]
    assert (first["version"], first["destination"]) == (1, str(base / "1"))
    again = push.push(source, base)
    assert again == {**first, "pushed": False}
    second = push.push(change(source, "two"), base)
    assert (second["pushed"], second["version"]) == (True, 2)
    assert visible(base) == ["1", "2"]
    # What was pushed before the newest is new again.
    assert push.push(change(source, "graph"), base)["version"] == 3


def test_the_manifest_lists_every_file(source, tmp_path):
    result = push.push(source, tmp_path / "m")
    manifest = json.loads((tmp_path / "m" / "1" / folders.MANIFEST).read_text())
    assert set(manifest["files"]) == {"saved_model.pb", "variables/variables.index"}
    assert manifest["digest"] == result["digest"] == folders.digest(tmp_path / "m" / "1")
    folders.check(tmp_path / "m" / "1")
    # A manifest that came along from elsewhere is not part of the version.
    assert not push.push(tmp_path / "m" / "1", tmp_path / "m")["pushed"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: (f / "saved_model.pb").write_bytes(b"grapH"),
        lambda f: (f / "saved_model.pb").write_bytes(b"graph and more"),
        lambda f: (f / "saved_model.pb").unlink(),
    ],
)
def test_a_folder_that_differs_from_its_manifest_is_not_whole(source, damage):
    folders.write_manifest(source)
    folders.check(source)
    damage(source)
    with pytest.raises(ServingError, match="DATA_LOSS: The version is incomplete: 1 of 2 files"):
        folders.check(source)


def test_a_manifest_that_is_none_is_not_whole(source):
    (source / folders.MANIFEST).write_text("{")
    with pytest.raises(ServingError, match="The digest manifest cannot be read"):
        folders.check(source)
    assert folders.digest(source) is None


def test_numbers_are_never_used_again(source, tmp_path):
    base = tmp_path / "m"
    (base / "00007").mkdir(parents=True)
    assert push.push(source, base)["version"] == 8
    shutil.rmtree(base / "8")
    assert push.push(source, base)["version"] == 9


def test_keep_drops_the_oldest(source, tmp_path):
    base = tmp_path / "m"
    for text in "abcd":
        push.push(change(source, text), base, keep=2)
    assert visible(base) == ["3", "4"]
    assert not list(base.glob(".push-*"))
    with pytest.raises(ValueError, match="keep of at least 1, got 0"):
        push.push(source, base, keep=0)


def test_a_source_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(CodedError, match=r"KUG-S06.*no saved_model\.pb"):
        push.push(tmp_path, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_pushes_at_the_same_time_get_numbers_of_their_own(tmp_path):
    results = []

    def run(text):
        folder = tmp_path / text
        folder.mkdir()
        results.append(push.push(change(folder, text), tmp_path / "m"))

    threads = [threading.Thread(target=run, args=(f"t{i}",)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(r["version"] for r in results) == [1, 2, 3, 4, 5, 6]
    for result in results:
        folders.check(result["destination"])


KILLED = """
import sys, time
from keras_unigan.serving import push
push._sync_tree = lambda folder: (print("copied", flush=True), time.sleep(60))
push.push(sys.argv[1], sys.argv[2])
"""


def test_a_killed_push_leaves_nothing_visible(source, tmp_path):
    base = tmp_path / "m"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(source), str(base)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "copied\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert visible(base) == []
    assert list(base.glob(".push-*"))
    assert push.push(source, base)["version"] == 1
    assert not list(base.glob(".push-*"))


def test_a_copy_that_fails_leaves_nothing(source, tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(push, "_sync_tree", full)
    with pytest.raises(OSError, match="No space left"):
        push.push(source, tmp_path / "m")
    assert visible(tmp_path / "m") == []
    assert not list((tmp_path / "m").glob(".push-*"))


def test_export_model_checks_and_publishes(exported):
    _, _, base, result = exported
    assert result["pushed"]
    assert visible(base) == ["1"]
    report = result["infra_check"]
    assert report["passed"]
    assert report["requests"] == 3
    checks = report["checks"]
    compared = {name: found for name, found in checks.items() if isinstance(found, float)}
    assert set(compared) == {
        *("serving_default 16x16", "serving_default 11x11", "serving_default 1x1"),
        *("segment 16x16", "segment 11x11", "segment 1x1", "segment against local prediction"),
    }
    assert max(compared.values()) <= gates.TOLERANCE
    refused = {name: found for name, found in checks.items() if name not in compared}
    assert set(refused.values()) == {"refused: INVALID_ARGUMENT"}
    assert {"wrong rank", "wrong type", "wrong channels", "NaN"} <= set(refused)
    folders.check(base / "1")


def test_warmup_holds_one_synthetic_request_per_signature(exported):
    import tensorflow as tf

    network, plan, base, _ = exported
    path = base / "1" / "assets.extra" / "tf_serving_warmup_requests"
    found = {}
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        log = wire.prediction_log_pb2.PredictionLog.FromString(record)
        request = log.predict_log.request
        found[request.model_spec.signature_name] = {
            name: wire.to_array(proto, name) for name, proto in request.inputs.items()
        }
    wanted = export.example_inputs(network, plan)
    assert set(found) == set(wanted)
    for signature, inputs in wanted.items():
        for name, array in inputs.items():
            np.testing.assert_array_equal(found[signature][name], array)


def test_an_export_that_differs_is_not_published(exported, tmp_path, monkeypatch):
    network, plan, _, _ = exported
    whole = export.export

    def shifted(network, plan, folder):
        """Exports, then lets the network drift away from what was written."""
        card = whole(network, plan, folder)
        bias = network.layers[-1].bias
        bias.assign(bias + np.array([0.0, 1e-3, 0.0], np.float32))
        return card

    monkeypatch.setattr(export, "export", shifted)
    before = network.get_weights()
    try:
        with pytest.raises(CodedError, match=r"KUG-S05 unet: .*probabilities that differ by"):
            push.export_model(network, plan, tmp_path / "m")
    finally:
        network.set_weights(before)
    assert not (tmp_path / "m").exists()


def test_an_export_that_does_not_load_is_not_published(exported, tmp_path, monkeypatch):
    network, plan, base, _ = exported

    def broken(network, plan, folder):
        shutil.copytree(base / "1", folder)
        shutil.rmtree(folder / "variables")

    monkeypatch.setattr(export, "export", broken)
    (tmp_path / "m" / "4").mkdir(parents=True)
    with pytest.raises(CodedError, match="KUG-S05 unet: found load: NOT_FOUND: The SavedModel"):
        push.export_model(network, plan, tmp_path / "m")
    assert visible(tmp_path / "m") == ["4"]
    assert not list((tmp_path / "m").glob(".export-*"))


def test_the_gate_notices_a_model_that_refuses_nothing(exported, tmp_path, monkeypatch):
    from keras_unigan.serving.servable import Servable

    network, plan, base, _ = exported
    real = Servable.predict

    def lenient(self, name, inputs, *rest):
        try:
            return real(self, name, inputs, *rest)
        except ServingError:
            return {}

    monkeypatch.setattr(Servable, "predict", lenient)
    with pytest.raises(CodedError, match="KUG-S05 unet: found wrong rank: an answer") as caught:
        gates.infra_check(base / "1", network, plan)
    assert caught.value.exit_code == 4
