"""`unigan check`: each mistake made on purpose gives exactly its codes, clean data gives none."""

import csv
import dataclasses
import gzip
import hashlib
import json
import shutil
import subprocess
import sys
import tracemalloc

import nibabel as nib
import numpy as np
import pytest

from keras_unigan import cli
from keras_unigan.config import SPLITS, Case, Configuration, Normalization, Plan, Study
from keras_unigan.data import cases, nifti, phantoms
from keras_unigan.data.checks import duplicates, identity, passes, repair
from keras_unigan.data.checks import scans as scan_files
from keras_unigan.data.checks.findings import Finding

CANARY = "Doe^Jane 1970-01-31"


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """Twelve small phantoms of two modalities, in three splits."""
    folder = tmp_path_factory.mktemp("clean")
    phantoms.write_study(
        folder, modalities=("ct", "t1"), subjects_per_modality=6, size=32, depth=12, seed=5
    )
    return folder


@pytest.fixture
def scans(clean, tmp_path):
    """A copy of the clean study to spoil."""
    return shutil.copytree(clean, tmp_path / "scans")


def subject(study, modality="t1", split="train"):
    return next(c for c in study.cases if c.modality == modality and c.split == split)


def report(folder, **options):
    return passes.check(folder / "study.json", **options)[0]


def codes(folder, **options):
    """Code -> level of the worst finding of it; "-" where levels are mixed would hide nothing."""
    found = {}
    for finding in report(folder, **options).findings:
        found.setdefault(finding.code, finding.level)
    return found


def rewrite(path, change):
    """Reads an image, changes array or affine, writes it in place; returns what nibabel holds."""
    image = nib.load(path)
    array, affine = change(np.asarray(image.dataobj), image.affine.copy())
    nifti.write(path, array, affine=affine)


def edit_header(path, **fields):
    raw = gzip.decompress(path.read_bytes())
    header = nib.Nifti1Header(raw[:348])
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(gzip.compress(header.binaryblock + raw[348:], 1, mtime=0))


def edit_study(folder, change):
    path = folder / "study.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def image_of(folder, **which):
    return folder / subject(Study.load(folder / "study.json"), **which).image


def label_of(folder, **which):
    return folder / subject(Study.load(folder / "study.json"), **which).label


def test_clean_data_gives_nothing(clean):
    found = report(clean)
    assert found.findings == ()
    assert (found.cases, found.files) == (12, 24)
    assert found.classes["ct"]["lesion"]["cases"] == 6
    assert found.modalities["t1"] == {"train": 4, "val": 1, "test": 1}


# What is done to the header or voxels of one file, and the codes that must come of it.
def shifted(voxels):
    return lambda a, m: (a, m @ nib.affines.from_matvec(np.eye(3), [voxels, 0, 0]))


def sheared(array, affine):
    affine[:3, 1] += 0.1 * affine[:3, 0]
    return array, affine


