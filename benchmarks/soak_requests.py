"""What `soak.py` asks: good requests with the answers that each version owes, and bad ones.

Nothing is tried again, so that no failure hides behind a second try.
"""

import json
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import nibabel
import numpy as np

from keras_unigan import config, inference
from keras_unigan.errors import CodedError
from keras_unigan.serving import wire
from keras_unigan.serving.client import Client

MODEL = "soak"
SIDES = ((16, 16), (23, 17), (8, 40))
SCAN = (18, 16, 3)
GOOD = {
    "predict": 30,
    "segment_patch": 15,
    "segment_scan": 4,
    "segment_file": 4,
    "metadata": 6,
    "status": 6,
    "describe": 5,
    "rest_row": 10,
    "rest_column": 10,
}
BAD = {
    "wrong_rank": 2,
    "wrong_type": 2,
    "cut_tensor": 1,
    "no_signature": 1,
    "no_model": 1,
    "rest_text": 1,
    "rest_string": 1,
    "rest_path": 1,
}


class Answers:
    """What a version must answer, from the SavedModel itself.

    Args:
        folder: SavedModel with a model card, 2-D, of the modalities ct and t1.
    """

    def __init__(self, folder):
        import tensorflow as tf

        model = tf.saved_model.load(str(folder))
        self._model, segment = model, model.signatures["segment"]

        def ask(patches, modality, rows):
            count = len(patches)
            return segment(
                image=tf.constant(patches, tf.float32),
                modality=tf.constant([modality or ""] * count),
                statistics=tf.constant(np.tile(np.float32(rows), (count, 1))),
            )["probabilities"].numpy()

        card = config.read_json(Path(folder) / "assets.extra" / "model_card.json")
        plan = config.Plan.from_dict(card["plan"], str(folder))
        whole = model.signatures["serving_default"]
        self.predict = [whole(image=tf.constant(i))["probabilities"].numpy() for i in IMAGES]
        self.patch = [ask(i, "ct", STATISTICS) for i in IMAGES]
        self.scan = inference.segment(SOURCE, plan, ask, "t1").get_fdata()


_draw = np.random.default_rng(0)
IMAGES = [_draw.uniform(0, 300, (2, *sides, 1)).astype(np.float32) for sides in SIDES]
STATISTICS = np.float32([150, 80, 2, 298])
SOURCE = nibabel.Nifti1Image(
    _draw.integers(0, 300, SCAN).astype(np.int16), np.diag([-1.2, 1.0, 3.0, 1.0])
)


