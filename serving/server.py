"""The embedded server: gRPC and REST over the same models, without Docker and without root.

`with Server("models/unigan") as server:` listens on free ports of this machine; `serve(options)` is
`unigan serve`: it blocks until SIGTERM, then finishes what is in flight.
"""

import gc
import logging
import os
import signal
import sys

from grpc_health.v1 import health, health_pb2

from keras_unigan.errors import CodedError
from keras_unigan.serving import config_files, folders, grpc_server, security
from keras_unigan.serving.batching import Batcher
from keras_unigan.serving.core import RELOAD_SECONDS, Core, access_log
from keras_unigan.serving.grpc_server import MODEL, PREDICTION
from keras_unigan.serving.manager import ConfigFile, Manager
from keras_unigan.serving.metrics import QUEUING_LATENCY, WARMUP_LATENCY, Metrics
from keras_unigan.serving.rest import App
from keras_unigan.serving.rest_server import RestServer
from keras_unigan.serving.settings import Options
from keras_unigan.serving.status import ServingError

logger = logging.getLogger(__name__)


class Server:
    """TensorFlow Serving's protocols over SavedModels on this machine.

    As a context manager it waits until every model has an available version.

    Args:
        model_base_path: Folder with numbered versions, or None with `model_config_file`.
        port: gRPC port; None takes a free one, 0 is off.
        rest_api_port: The same for REST.
        **fields: Further fields of `settings.Options`.

    Attributes:
        grpc_addr: "host:port" of gRPC once started, "" when off.
        rest_url: "http://host:port" of REST once started, "" when off; https with TLS.

    Raises:
        CodedError: KUG-S06 for settings that do not fit.
    """

    def __init__(self, model_base_path=None, *, port=None, rest_api_port=None, **fields):
        self.options = options = Options(
            model_base_path=model_base_path and os.fspath(model_base_path),
            port=port,
            rest_api_port=rest_api_port,
            **fields,
        )
        models = options.models()
        _check_labels(models, options.allow_version_labels_for_unavailable_models)
        self._certificates = config_files.read_ssl(options.ssl_config_file)
        self._context = self._certificates and security.ssl_context(self._certificates)
        self._tokens = security.Tokens(options.auth_token_file, options.admin_token_file)
        self._metrics_path = config_files.read_monitoring(options.monitoring_config_file)
        self.metrics = Metrics()
        self._batcher = None
        if options.enable_batching:
            parameters = config_files.read_batching(options.batching_parameters_file)
            self._batcher = Batcher(
                parameters,
                lambda wait: self.metrics.observe(
                    QUEUING_LATENCY, wait, parameters.thread_pool_name
                ),
            )
        self.manager = Manager(
            models,
            options,
            self._changed,
            lambda path, code, time: self.metrics.observe(WARMUP_LATENCY, time, path, code),
        )
        self.core = Core(self.manager, options, self.metrics, self._batcher)
        self.grpc_addr = self.rest_url = ""
        self._health = health.HealthServicer()
        self._grpc = self._rest = self._file = None

    def start(self):
        """Listens and begins to load; health says NOT_SERVING until every model is available.

        Raises:
            CodedError: KUG-S06 when a port is taken.
        """
        options = self.options
        self._changed()
        try:
            if options.port != 0 or options.grpc_socket_path:
                self._grpc, self.grpc_addr = grpc_server.make(
                    self.core, options, self._tokens, self._certificates, self._health
                )
                self._grpc.start()
            if options.rest_api_port != 0:
                app = App(self.core, self.ready, self._tokens, self._metrics_path, options)
                self._rest = RestServer(app, options, self._context)
                self._rest.start()
                self.rest_url = self._rest.url
        except CodedError:
            if self._grpc is not None:
                self._grpc.stop(None).wait()
            if self._batcher is not None:
                self._batcher.stop()
            raise
        self.manager.start()
        if options.model_config_file_poll_wait_seconds:
            self._file = ConfigFile(
                options.model_config_file,
                options.model_config_file_poll_wait_seconds,
                self.manager,
                RELOAD_SECONDS,
            )
            self._file.start()
        return self

    def ready(self):
        """Whether every model has an available version and the server is not draining."""
        return self.manager.ready() and not self.core.gate.closed

    def wait_until_ready(self, seconds=300.0):
        """Waits for every model to be available.

        Raises:
            CodedError: KUG-S06 saying what became of the versions, when one is not.
        """
        if self.manager.wait(seconds):
            return
        for name, model in self.manager.models.items():
            try:
                states = [
                    f"version {number} is {state} ({code} {message})".replace(" (OK )", "")
                    for number, state, code, message in self.manager.status(name)
                ]
            except ServingError:
                states = ["no version folder"]
            if not any("is AVAILABLE" in s for s in states):
                raise CodedError(
                    "KUG-S06",
                    model.config.base_path,
                    "; ".join(states),
                    f"a version that loads within {seconds:g} s",
                    fix="push a whole version with `unigan export` or `unigan push`",
                )

    def stop(self, drain_seconds=None):
        """Drains, then stops: health NOT_SERVING, `/readyz` 503, requests in flight finish.

        Args:
            drain_seconds: Longest wait; None takes the option.
        """
        seconds = self.options.drain_seconds if drain_seconds is None else drain_seconds
        self.core.gate.close()
        self._changed()
        if self._file is not None:
            self._file.stop()
        self.core.gate.wait_idle(seconds)
        if self._grpc is not None:
            self._grpc.stop(1.0).wait()
        if self._rest is not None:
            self._rest.stop()
        if self._batcher is not None:
            self._batcher.stop()
        self.manager.stop()
        if self._file is not None:
            self._file.join()

    def __enter__(self):
        self.start()
        try:
            self.wait_until_ready()
        except BaseException:
            self.stop(0)
            raise
        return self

    def __exit__(self, *_):
        self.stop()

    def _changed(self):
        """Tells the health service."""
        kinds = health_pb2.HealthCheckResponse
        status = kinds.SERVING if self.ready() else kinds.NOT_SERVING
        for name in ("", PREDICTION, MODEL):
            self._health.set(name, status)


