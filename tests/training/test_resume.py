"""A run whose process is killed ends as if nothing had been."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
import tensorflow as tf  # noqa: F401  (at the top: see conftest.pytest_collection_finish)

from keras_unigan import callbacks, training
from keras_unigan.config import Experiment

TRAIN = """
import sys
from keras_unigan import training
from keras_unigan.config import Experiment
training.run(Experiment.load(sys.argv[1]), resume=sys.argv[2] == "resume", quiet=True)
"""


def start(experiment, folder, resume=False):
    """A process that trains."""
    experiment.save(folder / "experiment.json")
    given = [str(folder / "experiment.json"), "resume" if resume else "new"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    return subprocess.Popen([sys.executable, "-c", TRAIN, *given], env=environment)


def kill_at(process, run, step, delay=0.0):
    """Kills a process, some time after its run has saved a step; returns the step saved last."""
    state = run / "checkpoints" / "state.json"
    until = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < until:
        if state.is_file() and json.loads(state.read_text())["steps"] >= step:
            time.sleep(delay)
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return callbacks.Checkpoint.read(run / "checkpoints").steps


def rows(run):
    """Rows of the history without the seconds."""
    with (run / "history.csv").open(newline="") as file:
        return [
            {k: v for k, v in row.items() if "seconds" not in k} for row in csv.DictReader(file)
        ]


def arrays(path):
    """All arrays of an HDF5 file."""
    found = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: found.update({name: item[()]} if hasattr(item, "shape") else {})
        )
    return found


def assert_same_end(run, other):
    """Equal traces, and equal weights, optimizers and averages, to the bit."""
    assert rows(run) == rows(other)
    first, second = (callbacks.Checkpoint.read(r / "checkpoints") for r in (run, other))
    assert (first.steps, first.best, first.finished) == (second.steps, second.best, True)
    one, two = (
        arrays(r / "checkpoints" / state.weights) for r, state in ((run, first), (other, second))
    )
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)
    for a, b in zip(*(training.load_model(r).get_weights() for r in (run, other)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_killed_process_goes_on_as_if_nothing_had_been(experiment, tmp_path):
    often = {"checkpoint_steps": 1}
    training.run(experiment(tmp_path / "whole", often), quiet=True)
    killed = experiment(tmp_path / "run", often)
    steps = kill_at(start(killed, tmp_path), tmp_path / "run", 4)
    assert 4 <= steps < 6
    summary = training.run(killed, resume=True, quiet=True)
    assert (summary["epochs"], summary["steps"]) == (2, 6)
    assert_same_end(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "network"),
    [
        ("uagan", {"filters": 4, "levels": 2}),
        ("unigan", {"filters": 4, "strides": [[2, 2], [2, 2]]}),
        ("stargan+segan", {"filters": 4}),
        ("cyclegan", {"filters": 4, "blocks": 1}),
    ],
)
def test_many_kills_change_nothing_with_deterministic(experiment, tmp_path, model, network):
    """Dropout, several optimizers and averages; kills also while a checkpoint is written."""
    settings = {"model": model, "network": network, "epochs": 4, "deterministic": True}
    whole = experiment(tmp_path / "whole", {"checkpoint_steps": 2}, **settings)
    assert start(whole, tmp_path).wait() == 0
    killed = experiment(tmp_path / "run", {"checkpoint_steps": 2}, **settings)
    random = np.random.default_rng(len(model))
    done = kill_at(start(killed, tmp_path), tmp_path / "run", 1, random.uniform(0, 0.3))
    for _ in range(3):
        process = start(killed, tmp_path, resume=True)
        done = kill_at(process, tmp_path / "run", done + 1, random.uniform(0, 0.3))
    state = callbacks.Checkpoint.read(tmp_path / "run" / "checkpoints")
    if not state.finished:
        assert start(killed, tmp_path, resume=True).wait() == 0
    assert Experiment.load(tmp_path / "run" / "config.json").deterministic
    assert_same_end(tmp_path / "run", tmp_path / "whole")