def spotted(value, count=3):
    def change(array, affine):
        array = array.astype(np.float32)
        array.flat[array.size // 2 : array.size // 2 + count] = value
        return array, affine

    return change


def scaled(array, affine):
    return (array.astype(np.float64) / array.max()).astype(np.float32), affine


def clipped(array, affine):
    return np.minimum(array, np.quantile(array[array > 0], 0.6)), affine


VOXELS = {
    "transposed": ("label", lambda a, m: (a.swapaxes(0, 1)[:, :, :-1], m), {"KUG-D03": "error"}),
    "half a voxel": ("label", shifted(0.5), {"KUG-D04": "error"}),
    "a third of a voxel": ("label", shifted(0.3), {"KUG-D04": "warning"}),
    "rounding": ("label", shifted(0.005), {"KUG-D04": "info"}),
    "unknown value": ("label", spotted(7), {"KUG-D05": "error"}),
    "no whole value": ("label", spotted(1.5), {"KUG-D05": "error"}),
    "label not a number": ("label", spotted(np.nan), {"KUG-D06": "error"}),
    "empty label": ("label", lambda a, m: (a * 0, m), {"KUG-D23": "warning"}),
    "one class": ("label", lambda a, m: (a * 0 + 1, m), {"KUG-D23": "warning"}),
    "nothing labelled": ("label", lambda a, m: (a * 0 + 255, m), {"KUG-D23": "warning"}),
    "tiny class": ("label", lambda a, m: (spotted(2)(a * 0, m)[0].astype(np.uint8), m),
                   {"KUG-D23": "info"}),
    "NaN": ("image", spotted(np.nan), {"KUG-D06": "error"}),
    "infinity": ("image", spotted(np.inf), {"KUG-D06": "error"}),
    "constant": ("image", lambda a, m: (a * 0 + 4, m), {"KUG-D12": "error"}),
    "clipped": ("image", clipped, {"KUG-D24": "info"}),
    "zero to one": ("image", scaled, {"KUG-D25": "info"}),
    "four axes": ("image", lambda a, m: (np.stack([a, a], -1), m), {"KUG-D10": "error"}),
}  # fmt: skip


@pytest.mark.parametrize("name", VOXELS)
def test_spoilt_file(name, scans):
    part, change, expected = VOXELS[name]
    rewrite((label_of if part == "label" else image_of)(scans), change)
    found = report(scans)
    assert {f.code: f.level for f in found.findings} == expected
    assert len(found.findings) == 1
    finding = found.findings[0]
    assert finding.case == subject(Study.load(scans / "study.json")).id
    assert str(finding).startswith(f"{finding.code} {finding.case} ")
    assert "expected" in finding.message


def test_a_bright_background_is_no_clipped_range(scans):
    def inverted(array, affine):
        return array.max() - array, affine

    rewrite(image_of(scans), inverted)
    assert "KUG-D24" not in codes(scans)


def test_sheared_affine_is_read(scans):
    for path in (image_of(scans), label_of(scans)):
        rewrite(path, sheared)
    # A qform cannot hold a shear, so the two of the file disagree too.
    assert codes(scans) == {"KUG-D20": "warning", "KUG-D21": "warning"}
    assert all("degrees" in f.message for f in report(scans).findings if f.code == "KUG-D21")


HEADERS = {
    "qform elsewhere": ({"qoffset_x": 500}, {"KUG-D20": "warning"}),
    "qform no rotation": ({"quatern_b": 3.0}, {"KUG-D20": "warning"}),
    "micrometres": ({"xyzt_units": 3}, {"KUG-D22": "warning"}),
    "date in the header": ({"descrip": CANARY.encode()}, {"KUG-D16": "warning"}),
    "free text": ({"descrip": b"from the ward"}, {"KUG-D16": "info"}),
    "software": ({"descrip": b"FSL5.0", "aux_file": b"none"}, {}),
}


@pytest.mark.parametrize("name", HEADERS)
def test_spoilt_header(name, scans):
    fields, expected = HEADERS[name]
    edit_header(image_of(scans), **fields)
    assert codes(scans) == expected


def test_spacing_of_the_header_and_of_the_affine(scans):
    edit_header(image_of(scans), pixdim=[1, 5, 5, 5, 1, 1, 1, 1], qform_code=0)
    assert codes(scans) == {"KUG-D22": "warning"}


def test_no_orientation_at_all(scans):
    for path in (image_of(scans), label_of(scans)):
        edit_header(path, qform_code=0, sform_code=0)
    assert codes(scans) == {"KUG-D22": "warning"}


def test_zero_spacing(scans):
    edit_header(image_of(scans), srow_x=np.zeros(4))
    assert codes(scans) == {"KUG-D11": "error"}


def test_rgb(scans):
    path = image_of(scans)
    array = np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.Nifti1Image(array, np.eye(4)).to_filename(path)
    assert codes(scans) == {"KUG-D10": "error"}


DAMAGE = {
    "cut gzip": (lambda data: data[: len(data) // 2], "damaged or end early"),
    "cut volume": (lambda data: gzip.compress(gzip.decompress(data)[:-99], 1), "ends early"),
    "garbage": (lambda data: b"what is this" * 40, "no NIfTI"),
    "nothing": (lambda data: b"", "an empty file"),
    "web page": (lambda data: b"<!DOCTYPE html><html>", "web page"),
    "picture": (lambda data: b"\x89PNG\r\n\x1a\n" + b"0" * 99, "PNG"),
    "pointer": (lambda data: b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_unreadable_file(name, scans):
    change, words = DAMAGE[name]
    path = image_of(scans)
    path.write_bytes(change(path.read_bytes()))
    found = report(scans)
    assert [(f.code, f.level) for f in found.findings] == [("KUG-D07", "error")]
    assert words in found.findings[0].message


def test_wrong_ending(scans):
    path = image_of(scans)
    path.write_bytes(gzip.decompress(path.read_bytes()))
    assert codes(scans) == {"KUG-D07": "warning"}


def test_missing_file_names_the_nearest(scans):
    path = image_of(scans)
    path.rename(path.with_name(path.name.replace("phantom", "fantom")))
    found = report(scans).findings
    assert [f.code for f in found] == ["KUG-D01"]
    assert "did you mean 'fantom" in found[0].message


@pytest.mark.parametrize(("split", "level"), [("train", "info"), ("test", "warning")])
def test_image_without_label(split, level, scans):
    def change(data):
        del next(c for c in data["cases"] if c["split"] == split)["label"]

    edit_study(scans, change)
    assert codes(scans) == {"KUG-D02": level}


def test_intensities_of_another_modality(scans):
    rewrite(image_of(scans, modality="ct"), lambda a, m: (a + 1024, m))
    rewrite(image_of(scans, modality="t1"), lambda a, m: (a * 1000 / a.max() - 1000, m))
    rewrite(image_of(scans, modality="t1"), lambda a, m: (a + (a > -900) * 500, m))
    found = report(scans).findings
    assert [(f.code, f.level) for f in found] == [("KUG-D25", "warning")] * 2
    assert any("subtract 1024" in f.fix for f in found)
    assert any('declare the modality "ct"' in f.fix for f in found)


def swap(data, key, value, number=0):
    data["cases"][number][key] = value


def twice(data):
    data["cases"].append(dict(data["cases"][0]))


def two_splits(data):
    first = next(c for c in data["cases"] if c["split"] == "train")
    other = next(c for c in data["cases"] if c["split"] == "test" and c is not first)
    other["subject"] = first["subject"]
    other["visit"] = "second"


def same_file(data):
    data["cases"][1]["image"], data["cases"][1]["label"] = (
        data["cases"][0]["image"], data["cases"][0]["label"]
    )  # fmt: skip


STUDY = {
    "the case twice": (twice, {"KUG-D13": "error"}),
    "one subject in two splits": (two_splits, {"KUG-D13": "error"}),
    "one file in two cases": (same_file, {"KUG-D13": "error"}),
    "unknown key": (lambda d: swap(d, "lable", "x"), {"KUG-D08": "error"}),
    "unknown split": (lambda d: swap(d, "split", "trial"), {"KUG-D08": "error"}),
    "labels missing": (lambda d: d.pop("labels"), {"KUG-D08": "error"}),
    "no split at all": (lambda d: [c.pop("split") for c in d["cases"]], {"KUG-D14": "warning"}),
    "modality without cases": (lambda d: d["modalities"].append("t2"), {"KUG-D14": "error"}),
    "a class nobody has": (lambda d: d["labels"].update(ghost=[9]), {"KUG-D23": "warning"}),
}


@pytest.mark.parametrize("name", STUDY)
def test_spoilt_study(name, scans):
    change, expected = STUDY[name]
    edit_study(scans, change)
    assert codes(scans) == expected


def test_modality_that_the_study_does_not_list(scans):
    edit_study(scans, lambda d: swap(d, "modality", "ctt"))
    found = report(scans).findings
    assert [f.code for f in found] == ["KUG-D08"]
    assert found[0].number == 0


def test_one_modality_and_unknown_ones(scans):
    def only(data, name):
        data["modalities"] = [name]
        data["cases"] = [c | {"modality": name} for c in data["cases"] if c["modality"] == "t1"]

    edit_study(scans, lambda d: only(d, "t1"))
    assert codes(scans) == {"KUG-D26": "warning"}
    edit_study(scans, lambda d: only(d, "dreamscan"))
    edit_study(scans, lambda d: d.update(modalities=["t1", "dreamscan"]))
    assert [f.level for f in report(scans).findings if f.code == "KUG-D26"] == ["info"]


def test_splits_without_a_modality(scans):
    def no_training(data):
        for case in data["cases"]:
            if case["modality"] == "ct" and case["split"] == "train":
                case["split"] = "val"

    edit_study(scans, no_training)
    found = report(scans).findings
    assert [(f.code, f.level) for f in found] == [("KUG-D14", "error")]
    assert "no train case of ct" in found[0].message


def test_unbalanced_modalities(scans):
    def few(data):
        spare = [c for c in data["cases"] if c["modality"] == "ct" and c["split"] == "train"][1:]
        data["cases"] = [c for c in data["cases"] if c not in spare]

    edit_study(scans, few)
    found = report(scans).findings
    assert [f.code for f in found] == ["KUG-D29"]
    assert "ct 1, t1 4" in found[0].message
    assert "ct 2.5, t1 0.62" in found[0].message


def test_classes_that_were_not_annotated(scans):
    """No complaint where they are not, one where they are; wrong names are named."""
    study = Study.load(scans / "study.json")
    for case in study.cases:
        if case.modality == "ct":
            rewrite(scans / case.label, lambda a, affine: (np.where(a == 2, 0, a), affine))
    first = subject(study)
    change = lambda c: ("organ",) if c.modality == "ct" or c is first else None  # noqa: E731
    cases_ = tuple(dataclasses.replace(c, annotated=change(c)) for c in study.cases)
    dataclasses.replace(study, cases=cases_).save(scans / "study.json")
    found = report(scans)
    assert [(f.code, f.level, f.case) for f in found.findings] == [("KUG-D05", "warning", first.id)]
    assert "lesion (" in found.findings[0].message
    assert found.classes["ct"]["lesion"] == {"cases": 0, "voxels": 0}
    assert found.classes["t1"]["lesion"]["cases"] == 5

    data = json.loads((scans / "study.json").read_text())
    data["cases"][0]["annotated"] = ["organs"]
    (scans / "study.json").write_text(json.dumps(data))
    (wrong,) = [f for f in report(scans).findings if f.code == "KUG-D08"]
    assert (wrong.level, wrong.number) == ("error", 0)
    assert "'organs' (did you mean 'organ'?)" in wrong.message
    whole, twins = passes.check(scans / "study.json")
    made = repair.repair(scans / "study.json", whole, twins, scans.parent / "fixed")
    assert [why for _, why in made.left] == ["KUG-D08: annotated names not in the study"]
    assert Study.load(made.study).cases[-1].annotated == cases_[-1].annotated


def test_class_absent_in_one_modality(scans):
    study = Study.load(scans / "study.json")
    for case in study.cases:
        if case.modality == "t1":
            rewrite(scans / case.label, lambda a, m: (np.minimum(a, 1), m))
    found = report(scans).findings
    assert [(f.code, f.level) for f in found] == [("KUG-D15", "warning")]
    assert "no lesion in the training cases of t1" in found[0].message


def test_slice_among_volumes(scans):
    for path in (image_of(scans), label_of(scans)):
        rewrite(path, lambda a, m: (np.ascontiguousarray(a[:, :, [a.shape[2] // 2]]), m))
    assert codes(scans) == {"KUG-D18": "warning"}


def test_volume_smaller_than_the_patch(clean):
    scheme = Normalization("mr", 0, 1, -1, 1)
    configuration = Configuration((16, 16, 64), 1, ((2, 2, 2),), 8)
    plan = Plan("p", ("ct", "t1"), phantoms.LABELS, (1.0, 1.0, 2.0), None,
                {"ct": scheme, "t1": scheme}, {"3d": configuration})  # fmt: skip
    found = report(clean, plan=plan).findings
    assert {(f.code, f.level) for f in found} == {("KUG-D17", "info")}
    assert len(found) == 12


# Copies.
def copy_to(folder, change, split="test"):
    """Puts a changed copy of a training image and label in place of a case of another split."""
    study = Study.load(folder / "study.json")
    source, target = subject(study), subject(study, split=split)
    rewritten = []
    for part in ("image", "label"):
        image = nib.load(folder / getattr(source, part))
        array, affine = np.asarray(image.dataobj), image.affine
        array, affine = change(array, affine, part)
        nifti.write(folder / getattr(target, part), array, affine=affine)
        rewritten.append(array)
    return source, target


def test_same_content_across_splits(scans):
    # Other orientation, voxel type and compression: the content is the same.
    def turned(array, affine, part):
        flip = np.diag([-1.0, 1, 1, 1])
        flip[0, 3] = array.shape[0] - 1
        return array[::-1].astype(np.float64), affine @ flip

    source, target = copy_to(scans, turned)
    found, twins = passes.check(scans / "study.json")
    assert [(f.code, f.level) for f in found.findings] == [("KUG-D27", "error")]
    assert source.id in found.findings[0].message or target.id in found.findings[0].message
    assert len(twins) == 1


def test_same_content_within_a_split_is_a_warning(scans):
    study = Study.load(scans / "study.json")
    one, two = [c for c in study.cases if c.modality == "t1" and c.split == "train"][:2]
    for part in ("image", "label"):
        shutil.copy(scans / getattr(one, part), scans / getattr(two, part))
    assert codes(scans) == {"KUG-D27": "warning"}


TWINS = {
    "noise": lambda a: a + np.random.default_rng(0).normal(0, 0.05 * a.std(), a.shape) * (a > 0),
    "gain": lambda a: a * 1.7,
    "gamma": lambda a: np.maximum(a, 0) ** 0.8,
}


@pytest.mark.parametrize("name", TWINS)
def test_planted_twins_are_found(name, scans):
    def change(array, affine, part):
        return (TWINS[name](array).astype(np.float32) if part == "image" else array), affine

    source, target = copy_to(scans, change)
    found, twins = passes.check(scans / "study.json")
    assert [(f.code, f.level) for f in found.findings] == [("KUG-D28", "warning")]
    names = {found.findings[0].case, found.findings[0].message.split("like ")[1].split(" ")[0]}
    assert names == {source.id, target.id}
    study = Study.load(repair.repair(scans / "study.json", found, twins, scans / ".." / "f").study)
    splits_now = {c.split for c in study.cases if c.subject in (source.subject, target.subject)}
    assert splits_now == {"train"}


@pytest.mark.parametrize("modality", ["ct", "t1", "xray"])
def test_plain_images_are_no_twins_of_each_other(modality):
    """Phantoms are so alike that thumbnails hardly tell them apart: the limit rises with that."""
    images = {s: np.float32(phantoms.volume(s, modality, (64, 64, 16))[0]) for s in range(10)}
    images[10] = images[3] * 1.7
    noise = np.random.default_rng(0).normal(0, 0.1 * images[4].std(), images[4].shape)
    images[11] = images[4] + np.float32(noise)
    thumbnails = {key: duplicates.thumbnail(image) for key, image in images.items()}
    groups = {key: "train" if key < 6 else "test" for key in images}
    kinds = dict.fromkeys(images, modality)
    limits = duplicates.limits(thumbnails, kinds, {key: key for key in images})
    found = [(a, b) for a, b, _ in duplicates.near(thumbnails, groups, limits)]
    assert found == [(3, 10), (4, 11)]
    if modality == "ct":
        assert len(duplicates.near(thumbnails, groups)) > 10
    few = {key: thumbnails[key] for key in (3, 10)}
    assert set(duplicates.limits(few, kinds, groups).values()) == {duplicates.SIMILAR}


def test_thumbnails_of_many_cases_are_compared_in_blocks(monkeypatch):
    monkeypatch.setattr(duplicates, "_BLOCK", 3)
    rng = np.random.default_rng(1)
    images = {i: duplicates.thumbnail(rng.normal(size=(20, 20, 9))) for i in range(16)}
    images[13] = images[2]
    groups = {i: "train" if i < 10 else "test" for i in images}
    assert [(a, b) for a, b, _ in duplicates.near(images, groups)] == [(2, 13)]
    assert duplicates.near(images, dict.fromkeys(images, "train")) == []
    assert duplicates.thumbnail(np.zeros((5, 5, 5), np.float32)) is None


# Identities.
def test_identities_are_named_by_field_and_never_shown(scans, capsys):
    path = image_of(scans)
    edit_header(path, descrip=CANARY.encode(), aux_file=b"19700131")
    extended = nib.load(path)
    extended.header.extensions.append(nib.nifti1.Nifti1Extension("comment", CANARY.encode()))
    extended.to_filename(path)
    path.with_name(path.name.replace(".nii.gz", ".json")).write_text(
        json.dumps({"PatientName": CANARY, "EchoTime": 0.1, "nested": {"PatientID": "x"}})
    )
    renamed = label_of(scans).rename(scans / "Doe^Jane_19700131_seg.nii.gz")

    def change(data):
        first = next(c for c in data["cases"] if c["modality"] == "t1" and c["split"] == "train")
        first["label"], first["subject"] = renamed.name, "Doe^Jane"

    edit_study(scans, change)
    assert codes(scans) == {"KUG-D16": "warning"}
    with pytest.raises(SystemExit):
        cli.main(["check", str(scans / "study.json"), "--json"])
    text = capsys.readouterr().out
    assert "descrip" in text
    assert "PatientName" in text
    assert "nested.PatientID" in text
    assert "comment" in text
    assert "Doe" not in text
    assert "1970" not in text


@pytest.mark.parametrize(
    ("text", "kinds"),
    [("sub-01_t1", []), ("IXI515-HH-2377", []), ("BRATS_HG0002", []), ("phantom001", []),
     ("Doe^Jane", ["a DICOM name"]), ("scan_20200131", ["a date"]), ("31.01.1970", ["a date"]),
     ("Doe, Jane", ["a name with a comma"]), ("a.b@clinic.org", ["an e-mail address"]),
     ("x_123456789_t1", ["a long number"]), ("dob_x", ["a word for identities"])],
)  # fmt: skip
def test_traces(text, kinds):
    assert identity.traces(text) == kinds


# Repair.
def hashes(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def test_fix_repairs_copies_and_leaves_the_input(scans, tmp_path, capsys):
    study = Study.load(scans / "study.json")
    t1 = [c for c in study.cases if c.modality == "t1"]
    before = {c.id: np.asarray(nib.load(scans / c.label).dataobj) for c in t1}
    rewrite(scans / t1[0].image, spotted(np.nan, 5))

    def coarse(array, affine):
        # Same place, every second slice: resampled back to the grid of the image.
        return array[:, :, ::2], affine @ np.diag([1, 1, 2, 1.0])

    rewrite(scans / t1[1].label, coarse)
    rewrite(scans / t1[2].label, lambda a, m: (np.array([0, 127, 255], np.uint8)[a], m))
    plain = scans / t1[3].image
    plain.write_bytes(gzip.decompress(plain.read_bytes()))
    (scans / t1[4].image).write_bytes(b"")
    original = hashes(scans)
    target = tmp_path / "fixed"
    with pytest.raises(SystemExit) as stop:
        cli.main(["check", str(scans / "study.json"), "--fix", str(target), "--json"])
    assert stop.value.code == 3
    result = json.loads(capsys.readouterr().out)
    assert hashes(scans) == original
    assert result["counts"] == {"KUG-D03": 1, "KUG-D05": 1, "KUG-D06": 1, "KUG-D07": 2}
    assert [case for case, _ in result["fix"]["left"]] == [t1[4].id]
    assert {case for case, _ in result["fix"]["done"]} == {c.id for c in t1[:4]}
    again = passes.check(target / "study.json")[0]
    assert {f.code: f.level for f in again.findings if f.code != "KUG-D14"} == {}
    fixed = Study.load(target / "study.json")
    label = nifti.read(fixed.path(next(c for c in fixed.cases if c.id == t1[2].id).label))
    np.testing.assert_array_equal(label.array, before[t1[2].id])
    image = nifti.read(fixed.path(next(c for c in fixed.cases if c.id == t1[0].id).image))
    assert np.isfinite(image.array).all()
    # The coarse label comes back slice by slice where it was kept.
    label = nifti.read(fixed.path(next(c for c in fixed.cases if c.id == t1[1].id).label))
    np.testing.assert_array_equal(label.array[:, :, ::2], before[t1[1].id][:, :, ::2])


def test_fix_keeps_a_shear_bit_exact(scans, tmp_path):
    for path in (image_of(scans), label_of(scans)):
        rewrite(path, sheared)
    rewrite(image_of(scans), spotted(np.nan))
    affine = nib.load(image_of(scans)).affine
    found, twins = passes.check(scans / "study.json")
    done = repair.repair(scans / "study.json", found, twins, tmp_path / "fixed")
    study = Study.load(done.study)
    case = subject(study)
    np.testing.assert_array_equal(nib.load(study.path(case.image)).affine, affine)


def test_fix_takes_the_place_of_the_image_for_a_label_without_one(scans, tmp_path):
    edit_header(label_of(scans), qform_code=0, sform_code=0)
    before = np.asarray(nib.load(label_of(scans)).dataobj)
    found, twins = passes.check(scans / "study.json")
    assert found.counts == {"KUG-D04": 1, "KUG-D22": 1}
    study = Study.load(repair.repair(scans / "study.json", found, twins, tmp_path / "f").study)
    label = nifti.read(study.path(subject(study).label))
    np.testing.assert_array_equal(label.array, before)
    assert passes.check(tmp_path / "f" / "study.json")[0].findings == ()


def test_fix_does_not_guess(scans, tmp_path):
    rewrite(label_of(scans), shifted(60))
    found, twins = passes.check(scans / "study.json")
    done = repair.repair(scans / "study.json", found, twins, tmp_path / "fixed")
    assert [why for _, why in done.left] == [
        "KUG-D04: only 0% of the labelled volume inside the image"
    ]


def test_fix_regroups_a_subject_of_two_splits(scans, tmp_path):
    edit_study(scans, two_splits)
    found, twins = passes.check(scans / "study.json")
    study = Study.load(repair.repair(scans / "study.json", found, twins, tmp_path / "f").study)
    assert len({c.subject for c in study.cases}) == len(study.cases) - 1


def test_fix_refuses_a_folder_of_the_input(scans, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["check", str(scans / "study.json"), "--fix", str(scans), "--overwrite"])
    assert stop.value.code == 2
    assert "KUG-E02" in capsys.readouterr().err


# The command line.
def test_command_line(scans, capsys):
    study = Study.load(scans / "study.json")
    for case in study.cases[:11]:
        (scans / case.image).unlink()
    with pytest.raises(SystemExit) as stop:
        cli.main(["check", str(scans / "study.json")])
    assert stop.value.code == 3
    text = capsys.readouterr().out
    assert text.count("error: KUG-D01") == 10
    assert "and 1 more" in text
    with pytest.raises(SystemExit) as stop:
        cli.main(["check", str(scans / "study.json"), "--limit", "1", "--fix", "x"])
    assert stop.value.code == 2


def test_command_line_on_clean_data(clean, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["check", str(clean / "study.json")])
    assert not stop.value.code
    assert "Next: unigan prepare" in capsys.readouterr().out


def test_no_tensorflow():
    code = (
        "import sys; import keras_unigan.cli.checking, keras_unigan.data.scrub;"
        "from keras_unigan.data.checks import passes, repair;"
        "assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_files_are_read_once(clean, monkeypatch):
    seen = []
    real = nifti.Path.read_bytes
    monkeypatch.setattr(nifti.Path, "read_bytes", lambda p: (seen.append(p.name), real(p))[1])
    report(clean)
    assert len(seen) == len(set(seen)) == 24


def test_memory_does_not_grow_with_cases(clean):
    peaks = []
    for limit in (3, 12):
        tracemalloc.start()
        report(clean, limit=limit)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # Hashes and thumbnails: 8 KiB a case, beside volumes of 100 KiB and their temporaries.
    assert peaks[1] < peaks[0] + 9 * 30_000


def test_findings_are_strict():
    with pytest.raises(KeyError):
        Finding("KUG-D99", "error", "a", "b")
    with pytest.raises(ValueError, match="Expected level"):
        Finding("KUG-D01", "bad", "a", "b")


# Real volumes.
QUICK = ("hippocampus_t1_msd", "prostate_mr_us_deepreg", "vertebra_ct_mr_tptbox",
         "brain_tumour_2d_4mod_brats2012")  # fmt: skip
SLOW = ("brain_semireal_t1_t2_flair_ct", "brain_t1_ixi", "brain_tumour_flair_t1c_brats2013",
        "brain_tumour_4mod_tcga", "brain_ms_4mod_lit",
        "brain_ms_native_t1_t2_flair_lit")  # fmt: skip


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)])
def test_real_volumes(name, unigan_data, tmp_path):
    """Every file of a real data set is read; nothing in it is an error, and no leak is seen."""
    with open(unigan_data / "manifest.csv", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["dataset"] == name]
    found = {}
    for row in rows:
        case = Case(row["subject"], row["modality"].lower(), str(unigan_data / row["image"]),
                    str(unigan_data / row["label"]) if row["label"] else None)  # fmt: skip
        while case.id in found:
            case = dataclasses.replace(case, visit=f"{case.visit or ''}i")
        found[case.id] = case
    subjects = sorted({c.subject for c in found.values()})
    spread = tuple(
        dataclasses.replace(c, split=SPLITS[subjects.index(c.subject) % 3]) for c in found.values()
    )
    modalities = tuple(sorted({c.modality for c in spread}))
    study = Study(name, modalities, cases.scan_labels(spread), spread)
    study.save(tmp_path / "study.json")
    result = report(tmp_path)
    assert result.files == len({n for c in study.cases for n in (c.image, c.label) if n})
    # Small data sets have too few subjects for all splits; the rest must be sound.
    assert {f.code for f in result.findings if f.level == "error"} <= {"KUG-D14"}
    assert not {"KUG-D27", "KUG-D28"} & set(result.counts)


@pytest.mark.slow
def test_every_real_file_is_read(unigan_data):
    paths = sorted(unigan_data.rglob("*.nii*"))
    assert len(paths) > 200
    # One at a time: all of them together do not fit into a small machine.
    refused = [s for s in map(scan_files.open_scan, paths) if s.error is not None]
    # The landmark files of the prostates have four axes; everything else is a scan or label map.
    assert all(len(scan.header.get_data_shape()) == 4 for scan in refused)
    assert {scan.error.code for scan in refused} <= {"KUG-D10"}
    assert len(refused) < len(paths) / 4
