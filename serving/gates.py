"""What a version has to pass before anyone can see it: does a server run it, and run it right?

The model is served by a process of its own and asked over gRPC, as clients will, with plain stubs:
what aborts a server then aborts that one, and is seen. The same checks can ask a server elsewhere.
"""

import contextlib
import dataclasses
import json
import time

import grpc
import numpy as np
import tensorflow as tf

from keras_unigan import export, inference
from keras_unigan.classification import classifying_function
from keras_unigan.config import IGNORE
from keras_unigan.data import nifti, preprocessing
from keras_unigan.data.windows import sliding_window
from keras_unigan.errors import CodedError
from keras_unigan.exporting import operations, signatures
from keras_unigan.serving import blessings, candidate, hostile, wire

TOLERANCE = 1e-5


@dataclasses.dataclass(frozen=True)
class Ceilings:
    """What a server may take.

    Attributes:
        request_seconds: Longest answer to one patch, once warm.
        memory_gib: Most memory of the process; not checked where the system does not say.
    """

    request_seconds: float = 60.0
    memory_gib: float = 16.0


class Target:
    """A model on a server, asked with plain stubs.

    Args:
        address: "host:port" of gRPC.
        model: Name of the model.
        timeout: Seconds that one answer may take.
    """

    def __init__(self, address, model=candidate.MODEL, timeout=candidate.WAIT_SECONDS):
        self.model, self.timeout = model, timeout
        limits = ("grpc.max_receive_message_length", "grpc.max_send_message_length")
        self.channel = grpc.insecure_channel(address, options=[(name, -1) for name in limits])
        self._stub = wire.prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        self._models = wire.model_service_pb2_grpc.ModelServiceStub(self.channel)

    def request(self, signature, inputs):
        """PredictRequest of some arrays."""
        request = wire.predict_pb2.PredictRequest()
        request.model_spec.name = self.model
        request.model_spec.signature_name = signature
        for name, array in inputs.items():
            wire.fill(request.inputs[name], array, tensor_content=True)
        return request

    def send(self, request):
        """Output name -> array; raises `grpc.RpcError`."""
        answer = self._stub.Predict(request, timeout=self.timeout)
        return {name: wire.to_array(proto, name) for name, proto in answer.outputs.items()}

    def predict(self, signature, inputs):
        """Answer to some arrays; see `send`."""
        return self.send(self.request(signature, inputs))

    def wait(self):
        """Waits until a version of the model is available; returns whether one is."""
        request = wire.get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = self.model
        until = time.monotonic() + self.timeout
        while time.monotonic() < until:
            with contextlib.suppress(grpc.RpcError):
                answer = self._models.GetModelStatus(request, timeout=self.timeout)
                if any(version.state == 30 for version in answer.model_version_status):
                    return True
            time.sleep(0.2)
        return False


EDGE_SHARE = 1e-4
"""Share of the voxels of a made label map that may lie between two labels."""


