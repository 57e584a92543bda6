"""The gRPC half: handlers of both services, health, reflection, and who may call them."""

import concurrent.futures

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from keras_unigan.errors import CodedError
from keras_unigan.serving import security, wire
from keras_unigan.serving.core import Core
from keras_unigan.serving.status import ServingError

PREDICTION = wire.prediction_service_pb2.DESCRIPTOR.services_by_name["PredictionService"].full_name
MODEL = wire.model_service_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name

_RELOAD = "HandleReloadConfigRequest"
# Method -> (service, request message, what answers it); methods not listed are UNIMPLEMENTED.
_METHODS = {
    "Predict": (PREDICTION, wire.predict_pb2.PredictRequest, Core.predict),
    "Classify": (PREDICTION, wire.classification_pb2.ClassificationRequest, Core.classify),
    "Regress": (PREDICTION, wire.regression_pb2.RegressionRequest, Core.regress),
    "MultiInference": (
        PREDICTION,
        wire.inference_pb2.MultiInferenceRequest,
        Core.multi_inference,
    ),
    "GetModelMetadata": (
        PREDICTION,
        wire.get_model_metadata_pb2.GetModelMetadataRequest,
        Core.metadata,
    ),
    "GetModelStatus": (MODEL, wire.get_model_status_pb2.GetModelStatusRequest, Core.status),
    _RELOAD: (MODEL, wire.model_management_pb2.ReloadConfigRequest, Core.reload),
}
# These answer under any load: an orchestrator that hears nothing kills the server.
_UNCOUNTED = ("GetModelMetadata", "GetModelStatus", _RELOAD)
# Threads for them, and to refuse what is too much.
_SPARE_THREADS = 16
# grpcio tells of no deadline by one that is centuries away.
_NO_DEADLINE_SECONDS = 1e8


def _handler(core, method, message, function):
    """RPC handler that parses a request, runs a method of `Core`, and answers with its code."""

    def answer(data, context):
        left = context.time_remaining()
        if left is not None and left > _NO_DEADLINE_SECONDS:
            left = None
        bracket = core.request(
            f"grpc {method}", _identity(context), len(data), method not in _UNCOUNTED
        )
        try:
            with bracket as (entry, _):
                context.set_trailing_metadata([("x-request-id", entry.request_id)])
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


def _identity(context):
    """The client's own id of a request; None where it sent none that can be sent back."""
    found = dict(context.invocation_metadata()).get("x-request-id")
    return found if isinstance(found, str) else None


class _Guard(grpc.ServerInterceptor):
    """Refuses calls without the token that they need, before their message is read."""

    def __init__(self, core, tokens):
        self._core, self._tokens = core, tokens

    def intercept_service(self, continuation, details):
        if details.method.startswith(f"/{health.SERVICE_NAME}/"):
            return continuation(details)
        method = details.method.rpartition("/")[2]
        try:
            given = dict(details.invocation_metadata).get("authorization")
            self._tokens.check(given, admin=method == _RELOAD)
        except ServingError as error:
            return grpc.stream_unary_rpc_method_handler(self._refuse(method, error))
        return continuation(details)

    def _refuse(self, method, problem):
        known = method if method in _METHODS else "other"

        def refuse(_, context):
            try:
                with self._core.request(f"grpc {known}", _identity(context), counted=False):
                    raise problem
            except ServingError as error:
                context.abort(grpc.StatusCode[error.code], error.message)

        return refuse


def make(core, options, tokens, certificates, servicer):
    """A gRPC server that listens but does not answer yet.

    Args:
        core: `core.Core`.
        options: `settings.Options`.
        tokens: `security.Tokens`.
        certificates: `config_files.Certificates`, None without TLS.
        servicer: `health.HealthServicer`.

    Returns:
        (server, "host:port", "" where the port is off).

    Raises:
        CodedError: KUG-S06 when a port is taken, or TLS material cannot be used.
    """
    limit = options.max_request_bytes or -1
    server = grpc.server(
        concurrent.futures.ThreadPoolExecutor(
            options.max_concurrent_requests + _SPARE_THREADS, "unigan-grpc"
        ),
        interceptors=[_Guard(core, tokens)],
        options=[
            ("grpc.max_receive_message_length", limit),
            ("grpc.max_send_message_length", -1),
            # Without this, a second server would share the port in silence.
            ("grpc.so_reuseport", 0),
        ],
    )
    for service in (PREDICTION, MODEL):
        handlers = {
            name: _handler(core, name, message, function)
            for name, (owner, message, function) in _METHODS.items()
            if owner == service
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    names = [PREDICTION, MODEL, reflection.SERVICE_NAME]
    if options.enable_grpc_healthcheck_service:
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        names.append(health.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    return server, _bind(server, options, certificates)


def _bind(server, options, certificates):
    addresses = [f"unix:{options.grpc_socket_path}"] if options.grpc_socket_path else []
    if options.port != 0:
        host = f"[{options.host}]" if ":" in options.host else options.host
        addresses.append(f"{host}:{options.port or 0}")
    bound = 0
    for address in addresses:
        try:
            # A socket file is guarded by its permissions; TLS is for what leaves the machine.
            if certificates is None or address.startswith("unix:"):
                bound = server.add_insecure_port(address)
            else:
                credentials = security.grpc_credentials(certificates)
                bound = server.add_secure_port(address, credentials)
        except RuntimeError:
            raise CodedError(
                "KUG-S06", address, "an address in use or not ours", "one to listen on",
                fix="choose another --port",
            ) from None  # fmt: skip
    return f"{address.rpartition(':')[0]}:{bound}" if options.port != 0 else ""
