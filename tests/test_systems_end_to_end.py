"""The systems that ask for more than labelled slices: from shards to label maps and an export."""

import phantom_shards
import pytest
import tensorflow as tf  # noqa: F401  (at the top: see conftest.pytest_collection_finish)
from commands import unigan

SETTINGS = {
    "nnunet_plain": [],
    "synth_contrast": [],
    "ummkd": ["network.filters=2", "train.batch_size=8"],
    "synseg": ["network.blocks=1", 'game.pair=["t1","ct"]'],
    "sifa": ["network.filters=2"],
}


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    folder = tmp_path_factory.mktemp("systems")
    phantom_shards.write(
        folder,
        patch_size=(32, 32),
        filters=4,
        modalities=("ct", "t1"),
        subjects_per_modality=4,
        size=32,
        depth=8,
    )
    return folder


def train(house, run, name, settings):
    flags = [part for setting in settings for part in ("--set", setting)]
    start = ["train", house / "shards", "--model", name, "-o", run, "--steps", 2, "-q"]
    return unigan(*start, "--set", "train.steps_per_epoch=2", *flags)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_predicts_is_scored_and_exported(house, tmp_path, name):
    run, scan = tmp_path / "run", next((house / "study").rglob("*_ct.nii.gz"))
    assert train(house, run, name, SETTINGS[name]) == 0
    for told in ((), ("--modality", "ct"), ("--modality", "t1")):
        output = tmp_path / f"{len(list(tmp_path.iterdir()))}.nii.gz"
        assert unigan("predict", run, scan, *told, "-o", output, "-q") == 0
        assert output.is_file()
    assert unigan("evaluate", run, house / "study" / "study.json", "-q") == 0
    assert (run / "metrics.json").is_file()
    assert unigan("export", run, "-o", tmp_path / "model", "-q") == 0


@pytest.mark.slow
def test_a_run_that_only_makes_pairs_says_so(house, tmp_path, capsys):
    run, scan = tmp_path / "run", next((house / "study").rglob("*_ct.nii.gz"))
    assert train(house, run, "gan", ["network.filters=4"]) == 0
    assert (run / "pairs.png").is_file()
    assert (run / "network.keras").is_file()
    study = house / "study" / "study.json"
    for command in (
        ("predict", run, scan, "-o", tmp_path / "seg.nii.gz"),
        ("evaluate", run, study),
        ("export", run, "-o", tmp_path / "model"),
        ("translate", run, scan, "--modality", "ct", "--to", "t1", "-o", tmp_path / "t1.nii.gz"),
    ):
        assert unigan(*command, "-q") == 2
        assert "KUG-T04" in capsys.readouterr().err
