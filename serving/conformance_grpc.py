"""Rows of the conformance table that are asked over gRPC."""

import numpy as np

from keras_unigan.serving import wire
from keras_unigan.serving.conformance import OK, Row, Skipped, array

_NOBODY = "no-such-model"
_FREE = 2**31  # A version that nobody has.


def _spec(request, target, *, name=None, version=None, label=None, signature=""):
    """Names the target's model, or what a row wants named."""
    spec = request.model_spec
    spec.SetInParent()
    spec.name = target.model if name is None else name
    spec.signature_name = signature
    if version is not None:
        spec.version.value = version
    if label is not None:
        spec.version_label = label
    return request


def _predict(target, inputs=None, outputs=(), *, bare=False, kind="array", **spec):
    """(code, text) of a Predict, by default a right one."""
    request = wire.predict_pb2.PredictRequest(output_filter=outputs)
    if not bare:
        _spec(request, target, **{"signature": target.signature(kind), **spec})
    if inputs is None:
        inputs = {target.names["input"]: array(target)} if kind == "array" else {}
    for key, value in inputs.items():
        if isinstance(value, wire.tensor_pb2.TensorProto):
            request.inputs[key].CopyFrom(value)
        else:
            wire.fill(request.inputs[key], np.asarray(value), tensor_content=True)
    return target.call(target.prediction.Predict, request)


def _with(target, change):
    """(code, text) of a Predict whose input is a changed array."""
    return _predict(target, {target.names["input"]: change(array(target))})


def _bad_tensor(target, **fields):
    """(code, text) of a Predict whose tensor cannot be read."""
    proto = wire.tensor_pb2.TensorProto(tensor_content=fields.pop("content", b""))
    proto.dtype = fields.get("dtype", 1)
    for size in fields.get("shape", ()):
        proto.tensor_shape.dim.add(size=size)
    return _predict(target, {target.names["input"]: proto})


def _all_outputs(target):
    return sorted(target.signatures[target.signature("array")].outputs)


def _examples(target, method, *, bare=False, empty=False, signature=None, **spec):
    """(code, text) of a Classify or Regress."""
    kind = method.lower()
    message = wire.classification_pb2 if kind == "classify" else wire.regression_pb2
    name = "ClassificationRequest" if kind == "classify" else "RegressionRequest"
    request = getattr(message, name)()
    if not bare:
        signature = target.signature(kind) if signature is None else signature
        _spec(request, target, signature=signature, **spec)
    if not empty:
        request.input.example_list.examples.add()
    return target.call(getattr(target.prediction, method), request)


def _multi(target, *tasks):
    request = wire.inference_pb2.MultiInferenceRequest()
    for name, method in tasks:
        task = request.tasks.add(method_name=method)
        task.model_spec.name = name
    request.input.example_list.examples.add()
    return target.call(target.prediction.MultiInference, request)


def _metadata(target, fields=("signature_def",), *, bare=False, **spec):
    request = wire.get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=fields)
    if not bare:
        _spec(request, target, **spec)
    return target.call(target.prediction.GetModelMetadata, request)


def _status(target, *, bare=False, **spec):
    request = wire.get_model_status_pb2.GetModelStatusRequest()
    if not bare:
        _spec(request, target, **spec)
    return target.call(target.models.GetModelStatus, request)


def _reload(target, *entries):
    """(code, text) of a reload; an entry is a dict of ModelConfig's fields, none is no list."""
    request = wire.model_management_pb2.ReloadConfigRequest()
    for entry in entries:
        request.config.model_config_list.config.add(**entry)
    return target.call(target.models.HandleReloadConfigRequest, request)


def _late(target):
    """A message that takes longer to send than its deadline allows."""
    request = wire.predict_pb2.PredictRequest()
    _spec(request, target)
    request.inputs["zz"].tensor_content = bytes(2**24)
    return target.call(target.prediction.Predict, request, 0.001)


