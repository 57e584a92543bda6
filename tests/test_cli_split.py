"""`unigan init`, `split` and `prepare --fold`: splits, folds and the assignment file."""

import json
import shutil

import pytest
from commands import unigan

from keras_unigan.config import Study
from keras_unigan.data import phantoms, splits


@pytest.fixture
def scans(tmp_path):
    """Eight subjects of two modalities; one of them a second time under another name."""
    folder = tmp_path / "scans"
    phantoms.write_study(folder, ("flair", "t1"), 4, size=32, depth=10, seed=3)
    (folder / "study.json").unlink()
    for ending in ("flair", "seg"):
        shutil.copy(folder / f"phantom001_{ending}.nii.gz", folder / f"other_{ending}.nii.gz")
    return folder


def test_init_split_and_folds(scans, tmp_path, capsys):
    study, asked = tmp_path / "study.json", ["--label", "organ=1", "--label", "lesion=2"]
    assert unigan("init", scans, "-o", study, *asked, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["groups"] == [["other", "phantom001"]]
    assert result["copies"] == [["other_flair", "phantom001_flair", "the same content"]]
    assert sum(result["classes"][s]["lesion"] for s in result["classes"]) == 9
    made = splits.Assignment.load(tmp_path / "study.assignment.json")
    assert made.subjects["other"].split == made.subjects["phantom001"].split
    # A second time it would replace both.
    assert unigan("split", study, "--folds", 3) == 2
    assert "KUG-E02" in capsys.readouterr().err
    assert unigan("split", study, "--folds", 3, "--fold", 1, "--overwrite") == 0
    said = capsys.readouterr().out
    assert "Fold 1 of 3" in said
    assert "other_flair" in said
    first = Study.load(study)
    assert unigan("split", study, "--fold", 2, "-o", tmp_path / "deep" / "s.json") == 0
    second = Study.load(tmp_path / "deep" / "s.json")
    validated = [{c.subject for c in s.cases if c.split == "val"} for s in (first, second)]
    assert validated[0]
    assert validated[1]
    assert not validated[0] & validated[1]
    assert [second.path(c.image) for c in second.cases] == [
        str(tmp_path / "deep" / c.image) for c in second.cases
    ]
    assert unigan("split", study, "--fold", 3, "--overwrite") == 2
    assert "KUG-T02 fold: found 3, expected a fold: 0 to 2" in capsys.readouterr().err
    assert unigan("split", study, "--leave-one-site-out", "--overwrite") == 2
    assert "9 cases without a site" in capsys.readouterr().err
    assert Study.load(study) == first


def test_what_a_split_leaves_out_is_counted_and_said(scans, tmp_path, capsys):
    rows = ["subject,modality,image,label,site"]
    for image in sorted(scans.glob("*[!g].nii.gz")):
        subject, _, modality = image.name.removesuffix(".nii.gz").partition("_")
        site = "far" if subject in ("other", "phantom002") else "near"
        rows.append(f"{subject},{modality},{image.name},{subject}_seg.nii.gz,{site}")
    (scans / "t.csv").write_text("\n".join(rows))
    study = tmp_path / "study.json"
    options = ["--leave-one-site-out", "--fold", 0, "-o", study, "--json"]
    assert unigan("init", scans / "t.csv", *options) == 0
    result = json.loads(capsys.readouterr().out)
    tested = [c for c in Study.load(study).cases if c.split == "test"]
    # The twin of a tested subject lies at the other site: kept apart with it, and not tested.
    assert sorted(c.subject for c in tested) == ["other", "phantom002"]
    assert result["classes"]["test"]["label_1"] == 2
    assert result["left_out"] == 1
    assert unigan("convert", study, "--to", "csv", "-o", tmp_path / "out" / "t.csv") == 0
    assert "Note: 1 scans that the split leaves out are not converted" in capsys.readouterr().out


def test_a_fold_is_prepared(scans, tmp_path, capsys):
    study = tmp_path / "study.json"
    assert unigan("prepare", study, "--fold", 0) == 3
    assert unigan("init", scans, "-o", study, "--no-content", "--quiet") == 0
    capsys.readouterr()
    assert unigan("prepare", study, "--fold", 0, "-o", tmp_path / "shards") == 2
    assert "KUG-T02 fold: found 0, expected a fold: none" in capsys.readouterr().err
    assert unigan("split", study, "--folds", 2, "--overwrite", "--quiet") == 0
    assert unigan("prepare", study, "--fold", 1, "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["cases"] == 9
    assert not (tmp_path / "study.fold1.json").exists()
    assert unigan("prepare", study, "--fold", 1, "-o", tmp_path / "shards", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    fold = Study.load(tmp_path / "study.fold1.json")
    for split in ("train", "val"):
        assert sum(result["splits"][split].values()) == sum(c.split == split for c in fold.cases)
    places = splits.Assignment.load(tmp_path / "study.assignment.json").subjects
    assert {c.subject for c in fold.cases if c.split == "val"} == {
        s for s, p in places.items() if p.fold == 1
    }
    (tmp_path / "study.assignment.json").unlink()
    assert unigan("prepare", study, "--fold", 1, "-o", tmp_path / "more") == 3
    assert "unigan split" in capsys.readouterr().err
