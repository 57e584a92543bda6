"""A gRPC channel to one model: TLS, token, deadlines, repeated tries, and what failures mean.

Only standard stubs are used, so it reaches any server that speaks TensorFlow Serving's protocols.
"""

import dataclasses
import random
import re
import time
import uuid
from pathlib import Path

import grpc

from keras_unigan.errors import CodedError, did_you_mean
from keras_unigan.serving import wire

_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:/]+):(\d{1,5})|unix:\S+")
_LOCAL = re.compile(r"localhost:|127\.|\[::1\]|unix:")
_LONGEST_PAUSE = 5.0
_PROTOBUF_BYTES = 2**31 - 1
_ROOM = 4096
"""Bytes of a message besides its tensors: names, shapes, tags."""


@dataclasses.dataclass(frozen=True)
class Tls:
    """How to speak TLS with a server; paths of PEM files.

    Attributes:
        ca: Roots that the server's certificate is checked against; None takes gRPC's own.
        certificate: Certificate of this client, where the server asks for one (mTLS).
        key: Its private key.
        server_name: Name in the server's certificate, where it is not the host of the address.
    """

    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    server_name: str | None = None

    def __post_init__(self):
        if (self.certificate is None) != (self.key is None):
            raise ValueError("Expected certificate and key together, got one of them.")

    def credentials(self):
        """Channel credentials.

        Raises:
            CodedError: KUG-S06 for a file that cannot be read or holds no PEM text.
        """
        return grpc.ssl_channel_credentials(_pem(self.ca), _pem(self.key), _pem(self.certificate))


def _pem(path):
    if path is None:
        return None
    try:
        data = Path(path).read_bytes()
    except OSError:
        data = b""
    if b"-----BEGIN" not in data:
        raise CodedError("KUG-S06", path, "no readable PEM text", "a PEM file, for TLS")
    return data


