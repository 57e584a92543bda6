"""The web application of the viewer: the page, its files, and scans for whoever has the token.

Scans are private, and any page that a browser has open may try to ask a server of this machine. So
the page itself holds nothing; everything under `/api` wants a token in a header, which no other
site can send; requests under another name than this machine's (DNS rebinding) or from another
origin are refused.
"""

import hmac
import importlib.metadata
import io
import re
import zipfile
import zlib
from pathlib import Path
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from keras_unigan.errors import CODES, CodedError, missing_extra, of_the_disk
from keras_unigan.viewing.gallery import labels_of

NOTICE = "For research use only: not a medical device."
MOST_BYTES = 2**30
"""Largest file that may be dropped; see `Application`."""
UNPACKED = 4
"""A compressed file may unpack to so many times the largest file."""
TOKEN = "x-unigan-token"

_HOSTS = {"127.0.0.1", "localhost", "[::1]"}
_TEMPLATES = Path(__file__).parent.parent / "templates"
_FILES = {
    "viewer.js": "text/javascript",
    "niivue_host.js": "text/javascript",
    "viewer.css": "text/css",
}
# NiiVue compiles WebAssembly for packed files, and its workers and textures are blobs.
_POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval' blob:; style-src 'self' "
    "'unsafe-inline'; img-src 'self' data: blob:; font-src data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": _POLICY,
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def niivue():
    """Path of NiiVue's module in the package ipyniivue, which is not imported.

    Raises:
        CodedError: KUG-E01 when the package is not installed.
    """
    try:
        files = importlib.metadata.files("ipyniivue") or ()
    except importlib.metadata.PackageNotFoundError:
        files = ()
    found = [f.locate() for f in files if f.as_posix() == "ipyniivue/static/widget.js"]
    if not found or not found[0].is_file():
        raise missing_extra("viewer", "ipyniivue", "view")
    return found[0]


class Application:
    """ASGI application.

    Args:
        gallery: `gallery.Gallery`.
        token: What requests for scans must carry.
        title: Heading of the page.
        most_bytes: Largest file that may be dropped; unpacked it may be `UNPACKED` times as large.

    Raises:
        CodedError: KUG-E01 without the package of the viewer.
    """

    def __init__(self, gallery, token, title="", most_bytes=MOST_BYTES):
        self._gallery, self._token = gallery, token
        self._title, self._most = title, most_bytes
        self._niivue = niivue()
        self._app = Starlette(
            routes=[
                Route("/", self._page),
                Route("/files/{name}", self._file),
                Route("/api/session", self._session),
                Route("/api/scans", self._drop, methods=["POST"]),
                Route("/api/scans/{number:int}/image.nii", self._image),
                Route("/api/scans/{number:int}/label.nii", self._label),
                Route("/api/scans/{number:int}/segment", self._segment, methods=["POST"]),
                Route("/api/scans/{number:int}/prediction.nii", self._prediction),
                Route("/api/scans/{number:int}/download", self._download),
            ],
            exception_handlers={CodedError: _coded, Exception: _bug, OSError: _disk},
        )

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http":
            refused = self._refusal(scope)
            if refused is not None:
                await _answer(refused, 403)(scope, receive, _with_headers(send))
                return
        await self._app(scope, receive, _with_headers(send))

    def _refusal(self, scope):
        """Why a request is not answered, as a `CodedError`; None where it is."""
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        host = headers.get("host", "")
        if re.sub(r":\d+$", "", host).lower() not in _HOSTS:
            return _refused("a request under another name than this machine's", "127.0.0.1")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return _refused("a request that another page sent", "one from the viewer's own page")
        if not scope["path"].startswith("/api/"):
            return None
        sent = headers.get(TOKEN, "").encode()
        if not hmac.compare_digest(sent, self._token.encode()):
            return _refused("no token, or another one", "the address that `unigan view` printed")
        return None

    async def _page(self, request):
        return FileResponse(_TEMPLATES / "viewer.html", media_type="text/html")

    async def _file(self, request):
        name = request.path_params["name"]
        if name == "niivue.js":
            return FileResponse(self._niivue, media_type="text/javascript")
        if name not in _FILES:
            return Response(status_code=404)
        return FileResponse(_TEMPLATES / name, media_type=_FILES[name])

    async def _session(self, request):
        model = self._gallery.model
        told = model and {
            "name": model.name,
            "kind": model.kind,
            "modalities": model.plan.modalities,
        }
        return JSONResponse(
            {
                "title": self._title,
                "notice": NOTICE,
                "model": told,
                "labels": labels_of(self._gallery),
                "scans": [_told(n, e) for n, e in sorted(self._gallery.entries.items())],
                "most_bytes": self._most,
            }
        )

    async def _drop(self, request):
        name = request.query_params.get("name", "")
        declared = request.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > self._most:
            raise self._too_large(name)
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > self._most:
                raise self._too_large(name)
            parts.append(part)
        data = b"".join(parts)
        number = await run_in_threadpool(self._take, name, data)
        return JSONResponse(_told(number, self._gallery[number]))

    def _take(self, name, data):
        if _unpacks_beyond(data, UNPACKED * self._most):
            raise self._too_large(name)
        return self._gallery.drop(name, data)

    def _too_large(self, name):
        return CodedError(
            "KUG-S03",
            name or "file",
            f"more than {self._most / 2**20:g} MiB, or {UNPACKED} times that unpacked",
            "a smaller file",
            fix="unigan predict RUN FILE -o OUTPUT, or unigan view --most-mib",
        )

    def _image(self, request):
        return _nifti(self._gallery.image(_number(request)))

    def _label(self, request):
        return _nifti(self._gallery.label(_number(request)))

    def _segment(self, request):
        modality = request.query_params.get("modality")
        return JSONResponse(self._gallery.predict(_number(request), modality))

    def _prediction(self, request):
        modality = request.query_params.get("modality")
        return _nifti(self._gallery.prediction_bytes(_number(request), modality))

    def _download(self, request):
        modality = request.query_params.get("modality")
        path = self._gallery.prediction(_number(request), modality)
        return FileResponse(path, media_type="application/octet-stream", filename=path.name)


