"""Flags and model list of the embedded server, under TensorFlow Serving's names and defaults."""

import argparse
import dataclasses
import os
from pathlib import Path

from google.protobuf import text_format

from keras_unigan.errors import CodedError, did_you_mean
from keras_unigan.serving import wire


def _flag(default, text):
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of a server; each field is a flag of `unigan serve`.

    A port of 0 is off; None takes any free one.
    """

    model_base_path: str | None = _flag(None, "Folder whose numbered folders are the versions.")
    model_name: str | None = _flag(None, "Name of the model; default: last part of the base path.")
    model_config_file: str | None = _flag(None, "Text proto ModelServerConfig: several models.")
    host: str = _flag("127.0.0.1", "Address to listen on; 0.0.0.0 opens the server to others.")
    port: int | None = _flag(8500, "gRPC port; 0 is off.")
    rest_api_port: int | None = _flag(0, "REST port; 0 is off.")
    grpc_socket_path: str = _flag("", "Unix socket for gRPC, besides the port.")
    file_system_poll_wait_seconds: float = _flag(1.0, "Seconds between two looks for versions.")
    rest_api_timeout_in_ms: int = _flag(30_000, "Longest a REST request may run.")
    enable_model_warmup: bool = _flag(True, "Answer the version's warm-up requests first.")
    max_num_load_retries: int = _flag(5, "Further tries to load a version that failed.")
    load_retry_interval_micros: int = _flag(60_000_000, "Microseconds between two tries.")
    allow_version_labels_for_unavailable_models: bool = _flag(
        False, "Let a label name a version that is not available yet."
    )
    enable_serialization_as_tensor_content: bool = _flag(
        False, "Answer in tensor_content instead of float_val and the like."
    )
    enable_grpc_healthcheck_service: bool = _flag(True, "Offer grpc.health.v1.")
    max_request_bytes: int = _flag(0, "Longest request on either port; 0 is unlimited.")
    drain_seconds: float = _flag(30.0, "Longest wait for requests in flight after SIGTERM.")

    def __post_init__(self):
        if bool(self.model_base_path) == bool(self.model_config_file):
            raise CodedError(
                "KUG-S06",
                "server flags",
                "both or neither of model_base_path and model_config_file",
                "exactly one of them",
                fix="unigan serve models/NAME",
            )
        for name in ("port", "rest_api_port", "max_request_bytes", "max_num_load_retries"):
            if (getattr(self, name) or 0) < 0:
                raise CodedError("KUG-S06", f"--{name}", f"{getattr(self, name)}", "0 or more")
        if not self.file_system_poll_wait_seconds > 0:
            raise CodedError(
                "KUG-S06",
                "--file_system_poll_wait_seconds",
                f"{self.file_system_poll_wait_seconds}",
                "more than 0",
            )

    def models(self):
        """The models to serve, as `ModelConfig`s.

        Raises:
            CodedError: KUG-S06 for a bad file or a missing base path.
        """
        if self.model_config_file:
            return read_models(self.model_config_file)
        base = os.path.abspath(self.model_base_path)
        return (ModelConfig(self.model_name or os.path.basename(base), _folder(base)),)

    @classmethod
    def parse(cls, arguments):
        """Reads flags, `--port 8500` or `--port=8500`; one plain argument is the base path.

        Raises:
            CodedError: KUG-S06 for an unknown flag or a value of the wrong type.
        """
        known, rest = parser().parse_known_args(arguments)
        plain = [a for a in rest if not a.startswith("-")]
        unknown = [a for a in rest if a.startswith("-")]
        if unknown or len(plain) > 1:
            wrong = (unknown or plain[1:])[0].split("=")[0]
            names = [f"--{f.name}" for f in dataclasses.fields(cls)]
            raise CodedError(
                "KUG-S06", "server flags", f"{wrong!r}{did_you_mean(wrong, names)}", "a known flag"
            )
        values = vars(known)
        if plain:
            values["model_base_path"] = plain[0]
        return cls(**values)


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise CodedError("KUG-S06", "server flags", message, "values of the right type")


def parser():
    """The argument parser of `Options`; its `format_help()` lists every flag."""
    result = _Parser("unigan serve", argument_default=argparse.SUPPRESS, allow_abbrev=False)
    for field in dataclasses.fields(Options):
        text = f"{field.metadata['help']} [{field.default}]"
        if field.type is bool:
            result.add_argument(
                f"--{field.name}", nargs="?", const=True, type=_boolean, help=text, metavar="BOOL"
            )
        else:
            kind = {str | None: str, int | None: int}.get(field.type, field.type)
            result.add_argument(f"--{field.name}", type=kind, help=text)
    return result


def _boolean(text):
    if text.lower() not in ("true", "false", "1", "0"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() in ("true", "1")


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
    """Reads TensorFlow Serving's `--model_config_file`.

    Raises:
        CodedError: KUG-S06 for a file that is missing, no such text proto, or a wrong entry.
    """
    path = Path(path)
    if not path.is_file():
        raise CodedError("KUG-S06", path, "no such file", "a text proto ModelServerConfig")
    message = wire.model_server_config_pb2.ModelServerConfig()
    try:
        text_format.Parse(path.read_text(encoding="utf-8"), message)
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise CodedError(
            "KUG-S06",
            path,
            f"Error parsing text-format tensorflow.serving.ModelServerConfig: {error}",
            "a text proto",
        ) from error
    result = []
    for config in message.model_config_list.config:
        problem = _problem(config, {m.name for m in result})
        if problem:
            raise CodedError("KUG-S06", path, problem, "a list of models that can be served")
        result.append(_model(config))
    if not result:
        raise CodedError("KUG-S06", path, "no model", "model_config_list with a config")
    return tuple(result)


def _problem(config, seen):
    """What TensorFlow Serving says of a model entry that it refuses, or None."""
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
    policy, kind = (
        config.model_version_policy,
        config.model_version_policy.WhichOneof("policy_choice"),
    )
    if kind == "specific":
        chosen = ("specific", tuple(policy.specific.versions))
    elif kind == "all":
        chosen = ("all",)
    else:
        chosen = ("latest", policy.latest.num_versions or 1)
    return ModelConfig(config.name, _folder(config.base_path), chosen, dict(config.version_labels))


def _folder(path):
    if not os.path.isdir(path):
        raise CodedError(
            "KUG-S06",
            path,
            "no such folder",
            "a model folder with numbered versions inside",
            fix=f"unigan export RUN -o {path}",
        )
    return path
