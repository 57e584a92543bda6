"""benchmarks/general.py: whom it holds out of few, what it does again, what its table says."""

import argparse
import importlib
import json
import shutil

import pytest

from keras_unigan.config import Case, Labels, Study
from keras_unigan.data import cases, copies, phantoms, splits
from keras_unigan.errors import CodedError


@pytest.fixture
def general(root, monkeypatch):
    monkeypatch.syspath_prepend(root / "benchmarks")
    return importlib.import_module("general")


@pytest.fixture
def options(tmp_path):
    values = {"data": str(tmp_path / "data"), "work": str(tmp_path / "work"), "folders": None}
    values |= {"rows": str(tmp_path / "rows.jsonl"), "steps": 3, "seed": 0, "quiet": True}
    return argparse.Namespace(**values)


def scans(folder, **sizes):
    """A folder of phantoms without anything that says how to split them."""
    phantoms.write_study(folder, size=16, depth=4, **sizes)
    for path in folder.glob("*.json"):
        path.unlink()
    return folder


def splits_of(study):
    """Split -> subjects."""
    found = {}
    for case in study.cases:
        found.setdefault(case.split, set()).add(case.subject)
    return found


def test_one_of_few_subjects_is_held_out(general, tmp_path):
    folder = scans(tmp_path / "few", modalities=("t1",), subjects_per_modality=3)
    study, _, why = general.study_of(folder)
    found = splits_of(study)
    assert {split: len(names) for split, names in found.items()} == {"train": 2, "test": 1}
    assert max(found["train"]) < min(found["test"])
    assert why is None


def test_nobody_can_be_held_out_of_one_subject_a_modality(general, tmp_path):
    folder = scans(tmp_path / "two", modalities=("ct", "t1"), subjects_per_modality=1)
    study, _, why = general.study_of(folder)
    assert (set(splits_of(study)), study.modalities) == ({"train"}, ("ct", "t1"))
    assert why == general.NOBODY.format(2)


def test_modalities_that_nobody_trains_with_are_left_out(general):
    places = (("a", "t1", "train"), ("b", "t1", "test"), ("b", "ct", "test"))
    cases = tuple(Case(s, m, f"{s}_{m}.nii", f"{s}_seg.nii", split) for s, m, split in places)
    study = general._trained(Study("few", ("ct", "t1"), Labels(classes={"organ": (1,)}), cases))
    assert study.modalities == ("t1",)
    assert [(case.subject, case.modality) for case in study.cases] == [("a", "t1"), ("b", "t1")]


def test_few_subjects_of_many_modalities_make_a_study(general, tmp_path, monkeypatch):
    """Each trains with one of its modalities; the study and its assignment know no others."""
    folder = scans(tmp_path / "paired", modalities=("t1",), subjects_per_modality=3)
    for path in sorted(folder.glob("*_t1.nii.gz")):
        for modality in ("ct", "flair"):
            shutil.copy(path, path.with_name(path.name.replace("_t1", f"_{modality}")))
    monkeypatch.setattr(copies, "find", lambda study: ([], []))  # these are all copies
    study, made, why = general.study_of(folder)
    cases.save_split(study, made, tmp_path / "study.json")
    read = Study.load(tmp_path / "study.json")
    train = [case for case in read.cases if case.split == "train"]
    assert (len(train), len(read.modalities), why) == (2, 2, None)
    assert {case.modality for case in read.cases if case.split == "test"} == set(read.modalities)
    kept = splits.Assignment.load(tmp_path / "study.assignment.json").left_out
    assert {case.modality for case in kept} <= set(read.modalities)


def test_many_subjects_are_split_as_init_does(general, tmp_path):
    folder = scans(tmp_path / "many", modalities=("ct", "t1"), subjects_per_modality=5)
    study, _, why = general.study_of(folder)
    assert {split: len(names) for split, names in splits_of(study).items()} == {
        "train": 6,
        "val": 2,
        "test": 2,
    }
    assert why is None


