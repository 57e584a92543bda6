"""Rows of the conformance table that are asked over REST."""

import json

from keras_unigan.serving.conformance import OK, Row, array

_PRIVATE = "Jane Doe 1970"  # No text of a refusal may hold a value of the body.


def _rows(target, count=1):
    """`instances` that the array signature takes."""
    return array(target, count).tolist()


def _array(target, **body):
    """(status, text) of a predict on the array signature."""
    return target.post({"signature_name": target.signature("array"), **body})


def _changed(target, leaf):
    """(status, text) of a predict whose first number is something else."""
    rows = _rows(target)
    inner = rows
    while isinstance(inner[0], list):
        inner = inner[0]
    inner[0] = leaf
    return _array(target, instances=rows)


def _not_finite(target):
    """NaN and infinity are read; the model itself may refuse them."""
    for leaf in (float("nan"), float("inf"), float("-inf")):
        code, text = _changed(target, leaf)
        if code != OK and "JSON" in text:
            return code, text
    return OK, ""


def _whole(target, leaf):
    """(status, text) of a predict on the integer signature with one value."""
    rows = [leaf]
    for _ in target.shape("integer")[1:]:
        rows = [rows]
    return target.post({"signature_name": target.signature("integer"), "inputs": rows})


def _silent(answer):
    """The answer, when its text holds nothing of the body."""
    code, text = answer
    return (code, text) if "Jane" not in text else ("UNKNOWN", "the text quotes the body")


def _answered(target, key, format_, **body):
    """Checks the key and the number of rows of a right answer."""
    path = f"/v1/models/{target.model}:predict"
    body = {"signature_name": target.signature("array"), **body}
    status, data = target.rest("POST", path, body)
    if status != 200:
        return status, data.decode("utf-8", "replace")
    found = json.loads(data)[key]
    outputs = target.signatures[target.signature("array")].outputs
    if format_ == "columns" and len(outputs) > 1:
        right = sorted(found) == sorted(outputs)
    else:
        right = len(found) == 2
    return (OK, "") if right else ("UNKNOWN", "another form of answer")


def _status(target):
    status, data = target.rest("GET", f"/v1/models/{target.model}")
    found = json.loads(data)["model_version_status"] if status == 200 else []
    right = any(
        item["version"] == str(target.version)
        and item["state"] == "AVAILABLE"
        and item["status"] == {"error_code": "OK", "error_message": ""}
        for item in found
    )
    return (OK, "") if right else (status, data.decode("utf-8", "replace"))


def _metadata(target):
    status, data = target.rest("GET", f"/v1/models/{target.model}/metadata")
    if status != 200:
        return status, data.decode("utf-8", "replace")
    found = json.loads(data)
    names = set(found["metadata"]["signature_def"]["signature_def"])
    right = set(target.signatures) <= names
    right = right and found["model_spec"]["version"] == str(target.version)
    return (OK, "") if right else ("UNKNOWN", "another form of answer")


def _path(verb, path):
    """Row of a path that fits no rule."""
    return Row(
        f"{verb} {path}",
        lambda t: t.get(path.replace("NAME", t.model), verb),
        400,
        f"Malformed request: {verb} {path.replace('NAME', '$model')}",
    )


def _text(target, value):
    """(status, text) of a predict on the text signature."""
    return target.post({"signature_name": target.signature("text"), "inputs": [value]})


def _several(target, **body):
    return target.post({"signature_name": target.signature("several"), **body})


def _examples(target, method, **body):
    return target.post({"signature_name": target.signature(method), **body}, method)


_ROW_ERROR = "Failed to process element: 0 of 'instances' list. Error: INVALID_ARGUMENT: "

