"""Load and faults: the soak in small, a server that dies under load, a disk that fills up."""

import concurrent.futures
import importlib
import resource
import shutil
import signal
import sys
import threading
import time

import grpc
import numpy as np
import pytest

from keras_unigan.errors import CodedError
from keras_unigan.serving import folders, push, wire
from keras_unigan.serving.client import Client
from keras_unigan.serving.server import Server

IMAGE = np.ones((1, 4, 4, 1), np.float32)


@pytest.fixture(scope="module")
def soak(root):
    """`benchmarks/soak.py` as a module."""
    sys.path.insert(0, str(root / "benchmarks"))
    try:
        return importlib.import_module("soak")
    finally:
        sys.path.remove(str(root / "benchmarks"))


class ToyAnswers:
    """What a toy model must answer, by its one weight."""

    def __init__(self, folder):
        import soak_requests
        import tensorflow as tf

        reader = tf.train.load_checkpoint(f"{folder}/variables/variables")
        (name,) = (n for n in reader.get_variable_to_shape_map() if n.startswith("scale/"))
        self.predict = [image * reader.get_tensor(name) for image in soak_requests.IMAGES]


def test_small_soak(soak, base, tmp_path):
    needless = ("segment_patch", "segment_scan", "segment_file", "describe")  # a toy has none
    kinds = {k: n for k, n in (soak.GOOD | soak.BAD).items() if k not in needless}
    options = {"file_system_poll_wait_seconds": 0.1, "load_retry_interval_micros": 100_000}
    source = shutil.copytree(base / "1", tmp_path / "source")
    base = base.rename(base.with_name(soak.MODEL))
    with Server(base, **options) as server:
        run = soak.Soak(server, base, source, tmp_path, 300, 4, kinds=kinds, answers_of=ToyAnswers)
        report = run.run(["swap", "broken", "rollback"])
        assert report["first_problems"] == []
        assert report["problems"] == 0
        assert report["good"] + report["malformed"] == report["requests"] >= 300
        assert set(report["answered_by"]) == {1, 2}
        assert report["malformed"] > 10
        assert set(report["milliseconds"]) == {"all good", *soak.GOOD} - {*needless}
        # The broken version never showed, and its rollback left the good one where it was.
        assert (report["states"]["1"], report["states"]["2"]) == ("END", "AVAILABLE")
        assert report["states"]["3"] != "AVAILABLE"
        assert sorted(p.name for p in base.iterdir() if p.name.isdigit()) == ["1", "2"]
        _unforgiving(soak.Asker(server.grpc_addr, server.rest_url, run.answers, threading.Lock()))


def _unforgiving(asker):
    """Wrong values, a version that nobody pushed, an answer to a bad request: all are problems."""
    assert asker.ask("predict", 0) is None
    for answers in asker.answers.values():
        answers.predict[0] = answers.predict[0] + 1000
    assert "differs by 1000" in asker.ask("predict", 0)
    assert "from the nearest version" in asker.ask("rest_row", 0)
    asker.answers[7] = asker.answers.pop(2)
    assert asker.ask("predict", 1) == "answered by version 2"
    good = asker.predict_request("serving_default", 0)
    assert asker._refused("INVALID_ARGUMENT", good) == "answered what is INVALID_ARGUMENT"
    assert asker._rest_refused(404, b"", ":paint") == "400 for 404"
    asker.client.close()
    assert asker.ask("predict", 1).startswith("ValueError")


@pytest.mark.slow
def test_soak_of_an_exported_model(soak, exported, tmp_path):
    base = tmp_path / "models" / soak.MODEL
    shutil.copytree(exported[2] / "1", base / "1")
    options = {"file_system_poll_wait_seconds": 0.1, "load_retry_interval_micros": 100_000}
    with Server(base, **options) as server:
        run = soak.Soak(server, base, exported[2] / "1", tmp_path, requests=300, clients=4)
        report = run.run(["swap", "broken", "rollback"])
    assert report["first_problems"] == []
    assert set(report["answered_by"]) == {1, 2}
    assert set(report["milliseconds"]) == {"all good", *soak.GOOD}


