"""TensorFlow Serving's own text-proto files: models, batching, monitoring, TLS.

`tensorflow-serving-api` has the messages of the model list only; those of the other three files are
described here under the same names and fields, in a pool of their own, so that a later release that
brings them does not collide.
"""

import dataclasses
import os
import re
from pathlib import Path

from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
    wrappers_pb2,
)

from keras_unigan.errors import CodedError
from keras_unigan.serving import wire
from keras_unigan.serving.status import ServingError, invalid

PROMETHEUS_PATH = "/monitoring/prometheus/metrics"

_KIND = descriptor_pb2.FieldDescriptorProto
_INT64, _STRING = ".google.protobuf.Int64Value", ".google.protobuf.StringValue"
# Message -> (field, type), numbered from 1 in this order as in TensorFlow Serving's files.
_MESSAGES = {
    "BatchingParameters": (
        ("max_batch_size", _INT64),
        ("batch_timeout_micros", _INT64),
        ("max_enqueued_batches", _INT64),
        ("num_batch_threads", _INT64),
        ("thread_pool_name", _STRING),
        ("allowed_batch_sizes", [_KIND.TYPE_INT64]),
        ("pad_variable_length_inputs", _KIND.TYPE_BOOL),
    ),
    "PrometheusConfig": (("enable", _KIND.TYPE_BOOL), ("path", _KIND.TYPE_STRING)),
    "MonitoringConfig": (("prometheus_config", ".tensorflow.serving.PrometheusConfig"),),
    "SSLConfig": (
        ("server_key", _KIND.TYPE_STRING),
        ("server_cert", _KIND.TYPE_STRING),
        ("custom_ca", _KIND.TYPE_STRING),
        ("client_verify", _KIND.TYPE_BOOL),
    ),
}


def _describe():
    """Message classes of `_MESSAGES`."""
    file = descriptor_pb2.FileDescriptorProto(
        name="server_files.proto", package="tensorflow.serving", syntax="proto3"
    )
    file.dependency.append(wrappers_pb2.DESCRIPTOR.name)
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields, 1):
            entry = message.field.add(name=field, number=number, label=_KIND.LABEL_OPTIONAL)
            if isinstance(kind, list):
                entry.label, (kind,) = _KIND.LABEL_REPEATED, kind
            if isinstance(kind, str):
                entry.type, entry.type_name = _KIND.TYPE_MESSAGE, kind
            else:
                entry.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return {
        name: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"tensorflow.serving.{name}")
        )
        for name in _MESSAGES
    }


_CLASSES = _describe()
# A string may run over several lines, as PEM blocks do: C++ reads that, Python's reader does not.
_TOKENS = re.compile(r"#[^\n]*|\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'", re.DOTALL)


def _read(path, message, flag):
    """Fills a message from a text proto; the error says where, and quotes nothing of the file."""
    name = message.DESCRIPTOR.full_name
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError:
        raise CodedError(
            "KUG-S06", path, "no such file", f"a text proto {name}", fix=f"correct {flag}"
        ) from None
    except UnicodeDecodeError:
        raise _unparsed(path, name, "not UTF-8") from None
    text = _TOKENS.sub(lambda found: found[0].replace("\n", r"\n"), text)
    try:
        text_format.Parse(text, message)
    except text_format.ParseError as error:
        # A line of ssl.config may be a private key.
        place = f"line {error.GetLine()}, column {error.GetColumn()}"
        raise _unparsed(path, name, place) from None
    return message


def _unparsed(path, name, place):
    return CodedError(
        "KUG-S06", path, f"Error parsing text-format {name}: {place}", "a text proto of that name"
    )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """One model of the list.

    Attributes:
        name: Name that requests give.
        base_path: Absolute folder of its versions.
        policy: ("latest", n), ("all",) or ("specific", versions).
        labels: Label -> version.
    """

    name: str
    base_path: str
    policy: tuple = ("latest", 1)
    labels: dict = dataclasses.field(default_factory=dict)


def read_models(path):
    """Reads `--model_config_file`.

    Returns:
        `ModelConfig`s; their folders are there.

    Raises:
        CodedError: KUG-S06 for a file that is missing, no such text proto, or a wrong entry.
    """
    message = wire.model_server_config_pb2.ModelServerConfig()
    _read(path, message, "--model_config_file")
    try:
        models = model_list(message.model_config_list)
        for model in models:
            check_folder(model)
    except ServingError as error:
        raise CodedError(
            "KUG-S06", path, error.message, "a list of models that can be served"
        ) from None
    if not models:
        raise CodedError("KUG-S06", path, "no model", "model_config_list with a config")
    return models


def model_list(message):
    """Models of a `ModelConfigList`, in its order.

    Raises:
        ServingError: INVALID_ARGUMENT with TensorFlow Serving's text for an entry that it refuses.
    """
    seen = set()
    for config in message.config:
        problem = _problem(config, seen)
        if problem:
            raise invalid(problem)
        seen.add(config.name)
    return tuple(_model(config) for config in message.config)


def check_folder(model):
    """Refuses a base path that is not there; TensorFlow Serving would wait for it for ever.

    Raises:
        ServingError: FAILED_PRECONDITION.
    """
    if not os.path.isdir(model.base_path):
        raise ServingError(
            "FAILED_PRECONDITION",
            f"Could not find base path {model.base_path} for servable {model.name}: no such folder",
        )


