"""`unigan scrub`: canaries in headers, names and sidecars do not come through; geometry does."""

import gzip
import json
import stat

import nibabel as nib
import numpy as np
import pytest

from keras_unigan import cli
from keras_unigan.config import Case, Study
from keras_unigan.data import nifti, phantoms, scrub
from keras_unigan.data.checks import passes
from keras_unigan.errors import CodedError

CANARY = "CANARYDOE"
GEOMETRY = ("dim", "datatype", "bitpix", "scl_slope", "scl_inter", "magic", *nifti._GEOMETRY)


def plant(path, kind=nib.Nifti1Image, trailing=b""):
    """Writes an image with canaries in all text fields, an extension and the gzip header."""
    affine = nib.affines.from_matvec(
        nib.eulerangles.euler2mat(0.1, 0.2, 0.3) @ np.diag([0.9, 1.3, 2.7]), [-7.1, 3.3, 12.9]
    )
    array = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    image = kind(array, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine @ np.diag([-1, 1, 1, 1.0]), code=2)
    header = image.header
    header.set_xyzt_units("mm", "sec")
    header.set_slope_inter(0.37, -3)
    for field in ("descrip", "aux_file", "intent_name", "db_name"):
        if field in header:
            header[field] = CANARY.encode()
    header.extensions.append(nib.nifti1.Nifti1Extension("comment", CANARY.encode()))
    raw = image.to_bytes() + trailing
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(".gz"):
        with open(path, "wb") as file, gzip.GzipFile(CANARY, "wb", 1, file) as packed:
            packed.write(raw)
    else:
        path.write_bytes(raw)
    return path


def raw_bytes(path):
    data = path.read_bytes()
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def grep(folder, *words):
    """Files below a folder whose name or (unpacked) content holds one of the words."""
    found = []
    for path in folder.rglob("*"):
        data = b"" if path.is_dir() else path.read_bytes() + raw_bytes(path)
        held = [w for w in words if w.lower().encode() in (str(path.name).encode() + data).lower()]
        found += [(path.name, held)] if held else []
    return found


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_one_file_keeps_geometry_and_voxels_bit_for_bit(kind, ending, tmp_path):
    source = plant(tmp_path / "in" / f"{CANARY}_t1{ending}", kind, trailing=CANARY.encode())
    target = tmp_path / "out" / f"scan{ending}"
    done = scrub.scrub(source, target)
    assert set(done.fields) >= {"descrip", "aux_file", "intent_name", "extensions"}
    assert grep(tmp_path / "out", CANARY) == []
    old, new = nib.load(source), nib.load(target)
    for field in GEOMETRY:
        assert old.header[field].tobytes() == new.header[field].tobytes(), field
    assert np.array_equal(old.affine, new.affine)
    assert np.array_equal(old.dataobj.get_unscaled(), new.dataobj.get_unscaled())
    assert len(new.header.extensions) == 0
    # Scrubbing a scrubbed file changes nothing, and the same input gives the same bytes.
    scrub.scrub(target, tmp_path / "again" / f"scan{ending}")
    assert (tmp_path / "again" / f"scan{ending}").read_bytes() == target.read_bytes()


def test_big_endian_and_compression_by_name(tmp_path):
    image = nib.Nifti1Image(np.arange(24, dtype=">i2").reshape(2, 3, 4), np.eye(4) * 2)
    header = image.header.as_byteswapped(">")
    header["descrip"] = CANARY.encode()
    header["magic"], header["vox_offset"] = b"n+1", 352
    header["sform_code"], header["srow_x"] = 1, [2, 0, 0, 0]
    header.set_data_dtype(">i2")
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "x.nii"
    path.write_bytes(header.binaryblock + b"\0" * 4 + image.dataobj.tobytes(order="F"))
    scrub.scrub(path, tmp_path / "out.nii.gz")
    assert grep(tmp_path, CANARY) == [("x.nii", [CANARY])]
    np.testing.assert_array_equal(
        np.asarray(nib.load(tmp_path / "out.nii.gz").dataobj), image.dataobj
    )


