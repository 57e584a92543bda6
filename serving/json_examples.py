"""JSON bodies of the REST methods classify and regress to requests, and their answers.

Texts are TensorFlow Serving's, without the names and values that it quotes.
"""

import json

import numpy as np

from keras_unigan.serving import json_tensors, wire
from keras_unigan.serving.status import invalid


def fill(document, request):
    """Fills a ClassificationRequest or RegressionRequest.

    Args:
        document: Parsed body: `examples`, a list of objects of features; optionally `context`, the
            features that all examples share, and `signature_name`.
        request: Message to fill.

    Raises:
        ServingError: INVALID_ARGUMENT.
    """
    request.model_spec.signature_name = json_tensors.signature_name(document)
    target = request.input.example_list
    if "context" in document:
        target = request.input.example_list_with_context
        _example(document["context"], target.context)
    if "examples" not in document:
        raise invalid("When method is classify, key 'examples' is expected and was not found")
    found = document["examples"]
    if not isinstance(found, list):
        raise invalid("Expecting 'examples' value to be an list/array")
    if not found:
        raise invalid("'examples' value is an empty array")
    for value in found:
        _example(value, target.examples.add())


def _example(value, example):
    if not isinstance(value, dict):
        raise invalid(f"Example must be JSON object but got JSON {json_tensors.kind(value)}")
    for name, content in value.items():
        feature = example.features.feature[name]
        for item in content if isinstance(content, list) else [content]:
            _add(item, feature)


def _add(item, feature):
    """Appends a value to a feature; all values of a feature have one type."""
    if isinstance(item, str) or json_tensors.is_base64(item):
        kind, value = "bytes", json_tensors.leaf(item, wire.STRING)
    elif isinstance(item, bool):
        kind, value = "int64", int(item)
    elif isinstance(item, int):
        kind, value = "int64", item
        if not -(2**63) <= item < 2**63:
            raise invalid("Feature has uint64 element. Only int64 is supported.")
    elif isinstance(item, float):
        kind, value = "float", item
        with np.errstate(over="ignore"):
            if np.isinf(np.float32(item)) and not np.isinf(item):
                raise json_tensors.lossy(wire.FLOAT)
    else:
        raise invalid(f"Feature has element with unexpected JSON type: {json_tensors.kind(item)}")
    before = feature.WhichOneof("kind")
    if before not in (None, f"{kind}_list"):
        raise invalid(
            f"Unexpected element type in feature, expecting type: {before.removesuffix('_list')}"
        )
    getattr(feature, f"{kind}_list").value.append(value)


def classifications(response):
    """Body of an answer: for each example, its list of [label, score]."""
    rows = [
        [[c.label, _short(c.score)] for c in item.classes]
        for item in response.result.classifications
    ]
    return json.dumps({"results": rows}).encode()


def regressions(response):
    """Body of an answer: one number for each example."""
    values = [_short(item.value) for item in response.result.regressions]
    return json.dumps({"results": values}).encode()


def _short(value):
    """A float32 that would grow noise digits as float64."""
    return float(str(np.float32(value)))
