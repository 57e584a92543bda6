import json
import logging
import time

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from serving_stubs import IMAGE, Stubs, predict, refused

from keras_unigan.serving import wire
from keras_unigan.serving.grpc_server import MODEL, PREDICTION


@pytest.fixture(scope="module")
def stubs(server):
    found = Stubs(server.grpc_addr)
    yield found
    found.channel.close()


def test_predict_answers_a_third_party_client_in_value_fields(stubs):
    import tensorflow as tf

    request = wire.predict_pb2.PredictRequest()
    request.model_spec.name = "toy"
    request.inputs["image"].CopyFrom(tf.make_tensor_proto(IMAGE))
    answer = stubs.prediction.Predict(request)
    assert answer.model_spec.name == "toy"
    assert answer.model_spec.version.value == 1
    assert answer.model_spec.signature_name == "serving_default"
    assert set(answer.outputs) == {"probabilities", "label_map"}
    probabilities = answer.outputs["probabilities"]
    assert probabilities.tensor_content == b""
    assert list(probabilities.float_val) == (2 * IMAGE).ravel().tolist()
    assert [d.size for d in probabilities.tensor_shape.dim] == [1, 3, 4, 1]
    assert list(answer.outputs["label_map"].int_val) == (IMAGE > 0).ravel().astype(int).tolist()
    np.testing.assert_array_equal(tf.make_ndarray(probabilities), 2 * IMAGE)


def test_inputs_may_come_in_value_fields_and_repeat(stubs):
    request = predict()
    image = request.inputs["image"]
    image.dtype = 1
    for size in (1, 2, 2, 1):
        image.tensor_shape.dim.add(size=size)
    image.float_val.extend([1.0, 3.0])
    answer = stubs.prediction.Predict(request)
    assert list(answer.outputs["probabilities"].float_val) == [2.0, 6.0, 6.0, 6.0]


def test_version_and_output_filter(stubs):
    request = predict(inputs={"image": IMAGE}, outputs=["label_map"], version=1)
    answer = stubs.prediction.Predict(request)
    assert list(answer.outputs) == ["label_map"]


def test_strings_and_several_inputs(stubs):
    answer = stubs.prediction.Predict(
        predict(signature="text", inputs={"text": np.array([b"ct", b"t1"], object)})
    )
    assert list(answer.outputs["raw_bytes"].string_val) == [b"ct\0", b"t1\0"]
    inputs = {"a": np.ones((3, 2), np.float32), "b": np.array([1, -2, 2**40])}
    answer = stubs.prediction.Predict(predict(signature="pair", inputs=inputs))
    assert list(answer.outputs["twice"].int64_val) == [2, -4, 2**41]


# Messages larger than gRPC's default of 4 MiB, both ways.
def test_messages_have_no_limit_of_their_own(stubs):
    image = np.random.default_rng(0).normal(size=(1, 1500, 1000, 1)).astype(np.float32)
    answer = stubs.prediction.Predict(predict(inputs={"image": image}))
    found = wire.to_array(answer.outputs["probabilities"], "probabilities")
    np.testing.assert_array_equal(found, 2 * image)


TWO = np.ones((1, 2), np.float32)


