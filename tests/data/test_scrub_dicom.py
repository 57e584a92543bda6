"""`unigan scrub` of DICOM: no canary of any tag comes through; geometry and pixels do."""

import io
import json
import zipfile

import numpy as np
import pydicom
import pytest
from dicoms import dataset, item, place, save, write_series
from pydicom.datadict import DicomDictionary

from keras_unigan import cli
from keras_unigan.config import Case, Labels, Study
from keras_unigan.data import nifti, scrub, scrub_dicom, volumes
from keras_unigan.errors import CodedError

WORD = "QXCANARY"
DATE, UID = "19610203", "1.2.826.0.1.3680043.99.77"
VALUES = {
    **dict.fromkeys(("LO", "SH", "ST", "LT", "UT", "UC", "UR", "AE", "CS", "AS"), WORD),
    **{"PN": f"{WORD}^{WORD}", "DA": DATE, "DT": f"{DATE}040506", "TM": WORD, "UI": UID},
    **{"OB": WORD.encode(), "UN": WORD.encode()},
}
AFFINE = np.array([[0.7, 0, 0.1, 3.125], [0, 0.9, 0, -7], [-0.1, 0, 2.5, 11], [0, 0, 0, 1.0]])
# Without these no program reads the file, this one included.
NEEDED = (
    "SpecificCharacterSet",
    "Modality",
    "PhotometricInterpretation",
    "SOPClassUID",
    "PixelData",
)
WHO = scrub_dicom.person("old", "subject0001", 0)


def array(seed=0, shape=(6, 5, 3)):
    return np.random.default_rng(seed).integers(-900, 900, shape).astype(np.int16)


def as_bytes(made):
    written = io.BytesIO()
    made.save_as(written, enforce_file_format=True)
    return written.getvalue()


def full_of_canaries():
    """An image with a canary in every tag of the standard's dictionary that holds text or bytes."""
    made = dataset(array()[:, :, 0].T, **place(AFFINE))
    with pydicom.config.disable_value_validation():
        for tag, (kind, *_, keyword) in DicomDictionary.items():
            if tag >> 16 > 2 and keyword not in NEEDED and kind in VALUES:
                made.add_new(tag, kind, VALUES[kind])
        made.ContentSequence = item(TextValue=WORD, PersonName=WORD)
        made.CTAcquisitionTypeSequence = item(ProtocolName=WORD, RevolutionTime=0.5)
        made.PatientBirthDate = made.StudyDate = DATE
        made.PatientSize, made.GPSLatitude, made.RotationDirection = "1.7325", "48.2", WORD
        made.private_block(0x29, WORD, create=True).add_new(1, "LO", WORD)
        made.file_meta.SourceApplicationEntityTitle = WORD
        made.preamble = WORD.encode().ljust(128, b"\0")
    return made


def test_no_tag_of_the_dictionary_lets_a_canary_through():
    old = full_of_canaries()
    data = as_bytes(old)
    assert data.count(WORD.encode()) > 1600
    new_data, kinds = scrub_dicom.scrub_image(data, WHO)
    for word in (WORD, DATE, UID, "1.7325", "48.2"):
        assert word.encode() not in new_data, word
    assert {"DICOM names", "DICOM texts", "DICOM dates", "DICOM private tags"} <= set(kinds)
    new = pydicom.dcmread(io.BytesIO(new_data))
    assert (new.PatientName, new.PatientID, new.PatientBirthDate) == (*["subject0001"] * 2, "")
    assert new.CTAcquisitionTypeSequence[0].RevolutionTime == 0.5
    assert new.PatientIdentityRemoved == "YES"
    # Geometry and pixels to the byte.
    assert new.PixelData == old.PixelData
    for name in place(AFFINE):
        raw = [str(v) for v in np.ravel(old[name].value)]
        assert [str(v) for v in np.ravel(new[name].value)] == raw, name


