"""`unigan reproduce`: a run again from its run.json."""

import json
import os
import shutil
import subprocess
import sys

import keras
import numpy as np
import phantom_shards
import pytest
from commands import unigan

from keras_unigan import config, evaluation, reproduction, training
from keras_unigan.errors import CodedError
from keras_unigan.postprocessing import LARGEST, Postprocessing, Step


@keras.saving.register_keras_serializable(package="test_reproduction")
class Level(keras.Model):
    """Organ wherever the normalised image is above a level."""

    spatial_dims, channels = 2, 1

    def __init__(self, name="level"):
        image = keras.Input((None, None, 1))
        super().__init__(image, keras.layers.Conv2D(3, 1)(image), name=name)

    def get_config(self):
        return {"name": self.name}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return phantom_shards.write(
        tmp_path_factory.mktemp("data"),
        patch_size=(32, 32),
        filters=4,
        modalities=("ct", "t1"),
        subjects_per_modality=3,
        size=32,
        depth=6,
    )


def train_with(level):
    """A stand-in for training: a network of one level, and what training notes in run.json."""

    def run(experiment, overwrite=False, quiet=False):
        folder = reproduction.Path(experiment.output)
        network = Level()
        network.set_weights(
            [np.array([0, 9, -9], "float32").reshape(1, 1, 1, 3), np.float32([0, -9 * level, -9])]
        )
        config.Plan.load(f"{experiment.shards}/plan.json").save(folder / "plan.json")
        network.save(folder / "network.keras")
        training.running._record(folder, experiment, State(7), "finished", 1.0, None)

    return run


class State:
    def __init__(self, steps):
        self.steps, self.epochs = steps, 1


@pytest.fixture(scope="module")
def scored(shards, tmp_path_factory):
    """A run that was trained for minutes, and scored with the modality told and kept back."""
    folder = tmp_path_factory.mktemp("scored") / "run"
    experiment = config.Experiment(str(shards), str(folder), "segan", minutes=2.0, horizon=50)
    train_with(0.1)(experiment)
    study = shards.parent / "study" / "study.json"
    options = evaluation.ScoreOptions(tolerance=3.0)
    evaluation.evaluate_run(folder, study, options=options, limit=1)
    steps = Postprocessing((Step(LARGEST),))
    method = {"tta": "mirror", "postprocessing": steps}
    evaluation.evaluate_run(folder, study, "val", known_modality=False, limit=1, **method)
    return folder


@pytest.fixture
def run(scored, tmp_path, monkeypatch):
    """The same in a folder of its own; training makes the same network again."""
    monkeypatch.setattr(training, "run", train_with(0.1))
    shutil.copytree(scored, tmp_path / "run")
    return tmp_path / "run"


def test_the_same_run_has_the_same_scores(run, tmp_path, capsys):
    given = ["reproduce", run / "run.json", "-o", tmp_path / "again"]
    assert unigan(*given, "--dry-run") == 0
    assert "Would train segan for 7 steps" in capsys.readouterr().out
    assert not (tmp_path / "again").exists()
    assert unigan(*given) == 0
    said = capsys.readouterr().out
    assert "The same: " in said
    assert "was not made with --deterministic" in said
    result = json.loads((tmp_path / "again" / "reproduction.json").read_text())
    # Every case and name of both evaluations, with the options that each had.
    old = [json.loads((run / f).read_text()) for f in ("metrics.json", "metrics_unknown.json")]
    assert result["rows"] == sum(len(o["rows"]) for o in old)
    assert (result["same"], result["missing"], max(result["largest"].values())) == (True, 0, 0.0)
    new = json.loads((tmp_path / "again" / "metrics.json").read_text())
    assert (new["options"]["tolerance"], new["macro_dice"]) == (3.0, old[0]["macro_dice"])
    assert new["macro_dice"] > 0
    # What label maps were made with counts as a setting, also what validation had taught.
    assert (old[0]["method"]["tta"], old[0]["method"]["postprocessing"]) == ("none", [])
    other = json.loads((tmp_path / "again" / "metrics_unknown.json").read_text())["method"]
    assert {**old[1]["method"], "runs": ["again"]} == other
    assert (other["tta"], len(other["postprocessing"])) == ("mirror", 1)


