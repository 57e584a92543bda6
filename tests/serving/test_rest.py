import base64
import gzip
import json
import logging
import math
import socket

import httpx
import numpy as np
import pytest

from keras_unigan.serving.server import Server


@pytest.fixture(scope="module")
def rest(server):
    with httpx.Client(base_url=server.rest_url, timeout=30) as client:
        yield client


def ask(rest, body, path="/v1/models/toy:predict", **options):
    content = body if isinstance(body, bytes) else json.dumps(body)
    return rest.post(path, content=content, **options)


def error(answer, code=400):
    assert answer.status_code == code, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == ["error"]
    return answer.json()["error"]


ROW = [[[0.1], [-2]], [[3], [1e30]]]


def test_row_format(rest):
    answer = ask(rest, {"instances": [ROW, ROW]})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    expected = {"probabilities": [[[0.2], [-4.0]], [[6.0], [2e30]]], "label_map": [[1, 0], [1, 1]]}
    assert answer.json() == {"predictions": [expected, expected]}
    named = ask(rest, {"instances": [{"image": ROW}], "signature_name": "serving_default"})
    assert named.json() == {"predictions": [expected]}


def test_column_format(rest):
    expected = {"probabilities": [[[[0.2], [-4.0]]]], "label_map": [[[1, 0]]]}
    for inputs in ([[[[0.1], [-2]]]], {"image": [[[[0.1], [-2]]]], "extra": 1}):
        assert ask(rest, {"inputs": inputs}).json() == {"outputs": expected}


def test_one_output_is_a_bare_value(rest):
    body = {"signature_name": "slow", "instances": [1, 1]}
    assert ask(rest, body).json() == {"predictions": [1.0, 1.0]}
    body = {"signature_name": "slow", "inputs": {"rounds": [1]}}
    assert ask(rest, body).json() == {"outputs": [1.0]}


def test_whole_floats_and_what_json_lacks(rest):
    body = b'{"signature_name": "pair", "instances": [{"a": [1, 2], "b": 3}]}'
    assert '"sum": 6.0' in ask(rest, body).text
    body = b'{"inputs": [[[[NaN], [Infinity], [-Infinity]]]]}'
    text = ask(rest, body).text
    assert "[[[[NaN], [Infinity], [-Infinity]]]]" in text
    values = np.ravel(json.loads(text)["outputs"]["probabilities"])
    assert math.isnan(values[0])


def test_bytes_and_text(rest):
    packed = {"b64": base64.b64encode(b"t1").decode()}
    answer = ask(rest, {"signature_name": "text", "instances": ["ct", packed]})
    first = {"raw_bytes": {"b64": base64.b64encode(b"ct\0").decode()}, "text": "CT"}
    second = {"raw_bytes": {"b64": base64.b64encode(b"t1\0").decode()}, "text": "T1"}
    assert answer.json() == {"predictions": [first, second]}
    for value in ("dDE", "dDE="):  # with and without padding
        body = {"signature_name": "text", "inputs": [{"b64": value}]}
        assert ask(rest, body).json()["outputs"]["text"] == ["T1"]


def test_paths(rest):
    body = {"instances": [ROW]}
    for path in (
        "/v1/models/toy/versions/1:predict",
        "/V1/Models/toy:Predict",
        "/v1/models/t%6Fy:predict?query=ignored",
    ):
        assert ask(rest, body, path).status_code == 200, path
    assert error(ask(rest, body, "/v1/models/no:predict"), 404) == (
        "Servable not found for request: Latest(no)"
    )
    assert error(ask(rest, body, "/v1/models/toy/versions/9:predict"), 404) == (
        "Servable not found for request: Specific(toy, 9)"
    )
    assert error(ask(rest, body, "/v1/models/toy/labels/x%79:predict")) == (
        "Unrecognized servable version label: xy"
    )


