"""Does a server behave like TensorFlow Serving? Asks it over real sockets, row by row.

    python -m keras_unigan.serving.conformance --grpc_addr HOST:8500 --rest_url http://HOST:8501 \
        --model_name NAME

The rows are in `conformance_grpc` and `conformance_rest`: wrong requests with the code and text of
their refusal, and a few right ones. The signatures that a row needs are found in the model's
metadata; a row that the model has none for is skipped and says so. Rows where the embedded server
is stricter on purpose run with `--strict` only, those that reload with `--reload` only (a refused
reload changes nothing here, but TensorFlow Serving keeps the rejected list).
"""

import argparse
import dataclasses
import gzip
import http.client
import json
import ssl
import string
import sys
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np

from keras_unigan.serving import wire

_UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
_SECONDS = 30
# HTTP status of the gRPC codes, as the rows of REST name them.
OK = "OK"


class Skipped(Exception):
    """The row needs something that this server or model does not have."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        case: What the client does.
        ask: Function of a `Target` that does it and returns (code, text).
        code: Name of the gRPC code, or HTTP status as a number; "OK" for an answer.
        text: What the refusal's text contains; $names are those of `Target.names`.
        stricter: Whether TensorFlow Serving itself does not do so.
        reloads: Whether it sends a list of models.
    """

    case: str
    ask: Callable
    code: str | int
    text: str = ""
    stricter: bool = False
    reloads: bool = False


class Target:
    """The server under test, and what its model offers.

    Args:
        grpc_addr: "host:port".
        rest_url: "http://host:port" or https; "" skips the rows of REST.
        model_name: A model that is served.
        token: Bearer token, "" for none.
        roots: PEM text of the roots that TLS is checked against, "" for no TLS.

    Attributes:
        prediction: PredictionService stub.
        models: ModelService stub.
        names: What $names in the texts of rows stand for.
    """

    def __init__(self, grpc_addr, rest_url, model_name, token="", roots=""):
        if roots:
            credentials = grpc.ssl_channel_credentials(roots.encode())
            self.channel = grpc.secure_channel(grpc_addr, credentials, _UNLIMITED)
        else:
            self.channel = grpc.insecure_channel(grpc_addr, _UNLIMITED)
        self.prediction = wire.prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        self.models = wire.model_service_pb2_grpc.ModelServiceStub(self.channel)
        self.model, self._rest, self._roots = model_name, urllib.parse.urlsplit(rest_url), roots
        self._token = token
        request = wire.get_model_metadata_pb2.GetModelMetadataRequest(
            metadata_field=["signature_def"]
        )
        request.model_spec.name = model_name
        answer = self.prediction.GetModelMetadata(
            request, timeout=_SECONDS, metadata=self._metadata()
        )
        found = wire.get_model_metadata_pb2.SignatureDefMap()
        answer.metadata["signature_def"].Unpack(found)
        self.signatures = {
            name: item
            for name, item in sorted(found.signature_def.items())
            if not name.startswith("__")
        }
        self.version = answer.model_spec.version.value
        self.names = {"model": model_name, "version": self.version}
        for kind, alias in (("array", "input"), ("integer", "count")):
            if self._found(kind):
                name = self._found(kind)[0]
                (key, info), *_ = self.signatures[name].inputs.items()
                self.names |= {kind: name, alias: key, f"{alias}_feed": info.name}

    def close(self):
        """Ends the connection."""
        self.channel.close()

    def _metadata(self):
        return [("authorization", f"Bearer {self._token}")] if self._token else []

    def _found(self, kind):
        """Names of the signatures of a kind, `serving_default` first."""
        return sorted(
            (name for name, item in self.signatures.items() if _KINDS[kind](item)),
            key=lambda name: (name != "serving_default", name),
        )

    def signature(self, kind):
        """Name of a signature of a kind.

        Raises:
            Skipped: The model has none.
        """
        found = self._found(kind)
        if not found:
            raise Skipped(f"the model has no {kind} signature")
        return found[0]

    def shape(self, kind="array", rows=1):
        """Shape that the only input of a signature takes; free sides are 8."""
        (info,) = self.signatures[self.signature(kind)].inputs.values()
        return [rows, *(8 if d.size < 0 else d.size for d in info.tensor_shape.dim[1:])]

    def call(self, method, request, seconds=_SECONDS):
        """(code, text) of an RPC: ("OK", "") for an answer."""
        try:
            method(request, timeout=seconds, metadata=self._metadata())
        except grpc.RpcError as error:
            return error.code().name, error.details()
        return OK, ""

    def answer(self, method, request):
        """The answer of an RPC that should have one."""
        return method(request, timeout=_SECONDS, metadata=self._metadata())

    def rest(self, verb, path, body=b"", headers=()):
        """(HTTP status, body) of a REST request.

        Raises:
            Skipped: There is no REST address.
        """
        if not self._rest.netloc:
            raise Skipped("no REST address")
        if self._rest.scheme == "https":
            context = ssl.create_default_context(cadata=self._roots or None)
            connection = http.client.HTTPSConnection(
                self._rest.netloc, timeout=_SECONDS, context=context
            )
        else:
            connection = http.client.HTTPConnection(self._rest.netloc, timeout=_SECONDS)
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            connection.request(verb, path, body, {**dict(headers), **dict(self._metadata())})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def post(self, body, method="predict", path="", zipped=False):
        """(HTTP status or "OK", error text) of a request to the model."""
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"content-encoding": "gzip"} if zipped else {}
        status, data = self.rest(
            "POST",
            path or f"/v1/models/{self.model}:{method}",
            gzip.compress(body) if zipped else body,
            headers,
        )
        return plain(status, data)

    def get(self, path, verb="GET"):
        """(HTTP status or "OK", error text) of a request without a body."""
        return plain(*self.rest(verb, path))