def test_another_run_is_found_out(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "run", train_with(0.3))
    entries = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(entries[:2]))  # the modality told, only
    assert unigan("reproduce", run, "-o", tmp_path / "again", "--json") == 3
    result = json.loads(capsys.readouterr().out)
    assert result["same"] is False
    assert result["largest"]["dice"] > 0.001


def test_other_inputs_are_refused(run, shards, tmp_path):
    recipe = reproduction.read_recipe(run, output=tmp_path / "again")
    assert (recipe.experiment.steps, recipe.experiment.minutes) == (7, None)
    assert recipe.experiment.horizon == 50
    assert reproduction.check_inputs(recipe)
    shutil.copytree(shards, tmp_path / "shards")
    moved = reproduction.read_recipe(run, tmp_path / "shards", tmp_path / "again")
    assert reproduction.check_inputs(moved) == reproduction.check_inputs(recipe)
    with (tmp_path / "shards" / "shards.json").open("a") as file:
        file.write(" ")
    with pytest.raises(CodedError, match=r"KUG-D09 .*, as in run\.json"):
        reproduction.check_inputs(moved)
    other = tmp_path / "study.json"
    other.write_text((shards.parent / "study" / "study.json").read_text() + " ")
    with pytest.raises(CodedError, match=r"KUG-T07 .*study\.json: found sha256"):
        reproduction.check_inputs(recipe, other)
    with pytest.raises(CodedError, match=r"KUG-D01 .*nowhere"):
        reproduction.check_inputs(recipe, tmp_path / "nowhere")
    with pytest.raises(CodedError, match=r"KUG-T02 --output: found .*, the run itself"):
        reproduction.reproduce(reproduction.read_recipe(run, output=run))


def test_versions_of_then_are_told(run, tmp_path):
    entries = json.loads((run / "run.json").read_text())
    entries[0]["versions"]["numpy"] = "1.0"
    (run / "run.json").write_text(json.dumps(entries))
    recipe = reproduction.read_recipe(run, output=tmp_path / "again")
    assert any(n.endswith("now, 1.0 then.") for n in reproduction.check_inputs(recipe))


@pytest.mark.parametrize(
    ("keep", "words"),
    [(1, "no evaluation since the training"), (0, "no training"), (None, "training that failed")],
)
def test_half_a_run_is_refused(run, keep, words):
    entries = json.loads((run / "run.json").read_text())
    if keep is None:
        entries[0]["status"] = "failed"
    (run / "run.json").write_text(json.dumps(entries[:keep]))
    with pytest.raises(CodedError, match=rf"KUG-T04 .*run\.json: found (a )?{words}"):
        reproduction.read_recipe(run)
    with pytest.raises(CodedError, match=r"KUG-T04 .*found no such file"):
        reproduction.read_recipe(run / "run.txt")


@pytest.mark.slow
def test_a_true_run_is_the_same_to_the_bit(shards, tmp_path):
    """In processes of their own: determinism cannot be taken back."""
    study = shards.parent / "study" / "study.json"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}

    def unigan(*arguments):
        words = [sys.executable, "-m", "keras_unigan", *map(str, arguments), "--quiet"]
        subprocess.run(words, check=True, env=environment)

    settings = ["train.steps_per_epoch=3", "train.learning_rate=1e-2", "train.ema_decay=0.9"]
    settings = [text for setting in settings for text in ("--set", setting)]
    train = ["--model", "segan", "--epochs", 4, "--seed", 5, "--deterministic", *settings]
    unigan("train", shards, "-o", tmp_path / "run", *train)
    unigan("evaluate", tmp_path / "run", study)
    unigan("reproduce", tmp_path / "run" / "run.json", "-o", tmp_path / "again", "--tolerance", 0)
    result = json.loads((tmp_path / "again" / "reproduction.json").read_text())
    assert (result["same"], max(result["largest"].values())) == (True, 0.0)
    assert result["notes"] == []
    # Something was learnt, so that it could have differed.
    rows = json.loads((tmp_path / "run" / "metrics.json").read_text())["rows"]
    assert len({row["dice"] for row in rows}) > 2
