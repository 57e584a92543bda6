"""The command line: exit codes, coded messages, nothing half written."""

import contextlib
import errno
import json
import subprocess
import sys

import numpy as np
import pytest
from commands import unigan

from keras_unigan import cli
from keras_unigan.cli import common
from keras_unigan.config import Study
from keras_unigan.data import phantoms
from keras_unigan.errors import CODES


@pytest.fixture
def scans(tmp_path):
    """A folder of ten small phantom scans with labels."""
    folder = tmp_path / "scans"
    phantoms.write_study(folder, modalities=("ct", "t1"), subjects_per_modality=5, seed=3)
    (folder / "study.json").unlink()
    return folder


def test_init_finds_scans_and_never_overwrites(scans, tmp_path, capsys):
    output = tmp_path / "study.json"
    names = ["--label", "organ=1", "--label", "lesion=2"]
    assert unigan("init", scans, "-o", output, *names, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    study = Study.load(output)
    assert result["cases"] == len(study.cases) == 10
    assert study.labels.foreground == ("organ", "lesion")
    before = output.read_bytes()
    assert unigan("init", scans, "-o", output) == 2
    assert "KUG-E02" in capsys.readouterr().err
    assert output.read_bytes() == before
    assert unigan("init", scans, "-o", tmp_path / "other.json", "--dry-run") == 0
    assert not (tmp_path / "other.json").exists()


def test_missing_folder_and_empty_folder(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for source in ("nowhere", "empty"):
        assert unigan("init", tmp_path / source, "-o", tmp_path / "study.json") == 3
        assert capsys.readouterr().err.startswith("KUG-D01")
    assert not (tmp_path / "study.json").exists()


def test_usage_errors(tmp_path, capsys):
    assert unigan("inti") == 2
    assert "init" in capsys.readouterr().err
    assert unigan("train", tmp_path, "-o", tmp_path / "r", "--set", "train.batchsize=3") == 2
    assert "did you mean 'train.batch_size'" in capsys.readouterr().err
    assert unigan("train", tmp_path, "-o", tmp_path / "r", "--steps", 3, "--epochs", 2) == 2
    assert "steps" in capsys.readouterr().err
    assert unigan("init", tmp_path, "--label", "organ=one") == 2
    assert "name=value" in capsys.readouterr().err
    assert unigan("init", tmp_path, "--label", "organ=1", "--label", "organ=2") == 2
    assert "'organ' twice" in capsys.readouterr().err
    assert unigan("init", tmp_path, "--fractions", "0.5,0.2") == 2
    assert "--fractions" in capsys.readouterr().err
    assert unigan("train", tmp_path, "-o", tmp_path / "r", "--device", "tpu") == 2
    assert "auto, cpu or gpu" in capsys.readouterr().err


def test_train_takes_its_settings(tmp_path, monkeypatch):
    from keras_unigan import training

    seen = []

    def run(experiment, **how):
        seen.append((experiment, how))
        experiment.save(tmp_path / "r" / "config.json")
        return {"best_dice": 0.5}

    monkeypatch.setattr(training, "run", run)
    start = ["train", tmp_path, "-o", tmp_path / "r"]
    flags = ["--augment", "contrast", "--accumulate", 2, "--deterministic", "--horizon", 500]
    flags += ["--init-from", "runs/a", "--steps", 9, "--set", "train.checkpoint_steps=5"]
    assert unigan(*start, *flags) == 0
    found = seen[0][0]
    assert (found.train.augment, found.train.accumulate, found.train.checkpoint_steps) == (
        "contrast",
        2,
        5,
    )
    assert (found.deterministic, found.horizon, found.init_from, found.steps) == (
        True,
        500,
        "runs/a",
        9,
    )
    # A resumed run remembers them all.
    assert unigan(*start, "--resume") == 0
    assert seen[1] == (
        found,
        {"resume": True, "overwrite": False, "quiet": False, "memory_gib": None},
    )
    assert unigan(*start, "--horizon", 0) == 2
    assert unigan(*start, "--accumulate", 0) == 2
    assert unigan(*start, "--augment", "some") == 2


def test_bad_study_names_the_key(tmp_path, capsys):
    study = tmp_path / "study.json"
    study.write_text(json.dumps({"modalities": ["ct"], "labels": {"organ": 1}, "case": []}))
    assert unigan("prepare", study, "-o", tmp_path / "shards") == 3
    error = capsys.readouterr().err
    assert error.startswith("KUG-D08")
    assert "unknown key 'case' (did you mean 'cases'?)" in error
    assert not (tmp_path / "shards").exists()


def test_bad_volumes_go_to_dead_letters_and_the_exit_code_says_so(scans, tmp_path, capsys):
    study_path = tmp_path / "study.json"
    assert unigan("init", scans, "-o", study_path, "--label", "organ=1", "--label", "lesion=2") == 0
    study = Study.load(study_path)
    victims = [c for c in study.cases if c.split == "train"][:1]
    victim = scans.parent / study.path(victims[0].image)
    victim.write_bytes(victim.read_bytes()[:2000])
    shards = tmp_path / "shards"
    assert unigan("prepare", study_path, "-o", shards, "--json") == 3
    captured = capsys.readouterr()
    result = json.loads(captured.out[captured.out.index("{") :])
    assert result["dead_letters"] == 1
    letters = [json.loads(x) for x in (shards / "dead_letters.jsonl").read_text().splitlines()]
    assert [x["case"] for x in letters] == [victims[0].id]
    assert letters[0]["code"] == "KUG-D07"
    assert "Traceback" not in captured.err
    # The terminal names the case, its code and the fix, and no folder of this machine.
    assert f"KUG-D07 {victims[0].id}" in captured.err
    assert "1 of 10 volumes could not be used (1 KUG-D07)" in captured.err
    assert str(scans) not in captured.err
    # Whoever knows of it says so: the list is the same, the exit code is that of success.
    assert unigan("prepare", study_path, "-o", shards, "--overwrite", "--skip-bad") == 0
    again = capsys.readouterr()
    assert "1 of 10 volumes could not be used (1 KUG-D07)" in again.err
    assert "Next: unigan train" in again.out


def test_outputs_that_cannot_be_written(scans, tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    for output in (tmp_path / "folder", tmp_path / "file" / "study.json"):
        assert unigan("init", scans, "-o", output, "--label", "organ=1,2") == 2
        assert capsys.readouterr().err.startswith("KUG-E02")
    scan = next(scans.glob("*_ct.nii.gz"))
    (scans / "plan.json").write_text("{}")  # what makes a folder a run
    assert unigan("predict", scans, scan, "-o", tmp_path / "out.gif") == 2
    assert "a name ending in .gif" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder", "scans"]


def test_models_json_is_the_registry(capsys):
    from keras_unigan.systems import SYSTEMS

    assert unigan("models", "--json") == 0
    assert set(json.loads(capsys.readouterr().out)) == set(SYSTEMS)
    assert unigan("models") == 0
    said = capsys.readouterr().out
    for name, system in SYSTEMS.items():
        assert f"\n{name}: {next(iter(system['networks']))} " in said
        assert f"  {system['paper']}\n" in said
    assert "\nsifa: segmentor SIFANetwork, discriminator_a SIFADiscriminator" in said
    assert "  needs labels: of the first modality of game.pair" in said


def test_client_without_a_server(tmp_path, capsys):
    scan = tmp_path / "scan.nii.gz"
    phantoms_volume(scan)
    asked = ["client", "segment", "127.0.0.1:1", "unigan", scan, "-o", tmp_path / "o.nii.gz"]
    assert unigan(*asked, "--timeout", 1) == 4
    assert capsys.readouterr().err.startswith("KUG-S01")
    assert not (tmp_path / "o.nii.gz").exists()


def phantoms_volume(path):
    import nibabel

    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 8, 4), "int16"), np.eye(4)), path)


