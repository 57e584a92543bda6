import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from serving_stubs import IMAGE, Stubs, predict, refused

from keras_unigan.errors import CodedError
from keras_unigan.serving import settings
from keras_unigan.serving.server import Server


def test_a_limit_holds_for_both_ports(base):
    import httpx

    with Server(base, max_request_bytes=10_000) as running:
        image = np.zeros((1, 100, 100, 1), np.float32)
        stubs = Stubs(running.grpc_addr)
        code, text = refused(stubs.prediction.Predict, predict(inputs={"image": image}))
        assert code == "RESOURCE_EXHAUSTED"
        assert "larger than max" in text
        stubs.channel.close()
        url = f"{running.rest_url}/v1/models/toy:predict"
        answer = httpx.post(url, content=b"x" * 10_001)
        assert answer.status_code == 429
        assert answer.json() == {"error": "Received message larger than max (10000 bytes)"}


def test_answers_in_tensor_content(base):
    with Server(base, enable_serialization_as_tensor_content=True, rest_api_port=0) as running:
        assert running.rest_url == ""
        stubs = Stubs(running.grpc_addr)
        answer = stubs.prediction.Predict(predict(inputs={"image": IMAGE}))
        assert answer.outputs["probabilities"].tensor_content == (2 * IMAGE).tobytes()
        stubs.channel.close()


def test_a_taken_port_is_named(server, base):
    port = int(server.grpc_addr.rsplit(":", 1)[1])
    with pytest.raises(CodedError, match=f"KUG-S06 127.0.0.1:{port}: found an address in use"):
        Server(base, port=port).start()
    port = int(server.rest_url.rsplit(":", 1)[1])
    with pytest.raises(CodedError, match=f"KUG-S06 127.0.0.1:{port}: found an address in use"):
        Server(base, rest_api_port=port).start()


def test_a_server_without_versions_says_so(tmp_path):
    with pytest.raises(CodedError, match=r"KUG-S06.*no version folder"), Server(tmp_path):
        pass


def test_a_unix_socket_answers_too(base, tmp_path):
    path = tmp_path / "s"
    with Server(base, port=0, rest_api_port=0, grpc_socket_path=str(path)) as running:
        assert running.grpc_addr == ""
        stubs = Stubs(f"unix:{path}")
        assert stubs.prediction.Predict(predict(inputs={"image": IMAGE})).outputs
        stubs.channel.close()


def test_drain_finishes_what_is_in_flight_and_refuses_what_is_new(base):
    import httpx

    running = Server(base).start()
    running.wait_until_ready()
    stubs = Stubs(running.grpc_addr)
    warm = predict(signature="slow", inputs={"rounds": np.array([1], np.int32)})
    stubs.prediction.Predict(warm)
    started = time.perf_counter()
    stubs.prediction.Predict(
        predict(signature="slow", inputs={"rounds": np.array([200], np.int32)})
    )
    rounds = int(200 * 2 / (time.perf_counter() - started))  # two seconds' worth
    request = predict(signature="slow", inputs={"rounds": np.array([rounds], np.int32)})
    future = stubs.prediction.Predict.future(request)
    time.sleep(0.3)
    stopper = threading.Thread(target=running.stop)
    stopper.start()
    time.sleep(0.2)
    try:
        answer = stubs.health.Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert httpx.get(f"{running.rest_url}/readyz").status_code == 503
        assert httpx.get(f"{running.rest_url}/healthz").status_code == 200
        assert refused(stubs.prediction.Predict, warm)[0] == "UNAVAILABLE"
        assert list(future.result(timeout=30).outputs["done"].float_val) == [1.0]
    finally:
        stopper.join()
    assert refused(stubs.prediction.Predict, warm)[0] == "UNAVAILABLE"
    stubs.channel.close()


SERVE = """
import sys
from keras_unigan.serving import server, settings
sys.exit(server.serve(settings.Options.parse(sys.argv[1:])))
"""


def _loaded(stubs, request):
    """The answer once the model is loaded: the port may open before."""
    for _ in range(600):
        try:
            return stubs.prediction.Predict(request, timeout=120, wait_for_ready=True)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            time.sleep(0.1)
    raise AssertionError("the model was never loaded")


def test_serve_until_sigterm(base):
    arguments = [str(base), "--port", "0", "--rest_api_port", "0", "--grpc_socket_path"]
    socket = base.parent / "socket"
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    process = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-c", SERVE, *arguments, str(socket)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        stubs = Stubs(f"unix:{socket}")
        request = predict(inputs={"image": IMAGE})
        answer = _loaded(stubs, request)
        assert answer.outputs
        process.send_signal(signal.SIGTERM)
        try:
            out, err = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            # The stacks of all threads, in `err`.
            process.send_signal(signal.SIGABRT)
            out, err = process.communicate()
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, err
    assert "Serving toy from" in err
    lines = [json.loads(line) for line in out.splitlines()]
    assert (lines[-1]["method"], lines[-1]["code"]) == ("grpc Predict", "OK")
    assert {line["code"] for line in lines[:-1]} <= {"NOT_FOUND"}


def test_options_of_the_context_manager_are_checked(tmp_path):
    with pytest.raises(TypeError, match="unexpected keyword argument 'prot'"):
        Server(tmp_path, prot=1)
    with pytest.raises(CodedError, match="no such folder"):
        Server(pathlib.Path(tmp_path / "no"))
    assert settings.Options(model_base_path="x").port == 8500