ROWS = (
    Row("row format", lambda t: _answered(t, "predictions", "rows", instances=_rows(t, 2)), OK),
    Row("column format", lambda t: _answered(t, "outputs", "columns", inputs=_rows(t, 2)), OK),
    Row("named columns, others ignored", lambda t: _answered(
        t, "outputs", "columns", inputs={t.names["input"]: _rows(t, 2), "zz": 1}), OK),
    Row("gzip body", lambda t: t.post(
        {"signature_name": t.signature("array"), "instances": _rows(t)}, zipped=True), OK),
    Row("a version in the path", lambda t: t.post(
        {"signature_name": t.signature("array"), "instances": _rows(t)},
        path=f"/v1/models/{t.model}/versions/{t.version}:predict"), OK),
    Row("paths in capitals, query string", lambda t: t.post(
        {"signature_name": t.signature("array"), "instances": _rows(t)},
        path=f"/V1/Models/{t.model}:predict?x=1"), OK),
    Row("NaN and Infinity", _not_finite, OK),
    Row("status", _status, OK),
    Row("metadata", _metadata, OK),
    Row("unknown model", lambda t: t.post({"instances": [1]}, path="/v1/models/none:predict"), 404,
        "Servable not found for request: Latest(none)"),
    Row("unknown version", lambda t: t.post(
        {"instances": [1]}, path=f"/v1/models/{t.model}/versions/{2**31}:predict"), 404,
        f"Servable not found for request: Specific($model, {2**31})"),
    Row("unknown label", lambda t: t.post(
        {"instances": [1]}, path=f"/v1/models/{t.model}/labels/none:predict"), 400,
        "Unrecognized servable version label: none"),
    Row("status of an unknown model", lambda t: t.get("/v1/models/none"), 404,
        "Could not find any versions of model none"),
    Row("status of an unknown version", lambda t: t.get(f"/v1/models/{t.model}/versions/9999"), 404,
        "Could not find version 9999 of model $model"),
    Row("metadata of an unknown model", lambda t: t.get("/v1/models/none/metadata"), 404,
        "Servable not found for request: Latest(none)"),
    _path("GET", "/v1/models/NAME:predict"),
    _path("POST", "/v1/models/NAME"),
    _path("GET", "/v1/models/NAME/versions/abc"),
    _path("GET", "/v1/models/NAME/versions/1/labels/x"),
    _path("GET", "/v1/other"),
    Row("a version beyond int64", lambda t: t.get(f"/v1/models/{t.model}/versions/{2**63}"), 400),
    Row("another path", lambda t: t.get("/v2/models"), 404),
    Row("GET /v1/models", lambda t: t.get("/v1/models"), 400, "Missing model name in request."),
    Row("empty body", lambda t: t.post(b""), 400, "JSON Parse error: The document is empty"),
    Row("no JSON", lambda t: _silent(t.post(b'{"instances": Jane')), 400,
        "JSON Parse error: Invalid value. at offset: 14"),
    Row("no object", lambda t: t.post([1]), 400, "Is not object", stricter=True),
    Row("no object, nothing quoted", lambda t: _silent(t.post([_PRIVATE])), 400, "s not object",
        stricter=True),
    Row("neither key", lambda t: _array(t, zz=1), 400, "Missing 'inputs' or 'instances' key"),
    Row("both keys", lambda t: _array(t, inputs=1, instances=[1]), 400,
        "expecting only one of 'inputs' or 'instances' keys to exist"),
    Row("instances is no list", lambda t: _array(t, instances={}), 400,
        "'instances' to be an list/array"),
    Row("instances is empty", lambda t: _array(t, instances=[]), 400,
        "No values in 'instances' array"),
    Row("signature_name is no string", lambda t: t.post({"signature_name": 3, "instances": [1]}),
        400, "'signature_name' key must be a string value."),
    Row("unknown signature", lambda t: t.post({"signature_name": "none", "instances": [1]}), 400,
        'Serving signature name: "none" not found in signature def'),
    *(
        Row(f"{kind} for a number", lambda t, leaf=leaf: _changed(t, leaf), 400,
            "is not of expected type: float")
        for kind, leaf in (("text", "x"), ("null", None), ("true", True), ("an object", {"x": 1}))
    ),
    Row("the row of an error", lambda t: _changed(t, None), 400, _ROW_ERROR),
    Row("a value of the wrong type is not quoted", lambda t: _silent(_changed(t, _PRIVATE)), 400,
        "is not of expected type: float", stricter=True),
    Row("a broken number for an integer", lambda t: _whole(t, 2.0), 400, "is not of expected type"),
    Row("ragged rows", lambda t: _array(t, instances=[*_rows(t), [1]]), 400,
        "Expecting tensor size: "),
    Row("ragged lists", lambda t: _array(t, instances=[[[1], [2]], [[1, 2], [3]]]), 400,
        "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
    Row("a list among numbers", lambda t: _array(t, inputs=[1, [2]]), 400,
        "Encountered list at unexpected level"),
    Row("a number among lists", lambda t: _array(t, inputs=[[1], 2]), 400,
        "found at incorrect level"),
    Row("a list among objects", lambda t: _array(
        t, instances=[{t.names["input"]: _rows(t)[0]}, [1]]), 400,
        "Expecting object but got list at item 1 of input list"),
    Row("an object among lists", lambda t: _array(t, instances=[*_rows(t), {"x": 1}]), 400,
        "Expecting value/list but got object at item 1"),
    Row("row: unknown input", lambda t: _array(t, instances=[{"zz": 1}]), 400,
        "does not have named input: zz"),
    Row("column: missing input", lambda t: _array(t, inputs={"zz": 1}), 400,
        "Missing named input: $input in 'inputs' object."),
    Row("several inputs, plain list", lambda t: _several(t, instances=[1]), 400,
        "instances is a plain list, but expecting list of objects"),
    Row("bad base64", lambda t: _text(t, {"b64": "Jane!"}), 400, "Unable to base64 decode"),
    Row("a b64 object with more keys", lambda t: _text(t, {"b64": "eA==", "x": 1}), 400,
        "not formatted correctly for base64 data"),
    Row("classify: no examples", lambda t: _examples(t, "classify"), 400,
        "When method is classify, key 'examples' is expected and was not found"),
    Row("regress: no examples", lambda t: _examples(t, "regress"), 400,
        "When method is classify, key 'examples' is expected and was not found"),
    Row("classify: empty examples", lambda t: _examples(t, "classify", examples=[]), 400,
        "'examples' value is an empty array"),
    Row("classify: examples are no list", lambda t: _examples(t, "classify", examples={}), 400,
        "Expecting 'examples' value to be an list/array"),
    Row("classify: unknown signature", lambda t: t.post(
        {"signature_name": "none", "examples": [{"x": 1.5}]}, "classify"), 400,
        "No signature was found with the name: none"),
)  # fmt: skip
