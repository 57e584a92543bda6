"""Asks a TensorFlow Serving compatible server over gRPC, and segments scans with it.

Works the same against `serving.Server` and a stock `tensorflow_model_server`. TensorFlow is never
imported: the wire format is read with NumPy, and geometry is that of `inference`.
"""

import json
import math

import numpy as np

from keras_unigan.errors import CodedError
from keras_unigan.serving import wire
from keras_unigan.serving.channel import Channel, Tls

__all__ = ["Client", "Tls"]

WAYS = ("auto", "file", "windows")
_STATES = {10: "START", 20: "LOADING", 30: "AVAILABLE", 40: "UNLOADING", 50: "END"}
_WHOLE_FILE = 10.0
"""A whole file may take this many times `timeout`: one answer stands for many windows."""


class Client:
    """One model on one server. Safe to use from several threads; also a context manager.

    Args:
        address: "host:port", or "unix:path".
        model: Name of the model.
        version: Version number; None is the newest available.
        label: Version label instead of a number.
        timeout: Seconds that one answer may take; a whole file may take ten times as long.
        retries: Further tries, with growing pauses (0.1 s, doubled up to 5 s), while the server is
            UNAVAILABLE. Nothing else is tried again.
        max_message_bytes: Largest message to send; what is larger goes in several, or is refused.
        tls: `Tls`, or None for a plain connection.
        token: Bearer token, or None.

    Raises:
        CodedError: KUG-S01 for an address of another form, KUG-S06 for TLS files that cannot be
            used, or for a token that would cross a network in the clear.
        ValueError: For a version together with a label, or other arguments out of range.
    """

    def __init__(
        self,
        address,
        model,
        *,
        version=None,
        label=None,
        timeout=60.0,
        retries=4,
        max_message_bytes=2**30,
        tls=None,
        token=None,
    ):
        self._channel = Channel(
            address, model, version, label, timeout, retries, max_message_bytes, tls, token
        )
        self.address, self.model, self.version, self.label = address, model, version, label
        self.timeout, self.retries, self.max_message_bytes = timeout, retries, max_message_bytes

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
        self._channel.name(request.model_spec)
        answer = self._channel.call(self._channel.models.GetModelStatus, request)
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
        return {
            name: {"inputs": _tensors(item.inputs), "outputs": _tensors(item.outputs)}
            for name, item in self._channel.signatures().items()
        }

    def describe(self):
        """Model card of the version that answers: labels, modalities, spacing, patch, plan.

        Raises:
            CodedError: KUG-S01 to KUG-S04; KUG-S02 for a model that this package did not export.
        """
        return self._describe()[0]

    def predict(self, inputs, signature="serving_default", outputs=()):
        """Runs one signature in one request.

        Args:
            inputs: Name -> array, or one array, which is then `image`. Types are sent as they are.
            signature: Name of the signature.
            outputs: Names of the outputs wanted; none means all.

        Returns:
            Output name -> array; strings are object arrays of bytes.

        Raises:
            CodedError: KUG-S01 to KUG-S04.
        """
        return self._predict(_named(inputs), signature, outputs, self.version)[0]

    def predict_batches(self, inputs, signature="serving_default", outputs=(), batch_size=None):
        """Runs one signature on many examples: as many requests as `max_message_bytes` asks for.

        All are answered by one version, and put together again in their order.

        Args:
            inputs: As in `predict`, with the examples on the first axis of each.
            signature: Name of the signature.
            outputs: Names of the outputs wanted; none means all.
            batch_size: Most examples in a request; None: as many as fit.

        Returns:
            Output name -> array with all examples.

        Raises:
            CodedError: KUG-S01 to KUG-S04; KUG-S03 where not even one example fits.
            ValueError: For inputs of different lengths.
        """
        inputs = {name: _array(value) for name, value in _named(inputs).items()}
        for last in (False, True):
            try:
                return self.batches(inputs, signature, outputs, self.version, batch_size)
            except CodedError as error:
                if last or error.code != "KUG-S02" or self.version is not None:
                    raise

    def segment(
        self,
        source,
        modality=None,
        output=None,
        *,
        spacing=None,
        batch_size=4,
        channel=None,
        via="auto",
        progress=None,
    ):
        """Segments one scan of any kind; the label map lies on the scan's own grid.

        The header of a NIfTI result names model and version.

        Args:
            source: Path of a scan, nibabel image, or array; see `inference.segment`.
            modality: Name of the modality; None where it is not known.
            output: Path that receives the label map.
            spacing: mm per voxel of each axis of an array.
            batch_size: Windows per request.
            channel: Channel to take of a file that holds several.
            via: "file": the voxels travel once, as a NIfTI file, and the server does all of it
                (`segment_nifti`). "windows": geometry, windows and blending run here, as in local
                inference, and the network on the server, on one version from the first window to
                the last. "auto": the file, where the model can and the message is not too large.
            progress: Called with what is done and what there is: windows, or the one file.

        Returns:
            The same kind as `source`, or `output`; see `inference.segment`.

        Raises:
            CodedError: KUG-S01 to KUG-S04 for the server, KUG-T03 for an unknown modality, KUG-D01
                to KUG-D12 for the scan.
        """
        from keras_unigan.serving import scans  # nibabel, SciPy: not needed to ask for a status

        if via not in WAYS:
            raise ValueError(f"Expected via to be one of {WAYS}, got {via!r}.")
        return self.on_one_version(
            lambda card, ask: scans.segment(
                self, card, ask, source, modality, output, spacing, batch_size, channel, via,
                progress,
            )
        )  # fmt: skip

    def translate(self, source, target, modality=None, output=None, *, spacing=None, progress=None):
        """Makes the image that another modality would show, on the scan's own grid.

        Slices (volumes, of a 3-D network) go through the signature `translate`, each normalised by
        its own statistics; `translation.translate` on this machine takes those of the volume. The
        result is marked SYNTHETIC, with a `.json` beside a file.

        Args:
            source: Path of a scan, nibabel image, or array; see `translation.translate`.
            target: Modality to translate to.
            modality: Modality of the scan; None where it is not known.
            output: Path that receives the image as `.nii` or `.nii.gz`.
            spacing: mm per voxel of each axis of an array.
            progress: Called with the slices done and their number.

        Returns:
            float32 intensities of the target modality; the same kind as `source`, or `output`.

        Raises:
            CodedError: KUG-S01 to KUG-S04 for the server, KUG-T03 for an unknown modality, KUG-T04
                for a model that does not translate, KUG-D01 to KUG-D12 for the scan.
        """
        from keras_unigan.serving import scans

        return self.on_one_version(
            lambda card, ask: scans.translate(
                self, card, ask, source, target, modality, output, spacing, progress
            )
        )

    def on_one_version(self, work):
        """Does some work that takes several requests, all of them on one version of the model.

        Args:
            work: Function of the model card and of a `predict` as in `inference.segment_volume`,
                which also has the number of its `version`. It is called again where its version
                was replaced meanwhile.

        Returns:
            What `work` returns.

        Raises:
            CodedError: KUG-S01 to KUG-S04, and those of `work`.
        """
        for last in (False, True):
            card, version = self._describe()
            try:
                return work(card, _Ask(self, version, card))
            except CodedError as error:
                # The version was replaced while its windows were asked for: start again on the new.
                if last or error.code != "KUG-S02" or self.version is not None:
                    raise

    def whole(self, inputs, signature, output, version):
        """One output of a request that stands for many, with the time that this may take.

        Args:
            inputs: Name -> array.
            signature: Name of the signature.
            output: Name of the output.
            version: Version that must answer.

        Raises:
            CodedError: KUG-S01 to KUG-S04.
        """
        timeout = _WHOLE_FILE * self.timeout
        return self._predict(inputs, signature, [output], version, timeout)[0][output]

    def _describe(self):
        """Model card and the version that gave it."""
        request = {"request": np.zeros(1, np.int64)}
        answer, version = self._predict(request, "describe", ["model_card"], self.version)
        return json.loads(answer["model_card"][0]), version

    def batches(self, inputs, signature, outputs, version, batch_size=None, row_bytes=0):
        """As `predict_batches`, from one version that is not replaced by another.

        Args:
            inputs: Name -> array.
            signature: Name of the signature.
            outputs: Names of the outputs wanted; none means all.
            version: Its number; None takes that of the first answer for the rest.
            batch_size: Most examples in a request; None: as many as fit.
            row_bytes: Bytes of one example of the answer, where they are known before.

        Raises:
            CodedError: KUG-S01 to KUG-S04; KUG-S02 when the version is gone.
            ValueError: For inputs of different lengths.
        """
        counts = {len(array) for array in inputs.values()}
        if len(counts) != 1:
            raise ValueError(f"Expected inputs of one length, got {sorted(counts)}.")
        (count,) = counts
        sent = sum(map(_bytes, inputs.values())) / max(count, 1)
        parts, at = [], 0
        while at < count or not parts:
            rows = self._channel.rows(max(sent, row_bytes))
            part = {k: v[at : at + min(rows, batch_size or rows)] for k, v in inputs.items()}
            size = len(next(iter(part.values())))
            answer, version = self._predict(part, signature, outputs, version)
            if any(array.ndim < 1 or len(array) != size for array in answer.values()):
                raise CodedError(
                    "KUG-S04",
                    f"{self.address} {self.model}",
                    f"an answer of {signature!r} that has not one row for each example",
                    f"{size} rows",
                )
            parts.append(answer)
            at += size
            row_bytes = max(row_bytes, sum(map(_bytes, answer.values())) / max(size, 1))
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _predict(self, inputs, signature, outputs, version, timeout=None):
        request = wire.predict_pb2.PredictRequest()
        self._channel.name(request.model_spec, version)
        request.model_spec.signature_name = signature
        request.output_filter.extend(outputs)
        for name, value in inputs.items():
            wire.fill(request.inputs[name], _array(value), tensor_content=True)
        answer = self._channel.call(self._channel.prediction.Predict, request, timeout)
        arrays = {name: wire.to_array(proto, name) for name, proto in answer.outputs.items()}
        return arrays, answer.model_spec.version.value