def test_what_the_profile_lists_is_gone_or_replaced():
    from dicomanonymizer.dicom_anonymization_databases import dicomfields_2026c

    old = full_of_canaries()
    new = pydicom.dcmread(io.BytesIO(scrub_dicom.scrub_image(as_bytes(old), WHO)[0]))
    listed = [t for t in dicomfields_2026c.ALL_TAGS if len(t) == 2 and t in old and t[0] > 2]
    assert len(listed) > 400
    left = [t for t in listed if t in new and new[t].value and new[t].value == old[t].value]
    assert left == []


def write_pet(folder, **changes):
    drug = {"RadionuclideTotalDose": 3.7e8, "RadionuclideHalfLife": 6586.2}
    drug |= {"RadiopharmaceuticalStartTime": "235000", "RadiopharmaceuticalStartDateTime": ""}
    tags = {"Units": "BQML", "CorrectedImage": ["ATTN", "DECY"], "DecayCorrection": "START"}
    tags |= {"PatientWeight": 71.5, "SeriesDate": "20200301", "SeriesTime": "003000"}
    tags |= {"AcquisitionDate": "20200301", "AcquisitionTime": "003000.25"}
    tags |= {"RadiopharmaceuticalInformationSequence": item(**drug), **changes}
    write_series(folder, np.abs(array()), AFFINE, modality="PT", RescaleSlope=2.5, **tags)


def test_series_reads_the_same_and_pet_keeps_its_suv(tmp_path):
    write_series(tmp_path / "in" / "ct", array(), AFFINE, RescaleSlope=2, RescaleIntercept=-1000)
    write_pet(tmp_path / "in" / "pet")
    write_pet(tmp_path / "in" / "counts", Units="CNTS", PatientID="p2")
    for path in (tmp_path / "in" / "counts").iterdir():
        made = pydicom.dcmread(path)
        made.private_block(0x7053, "Philips PET Private Group", create=True).add_new(
            0, "DS", "0.000731"
        )
        made.save_as(path)
    done = scrub.scrub(tmp_path / "in", tmp_path / "out")
    assert len(done.files) == 9
    for folder in ("ct", "pet", "counts"):
        (new,) = {n.rpartition("/")[0] for o, n in done.files.items() if o.startswith(folder)}
        old, got = (volumes.read(tmp_path / p) for p in (f"in/{folder}", f"out/{new}"))
        np.testing.assert_array_equal(got.array, old.array)
        np.testing.assert_array_equal(got.affine, old.affine)
        assert got.scheme == old.scheme


def test_uids_and_dates_change_together(tmp_path):
    tags = {"FrameOfReferenceUID": "1.2.9", "StudyDate": "20200131"}
    write_series(tmp_path / "in" / "a", array(), AFFINE, uid="1.2.5", **tags)
    write_series(tmp_path / "in" / "b", array(1), AFFINE, uid="1.2.6", **tags)
    done = scrub.scrub(tmp_path / "in", tmp_path / "out", seed=3)
    made = [pydicom.dcmread(tmp_path / "out" / n) for n in done.files.values()]
    assert list(done.subjects.values()) == ["subject0001"]
    assert len({d.FrameOfReferenceUID for d in made}) == 1
    assert len({d.StudyInstanceUID for d in made}) == 1
    assert len({d.SeriesInstanceUID for d in made}) == 2
    assert len({d.SOPInstanceUID for d in made}) == 6
    assert all(str(d.FrameOfReferenceUID).startswith("2.25.") for d in made)
    assert {d.SOPClassUID for d in made} == {"1.2.840.10008.5.1.4.1.1.2"}
    (day,) = {d.StudyDate for d in made}
    assert day < "20190131"
    again = scrub.scrub(tmp_path / "in", tmp_path / "again", seed=3)
    for name in again.files.values():
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    other = scrub.scrub(tmp_path / "in", tmp_path / "other", seed=4)
    first = next(iter(other.files.values()))
    assert pydicom.dcmread(tmp_path / "other" / first).StudyDate != day


