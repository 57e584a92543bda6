import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid

import numpy as np
import pytest

from keras_unigan import cli, export
from keras_unigan.errors import CodedError
from keras_unigan.serving import blessings, folders, push, stores, wire
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
    first = push.publish(source, base)
    assert first["pushed"]
    assert (first["version"], first["destination"]) == (1, str(base / "1"))
    again = push.publish(source, base)
    assert again == {**first, "pushed": False}
    second = push.publish(change(source, "two"), base)
    assert (second["pushed"], second["version"]) == (True, 2)
    assert visible(base) == ["1", "2"]
    # What was pushed before the newest is new again.
    assert push.publish(change(source, "graph"), base)["version"] == 3


def test_the_manifest_lists_every_file(source, tmp_path):
    result = push.publish(source, tmp_path / "m")
    manifest = json.loads((tmp_path / "m" / "1" / folders.MANIFEST).read_text())
    assert set(manifest["files"]) == {"saved_model.pb", "variables/variables.index"}
    assert manifest["digest"] == result["digest"] == folders.digest(tmp_path / "m" / "1")
    folders.check(tmp_path / "m" / "1")
    # A manifest that came along from elsewhere is not part of the version.
    assert not push.publish(tmp_path / "m" / "1", tmp_path / "m")["pushed"]


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
    assert push.publish(source, base)["version"] == 8
    shutil.rmtree(base / "8")
    assert push.publish(source, base)["version"] == 9


def test_keep_drops_the_oldest(source, tmp_path):
    base = tmp_path / "m"
    for text in "abcd":
        push.publish(change(source, text), base, keep=2)
    assert visible(base) == ["3", "4"]
    assert not list(base.glob(".push-*"))
    with pytest.raises(ValueError, match="keep of at least 1, got 0"):
        push.publish(source, base, keep=0)


