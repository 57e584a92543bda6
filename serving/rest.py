"""The REST half: TensorFlow Serving's paths, verbs and texts as an ASGI application."""

import asyncio
import concurrent.futures
import json
import re
import urllib.parse
import zlib

from google.protobuf import json_format
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from keras_unigan.serving import json_examples, json_tensors, limits, wire
from keras_unigan.serving.servable import DEFAULT_SIGNATURE
from keras_unigan.serving.status import ServingError, invalid

_VERSION = r"(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_MODEL = r"(?i)/v1/models/(?P<name>[^/:]+)" + _VERSION
_INFER = re.compile(_MODEL + r":(?P<method>classify|regress|predict)", re.ASCII)
_STATUS = re.compile(_MODEL + r"(?P<metadata>/metadata)?", re.ASCII)
_NIFTI = re.compile(r"(?i)/v1/nifti/(?P<name>[^/:]+)" + _VERSION, re.ASCII)
_CORS = {
    "access-control-allow-origin": "*",
    "access-control-allow-methods": "GET, POST, OPTIONS",
    "access-control-allow-headers": "Content-Type, Content-Encoding, Authorization, X-Request-Id",
}


class App:
    """ASGI application.

    Args:
        core: `core.Core`.
        ready: Function that says whether the server is ready.
        tokens: `security.Tokens`.
        metrics_path: Path of the Prometheus page, "" for none.
        options: `settings.Options`.
    """

    def __init__(self, core, ready, tokens, metrics_path, options):
        self._core, self._ready, self._tokens = core, ready, tokens
        self._metrics_path = metrics_path
        self._limit = options.max_request_bytes or limits.MAX_BYTES
        self._timeout_ms = options.rest_api_timeout_in_ms
        self._headers = _CORS if options.rest_api_enable_cors_support else {}
        # More threads than requests may be in flight, so that probes of the status get through.
        self._threads = concurrent.futures.ThreadPoolExecutor(
            options.max_concurrent_requests + 8, "unigan-rest"
        )

    def close(self):
        """Ends the threads; requests must have ended."""
        self._threads.shutdown()

    async def __call__(self, scope, receive, send):
        """Answers one request."""
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        path = scope.get("raw_path", scope["path"].encode()).decode("latin-1").split("?")[0]
        try:
            response = await self._respond(request, path)
        except ServingError as error:
            response = _json({"error": error.message}, error.http)
            if error.code == "RESOURCE_EXHAUSTED":
                response.headers["retry-after"] = "1"
            if error.code == "UNAUTHENTICATED":
                response.headers["www-authenticate"] = "Bearer"
            if not getattr(request.state, "read", False):
                # The rest of the body may never end: nobody reads it.
                response.headers["connection"] = "close"
        response.headers.update(self._headers)
        await response(scope, receive, send)

    async def _respond(self, request, path):
        verb = request.method
        if path == "/healthz":
            return _json({"status": "up"})
        if path == "/readyz":
            ready = self._ready()
            return _json({"ready": ready}, 200 if ready else 503)
        if verb == "OPTIONS" and self._headers:
            return Response(status_code=204)
        if not path.lower().startswith("/v1/"):
            self._tokens.check(request.headers.get("authorization"))
            if path == self._metrics_path and verb == "GET":
                return Response(self._core.metrics.page(), media_type="text/plain; version=0.0.4")
            raise ServingError("NOT_FOUND", "Not Found")
        identity = request.headers.get("x-request-id")
        with self._core.request(f"rest {verb}", identity, 0, verb == "POST") as (entry, place):
            self._tokens.check(request.headers.get("authorization"))
            work = self._route(verb, path, request, entry)
            body = await self._body(request, place) if verb == "POST" else b""
            entry.bytes, request.state.read = len(body), True
            loop = asyncio.get_running_loop()
            response = await loop.run_in_executor(self._threads, work, body)
            response.headers["x-request-id"] = entry.request_id
            return response

    def _route(self, verb, path, request, entry):
        """What answers a path: a function of the body."""
        if verb == "GET" and re.fullmatch(r"(?i)/v1/models/?", path):
            raise invalid("Missing model name in request.")
        nifti = _NIFTI.fullmatch(path) if verb == "POST" else None
        found = nifti or {"POST": _INFER, "GET": _STATUS}.get(verb, _STATUS).fullmatch(path)
        if found is None or verb not in ("GET", "POST"):
            raise invalid(f"Malformed request: {verb} {path}")
        spec = _model_spec(found)
        if verb == "GET":
            entry.method = "rest metadata" if found["metadata"] else "rest status"
            answer = self._metadata if found["metadata"] else self._status
            return lambda _: answer(spec, entry)
        if nifti:
            entry.method = "rest nifti"
            modality = request.query_params.get("modality", "")
            return lambda body: self._nifti(spec, body, modality, entry)
        method = found["method"].lower()
        entry.method = f"rest {method}"
        answer = {"predict": self._predict, "classify": self._classify, "regress": self._regress}
        return lambda body: Response(
            answer[method](spec, body, entry), media_type="application/json"
        )

    async def _body(self, request, place):
        """The whole body, unpacked; refused as soon as it is longer than allowed, or too slow."""
        try:
            async with asyncio.timeout(self._timeout_ms / 1e3):
                return await self._read(request, place)
        except TimeoutError:
            raise ServingError(
                "DEADLINE_EXCEEDED", "The body of the request did not arrive in time"
            ) from None
        except ClientDisconnect:
            raise ServingError("CANCELLED", "The client went away") from None

    async def _read(self, request, place):
        gzipped = "gzip" in request.headers.get("content-encoding", "").lower()
        unpack = zlib.decompressobj(wbits=31) if gzipped else None
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._limit:
            raise limits.too_long(self._limit)
        parts, size = [], 0
        async for chunk in request.stream():
            if unpack is not None:
                try:
                    chunk = unpack.decompress(chunk, self._limit - size + 1)
                except zlib.error:
                    raise invalid("The gzip body is damaged") from None
            parts.append(chunk)
            size += len(chunk)
            self._core.gate.grow(place, len(chunk))
            if size > self._limit:
                raise limits.too_long(self._limit)
        if unpack is not None and not unpack.eof and size:
            raise invalid("The gzip body is damaged")
        return b"".join(parts)

    def _predict(self, spec, body, entry):
        entry.model = spec.name
        document = json_tensors.parse(body)
        name = json_tensors.signature_name(document) or DEFAULT_SIGNATURE
        with self._core.servable(spec, entry) as (servable, _):
            entry.signature = name
            if name not in servable.signatures:
                raise invalid(f'Serving signature name: "{name}" not found in signature def')
            arrays, rows = json_tensors.inputs(document, servable.signatures[name])
            del document
            results = self._core.run(servable, name, arrays, entry, timeout_ms=self._timeout_ms)
        return json_tensors.outputs(results, rows)

    def _classify(self, spec, body, entry):
        request = wire.classification_pb2.ClassificationRequest(model_spec=spec)
        entry.model = spec.name
        json_examples.fill(json_tensors.parse(body), request)
        return json_examples.classifications(self._core.classify(request, entry, self._timeout_ms))

    def _regress(self, spec, body, entry):
        request = wire.regression_pb2.RegressionRequest(model_spec=spec)
        entry.model = spec.name
        json_examples.fill(json_tensors.parse(body), request)
        return json_examples.regressions(self._core.regress(request, entry, self._timeout_ms))

    def _nifti(self, spec, body, modality, entry):
        if not body:
            raise invalid("The body holds no NIfTI file")
        data, version = self._core.nifti(spec, body, modality, entry, self._timeout_ms)
        headers = {
            "x-model-name": urllib.parse.quote(spec.name),
            "x-model-version": str(version),
        }
        return Response(data, headers=headers, media_type="application/octet-stream")

    def _status(self, spec, entry):
        request = wire.get_model_status_pb2.GetModelStatusRequest(model_spec=spec)
        return _json(_status(self._core.status(request, entry)))

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
