"""Flags and model list of the embedded server, under TensorFlow Serving's names and defaults."""

import argparse
import dataclasses
import os

from keras_unigan.errors import CodedError, did_you_mean
from keras_unigan.serving import config_files

_NOT_NEGATIVE = (
    *("port", "rest_api_port", "max_num_load_retries", "model_config_file_poll_wait_seconds"),
    *(
        "file_system_poll_wait_seconds",
        "max_request_bytes",
        "max_tensor_bytes",
        "max_request_seconds",
        "max_in_flight_bytes",
    ),
)


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
    model_config_file_poll_wait_seconds: float = _flag(
        0.0, "Seconds between two looks at that file; 0 reads it once."
    )
    host: str = _flag("127.0.0.1", "Address to listen on; 0.0.0.0 opens the server to others.")
    port: int | None = _flag(8500, "gRPC port; 0 is off.")
    rest_api_port: int | None = _flag(0, "REST port; 0 is off.")
    grpc_socket_path: str = _flag("", "Unix socket for gRPC, besides the port.")
    file_system_poll_wait_seconds: float = _flag(
        1.0, "Seconds between two looks for versions; 0 looks once."
    )
    rest_api_timeout_in_ms: int = _flag(30_000, "Longest a REST request may run.")
    rest_api_enable_cors_support: bool = _flag(False, "Let web pages of other origins ask REST.")
    enable_batching: bool = _flag(False, "Run requests of the same shapes together.")
    batching_parameters_file: str = _flag("", "Text proto BatchingParameters.")
    monitoring_config_file: str = _flag("", "Text proto MonitoringConfig: the Prometheus page.")
    ssl_config_file: str = _flag("", "Text proto SSLConfig: TLS on both ports.")
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
    auth_token_file: str = _flag("", "Bearer tokens, one a line; requests must carry one.")
    admin_token_file: str = _flag("", "Bearer tokens that may reload the list of models.")
    max_request_bytes: int = _flag(0, "Longest request on either port; 0 is unlimited.")
    max_tensor_bytes: int = _flag(0, "Most bytes of a request's tensors, unpacked; 0: any.")
    max_request_seconds: float = _flag(0.0, "Longest any request may run; 0 is unlimited.")
    max_concurrent_requests: int = _flag(256, "Requests in flight; those above are refused.")
    max_in_flight_bytes: int = _flag(0, "Bytes of all requests in flight; 0 is unlimited.")
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
        for name in _NOT_NEGATIVE:
            if not (getattr(self, name) or 0) >= 0:
                raise CodedError("KUG-S06", f"--{name}", f"{getattr(self, name)}", "0 or more")
        if self.max_concurrent_requests < 1:
            found = f"{self.max_concurrent_requests}"
            raise CodedError("KUG-S06", "--max_concurrent_requests", found, "1 or more")
        if self.batching_parameters_file and not self.enable_batching:
            raise CodedError(
                "KUG-S06",
                "server flags",
                "batching_parameters_file without enable_batching",
                "both of them",
                fix="add --enable_batching",
            )
        if self.model_config_file_poll_wait_seconds and not self.model_config_file:
            raise CodedError(
                "KUG-S06",
                "server flags",
                "model_config_file_poll_wait_seconds without model_config_file",
                "both of them",
            )

    def models(self):
        """The models to serve, as `ModelConfig`s.

        Raises:
            CodedError: KUG-S06 for a bad file or a missing base path.
        """
        if self.model_config_file:
            return config_files.read_models(self.model_config_file)
        base = os.path.abspath(self.model_base_path)
        if not os.path.isdir(base):
            raise CodedError(
                "KUG-S06",
                base,
                "no such folder",
                "a model folder with numbered versions inside",
                fix=f"unigan export RUN -o {base}",
            )
        return (config_files.ModelConfig(self.model_name or os.path.basename(base), base),)

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
