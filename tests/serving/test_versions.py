import shutil
import threading
import time

import numpy as np
import pytest

from keras_unigan.errors import CodedError
from keras_unigan.serving import folders, manager, push
from keras_unigan.serving.client import Client
from keras_unigan.serving.server import Server

IMAGE = np.ones((1, 2, 2, 1), np.float32)
FAST = {"file_system_poll_wait_seconds": 0.05, "max_num_load_retries": 0}


def until(condition, seconds=30):
    """Waits for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def scale(client):
    """What the version that answers multiplies by."""
    return client.predict(IMAGE)["probabilities"].ravel()[0]


def states(client):
    return {item["version"]: item["state"] for item in client.status()}


@pytest.fixture
def served(base):
    with Server(base, **FAST) as running, Client(running.grpc_addr, "toy", retries=0) as client:
        yield running, client


def put(model, base, name):
    """Adds a version in one rename."""
    shutil.copytree(model, base.parent / "staging")
    (base.parent / "staging").rename(base / name)


def test_hot_swap_loses_no_request(served, base, toy_models):
    _, client = served
    seen, failed, over = [], [], threading.Event()

    def ask():
        while not over.is_set():
            try:
                seen.append(scale(client))
            except CodedError as error:
                failed.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    put(toy_models[1], base, "2")
    until(lambda: states(client) == {1: "END", 2: "AVAILABLE"})
    put(toy_models[0], base, "00010")
    until(lambda: states(client) == {1: "END", 2: "END", 10: "AVAILABLE"})
    over.set()
    for thread in threads:
        thread.join()
    assert not failed
    assert set(seen) == {2.0, 3.0}
    assert seen[0] == scale(client) == 2.0


def test_a_request_keeps_the_version_that_it_started_on(served, base, toy_models):
    running, client = served
    with running.manager.use("toy") as (servable, number):
        put(toy_models[1], base, "2")
        until(lambda: states(client) == {1: "UNLOADING", 2: "AVAILABLE"})
        assert number == 1
        outputs = servable.predict("", {"image": IMAGE})
        assert outputs["probabilities"].ravel()[0] == 2.0
        assert scale(client) == 3.0
    assert states(client) == {1: "END", 2: "AVAILABLE"}


def break_graph(folder):
    (folder / "saved_model.pb").write_bytes(b"\x08\x01nonsense")


def break_variables(folder):
    shutil.rmtree(folder / "variables")


def break_data(folder):
    (data,) = (folder / "variables").glob("variables.data*")
    data.write_bytes(data.read_bytes()[:-1])


def break_manifest(folder):
    folders.write_manifest(folder)
    with open(folder / "fingerprint.pb", "ab") as file:
        file.write(b"x")


def break_completeness(folder):
    folders.write_manifest(folder)
    (folder / "fingerprint.pb").unlink()


def break_warmup(folder):
    push.write_warmup(folder, {"text": {"text": np.array([b"no such modality"], object)}})


def break_warmup_file(folder):
    push.write_warmup(folder, {"text": {"text": np.array([b"ct"], object)}})
    path = folder / "assets.extra" / "tf_serving_warmup_requests"
    path.write_bytes(path.read_bytes()[:-2])


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def test_polling_every_0_seconds_looks_once(base, toy_models, monkeypatch):
    monkeypatch.setattr(manager, "RETRY_LOOK_SECONDS", 0.01)
    looks = []
    scan = folders.scan
    monkeypatch.setattr(folders, "scan", lambda path: looks.append(path) or scan(path))
    options = {"file_system_poll_wait_seconds": 0, "load_retry_interval_micros": 1000}
    pb = base / "1" / "saved_model.pb"
    whole = pb.read_bytes()
    pb.write_bytes(b"")
    server = Server(base, max_num_load_retries=1000, **options)
    before = len(looks)
    server.start()
    try:
        until(lambda: server.manager.models["toy"].versions.get(1))
        until(lambda: server.manager.models["toy"].versions[1].attempts > 2)
        # What failed is tried again, but a folder that is new is not seen.
        put(toy_models[1], base, "2")
        pb.write_bytes(whole)
        with Client(server.grpc_addr, "toy", retries=0) as client:
            until(lambda: states(client) == {1: "AVAILABLE"})
        assert len(looks) == before + 1
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (break_graph, "saved_model.pb is damaged"),
        (break_variables, "has variables but no variables file"),
        (break_data, "graph or variables cannot be loaded"),
        (break_manifest, "The version is incomplete: 1 of "),
        (break_completeness, "The version is incomplete: 1 of "),
        (break_warmup, "Unknown modality; known: ct, t1"),
        (break_warmup_file, "The file of warm-up requests is damaged"),
        (empty, "no saved_model.pb"),
    ],
)
def test_a_broken_version_displaces_nothing(served, base, toy_models, tmp_path, damage, text):
    _, client = served
    shutil.copytree(toy_models[1], tmp_path / "broken")
    damage(tmp_path / "broken")
    (tmp_path / "broken").rename(base / "2")
    until(lambda: states(client) == {1: "AVAILABLE", 2: "END"})
    assert scale(client) == 2.0
    newest = client.status()[0]
    assert text in newest["error_message"]
    assert newest["error_code"] != 0
    assert str(tmp_path) not in newest["error_message"]
    # A good one after it is served.
    put(toy_models[1], base, "3")
    until(lambda: states(client).get(3) == "AVAILABLE")
    assert scale(client) == 3.0


def test_a_broken_newest_version_does_not_stop_a_start(base, toy_models):
    put(toy_models[1], base, "2")
    break_variables(base / "2")
    with Server(base, **FAST) as running, Client(running.grpc_addr, "toy") as client:
        until(lambda: states(client) == {1: "AVAILABLE", 2: "END"})
        assert scale(client) == 2.0


def test_a_failed_load_is_tried_again(base, toy_models):
    put(toy_models[1], base, "2")
    kept = base.parent / "variables"
    (base / "2" / "variables").rename(kept)
    options = {**FAST, "max_num_load_retries": 1000, "load_retry_interval_micros": 50_000}
    with Server(base, **options) as running, Client(running.grpc_addr, "toy") as client:
        until(lambda: states(client).get(1) == "AVAILABLE")
        newest = client.status()[0]
        assert (newest["version"], newest["state"] in ("START", "LOADING")) == (2, True)
        assert "no variables file" in newest["error_message"]
        kept.rename(base / "2" / "variables")
        until(lambda: states(client) == {1: "END", 2: "AVAILABLE"})
        assert client.status()[0]["error_code"] == 0


def test_only_broken_versions_are_told_at_the_start(base):
    break_graph(base / "1")
    with pytest.raises(CodedError, match=r"version 1 is END \(DATA_LOSS saved_model.pb is damaged"):
        Server(base, **FAST).__enter__()


def test_removed_versions(served, base, toy_models):
    running, client = served
    put(toy_models[1], base, "2")
    until(lambda: states(client).get(2) == "AVAILABLE")
    (base / "2").rename(base.parent / "gone")
    until(lambda: states(client) == {1: "AVAILABLE", 2: "END"})
    assert scale(client) == 2.0
    (base / "1").rename(base.parent / "gone too")
    until(lambda: states(client) == {1: "END", 2: "END"})
    with pytest.raises(CodedError, match=r"KUG-S02.*Servable not found for request: Latest\(toy\)"):
        scale(client)
    assert not running.ready()
    (base.parent / "gone").rename(base / "2")  # what comes back is loaded again
    until(lambda: states(client)[2] == "AVAILABLE")
    assert running.ready()


def test_names_that_are_no_numbers_are_ignored(base, toy_models):
    put(toy_models[1], base, "2a")
    put(toy_models[1], base, ".3")
    (base / "7").write_text("a file")
    assert list(folders.scan(base)) == [1]


CONFIG = """model_config_list {{ config {{ name: "toy" base_path: "{}" model_platform: "tensorflow"
{} }} }}"""


def configured(base, policy, **options):
    path = base.parent / "models.config"
    path.write_text(CONFIG.format(base, policy))
    return Server(model_config_file=str(path), **{**FAST, **options})


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("model_version_policy { latest { num_versions: 2 } }", {2, 3}),
        ("model_version_policy { all {} }", {1, 2, 3}),
        ("model_version_policy { specific { versions: 1 versions: 3 versions: 9 } }", {1, 3}),
    ],
)
def test_policies(base, toy_models, policy, expected):
    put(toy_models[1], base, "2")
    put(toy_models[0], base, "3")
    with configured(base, policy) as running, Client(running.grpc_addr, "toy") as client:
        until(lambda: set(states(client)) == expected)
        until(lambda: set(states(client).values()) == {"AVAILABLE"})
        assert scale(client) == 2.0
        with Client(running.grpc_addr, "toy", version=min(expected)) as old:
            assert scale(old) == {1: 2.0, 2: 3.0}[min(expected)]


LABELS = """model_version_policy {{ all {{}} }} version_labels {{ key: "stable" value: 1 }}
version_labels {{ key: "canary" value: {} }}"""


def test_labels(base, toy_models):
    put(toy_models[1], base, "2")
    with configured(base, LABELS.format(2)) as running:
        for label, factor in (("stable", 2.0), ("canary", 3.0)):
            with Client(running.grpc_addr, "toy", label=label) as client:
                until(lambda client=client: "AVAILABLE" in states(client).values())
                assert scale(client) == factor
        with (
            Client(running.grpc_addr, "toy", label="no") as client,
            pytest.raises(CodedError, match=r"KUG-S02.*Unrecognized servable version label: no"),
        ):
            scale(client)


def test_labels_and_lists_of_absent_versions_are_refused(base):
    text = "Request to assign label to version 5 of model toy, which is not currently available"
    with pytest.raises(CodedError, match=text):
        configured(base, LABELS.format(5))
    allowed = {"allow_version_labels_for_unavailable_models": True}
    with (
        configured(base, LABELS.format(5), **allowed) as running,
        Client(running.grpc_addr, "toy", label="canary") as client,
        pytest.raises(CodedError, match=r"Servable not found.*Specific\(toy, 5\)"),
    ):
        scale(client)
    with pytest.raises(CodedError, match=r"none of the versions \[8, 9\] of model toy"):
        configured(base, "model_version_policy { specific { versions: 8 versions: 9 } }")


@pytest.mark.parametrize(
    ("swaps", "requests"), [(12, 20), pytest.param(20, 50, marks=pytest.mark.slow)]
)
def test_memory_does_not_grow_with_swaps(base, toy_models, swaps, requests):
    psutil = pytest.importorskip("psutil")
    me = psutil.Process()
    with Server(base, **FAST) as running, Client(running.grpc_addr, "toy") as client:
        sizes = []
        for number in range(2, 2 + swaps):
            put(toy_models[number % 2], base, str(number))
            until(lambda number=number: states(client).get(number) == "AVAILABLE")
            for _ in range(requests):
                scale(client)
            shutil.rmtree(base / str(number - 1))
            sizes.append(me.memory_info().rss)
    # The first swaps fill caches; after them a version leaves as much as it took.
    assert sizes[-1] - sizes[5] < 30 * 2**20, [s // 2**20 for s in sizes]
