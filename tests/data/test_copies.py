"""Planted copies: one scan under the names of two subjects is found, and never in two splits."""

import collections
import csv
import dataclasses
import shutil

import numpy as np
import pytest

from keras_unigan.config import Case, Labels, Study
from keras_unigan.data import cases, copies, nifti, phantoms, splits, volumes
from keras_unigan.data.checks import duplicates, passes

TWINS = {
    "same file": lambda a: a,
    "other gain": lambda a: np.rint(a.astype(np.float64) * 250 / a.max() + 3),
    "mirrored": lambda a: a[::-1],
    "turned upside down": lambda a: a[:, ::-1, ::-1],
    "a voxel cropped": lambda a: a[1:],
    "a voxel cropped on all sides": lambda a: a[1:-1, 1:-1, 1:-1],
    "half of it": lambda a: a[: a.shape[0] // 2 + 4, :, :],
    "mirrored and cropped": lambda a: a[:, ::-1][2:, :-1],
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Sixteen phantoms of two modalities, no two of them alike."""
    folder = tmp_path_factory.mktemp("plain")
    phantoms.write_study(folder, ("flair", "t1"), 8, size=40, depth=12, seed=8)
    return folder


@pytest.fixture
def planted(plain, tmp_path):
    """The phantoms with one twin of each kind, under the name of a new subject."""
    folder = shutil.copytree(plain, tmp_path / "planted")
    study = Study.load(folder / "study.json")
    more, pairs = [], {}
    for case, (name, change) in zip(study.cases, TWINS.items(), strict=False):
        subject = "twin_" + name.replace(" ", "")
        for part, ending in (("image", case.modality), ("label", "seg")):
            scan = nifti.read(study.path(getattr(case, part)))
            array = change(scan.array) if part == "image" or name != "other gain" else scan.array
            target = folder / f"{subject}_{ending}.nii.gz"
            nifti.write(target, np.ascontiguousarray(array, np.float32), affine=scan.affine)
        names = {
            p: f"{subject}_{e}.nii.gz" for p, e in (("image", case.modality), ("label", "seg"))
        }
        more.append(dataclasses.replace(case, subject=subject, split=None, **names))
        pairs[subject] = case.subject
    bare = [dataclasses.replace(c, split=None) for c in study.cases]
    return dataclasses.replace(study, cases=(*bare, *more)), pairs


def test_all_twins_are_found_and_nothing_else(planted):
    study, pairs = planted
    found, unread = copies.find(study)
    assert {frozenset(c.subjects) for c in found} == {frozenset(p) for p in pairs.items()}
    assert unread == []
    by_name = {c.second.subject: c.how for c in found}
    assert by_name["twin_samefile"] == "the same content"
    assert by_name["twin_othergain"] == "correlation 1.000"
    assert "of the runs of voxels" in by_name["twin_halfofit"]


def test_twins_never_lie_in_two_splits(planted):
    study, pairs = planted
    for scheme in (splits.Scheme(), splits.Scheme(folds=3)):
        for seed in range(4):
            scheme = dataclasses.replace(scheme, seed=seed)
            done, made, found, _ = cases.share_out(study, scheme)
            assert len(found) == len(TWINS)
            for fold in range(made.folds or 1):
                done, made = splits.take_fold(done, made, fold if made.folds else None)
                for twin, subject in pairs.items():
                    assert made.subjects[twin].split == made.subjects[subject].split
    # Without the search some of them are torn apart.
    made = cases.share_out(study, splits.Scheme(), content=False)[1]
    assert any(made.subjects[a].split != made.subjects[b].split for a, b in pairs.items())


def test_check_names_the_twins_in_two_splits(planted):
    study, pairs = planted
    spread = [
        dataclasses.replace(c, split="test" if c.subject in pairs else "train") for c in study.cases
    ]
    dataclasses.replace(study, cases=tuple(spread)).save(f"{study.folder}/study.json")
    report, twins = passes.check(f"{study.folder}/study.json")
    counts = collections.Counter(
        f.code for f in report.findings if f.code in ("KUG-D27", "KUG-D28")
    )
    assert counts == {"KUG-D27": 1, "KUG-D28": len(TWINS) - 1}
    subjects = [c.subject for c in study.cases]
    assert {(subjects[b], subjects[a]) for a, b in twins} == set(pairs.items())


def test_what_cannot_be_searched_is_named(tmp_path):
    (tmp_path / "broken.nii.gz").write_bytes(b"no scan")
    found = (
        Case("a", "t1", "gs://bucket/a.nii"),
        Case("b", "t1", str(tmp_path / "broken.nii.gz")),
        Case("c", "t1", str(tmp_path / "missing.nii.gz")),
    )
    study = Study("s", ("t1",), Labels(classes={"x": (1,)}), found)
    assert copies.find(study) == ([], ["a_t1", "b_t1", "c_t1"])


def test_plain_images_have_no_sketch():
    box = np.zeros((30, 30, 30), np.float32)
    box[10:20, 10:20, 10:20] = 5
    assert duplicates.sketch(box) is None
    assert duplicates.sketch(box[:4]) is None
    # A hash that many images share tells nothing.
    rng = np.random.default_rng(0)
    sketch = duplicates.sketch(rng.normal(size=(40, 20, 20)).astype(np.float32))
    few = {i: sketch for i in range(3)}
    assert len(duplicates.same_runs(few, {i: i for i in few})) == 3
    many = {i: sketch for i in range(60)}
    assert duplicates.same_runs(many, {i: i for i in many}) == []


def test_real_twins(unigan_data):
    """Crops of 35 x 50 x 35 voxels that differ little: only true copies are found."""
    folder = unigan_data / "hippocampus_t1_msd"
    with open(unigan_data / "manifest.csv", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["dataset"] == folder.name]
    thumbnails, sketches, groups = {}, {}, {}
    for row in rows:
        array = nifti.to_ras(volumes.read(unigan_data / row["image"])).array.astype(np.float32)
        kinds = {"": lambda a: a} if len(groups) > 40 else {"": lambda a: a, **TWINS}
        for name, change in kinds.items():
            key = (row["subject"], name)
            image = np.ascontiguousarray(change(array), np.float32)
            groups[key] = key
            thumbnails[key], sketches[key] = duplicates.thumbnail(image), duplicates.sketch(image)
    near = duplicates.near(thumbnails, groups) + duplicates.same_runs(sketches, groups)
    assert {a[0] == b[0] for a, b, _ in near} == {True}
    found = {frozenset((a, b)) for a, b, _ in near}
    for subject, name in groups:
        if name:
            assert frozenset(((subject, ""), (subject, name))) in found, name
