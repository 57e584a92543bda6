"""Classify, Regress and MultiInference over both protocols."""

import httpx
import numpy as np
import pytest
from serving_stubs import Stubs, refused

from keras_unigan.serving import examples, wire
from keras_unigan.serving.server import Server
from keras_unigan.serving.status import ServingError

CLASSIFY, REGRESS = examples.CLASSIFY, examples.REGRESS


@pytest.fixture(scope="module")
def stubs(server):
    found = Stubs(server.grpc_addr)
    yield found
    found.channel.close()


def fill(message, values, context=None):
    """Fills an `Input` with one example for each value of feature "x"."""
    target = message.example_list
    if context is not None:
        target = message.example_list_with_context
        target.context.features.feature["shift"].float_list.value.append(context)
    for value in values:
        target.examples.add().features.feature["x"].float_list.value.append(value)


def classify(signature="classify", values=(0.25, 1.0), name="toy", **options):
    request = wire.classification_pb2.ClassificationRequest()
    request.model_spec.name, request.model_spec.signature_name = name, signature
    fill(request.input, values, **options)
    return request


def regress(signature="regress", values=(0.25, 1.0), name="toy", **options):
    request = wire.regression_pb2.RegressionRequest()
    request.model_spec.name, request.model_spec.signature_name = name, signature
    fill(request.input, values, **options)
    return request


def found(result):
    return [[(c.label, c.score) for c in item.classes] for item in result.classifications]


LOW_HIGH = [[("low", 0.75), ("high", 0.25)], [("low", 0.0), ("high", 1.0)]]


def test_classify(stubs):
    answer = stubs.prediction.Classify(classify())
    assert (answer.model_spec.name, answer.model_spec.version.value) == ("toy", 1)
    assert answer.model_spec.signature_name == "classify"
    assert found(answer.result) == LOW_HIGH


def test_regress(stubs):
    answer = stubs.prediction.Regress(regress())
    assert answer.model_spec.signature_name == "regress"
    assert [r.value for r in answer.result.regressions] == [0.5, 2.0]


def test_a_context_is_part_of_each_example(stubs):
    answer = stubs.prediction.Regress(regress(context=2.0))
    assert [r.value for r in answer.result.regressions] == [4.5, 6.0]


@pytest.mark.parametrize(
    ("method", "request_", "code", "text"),
    [
        ("Classify", classify("pair"), "INVALID_ARGUMENT", "Expected one input Tensor."),
        (
            "Classify",
            classify("regress"),
            "INVALID_ARGUMENT",
            'Expected classification signature outputs to contain at least one of "classes"',
        ),
        ("Regress", regress("classify"), "INVALID_ARGUMENT", "Expected one output Tensor."),
        (
            "Regress",
            regress("leak"),
            "INVALID_ARGUMENT",
            "No regression inputs found in SignatureDef",
        ),
        ("Regress", regress(values=()), "INVALID_ARGUMENT", "Input is empty."),
        (
            "Classify",
            classify("no"),
            "INVALID_ARGUMENT",
            "No signature was found with the name: no",
        ),
    ],
)
def test_refusals(stubs, method, request_, code, text):
    answer = refused(getattr(stubs.prediction, method), request_)
    assert answer[0] == code
    assert text in answer[1]


def test_a_record_that_the_graph_cannot_read_is_not_quoted(stubs):
    request = classify(values=())
    example = request.input.example_list.examples.add()
    example.features.feature["x"].bytes_list.value.append(b"Jane Doe")
    code, text = refused(stubs.prediction.Classify, request)
    assert (code, text) == ("INVALID_ARGUMENT", "The graph of the model failed on this request")


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
    """Stubs of a TF 1 model whose two signatures share one input, as MultiInference needs."""
    import tensorflow as tf

    folder = tmp_path_factory.mktemp("joint") / "joint"
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        inputs = v1.placeholder(tf.string, [None], "inputs")
        features = {"x": tf.io.FixedLenFeature([], tf.float32)}
        x = tf.io.parse_example(inputs, features)["x"]
        info = v1.saved_model.build_tensor_info
        scores = {"scores": info(tf.stack([1.0 - x, x], 1))}
        numbers = {"outputs": info(3.0 * x[:, None])}
        make = v1.saved_model.build_signature_def
        builder = v1.saved_model.Builder(str(folder / "7"))
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            {
                "serving_default": make({"inputs": info(inputs)}, scores, CLASSIFY),
                "number": make({"inputs": info(inputs)}, numbers, REGRESS),
            },
        )
        builder.save()
    with Server(folder, rest_api_port=0) as running:
        stubs = Stubs(running.grpc_addr)
        yield stubs
        stubs.channel.close()


def multi(*tasks, values=(0.25, 1.0)):
    request = wire.inference_pb2.MultiInferenceRequest()
    for name, signature, method in tasks:
        task = request.tasks.add(method_name=method)
        task.model_spec.name, task.model_spec.signature_name = name, signature
    fill(request.input, values)
    return request