@pytest.mark.parametrize(
    ("verb", "path"),
    [
        ("GET", "/v1/models/toy:predict"),
        ("POST", "/v1/models/toy"),
        ("PUT", "/v1/models/toy:predict"),
        ("DELETE", "/v1/models/toy"),
        ("GET", "/v1/models/toy/versions/abc"),
        ("POST", "/v1/models/toy/versions/1/labels/x:predict"),
        ("GET", "/v1/models/toy/versions/1/labels/x"),
        ("POST", "/v1/models/toy:explain"),
        ("GET", "/v1/other"),
    ],
)
def test_malformed_paths(rest, verb, path):
    assert error(rest.request(verb, path)) == f"Malformed request: {verb} {path}"


def test_other_paths(rest):
    error(rest.get("/"), 404)
    error(rest.get("/monitoring/prometheus"), 404)
    error(rest.post("/monitoring/prometheus/metrics"), 404)
    assert error(rest.get("/v1/models")) == "Missing model name in request."
    error(rest.get(f"/v1/models/toy/versions/{2**63}"))
    error(rest.get(f"/v1/models/toy/versions/{'9' * 5000}"))


def test_gzip_bodies_and_any_content_type(rest):
    body = gzip.compress(json.dumps({"instances": [ROW]}).encode())
    answer = ask(rest, body, headers={"content-encoding": "gzip", "content-type": "text/x"})
    assert len(answer.json()["predictions"]) == 1
    for damaged in (body[:-9], b"no gzip"):
        answer = ask(rest, damaged, headers={"content-encoding": "gzip"})
        assert error(answer) == "The gzip body is damaged"


def test_gzip_bombs_and_endless_bodies_are_refused(base):
    bomb = gzip.compress(b"[" * 10**7)
    with Server(base, max_request_bytes=100_000) as running:
        answer = httpx.post(
            f"{running.rest_url}/v1/models/toy:predict",
            content=bomb,
            headers={"content-encoding": "gzip"},
        )
        assert error(answer, 429) == "Received message larger than max (100000 bytes)"
        host, port = running.rest_url[7:].split(":")
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(b"POST /v1/models/toy:predict HTTP/1.1\r\nhost: x\r\n")
            connection.sendall(b"transfer-encoding: chunked\r\n\r\n")

            def send_without_end():
                for _ in range(10_000):
                    connection.sendall(b"c350\r\n" + b" " * 50_000 + b"\r\n")

            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                send_without_end()
        assert httpx.get(f"{running.rest_url}/readyz").status_code == 200


