"""Asks a TensorFlow Serving compatible server over gRPC, and segments scans with it.

Works the same against `serving.Server` and a stock `tensorflow_model_server`. TensorFlow is never
imported: the wire format is read with NumPy, and geometry is that of `inference`.
"""

import json
import re
import time

import grpc
import numpy as np

from keras_unigan.config import Plan
from keras_unigan.errors import CodedError, did_you_mean
from keras_unigan.serving import wire

_STATES = {10: "START", 20: "LOADING", 30: "AVAILABLE", 40: "UNLOADING", 50: "END"}
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:/]+):(\d{1,5})|unix:\S+")
_LOCAL = re.compile(r"localhost:|127\.|\[::1\]|unix:")


class Client:
    """One model on one server. Safe to use from several threads; also a context manager.

    Args:
        address: "host:port", or "unix:path".
        model: Name of the model.
        version: Version number; None is the newest available.
        label: Version label instead of a number.
        timeout: Seconds that one answer may take.
        retries: Further tries, with growing pauses, while the server is UNAVAILABLE. Nothing else
            is tried again.

    Raises:
        CodedError: KUG-S01 for an address of another form.
        ValueError: For a version together with a label, or a timeout that is not positive.
    """

    def __init__(self, address, model, *, version=None, label=None, timeout=60.0, retries=4):
        if not _ADDRESS.fullmatch(str(address)):
            raise CodedError(
                "KUG-S01",
                address,
                "no address of a gRPC server",
                "HOST:PORT",
                fix="give the gRPC port, e.g. 127.0.0.1:8500, without http://",
            )
        if version is not None and label is not None:
            raise ValueError("Expected one of version and label, got both.")
        if not timeout > 0:
            raise ValueError(f"Expected timeout above 0 seconds, got {timeout}.")
        self.address, self.model, self.version, self.label = address, model, version, label
        self.timeout, self.retries = timeout, retries
        # gRPC's own client limit is 4 MiB: less than one volume.
        options = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.enable_http_proxy", 0 if _LOCAL.match(address) else 1),
        ]
        self._channel = grpc.insecure_channel(address, options=options)
        self._prediction = wire.prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._models = wire.model_service_pb2_grpc.ModelServiceStub(self._channel)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Closes the connection."""
        self._channel.close()

    def status(self):
        """Versions of the model, newest first.

        Returns:
            List of dicts: `version`, `state`, `error_code`, `error_message`.

        Raises:
            CodedError: KUG-S01 to KUG-S04.
        """
        request = wire.get_model_status_pb2.GetModelStatusRequest()
        self._name(request.model_spec, self.version)
        answer = self._call(self._models.GetModelStatus, request)
        found = [
            {
                "version": item.version,
                "state": _STATES.get(item.state, "UNKNOWN"),
                "error_code": int(item.status.error_code),
                "error_message": item.status.error_message,
            }
            for item in answer.model_version_status
        ]
        return sorted(found, key=lambda item: -item["version"])

    def metadata(self):
        """Signatures of the version that answers.

        Returns:
            Signature -> {"inputs": ..., "outputs": ...}, each name -> {"dtype", "shape"}; a size
            of -1 is free, and the shape is None where even the rank is.

        Raises:
            CodedError: KUG-S01 to KUG-S04.
        """
        request = wire.get_model_metadata_pb2.GetModelMetadataRequest(
            metadata_field=["signature_def"]
        )
        self._name(request.model_spec, self.version)
        answer = self._call(self._prediction.GetModelMetadata, request)
        signatures = wire.get_model_metadata_pb2.SignatureDefMap()
        answer.metadata["signature_def"].Unpack(signatures)
        return {
            name: {"inputs": _tensors(item.inputs), "outputs": _tensors(item.outputs)}
            for name, item in sorted(signatures.signature_def.items())
            if not name.startswith("__")
        }

    def describe(self):
        """Model card of the version that answers: labels, modalities, spacing, patch, plan.

        Raises:
            CodedError: KUG-S01 to KUG-S04; KUG-S02 for a model that this package did not export.
        """
        return self._describe()[0]

    def predict(self, inputs, signature="serving_default", outputs=()):
        """Runs one signature.

        Args:
            inputs: Name -> array, or one array, which is then `image`. Types are sent as they are.
            signature: Name of the signature.
            outputs: Names of the outputs wanted; none means all.

        Returns:
            Output name -> array; strings are object arrays of bytes.

        Raises:
            CodedError: KUG-S01 to KUG-S04.
        """
        inputs = inputs if isinstance(inputs, dict) else {"image": inputs}
        return self._predict(inputs, signature, outputs, self.version)[0]

    def segment(self, source, modality=None, output=None, *, spacing=None, batch_size=4):
        """Segments one scan of any kind; the label map lies on the scan's own grid.

        Geometry, windows and blending run here, as in local inference; the network runs on the
        server, on one version from the first window to the last.

        Args:
            source: Path of a NIfTI file, nibabel image, or array; see `inference.segment`.
            modality: Name of the modality; None where it is not known.
            output: Path that receives the label map.
            spacing: mm per voxel of each axis of an array.
            batch_size: Windows per request.

        Returns:
            The same kind as `source`, or `output`; see `inference.segment`.

        Raises:
            CodedError: KUG-S01 to KUG-S04 for the server, KUG-T03 for an unknown modality, KUG-D01
                to KUG-D12 for the scan.
        """
        from keras_unigan import inference  # nibabel and SciPy: not needed to ask for a status

        def work(card, ask):
            return inference.segment(
                source,
                Plan.from_dict(card["plan"], f"{self.address} {self.model}"),
                ask,
                modality,
                output,
                spatial_dims=card["spatial_dims"],
                spacing=spacing,
                batch_size=batch_size,
            )

        return self.on_one_version(work)

    def on_one_version(self, work):
        """Does some work that takes several requests, all of them on one version of the model.

        Args:
            work: Function of the model card and of a `predict` as in `inference.segment_volume`. It
                is called again where its version was replaced meanwhile.

        Returns:
            What `work` returns.

        Raises:
            CodedError: KUG-S01 to KUG-S04, and those of `work`.
        """
        for last in (False, True):
            card, version = self._describe()

            def ask(patches, modality, statistics, version=version):
                count = len(patches)
                inputs = {
                    "image": np.asarray(patches, np.float32),
                    "modality": np.array([(modality or "").encode()] * count, object),
                    "statistics": np.tile(np.asarray(statistics, np.float32), (count, 1)),
                }
                return self._predict(inputs, "segment", ["probabilities"], version)[0][
                    "probabilities"
                ]

            try:
                return work(card, ask)
            except CodedError as error:
                # The version was replaced while its windows were asked for: start again on the new.
                if last or error.code != "KUG-S02" or self.version is not None:
                    raise

    def _describe(self):
        """Model card and the version that gave it."""
        request = {"request": np.zeros(1, np.int64)}
        answer, version = self._predict(request, "describe", ["model_card"], self.version)
        return json.loads(answer["model_card"][0]), version

    def _predict(self, inputs, signature, outputs, version):
        request = wire.predict_pb2.PredictRequest()
        self._name(request.model_spec, version)
        request.model_spec.signature_name = signature
        request.output_filter.extend(outputs)
        for name, value in inputs.items():
            wire.fill(request.inputs[name], _array(value), tensor_content=True)
        answer = self._call(self._prediction.Predict, request)
        arrays = {name: wire.to_array(proto, name) for name, proto in answer.outputs.items()}
        return arrays, answer.model_spec.version.value

    def _name(self, spec, version):
        spec.name = self.model
        if version is not None:
            spec.version.value = version
        elif self.label is not None:
            spec.version_label = self.label

    def _call(self, method, request):
        pause = 0.1
        for left in range(self.retries, -1, -1):
            try:
                return method(request, timeout=self.timeout)
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE or not left:
                    raise self._coded(error, request) from error
                time.sleep(pause)
                pause *= 2

    def _coded(self, error, request):
        """`CodedError` for an RPC that failed."""
        code, details = error.code(), error.details() or ""
        where = f"{self.address} {self.model}"
        if code == grpc.StatusCode.UNAVAILABLE:
            return CodedError(
                "KUG-S01",
                where,
                f"no answer ({details})",
                "a server",
                fix="start it with `unigan serve DIR --port PORT`, or check host and port",
            )
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            return CodedError(
                "KUG-S01", where, f"no answer within {self.timeout:g} s", "an answer in time",
                fix="give more time (timeout), or ask for fewer windows at once (batch_size)",
            )  # fmt: skip
        if code == grpc.StatusCode.NOT_FOUND:
            return CodedError(
                "KUG-S02", where, details, self._versions(), fix="name a model that is served"
            )
        if code == grpc.StatusCode.FAILED_PRECONDITION and "ignature" in details:
            known = self._signatures()
            hint = did_you_mean(request.model_spec.signature_name, known)
            return CodedError("KUG-S02", where, f"{details}{hint}", f"one of {known}")
        if code == grpc.StatusCode.INVALID_ARGUMENT and "version label" in details:
            return CodedError("KUG-S02", where, details, self._versions())
        if code == grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
            return CodedError(
                "KUG-S03",
                where,
                f"a message of {request.ByteSize()} bytes ({details})",
                "a message that the server accepts",
                fix="lower batch_size, or raise --max_request_bytes on the server",
            )
        return CodedError("KUG-S04", where, f"{code.name}: {details}", "a request that fits")

    def _versions(self):
        """What the server has of the model, for an error; nothing here may fail."""
        request = wire.get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = self.model
        try:
            answer = self._models.GetModelStatus(request, timeout=self.timeout)
        except grpc.RpcError:
            return "a model that the server has"
        found = [str(i.version) for i in answer.model_version_status if i.state == 30]
        return f"one of the versions {', '.join(found)}" if found else "a version that is available"

    def _signatures(self):
        try:
            return sorted(self.metadata())
        except CodedError:
            return []


def _tensors(infos):
    return {
        name: {
            "dtype": wire.type_name(info.dtype),
            "shape": None
            if info.tensor_shape.unknown_rank
            else [d.size for d in info.tensor_shape.dim],
        }
        for name, info in sorted(infos.items())
    }


def _array(value):
    """Array of an input; NumPy's own bytes type would drop trailing zero bytes."""
    if isinstance(value, np.ndarray):
        return value
    array = np.asarray(value)
    return np.asarray(value, object) if array.dtype.kind in "SU" else array