class Channel:
    """Stubs of one server for one model. Safe to use from several threads.

    Args:
        address: "host:port", or "unix:path".
        model: Name of the model.
        version: Version number; None is the newest available.
        label: Version label instead of a number.
        timeout: Seconds that one answer may take.
        retries: Further tries, with growing pauses, while the server is UNAVAILABLE.
        max_message_bytes: Largest message to send.
        tls: `Tls`, or None for a plain connection.
        token: Bearer token, or None.

    Raises:
        CodedError: KUG-S01 for an address of another form, KUG-S06 for TLS files that cannot be
            used, or for a token that would cross a network in the clear.
        ValueError: For other arguments out of range.
    """

    def __init__(
        self, address, model, version, label, timeout, retries, max_message_bytes, tls, token
    ):
        if not _ADDRESS.fullmatch(str(address)):
            raise CodedError(
                "KUG-S01",
                address,
                "no address of a gRPC server",
                "HOST:PORT",
                fix="give the gRPC port, e.g. 127.0.0.1:8500, without http://",
            )
        if version is not None and label is not None:
            raise ValueError("Expected one of version and label, got both.")
        if not timeout > 0:
            raise ValueError(f"Expected timeout above 0 seconds, got {timeout}.")
        if not _ROOM < max_message_bytes <= _PROTOBUF_BYTES:
            raise ValueError(
                f"Expected max_message_bytes above {_ROOM} and at most {_PROTOBUF_BYTES}, which "
                f"protobuf allows, got {max_message_bytes}."
            )
        if token is not None and not (token.isascii() and token.isprintable() and token.split()):
            raise ValueError("Expected token of printable ASCII characters.")
        local = bool(_LOCAL.match(address))
        if token is not None and tls is None and not local:
            raise CodedError(
                "KUG-S06",
                address,
                "a token without TLS",
                "TLS, or a server of this machine",
                "Anyone on the way could read the token and use it.",
                "add --tls (in Python tls=Tls())",
            )
        self.address, self.model, self.version, self.label = address, model, version, label
        self.timeout, self.retries, self.max_message_bytes = timeout, retries, max_message_bytes
        self._metadata = [("authorization", f"Bearer {token}")] if token is not None else []
        options = [
            # gRPC's own client limit is 4 MiB: less than one volume.
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.enable_http_proxy", 0 if local else 1),
            # Left alone, a channel waits up to two minutes before it looks for a lost server again.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 1000),
            ("grpc.max_reconnect_backoff_ms", 2000),
        ]
        if tls is not None:
            if tls.server_name:
                options.append(("grpc.ssl_target_name_override", tls.server_name))
            self._channel = grpc.secure_channel(address, tls.credentials(), options=options)
        else:
            self._channel = grpc.insecure_channel(address, options=options)
        self.prediction = wire.prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self.models = wire.model_service_pb2_grpc.ModelServiceStub(self._channel)

    def close(self):
        """Closes the connection."""
        self._channel.close()

    def name(self, spec, version=None):
        """Fills a ModelSpec; `version` goes before the channel's own choice."""
        spec.name = self.model
        if version is None:
            version = self.version
        if version is not None:
            spec.version.value = version
        elif self.label is not None:
            spec.version_label = self.label

    def rows(self, row_bytes):
        """Examples of a size that fit into one message.

        Raises:
            CodedError: KUG-S03 when not even one does.
        """
        found = int((self.max_message_bytes - _ROOM) // max(row_bytes, 1))
        if found < 1:
            raise self._too_large(row_bytes)
        return found

    def call(self, method, request, timeout=None):
        """Sends a request, again while the server is UNAVAILABLE.

        All that this package asks is a question that changes nothing, so asking twice does no
        harm, even where the first try was answered and the answer lost.

        Args:
            method: Method of a stub.
            request: Its message.
            timeout: Seconds for one try; None takes the channel's.

        Raises:
            CodedError: KUG-S01 to KUG-S04.
        """
        size = request.ByteSize()
        if size > self.max_message_bytes:
            raise self._too_large(size)
        timeout = self.timeout if timeout is None else timeout
        request_id, pause = uuid.uuid4().hex, 0.1
        metadata = [*self._metadata, ("x-request-id", request_id)]
        for left in range(self.retries, -1, -1):
            try:
                return method(request, timeout=timeout, metadata=metadata)
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE or not left:
                    raise self._coded(error, request, timeout, request_id) from error
                # Clients that lost one server must not come back all at once.
                time.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _too_large(self, size):
        return CodedError(
            "KUG-S03",
            f"{self.address} {self.model}",
            f"a message of {int(size)} bytes",
            f"at most {self.max_message_bytes} (max_message_bytes)",
            fix="raise max_message_bytes, lower batch_size, or send windows (via='windows')",
        )

    def _coded(self, error, request, timeout, request_id):
        """`CodedError` for an RPC that failed."""
        code, details = error.code(), error.details() or ""
        where = f"{self.address} {self.model}"
        if code == grpc.StatusCode.UNAVAILABLE:
            return CodedError(
                "KUG-S01",
                where,
                f"no answer ({details})",
                "a server",
                fix="start it with `unigan serve DIR --port PORT`, or check host and port, and "
                "whether it wants TLS (--tls)",
            )
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            return CodedError(
                "KUG-S01", where, f"no answer within {timeout:g} s", "an answer in time",
                fix="give more time (timeout), or ask for fewer windows at once (batch_size)",
            )  # fmt: skip
        if code == grpc.StatusCode.NOT_FOUND:
            return CodedError(
                "KUG-S02", where, details, self._versions(), fix="name a model that is served"
            )
        if code == grpc.StatusCode.FAILED_PRECONDITION and "ignature" in details:
            known = self._signatures()
            hint = did_you_mean(request.model_spec.signature_name, known)
            return CodedError("KUG-S02", where, f"{details}{hint}", f"one of {known}")
        if code == grpc.StatusCode.INVALID_ARGUMENT and "version label" in details:
            return CodedError("KUG-S02", where, details, self._versions())
        if code == grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
            return CodedError(
                "KUG-S03",
                where,
                f"a message of {request.ByteSize()} bytes ({details})",
                "a message that the server accepts",
                fix="lower batch_size, or raise --max_request_bytes on the server",
            )
        fixes = {
            grpc.StatusCode.UNAUTHENTICATED: "give a token that the server knows (--token-file)",
            grpc.StatusCode.PERMISSION_DENIED: "give a token that may do this (--token-file)",
            grpc.StatusCode.RESOURCE_EXHAUSTED: "ask again later, with fewer requests at once",
        }
        return CodedError(
            "KUG-S04",
            where,
            f"{code.name}: {details} (request {request_id})",
            "a request that the server takes",
            fix=fixes.get(code, ""),
        )

    def _versions(self):
        """What the server has of the model, for an error; nothing here may fail."""
        request = wire.get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = self.model
        try:
            answer = self.models.GetModelStatus(
                request, timeout=self.timeout, metadata=self._metadata
            )
        except grpc.RpcError:
            return "a model that the server has"
        found = [str(i.version) for i in answer.model_version_status if i.state == 30]
        return f"one of the versions {', '.join(found)}" if found else "a version that is available"

    def signatures(self):
        """Signature name -> SignatureDef of the version that answers.

        Raises:
            CodedError: KUG-S01 to KUG-S04.
        """
        request = wire.get_model_metadata_pb2.GetModelMetadataRequest(
            metadata_field=["signature_def"]
        )
        self.name(request.model_spec)
        answer = self.call(self.prediction.GetModelMetadata, request)
        found = wire.get_model_metadata_pb2.SignatureDefMap()
        answer.metadata["signature_def"].Unpack(found)
        return {
            name: item
            for name, item in sorted(found.signature_def.items())
            if not name.startswith("__")
        }

    def _signatures(self):
        try:
            return sorted(self.signatures())
        except CodedError:
            return []
