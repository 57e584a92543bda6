"""What a request may take: places, bytes, unpacked bytes, time; and one file through REST."""

import gzip
import socket
import threading
import time

import httpx
import numpy as np
import pytest
from serving_stubs import IMAGE, Stubs, predict, refused

from keras_unigan.serving import limits
from keras_unigan.serving.server import Server
from keras_unigan.serving.status import ServingError


def test_a_gate_counts_places_and_bytes():
    gate = limits.Gate(2, 100)
    with gate.enter(60) as first, gate.enter(30):
        with pytest.raises(ServingError, match="has 2 requests in flight already") as caught:
            gate.enter(0).__enter__()
        assert caught.value.code == "RESOURCE_EXHAUSTED"
        with gate.enter(1000, counted=False):
            assert not gate.wait_idle(0)
        gate.grow(first, 10)
        with pytest.raises(ServingError, match="take all bytes that the server allows"):
            gate.grow(first, 1)
    assert gate.wait_idle(0)
    with pytest.raises(ServingError, match="take all bytes"), gate.enter(101):
        pass
    assert gate.wait_idle(0)  # what was refused left nothing behind
    gate.close()
    with pytest.raises(ServingError, match="UNAVAILABLE: The server is shutting down"):
        gate.enter(0).__enter__()


def test_gzip_streams_are_measured_without_unpacking_them_whole():
    bomb = gzip.compress(bytes(10**7))
    limits.check_gzip(bomb, 10**7)
    with pytest.raises(ServingError, match=r"larger than max \(9999999 bytes\)"):
        limits.check_gzip(bomb, 10**7 - 1)
    with pytest.raises(ServingError, match="The gzip stream is damaged"):
        limits.check_gzip(b"\x1f\x8bnonsense", 1)
    limits.check_gzip(b"not gzip", 1)


SLOW = {"signature": "slow", "inputs": {"rounds": np.array([10**7], np.int32)}}


def test_load_is_shed_and_probes_get_through(base):
    options = {"max_concurrent_requests": 1, "max_request_seconds": 1.5}
    with Server(base, **options) as running:
        stubs, right = Stubs(running.grpc_addr), predict(inputs={"image": IMAGE})
        held = stubs.prediction.Predict.future(predict(**SLOW))
        while not running.core.gate._limited:
            time.sleep(0.005)
        text = "The server has 1 requests in flight already"
        assert refused(stubs.prediction.Predict, right) == ("RESOURCE_EXHAUSTED", text)
        answer = httpx.post(f"{running.rest_url}/v1/models/toy:predict", json={})
        assert (answer.status_code, answer.json()) == (429, {"error": text})
        assert answer.headers["retry-after"] == "1"
        for path in ("/v1/models/toy", "/v1/models/toy/metadata", "/readyz"):
            assert httpx.get(f"{running.rest_url}{path}").status_code == 200
        # The time limit ends what would run for ever, although the client set no deadline.
        assert held.exception(timeout=30).code().name == "DEADLINE_EXCEEDED"
        assert stubs.prediction.Predict(right, timeout=20).outputs
        stubs.channel.close()


def test_tensors_may_be_smaller_than_a_message(base):
    with Server(base, max_tensor_bytes=10_000, max_in_flight_bytes=60_000) as running:
        stubs = Stubs(running.grpc_addr)
        text = "The tensors of the request take more than max (10000 bytes)"
        large = np.zeros((1, 100, 100, 1), np.float32)
        request = predict(inputs={"image": large})
        assert refused(stubs.prediction.Predict, request) == ("RESOURCE_EXHAUSTED", text)
        # A few bytes may declare a large array: refused before it is made.
        few = predict()
        few.inputs["image"].dtype = 1
        for size in large.shape:
            few.inputs["image"].tensor_shape.dim.add(size=size)
        assert refused(stubs.prediction.Predict, few) == ("RESOURCE_EXHAUSTED", text)
        # Two outputs of an input that fits: 9,600 bytes in, 12,000 out.
        middle = predict(inputs={"image": np.zeros((1, 60, 40, 1), np.float32)})
        assert refused(stubs.prediction.Predict, middle) == ("RESOURCE_EXHAUSTED", text)
        rest = f"{running.rest_url}/v1/models/toy:predict"
        answer = httpx.post(rest, json={"instances": large.astype(int).tolist()})
        assert (answer.status_code, answer.json()["error"]) == (429, text)
        answer = httpx.post(rest, content=b" " * 60_001)
        text = "The requests in flight take all bytes that the server allows"
        assert answer.json() == {"error": text}
        stubs.channel.close()


def test_a_body_that_never_comes_is_not_waited_for(base):
    with Server(base, rest_api_timeout_in_ms=300, port=0) as running:
        host, port = running.rest_url[7:].split(":")
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(
                b"POST /v1/models/toy:predict HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{"
            )
            answer = b""
            while part := connection.recv(4096):
                answer += part
        assert answer.startswith(b"HTTP/1.1 504 ")
        assert b"The body of the request did not arrive in time" in answer