def test_folder_with_labels_zip_and_things_that_are_no_image(tmp_path, capsys):
    source = tmp_path / "in"
    for number in range(2):
        folder = source / f"{WORD}{number}"
        write_series(folder, array(number), AFFINE, PatientID=f"{WORD}-{number}")
        volume = volumes.read(folder)
        nifti.write(source / f"{WORD}{number}_seg.nii.gz", volume.array > 0, volume)
    write_series(tmp_path / "z", array(5), AFFINE, PatientID=f"{WORD}-1", Modality="CT")
    with zipfile.ZipFile(source / "more.zip", "w") as archive:
        for path in (tmp_path / "z").iterdir():
            archive.write(path, f"{WORD}/{path.name}")
        archive.writestr("readme.txt", WORD)
    report = dataset(array()[:, :, 0].T)
    del report.PixelData, report.Rows
    save(source / "report.dcm", report)
    (source / "note.txt").write_text(WORD)
    write_series(source / "broken", array(6), AFFINE, uid="1.2.8", PatientID="gone")
    worst = sorted((source / "broken").iterdir())[1]
    worst.write_bytes(worst.read_bytes()[:-30])
    mapping = tmp_path / "mapping.json"
    with pytest.raises(SystemExit) as stop:
        cli.main(["scrub", str(source), "-o", str(tmp_path / "out"), "--mapping", str(mapping)])
    assert not stop.value.code
    printed = capsys.readouterr().out
    assert WORD not in printed
    assert "DICOM" in printed
    written = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert len(written) == 3 + 3 + 3 + 2
    for path in written:
        assert WORD.encode() not in path.read_bytes()
        assert WORD not in str(path.relative_to(tmp_path))
    names = json.loads(mapping.read_text())
    for number in range(2):
        # A folder and the label map that is called like it stay together.
        new = names["subjects"][f"{WORD}{number}"]
        assert (tmp_path / "out" / f"{new}_seg.nii.gz").is_file()
        got = volumes.read(tmp_path / "out" / f"{new}_ct")
        np.testing.assert_array_equal(got.array, array(number))
    left = sorted(p.relative_to(source).as_posix() for p in (source / "broken").iterdir())
    done = scrub.scrub(source, tmp_path / "dry", dry_run=True)
    assert sorted(done.left) == sorted([*left, "note.txt", "report.dcm"])
    assert not (tmp_path / "dry").exists()


def test_study_of_dicom_folders(tmp_path):
    write_series(tmp_path / "in" / "scan" / "deep", array(), AFFINE)
    volume = volumes.read(tmp_path / "in" / "scan")
    nifti.write(tmp_path / "in" / "label.nii.gz", (volume.array > 0).astype(np.uint8), volume)
    cases = (Case(WORD, "ct", "scan", "label.nii.gz", "train", visit=WORD),)
    study = Study(WORD, ("ct",), Labels(classes={"organ": (1,)}), cases)
    study.save(tmp_path / "in" / "study.json")
    scrub.scrub(tmp_path / "in", tmp_path / "out")
    new = Study.load(tmp_path / "out" / "study.json")
    (case,) = new.cases
    assert (case.subject, case.visit) == ("subject0001", "visit01")
    np.testing.assert_array_equal(volumes.read(new.path(case.image)).array, volume.array)
    assert WORD not in (tmp_path / "out" / "study.json").read_text()


def test_single_files(tmp_path):
    made = dataset(array()[:, :, 0].T, **place(AFFINE))
    save(tmp_path / f"{WORD}.dcm", made)
    scrub.scrub(tmp_path / f"{WORD}.dcm", tmp_path / "out")
    (path,) = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert WORD not in str(path)
    assert pydicom.dcmread(path).PixelData == made.PixelData
    (tmp_path / "cut.dcm").write_bytes((tmp_path / f"{WORD}.dcm").read_bytes()[:-10])
    with pytest.raises(
        CodedError, match=r"KUG-D07 .*cut\.dcm: found a DICOM image that ends early"
    ):
        scrub.scrub(tmp_path / "cut.dcm", tmp_path / "none")
    with pytest.raises(CodedError, match="KUG-D07 image: found no whole DICOM image"):
        scrub_dicom.scrub_image(b"text", WHO)