def _value_fields(target):
    """A right request, its answer in the fields that third-party clients read."""
    request = wire.predict_pb2.PredictRequest()
    _spec(request, target, signature=target.signature("array"))
    wire.fill(request.inputs[target.names["input"]], array(target), tensor_content=False)
    answer = target.answer(target.prediction.Predict, request)
    spec = answer.model_spec
    if (spec.name, spec.version.value) != (target.model, target.version):
        return "UNKNOWN", "the answer names another model or version"
    if sorted(answer.outputs) != _all_outputs(target):
        return "UNKNOWN", "the answer has other outputs"
    if any(proto.tensor_content for proto in answer.outputs.values()):
        raise Skipped("the server answers in tensor_content")
    return OK, ""


def _one_output(target):
    (name, *_) = _all_outputs(target)
    request = wire.predict_pb2.PredictRequest(output_filter=[name])
    _spec(request, target, signature=target.signature("array"), version=target.version)
    wire.fill(request.inputs[target.names["input"]], array(target), tensor_content=True)
    answer = target.answer(target.prediction.Predict, request)
    return (OK, "") if list(answer.outputs) == [name] else ("UNKNOWN", "other outputs")


def _available(target):
    request = wire.get_model_status_pb2.GetModelStatusRequest()
    answer = target.answer(target.models.GetModelStatus, _spec(request, target))
    states = {item.version: item.state for item in answer.model_version_status}
    return (OK, "") if states.get(target.version) == 30 else ("UNKNOWN", f"states {states}")


def _entry(**changes):
    return {"name": "m", "base_path": "/no/such/folder", "model_platform": "tensorflow", **changes}


_BAD, _GONE = "INVALID_ARGUMENT", "NOT_FOUND"
_NO_NAME = "ModelSpec has no name specified."
_LABEL = "Unrecognized servable version label: "
_PARSING = "tensor parsing error: $input"
_LATEST = f"Servable not found for request: Latest({_NOBODY})"
_SPECIFIC = f"Servable not found for request: Specific($model, {_FREE})"
_SIGNATURE = "No signature was found with the name: none"

