"""Folds of the subjects: whole, disjoint, balanced; one run each, and the mean of all."""

import json

import numpy as np
import pytest
from commands import unigan

from keras_unigan import training
from keras_unigan.config import TrainOptions
from keras_unigan.data import catalogue, datasets, records
from keras_unigan.errors import CodedError
from keras_unigan.training import folds


def subjects(shards, count, fold, seed=0):
    """Subjects of both splits of a fold, and their modalities."""
    manifest = records.Manifest.load(shards)
    plan = datasets.plan_of(shards)
    found = catalogue.collect(manifest, plan, 2**30, seed, False, count, fold)
    return {s: list(zip(c.subjects, c.domains, strict=True)) for s, c in found.items()}


def test_each_subject_validates_once(shards):
    whole = subjects(shards, 1, 0)
    everyone = {name for split in whole.values() for name, _ in split}
    validated = []
    for fold in range(2):
        parts = subjects(shards, 2, fold)
        names = {split: {name for name, _ in found} for split, found in parts.items()}
        assert not names["train"] & names["val"]
        assert names["train"] | names["val"] == everyone
        # As many of each modality as can be.
        domains = [domain for _, domain in parts["val"]]
        assert abs(domains.count(0) - domains.count(1)) <= 1
        validated += sorted(names["val"])
    assert sorted(validated) == sorted(everyone)


def test_the_seed_decides_the_folds(shards):
    first = [subjects(shards, 2, 0, seed)["val"] for seed in range(5)]
    assert first[0] == subjects(shards, 2, 0, 0)["val"]
    assert any(other != first[0] for other in first)


def test_the_arrays_are_those_of_the_fold(shards):
    options = TrainOptions(patch_size=(32, 32), folds=2, fold=1)
    _, val, _ = datasets.load(shards, options=options)
    seen = {int(n) for batch in val for n in np.asarray(batch["case"])} - {-1}
    assert seen == set(range(len(subjects(shards, 2, 1)["val"])))


def test_more_folds_than_subjects_are_refused(shards):
    with pytest.raises(CodedError, match=r"KUG-T02 train.folds: found 50 for \d+ subjects"):
        subjects(shards, 50, 0)


@pytest.mark.parametrize(("count", "fold"), [(0, 0), (2, 2), (2, -1)])
def test_folds_that_are_not_there_are_refused(count, fold):
    with pytest.raises(CodedError, match=r"KUG-T02 train\.fold"):
        TrainOptions(folds=count, fold=fold)


def test_runs_go_on_where_they_were(experiment, tmp_path, monkeypatch):
    asked = []

    def made(experiment, resume, overwrite, **options):
        asked.append((experiment.train.fold, resume))
        return {"best_dice": 0.5 + 0.1 * experiment.train.fold}

    monkeypatch.setattr(folds, "run", made)
    own = experiment(tmp_path)
    done, begun = folds.fold_folder(tmp_path, 0), folds.fold_folder(tmp_path, 1)
    done.mkdir()
    (done / "run.json").write_text(json.dumps([{"command": "train", "status": "finished"}]))
    (begun / "checkpoints").mkdir(parents=True)
    (begun / "checkpoints" / "state.json").write_text("{}")
    summary = training.run_folds(own, 3, resume=True, say=lambda text: None)
    assert asked == [(1, True), (2, False)]
    assert summary["dice"] == pytest.approx([0.6, 0.7])
    assert summary["mean_dice"] == pytest.approx(0.65)
    assert len(summary["runs"]) == 3
    with pytest.raises(CodedError, match="KUG-T02 --folds: found 1, expected 2 or more"):
        training.run_folds(own, 1)


def test_an_interrupted_run_is_not_done(tmp_path):
    assert not folds.finished(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps([{"command": "train", "status": "interrupted"}]))
    assert not folds.finished(tmp_path)


def test_the_command_makes_an_ensemble(shards, tmp_path, capsys):
    settings = ["train.patch_size=[32,32]", "train.batch_size=2", "train.steps_per_epoch=1"]
    settings += ["network.strides=[[2,2]]"]
    command = ["train", shards, "-o", tmp_path / "cv", "--model", "joint", "--steps", "1"]
    command += [word for setting in settings for word in ("--set", setting)]
    assert unigan(*command, "--folds", "2") == 0
    said = capsys.readouterr().out
    assert "it stands for the mean of 2 runs" in said
    study = shards.parent / "study" / "study.json"
    assert unigan("evaluate", tmp_path / "cv", study) == 0
    scores = json.loads((tmp_path / "cv" / "metrics.json").read_text())
    assert scores["cases"] > 0
    for fold in range(2):
        config = json.loads((tmp_path / "cv" / f"fold_{fold}" / "config.json").read_text())
        assert (config["train"]["folds"], config["train"]["fold"]) == (2, fold)


def test_finished_runs_of_other_kinds_do_not_count(tmp_path):
    entries = [{"command": "train", "status": "interrupted"}, {"command": "evaluate"}]
    (tmp_path / "run.json").write_text(json.dumps(entries))
    assert not folds.finished(tmp_path)