def test_a_row_that_stands_is_not_made_again(general, options, tmp_path, monkeypatch):
    for name in ("a", "b", "c"):
        (tmp_path / "data" / name).mkdir(parents=True)
    rows = [{"folder": "a", "steps": 3, "seed": 0}, {"folder": "b", "steps": 9, "seed": 0}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = []

    def child(action, name, given):
        asked.append((action, name))
        return int(name == "b" and action == "one")

    monkeypatch.setattr(general, "child", child)
    with pytest.raises(SystemExit, match="No row of b: "):
        general.run(options)
    assert asked == [("prepare", "b"), ("one", "b"), ("prepare", "c"), ("one", "c")]
    options.folders = ["d"]
    with pytest.raises(SystemExit, match="No folder d in "):
        general.run(options)


def test_a_folder_that_is_refused_says_why(general, options, monkeypatch, capsys):
    def refuse(name, given):
        raise CodedError("KUG-D02", name, "label maps", "images", "Why.", "a fix")

    monkeypatch.setattr(general, "prepared", refuse)
    options.folders = ["labelmaps"]
    monkeypatch.setattr(general, "folders", lambda given: given.folders)
    general.train_one(options)
    general.prepare(options)
    general.forecast(options)
    (row,) = general.comparing.read_rows(options.rows)
    assert (row["folder"], row["refused"][:7]) == ("labelmaps", "KUG-D02")
    capsys.readouterr()
    general.table(options)
    assert "- KUG-D02 labelmaps: found label maps, expected images" in capsys.readouterr().out


def test_the_table_says_what_was_held_out_and_decided(general, options, capsys):
    row = {"folder": "brains", "steps": 3, "seed": 0, "model": "joint", "why": "model: joint, as …"}
    row |= {"modalities": ["t1"], "classes": ["organ", "lesion"], "held_out": "test"}
    row |= {"subjects": {"train": 6, "val": 2, "test": 2}, "spacing": [1.0, 1.0, 2.5]}
    row |= {"patch": [64, 64], "batch": 8, "levels": 3, "width": 32, "seconds": 90}
    row |= {"dice": {"macro": 0.5, "t1": 0.5}, "train_dice": {"macro": 0.75, "t1": 0.75}}
    row |= {"gap": 0.25, "peak_gib": 1.25, "reasons": {"patch_size": "the median slice"}}
    alone = {**row, "folder": "spines", "dice": None, "gap": None, "held_out": "none: 1 subjects"}
    general.comparing.add_row(options.rows, row)
    general.comparing.add_row(options.rows, alone)
    capsys.readouterr()
    general.table(options)
    said = capsys.readouterr().out.splitlines()
    assert said[2] == (
        "| brains | joint | t1 | 2 | 6, 2, 2 | 64x64, 8 | 3, 32 | 1 x 1 x 2.5 | 0.500 | t1 0.500 "
        "| 0.750 | 0.250 | 3 | 1.5 | 1.25 |"
    )
    assert "| – | – | 0.750 | – |" in said[3]
    assert {"- patch_size: the median slice", "- held out: none: 1 subjects"} <= set(said)


@pytest.mark.slow
def test_a_folder_becomes_a_row_and_goes_on(general, options, tmp_path):
    scans(tmp_path / "data" / "few", modalities=("t1",), subjects_per_modality=3)
    row = general.one("few", options)
    assert (row["model"], row["why"].split(",")[0]) == ("joint", "model: joint")
    assert (row["subjects"], row["held_out"]) == ({"train": 2, "val": 0, "test": 1}, "test")
    assert row["gap"] == pytest.approx(row["train_dice"]["macro"] - row["dice"]["macro"])
    assert {"spacing", "patch_size", "batch_size"} <= set(row["reasons"])
    assert (row["failed"], row["modalities"]) == (0, ["t1"])
    # Trained before: it is only scored again, and the run's own scores are the held-out's.
    again = general.one("few", options)
    assert {**again, "peak_gib": 0} == {**row, "peak_gib": 0}
    run = tmp_path / "work" / "few" / "run_3_0"
    assert json.loads((run / "metrics.json").read_text())["split"] == "test"
    general.comparing.add_row(options.rows, general.rounded(row))
    general.table(options)
