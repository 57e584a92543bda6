"""Reloading the list of models, by RPC and by its file: as a whole, or not at all."""

import shutil
import threading
import time

import numpy as np
import pytest
from serving_stubs import Stubs, predict, refused

from keras_unigan.serving import wire
from keras_unigan.serving.server import Server

FAST = {
    "file_system_poll_wait_seconds": 0.05,
    "max_num_load_retries": 0,
    "rest_api_port": 0,
}
IMAGE = np.ones((1, 2, 2, 1), np.float32)
CONFIG = """model_config_list {{ {} }}"""
ENTRY = 'config {{ name: "{}" base_path: "{}" model_platform: "tensorflow" {} }}'


@pytest.fixture
def folders(tmp_path, toy_models):
    """Two model folders: "two" with version 1, which doubles, "three" with version 1."""
    for name, model in (("two", toy_models[0]), ("three", toy_models[1])):
        shutil.copytree(model, tmp_path / name / "1")
    return tmp_path


@pytest.fixture
def stubs(folders):
    with Server(folders / "two", **FAST) as running:
        found = Stubs(running.grpc_addr)
        found.server = running
        yield found
        found.channel.close()


def entry(name, folder, specific=(), **labels):
    config = wire.model_server_config_pb2.ModelConfig(
        name=name, base_path=str(folder), model_platform="tensorflow", version_labels=labels
    )
    if specific:
        config.model_version_policy.specific.versions.extend(specific)
    return config


def reload(stubs, *entries, timeout=30):
    request = wire.model_management_pb2.ReloadConfigRequest()
    request.config.model_config_list.config.extend(entries)
    return stubs.models.HandleReloadConfigRequest(request, timeout=timeout)


def refused_reload(stubs, *entries):
    request = wire.model_management_pb2.ReloadConfigRequest()
    request.config.model_config_list.config.extend(entries)
    return refused(stubs.models.HandleReloadConfigRequest, request)


def scale(stubs, name, **spec):
    answer = stubs.prediction.Predict(predict(name, inputs={"image": IMAGE}, **spec), timeout=20)
    return answer.outputs["probabilities"].float_val[0]


def until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_new_list_replaces_the_old(stubs, folders):
    assert reload(stubs, entry("two", folders / "two"), entry("three", folders / "three"))
    # What a reload has said is there is there.
    assert (scale(stubs, "two"), scale(stubs, "three")) == (2.0, 3.0)
    reload(stubs, entry("three", folders / "three"))
    assert scale(stubs, "three") == 3.0
    code, text = refused(stubs.prediction.Predict, predict("two", inputs={"image": IMAGE}))
    assert (code, text) == ("NOT_FOUND", "Servable not found for request: Latest(two)")
    assert stubs.server.ready()
    # What became of the versions of a model that was left out stays visible.
    until(lambda: stubs.server.manager.status("two") == [(1, "END", "OK", "")])
    reload(stubs, entry("two", folders / "two"))
    assert stubs.server.manager.status("two") == [(1, "AVAILABLE", "OK", "")]


def test_another_folder_takes_over_without_a_failed_request(stubs, folders):
    seen, over = [], threading.Event()

    def ask():
        while not over.is_set():
            seen.append(scale(stubs, "two"))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        reload(stubs, entry("two", folders / "three"))
        assert scale(stubs, "two") == 3.0  # although the version has the same number
    finally:
        over.set()
        thread.join()
    assert set(seen) <= {2.0, 3.0}
    assert seen == sorted(seen)  # never back to the old one


def test_labels_and_versions_come_with_the_list(stubs, folders, toy_models):
    shutil.copytree(toy_models[1], folders / "staging")
    (folders / "staging").rename(folders / "two" / "2")
    reload(stubs, entry("two", folders / "two", [1, 2], stable=1, canary=2))
    assert scale(stubs, "two", label="stable") == 2.0
    assert scale(stubs, "two", label="canary") == 3.0
    assert scale(stubs, "two") == 3.0
    reload(stubs, entry("two", folders / "two", [1], stable=1))
    assert scale(stubs, "two") == 2.0
    assert refused(
        stubs.prediction.Predict, predict("two", inputs={"image": IMAGE}, label="canary")
    ) == ("INVALID_ARGUMENT", "Unrecognized servable version label: canary")