class _Ask:
    """`predict` of `inference.segment_volume`: probabilities of raw patches from one version."""

    def __init__(self, client, version, card):
        self._client, self.version = client, version
        self._outputs = len(card["labels"]["names"])

    def __call__(self, patches, modality, statistics):
        rows = np.asarray(statistics, np.float32)
        count = len(patches)
        inputs = {
            "image": np.asarray(patches, np.float32),
            "modality": names(modality, count),
            "statistics": np.broadcast_to(rows, (count, *rows.shape)),
        }
        answered = 4 * self._outputs * math.prod(patches.shape[1:-1])
        return self._client.batches(
            inputs, "segment", ["probabilities"], self.version, row_bytes=answered
        )["probabilities"]


def names(name, count):
    """A name, or "" for None, `count` times: an object array, as NumPy's bytes drop zeros."""
    array = np.empty(count, object)
    array[:] = (name or "").encode()
    return array


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


def _named(inputs):
    return inputs if isinstance(inputs, dict) else {"image": inputs}


def _array(value):
    """Array of an input; NumPy's own bytes type would drop trailing zero bytes."""
    if isinstance(value, np.ndarray):
        return value
    array = np.asarray(value)
    return np.asarray(value, object) if array.dtype.kind in "SU" else array


def _bytes(array):
    """Bytes of an array in a message."""
    if array.dtype.kind == "O":
        return sum(len(value) + 8 for value in array.ravel().tolist())
    return array.nbytes