def test_a_client_that_goes_away_is_no_error_of_ours(server, caplog):
    host, port = server.rest_url[7:].split(":")
    with caplog.at_level("INFO"):
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(
                b"POST /v1/models/toy:predict HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{"
            )
            while not server.core.gate._requests:
                time.sleep(0.005)
        assert server.core.gate.wait_idle(20)
        deadline = time.monotonic() + 20
        while not caplog.records and time.monotonic() < deadline:
            time.sleep(0.005)  # the line is written after the place is given back
    (record,) = caplog.records
    assert '"code": "CANCELLED"' in record.getMessage()


@pytest.fixture(scope="module")
def rest(server):
    with httpx.Client(base_url=server.rest_url, timeout=30) as client:
        yield client


def test_one_file_through_rest(rest):
    for path in ("/v1/nifti/toy", "/v1/nifti/toy/versions/1"):
        answer = rest.post(f"{path}?modality=ct", content=b"\x00file\x00")
        assert answer.status_code == 200
        assert answer.content == b"ct|\x00file\x00"
        assert answer.headers["content-type"] == "application/octet-stream"
        assert (answer.headers["x-model-name"], answer.headers["x-model-version"]) == ("toy", "1")
    assert rest.post("/v1/nifti/toy", content=b"file").content == b"|file"
    packed = gzip.compress(b"file")
    assert rest.post("/v1/nifti/toy", content=packed).content == b"|" + packed
    headers = {"content-encoding": "gzip"}
    assert rest.post("/v1/nifti/toy", content=packed, headers=headers).content == b"|file"


@pytest.mark.parametrize(
    ("verb", "path", "code", "text"),
    [
        ("POST", "/v1/nifti/toy", 400, "The body holds no NIfTI file"),
        ("POST", "/v1/nifti/no", 404, "Servable not found for request: Latest(no)"),
        ("GET", "/v1/nifti/toy", 400, "Malformed request: GET /v1/nifti/toy"),
    ],
)
def test_files_that_are_refused(rest, verb, path, code, text):
    content = b"" if code == 400 else b"x"
    answer = rest.request(verb, path, content=content)
    assert (answer.status_code, answer.json()) == (code, {"error": text})


def test_a_packed_file_may_not_grow_beyond_the_limit(base):
    with Server(base, max_request_bytes=100_000) as running:
        bomb = gzip.compress(bytes(10**6))
        text = "Received message larger than max (100000 bytes)"
        answer = httpx.post(f"{running.rest_url}/v1/nifti/toy", content=bomb)
        assert (answer.status_code, answer.json()) == (429, {"error": text})
        stubs = Stubs(running.grpc_addr)
        inputs = {"nifti_bytes": np.array([bomb], object), "modality": np.array([b""], object)}
        request = predict(signature="segment_nifti", inputs=inputs)
        assert refused(stubs.prediction.Predict, request) == ("RESOURCE_EXHAUSTED", text)
        stubs.channel.close()


def test_other_origins_may_ask_where_that_is_on(rest, base):
    assert "access-control-allow-origin" not in rest.get("/v1/models/toy").headers
    assert rest.request("OPTIONS", "/v1/models/toy:predict").status_code == 400
    with Server(base, rest_api_enable_cors_support=True, port=0) as running:
        answer = httpx.request("OPTIONS", f"{running.rest_url}/v1/models/toy:predict")
        assert answer.status_code == 204
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "POST" in answer.headers["access-control-allow-methods"]
        answer = httpx.post(f"{running.rest_url}/v1/models/toy:predict", json={})
        assert answer.headers["access-control-allow-origin"] == "*"


def test_the_id_of_a_request_comes_back(rest, server):
    answer = rest.get("/v1/models/toy", headers={"x-request-id": "abc"})
    assert answer.headers["x-request-id"] == "abc"
    assert len(rest.get("/v1/models/toy").headers["x-request-id"]) == 32
    stubs = Stubs(server.grpc_addr)
    call = stubs.prediction.Predict.with_call
    _, rpc = call(predict(inputs={"image": IMAGE}), metadata=[("x-request-id", "abc")])
    assert dict(rpc.trailing_metadata())["x-request-id"] == "abc"
    stubs.channel.close()


def test_many_clients_at_once_get_their_own_answers(server):
    def ask(value, found):
        stubs = Stubs(server.grpc_addr)
        image = np.full((1, 3, 3, 1), value, np.float32)
        for _ in range(10):
            answer = stubs.prediction.Predict(predict(inputs={"image": image}), timeout=30)
            found.append(set(answer.outputs["probabilities"].float_val) == {2.0 * value})
        stubs.channel.close()

    found = []
    threads = [threading.Thread(target=ask, args=(i, found)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 80