def test_refused_reloads_change_nothing(stubs, folders):
    two, bad = entry("two", folders / "two"), folders / "bad"
    (bad / "1").mkdir(parents=True)
    (folders / "empty").mkdir()
    label = "Request to assign label to version 9 of model {}, which is not currently available"
    for wrong, code, text in (
        (entry("new", folders / "no"), "FAILED_PRECONDITION", "Could not find base path"),
        (entry("new", folders / "empty"), "FAILED_PRECONDITION", "new has no version to serve"),
        (entry("new", bad), "NOT_FOUND", "Version 1 of model new cannot be served: The version"),
        (entry("new", folders / "three", [8]), "FAILED_PRECONDITION", "None of the versions [8]"),
        (entry("new", folders / "three", x=9), "FAILED_PRECONDITION", label.format("new")),
        (entry("two", folders / "two"), "INVALID_ARGUMENT", "Illegal to list model two multiple"),
        (entry("new", "relative"), "INVALID_ARGUMENT", "to have an absolute path or URI"),
    ):
        answer = refused_reload(stubs, two, wrong)
        assert answer[0] == code, answer
        assert text in answer[1]
        assert set(stubs.server.manager.models) == {"two"}
        assert scale(stubs, "two") == 2.0
    for wrong in (entry("two", folders / "two", [5]), entry("two", folders / "two", stable=9)):
        assert refused_reload(stubs, wrong)[0] == "FAILED_PRECONDITION"
        assert scale(stubs, "two") == 2.0
    # And a good one is taken afterwards.
    reload(stubs, two, entry("three", folders / "three"))
    assert scale(stubs, "three") == 3.0


def test_a_reload_waits_no_longer_than_it_may(folders, monkeypatch):
    from keras_unigan.serving import versions

    with Server(folders / "two", **FAST) as running:
        stubs, go = Stubs(running.grpc_addr), threading.Event()
        load = versions.Servable

        def slow(path):
            go.wait(20)
            return load(path)

        monkeypatch.setattr(versions, "Servable", slow)
        request = wire.model_management_pb2.ReloadConfigRequest()
        request.config.model_config_list.config.append(entry("three", folders / "three"))
        with pytest.raises(Exception, match="DEADLINE_EXCEEDED"):
            stubs.models.HandleReloadConfigRequest(request, timeout=0.5)
        assert scale(stubs, "two") == 2.0
        go.set()
        reload(stubs, entry("three", folders / "three"))
        assert scale(stubs, "three") == 3.0
        stubs.channel.close()


def test_the_file_is_looked_at_again(folders, caplog):
    path = folders / "models.config"
    two, three = (ENTRY.format(n, folders / n, "") for n in ("two", "three"))
    path.write_text(CONFIG.format(two))
    options = {"model_config_file": str(path), "model_config_file_poll_wait_seconds": 0.05}
    with Server(**options, **FAST) as running:
        stubs = Stubs(running.grpc_addr)
        assert scale(stubs, "two") == 2.0
        path.write_text(CONFIG.format(two + three))
        until(lambda: set(running.manager.models) == {"two", "three"})
        assert scale(stubs, "three") == 3.0
        for wrong in ("nonsense", CONFIG.format(two * 2), CONFIG.format(""), None):
            caplog.clear()
            if wrong is None:
                path.unlink()
            else:
                path.write_text(wrong)
            until(lambda: "configuration file is not taken" in caplog.text)
            assert (scale(stubs, "two"), scale(stubs, "three")) == (2.0, 3.0)
        path.write_text(CONFIG.format(three))
        until(lambda: set(running.manager.models) == {"three"})
        stubs.channel.close()
