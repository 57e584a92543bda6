"""The embedded server: gRPC and REST over the same models, without Docker and without root.

`with Server("models/unigan") as server:` listens on free ports of this machine; `serve(options)` is
`unigan serve`: it blocks until SIGTERM, then finishes what is in flight.
"""

import concurrent.futures
import logging
import os
import signal
import sys

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from keras_unigan.errors import CodedError
from keras_unigan.serving import folders, wire
from keras_unigan.serving.core import Core, access_log
from keras_unigan.serving.rest import RestServer
from keras_unigan.serving.settings import Options
from keras_unigan.serving.status import ServingError
from keras_unigan.serving.versions import Manager

logger = logging.getLogger(__name__)

PREDICTION = wire.prediction_service_pb2.DESCRIPTOR.services_by_name["PredictionService"].full_name
MODEL = wire.model_service_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name


# Method -> (service, request message, what answers it); methods not listed are UNIMPLEMENTED.
_METHODS = {
    "Predict": (PREDICTION, wire.predict_pb2.PredictRequest, Core.predict),
    "GetModelMetadata": (
        PREDICTION,
        wire.get_model_metadata_pb2.GetModelMetadataRequest,
        Core.metadata,
    ),
    "GetModelStatus": (MODEL, wire.get_model_status_pb2.GetModelStatusRequest, Core.status),
}


# Health checks share the threads with requests, so there are more than cores can use.
_THREADS = max(32, 4 * (os.cpu_count() or 1))
# grpcio tells of no deadline by one that is centuries away.
_NO_DEADLINE_SECONDS = 1e8


def _handler(core, method, message, function):
    """RPC handler that parses a request, runs a method of `Core`, and answers with its code."""

    def answer(data, context):
        metadata = dict(context.invocation_metadata())
        left = context.time_remaining()
        if left is not None and left > _NO_DEADLINE_SECONDS:
            left = None
        try:
            with core.request(f"grpc {method}", metadata.get("x-request-id"), len(data)) as entry:
                if left is not None and left <= 0:
                    raise ServingError("DEADLINE_EXCEEDED", "The deadline has passed")
                try:
                    request = message.FromString(data)
                except DecodeError:
                    raise ServingError("INTERNAL", "Failed to parse the request message") from None
                return function(core, request, entry, None if left is None else left * 1e3)
        except ServingError as error:
            context.abort(grpc.StatusCode[error.code], error.message)

    return grpc.unary_unary_rpc_method_handler(
        answer, response_serializer=lambda response: response.SerializeToString()
    )


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
        rest_url: "http://host:port" of REST once started, "" when off.

    Raises:
        CodedError: KUG-S06 for settings that do not fit.
    """

    def __init__(self, model_base_path=None, *, port=None, rest_api_port=None, **fields):
        self.options = Options(
            model_base_path=model_base_path and os.fspath(model_base_path),
            port=port,
            rest_api_port=rest_api_port,
            **fields,
        )
        options = self.options
        models = options.models()
        _check_labels(models, options.allow_version_labels_for_unavailable_models)
        self.manager = Manager(
            models,
            options.file_system_poll_wait_seconds,
            options.enable_model_warmup,
            options.max_num_load_retries,
            options.load_retry_interval_micros / 1e6,
            self._changed,
        )
        self.core = Core(self.manager, options.enable_serialization_as_tensor_content)
        self.grpc_addr = self.rest_url = ""
        self._health = health.HealthServicer()
        self._grpc = self._rest = None

    def start(self):
        """Listens and begins to load; health says NOT_SERVING until every model is available.

        Raises:
            CodedError: KUG-S06 when a port is taken.
        """
        options = self.options
        self._changed()
        try:
            if options.port != 0 or options.grpc_socket_path:
                self._grpc = self._make_grpc()
                self._grpc.start()
            if options.rest_api_port != 0:
                self._rest = RestServer(self.core, self.ready, options)
                self._rest.start()
                self.rest_url = self._rest.url
        except CodedError:
            if self._grpc is not None:
                self._grpc.stop(None).wait()
            raise
        self.manager.start()
        return self

    def ready(self):
        """Whether every model has an available version and the server is not draining."""
        return self.manager.ready() and not self.core.draining

    def wait_until_ready(self, seconds=60.0):
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
                    model.base_path,
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
        self.core.draining = True
        self._changed()
        self.core.wait_idle(seconds)
        if self._grpc is not None:
            self._grpc.stop(1.0).wait()
        if self._rest is not None:
            self._rest.stop()
        self.manager.stop()

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

    def _make_grpc(self):
        options = self.options
        server = grpc.server(
            concurrent.futures.ThreadPoolExecutor(_THREADS, "unigan-grpc"),
            options=[
                ("grpc.max_receive_message_length", options.max_request_bytes or -1),
                ("grpc.max_send_message_length", -1),
                # Without this, a second server would share the port in silence.
                ("grpc.so_reuseport", 0),
            ],
        )
        for service in (PREDICTION, MODEL):
            handlers = {
                name: _handler(self.core, name, message, function)
                for name, (owner, message, function) in _METHODS.items()
                if owner == service
            }
            server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(service, handlers),)
            )
        names = [PREDICTION, MODEL, reflection.SERVICE_NAME]
        if options.enable_grpc_healthcheck_service:
            health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
            names.append(health.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        addresses = [f"unix:{options.grpc_socket_path}"] if options.grpc_socket_path else []
        if options.port != 0:
            addresses.append(f"{options.host}:{options.port or 0}")
        for address in addresses:
            try:
                bound = server.add_insecure_port(address)
            except RuntimeError:
                raise CodedError(
                    "KUG-S06", address, "an address in use or not ours", "one to listen on",
                    fix="choose another --port",
                ) from None  # fmt: skip
        if options.port != 0:
            self.grpc_addr = f"{options.host}:{bound}"
        return server


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
    # Not a `threading.Event`: a handler runs in the main thread, and would wait for ever for the
    # lock that this thread holds on its way into `wait`.
    over, end = os.pipe()
    signals = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda *_: os.write(end, b"x")) for number in signals]
    try:
        try:
            server = Server(**vars(options)).start()
            names = ", ".join(
                f"{m.name} from {m.base_path}" for m in server.manager.models.values()
            )
            places = [f"gRPC {server.grpc_addr}"] * bool(server.grpc_addr)
            places += [f"REST {server.rest_url}"] * bool(server.rest_url)
            print(f"Serving {names}: {', '.join(places)}", file=sys.stderr, flush=True)
            os.read(over, 1)
        finally:
            # A second signal ends the drain at once.
            for number, previous in zip(signals, before, strict=True):
                signal.signal(number, previous)
            os.close(over)
            os.close(end)
        server.stop()
    finally:
        access_log.removeHandler(handler)
    return 0
