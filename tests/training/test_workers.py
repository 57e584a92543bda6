"""Two processes of one machine train together, as a cluster does."""

import json
import os
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf  # noqa: F401  (at the top: see conftest.pytest_collection_finish)

from keras_unigan import training
from keras_unigan.errors import CodedError
from keras_unigan.models.supervised import SupervisedModel
from keras_unigan.training.devices import Workers, strategy_for

# The game keeps the weights that each worker ends with; the folder has those of the chief only.
TRAIN = """
import sys
import keras
import numpy as np
from keras_unigan import training
from keras_unigan.config import Experiment
from keras_unigan.models.supervised import SupervisedModel
from keras_unigan.training.session import Session
SupervisedModel.default_optimizers = lambda *_: {"segmentor": keras.optimizers.SGD(0.1)}
close = Session.close
def kept(self):
    np.savez(sys.argv[2], *self.checkpoint.model.get_weights())
    close(self)
Session.close = kept
training.run(Experiment.load(sys.argv[1]), quiet=True)
"""


def free_ports(count):
    """Ports of this machine that nobody listens to."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("localhost", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def cluster(index, ports=(1, 2)):
    """`TF_CONFIG` of one of several workers."""
    addresses = [f"localhost:{port}" for port in ports]
    return json.dumps(
        {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
    )


def rows(folder):
    """Columns of the history but the seconds."""
    lines = (folder / "history.csv").read_text().splitlines()
    names = lines[0].split(",")
    table = np.array([[float(value or "nan") for value in line.split(",")] for line in lines[1:]])
    return {n: table[:, i] for i, n in enumerate(names) if "seconds" not in n}


def test_two_workers_train_as_one_process_does(experiment, tmp_path, monkeypatch):
    # Adam would blow up rounding where gradients are 0.
    monkeypatch.setattr(
        SupervisedModel,
        "default_optimizers",
        lambda *_: {"segmentor": keras.optimizers.SGD(0.1)},
    )
    alone = experiment(tmp_path / "one")
    training.run(alone, quiet=True)
    experiment(tmp_path / "two").save(tmp_path / "experiment.json")
    ports, processes = free_ports(2), []
    for index in range(2):
        settings = {"TF_CONFIG": cluster(index, ports), "CUDA_VISIBLE_DEVICES": "-1"}
        given = [str(tmp_path / "experiment.json"), str(tmp_path / f"weights_{index}.npz")]
        run = [sys.executable, "-c", TRAIN, *given]
        processes.append(subprocess.Popen(run, env={**os.environ, **settings}))
    assert [process.wait(300) for process in processes] == [0, 0]
    first, second = (np.load(tmp_path / f"weights_{i}.npz") for i in range(2))
    assert first.files == second.files
    for name in first.files:
        np.testing.assert_array_equal(first[name], second[name])
    two, one = rows(tmp_path / "two"), rows(tmp_path / "one")
    assert two.keys() == one.keys()
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-3, atol=1e-5, err_msg=name)
    networks = (training.load_model(tmp_path / r).get_weights() for r in ("one", "two"))
    for a, b in zip(*networks, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert len(json.loads((tmp_path / "two" / "run.json").read_text())) == 1


def test_a_machine_alone_needs_no_cluster(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert Workers.read() == Workers(1, True)
    for text in ("", "{}", '{"task": {"type": "worker", "index": 0}}'):
        monkeypatch.setenv("TF_CONFIG", text)
        assert Workers.read() == Workers(1, True)


def test_the_first_worker_or_a_chief_writes(monkeypatch):
    for index in range(2):
        monkeypatch.setenv("TF_CONFIG", cluster(index))
        assert Workers.read() == Workers(2, index == 0)
    tasks = {"chief": ["a:1"], "worker": ["b:1", "c:1"]}
    config = {"cluster": tasks, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    assert Workers.read() == Workers(3, False)


@pytest.mark.parametrize("text", ["{", "[]", cluster(2), '{"cluster": {"worker": ["a:1"]}}'])
def test_a_broken_cluster_is_refused(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(CodedError, match=r"KUG-T02 TF_CONFIG: found .*a task in it"):
        Workers.read()


def test_what_workers_cannot_have(experiment, tmp_path, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", cluster(0))
    with pytest.raises(CodedError, match=r"KUG-T02 minutes: found 1\.0 minutes for 2 workers"):
        training.run(experiment(tmp_path / "run", epochs=None, minutes=1.0))
    with pytest.raises(CodedError, match=r"KUG-T02 replicas: found 3 replicas and a TF_CONFIG"):
        strategy_for(3)
    assert not (tmp_path / "run").exists()