class Dying(wire.prediction_service_pb2_grpc.PredictionServiceServicer):
    """Takes a request, says so, and answers when it is told to."""

    def __init__(self):
        self.taken, self.go = threading.Event(), threading.Event()

    def Predict(self, request, context):
        self.taken.set()
        self.go.wait(30)
        answer = wire.predict_pb2.PredictResponse()
        wire.fill(answer.outputs["y"], np.float32([1, 2]), tensor_content=True)
        return answer


def listen(service, port=0):
    server = grpc.server(
        concurrent.futures.ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)]
    )
    wire.prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(service, server)
    return server, server.add_insecure_port(f"127.0.0.1:{port}")


def test_a_server_that_ends_in_the_middle_of_a_request_is_asked_again():
    first, second = Dying(), Dying()
    server, port = listen(first)
    server.start()
    with (
        Client(f"127.0.0.1:{port}", "m", retries=20, timeout=30) as client,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        answer = pool.submit(client.predict, IMAGE)
        assert first.taken.wait(20)
        server.stop(0)
        first.go.set()
        server.wait_for_termination()
        server, _ = listen(second, port)
        second.go.set()
        server.start()
        assert answer.result(60)["y"].tolist() == [1.0, 2.0]
    server.stop(0).wait()


@pytest.mark.slow
def test_a_killed_server_loses_nothing_but_time(soak, base, tmp_path):
    """SIGKILL under load: clients see UNAVAILABLE, try again, and go on after the restart."""
    before = folders.describe(base / "1")["digest"]
    process = soak.Process(base, tmp_path / "log").wait()
    stop, wrong, done = threading.Event(), [], []

    def ask():
        with Client(process.grpc_addr, "toy", retries=60, timeout=60) as client:
            while not stop.is_set():
                try:
                    found = client.predict(IMAGE)["probabilities"]
                    done.append(bool((found == 2 * IMAGE).all()))
                except CodedError as error:
                    wrong.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    try:
        for thread in threads:
            thread.start()
        while len(done) < 40:
            time.sleep(0.05)
        process.process.kill()
        assert process.process.wait(30) == -signal.SIGKILL
        with (
            Client(process.grpc_addr, "toy", retries=0, timeout=10) as plain,
            pytest.raises(CodedError, match="KUG-S01"),
        ):
            plain.predict(IMAGE)
        answered = len(done)
        process.start()
        process.wait()
        while len(done) < answered + 40 and not wrong:
            time.sleep(0.05)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        code = process.stop()
    assert wrong == []
    assert all(done)
    assert code == 0
    assert folders.describe(base / "1")["digest"] == before
    assert [p.name for p in base.iterdir()] == ["1"]


def test_a_disk_that_fills_up_during_a_push_leaves_the_folder_as_it_was(base, toy_models):
    """No file may grow beyond 10 kB: writing then fails as on a full disk."""
    before = {p.name for p in base.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Server(base, file_system_poll_wait_seconds=0.05) as server:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        try:
            with pytest.raises(CodedError, match=r"KUG-E04 .*File too large"):
                push.publish(toy_models[1], base)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        visible = {p.name for p in base.iterdir() if not p.name.startswith(".")}
        assert visible == before == {"1"}
        assert not [
            p for p in base.rglob("*") if p.name == "saved_model.pb" and p.parent.name != "1"
        ]
        with Client(server.grpc_addr, "toy") as client:
            assert client.predict(IMAGE)["probabilities"].max() == 2
            # Once there is room, the same push works, and its number was never seen broken.
            number = push.publish(toy_models[1], base)["version"]
            while (number, "AVAILABLE") != tuple(client.status()[0].values())[:2]:
                time.sleep(0.02)
            assert client.predict(IMAGE)["probabilities"].max() == 3