def infra_check(
    folder,
    network,
    plan,
    translator=None,
    classifier=None,
    synthesizer=None,
    *,
    ceilings=None,
    address=None,
    model=None,
):
    """Asks a server for what an export has to answer, and compares it with the network itself.

    Each signature is asked at sizes that the graph never saw; labels must agree wherever the two
    best answers differ by more than the tolerance; requests that do not fit must be refused and
    leave the next one unharmed.

    Args:
        folder: SavedModel folder.
        network: Segmentor that was exported.
        plan: Its plan.
        translator: Network of the signature `translate`, where it is not the segmentor.
        classifier: Network of the signature `classify_modality`.
        synthesizer: Mask generator and renderer of the signature `synthesize`.
        ceilings: `Ceilings`.
        address: gRPC address of a server that serves this folder; None starts one, embedded, in a
            process of its own.
        model: Name of the model there.

    Returns:
        Report: `passed` True, `server`, `checks` (name -> largest difference, or what refused it),
        `load_seconds`, `patch_seconds`, `peak_gib`.

    Raises:
        CodedError: KUG-S05 naming the first check that failed.
    """
    unknown = operations.unknown(folder)
    if unknown:
        known = f"ops that TensorFlow {operations.KNOWN_SINCE} has"
        raise _failed(network, "ops", f"{', '.join(unknown)}", known)
    ceilings = ceilings or Ceilings()
    with contextlib.ExitStack() as stack:
        process, said = None, {"address": address, "seconds": None}
        if address is None:
            process, said = stack.enter_context(candidate.running(folder))
            if "error" in said:
                raise _failed(network, "load", said["error"], "a SavedModel that loads")
        target = Target(said["address"], model or candidate.MODEL)
        stack.callback(target.channel.close)
        report = {
            "server": "embedded" if address is None else address,
            "load_seconds": said["seconds"],
            "checks": {},
        }
        try:
            if not target.wait():
                raise _failed(network, "load", "no available version", "one in time")
            others = (translator, classifier, synthesizer)
            checks = _Checks(target, network, plan, *others, report["checks"])
            checks.compare()
            checks.refuse()
            report["patch_seconds"] = checks.seconds()
        except grpc.RpcError as error:
            died = process is not None and process.poll() is not None
            found = "a server that died" if died else f"{error.code().name}: {error.details()}"
            raise _failed(network, "requests", found, "an answer to every good request") from None
        peak = candidate.peak_bytes(process) if process is not None else None
        report["peak_gib"] = None if peak is None else round(peak / 2**30, 2)
    for name, limit in (
        ("patch_seconds", ceilings.request_seconds),
        ("peak_gib", ceilings.memory_gib),
    ):
        if report[name] is not None and report[name] > limit:
            raise _failed(network, name, f"{report[name]}", f"at most {limit:g}")
    return {"passed": True, **report}


def judge_infra(folder, *networks, **options):
    """Checks a folder and writes the verdict beside it; arguments as of `infra_check`.

    Returns:
        Path of the verdict.

    Raises:
        CodedError: As `infra_check`; `INFRA_NOT_BLESSED` is written first.
    """
    try:
        report = infra_check(folder, *networks, **options)
    except CodedError as error:
        if error.code == "KUG-S05":
            blessings.write(folder, "infra", {"passed": False, "reason": error.found})
        raise
    return blessings.write(folder, "infra", report)


@contextlib.contextmanager
def _eager_on_cpu():
    """Runs the reference op by op on the CPU, as the served graph runs there.

    GPUs choose other kernels, with less precise products, from one graph to the next.
    """
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        with tf.device("/CPU:0"):
            yield
    finally:
        tf.config.run_functions_eagerly(before)


