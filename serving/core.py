"""What both protocols share: resolving a ModelSpec, running, and one log line a request."""

import contextlib
import dataclasses
import json
import logging
import time
import uuid

import numpy as np

from keras_unigan.serving import batching, config_files, examples, limits, metrics, wire
from keras_unigan.serving.servable import DEFAULT_SIGNATURE, check_names, check_tensor
from keras_unigan.serving.status import CODES, ServingError, invalid
from keras_unigan.serving.versions import STATES

access_log = logging.getLogger("keras_unigan.serving.access")
logger = logging.getLogger(__name__)

# Longest that a reload may wait for the models of the new list.
RELOAD_SECONDS = 120.0
NIFTI = "segment_nifti"


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


# Method of a log line -> API label of the metrics; TensorFlow Serving measures no others either.
_APIS = {name.lower(): name for name in ("Predict", "Classify", "Regress", "MultiInference")}
_APIS["nifti"] = "Predict"


class Core:
    """The methods of PredictionService and ModelService over a `manager.Manager`.

    Args:
        manager: The loaded models.
        options: `settings.Options`.
        measured: `metrics.Metrics`.
        batcher: `batching.Batcher`, None where requests do not share batches.
    """

    def __init__(self, manager, options, measured, batcher=None):
        self.manager, self.metrics = manager, measured
        self.gate = limits.Gate(options.max_concurrent_requests, options.max_in_flight_bytes)
        self._tensor_content = options.enable_serialization_as_tensor_content
        self._most_bytes = options.max_tensor_bytes
        self._most_unpacked = options.max_request_bytes or limits.MAX_BYTES
        self._most_ms = options.max_request_seconds * 1e3
        self._batcher = batcher

    @contextlib.contextmanager
    def request(self, method, request_id=None, size=0, counted=True):
        """Brackets a request: counts it, makes unforeseen errors INTERNAL, writes the log line.

        Args:
            method: Protocol and method.
            request_id: The client's own id, if it sent one.
            size: Bytes of the request that have arrived.
            counted: Whether the limits of load hold for it.

        Yields:
            (`Entry` to fill, `limits.Place`).

        Raises:
            ServingError: UNAVAILABLE while draining, RESOURCE_EXHAUSTED under too much load, or
                what the request raised.
        """
        entry = Entry(method, (request_id or uuid.uuid4().hex)[:128], size)
        started = time.perf_counter()
        try:
            with self.gate.enter(size, counted) as place:
                yield entry, place
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
        except BaseException:
            entry.code = "CANCELLED"
            raise
        finally:
            self._note(entry, time.perf_counter() - started)

    def _note(self, entry, seconds):
        """Writes the log line and the metrics of a request."""
        protocol, _, method = entry.method.partition(" ")
        api = _APIS.get(method.lower())
        if api is not None:
            # A client may ask for any name: those not served share one label.
            model = entry.model if entry.model in self.manager.models else ""
            self.metrics.count(metrics.REQUEST_COUNT, model, entry.code)
            if entry.code == "OK":
                self.metrics.observe(
                    metrics.REQUEST_LATENCY, seconds * 1e6, model, api, protocol.upper()
                )
        if access_log.isEnabledFor(logging.INFO):
            data = dataclasses.asdict(entry)
            data["model"], data["signature"] = entry.model[:128], entry.signature[:128]
            stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            data = {"time": stamp, **data, "milliseconds": round(seconds * 1e3, 2)}
            access_log.info("%s", json.dumps(data))

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
        _check_spec(request)
        with self.servable(request.model_spec, entry) as (servable, number):
            name = request.model_spec.signature_name or DEFAULT_SIGNATURE
            entry.signature = name
            signature = servable.signature(name)
            check_names(signature, request.inputs)
            declared = sum(wire.declared_bytes(proto) for proto in request.inputs.values())
            limits.check_tensors(declared, self._most_bytes)
            arrays = {k: wire.to_array(request.inputs[k], k) for k in sorted(request.inputs)}
            outputs = self.run(servable, name, arrays, entry, request.output_filter, timeout_ms)
        response = wire.predict_pb2.PredictResponse()
        _fill_spec(response.model_spec, request.model_spec.name, number, name)
        for alias, array in outputs.items():
            wire.fill(response.outputs[alias], array, self._tensor_content)
        return response

    def run(self, servable, name, arrays, entry, outputs=(), timeout_ms=None):
        """Checks and runs one signature: alias -> array in, alias -> array out.

        Args:
            servable: From `self.servable`.
            name: Name of a signature that it has.
            arrays: Alias -> array.
            entry: Log line to fill.
            outputs: Output aliases wanted; none means all.
            timeout_ms: Longest time in milliseconds; None is unlimited.

        Raises:
            ServingError: As `servable.Servable.prepare` and `run`, RESOURCE_EXHAUSTED for tensors
                over the limit, and those of `batching.Batcher.run`.
        """
        signature = servable.signatures[name]
        entry.describe(signature, arrays)
        limits.check_tensors(sum(a.nbytes for a in arrays.values()), self._most_bytes)
        if "nifti_bytes" in arrays and arrays["nifti_bytes"].dtype == object:
            for data in arrays["nifti_bytes"].ravel():
                limits.check_gzip(data, self._most_bytes or self._most_unpacked)
        _, feeds, wanted = servable.prepare(name, arrays, list(outputs))
        by_row = all(
            t.shape is None or (t.shape and t.shape[0] is None)
            for t in (*signature.inputs.values(), *(signature.outputs[a] for a in wanted))
        )
        return self._execute(servable, feeds, wanted, by_row, entry, timeout_ms)

    def _execute(self, servable, feeds, wanted, by_row, entry, timeout_ms):
        """Runs the graph, in a batch with other requests where that is on and possible."""
        timeout_ms = min(filter(None, (timeout_ms, self._most_ms)), default=None)
        started = time.perf_counter()
        if self._batcher is not None and by_row and batching.rows(feeds):
            queue = (servable, *sorted(wanted.values()))
            outputs = self._batcher.run(
                queue, feeds, lambda feeds, left: servable.run(feeds, wanted, left), timeout_ms
            )
        else:
            outputs = servable.run(feeds, wanted, timeout_ms)
        api = _APIS.get(entry.method.partition(" ")[2].lower(), "Predict")
        microseconds = (time.perf_counter() - started) * 1e6
        # TensorFlow Serving calls a session over a graph "TF1"; that is what runs here, too.
        self.metrics.observe(metrics.RUNTIME_LATENCY, microseconds, entry.model, api, "TF1")
        limits.check_tensors(sum(a.nbytes for a in outputs.values()), self._most_bytes)
        return outputs

    def nifti(self, spec, body, modality, entry, timeout_ms=None):
        """Runs `segment_nifti` on one file.

        Args:
            spec: ModelSpec.
            body: Bytes of a `.nii` or `.nii.gz`.
            modality: Name of its modality, "" where not known.
            entry: Log line to fill.
            timeout_ms: Longest time in milliseconds; None is unlimited.

        Returns:
            (bytes of the label map, version that answered).

        Raises:
            ServingError: FAILED_PRECONDITION for a model without the signature, or of the run.
        """
        with self.servable(spec, entry) as (servable, number):
            entry.signature = NIFTI
            signature = servable.signature(NIFTI)
            values = {"nifti_bytes": body, "modality": modality.encode()}
            arrays = {k: np.array([v], object) for k, v in values.items() if k in signature.inputs}
            outputs = self.run(servable, NIFTI, arrays, entry, timeout_ms=timeout_ms)
        (data,) = outputs["label_map_nifti_bytes"]
        return bytes(data), number

    def classify(self, request, entry, timeout_ms=None):
        """PredictionService.Classify."""
        response = wire.classification_pb2.ClassificationResponse()
        make = self._one(request, examples.CLASSIFY, response, entry, timeout_ms)
        response.result.CopyFrom(make)
        return response

    def regress(self, request, entry, timeout_ms=None):
        """PredictionService.Regress."""
        response = wire.regression_pb2.RegressionResponse()
        make = self._one(request, examples.REGRESS, response, entry, timeout_ms)
        response.result.CopyFrom(make)
        return response

    def _one(self, request, method, response, entry, timeout_ms):
        """Result of Classify or Regress; fills the response's ModelSpec."""
        _check_spec(request)
        with self.servable(request.model_spec, entry) as (servable, number):
            name, signature = examples.find(servable, request.model_spec.signature_name, method)
            task = [(method, name, signature)]
            (result,) = self._infer(servable, task, request.input, entry, timeout_ms)
        _fill_spec(response.model_spec, request.model_spec.name, number, name)
        return result

    def multi_inference(self, request, entry, timeout_ms=None):
        """PredictionService.MultiInference: several signatures over the same examples."""
        response = wire.inference_pb2.MultiInferenceResponse()
        first = request.tasks[0].model_spec if request.tasks else wire.model_pb2.ModelSpec()
        with self.servable(first, entry) as (servable, number):
            tasks = examples.tasks(servable, request)
            results = self._infer(servable, tasks, request.input, entry, timeout_ms)
        for (method, name, _), result in zip(tasks, results, strict=True):
            item = response.results.add()
            _fill_spec(item.model_spec, first.name, number, name)
            field = "classification" if method == examples.CLASSIFY else "regression"
            getattr(item, f"{field}_result").CopyFrom(result)
        return response

    def _infer(self, servable, tasks, message, entry, timeout_ms):
        """Results of signatures that share one input of serialized examples."""
        arrays = {"inputs": examples.serialized(message)}
        signature = tasks[0][2]
        entry.signature = ",".join(sorted(name for _, name, _ in tasks))
        entry.describe(signature, arrays)
        check_tensor(0, "inputs", signature.inputs["inputs"], arrays["inputs"])
        wanted = [examples.wanted(signature, method) for method, _, signature in tasks]
        names = {tensor: tensor for aliases in wanted for tensor in aliases.values()}
        feeds = {signature.inputs["inputs"].name: arrays["inputs"]}
        found = self._execute(servable, feeds, names, True, entry, timeout_ms)
        results, count = [], len(arrays["inputs"])
        for (method, _, _), aliases in zip(tasks, wanted, strict=True):
            outputs = {alias: found[tensor] for alias, tensor in aliases.items()}
            make = examples.classification if method == examples.CLASSIFY else examples.regression
            results.append(make(outputs, count))
        return results

    def metadata(self, request, entry, timeout_ms=None):
        """PredictionService.GetModelMetadata: the signatures of a version."""
        _check_spec(request)
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
        _check_spec(request)
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

    def reload(self, request, entry, timeout_ms=None):
        """ModelService.HandleReloadConfigRequest: a new list of models, whole or not at all."""
        if request.config.WhichOneof("config") != "model_config_list":
            raise invalid(
                "ServerModelConfig type not supported by HandleReloadConfigRequest. Only "
                "ModelConfigList is currently supported"
            )
        configs = config_files.model_list(request.config.model_config_list)
        seconds = RELOAD_SECONDS if timeout_ms is None else min(RELOAD_SECONDS, timeout_ms / 1e3)
        self.manager.reload(configs, seconds)
        return wire.model_management_pb2.ReloadConfigResponse()


def _check_spec(request):
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")


def _fill_spec(spec, name, version, signature):
    spec.name, spec.signature_name = name, signature
    spec.version.value = version