ROWS = (
    Row("predict: an answer in value fields", _value_fields, OK),
    Row("predict: one output of a given version", _one_output, OK),
    Row("metadata: the signatures", _metadata, OK),
    Row("status: the version is available", _available, OK),
    Row("classify: an example list is needed", lambda t: _examples(t, "Classify", empty=True), _BAD,
        "Input is empty."),
    Row("predict: no model_spec", lambda t: _predict(t, {}, bare=True), _BAD, "Missing ModelSpec"),
    Row("classify: no model_spec", lambda t: _examples(t, "Classify", bare=True), _BAD,
        "Missing ModelSpec"),
    Row("regress: no model_spec", lambda t: _examples(t, "Regress", bare=True), _BAD,
        "Missing ModelSpec"),
    Row("metadata: no model_spec", lambda t: _metadata(t, bare=True), _BAD, "Missing ModelSpec"),
    Row("status: no model_spec", lambda t: _status(t, bare=True), _BAD, "Missing ModelSpec"),
    Row("predict: empty name", lambda t: _predict(t, name=""), _BAD, _NO_NAME),
    Row("metadata: empty name", lambda t: _metadata(t, name=""), _BAD, _NO_NAME),
    Row("multi-inference without tasks", _multi, _BAD, _NO_NAME),
    Row("status: empty name", lambda t: _status(t, name=""), _GONE, _NO_NAME),
    Row("predict: unknown model", lambda t: _predict(t, name=_NOBODY), _GONE, _LATEST),
    Row("metadata: unknown model", lambda t: _metadata(t, name=_NOBODY), _GONE, _LATEST),
    Row("classify: unknown model", lambda t: _examples(t, "Classify", name=_NOBODY, signature=""),
        _GONE, _LATEST),
    Row("predict: unknown version", lambda t: _predict(t, version=_FREE), _GONE, _SPECIFIC),
    Row("metadata: unknown version", lambda t: _metadata(t, version=_FREE), _GONE, _SPECIFIC),
    Row("predict: unknown label", lambda t: _predict(t, label="none"), _BAD, f"{_LABEL}none"),
    Row("predict: empty label", lambda t: _predict(t, label=""), _BAD, _LABEL),
    Row("status: unknown model", lambda t: _status(t, name=_NOBODY), _GONE,
        f"Could not find any versions of model {_NOBODY}"),
    Row("status: unknown version", lambda t: _status(t, version=_FREE), _GONE,
        f"Could not find version {_FREE} of model $model"),
    Row("predict: unknown signature", lambda t: _predict(t, signature="none"),
        "FAILED_PRECONDITION", 'Serving signature key "none" not found.'),
    Row("predict: no input", lambda t: _predict(t, {}), _BAD,
        "input size does not match signature: 0!=1 len({}) != len({$input}). Sent extra: {}. "
        "Missing but required: {$input}."),
    Row("predict: an input of another name", lambda t: _predict(t, {"zz": array(t)}), _BAD,
        "Signature input alias: $input(feed name: $input_feed) not found in request and no default "
        "value provided. Inputs expected to be in the request {zz}"),
    Row("predict: another type", lambda t: _with(t, lambda a: a.astype(np.float64)), _BAD,
        "Expects arg[0] to be float but double is provided"),
    Row("predict: another rank", lambda t: _with(t, lambda a: a[0]), _BAD, "$input",
        stricter=True),
    Row("predict: another fixed side", lambda t: _with(t, lambda a: np.repeat(a, 3, -1)), _BAD,
        "$input", stricter=True),
    Row("predict: bytes that do not fit the shape",
        lambda t: _bad_tensor(t, shape=[2, 2], content=b"\0" * 15), _BAD, _PARSING),
    Row("predict: negative size", lambda t: _bad_tensor(t, shape=[-1]), _BAD, _PARSING),
    Row("predict: empty tensor", lambda t: _bad_tensor(t, dtype=0), _BAD, _PARSING),
    Row("predict: a shape far larger than its bytes",
        lambda t: _bad_tensor(t, shape=[2**20, 2**20]), _BAD, _PARSING, stricter=True),
    Row("predict: sizes that overflow", lambda t: _bad_tensor(t, shape=[2**62, 2**62, 0]), _BAD,
        _PARSING),
    Row("predict: unknown output", lambda t: _predict(t, outputs=["none"]), _BAD,
        "output tensor alias not found in signature: none Outputs expected to be in the set {"),
    Row("predict: the same output twice", lambda t: _predict(t, outputs=_all_outputs(t)[:1] * 2),
        _BAD, "duplicate output tensor alias: "),
    Row("metadata: no field", lambda t: _metadata(t, ()), _BAD,
        "GetModelMetadataRequest must specify at least one metadata_field"),
    Row("metadata: unknown field", lambda t: _metadata(t, ["zz"]), _BAD,
        "Metadata field zz is not supported"),
    Row("classify on a predict signature",
        lambda t: _examples(t, "Classify", signature=t.signature("array")), _BAD,
        "No classification inputs found in SignatureDef"),
    Row("regress on a predict signature",
        lambda t: _examples(t, "Regress", signature=t.signature("integer")), _BAD,
        "No regression inputs found"),
    Row("classify: unknown signature", lambda t: _examples(t, "Classify", signature="none"), _BAD,
        _SIGNATURE),
    Row("regress: unknown signature", lambda t: _examples(t, "Regress", signature="none"), _BAD,
        _SIGNATURE),
    Row("reload without a list", _reload, _BAD,
        "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList "
        "is currently supported"),
    Row("reload: a name twice", lambda t: _reload(t, _entry(), _entry()), _BAD,
        "Illegal to list model m multiple times in config list", reloads=True),
    Row("reload: relative path", lambda t: _reload(t, _entry(base_path="models/m")), _BAD,
        "Expected model m to have an absolute path or URI; got base_path()=models/m", reloads=True),
    Row("reload: no platform", lambda t: _reload(t, _entry(model_platform="")), _BAD,
        "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
        "ModelServerConfig::model_platform, model name is m", reloads=True),
    Row("reload: missing folder", lambda t: _reload(t, _entry()), "FAILED_PRECONDITION",
        "/no/such/folder", stricter=True, reloads=True),
    Row("a refused reload changes nothing", _available, OK, reloads=True),
    Row("a deadline that has passed", _late, "DEADLINE_EXCEEDED"),
    Row("unknown method", lambda t: t.call(
        t.channel.unary_unary("/tensorflow.serving.PredictionService/Explain"), b""),
        "UNIMPLEMENTED"),
)  # fmt: skip