SECRET = "Jane Doe 1970"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "JSON Parse error: The document is empty"),
        (b" \n", "JSON Parse error: The document is empty"),
        (b'{"instances": Jane', "JSON Parse error: Invalid value. at offset: 14"),
        (b'{"a": "\xff"}', "JSON Parse error: Invalid encoding in string. at offset: 7"),
        (b"[" * 100_000, "JSON Parse error: Nested too deeply."),
        (b'{"instances": ' + b"9" * 5000 + b"}", "JSON Parse error: Number too big"),
        ([SECRET], "Is not object"),
        ({SECRET: 1}, "Missing 'inputs' or 'instances' key"),
        (
            {"inputs": 1, "instances": [1]},
            "expecting only one of 'inputs' or 'instances' keys to exist",
        ),
        ({"instances": {"a": SECRET}}, "Expecting 'instances' to be an list/array"),
        ({"instances": []}, "No values in 'instances' array"),
        ({"signature_name": 3, "instances": [1]}, "'signature_name' key must be a string value."),
        (
            {"signature_name": "no", "instances": [1]},
            'Serving signature name: "no" not found in signature def',
        ),
        (
            {"instances": [[[[SECRET]]]]},
            "Failed to process element: 0 of 'instances' list. Error: INVALID_ARGUMENT: JSON Value "
            "Type: String is not of expected type: float",
        ),
        (
            {"instances": [ROW, [[[1.5], [None]], [[1], [2]]]]},
            "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: JSON Value "
            "Type: Null is not of expected type: float",
        ),
        ({"inputs": [[[[True]]]]}, "Type: True is not of expected type: float"),
        ({"inputs": [[[[{"x": SECRET}]]]]}, "Type: Object is not of expected type: float"),
        (
            {"signature_name": "slow", "inputs": [2.0]},
            "Type: Number is not of expected type: int32",
        ),
        (
            {"signature_name": "slow", "inputs": [2**31]},
            "Type: Number is not of expected type: int32",
        ),
        (
            {"inputs": [[[[1e39]]]]},
            "Cannot convert JSON value to float without loss of precision.",
        ),
        (
            {"signature_name": "pair", "instances": [{"a": [1, SECRET], "b": 1}]},
            "Failed to process element: 0 key: a of 'instances' list. Error: INVALID_ARGUMENT: ",
        ),
        (
            {"instances": [[[[1], [2]]], [[[1]]]]},
            "Expecting tensor size: 2 but got: 1",
        ),
        ({"instances": [[[[1], [2]]], [[[1]], [[2]]]]}, "Expecting shape [1,2,1] but got: [2,1,1]"),
        (
            {"instances": [[[[1], [2]], [[3]]]]},
            "Encountered list at unexpected size: 1 at level: 1 expected size: 2",
        ),
        ({"inputs": [[[[1], [[2]]]]]}, "Encountered list at unexpected level: 4 expected < 4"),
        (
            {"inputs": [[[[1], 2]]]},
            "JSON Value found at incorrect level: 4 in the JSON DOM. Expected at level: 4",
        ),
        (
            {"signature_name": "pair", "instances": [{"a": [1, 2], "b": 1}, [1]]},
            "Expecting object but got list at item 1 of input list",
        ),
        (
            {"signature_name": "text", "instances": ["ct", {"text": SECRET}]},
            "Expecting value/list but got object at item 1 of input list",
        ),
        (
            {"instances": [{"zz": 1}]},
            "Failed to process element: 0 key: zz of 'instances' list. Error: INVALID_ARGUMENT: "
            "JSON object: does not have named input: zz",
        ),
        (
            {"signature_name": "pair", "instances": [{"a": [1, 2]}]},
            "keys must be equal to: a,b",
        ),
        (
            {"signature_name": "pair", "inputs": {"a": [[1, 2]]}},
            "Missing named input: b in 'inputs' object.",
        ),
        (
            {"signature_name": "pair", "instances": [1, 2]},
            "instances is a plain list, but expecting list of objects",
        ),
        (
            {"signature_name": "pair", "inputs": [1, 2]},
            "inputs is a plain value/list, but expecting an object",
        ),
        ({"signature_name": "text", "inputs": [{"b64": "Jane!"}]}, "Unable to base64 decode"),
        (
            {"signature_name": "text", "inputs": [{"b64": SECRET, "x": 1}]},
            "not formatted correctly for base64 data",
        ),
        ({"signature_name": "text", "inputs": [5]}, "Type: Number is not of expected type: string"),
        (
            {"signature_name": "text", "inputs": [SECRET]},
            "assertion failed: [Unknown modality; known: ct, t1]",
        ),
        (
            {"signature_name": "leak", "instances": [SECRET]},
            "The graph of the model failed on this request",
        ),
        (
            {"signature_name": "scalar", "instances": [1.0, 2.0]},
            "Tensor name: mean has no shape information",
        ),
        (
            {"signature_name": "uneven", "instances": [1.0, 2.0]},
            "Tensor name: first has inconsistent batch size: 1 expecting: 2",
        ),
        (
            {"instances": [json.loads("[" * 200 + "1" + "]" * 200)]},
            "JSON Parse error: Nested too deeply.",
        ),
        (
            {"inputs": [[[1, 2, 3]]]},
            "Input image has shape [1,1,3] but the signature expects [?,?,?,1]",
        ),
    ],
)
def test_predict_refusals(rest, body, text):
    found = error(ask(rest, body))
    assert text in found
    assert "Jane" not in found
    assert len(found) <= 1024