@pytest.mark.parametrize(
    ("request_", "code", "text"),
    [
        (wire.predict_pb2.PredictRequest(), "INVALID_ARGUMENT", "Missing ModelSpec"),
        (predict(""), "INVALID_ARGUMENT", "ModelSpec has no name specified."),
        (predict("no"), "NOT_FOUND", "Servable not found for request: Latest(no)"),
        (predict("no", version=3), "NOT_FOUND", "Servable not found for request: Specific(no, 3)"),
        (predict(version=7), "NOT_FOUND", "Servable not found for request: Specific(toy, 7)"),
        (predict(label="x"), "INVALID_ARGUMENT", "Unrecognized servable version label: x"),
        (predict(label=""), "INVALID_ARGUMENT", "Unrecognized servable version label: "),
        (
            predict(signature="no"),
            "FAILED_PRECONDITION",
            'Serving signature key "no" not found.',
        ),
        (
            predict(signature="__saved_model_init_op"),
            "FAILED_PRECONDITION",
            'Serving signature key "__saved_model_init_op" not found.',
        ),
        (
            predict(),
            "INVALID_ARGUMENT",
            "input size does not match signature: 0!=1 len({}) != len({image}). Sent extra: {}. "
            "Missing but required: {image}.",
        ),
        (
            predict(inputs={"zz": IMAGE, "image": IMAGE, "aa": IMAGE}),
            "INVALID_ARGUMENT",
            "input size does not match signature: 3!=1 len({aa,image,zz}) != len({image}). Sent "
            "extra: {aa,zz}. Missing but required: {}.",
        ),
        (
            predict(inputs={"zz": IMAGE}),
            "INVALID_ARGUMENT",
            "Signature input alias: image(feed name: serving_default_image:0) not found in request "
            "and no default value provided. Inputs expected to be in the request {zz}",
        ),
        (
            predict(inputs={"image": IMAGE.astype(np.float64)}),
            "INVALID_ARGUMENT",
            "Expects arg[0] to be float but double is provided",
        ),
        (
            predict(signature="pair", inputs={"a": TWO, "b": TWO}),
            "INVALID_ARGUMENT",
            "Expects arg[1] to be int64 but float is provided",
        ),
        (
            predict(inputs={"image": IMAGE[0]}),
            "INVALID_ARGUMENT",
            "Input image has shape [3,4,1] but the signature expects [?,?,?,1]",
        ),
        (
            predict(inputs={"image": np.zeros((1, 2, 2, 3), np.float32)}),
            "INVALID_ARGUMENT",
            "Input image has shape [1,2,2,3] but the signature expects [?,?,?,1]",
        ),
        (
            predict(inputs={"image": IMAGE}, outputs=["no"]),
            "INVALID_ARGUMENT",
            "output tensor alias not found in signature: no Outputs expected to be in the set "
            "{label_map,probabilities}.",
        ),
        (
            predict(inputs={"image": IMAGE}, outputs=["label_map", "label_map"]),
            "INVALID_ARGUMENT",
            "duplicate output tensor alias: label_map",
        ),
    ],
)
def test_predict_refusals(stubs, request_, code, text):
    assert refused(stubs.prediction.Predict, request_) == (code, text)


def test_tensors_that_cannot_be_parsed(stubs):
    request = predict()
    request.inputs["image"].dtype = 0
    answer = refused(stubs.prediction.Predict, request)
    assert answer == ("INVALID_ARGUMENT", "tensor parsing error: image")


def test_long_texts_are_cut(stubs):
    code, text = refused(stubs.prediction.Predict, predict("n" * 3000))
    assert code == "NOT_FOUND"
    assert len(text) == 1024
    assert text.endswith("n...TRUNCATED")


def test_errors_of_the_graph_hold_no_payload(stubs):
    inputs = {"text": np.array([b"Jane Doe"], object)}
    answer = refused(stubs.prediction.Predict, predict(signature="text", inputs=inputs))
    assert answer == (
        "INVALID_ARGUMENT",
        "assertion failed: [Unknown modality; known: ct, t1]",
    )
    inputs = {"record": np.array([b"Jane Doe"], object)}
    answer = refused(stubs.prediction.Predict, predict(signature="leak", inputs=inputs))
    assert answer == ("INVALID_ARGUMENT", "The graph of the model failed on this request")


def test_deadline_stops_the_run(stubs):
    request = predict(signature="slow", inputs={"rounds": np.array([10**7], np.int32)})
    with pytest.raises(grpc.RpcError) as caught:
        stubs.prediction.Predict(request, timeout=0.3)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


def test_bytes_that_are_no_request(stubs):
    method = stubs.channel.unary_unary(f"/{PREDICTION}/Predict")
    code, text = refused(method, b"\xff\xff\xff")
    assert (code, text) == ("INTERNAL", "Failed to parse the request message")


@pytest.mark.parametrize(
    "method",
    [
        f"{PREDICTION}/Explain",
        f"{MODEL}/Predict",
        "no.Such/Method",
    ],
)
def test_what_is_not_there_says_so(stubs, method):
    assert refused(stubs.channel.unary_unary(f"/{method}"), b"")[0] == "UNIMPLEMENTED"


def metadata(name="toy", fields=("signature_def",)):
    request = wire.get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=fields)
    if name is not None:
        request.model_spec.name = name
    return request


