"""What Beam's `RunInference` runs: an exported model, a served one, or the network of a run.

Beam's own handler for TensorFlow loads through `tf.keras`, which refuses SavedModels, and needs
`tensorflow_hub`; nor does any of its handlers know volumes. A batch here is one volume: its windows
are what the network gets in batches, so memory does not grow with Beam's idea of a batch.
"""

import dataclasses
import logging
import os
import re
import tempfile
import time

import numpy as np
from apache_beam.ml.inference.base import ModelHandler, PredictionResult

from keras_unigan import inference, prediction
from keras_unigan.config import Plan
from keras_unigan.data import nifti
from keras_unigan.errors import CodedError
from keras_unigan.pipelines import files

CARD = ("assets.extra", "model_card.json")
_GRAPH = "saved_model.pb"
_SERVED = re.compile(
    r"(?P<address>(\[[0-9a-fA-F:.]+\]|[^\s:/]+):\d{1,5})/(?P<name>[^\s/]+)(/(?P<version>\d+))?"
)

# Beam imports the measure of memory together with a package for PyTorch, and without that says on
# every worker that the platform has no such measure.
logging.getLogger().addFilter(
    lambda record: "Resource module is not available" not in str(record.msg)
)


@dataclasses.dataclass(frozen=True)
class Model:
    """Where a model is.

    Attributes:
        kind: "exported" (a SavedModel folder), "served" or "run".
        where: Folder, local or a URI; of a served one the address.
        name: Name of a served model.
        version: Version of a served model; None is the newest available.
    """

    kind: str
    where: str
    name: str | None = None
    version: int | None = None

    @classmethod
    def find(cls, text):
        """The model that a text names.

        Args:
            text: SavedModel folder, folder of its versions (the newest counts), run folder, each
                local or a URI; or `HOST:PORT/NAME[/VERSION]` of a server.

        Raises:
            CodedError: KUG-T04 when there is none, KUG-E01 for a URI that Beam does not know.
        """
        folder = files.absolute(text)
        if files.exists(files.join(folder, _GRAPH)):
            return cls("exported", folder)
        versions = _versions(folder)
        if versions:
            return cls("exported", files.join(folder, str(max(versions))))
        if files.exists(files.join(folder, "network.keras")):
            return cls("run", folder)
        served = _SERVED.fullmatch(str(text))
        if served:
            version = served["version"]
            return cls("served", served["address"], served["name"], version and int(version))
        raise CodedError(
            "KUG-T04",
            text,
            "no saved_model.pb, no versions of one and no network.keras",
            "an exported model, a run folder, or HOST:PORT/NAME of a server",
            fix="unigan export RUN -o MODELS",
        )

    def plan(self):
        """`config.Plan` of the model; loads neither TensorFlow nor weights.

        Raises:
            CodedError: KUG-D01 for a SavedModel without our card, KUG-S01 to KUG-S04.
        """
        if self.kind == "served":
            with self._client() as client:
                return Plan.from_dict(client.describe()["plan"], f"{self.where} {self.name}")
        if self.kind == "run":
            path = files.join(self.where, "plan.json")
            return Plan.from_dict(files.read_json(path), path)
        path = files.join(self.where, *CARD)
        return Plan.from_dict(files.read_json(path)["plan"], path)

    def open(self, batch_size=4):
        """Loads the model, once a worker.

        Args:
            batch_size: Windows that the network gets at once.

        Returns:
            Function `(volume, modality, where) -> (label_map, reading)`; see
            `inference.segment_volume`. The reading is an `alarm.Reading` of a run that has an
            alarm, which no exported or served model has; else None.
        """
        if self.kind == "served":
            return _served(self._client(), batch_size)
        with tempfile.TemporaryDirectory() as temporary:
            remote = files.is_remote(self.where)
            folder = _fetch(self.where, temporary) if remote else self.where
            return {"exported": _exported, "run": _run}[self.kind](folder, batch_size)

    def _client(self):
        from keras_unigan.serving.client import Client

        return Client(self.where, self.name, version=self.version)