class Asker:
    """One client: its own connections, no repeated tries.

    Args:
        address: gRPC address.
        url: REST base.
        answers: Version -> `Answers`, filled as versions are pushed.
        pushing: Lock that is held until the answers of a new version are there.

    Attributes:
        versions: Of the answers that said their version.
    """

    def __init__(self, address, url, answers, pushing):
        self.client = Client(address, MODEL, retries=0, timeout=60)
        self.url, self.answers = f"{url}/v1/models/{MODEL}", answers
        self._pushing, self.versions = pushing, []

    def predict_request(self, signature, index, **spec):
        """A PredictRequest of one of the images."""
        request = wire.predict_pb2.PredictRequest(output_filter=["probabilities"])
        request.model_spec.name, request.model_spec.signature_name = MODEL, signature
        inputs = {"image": IMAGES[index]}
        if signature == "segment":
            modality = np.array([b"ct"] * 2, object)
            inputs |= {"modality": modality, "statistics": np.tile(STATISTICS, (2, 1))}
        for name, value in (inputs | spec).items():
            wire.fill(request.inputs[name], value, tensor_content=True)
        return request

    def send(self, request):
        """Answer to a PredictRequest, by a plain stub."""
        return self.client._channel.prediction.Predict(request, timeout=60)

    def rest(self, body, path=":predict"):
        """Parsed answer of REST; `urllib.error.HTTPError` for a refusal."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        with urllib.request.urlopen(f"{self.url}{path}", data, timeout=60) as answer:
            return json.load(answer)

    def ask(self, kind, index):
        """Sends one request; returns what is wrong with the answer, or None."""
        try:
            return getattr(self, f"_{kind}")(index)
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
        except (CodedError, OSError, KeyError, ValueError) as error:
            return f"{type(error).__name__}: {error}"

    def _compare(self, found, version, wanted):
        if version not in self.answers:
            with self._pushing:
                if version not in self.answers:
                    return f"answered by version {version}"
        self.versions.append(version)
        difference = np.abs(np.asarray(found) - wanted(self.answers[version])).max()
        return None if difference <= 1e-5 else f"version {version} differs by {difference:g}"

    def _tensor(self, signature, index, wanted):
        answer = self.send(self.predict_request(signature, index))
        found = wire.to_array(answer.outputs["probabilities"], "probabilities")
        return self._compare(found, answer.model_spec.version.value, wanted)

    def _predict(self, index):
        return self._tensor("serving_default", index, lambda a: a.predict[index])

    def _segment_patch(self, index):
        return self._tensor("segment", index, lambda a: a.patch[index])

    def _scan(self, via):
        found = self.client.segment(SOURCE, "t1", via=via)
        said = bytes(found.header["descrip"].item()).decode()
        version = int(said.removeprefix("keras_unigan: version ").split()[0])
        return self._compare(found.get_fdata(), version, lambda a: a.scan)

    def _segment_scan(self, index):
        return self._scan("windows")

    def _segment_file(self, index):
        return self._scan("file")

    def _metadata(self, index):
        return None if "serving_default" in self.client.metadata() else "no serving_default"

    def _status(self, index):
        states = [v["state"] for v in self.client.status()]
        return None if "AVAILABLE" in states else f"states {states}"

    def _describe(self, index):
        return None if "plan" in self.client.describe() else "no plan in the card"

    def _of_any(self, found):
        """REST does not say which version answered."""
        with self._pushing:
            answers = list(self.answers.values())
        wanted = [a.predict[0] for a in answers]
        best = min(np.abs(np.asarray(found, np.float32) - w).max() for w in wanted)
        return None if best <= 1e-5 else f"differs by {best:g} from the nearest version"

    def _rest_row(self, index):
        answer = self.rest({"instances": IMAGES[0].tolist()})
        return self._of_any([row["probabilities"] for row in answer["predictions"]])

    def _rest_column(self, index):
        answer = self.rest({"inputs": {"image": IMAGES[0].tolist()}})
        return self._of_any(answer["outputs"]["probabilities"])

    def _refused(self, code, request):
        try:
            self.send(request)
        except grpc.RpcError as error:
            return None if error.code().name == code else f"{error.code().name} for {code}"
        return f"answered what is {code}"

    def _wrong_rank(self, index):
        bad = self.predict_request("serving_default", index, image=IMAGES[index][0])
        return self._refused("INVALID_ARGUMENT", bad)

    def _wrong_type(self, index):
        image = IMAGES[index].astype(np.float64)
        bad = self.predict_request("serving_default", index, image=image)
        return self._refused("INVALID_ARGUMENT", bad)

    def _cut_tensor(self, index):
        bad = self.predict_request("serving_default", index)
        bad.inputs["image"].tensor_content = bad.inputs["image"].tensor_content[:-3]
        return self._refused("INVALID_ARGUMENT", bad)

    def _no_signature(self, index):
        bad = self.predict_request("segment", index)
        bad.model_spec.signature_name = "paint"
        return self._refused("FAILED_PRECONDITION", bad)

    def _no_model(self, index):
        bad = self.predict_request("segment", index)
        bad.model_spec.name = "other"
        return self._refused("NOT_FOUND", bad)

    def _rest_refused(self, code, body, path=":predict"):
        try:
            self.rest(body, path)
        except urllib.error.HTTPError as error:
            with error:
                good = error.code == code and set(json.load(error)) == {"error"}
                return None if good else f"{error.code} for {code}"
        return f"answered what is {code}"

    def _rest_text(self, index):
        return self._rest_refused(400, b'{"instances": [[1.0, ')

    def _rest_string(self, index):
        return self._rest_refused(400, {"instances": [[[["a"]]]]})

    def _rest_path(self, index):
        return self._rest_refused(400, {}, ":paint")