def write_folder(folder):
    """Subjects in names and folders, two visits, sidecars, and files that nobody understands."""
    for name in (
        f"{CANARY}_t1.nii.gz", f"{CANARY}_seg.nii.gz", "Roe_ct.nii.gz", "Roe_seg.nii.gz",
        "Poe_20200131_t1.nii.gz", "Poe_20210131_t1.nii.gz",
        f"train/{CANARY}jr/flair.nii.gz", f"train/{CANARY}jr/seg.nii",
        "sub-Moe/ses-20200101/anat/sub-Moe_ses-20200101_T2w.nii.gz",
        "images/case_0000.nii.gz", "labels/case.nii.gz",
    ):  # fmt: skip
        plant(folder / name)
    sidecar = {
        "PatientName": CANARY, "EchoTime": 0.03, "Manufacturer": "x", "StudyDate": "20200131",
        "Custom": {"deep": CANARY}, "ScanOptions": "Doe^Jane",
    }  # fmt: skip
    (folder / f"{CANARY}_t1.json").write_text(json.dumps(sidecar))
    (folder / "participants.tsv").write_text(f"id\n{CANARY}\n")
    (folder / "Roe_ct.json").write_text("no json")
    (folder / "broken_t1.nii.gz").write_bytes(b"\x1f\x8b broken")


def test_folder(tmp_path):
    write_folder(tmp_path / "in")
    mapping = tmp_path / "keys" / "mapping.json"
    done = scrub.scrub(tmp_path / "in", tmp_path / "out", mapping)
    assert grep(tmp_path / "out", CANARY, "Roe", "Poe", "Moe", "2020", "2021", "Doe") == []
    assert sorted(done.left) == ["broken_t1.nii.gz", "participants.tsv"]
    names = done.files
    new = done.subjects
    assert names[f"{CANARY}_t1.nii.gz"] == f"{new[CANARY]}_t1.nii.gz"
    assert names[f"{CANARY}_seg.nii.gz"] == f"{new[CANARY]}_seg.nii.gz"
    assert names[f"train/{CANARY}jr/flair.nii.gz"] == f"train/{new[CANARY + 'jr']}_flair.nii.gz"
    assert names[f"train/{CANARY}jr/seg.nii"] == f"train/{new[CANARY + 'jr']}_seg.nii"
    assert names["images/case_0000.nii.gz"] == f"images/{new['case']}_0000.nii.gz"
    assert names["labels/case.nii.gz"] == f"labels/{new['case']}.nii.gz"
    # Two dates of one subject stay one subject.
    assert [names[f"Poe_{d}_t1.nii.gz"] for d in (20200131, 20210131)] == [
        f"{new['Poe']}_visit0{n}_t1.nii.gz" for n in (1, 2)
    ]
    bids = names["sub-Moe/ses-20200101/anat/sub-Moe_ses-20200101_T2w.nii.gz"]
    assert bids == f"anat/{new['sub-Moe']}_visit01_t2w.nii.gz"
    sidecar = json.loads((tmp_path / "out" / f"{new[CANARY]}_t1.json").read_text())
    assert sidecar == {"EchoTime": 0.03, "Manufacturer": "x"}
    assert json.loads(mapping.read_text())["subjects"] == new
    assert stat.S_IMODE(mapping.stat().st_mode) == 0o600
    again = scrub.scrub(tmp_path / "in", tmp_path / "again")
    assert again.subjects == new
    assert scrub.scrub(tmp_path / "in", tmp_path / "dry", seed=3, dry_run=True).subjects != new
    assert not (tmp_path / "dry").exists()


def planted_study(folder):
    """A phantom study with canaries as subjects, sites, visits, name, and in all headers."""
    phantoms.write_study(folder, ("ct", "t1"), subjects_per_modality=3, size=32, depth=12, seed=5)
    study = Study.load(folder / "study.json")
    planted = []
    for number, case in enumerate(study.cases):
        subject = f"{CANARY}{number}"
        paths = {}
        for part, word in (("image", case.modality), ("label", "seg")):
            old = folder / getattr(case, part)
            image = nib.load(old)
            image.header["descrip"] = CANARY.encode()
            image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", CANARY.encode()))
            paths[part] = f"{subject}_{word}.nii.gz"
            nib.save(image, folder / paths[part])
            old.unlink()
        planted.append(
            Case(subject, case.modality, **paths, split=case.split, site=CANARY, visit=CANARY)
        )
    Study(CANARY, study.modalities, study.labels, tuple(planted)).save(folder / "study.json")
    return folder / "study.json"


