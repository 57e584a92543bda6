"""The whole house: phantoms, Beam, fit, export, push, serve, client, through the command line."""

import json
import shutil

import nibabel
import numpy as np
import pytest
import tensorflow as tf  # noqa: F401  (at the top: see conftest.pytest_collection_finish)
from commands import unigan

from keras_unigan.config import Study
from keras_unigan.data import phantoms
from keras_unigan.serving.server import Server


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A study, its shards, a short run and its exported model."""
    folder = tmp_path_factory.mktemp("house")
    phantoms.write_study(folder / "scans", modalities=("ct", "t1"), subjects_per_modality=5, seed=1)
    study = folder / "scans" / "study.json"
    assert unigan("prepare", study, "-o", folder / "shards", "--quiet") == 0
    train = ["--epochs", 2, "--set", "train.steps_per_epoch=20", "--set", "network.filters=8"]
    train += ["--set", "train.learning_rate=2e-3", "--set", "train.ema_decay=0.9", "--quiet"]
    assert unigan("train", folder / "shards", "-o", folder / "run", "--model", "segan", *train) == 0
    assert unigan("export", folder / "run", "-o", folder / "models" / "toy", "--quiet") == 0
    return folder


@pytest.fixture(scope="module")
def server(house):
    with Server(model_base_path=house / "models" / "toy") as running:
        yield running


def test_evaluate_and_report(house, capsys):
    assert unigan("evaluate", house / "run", house / "scans" / "study.json") == 0
    assert "macro Dice 0." in capsys.readouterr().out
    metrics = json.loads((house / "run" / "metrics.json").read_text())
    study = Study.load(house / "scans" / "study.json")
    held_out = {c.id for c in study.cases if c.split == "test"}
    assert {row["case"] for row in metrics["rows"]} == held_out
    # Two epochs do not make a good model, but one that knows nothing is below this.
    assert metrics["macro_dice"] > 0.2
    assert unigan("report", house / "run") == 0
    page = (house / "run" / "report.html").read_text()
    assert "not a medical device" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_the_answer_over_grpc_is_the_local_one_on_the_input_grid(house, server):
    study = Study.load(house / "scans" / "study.json")
    for case in [c for c in study.cases if c.split == "test"]:
        source = study.path(case.image)
        local, remote = house / f"{case.id}_local.nii.gz", house / f"{case.id}_remote.nii.gz"
        told = ["--modality", case.modality, "--quiet"]
        assert unigan("predict", house / "run", source, "-o", local, *told) == 0
        asked = ["client", "segment", server.grpc_addr, "toy", source]
        assert unigan(*asked, "-o", remote, *told) == 0
        image, first, second = (nibabel.load(p) for p in (source, local, remote))
        for answer in (first, second):
            np.testing.assert_array_equal(answer.affine, image.affine)
            assert answer.shape == image.shape
            assert int(answer.header["qform_code"]) == int(image.header["qform_code"])
            assert int(answer.header["sform_code"]) == int(image.header["sform_code"])
            assert np.issubdtype(answer.get_data_dtype(), np.integer)
        values = {
            0,
            *(v for name in study.labels.foreground for v in study.labels.file_values(name)),
        }
        assert set(np.unique(first.dataobj)) <= values
        different = np.mean(np.asarray(first.dataobj) != np.asarray(second.dataobj))
        assert different < 1e-4  # ties that float32 sums in another order may break


def test_resume_needs_no_setting_again(house, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(house / "run", run)
    (run / "metrics.json").write_text("{}")
    go_on = ["train", house / "shards", "-o", run, "--resume", "--quiet"]
    assert unigan(*go_on) == 2
    assert "a finished run" in capsys.readouterr().err
    assert unigan(*go_on, "--epochs", 3) == 0
    assert len((run / "history.csv").read_text().splitlines()) == 4
    config = json.loads((run / "config.json").read_text())
    assert (config["network"], config["epochs"]) == ({"filters": 8}, 3)
    assert not (run / "metrics.json").exists()  # scores of the network as it was


def test_many_scans_one_of_them_broken(house, tmp_path, capsys):
    study = Study.load(house / "scans" / "study.json")
    scans = tmp_path / "in"
    scans.mkdir()
    for case in study.cases[:2]:
        shutil.copy(study.path(case.image), scans)
    (scans / "a_broken.nii.gz").write_bytes(b"no scan")
    assert unigan("predict", house / "run", scans, "-o", tmp_path / "out") == 3
    error = capsys.readouterr().err
    assert "KUG-D07" in error
    assert "1 of 3 scans could not be used" in error
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_a_run_of_another_study_refuses_its_shards(house, tmp_path, capsys):
    shards = tmp_path / "shards"
    shards.mkdir()
    manifest = json.loads((house / "shards" / "shards.json").read_text())
    manifest["recipe"] = "0" * 64
    (shards / "shards.json").write_text(json.dumps(manifest))
    start = ["train", shards, "-o", tmp_path / "run", "--steps", 1]
    assert unigan(*start, "--model", "segan") == 3
    error = capsys.readouterr().err
    assert error.startswith("KUG-D09")
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()