def test_outputs_with_different_batches(rest):
    from keras_unigan.serving import json_tensors
    from keras_unigan.serving.status import ServingError

    arrays = {"a": np.zeros((2, 1), np.float32), "b": np.zeros(1, np.int64)}
    with pytest.raises(ServingError, match="b has inconsistent batch size: 1 expecting: 2"):
        json_tensors.outputs(arrays, True)
    assert json.loads(json_tensors.outputs(arrays, False)) == {
        "outputs": {"a": [[0.0], [0.0]], "b": [0]}
    }
    empty = {"a": np.zeros((2, 0, 3), np.float32)}
    assert json.loads(json_tensors.outputs(empty, True)) == {"predictions": [[], []]}


def test_status(rest):
    expected = {
        "version": "1",
        "state": "AVAILABLE",
        "status": {"error_code": "OK", "error_message": ""},
    }
    for path in ("/v1/models/toy", "/v1/models/toy/versions/1", "/v1/MODELS/toy?x"):
        assert rest.get(path).json() == {"model_version_status": [expected]}
    assert error(rest.get("/v1/models/no"), 404) == "Could not find any versions of model no"
    assert error(rest.get("/v1/models/toy/versions/9"), 404) == (
        "Could not find version 9 of model toy"
    )


def test_metadata(rest):
    found = rest.get("/v1/models/toy/versions/1/metadata").json()
    assert found["model_spec"] == {"name": "toy", "signature_name": "", "version": "1"}
    signatures = found["metadata"]["signature_def"]["signature_def"]
    assert signatures["serving_default"]["inputs"]["image"] == {
        "name": "serving_default_image:0",
        "dtype": "DT_FLOAT",
        "tensor_shape": {
            "dim": [{"size": s, "name": ""} for s in ("-1", "-1", "-1", "1")],
            "unknown_rank": False,
        },
    }
    assert signatures["pair"]["method_name"] == "tensorflow/serving/predict"
    assert error(rest.get("/v1/models/no/metadata"), 404) == (
        "Servable not found for request: Latest(no)"
    )


def test_health(rest, tmp_path):
    assert rest.get("/healthz").status_code == 200
    assert rest.get("/readyz").status_code == 200
    running = Server(tmp_path).start()
    try:
        assert httpx.get(f"{running.rest_url}/healthz").status_code == 200
        assert httpx.get(f"{running.rest_url}/readyz").json() == {"ready": False}
        assert httpx.get(f"{running.rest_url}/readyz").status_code == 503
    finally:
        running.stop()


def test_a_request_has_a_time_limit(base):
    with Server(base, rest_api_timeout_in_ms=300) as running:
        answer = httpx.post(
            f"{running.rest_url}/v1/models/toy:predict",
            json={"signature_name": "slow", "instances": [10**7]},
        )
        assert error(answer, 504) == "The deadline passed while the model ran"


def test_access_log(rest, caplog):
    with caplog.at_level(logging.INFO, "keras_unigan.serving.access"):
        ask(rest, {"instances": [ROW]}, headers={"x-request-id": "abc"})
        ask(rest, {"instances": [SECRET]})
        rest.get("/v1/models/toy")
        rest.get("/healthz")
    lines = [json.loads(r.getMessage()) for r in caplog.records]
    assert [(line["method"], line["code"]) for line in lines] == [
        ("rest predict", "OK"),
        ("rest predict", "INVALID_ARGUMENT"),
        ("rest status", "OK"),
    ]
    assert lines[0]["inputs"] == {"image": ["float", [1, 2, 2, 1]]}
    assert lines[0]["request_id"] == "abc"
    assert (lines[0]["model"], lines[0]["version"]) == ("toy", 1)
    assert "Jane" not in caplog.text


def test_an_unforeseen_error_is_internal_and_says_nothing(server, rest, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError(SECRET)

    monkeypatch.setattr(server.core.manager, "status", fail)
    assert error(rest.get("/v1/models/toy"), 500) == "Internal error (RuntimeError)"
    assert "RuntimeError at " in caplog.text
    assert "Jane" not in caplog.text
