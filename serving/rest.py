"""The REST half: TensorFlow Serving's paths, verbs and texts over Starlette and uvicorn."""

import asyncio
import json
import logging
import re
import socket
import threading
import urllib.parse
import zlib

import uvicorn
from google.protobuf import json_format
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from keras_unigan.errors import CodedError
from keras_unigan.serving import json_tensors, wire
from keras_unigan.serving.servable import DEFAULT_SIGNATURE
from keras_unigan.serving.status import ServingError, invalid

logger = logging.getLogger(__name__)

_MODEL = r"(?i)/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_PREDICT = re.compile(_MODEL + r":(?P<method>classify|regress|predict)", re.ASCII)
_STATUS = re.compile(_MODEL + r"(?P<metadata>/metadata)?", re.ASCII)
# Message that a protobuf can still be; also the most that a compressed body may grow to.
_MAX_BYTES = 2**31 - 1


class App:
    """ASGI application.

    Args:
        core: `core.Core`.
        ready: Function that says whether the server is ready.
        options: `settings.Options`.
    """

    def __init__(self, core, ready, options):
        self._core, self._ready = core, ready
        self._limit = options.max_request_bytes or _MAX_BYTES
        self._timeout_ms = options.rest_api_timeout_in_ms

    async def __call__(self, scope, receive, send):
        """Answers one request."""
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        path = scope.get("raw_path", scope["path"].encode()).decode("latin-1").split("?")[0]
        try:
            if path == "/healthz":
                response = _json({"status": "up"})
            elif path == "/readyz":
                ready = self._ready()
                response = _json({"ready": ready}, 200 if ready else 503)
            else:
                body = await self._body(request)
                response = await run_in_threadpool(self._respond, request, path, body)
        except ServingError as error:
            response = _json({"error": error.message}, error.http)
            if error.code == "RESOURCE_EXHAUSTED":
                # The rest of the body may never end: nobody reads it.
                response.headers["connection"] = "close"
        except ClientDisconnect:
            return
        await response(scope, receive, send)

    async def _body(self, request):
        """The whole body, unpacked; refused as soon as it is longer than allowed."""
        gzipped = "gzip" in request.headers.get("content-encoding", "").lower()
        unpack = zlib.decompressobj(wbits=31) if gzipped else None
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._limit:
            raise self._too_long()
        parts, size = [], 0
        async for chunk in request.stream():
            if unpack is not None:
                try:
                    chunk = unpack.decompress(chunk, self._limit - size + 1)
                except zlib.error:
                    raise invalid("The gzip body is damaged") from None
            parts.append(chunk)
            size += len(chunk)
            if size > self._limit:
                raise self._too_long()
        if unpack is not None and not unpack.eof and size:
            raise invalid("The gzip body is damaged")
        return b"".join(parts)

    def _too_long(self):
        return ServingError(
            "RESOURCE_EXHAUSTED", f"Received message larger than max ({self._limit} bytes)"
        )

    def _respond(self, request, path, body):
        verb = request.method
        if not path.lower().startswith("/v1/"):
            raise ServingError("NOT_FOUND", "Not Found")
        with self._core.request(
            f"rest {verb}", request.headers.get("x-request-id"), len(body)
        ) as entry:
            if verb == "GET" and re.fullmatch(r"(?i)/v1/models/?", path):
                raise invalid("Missing model name in request.")
            found = {"POST": _PREDICT, "GET": _STATUS}.get(verb, _STATUS).fullmatch(path)
            if found is None or verb not in ("GET", "POST"):
                raise invalid(f"Malformed request: {verb} {path}")
            spec = _model_spec(found)
            if verb == "POST":
                entry.method = f"rest {found['method'].lower()}"
                if entry.method != "rest predict":
                    raise ServingError("UNIMPLEMENTED", "This server does not implement the method")
                return Response(self._predict(spec, body, entry), media_type="application/json")
            if found["metadata"]:
                entry.method = "rest metadata"
                return self._metadata(spec, entry)
            entry.method = "rest status"
            request = wire.get_model_status_pb2.GetModelStatusRequest(model_spec=spec)
            return _json(_status(self._core.status(request, entry)))

    def _predict(self, spec, body, entry):
        document = json_tensors.parse(body)
        name = json_tensors.signature_name(document) or DEFAULT_SIGNATURE
        with self._core.servable(spec, entry) as (servable, _):
            entry.signature = name
            if name not in servable.signatures:
                raise invalid(f'Serving signature name: "{name}" not found in signature def')
            signature = servable.signatures[name]
            arrays, rows = json_tensors.inputs(document, signature)
            del document
            entry.describe(signature, arrays)
            results = servable.predict(name, arrays, timeout_ms=self._timeout_ms)
        return json_tensors.outputs(results, rows)

    def _metadata(self, spec, entry):
        request = wire.get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec=spec, metadata_field=["signature_def"]
        )
        answer = self._core.metadata(request, entry)
        signatures = wire.get_model_metadata_pb2.SignatureDefMap()
        answer.metadata["signature_def"].Unpack(signatures)
        return _json(
            {
                "model_spec": {
                    "name": answer.model_spec.name,
                    "signature_name": "",
                    "version": str(answer.model_spec.version.value),
                },
                "metadata": {"signature_def": _message(signatures)},
            }
        )


def _json(data, code=200):
    return Response(json.dumps(data), code, media_type="application/json")


def _message(message):
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def _status(response):
    """Status as REST writes it: the code by its name, the version as a string."""
    result = []
    for item in response.model_version_status:
        data = _message(item)
        data["status"] = {
            "error_code": data["status"].get("error_code", "OK"),
            "error_message": item.status.error_message,
        }
        result.append({k: data[k] for k in ("version", "state", "status")})
    return {"model_version_status": result}


def _model_spec(found):
    spec = wire.model_pb2.ModelSpec(name=urllib.parse.unquote(found["name"]))
    if found["version"] is not None:
        digits = found["version"].lstrip("0") or "0"
        if len(digits) > 19 or int(digits) > 2**63 - 1:
            raise invalid("Failed to convert version to numeric.")
        spec.version.value = int(digits)
    if found["label"] is not None:
        spec.version_label = urllib.parse.unquote(found["label"])
    return spec


class RestServer:
    """Runs `App` under uvicorn in a thread of its own.

    Args:
        core: `core.Core`.
        ready: Function that says whether the server is ready.
        options: `settings.Options`.

    Raises:
        CodedError: KUG-S06 when the port is taken.
    """

    def __init__(self, core, ready, options):
        self._socket = socket.socket(socket.AF_INET6 if ":" in options.host else socket.AF_INET)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((options.host, options.rest_api_port or 0))
        except OSError:
            self._socket.close()
            raise CodedError(
                "KUG-S06",
                f"{options.host}:{options.rest_api_port}",
                "an address in use or not ours",
                "one to listen on",
                fix="choose another --rest_api_port",
            ) from None
        self._socket.listen(2048)
        self.url = f"http://{options.host}:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(
            uvicorn.Config(
                App(core, ready, options),
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                server_header=False,
                timeout_graceful_shutdown=1,
            )
        )
        self._thread = threading.Thread(target=self._run, name="unigan-rest", daemon=True)

    def _run(self):
        asyncio.run(self._server.serve(sockets=[self._socket]))

    def start(self):
        """Starts to answer; connections wait in the socket's queue until then."""
        self._thread.start()

    def stop(self):
        """Stops listening and ends the thread."""
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()
