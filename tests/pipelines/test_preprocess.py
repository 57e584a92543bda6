"""The Beam jobs: right records, the same bytes whoever works, and bad volumes set aside."""

import dataclasses
import gzip
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from keras_unigan.config import Fingerprint, Plan, Study
from keras_unigan.data import nifti, phantoms, preprocessing, records
from keras_unigan.errors import CodedError
from keras_unigan.pipelines import fingerprint, preprocess, sources


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return phantoms.write_study(folder, ("ct", "t1"), 5, size=32, depth=8, seed=2)


@pytest.fixture(scope="module")
def prepared(study, tmp_path_factory):
    """Folder of shards and the summary of the job that wrote it."""
    folder = tmp_path_factory.mktemp("prepared") / "shards"
    argv = ["--study", study.path("study.json"), "--output", str(folder)]
    return folder, preprocess.run([*argv, "--cases_per_shard", "2"])


def read_lines(path):
    return [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]


def digests(folder):
    return {s.file: s.sha256 for s in records.Manifest.load(folder).shards}


def test_summary_and_folder(study, prepared):
    folder, summary = prepared
    assert summary["splits"] == {
        "train": {"ct": 3, "t1": 3},
        "val": {"ct": 1, "t1": 1},
        "test": {"ct": 1, "t1": 1},
    }
    assert (summary["cases"], summary["dead_letters"], summary["dead_letter_file"]) == (10, 0, None)
    assert "seconds" in summary
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert names == {
        *("shards.json", "plan.json", "fingerprint.json", "run.json"),
        *(f"train/{m}-0000{i}-of-00002.tfrecord.gz" for m in ("ct", "t1") for i in (0, 1)),
        *(f"{s}/{m}-00000-of-00001.tfrecord.gz" for m in ("ct", "t1") for s in ("val", "test")),
        *(f"done/train/{m}-0000{i}-of-00002.json" for m in ("ct", "t1") for i in (0, 1)),
        *(f"done/{s}/{m}-00000-of-00001.json" for m in ("ct", "t1") for s in ("val", "test")),
    }
    manifest = records.Manifest.load(folder, plan=Plan.load(folder / "plan.json"))
    assert manifest.splits == summary["splits"]
    assert manifest.dead_letters is None
    assert Fingerprint.load(folder / "fingerprint.json").modalities["ct"].cases == 3
    (entry,) = json.loads((folder / "run.json").read_text())
    assert entry["command"] == "prepare"
    assert entry["inputs"]["study"] == study.path("study.json")
    assert {"python", "apache-beam", "tensorflow"} <= set(entry["versions"])
    counters = entry["counters"]
    assert counters == summary["counters"]
    scans = [study.path(p) for c in study.cases for p in (c.image, c.label)]
    assert counters["bytes_read"] == sum(pathlib.Path(p).stat().st_size for p in scans)
    assert counters["bytes_written"] == sum(shard.bytes for shard in manifest.shards)
    assert {k: counters[k] for k in ("volumes", "volumes_kept", "shards", "shards_kept")} == {
        "volumes": 10, "volumes_kept": 0, "shards": 8, "shards_kept": 0
    }  # fmt: skip
    assert counters["workers"] == 1
    assert list(counters["stage_seconds"]) == ["read", "prepare", "write"]
    assert "core_seconds" in counters


def test_records_are_what_prepare_makes(study, prepared):
    folder, _ = prepared
    manifest = records.Manifest.load(folder)
    plan = Plan.load(folder / "plan.json")
    cases = {c.id: c for c in study.cases}
    seen = []
    for shard in manifest.shards:
        found = list(records.read_shards([folder / shard.file]))
        assert tuple(r["case"].numpy().decode() for r in found) == shard.cases
        for record in found:
            case = cases[record["case"].numpy().decode()]
            assert (case.split, case.modality) == (shard.split, shard.modality)
            image, label = (nifti.read(study.path(p)) for p in (case.image, case.label))
            expected = preprocessing.prepare(image, plan, label, case.id)
            np.testing.assert_array_equal(record["image"], expected.image)
            np.testing.assert_array_equal(record["label_map"], expected.label_map)
            np.testing.assert_array_equal(record["statistics"], expected.statistics)
            seen.append(case.id)
    assert sorted(seen) == sorted(cases)