def test_multi_inference(joint):
    answer = joint.prediction.MultiInference(
        multi(("joint", "", CLASSIFY), ("joint", "number", REGRESS))
    )
    first, second = answer.results
    assert (first.model_spec.name, first.model_spec.version.value) == ("joint", 7)
    assert [r.model_spec.signature_name for r in answer.results] == ["serving_default", "number"]
    assert found(first.classification_result) == [
        [("", 0.75), ("", 0.25)],
        [("", 0.0), ("", 1.0)],
    ]
    assert [r.value for r in second.regression_result.regressions] == [0.75, 3.0]


@pytest.mark.parametrize(
    ("tasks", "code", "text"),
    [
        ([], "INVALID_ARGUMENT", "ModelSpec has no name specified."),
        (
            [("joint", "", CLASSIFY), ("", "", CLASSIFY)],
            "INVALID_ARGUMENT",
            "Found ModelSpec with an empty model name.",
        ),
        (
            [("joint", "", CLASSIFY), ("other", "", CLASSIFY)],
            "INVALID_ARGUMENT",
            "All ModelSpecs in a MultiInferenceRequest must access the same model name.",
        ),
        (
            [("joint", "", CLASSIFY), ("joint", "serving_default", CLASSIFY)],
            "INVALID_ARGUMENT",
            "Duplicate evaluation of signature: serving_default",
        ),
        (
            [("joint", "", "tensorflow/serving/predict")],
            "UNIMPLEMENTED",
            "Unsupported signature method_name: tensorflow/serving/predict",
        ),
        (
            [("no", "", CLASSIFY)],
            "NOT_FOUND",
            "Servable not found for request: Latest(no)",
        ),
    ],
)
def test_multi_inference_refusals(joint, tasks, code, text):
    assert refused(joint.prediction.MultiInference, multi(*tasks)) == (code, text)


def test_multi_inference_needs_one_input(stubs):
    request = multi(("toy", "classify", CLASSIFY), ("toy", "regress", REGRESS))
    answer = refused(stubs.prediction.MultiInference, request)
    assert answer == ("INVALID_ARGUMENT", "Input tensor must be the same for all Signatures.")


@pytest.mark.parametrize(
    ("outputs", "text"),
    [
        ({"scores": np.zeros(2, "f4")}, "[batch_size num_classes] but got [2]"),
        ({"scores": np.zeros((2, 3))}, "Expected scores Tensor of DT_FLOAT."),
        ({"scores": np.zeros((3, 1), "f4")}, "Expected scores output batch size of 2. Got: 3"),
        (
            {"classes": np.full((2, 3), b"a", object), "scores": np.zeros((2, 1), "f4")},
            "should match in dim_size(1). Got 3 vs. 1",
        ),
    ],
)
def test_outputs_that_are_no_classes(outputs, text):
    with pytest.raises(ServingError) as caught:
        examples.classification(outputs, 2)
    assert text in caught.value.message


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.zeros((2, 2), "f4"), "either [batch_size] or [batch_size, 1] but got [2,2]"),
        (np.zeros(3, "f4"), "Input batch size did not match output batch size: 2 vs. 3"),
        (np.zeros(2), "Expected output Tensor of DT_FLOAT."),
    ],
)
def test_outputs_that_are_no_numbers(array, text):
    with pytest.raises(ServingError) as caught:
        examples.regression({"outputs": array}, 2)
    assert text in caught.value.message


@pytest.fixture(scope="module")
def rest(server):
    with httpx.Client(base_url=server.rest_url, timeout=30) as client:
        yield client


def test_rest(rest):
    body = {"signature_name": "classify", "examples": [{"x": 0.25}, {"x": [1.0]}]}
    answer = rest.post("/v1/models/toy:classify", json=body)
    assert answer.json() == {"results": [[list(p) for p in row] for row in LOW_HIGH]}
    body = {"signature_name": "regress", "context": {"shift": 2.0}, "examples": [{"x": 0.1}]}
    assert rest.post("/v1/models/toy:regress", json=body).json() == {"results": [4.2]}
    body["examples"] = [{"x": 0.25, "text": "a", "more": [{"b64": "YQ=="}, "b"], "n": [1, True]}]
    assert rest.post("/v1/models/toy/versions/1:regress", json=body).json() == {"results": [4.5]}


@pytest.mark.parametrize(
    ("example", "text"),
    [
        ("Jane", "Example must be JSON object but got JSON String"),
        ({"x": None}, "Feature has element with unexpected JSON type: Null"),
        ({"x": {"a": "Jane"}}, "Feature has element with unexpected JSON type: Object"),
        ({"x": [["Jane"]]}, "Feature has element with unexpected JSON type: Array"),
        ({"x": [1.5, "Jane"]}, "Unexpected element type in feature, expecting type: float"),
        ({"x": 2**63}, "Only int64 is supported."),
        ({"x": 1e39}, "Cannot convert JSON value to float without loss of precision."),
        ({"x": {"b64": "Jane!"}}, "Unable to base64 decode"),
        ({"x": "Jane"}, "The graph of the model failed on this request"),
        ({}, "The graph of the model failed on this request"),
    ],
)
def test_rest_refusals(rest, example, text):
    body = {"signature_name": "regress", "examples": [example]}
    answer = rest.post("/v1/models/toy:regress", json=body)
    assert answer.status_code == 400
    assert text in answer.json()["error"]
    assert "Jane" not in answer.text
