"""A killed job goes on where it stopped; a changed scan costs its own shard and no other."""

import dataclasses
import json
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from keras_unigan import cli
from keras_unigan.config import Plan, Study
from keras_unigan.data import nifti, phantoms, records
from keras_unigan.errors import CodedError
from keras_unigan.pipelines import preprocess

KILLED = """
import os, signal, sys
from apache_beam.io.filesystems import FileSystems
from keras_unigan.pipelines import preprocess
rename, count = FileSystems.rename, 0

def dying(sources, destinations):
    global count
    count += destinations[0].endswith(".tfrecord.gz")
    if count == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(sources, destinations)

FileSystems.rename = dying
preprocess.run(sys.argv[1:])
"""
"""Dies with two shards done and a third one written, but not yet under its name."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study and the folder of an undisturbed run: ten cases in eight shards."""
    folder = tmp_path_factory.mktemp("restart")
    study = phantoms.write_study(folder / "study", ("ct", "t1"), 5, size=32, depth=8, seed=4)
    preprocess.run([*flags(study), "--output", str(folder / "shards")])
    return study, folder / "shards"


def flags(study):
    return ["--study", study.path("study.json"), "--cases_per_shard", "2"]


def contents(folder):
    """All that must not depend on how a run went: name -> bytes."""
    names = [p for p in folder.rglob("*") if p.suffix == ".gz" or p.name == "shards.json"]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in names}


def stamps(folder):
    """When each shard was written, and to which place on the disk."""
    facts = {p.relative_to(folder).as_posix(): p.stat() for p in folder.rglob("*.gz")}
    return {name: (fact.st_mtime_ns, fact.st_ino) for name, fact in facts.items()}


@pytest.fixture
def copy(whole, tmp_path):
    """A study of one's own that is prepared already: (study, shards)."""
    shutil.copytree(whole[0].folder, tmp_path / "study")
    shutil.copytree(whole[1], tmp_path / "shards")
    return Study.load(tmp_path / "study" / "study.json"), tmp_path / "shards"


def resume(study, folder, *more):
    return preprocess.run([*flags(study), "--output", str(folder), "--resume", *more])["counters"]


def test_kill_and_resume(whole, tmp_path):
    study, reference = whole
    folder = tmp_path / "shards"
    argv = [*flags(study), "--output", str(folder)]
    done = subprocess.run([sys.executable, "-c", KILLED, *argv], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert len(stamps(folder)) == 2
    assert not (folder / "shards.json").exists()
    unfinished = [p.name for p in folder.rglob("*.part")]
    assert len([name for name in unfinished if ".tfrecord.gz." in name]) == 1
    with pytest.raises(CodedError, match=r"KUG-E02 .*plan.json: .* add --resume to go on, or"):
        preprocess.run(argv)
    before = stamps(folder)
    counters = resume(study, folder)
    assert (counters["shards"], counters["shards_kept"]) == (6, 2)
    assert counters["volumes"] + counters["volumes_kept"] == len(study.cases)
    assert contents(folder) == contents(reference)
    assert before.items() <= stamps(folder).items()
    assert not list(folder.rglob("*.part"))


def test_nothing_to_do(copy):
    study, folder = copy
    before = stamps(folder)
    counters = resume(study, folder)
    assert (counters["shards"], counters["shards_kept"], counters["volumes_kept"]) == (0, 8, 10)
    assert stamps(folder) == before
    commands = json.loads((folder / "run.json").read_text())
    assert [entry["counters"]["shards"] for entry in commands] == [8, 0]


@pytest.mark.parametrize("part", ["image", "label"])
def test_a_changed_scan_costs_its_own_shard(copy, part):
    study, folder = copy
    case = [c for c in study.cases if (c.split, c.modality) == ("train", "t1")][-1]
    path = study.path(getattr(case, part))
    volume = nifti.read(path)
    array = np.where(volume.array == volume.array.max(), volume.array.min(), volume.array)
    nifti.write(path, array, volume)
    before = stamps(folder)
    counters = resume(study, folder)
    assert (counters["shards"], counters["shards_kept"]) == (1, 7)
    after = stamps(folder)
    changed = [name for name in after if after[name] != before[name]]
    manifest = records.Manifest.load(folder)
    assert [s.file for s in manifest.shards if case.id in s.cases] == changed
    fresh = folder.parent / "fresh"
    argv = [*flags(study), "--plan", str(folder / "plan.json"), "--output", str(fresh)]
    preprocess.run(argv)
    assert contents(fresh) == contents(folder)


def test_a_damaged_or_lost_shard_is_made_again(copy, whole):
    study, folder = copy
    names = sorted(stamps(folder))
    (folder / names[0]).unlink()
    data = (folder / names[1]).read_bytes()
    (folder / names[1]).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CodedError, match=r"KUG-D09 .*Fix: unigan prepare .* --resume"):
        records.Manifest.load(folder)
    assert resume(study, folder)["shards"] == 2
    assert contents(folder) == contents(whole[1])