def test_help_is_light():
    code = (
        "import sys\nfrom keras_unigan import cli\n"
        "try:\n    cli.main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "assert not {'tensorflow', 'keras', 'apache_beam', 'grpc'} & set(sys.modules)"
    )
    for arguments in (["--help"], ["train", "--help"], ["models", "--json"], ["init", "nowhere"]):
        run = [sys.executable, "-c", code, *arguments]
        subprocess.run(run, check=True, capture_output=True, timeout=60)


def test_codes_are_well_formed():
    assert all(code[:5] in ("KUG-D", "KUG-T", "KUG-S", "KUG-E") for code in CODES)
    assert {exit_code for _, exit_code in CODES.values()} <= {2, 3, 4}


def test_every_code_is_documented(root):
    rows = (root / "docs" / "errors.md").read_text(encoding="utf-8").splitlines()
    documented = [r.strip("| ").split(" | ") for r in rows if r.startswith("| KUG-")]
    assert documented == [[code, text, str(exit)] for code, (text, exit) in CODES.items()]


def test_a_full_disk_is_no_bug(monkeypatch, capsys):
    def full(_):
        raise OSError(errno.ENOSPC, "", "out/shard")

    monkeypatch.setattr(cli, "app", full)
    assert unigan("prepare") == 4
    said = capsys.readouterr().err
    assert said.startswith("KUG-E04 out/shard: found No space left on device, expected room")

    def missing(_):
        raise OSError(errno.ENOENT, "", "x")

    monkeypatch.setattr(cli, "app", missing)
    assert unigan("prepare") == 1
    assert capsys.readouterr().err.startswith("Bug: FileNotFoundError: ")


def test_what_quiet_keeps_back_is_shown_where_the_work_fails(capfd):
    for quiet, fails, shown in (
        (True, False, ""),
        (False, False, "noise\n"),
        (True, True, "noise\n"),
    ):
        with contextlib.suppress(KeyError), common.hushed(quiet):
            subprocess.run(
                [sys.executable, "-c", "import os; os.write(2, b'noise\\n')"], check=True
            )
            if fails:
                raise KeyError
        assert capfd.readouterr().err == shown
