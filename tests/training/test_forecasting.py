"""What a run takes before it is run: memory from its graph, the rest from a probe."""

import dataclasses
import json
import re
import shutil
import subprocess

import pytest
import tensorflow as tf

from keras_unigan import cli, training
from keras_unigan.config import Experiment
from keras_unigan.data import datasets
from keras_unigan.errors import CodedError
from keras_unigan.training import fitting, forecasting, probing

FOUND = {
    **{"start": 6.0, "build": 2.0, "first_step": 5.0, "step": 0.5, "first_tile": 2.0},
    **{"tile": 0.1, "tiles": 30},
    **{"epoch_end": 1.0, "picture": 3.0, "save": 0.7, "memory": 10**9, "disk": 10**8},
    **{"picture_bytes": 10**6, "steps": 20, "batch_size": 4, "others": 1.25},
    "core": {
        **{"start": 5.0, "build": 3.0, "first_step": 7.0, "step": 0.9, "first_tile": 3.0},
        **{"tile": 0.2, "epoch_end": 1.5, "picture": 2.0, "save": 0.5},
    },
}


def make(**changes):
    train = changes.pop("train", {})
    experiment = Experiment("shards", "run", **{"steps": 100, **changes})
    return dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, **train))


def test_a_run_from_its_probe_by_hand():
    found = forecasting.extrapolate(make(steps=100, train={"steps_per_epoch": 20}), FOUND)
    # 30 tiles are more than 20 steps: every second epoch is validated, the last one too.
    assert (found["epochs"], found["validations"]) == (5, 3)
    steps, tiles = 5 + 99 * 0.5, 3 * 30 * 0.1 + 1.9
    assert found["seconds"] == pytest.approx(8 + steps + tiles + 5 * 1 + 5 * 3, abs=0.1)
    # In core-seconds the same sum of what each part took of them.
    core = 5 + 3 + 7 + 99 * 0.9 + 3 + 89 * 0.2 + 5 * 1.5 + 5 * 2
    assert found["core_seconds"] == pytest.approx(core, abs=0.1)
    lines = forecasting.sentences({**found, "probe": FOUND, "probe_seconds": 30})
    assert lines[0].startswith("time: about ")
    assert re.match(r"time: 1\.2 of \d+ cores were busy with other work", lines[1])
    assert lines[2] == "computing: about 142 core-seconds, whatever else is running"
    alone = {**found, "probe": {**FOUND, "others": None}, "probe_seconds": 30}
    assert forecasting.sentences(alone)[1].startswith("computing: ")
    assert found["disk_bytes"] == 10**8 + 4 * 10**6
    assert found["memory_bytes"] == 10**9
    bare = {**FOUND, "tiles": 0, "first_tile": 0.0, "tile": 0.0, "picture_bytes": 0, "picture": 0.0}
    found = forecasting.extrapolate(make(steps=100, train={"steps_per_epoch": 20}), bare)
    assert found["seconds"] == pytest.approx(8 + steps + 5, abs=0.1)
    # One long epoch: checkpoints within it.
    found = forecasting.extrapolate(make(steps=1000, train={"steps_per_epoch": 1000}), bare)
    assert found["seconds"] == pytest.approx(8 + 5 + 999 * 0.5 + 1 + 7 * 0.7, abs=0.1)


def test_steps_of_a_budget_in_minutes():
    found = forecasting.extrapolate(
        make(steps=None, minutes=10, train={"steps_per_epoch": 50}), FOUND
    )
    assert found["seconds"] is None
    # An epoch is 25 s of steps, 1 s at its end and 4.9 s of validation.
    assert found["steps"] == int(50 * 600 / 30.9)


def test_bytes_of_a_graph_by_hand():
    @tf.function
    def step(x):
        a = x * 2.0  # 4000 bytes; x itself is given
        b = tf.reshape(a + 1.0, (10, 100))  # 8000, for a is read once more
        c = tf.reduce_sum(b) + a  # a, the sum and c, for b is not
        return tf.reduce_mean(c)

    graph = step.get_concrete_function(tf.TensorSpec((1000,))).graph
    assert fitting.graph_bytes(graph) == 2 * 4000 + 4


def test_samples_of_unknown_number_count_a_share():
    step = tf.function(lambda x: tf.reduce_sum(x * 2.0))
    graph = step.get_concrete_function(tf.TensorSpec((None, 10))).graph
    assert fitting.graph_bytes(graph) == 4
    assert fitting.graph_bytes(graph, share=5) == 5 * 10 * 4 + 4


def test_gradients_of_3d_convolutions_need_room_on_a_cpu():
    @tf.function
    def gradient(x, w):
        with tf.GradientTape() as tape:
            tape.watch([x, w])
            y = tf.nn.conv3d(x, w, [1] * 5, "SAME")
        return tape.gradient(y, [x, w])

    specs = tf.TensorSpec((2, 8, 8, 8, 3)), tf.TensorSpec((3, 3, 3, 3, 5))
    graph = gradient.get_concrete_function(*specs).graph
    unfolded = 4 * 8**3 * 27 * 3
    assert fitting.graph_bytes(graph) >= 2 * unfolded