class _Checks:
    """The checks of one model; `found` gets what each of them found."""

    def __init__(self, target, network, plan, translator, classifier, synthesizer, found):
        self.target, self.plan, self.found = target, plan, found
        self.network = export.full_precision(network)
        asked = target.predict("describe", {"request": np.zeros(1, np.int64)})
        self.card = json.loads(asked["model_card"][0])
        self.multiples = tuple(self.card["side_multiples"])
        self.names = list(self.card["signatures"])
        if translator is None and hasattr(network, "translate"):
            translator = self.network
        self.translator = translator and export.full_precision(translator)
        self.classifier = classifier and export.full_precision(classifier)
        own = synthesizer or ()
        self.synthesizer = tuple(export.full_precision(network) for network in own)

    def requests(self, sides=None):
        """Synthetic requests of the model's signatures."""
        return export.example_inputs(self.network, self.plan, sides, self.names)

    def compare(self):
        """Compares the answers of all signatures with the network."""
        dims = self.network.spatial_dims
        patch = self.plan.configuration(dims).patch_size
        odd = tuple(2 * m + 3 for m in self.multiples)
        for sides in (patch, odd, (1,) * dims):
            self._images(self.requests(sides), "x".join(map(str, sides)))
        predictor = inference.Predictor(self.network, self.plan)
        inputs = self.requests()["segment"]
        served = self.target.predict("segment", inputs)
        with _eager_on_cpu():
            local = predictor(inputs["image"], self.plan.modalities[0], inputs["statistics"])
            self._same("segment against local prediction", served, local)
            if "segment_volume" in self.names:
                for sides in (patch, odd):
                    self._volumes(self.requests(sides), predictor, "x".join(map(str, sides)))
            if "translate" in self.names:
                self._translation(self.requests(odd)["translate"])
            if "classify_modality" in self.names:
                self._classification(self.requests(odd)["classify_modality"])
            if "synthesize" in self.names:
                self._synthesis(self.requests()["synthesize"])

    def _images(self, requests, size):
        reference = export.serving_function(self.network, self.plan, self.multiples)
        image, statistics = (requests["segment"][name] for name in ("image", "statistics"))
        for signature, domain, rows in (
            ("serving_default", -1, np.zeros_like(statistics)),
            ("segment", 0, statistics),
        ):
            served = self.target.predict(signature, requests[signature])
            with _eager_on_cpu():
                direct = reference(*map(tf.constant, (image, [domain], rows)))
            self._same(f"{signature} {size}", served, direct["probabilities"].numpy())

    def _volumes(self, requests, predictor, size):
        """Compares `segment_volume`, `segment_nifti` and `serve_examples` with local inference."""
        plan, dims = self.plan, self.network.spatial_dims
        asked = requests["segment_volume"]
        volume = nifti.Volume(asked["volume"][0], np.diag([*asked["spacing"][0], 1.0]))
        options = {"spatial_dims": dims}
        labels, local = inference.segment_volume(
            volume, plan, predictor, plan.modalities[0], **options
        )
        # An index that no label has gets a value that none has either.
        values = np.full(256, IGNORE, np.uint8)
        known = signatures.Model(self.network, plan, None).file_values
        values[: len(known)] = known
        served = self.target.predict("segment_volume", asked)["label_map"][0]
        self._same_labels(f"segment_volume {size}", values[served], labels, local)
        labels, local = inference.segment_volume(volume, plan, predictor, None, **options)
        asked = requests["segment_nifti"]
        served = self.target.predict("segment_nifti", asked)["label_map_nifti_bytes"][0]
        found = nifti.read_bytes(served, "segment_nifti")
        if not np.array_equal(found.affine, nifti.read_bytes(asked["nifti_bytes"][0], "").affine):
            raise self._failed(f"segment_nifti {size}", "another affine", "that of the scan")
        self._same_labels(f"segment_nifti {size}", found.array, labels, local)
        served = self.target.predict("serve_examples", requests["serve_examples"])
        chosen = plan.configuration(dims)
        statistics = preprocessing.statistics(volume.array)
        local = sliding_window(
            volume.array,
            lambda patches: predictor(patches, plan.modalities[0], statistics),
            chosen.patch_size,
            plan.overlap,
            slices=chosen.slices,
        )
        self._same(f"serve_examples {size}", served, local[None])

    def _translation(self, inputs):
        multiples = export.side_multiples(self.translator)
        reference = export.translating_function(self.translator, self.plan, multiples)
        last = len(self.plan.modalities) - 1
        direct = reference(*map(tf.constant, (inputs["image"], [0], [last]))).numpy()
        served = self.target.predict("translate", inputs)["translated"]
        # Intensities: the tolerance counts in parts of their range.
        self._close("translate", served / np.ptp(direct), direct / np.ptp(direct))

    def _classification(self, inputs):
        if self.classifier is None:
            raise self._failed(
                "classify_modality", "no domain head to compare with", "that of the run"
            )
        direct = classifying_function(self.classifier, self.plan)(inputs["image"]).numpy()
        served = self.target.predict("classify_modality", inputs)
        self._close("classify_modality", served["scores"], direct)
        likeliest = self.plan.modalities[served["scores"][0].argmax()]
        if served["modality"][0] != likeliest.encode():
            raise self._failed("classify_modality", "another name", f"{likeliest!r}")

    def _synthesis(self, inputs):
        if not self.synthesizer:
            raise self._failed("synthesize", "no synthesiser to compare with", "that of the run")
        direct = export.synthesizing_function(self.synthesizer, self.plan)
        direct = {k: v.numpy() for k, v in direct(tf.constant(inputs["seed"]), [0]).items()}
        served = self.target.predict("synthesize", inputs)
        # A voxel between two labels may be either, and its neighbours are painted to match.
        other = np.mean(served["label_map"] != direct["label_map"])
        if other > EDGE_SHARE:
            raise self._failed("synthesize", f"{other:.1%} other labels", "the same label map")
        near = np.abs(served["image"] - direct["image"]) / max(np.ptp(direct["image"]), 1e-6)
        usual = np.float32(np.quantile(near, 1 - 100 * EDGE_SHARE))
        self._close("synthesize", usual, np.float32(0))

    def refuse(self):
        """Sends what does not fit; each must be refused, and a good request answered after it."""
        # Of a voxel or two all would be background, which no spacing makes too large.
        good = self.requests(tuple(max(16, multiple) for multiple in self.multiples))
        expected = self.target.predict("segment", good["segment"])["probabilities"]
        for name, send in hostile.requests(self.target, good):
            try:
                send()
            except grpc.RpcError as error:
                if error.code() == grpc.StatusCode.UNAVAILABLE:
                    raise self._failed(name, "a server that died", "a refusal") from None
                self.found[name] = f"refused: {error.code().name}"
            else:
                raise self._failed(name, "an answer", "a refusal")
        after = self.target.predict("segment", good["segment"])["probabilities"]
        if not np.allclose(after, expected, rtol=0, atol=TOLERANCE):
            raise self._failed("after refusals", "another answer", "the same answer as before")

    def seconds(self):
        """Seconds of one patch."""
        patch = self.requests()["segment"]
        started = time.perf_counter()
        self.target.predict("segment", patch)
        return round(time.perf_counter() - started, 3)

    def _same(self, name, served, probabilities):
        """Compares an answer with the probabilities of the network."""
        self._close(name, served["probabilities"], probabilities)
        labels = _painted(probabilities, self.plan.labels.overlapping)
        self._same_labels(name, served["label_map"], labels, probabilities)

    def _close(self, name, found, wanted):
        if found.shape != wanted.shape or found.dtype != np.float32:
            raise self._failed(
                name, f"{found.dtype} {found.shape}", f"float32 {wanted.shape}"
            )  # fmt: skip
        difference = float(np.abs(found - wanted).max())
        if not difference <= TOLERANCE:
            raise self._failed(name, f"answers that differ by {difference:.2g}", f"{TOLERANCE:g}")
        self.found[name] = difference

    def _same_labels(self, name, found, wanted, probabilities):
        if self.plan.labels.overlapping:
            sure = (np.abs(probabilities - 0.5) > TOLERANCE).all(-1)
        else:
            best = np.sort(probabilities, -1)
            sure = best[..., -1] - best[..., -2] > TOLERANCE
        if found.shape != wanted.shape:
            raise self._failed(name, f"labels of shape {found.shape}", f"{wanted.shape}")
        wrong = int((sure & (found != wanted)).sum())
        if wrong:
            raise self._failed(name, f"{wrong} voxels with another label", "the same labels")
        self.found.setdefault(name, 0.0)

    def _failed(self, check, found, expected):
        return _failed(self.network, check, found, expected)


def _painted(probabilities, overlapping):
    if not overlapping:
        return np.argmax(probabilities, -1)
    label_map = np.zeros(probabilities.shape[:-1], int)
    for index in range(probabilities.shape[-1]):
        label_map[probabilities[..., index] > 0.5] = index + 1
    return label_map


def _failed(network, check, found, expected):
    return CodedError(
        "KUG-S05",
        network.name,
        f"{check}: {found}",
        expected,
        "The version was not published.",
        "export again; if it stays, report the network and the versions",
    )
