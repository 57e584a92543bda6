"""Runs the viewer under uvicorn, on this machine only."""

import asyncio
import secrets
import socket
import threading

import uvicorn

from keras_unigan.errors import CodedError
from keras_unigan.viewing.app import MOST_BYTES, Application

HOST = "127.0.0.1"


class Viewer:
    """The page of a gallery at an address of this machine; a context manager.

    Args:
        gallery: `gallery.Gallery`; closed with the viewer, or when there is none.
        title: Heading of the page.
        port: 0 takes a free one.
        most_bytes: See `app.Application`.

    Attributes:
        url: Address with the token, which browsers keep to themselves: it stands behind a `#`.
        origin: Address without it.
        token: What requests for scans must carry.

    Raises:
        CodedError: KUG-S06 when the port is taken, KUG-E01 without the package of the viewer.
    """

    def __init__(self, gallery, title="", port=0, most_bytes=MOST_BYTES):
        self.token, self._gallery = secrets.token_urlsafe(24), gallery
        try:
            app = Application(gallery, self.token, title, most_bytes)
            self._socket = _listen(port)
        except CodedError:
            gallery.close()
            raise
        self.origin = f"http://{HOST}:{self._socket.getsockname()[1]}"
        self.url = f"{self.origin}/#{self.token}"
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="unigan-view", daemon=True)

    def _run(self):
        asyncio.run(self._server.serve(sockets=[self._socket]))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()
        self._gallery.close()

    def wait(self):
        """Waits until somebody interrupts."""
        while self._thread.is_alive():
            self._thread.join(0.5)


def _listen(port):
    """Socket of this machine that listens."""
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
    except OSError:
        listening.close()
        raise CodedError(
            "KUG-S06",
            f"{HOST}:{port}",
            "an address in use",
            "a free port",
            fix="choose another --port, or none",
        ) from None
    listening.listen()
    return listening