def test_dead_letters_are_kept_until_their_scan_is_mended(copy, whole):
    study, folder = copy
    path = pathlib.Path(study.path(study.cases[0].image))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert resume(study, folder)["shards"] == 1
    letters = (folder / "dead_letters.jsonl").read_text()
    assert json.loads(letters)["code"] == "KUG-D07"
    assert resume(study, folder)["shards"] == 0
    assert (folder / "dead_letters.jsonl").read_text() == letters
    path.unlink()
    assert resume(study, folder)["shards"] == 1
    path.write_bytes(data)
    assert resume(study, folder)["shards"] == 1
    assert not (folder / "dead_letters.jsonl").exists()
    assert contents(folder) == contents(whole[1])


def test_another_plan_or_split_is_another_shard(copy):
    study, folder = copy
    plan = Plan.load(folder / "plan.json")
    dataclasses.replace(plan, overlap=0.25).save(folder / "plan.json")
    assert resume(study, folder)["shards"] == 0
    dataclasses.replace(plan, spacing=(2.0, 2.0, 4.0)).save(folder / "plan.json")
    assert resume(study, folder)["shards"] == 8
    turned = [dataclasses.replace(c, split="test" if c.split == "val" else c.split)
              for c in study.cases]  # fmt: skip
    dataclasses.replace(study, cases=tuple(turned)).save(study.path("study.json"))
    counters = resume(study, folder)
    assert (counters["shards"], counters["shards_kept"]) == (2, 4)
    assert not list((folder / "val").glob("*.gz"))
    assert not list((folder / "done" / "val").glob("*.json"))
    assert records.Manifest.load(folder).splits["test"] == {"ct": 2, "t1": 2}


def test_flags_that_exclude_each_other(whole, tmp_path):
    argv = [*flags(whole[0]), "--output", str(tmp_path / "s")]
    with pytest.raises(CodedError, match=r"KUG-T02 --resume, --overwrite: found both"):
        preprocess.run([*argv, "--resume", "--overwrite"])
    with pytest.raises(CodedError, match=r"KUG-T02 --cases_per_shard: found 0"):
        preprocess.run([*argv, "--cases_per_shard", "0"])


def test_the_command_goes_on_and_says_what_it_did(copy, capsys):
    study, folder = copy
    command = ["prepare", study.path("study.json"), "-o", str(folder)]
    (folder / next(iter(stamps(folder)))).unlink()
    with pytest.raises(SystemExit) as stop:
        cli.main([*command, "--resume", "--", "--cases_per_shard=2"])
    assert not stop.value.code
    said = capsys.readouterr().out
    assert "in 1 shards by 1 worker(s)" in said
    assert "in 7 shards were there already" in said
    with pytest.raises(SystemExit) as stop:
        cli.main(command)
    assert stop.value.code == 2
    assert "KUG-E02" in capsys.readouterr().err