def _number(request):
    return request.path_params["number"]


def _told(number, entry):
    """What the page is told of a scan."""
    return {
        "number": number,
        "name": entry.name,
        "modality": entry.modality,
        "split": entry.split,
        "label": entry.label is not None,
        "prediction": entry.prediction is not None,
        "dropped": entry.dropped,
    }


def _nifti(data):
    return Response(data, media_type="application/octet-stream")


def _refused(found, expected):
    return CodedError("KUG-S04", "viewer", found, expected, "Scans are private.")


def _answer(error, status):
    return JSONResponse({"code": error.code, "text": str(error)}, status)


async def _coded(request, error):
    """Codes that blame the request are 400, those of this machine 500."""
    status = 413 if error.code == "KUG-S03" else 500 if CODES[error.code][1] == 4 else 400
    return _answer(error, status)


async def _disk(request, error):
    coded = of_the_disk(error)
    return await (_coded(request, coded) if coded else _bug(request, error))


async def _bug(request, error):
    return JSONResponse({"code": "", "text": f"Bug: {type(error).__name__}: {error}."}, 500)


def _with_headers(send):
    """Adds what browsers are told about every answer."""

    async def sender(message):
        if message["type"] == "http.response.start":
            named = [(k.encode(), v.encode()) for k, v in _HEADERS.items()]
            message = {**message, "headers": [*message["headers"], *named]}
        await send(message)

    return sender


def _unpacks_beyond(data, most):
    """Whether the bytes of a gzip or zip file unpack to more than `most`, without holding them."""
    if data.startswith(b"PK"):
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as packed:
                # Reading stops at the size that a member declares.
                return sum(member.file_size for member in packed.infolist()) > most
        except (zipfile.BadZipFile, ValueError, NotImplementedError):
            return False  # whoever reads it says what is wrong with it
    if not data.startswith(b"\x1f\x8b"):
        return False
    unpack, total, rest = zlib.decompressobj(wbits=31), 0, data
    try:
        while rest and not unpack.eof and total <= most:
            total += len(unpack.decompress(rest, 2**20))
            rest = unpack.unconsumed_tail
    except zlib.error:
        return False
    return total > most