def _check_labels(models, allow):
    """Refuses labels of versions that are not there, and "specific" lists that name none."""
    for model in models:
        found = folders.scan(model.base_path)
        if model.policy[0] == "specific" and not set(model.policy[1]) & set(found):
            raise CodedError(
                "KUG-S06",
                model.base_path,
                f"none of the versions {list(model.policy[1])} of model {model.name}",
                "at least one of them",
            )
        for version in model.labels.values():
            if version not in found and not allow:
                raise CodedError(
                    "KUG-S06",
                    model.base_path,
                    f"Request to assign label to version {version} of model {model.name}, which is "
                    "not currently available for inference",
                    "labels of versions that are there",
                )


def serve(options):
    """Serves until SIGTERM or SIGINT, then drains; the access log goes to standard output.

    Args:
        options: `settings.Options`.

    Returns:
        Exit code 0.

    Raises:
        CodedError: KUG-S06 when it cannot start.
    """
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    access_log.addHandler(handler)
    access_log.setLevel(logging.INFO)
    access_log.propagate = False
    # The signal itself writes into the pipe, in C: a Python handler would wait for the main thread,
    # which may be on its way into `read` already, or into the lock of an `Event`.
    over, end = os.pipe()
    os.set_blocking(end, False)
    signals = (signal.SIGTERM, signal.SIGINT)
    wakeup = signal.set_wakeup_fd(end)
    before = [signal.signal(number, lambda *_: None) for number in signals]
    # What the imports left stays for good: collections during requests need not go through it.
    gc.collect()
    gc.freeze()
    try:
        try:
            server = Server(**vars(options)).start()
            names = ", ".join(
                f"{name} from {m.config.base_path}" for name, m in server.manager.models.items()
            )
            places = [f"gRPC {server.grpc_addr}"] * bool(server.grpc_addr)
            places += [f"REST {server.rest_url}"] * bool(server.rest_url)
            print(f"Serving {names}: {', '.join(places)}", file=sys.stderr, flush=True)
            _warn(options)
            os.read(over, 1)
        finally:
            # A second signal ends the drain at once.
            for number, previous in zip(signals, before, strict=True):
                signal.signal(number, previous)
            signal.set_wakeup_fd(wakeup)
            os.close(over)
            os.close(end)
        server.stop()
    finally:
        gc.unfreeze()
        access_log.removeHandler(handler)
    return 0


def _warn(options):
    """Says it where anybody on the network may ask."""
    local = options.host in ("localhost", "::1") or options.host.startswith("127.")
    missing = [
        text
        for flag, text in (("ssl_config_file", "TLS"), ("auth_token_file", "tokens"))
        if not getattr(options, flag)
    ]
    if not local and missing:
        text = f"Warning: {options.host} is open to others without {' and '.join(missing)}"
        print(text, file=sys.stderr, flush=True)