def test_a_source_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(CodedError, match=r"KUG-S06.*no saved_model\.pb"):
        push.publish(tmp_path, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_pushes_at_the_same_time_get_numbers_of_their_own(tmp_path):
    results = []

    def run(text):
        folder = tmp_path / text
        folder.mkdir()
        results.append(push.publish(change(folder, text), tmp_path / "m"))

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
push.publish(sys.argv[1], sys.argv[2])
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
    assert push.publish(source, base)["version"] == 1
    assert not list(base.glob(".push-*"))


def test_a_copy_that_fails_leaves_nothing(source, tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(push, "_sync_tree", full)
    with pytest.raises(CodedError, match=r"KUG-E04 .*/m: found No space left"):
        push.publish(source, tmp_path / "m")
    assert visible(tmp_path / "m") == []
    assert not list((tmp_path / "m").glob(".push-*"))


def test_export_model_checks_and_publishes(exported):
    _, _, base, result = exported
    assert result["pushed"]
    assert visible(base) == ["1"]
    report = result["infra_check"]
    assert report["passed"]
    assert report["server"] == "embedded"
    assert "patch_seconds" in report
    assert 0.1 < report["peak_gib"] < 16
    checks = report["checks"]
    compared = {name: found for name, found in checks.items() if isinstance(found, float)}
    volumes = ("segment_volume", "segment_nifti", "serve_examples")
    assert set(compared) == {
        *("serving_default 16x16", "serving_default 11x11", "serving_default 1x1"),
        *("segment 16x16", "segment 11x11", "segment 1x1", "segment against local prediction"),
        *(f"{name} {size}" for name in volumes for size in ("16x16", "11x11")),
    }
    assert max(compared.values()) <= 1e-5
    refused = {name: found for name, found in checks.items() if name not in compared}
    garbage = refused.pop("garbage message")
    assert garbage.startswith("refused: ")
    assert set(refused.values()) == {"refused: INVALID_ARGUMENT"}
    assert {
        *("wrong rank", "wrong type", "wrong channels", "NaN", "huge sizes", "no images"),
        *("cut file", "lying sizes", "garbage file", "huge spacing", "garbage record"),
    } <= set(refused)
    folders.check(base / "1")


def test_the_verdict_lies_beside_the_version_and_is_about_its_bytes(exported, tmp_path):
    _, _, base, result = exported
    found = blessings.read(base / "1")
    assert set(found) == {"infra"}
    assert found["infra"]["passed"]
    assert found["infra"]["digest"] == result["digest"]
    assert (base / "1" / "blessing" / "INFRA_BLESSED").is_file()
    # What was checked goes on to another base, with its verdict.
    pushed = push.push(base / "1", tmp_path / "m")
    assert (pushed["pushed"], pushed["blessings"]) == (True, ["infra"])
    assert set(blessings.read(tmp_path / "m" / "1")) == {"infra"}
    with open(tmp_path / "m" / "1" / "saved_model.pb", "ab") as file:
        file.write(b"\0")
    assert blessings.read(tmp_path / "m" / "1") == {}


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
    assert {"segment_volume", "segment_nifti", "serve_examples"} < set(wanted)
    assert set(found) == set(wanted)
    for signature, inputs in wanted.items():
        for name, array in inputs.items():
            np.testing.assert_array_equal(found[signature][name], array)


def test_a_model_without_verdict_needs_force(source, tmp_path):
    with pytest.raises(CodedError, match=r"KUG-S07 .*no verdict on these bytes") as caught:
        push.push(source, tmp_path / "m")
    assert caught.value.exit_code == 4
    assert not (tmp_path / "m").exists()
    assert push.push(source, tmp_path / "m", force=True)["blessings"] == []


def test_a_model_that_failed_a_gate_is_not_even_pushed_by_force(source, tmp_path):
    blessings.write(source, "infra", {"passed": True})
    blessings.write(source, "quality", {"passed": False, "reason": "ct: Dice 0.1, below 0.5"})
    with pytest.raises(CodedError, match=r"KUG-S07 .*NOT_BLESSED: ct: Dice 0\.1, below 0\.5"):
        push.push(source, tmp_path / "m", force=True)
    blessings.write(source, "quality", {"passed": True})
    assert sorted(p.name for p in (source / "blessing").iterdir()) == ["BLESSED", "INFRA_BLESSED"]
    assert push.push(source, tmp_path / "m")["blessings"] == ["infra", "quality"]
    # Other bytes, no verdict.
    with pytest.raises(CodedError, match=r"KUG-S07 .*no verdict"):
        push.push(change(source, "two"), tmp_path / "m")


def test_rollback_takes_the_newest_away_for_good(source, tmp_path):
    base = tmp_path / "m"
    with pytest.raises(CodedError, match=r"KUG-S06 .*versions \[\]"):
        push.rollback(base)
    for text in "ab":
        push.publish(change(source, text), base)
    assert push.rollback(base) == {"withdrawn": 2, "version": 1}
    assert visible(base) == ["1"]
    assert push.publish(source, base)["version"] == 3
    with pytest.raises(CodedError, match=r"KUG-S06 .*versions \[1\]"):
        push.rollback(base) and push.rollback(base)


def test_push_waits_for_the_server_and_withdraws_what_it_cannot_load(base, toy_models, tmp_path):
    from keras_unigan.serving.server import Server

    options = {"file_system_poll_wait_seconds": 0.1, "max_num_load_retries": 0}
    with Server(base, **options) as running:
        waits = {"force": True, "server": running.grpc_addr, "seconds": 60.0}
        pushed = push.push(toy_models[1], base, keep=1, **waits)
        assert running.manager.status("toy")[0][:2] == (2, "AVAILABLE")
        assert visible(base) == ["2"]
        broken = shutil.copytree(toy_models[0], tmp_path / "broken")
        (broken / "saved_model.pb").write_bytes(b"no graph")
        with pytest.raises(CodedError, match=r"KUG-S07 .*version 3: .*damaged.* withdrawn"):
            push.push(broken, base, keep=1, **waits)
        assert visible(base) == [str(pushed["version"])]
        with pytest.raises(CodedError, match=r"KUG-S07 .*version 4: "):
            push.push(toy_models[0], base, model="nobody", **{**waits, "seconds": 0.5})
        assert visible(base) == ["2"]


# Pushes one version after the other, each with a changed file, until it is killed.
PUSHER = """
import pathlib, sys
from keras_unigan.serving import push
source, base = map(pathlib.Path, sys.argv[1:])
print("ready", flush=True)
for text in range(10 ** 6):
    (source / "saved_model.pb").write_text(str(text))
    push.publish(source, base, keep=3)
"""


@pytest.mark.parametrize("pause", [0.0, 0.013, 0.05, 0.171])
def test_killed_anywhere_no_version_is_half_there(source, tmp_path, pause):
    base = tmp_path / "m"
    for name in range(20):
        (source / "variables" / f"part-{name}").write_bytes(bytes(10_000))
    process = subprocess.Popen(
        [sys.executable, "-c", PUSHER, str(source), str(base)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(pause)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left = [int(name) for name in visible(base)] if base.exists() else []
    for number in left:
        assert len(json.loads((base / str(number) / folders.MANIFEST).read_text())["files"]) == 22
        folders.check(base / str(number))
    highest = push._last(base) if base.exists() else 0
    assert push.publish(change(source, "after"), base)["version"] > max([*left, highest - 1, 0])
    assert not list(base.glob(".push-*"))


# The limit on the size of a file stands for a disk that is full: the write itself fails.
FULL = """
import resource, sys
from keras_unigan.serving import push
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
try:
    push.publish(sys.argv[1], sys.argv[2])
except ValueError as error:
    print(error)
"""


def test_a_disk_that_is_full_leaves_what_was_there(source, tmp_path):
    base = tmp_path / "m"
    push.publish(source, base)
    (source / "variables" / "large").write_bytes(bytes(200_000))
    found = subprocess.run(
        [sys.executable, "-c", FULL, str(source), str(base)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stdout.startswith("KUG-E04 "), found.stderr
    assert "/large: found File too large, expected room" in found.stdout
    assert visible(base) == ["1"]
    assert not list(base.glob(".push-*"))
    assert push.publish(source, base)["version"] == 2


class Recorder:
    """`tf.io.gfile` that notes what is written, and may fail there."""

    def __init__(self, fails=None):
        import tensorflow as tf

        self.real, self.written, self.fails = tf.io.gfile, [], fails

    def __getattr__(self, name):
        return getattr(self.real, name)

    def GFile(self, path, mode):
        if mode == "wb":
            if self.fails and self.fails in path:
                raise OSError("the connection broke")
            self.written.append(path)
        return self.real.GFile(path, mode)


def test_an_object_store_gets_the_graph_last(source, monkeypatch):
    base = f"ram://unigan-{uuid.uuid4().hex}/m"
    recorder = Recorder()
    monkeypatch.setattr(stores, "_gfile", lambda: recorder)
    first = push.publish(source, base)
    assert (first["version"], first["destination"]) == (1, f"{base}/1")
    names = [path.removeprefix(f"{base}/1/") for path in recorder.written if "/1/" in path]
    assert names == ["variables/variables.index", folders.MANIFEST, "saved_model.pb"]
    assert not push.publish(source, base)["pushed"]
    recorder.fails = "saved_model.pb"
    with pytest.raises(OSError, match="the connection broke"):
        push.publish(change(source, "two"), base)
    assert set(stores.scan(base)) == {1}
    recorder.fails = None
    # The number of the half version is not given again.
    assert push.publish(source, base)["version"] == 3
    assert push.rollback(base) == {"withdrawn": 3, "version": 1}
    assert push.publish(change(source, "four"), base, keep=1)["version"] == 4
    assert set(stores.scan(base)) == {4}


def test_pushes_to_a_store_at_the_same_time_share_no_number(tmp_path):
    base, results = f"ram://unigan-{uuid.uuid4().hex}/m", []

    def run(text):
        folder = tmp_path / text
        folder.mkdir()
        results.append(push.publish(change(folder, text), base))

    threads = [threading.Thread(target=run, args=(f"t{i}",)) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({r["version"] for r in results}) == 5
    assert set(stores.scan(base)) == {r["version"] for r in results}


def run_cli(*arguments):
    """Exit code of `unigan push`."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["push", *map(str, arguments)])
    return caught.value.code


def test_the_command_line_says_what_was_checked(source, tmp_path, capsys):
    base = tmp_path / "m"
    assert run_cli(source, "-o", base) == 4
    assert "KUG-S07" in capsys.readouterr().err
    assert run_cli(source, "-o", base, "--force") == 0
    assert "checked: nothing: forced" in capsys.readouterr().out
    blessings.write(change(source, "two"), "infra", {"passed": True})
    assert run_cli(source, "-o", base, "--keep", 5, "--json") == 0
    assert json.loads(capsys.readouterr().out)["blessings"] == ["infra"]
    assert run_cli("-o", base, "--rollback") == 0
    assert "Withdrew version 2; 1 is the newest" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["--rollback"],
        ["DIR"],
        ["-o", "m"],
        ["DIR", "-o", "m", "--rollback"],
        ["DIR", "-o", "m", "--minimum", "0.5"],
    ],
)
def test_the_command_line_refuses_what_makes_no_sense(arguments, capsys):
    assert run_cli(*arguments) == 2
    assert "KUG-T02" in capsys.readouterr().err