@pytest.fixture(scope="module")
def parts(experiment, tmp_path_factory):
    """Experiment with something to save, its plan, game and batch."""
    chosen = experiment(
        tmp_path_factory.mktemp("none") / "run",
        network={"strides": [[2, 2]], "filters": 32},
        train={"batch_size": 8, "patch_size": (64, 64)},
    )
    train, _, plan = datasets.load(chosen.shards, 2, options=chosen.train, translating=False)
    model, plan = fitting.built(chosen, plan)
    return chosen, plan, model, train.element_spec


def test_what_does_not_fit_is_refused_with_three_settings_that_do(parts):
    chosen, plan, model, batch = parts
    held = fitting.held_bytes()
    need = fitting.step_bytes(model, batch)
    limit = int(held + 0.85 * need)
    with pytest.raises(CodedError, match=r"KUG-T06 memory: .* patch 64 x 64, batch 8") as caught:
        fitting.check_memory(chosen, plan, model, batch, limit)
    offers = re.findall(r"--set (\S+) \(", caught.value.fix)
    assert [offer.partition("=")[0] for offer in offers] == [
        *("train.batch_size", "train.patch_size", "network.filters")
    ]
    batch_size = int(offers[0].partition("=")[2])
    fewer = {
        name: tf.TensorSpec((batch_size, *spec.shape[1:]), spec.dtype)
        for name, spec in batch.items()
    }
    assert held + fitting.step_bytes(model, fewer) <= limit
    # Small batches are not traced, and what can never fit has no offer.
    assert fitting.check_memory(chosen, plan, model, batch) is None
    assert fitting.cheaper(chosen, plan, model, batch, held // 2, held) == []


def test_a_run_that_does_not_fit_leaves_nothing(experiment, tmp_path):
    with pytest.raises(CodedError, match=r"KUG-T06 memory: .*at most 10 MiB"):
        training.run(experiment(tmp_path / "run"), memory_gib=10 / 1024, quiet=True)
    assert not (tmp_path / "run").exists()


def test_disk_that_is_too_small(parts, monkeypatch):
    chosen, _, model, _ = parts
    need = fitting.folder_bytes(model)
    usage = shutil.disk_usage("/")._replace(free=need // 3)
    monkeypatch.setattr(forecasting.shutil, "disk_usage", lambda path: usage)
    forecasting.check_disk(chosen, need // 4)
    with pytest.raises(CodedError, match="KUG-T06 disk") as caught:
        forecasting.check_disk(chosen, need)
    widths = [int(w) for w in re.findall(r"network.filters=(\d+)", caught.value.fix)]
    assert widths == [16, 8, 4]


def test_a_probe_that_the_system_kills(experiment, tmp_path, monkeypatch):
    killed = subprocess.CompletedProcess([], -9, "", "")
    monkeypatch.setattr(forecasting.subprocess, "run", lambda *a, **k: killed)
    with pytest.raises(CodedError, match=r"KUG-T06 memory: found a probe that .* signal 9"):
        forecasting.forecast(experiment(tmp_path / "run"))


def test_a_device_that_runs_out_of_memory(experiment, tmp_path, monkeypatch):
    def fit(self, model, train, val):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    monkeypatch.setattr(probing.Session, "fit", fit)
    monkeypatch.setattr(fitting, "step_bytes", lambda model, batch: 3 * 2**30)
    monkeypatch.setattr(fitting, "step_of", lambda experiment, plan, batch: 2**30)
    found = r"KUG-T06 memory: found a step of about 3.0 GiB .* --set train.batch_size=2 \(1.0 GiB\)"
    with pytest.raises(CodedError, match=found):
        probing.probe(experiment(tmp_path / "run"))


def test_workers_are_not_probed(experiment, tmp_path, monkeypatch):
    cluster = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(cluster))
    with pytest.raises(CodedError, match="KUG-T02 --dry-run: found a TF_CONFIG"):
        forecasting.forecast(experiment(tmp_path / "run"))


@pytest.mark.slow
def test_dry_run_probes_and_writes_nothing(experiment, shards, tmp_path, capsys):
    chosen = experiment(tmp_path / "run")
    settings = [f"train.{n}={getattr(chosen.train, n)}" for n in ("batch_size", "steps_per_epoch")]
    settings += ["train.patch_size=[32,32]", "network.strides=[[2,2]]"]
    command = ["train", str(shards), "-o", chosen.output, "--model", "joint", "--epochs", "2"]
    command += [part for setting in settings for part in ("--set", setting)]
    with pytest.raises(SystemExit) as stop:
        cli.main([*command, "--dry-run", "--json"])
    assert not stop.value.code
    found = json.loads(capsys.readouterr().out)["forecast"]
    assert not (tmp_path / "run").exists()
    assert (found["steps"], found["epochs"], found["probe"]["batch_size"]) == (6, 2, 4)
    assert found["validations"] >= 1
    assert {"seconds", "core_seconds"} <= set(found)
    assert set(found["probe"]["core"]) < set(found["probe"])
    assert 2**27 < found["memory_bytes"] < 2**34
    # The probe's folder is made by the code of a run, so a run's folder is as large.
    training.run(chosen, quiet=True)
    written = sum(f.stat().st_size for f in (tmp_path / "run").rglob("*") if f.is_file())
    twice = sum(f.stat().st_size for f in (tmp_path / "run" / "checkpoints").iterdir())
    assert found["disk_bytes"] == pytest.approx(written + twice, rel=0.25)
    assert training.sentences(found)[0].startswith("time: about ")
