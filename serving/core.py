"""What both protocols share: resolving a ModelSpec, running, and one log line a request."""

import contextlib
import dataclasses
import json
import logging
import threading
import time
import uuid

from keras_unigan.serving import wire
from keras_unigan.serving.servable import DEFAULT_SIGNATURE, check_names
from keras_unigan.serving.status import CODES, ServingError, invalid
from keras_unigan.serving.versions import STATES

access_log = logging.getLogger("keras_unigan.serving.access")
logger = logging.getLogger(__name__)


@dataclasses.dataclass
class Entry:
    """Access-log line of one request. Names, sizes and times only; never a value of a tensor.

    Attributes:
        method: Protocol and method, e.g. "grpc Predict".
        request_id: From `x-request-id`, else made.
        bytes: Size of the request.
        model: Model name.
        version: Version that answered.
        signature: Signature that answered.
        inputs: Input name -> [dtype, shape], once they have been parsed.
        code: Key of `status.CODES`.
    """

    method: str
    request_id: str
    bytes: int = 0
    model: str = ""
    version: int | None = None
    signature: str = ""
    inputs: dict = dataclasses.field(default_factory=dict)
    code: str = "OK"

    def describe(self, signature, arrays):
        """Notes the signature and the kinds of its inputs; names it does not have are left out."""
        self.inputs = {
            name: [wire.type_name(wire.type_number(a.dtype)), list(a.shape)]
            for name, a in arrays.items()
            if name in signature.inputs
        }


class Core:
    """The methods of PredictionService and ModelService over a `versions.Manager`.

    Args:
        manager: The loaded models.
        tensor_content: Whether responses use `tensor_content`.
    """

    def __init__(self, manager, tensor_content=False):
        self.manager, self.tensor_content = manager, tensor_content
        self.draining = False
        self._active, self._idle = 0, threading.Condition()

    @contextlib.contextmanager
    def request(self, method, request_id=None, size=0):
        """Brackets a request: counts it, makes unforeseen errors INTERNAL, writes the log line.

        Args:
            method: Name in the log.
            request_id: The client's own id, if it sent one.
            size: Bytes of the request.

        Yields:
            `Entry` to fill.

        Raises:
            ServingError: UNAVAILABLE while draining, or what the request raised.
        """
        entry = Entry(method, (request_id or uuid.uuid4().hex)[:128], size)
        started = time.perf_counter()
        with self._idle:
            self._active += 1
        try:
            if self.draining:
                raise ServingError("UNAVAILABLE", "The server is shutting down")
            yield entry
        except ServingError as error:
            entry.code = error.code
            raise
        except Exception as error:
            entry.code = "INTERNAL"
            place = error.__traceback__
            while place.tb_next is not None:
                place = place.tb_next
            where = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}"
            # The text of a foreign error may quote the request: only its type and place are kept.
            logger.error("%s at %s (request %s)", type(error).__name__, where, entry.request_id)
            raise ServingError("INTERNAL", f"Internal error ({type(error).__name__})") from None
        finally:
            with self._idle:
                self._active -= 1
                self._idle.notify_all()
            self._log(entry, (time.perf_counter() - started) * 1e3)

    @staticmethod
    def _log(entry, milliseconds):
        if access_log.isEnabledFor(logging.INFO):
            data = dataclasses.asdict(entry)
            data["model"], data["signature"] = entry.model[:128], entry.signature[:128]
            stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            data = {"time": stamp, **data, "milliseconds": round(milliseconds, 2)}
            access_log.info("%s", json.dumps(data))

    def wait_idle(self, seconds):
        """Waits until no request is in flight; returns whether that came to pass in time."""
        with self._idle:
            return self._idle.wait_for(lambda: not self._active, seconds)

    @contextlib.contextmanager
    def servable(self, spec, entry):
        """Lends the version that a ModelSpec names.

        Raises:
            ServingError: INVALID_ARGUMENT or NOT_FOUND as TensorFlow Serving.
        """
        if not spec.name:
            raise invalid("ModelSpec has no name specified.")
        entry.model = spec.name
        choice = spec.WhichOneof("version_choice")
        version = spec.version.value if choice == "version" else None
        label = spec.version_label if choice == "version_label" else None
        with self.manager.use(spec.name, version, label) as (servable, number):
            entry.version = number
            yield servable, number

    def predict(self, request, entry, timeout_ms=None):
        """PredictionService.Predict.

        Args:
            request: PredictRequest.
            entry: Log line to fill.
            timeout_ms: Longest time in milliseconds; None is unlimited.

        Returns:
            PredictResponse.

        Raises:
            ServingError: As the protocol says.
        """
        if not request.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        with self.servable(request.model_spec, entry) as (servable, number):
            name = request.model_spec.signature_name or DEFAULT_SIGNATURE
            entry.signature = name
            signature = servable.signature(name)
            check_names(signature, request.inputs)
            arrays = {k: wire.to_array(request.inputs[k], k) for k in sorted(request.inputs)}
            entry.describe(signature, arrays)
            outputs = servable.predict(name, arrays, list(request.output_filter), timeout_ms)
        response = wire.predict_pb2.PredictResponse()
        response.model_spec.name = request.model_spec.name
        response.model_spec.version.value = number
        response.model_spec.signature_name = name
        for alias, array in outputs.items():
            wire.fill(response.outputs[alias], array, self.tensor_content)
        return response

    def metadata(self, request, entry, timeout_ms=None):
        """PredictionService.GetModelMetadata: the signatures of a version."""
        if not request.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != "signature_def":
                raise invalid(f"Metadata field {field} is not supported")
        response = wire.get_model_metadata_pb2.GetModelMetadataResponse()
        signatures = wire.get_model_metadata_pb2.SignatureDefMap()
        with self.servable(request.model_spec, entry) as (servable, number):
            for name, definition in servable.signature_defs.items():
                signatures.signature_def[name].CopyFrom(definition)
        response.model_spec.name = request.model_spec.name
        response.model_spec.version.value = number
        response.metadata["signature_def"].Pack(signatures)
        return response

    def status(self, request, entry, timeout_ms=None):
        """ModelService.GetModelStatus: what became of the versions, newest first."""
        if not request.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        spec = request.model_spec
        entry.model = spec.name
        if not spec.name:
            raise ServingError(
                "NOT_FOUND",
                "Could not find any versions of model . ModelSpec has no name specified.",
            )
        choice = spec.WhichOneof("version_choice")
        version = spec.version.value if choice == "version" else None
        if choice == "version_label":
            version = self.manager.labelled(spec.name, spec.version_label)
        response = wire.get_model_status_pb2.GetModelStatusResponse()
        for number, state, code, message in self.manager.status(spec.name, version):
            item = response.model_version_status.add(version=number, state=STATES[state])
            item.status.error_code = CODES[code][0]
            item.status.error_message = message
        return response