def _versions(folder):
    """Numbers of the versions in a model folder."""
    names = [name.split("/") for name in files.listing(folder)]
    return [int(n[0]) for n in names if len(n) == 2 and n[0].isdecimal() and n[1] == _GRAPH]


def _fetch(where, folder):
    """Copies a small tree from an object store; TensorFlow knows fewer of them than Beam."""
    for name, path in files.listing(where).items():
        local = os.path.join(folder, *name.split("/"))
        os.makedirs(os.path.dirname(local), exist_ok=True)
        with open(local, "wb") as file:
            file.write(files.read_bytes(path))
    return folder


def _exported(folder, batch_size):
    import tensorflow as tf

    card = files.read_json(files.join(folder, *CARD))
    plan, dims = Plan.from_dict(card["plan"], folder), card["spatial_dims"]
    model = tf.saved_model.load(folder)
    function = model.signatures["segment"]

    def ask(patches, modality, statistics):
        count = len(patches)
        answer = function(
            image=tf.constant(patches, tf.float32),
            modality=tf.constant([modality or ""] * count),
            statistics=tf.constant(np.stack([np.asarray(statistics, np.float32)] * count)),
        )
        return answer["probabilities"].numpy()

    def segment(volume, modality, where):
        settings = plan, ask, modality, dims, batch_size, where
        return inference.segment_volume(volume, *settings)[0], None

    # The signature refers to the model's variables but does not keep them alive.
    segment.model = model
    return segment


def _run(folder, batch_size):
    ensemble = prediction.load(folder)

    def segment(volume, modality, where):
        found = ensemble.segment_volume(volume, modality, batch_size, where)
        return found.label_map, found.reading

    return segment


def _served(client, batch_size):
    def segment(volume, modality, where):
        def work(card, ask):
            plan, dims = Plan.from_dict(card["plan"], client.model), card["spatial_dims"]
            return inference.segment_volume(volume, plan, ask, modality, dims, batch_size, where)[0]

        return client.on_one_version(work), None

    return segment


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A scan in memory, or why it is not.

    Attributes:
        scan: Has an `id` and a `modality`.
        volume: `nifti.Volume`, or None.
        seconds: How long reading took.
        error: Arguments of the `CodedError` of a scan that cannot be used. Errors travel with the
            volumes, as not every runner knows several outputs of a step.
    """

    scan: object
    volume: nifti.Volume | None
    seconds: float
    error: tuple | None = None


class SegmentVolumes(ModelHandler):
    """`RunInference` handler: `Loaded` -> label map on the volume's own grid.

    The inference of a result is a dict: `seconds` and either `label_map` and `reading` (see
    `Model.open`) or `error` as in `Loaded`.
    Errors of a server or a model end the job: they would hit every volume alike.

    Args:
        model: `Model`.
        batch_size: Windows that the network gets at once.
    """

    def __init__(self, model, batch_size=4):
        super().__init__()
        self.model, self.batch_size = model, batch_size

    def load_model(self):
        """Opens the model; Beam shares it among the threads of a process."""
        return self.model.open(self.batch_size)

    def run_inference(self, batch, model, inference_args=None):
        """One result for each `Loaded`."""
        for loaded in batch:
            scan, start = loaded.scan, time.perf_counter()
            found = {"error": loaded.error}
            if loaded.error is None:
                try:
                    label_map, reading = model(loaded.volume, scan.modality, scan.id)
                    found = {"label_map": label_map, "reading": reading}
                except CodedError as error:
                    if not error.code.startswith("KUG-D"):
                        raise
                    found = {"error": error.args}
            yield PredictionResult(loaded, {**found, "seconds": time.perf_counter() - start})

    def should_skip_batching(self):
        """Beam gets batches of one: windows are batched inside a volume.

        Its own batching keeps the last element of a bundle for the bundle's end, which the Dask
        runner drops.
        """
        return True

    def get_metrics_namespace(self):
        """Name under which Beam counts inferences and their latency."""
        return "keras_unigan"