def _problem(config, seen):
    """What TensorFlow Serving says of a model entry that it refuses, or None."""
    if not config.name:
        return "Expected each model of the config list to have a name; got name()="
    if config.name in seen:
        return f"Illegal to list model {config.name} multiple times in config list"
    if not os.path.isabs(config.base_path):
        return (
            f"Expected model {config.name} to have an absolute path or URI; "
            f"got base_path()={config.base_path}"
        )
    if not config.model_platform and not config.model_type:
        return (
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
            f"ModelServerConfig::model_platform, model name is {config.name}"
        )
    if config.model_platform not in ("", "tensorflow"):
        return f"model_platform {config.model_platform!r} of model {config.name}"
    return None


def _model(config):
    chosen = config.model_version_policy
    kind = chosen.WhichOneof("policy_choice")
    if kind == "specific":
        policy = ("specific", tuple(chosen.specific.versions))
    elif kind == "all":
        policy = ("all",)
    else:
        policy = ("latest", chosen.latest.num_versions or 1)
    base_path = os.path.normpath(config.base_path)
    return ModelConfig(config.name, base_path, policy, dict(config.version_labels))


@dataclasses.dataclass(frozen=True)
class Batching:
    """Parameters of a batching file; the defaults are TensorFlow Serving's.

    Attributes:
        max_batch_size: Most examples in a batch, and in one request.
        batch_timeout_micros: Longest that a request waits for others.
        max_enqueued_batches: Batches that may wait for a thread, for each model and signature.
        num_batch_threads: Batches that run at once.
        thread_pool_name: Label of the metrics.
        allowed_batch_sizes: Sizes that batches are cut to; a rest runs as it is. Never padded.
    """

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = os.cpu_count() or 1
    thread_pool_name: str = "model_server_batch_threads"
    allowed_batch_sizes: tuple = ()


def read_batching(path):
    """Reads `--batching_parameters_file`; an empty path gives the defaults.

    Raises:
        CodedError: KUG-S06 for a bad file, sizes that do not fit, or `pad_variable_length_inputs`.
    """
    if not path:
        return Batching()
    message = _read(path, _CLASSES["BatchingParameters"](), "--batching_parameters_file")
    if message.pad_variable_length_inputs:
        raise CodedError(
            "KUG-S06",
            path,
            "pad_variable_length_inputs: true",
            "no such line",
            "Padding a batch to the largest image of it changes the masks of the others and gives "
            "them back in the wrong size; here only images of the same shape share a batch.",
        )
    values = {
        name: getattr(message, name).value
        for name, kind in _MESSAGES["BatchingParameters"]
        if kind in (_INT64, _STRING) and message.HasField(name)
    }
    result = Batching(**values, allowed_batch_sizes=tuple(message.allowed_batch_sizes))
    least = {"batch_timeout_micros": 0, "thread_pool_name": ""}
    for name, value in values.items():
        if value < least.get(name, 1):
            raise CodedError("KUG-S06", path, f"{name} {value}", f"{least.get(name, 1)} or more")
    sizes = result.allowed_batch_sizes
    if sizes and (
        sizes[0] < 1 or list(sizes) != sorted(set(sizes)) or sizes[-1] != result.max_batch_size
    ):
        raise CodedError(
            "KUG-S06",
            path,
            f"allowed_batch_sizes {list(sizes)}",
            f"increasing sizes that end with max_batch_size, {result.max_batch_size}",
        )
    return result


def read_monitoring(path):
    """Path of the Prometheus page by `--monitoring_config_file`; "" where it is off.

    Without a file it is on, at TensorFlow Serving's own path.

    Raises:
        CodedError: KUG-S06 for a bad file.
    """
    if not path:
        return PROMETHEUS_PATH
    config = _read(path, _CLASSES["MonitoringConfig"](), "--monitoring_config_file")
    found = config.prometheus_config.path or PROMETHEUS_PATH
    if not found.startswith("/"):
        raise CodedError("KUG-S06", path, f"path {found!r}", "a path that begins with '/'")
    return found if config.prometheus_config.enable else ""


@dataclasses.dataclass(frozen=True)
class Certificates:
    """TLS material, PEM text.

    Attributes:
        key: Private key of the server.
        certificate: Its certificate, with what leads to a root.
        custom_ca: Roots that client certificates are checked against; "" for none.
        client_verify: Whether a client needs a certificate.
    """

    key: str = dataclasses.field(repr=False)
    certificate: str
    custom_ca: str = ""
    client_verify: bool = False


def read_ssl(path):
    """Reads `--ssl_config_file`; None without a path.

    Raises:
        CodedError: KUG-S06 for a bad file, or one that lacks what TLS needs.
    """
    if not path:
        return None
    config = _read(path, _CLASSES["SSLConfig"](), "--ssl_config_file")
    for name in ("server_key", "server_cert") + ("custom_ca",) * config.client_verify:
        if "-----BEGIN" not in getattr(config, name):
            raise CodedError(
                "KUG-S06", path, f"no PEM text in {name}", "the text itself, not the path of a file"
            )
    return Certificates(
        config.server_key, config.server_cert, config.custom_ca, config.client_verify
    )
