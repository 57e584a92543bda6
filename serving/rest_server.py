"""Runs the REST application under uvicorn in a thread of its own."""

import asyncio
import socket
import threading

import uvicorn

from keras_unigan.errors import CodedError


class RestServer:
    """A listening socket and the thread that answers on it.

    Args:
        app: `rest.App`.
        options: `settings.Options`.
        context: `ssl.SSLContext`, None for plain HTTP.

    Attributes:
        url: "http://host:port", or https.

    Raises:
        CodedError: KUG-S06 when the port is taken.
    """

    def __init__(self, app, options, context=None):
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
        host = f"[{options.host}]" if ":" in options.host else options.host
        scheme = "http" if context is None else "https"
        self.url = f"{scheme}://{host}:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=1,
        )
        config.load()
        config.ssl = context  # It has no argument for a context, only for paths of files.
        self._app, self._server = app, uvicorn.Server(config)
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
        self._app.close()