def plain(status, data):
    """(HTTP status or "OK", error text) of a REST answer."""
    if status == 200:
        return OK, ""
    try:
        return status, str(json.loads(data)["error"])
    except (ValueError, KeyError, TypeError):
        return status, data.decode("utf-8", "replace")


def _only(item, numbers):
    """Whether a signature has one input, of known rank and one of these types."""
    (info, *rest) = item.inputs.values() or [None]
    return (
        info is not None
        and not rest
        and info.dtype in numbers
        and not info.tensor_shape.unknown_rank
        and len(info.tensor_shape.dim) > 0
    )


_KINDS = {
    "array": lambda item: _only(item, (1,)) and len(item.inputs) == 1,
    "integer": lambda item: _only(item, (3, 9)),
    "several": lambda item: len(item.inputs) > 1,
    "text": lambda item: _only(item, (wire.STRING,)) and "inputs" not in item.inputs,
    "classify": lambda item: (
        list(item.inputs) == ["inputs"] and bool({"classes", "scores"} & set(item.outputs))
    ),
    "regress": lambda item: list(item.inputs) == ["inputs"] and list(item.outputs) == ["outputs"],
}


def check(target, row, strict=False, reload=False):
    """Asks one row.

    Returns:
        "" when the server behaves so, else what it did instead.

    Raises:
        Skipped: The row does not apply.
    """
    if row.stricter and not strict:
        raise Skipped("stricter than TensorFlow Serving (--strict)")
    if row.reloads and not reload:
        raise Skipped("reloads the list of models (--reload)")
    code, text = row.ask(target)
    wanted = string.Template(row.text).safe_substitute(target.names)
    if code != row.code or wanted not in text:
        return f"expected {row.code} {wanted!r}, got {code} {text!r}"
    return ""


def rows():
    """All rows, those of gRPC first."""
    from keras_unigan.serving import conformance_grpc, conformance_rest

    return tuple(
        dataclasses.replace(row, case=f"{name} {row.case}")
        for name, table in (("gRPC", conformance_grpc.ROWS), ("REST", conformance_rest.ROWS))
        for row in table
    )


def array(target, rows=1):
    """Small numbers of the shape that the array signature takes."""
    shape = target.shape("array", rows)
    return (np.arange(np.prod(shape)) % 7).astype(np.float32).reshape(shape)


def main(arguments=None):
    """Asks every row and prints one line for each; returns 1 when one differs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--grpc_addr", required=True, help="host:port")
    parser.add_argument("--rest_url", default="", help="http://host:port; empty skips REST")
    parser.add_argument("--model_name", required=True)
    parser.add_argument("--token_file", default="", help="file with a bearer token")
    parser.add_argument("--ca_file", default="", help="PEM file of roots: TLS")
    parser.add_argument("--strict", action="store_true", help="rows of the embedded server too")
    parser.add_argument("--reload", action="store_true", help="rows that reload, too")
    given = parser.parse_args(arguments)
    token, roots = (
        Path(path).read_text(encoding="utf-8").strip() if path else ""
        for path in (given.token_file, given.ca_file)
    )
    target = Target(given.grpc_addr, given.rest_url, given.model_name, token, roots)
    counts = {"ok": 0, "FAIL": 0, "skip": 0}
    for row in rows():
        try:
            problem = check(target, row, given.strict, given.reload)
            word = "FAIL" if problem else "ok"
        except Skipped as reason:
            word, problem = "skip", str(reason)
        counts[word] += 1
        print(f"{word:4} {row.case}{': ' if problem else ''}{problem}")
    target.close()
    print(", ".join(f"{number} {word}" for word, number in counts.items()))
    return int(counts["FAIL"] > 0)


if __name__ == "__main__":
    # The rows import this module by its name: run that one, not the copy called "__main__".
    from keras_unigan.serving import conformance

    sys.exit(conformance.main())