def again(study, prepared, tmp_path, *beam):
    """Digests of another run with the same plan, or a plan of its own, and other workers."""
    argv = ["--study", study.path("study.json"), "--output", str(tmp_path / "again")]
    preprocess.run([*argv, "--cases_per_shard", "2", *beam])
    folder, _ = prepared
    for name in ("plan.json", "fingerprint.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    return digests(tmp_path / "again")


def test_two_threads_write_the_same_bytes(study, prepared, tmp_path):
    beam = ("--direct_num_workers=2", "--direct_running_mode=multi_threading")
    assert again(study, prepared, tmp_path, *beam) == digests(prepared[0])


def test_order_of_the_cases_makes_no_difference(study, prepared, tmp_path):
    cases = tuple(
        dataclasses.replace(c, image=study.path(c.image), label=study.path(c.label))
        for c in reversed(study.cases)
    )
    dataclasses.replace(study, cases=cases).save(tmp_path / "study.json")
    argv = ["--study", str(tmp_path / "study.json"), "--output", str(tmp_path / "shards")]
    preprocess.run([*argv, "--cases_per_shard", "2"])
    assert digests(tmp_path / "shards") == digests(prepared[0])


@pytest.fixture
def broken(study, tmp_path):
    """A copy of the study in which six of ten cases are broken: (study, {case id: code})."""
    folder = tmp_path / "broken"
    shutil.copytree(study.folder, folder)
    copy = Study.load(folder / "study.json")
    train = {
        m: [c for c in copy.cases if (c.split, c.modality) == ("train", m)] for m in ("ct", "t1")
    }
    held_out = [c for c in copy.cases if c.split != "train"]
    codes = {}

    def spoil(case, code, name, data):
        codes[case.id] = code
        path = folder / (case.image if name == "image" else case.label)
        if isinstance(data, bytes):
            path.write_bytes(data)
        else:
            nifti.write(path, data, nifti.read(path))

    first = train["ct"][0]
    spoil(first, "KUG-D07", "image", (folder / first.image).read_bytes()[:-100])
    spoil(train["ct"][1], "KUG-D07", "image", b"this is a text\n" * 50)
    array = nifti.read(folder / train["t1"][0].image).array.copy()
    array[1, 2, 3] = np.nan
    spoil(train["t1"][0], "KUG-D06", "image", array)
    shape = nifti.read(folder / train["t1"][1].image).shape
    wrong = nifti.encode(np.zeros((3, 4, 5), np.uint8), affine=np.eye(4))
    spoil(train["t1"][1], "KUG-D03", "label", gzip.compress(wrong))
    label = nifti.read(folder / held_out[0].label).array
    spoil(held_out[0], "KUG-D05", "label", np.where(label == 2, 9, label).astype(np.uint8))
    codes[held_out[1].id] = "KUG-D01"
    (folder / held_out[1].image).unlink()
    assert shape != (3, 4, 5)
    return copy, codes


def test_bad_volumes_become_dead_letters(broken, tmp_path):
    copy, codes = broken
    folder = tmp_path / "shards"
    summary = preprocess.run(["--study", copy.path("study.json"), "--output", str(folder)])
    assert summary["dead_letters"] == len(codes) == 6
    assert summary["dead_letter_file"] == str(folder / "dead_letters.jsonl")
    letters = read_lines(folder / "dead_letters.jsonl")
    assert {letter["case"]: letter["code"] for letter in letters} == codes
    assert all(letter["message"].startswith(letter["code"]) for letter in letters)
    wrong_values = next(letter for letter in letters if letter["code"] == "KUG-D05")
    assert '"label_9": [9]' in wrong_values["message"]
    manifest = records.Manifest.load(folder)
    written = [case for shard in manifest.shards for case in shard.cases]
    assert sorted([*written, *codes]) == sorted(c.id for c in copy.cases)
    assert sum(sum(m.values()) for m in summary["splits"].values()) == len(written) == 4
    assert manifest.dead_letters == "dead_letters.jsonl"


def test_fingerprint_job(broken, study, prepared, tmp_path):
    argv = ["--study", study.path("study.json"), "--output", str(tmp_path / "f.json")]
    summary = fingerprint.run([*argv, "--plan_output", str(tmp_path / "plan.json")])
    assert (summary["cases"], summary["dead_letters"]) == (6, 0)
    for mine, theirs in (("f.json", "fingerprint.json"), ("plan.json", "plan.json")):
        assert (tmp_path / mine).read_bytes() == (prepared[0] / theirs).read_bytes()

    copy, codes = broken
    argv = ["--study", copy.path("study.json"), "--output", str(tmp_path / "g.json")]
    summary = fingerprint.run(argv)
    trained = {c.id for c in copy.cases if c.split == "train"}
    found = {i["case"]: i["code"] for i in read_lines(summary["dead_letter_file"])}
    assert found == {k: v for k, v in codes.items() if k in trained}
    assert Fingerprint.load(tmp_path / "g.json").modalities["t1"].cases == 1


def test_given_plan_and_limit(study, prepared, tmp_path):
    plan = dataclasses.replace(Plan.load(prepared[0] / "plan.json"), spacing=(2.0, 2.0, 4.0))
    plan.save(tmp_path / "plan.json")
    argv = ["--study", study.path("study.json"), "--plan", str(tmp_path / "plan.json")]
    summary = preprocess.run([*argv, "--output", str(tmp_path / "shards"), "--limit", "6"])
    assert summary["splits"] == {s: {"ct": 1, "t1": 1} for s in ("train", "val", "test")}
    manifest = records.Manifest.load(tmp_path / "shards", plan=plan)
    record = next(iter(records.read_shards(manifest.files("train", "ct"))))
    assert max(record["image"].shape) <= 16
    assert not (tmp_path / "shards" / "fingerprint.json").exists()


def test_nothing_is_overwritten_unless_asked(study, prepared, tmp_path):
    folder = tmp_path / "shards"
    shutil.copytree(prepared[0], folder)
    argv = ["--study", study.path("study.json"), "--output", str(folder)]
    with pytest.raises(CodedError, match=r"KUG-E02 .*shards.json: found a file that is there"):
        preprocess.run(argv)
    assert digests(folder) == digests(prepared[0])
    preprocess.run([*argv, "--overwrite", "--limit", "4"])
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*.gz")}
    assert found == set(digests(folder))
    assert len(found) == 4
    (tmp_path / "f.json").write_text("{}")
    with pytest.raises(CodedError, match=r"KUG-E02 .*f.json"):
        fingerprint.run([*argv[:2], "--output", str(tmp_path / "f.json")])


def test_plan_of_another_study(study, prepared, tmp_path):
    plan = Plan.load(prepared[0] / "plan.json")
    turned = dataclasses.replace(plan, modalities=("t1", "ct"))
    turned.save(tmp_path / "plan.json")
    argv = ["--study", study.path("study.json"), "--output", str(tmp_path / "shards")]
    with pytest.raises(CodedError, match=r"KUG-D08 .*plan.json.modalities: found \('t1', 'ct'\)"):
        preprocess.run([*argv, "--plan", str(tmp_path / "plan.json")])
    with pytest.raises(CodedError, match=r"KUG-D01 .*none.json"):
        preprocess.run([*argv, "--plan", str(tmp_path / "none.json")])
    assert not (tmp_path / "shards").exists()


def test_studies_that_cannot_be_used(study, tmp_path):
    argv = ["--study", str(tmp_path / "study.json"), "--output", str(tmp_path / "shards")]
    with pytest.raises(CodedError, match=r"KUG-D01 .*study.json: found no such file"):
        preprocess.run(argv)
    cases = [dataclasses.replace(c, split=None) for c in study.cases]
    dataclasses.replace(study, cases=tuple(cases)).save(tmp_path / "study.json")
    with pytest.raises(CodedError, match=r"KUG-D14 .*10 cases without a split, e.g. phantom001_ct"):
        preprocess.run(argv)
    # The files are not here: every training case is a dead letter, and the first is quoted.
    study.save(tmp_path / "study.json")
    with pytest.raises(CodedError, match=r"KUG-D14 .*of ct, t1; 6 could not be used, .*KUG-D01"):
        preprocess.run(argv)


def test_nothing_left_to_train_on(study, prepared, tmp_path):
    study.save(tmp_path / "study.json")
    argv = ["--study", str(tmp_path / "study.json"), "--output", str(tmp_path / "shards")]
    with pytest.raises(CodedError, match=r"KUG-D14 .*no usable training case among 10 cases"):
        preprocess.run([*argv, "--plan", str(prepared[0] / "plan.json")])
    assert (tmp_path / "shards" / "dead_letters.jsonl").exists()
    assert not (tmp_path / "shards" / "shards.json").exists()


def test_command_line(study, tmp_path, monkeypatch, capsys):
    argv = ["preprocess", "--study", study.path("study.json"), "--output", str(tmp_path / "s")]
    monkeypatch.setattr(sys, "argv", [*argv, "--limit", "2"])
    assert sources.main(preprocess.run) == 0
    assert json.loads(capsys.readouterr().out)["cases"] == 2
    assert sources.main(preprocess.run) == 2
    assert "KUG-E02" in capsys.readouterr().err
    monkeypatch.setattr(preprocess, "run", lambda argv: {"dead_letters": 1})
    assert sources.main(preprocess.run) == 3


def test_help_and_fingerprint_need_no_tensorflow():
    code = (
        "import sys, keras_unigan.pipelines.preprocess, keras_unigan.pipelines.fingerprint;"
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_beam():
    code = "import sys; sys.modules['apache_beam'] = None; import keras_unigan.pipelines"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "KUG-E01 apache_beam: found no package 'apache_beam'" in done.stderr


@pytest.mark.parametrize("job", ["preprocess", "fingerprint"])
def test_script_and_module_run(job, root):
    for command in (["-m", f"keras_unigan.pipelines.{job}"], [str(root / f"pipelines/{job}.py")]):
        done = subprocess.run(
            [sys.executable, *command, "--help"], capture_output=True, text=True, check=True
        )
        assert "--study" in done.stdout