def test_metadata(stubs):
    answer = stubs.prediction.GetModelMetadata(metadata())
    assert (answer.model_spec.name, answer.model_spec.version.value) == ("toy", 1)
    signatures = wire.get_model_metadata_pb2.SignatureDefMap()
    assert answer.metadata["signature_def"].Unpack(signatures)
    found = signatures.signature_def
    assert set(found) == {
        *("serving_default", "pair", "text", "leak", "slow", "scalar", "classify", "regress"),
        *("segment_nifti", "uneven", "__saved_model_init_op"),
    }
    image = found["serving_default"].inputs["image"]
    assert image.dtype == 1
    assert [d.size for d in image.tensor_shape.dim] == [-1, -1, -1, 1]
    assert found["pair"].method_name == "tensorflow/serving/predict"


@pytest.mark.parametrize(
    ("request_", "code", "text"),
    [
        (metadata(None), "INVALID_ARGUMENT", "Missing ModelSpec"),
        (
            metadata(fields=()),
            "INVALID_ARGUMENT",
            "GetModelMetadataRequest must specify at least one metadata_field",
        ),
        (metadata(fields=["x"]), "INVALID_ARGUMENT", "Metadata field x is not supported"),
        (metadata("no"), "NOT_FOUND", "Servable not found for request: Latest(no)"),
        (metadata(""), "INVALID_ARGUMENT", "ModelSpec has no name specified."),
    ],
)
def test_metadata_refusals(stubs, request_, code, text):
    assert refused(stubs.prediction.GetModelMetadata, request_) == (code, text)


def status(name="toy", **spec):
    request = wire.get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = name
    if "version" in spec:
        request.model_spec.version.value = spec["version"]
    if "label" in spec:
        request.model_spec.version_label = spec["label"]
    return request


def test_status(stubs):
    for request in (status(), status(version=1)):
        (found,) = stubs.models.GetModelStatus(request).model_version_status
        assert (found.version, found.state, found.status.error_code) == (1, 30, 0)


@pytest.mark.parametrize(
    ("request_", "code", "text"),
    [
        (
            wire.get_model_status_pb2.GetModelStatusRequest(),
            "INVALID_ARGUMENT",
            "Missing ModelSpec",
        ),
        (status("no"), "NOT_FOUND", "Could not find any versions of model no"),
        (status(version=9), "NOT_FOUND", "Could not find version 9 of model toy"),
        (status(label="x"), "INVALID_ARGUMENT", "Unrecognized servable version label: x"),
        (
            status(""),
            "NOT_FOUND",
            "Could not find any versions of model . ModelSpec has no name specified.",
        ),
    ],
)
def test_status_refusals(stubs, request_, code, text):
    assert refused(stubs.models.GetModelStatus, request_) == (code, text)


def test_health_and_reflection(stubs):
    for name in ("", PREDICTION, MODEL):
        answer = stubs.health.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    unknown = health_pb2.HealthCheckRequest(service="no")
    assert refused(stubs.health.Check, unknown)[0] == "NOT_FOUND"
    reflection = reflection_pb2_grpc.ServerReflectionStub(stubs.channel)
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = reflection.ServerReflectionInfo(iter([asked]))
    names = {service.name for service in answer.list_services_response.service}
    assert {PREDICTION, MODEL, "grpc.health.v1.Health"} <= names


def test_access_log_has_one_line_a_request_without_payload(stubs, caplog):
    with caplog.at_level(logging.INFO, "keras_unigan.serving.access"):
        inputs = {"text": np.array([b"ct"], object)}
        request = predict(signature="text", inputs=inputs)
        stubs.prediction.Predict(request, metadata=[("x-request-id", "abc")])
        inputs = {"text": np.array([b"Jane Doe"], object)}
        refused(stubs.prediction.Predict, predict(signature="text", inputs=inputs))
        refused(stubs.prediction.Predict, predict(inputs={"Jane Doe": IMAGE}))
        deadline = time.monotonic() + 5
        while len(caplog.records) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)  # the line is written after the answer
    first, second, third = [json.loads(r.getMessage()) for r in caplog.records]
    assert isinstance(first.pop("milliseconds"), (int, float))
    assert first.pop("time").endswith("Z")
    assert first == {
        "method": "grpc Predict",
        "request_id": "abc",
        "bytes": request.ByteSize(),
        "model": "toy",
        "version": 1,
        "signature": "text",
        "inputs": {"text": ["string", [1]]},
        "code": "OK",
    }
    assert second["code"] == "INVALID_ARGUMENT"
    assert third["inputs"] == {}
    assert "Jane" not in caplog.text