def test_study_is_scrubbed_with_its_files_and_checks_clean(tmp_path, capsys):
    planted_study(tmp_path / "in")
    before, _ = passes.check(tmp_path / "in" / "study.json")
    assert set(before.counts) == {"KUG-D16"}
    with pytest.raises(SystemExit) as stop:
        cli.main(["scrub", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--json"])
    assert not stop.value.code
    text = capsys.readouterr().out
    assert json.loads(text)["subjects"] == 6
    assert CANARY not in text
    assert grep(tmp_path / "out", CANARY) == []
    old, new = Study.load(tmp_path / "in" / "study.json"), Study.load(tmp_path / "out/study.json")
    assert [c.split for c in new.cases] == [c.split for c in old.cases]
    after, _ = passes.check(tmp_path / "out" / "study.json")
    assert after.findings == ()
    for a, b in zip(old.cases, new.cases, strict=True):
        one, two = nifti.read(old.path(a.image)), nifti.read(new.path(b.image))
        np.testing.assert_array_equal(one.array, two.array)
        np.testing.assert_array_equal(one.affine, two.affine)


@pytest.mark.slow
def test_shards_of_a_scrubbed_study_hold_no_canary(tmp_path):
    """Header text never reaches shards; ids do, so those of the scrubbed study file are clean."""
    from keras_unigan.pipelines import preprocess

    planted_study(tmp_path / "in")
    scrub.scrub(tmp_path / "in", tmp_path / "out")
    study = str(tmp_path / "out" / "study.json")
    preprocess.run(["--study", study, "--output", str(tmp_path / "shards")])
    assert grep(tmp_path / "shards", CANARY) == []
    assert any((tmp_path / "shards").rglob("*.tfrecord*"))


def test_in_place_is_refused(tmp_path):
    source = plant(tmp_path / "in" / "a_t1.nii.gz")
    folder = source.parent
    for output in (folder, folder / "below", tmp_path):
        with pytest.raises(CodedError, match="KUG-E02"):
            scrub.scrub(folder, output)
    for output in (source, folder, tmp_path):
        with pytest.raises(CodedError, match="KUG-E02"):
            scrub.scrub(source, output)
    with pytest.raises(CodedError, match="a mapping among the scrubbed files"):
        scrub.scrub(folder, tmp_path / "out", tmp_path / "out" / "mapping.json")
    assert [p.name for p in folder.iterdir()] == ["a_t1.nii.gz"]


def test_nothing_to_scrub(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("x")
    with pytest.raises(CodedError, match=r"KUG-D01.*no NIfTI or DICOM image among 1 files"):
        scrub.scrub(tmp_path / "in", tmp_path / "out")
    with pytest.raises(CodedError, match="KUG-D01"):
        scrub.scrub(tmp_path / "nowhere", tmp_path / "out")
    bad = tmp_path / "in" / "a.nii"
    for data in (b"no header", plant(tmp_path / "b.nii").read_bytes()[:400]):
        bad.write_bytes(data)
        with pytest.raises(CodedError, match=r"KUG-D07.*no whole NIfTI file"):
            scrub.scrub(bad, tmp_path / "out.nii")


def test_study_with_files_elsewhere_is_refused(tmp_path):
    planted_study(tmp_path / "in")
    path = tmp_path / "in" / "study.json"
    data = json.loads(path.read_text())
    data["cases"][0]["image"] = "../elsewhere.nii.gz"
    path.write_text(json.dumps(data))
    with pytest.raises(CodedError, match="1 files of cases that are not in the folder"):
        scrub.scrub(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_case_with_a_damaged_file_is_left_out_of_the_study(tmp_path):
    path = planted_study(tmp_path / "in")
    first = Study.load(path).cases[0]
    (tmp_path / "in" / first.label).write_bytes(b"")
    done = scrub.scrub(tmp_path / "in", tmp_path / "out")
    assert done.left == [first.label]
    assert len(Study.load(tmp_path / "out" / "study.json").cases) == 5


@pytest.mark.parametrize(
    ("stem", "parts"),
    [
        ("Doe_t1", ("Doe", None, ["t1"])),
        ("Doe_T1_seg", ("Doe", None, ["t1", "seg"])),
        ("Doe_Jane", ("Doe_Jane", None, [])),
        ("x_visit2_flair", ("x", "visit2", ["flair"])),
        ("x_2020-01-31_ct", ("x", "2020-01-31", ["ct"])),
        ("BRATS_001_0001", ("BRATS_001", None, ["0001"])),
        ("seg", ("", None, ["seg"])),
    ],
)
def test_parts_of_a_name(stem, parts):
    assert scrub.parts_of(stem) == parts


def test_command_line_dry_run_and_mapping(tmp_path, capsys):
    write_folder(tmp_path / "in")
    out = str(tmp_path / "out")
    with pytest.raises(SystemExit):
        cli.main(["scrub", str(tmp_path / "in"), "-o", out, "--dry-run"])
    text = capsys.readouterr().out
    assert "Would write 13 files" in text
    assert CANARY not in text
    assert not (tmp_path / "out").exists()
    mapping = str(tmp_path / "mapping.json")
    with pytest.raises(SystemExit):
        cli.main(["scrub", str(tmp_path / "in"), "-o", out, "--mapping", mapping])
    assert "Left behind" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        cli.main(["scrub", str(tmp_path / "in"), "-o", out])
    assert stop.value.code == 2
    assert "KUG-E02" in capsys.readouterr().err
