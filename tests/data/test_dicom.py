"""DICOM in: places are checked in world coordinates, mistakes by their code."""

import shutil
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicoms import CANARY, dataset, item, place, save, write_series
from grids import ORIENTATIONS, oblique_affine, oriented, world_ramp

from keras_unigan.config import SCHEMES
from keras_unigan.data import dicom, dicom_values, nifti, volumes
from keras_unigan.errors import CodedError

SHAPE = (4, 5, 6)
SAMPLES = Path(pydicom.__file__).parent / "data" / "test_files"


def proper(orientations):
    """DICOM's slices follow the right hand: half of the 48 orientations, the others turned."""
    return [o for o in orientations if np.linalg.det(oriented(SHAPE, np.eye(4), o)[1]) > 0]


def ramp(shape=SHAPE, affine=None):
    """Ramp in 16 bits, its slope and intercept, and the affine."""
    affine = oblique_affine() if affine is None else affine
    values = world_ramp(shape, affine)
    slope = (values.max() - values.min()) / 60000
    stored = np.rint((values - values.min()) / slope).astype(np.uint16)
    tags = {"RescaleSlope": f"{slope:.10g}", "RescaleIntercept": f"{values.min():.10g}"}
    return stored, tags, affine


def assert_in_place(volume, tolerance=0.02):
    np.testing.assert_allclose(
        volume.array, world_ramp(volume.shape, volume.affine), atol=tolerance
    )


@pytest.mark.parametrize("orientation", proper(ORIENTATIONS), ids=lambda o: str(o.ravel()))
def test_world_positions_in_all_orientations(orientation, tmp_path):
    shape, affine = oriented(SHAPE, oblique_affine(), orientation)
    stored, tags, _ = ramp(shape, affine)
    write_series(tmp_path, stored, affine, **tags)
    volume = volumes.read(tmp_path)
    assert volume.shape == shape
    np.testing.assert_allclose(volume.affine, affine, atol=1e-5)
    assert_in_place(volume)
    ras = nifti.to_ras(volume)
    assert ras.shape == SHAPE
    assert_in_place(ras)


def test_stacked_against_the_right_hand(tmp_path):
    shape, affine = oriented(SHAPE, oblique_affine(), np.array([[0, 1], [1, 1], [2, -1]]))
    stored, tags, _ = ramp(shape, affine)
    write_series(tmp_path, stored, affine, **tags)
    volume = dicom.read(tmp_path)
    assert_in_place(volume)
    assert np.linalg.det(volume.affine) > 0


def test_tilted_gantry_keeps_its_shear(tmp_path):
    affine = oblique_affine()
    affine[:3, 2] += 0.4 * affine[:3, 1]
    stored, tags, _ = ramp(SHAPE, affine)
    write_series(tmp_path, stored, affine, **tags)
    volume = dicom.read(tmp_path)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-5)
    assert_in_place(volume)


def enhanced(stored, affine, tags):
    """One file of many frames, their places in functional groups, last slice first."""
    frames = []
    for k in reversed(range(stored.shape[2])):
        where = place(affine, k)
        group = pydicom.Dataset()
        group.PlanePositionSequence = item(ImagePositionPatient=where["ImagePositionPatient"])
        group.PixelValueTransformationSequence = item(**tags)
        frames.append(group)
    made = dataset(np.stack([stored[:, :, k].T for k in reversed(range(stored.shape[2]))]))
    made.PerFrameFunctionalGroupsSequence = pydicom.Sequence(frames)
    shared = pydicom.Dataset()
    shared.PlaneOrientationSequence = item(ImageOrientationPatient=where["ImageOrientationPatient"])
    shared.PixelMeasuresSequence = item(
        PixelSpacing=where["PixelSpacing"], SliceThickness=where["SliceThickness"]
    )
    made.SharedFunctionalGroupsSequence = pydicom.Sequence([shared])
    return made


def test_many_frames_in_one_file(tmp_path):
    stored, tags, affine = ramp()
    save(tmp_path / "all.dcm", enhanced(stored, affine, tags))
    volume = volumes.read(tmp_path / "all.dcm")
    np.testing.assert_allclose(volume.affine, affine, atol=1e-5)
    assert_in_place(volume)


def test_nuclear_medicine_slices_and_views(tmp_path):
    stored, tags, affine = ramp()
    where = place(affine)
    spacing = where.pop("SliceThickness")
    pixels = np.stack([stored[:, :, k].T for k in range(6)])
    made = dataset(pixels, "NM", PixelSpacing=where.pop("PixelSpacing"), **tags)
    made.ImageType = ["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"]
    made.SpacingBetweenSlices = spacing
    made.DetectorInformationSequence = item(**where)
    save(tmp_path / "tomo.dcm", made)
    volume = volumes.read(tmp_path / "tomo.dcm")
    np.testing.assert_allclose(volume.affine, affine, atol=1e-5)
    assert_in_place(volume)

    made.ImageType = ["ORIGINAL", "PRIMARY", "WHOLE BODY", "EMISSION"]
    del made.DetectorInformationSequence
    save(tmp_path / "views.dcm", made)
    with pytest.raises(CodedError, match=r"KUG-D10 .*6 images of which some have no position"):
        volumes.read(tmp_path / "views.dcm")
    view = volumes.read(tmp_path / "views.dcm", channel=2)
    assert view.shape == (4, 5, 1)
    np.testing.assert_array_equal(view.array[..., 0], volume.array[..., 2])
    with pytest.raises(CodedError, match=r"KUG-D10 .*6 frames, expected a frame of number 6"):
        volumes.read(tmp_path / "views.dcm", channel=6)


def test_zip_is_the_folder(tmp_path):
    stored, tags, affine = ramp()
    write_series(tmp_path / "deep" / "er", stored, affine, **tags)
    (tmp_path / "deep" / "readme.txt").write_text("no image")
    shutil.make_archive(str(tmp_path / "scan"), "zip", tmp_path / "deep")
    one, other = volumes.read(tmp_path / "deep"), volumes.read(tmp_path / "scan.zip")
    np.testing.assert_array_equal(one.array, other.array)
    np.testing.assert_array_equal(one.affine, other.affine)
    data = (tmp_path / "scan.zip").read_bytes()
    far = volumes.read_bytes(data, "gs://bucket/scan.zip")
    np.testing.assert_array_equal(one.array, far.array)


def test_series_table(tmp_path):
    stored, _, affine = ramp()
    write_series(tmp_path / "a", stored, affine)
    scout = dataset(np.zeros((9, 8), np.int16), uid="1.2.9", **place(affine))
    scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    save(tmp_path / "scout.dcm", scout)
    save(tmp_path / "again.dcm", scout)  # A second copy does not count.
    report = dataset(np.zeros((2, 2), np.uint8), uid="1.2.8", modality="SR")
    del report.Rows, report.PixelData
    save(tmp_path / "report.dcm", report)
    ct, localiser = dicom.series_table(tmp_path)
    assert (ct.uid, ct.modality, ct.count, ct.shape) == ("1.2.3.4", "CT", 6, (5, 4))
    assert ct.spacing == pytest.approx((0.8, 1.5, 3.0))
    assert ct.description == CANARY
    assert (localiser.uid, localiser.count, localiser.localiser) == ("1.2.9", 1, True)
    assert str(ct) == "1.2.3.4: CT, 6 images of 5 x 4, 0.8 x 1.5 x 3 mm"
    assert CANARY not in f"{ct} {ct!r}"
    # A series of localisers alone is passed over.
    assert volumes.read(tmp_path).shape == SHAPE
    assert dicom.read(tmp_path, series="1.2.9").shape == (8, 9, 1)


def refused(path, code, *texts, **options):
    """The error of a path, checked for what it must and must never say."""
    with pytest.raises(CodedError) as caught:
        dicom.read(path, **options)
    message = str(caught.value)
    assert caught.value.code == code, message
    for text in texts:
        assert text in message
    assert "CANARY" not in message
    assert caught.value.__cause__ is None or "CANARY" not in str(caught.value.__cause__)


def test_mixed_series(tmp_path):
    stored, _, affine = ramp()
    write_series(tmp_path / "a", stored, affine)
    write_series(tmp_path / "b", stored, affine, keep=range(2), uid="1.2.5", modality="MR")
    refused(tmp_path, "KUG-D30", "2 series", "CT, 6 images of 5 x 4", "MR, 2 images")
    refused(tmp_path, "KUG-D30", "one with the UID 9", series="9")
    assert dicom.read(tmp_path, series="1.2.5").shape == (4, 5, 2)


def test_localiser_and_other_grids_inside(tmp_path):
    stored, _, affine = ramp()
    write_series(tmp_path, stored, affine)
    turned = oriented(SHAPE, affine, np.array([[0, 1], [2, 1], [1, 1]]))[1]
    scout = dataset(np.zeros((5, 4), np.uint16), **place(turned))
    scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    save(tmp_path / "scout.dcm", scout)
    refused(tmp_path, "KUG-D31", "2 grids: 6 of 5 x 4", "1 of 5 x 4", "LOCALIZER")
    save(tmp_path / "scout.dcm", dataset(np.zeros((9, 9), np.uint16), **place(affine, 7)))
    refused(tmp_path, "KUG-D31", "1 of 9 x 9 pixels")


def test_missing_slices_are_named_by_place(tmp_path):
    affine = np.diag([-1.0, -1.0, 2.5, 1.0])
    affine[2, 3] = -20.0
    array = np.zeros((4, 5, 12), np.int16)
    write_series(tmp_path, array, affine, keep=[0, 1, 2, 4, 5, 6, 9, 10, 11])
    refused(
        tmp_path,
        "KUG-D32",
        "3 missing of 12 slices, 2.5 mm apart",
        "1 between -15 and -10 mm (after slice 3)",
        "2 between -5 and 2.5 mm (after slice 6)",
    )


def test_unequal_gaps_and_slices_off_the_line(tmp_path):
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    array = np.zeros((4, 5, 6), np.int16)
    write_series(tmp_path / "a", array, affine, keep=range(5))
    tags = place(affine, 5)
    last = dataset(array[:, :, 5].T, **tags)
    last.ImagePositionPatient[2] = 9.3
    save(tmp_path / "a" / "last.dcm", last)
    refused(tmp_path / "a", "KUG-D33", "1 of 5 distances", "1.3 mm after slice 5 (at 8 mm)")
    write_series(tmp_path / "b", array, affine, keep=[0, 1, 2, 4, 5])
    bent = dataset(array[:, :, 3].T, **place(affine, 3))
    bent.ImagePositionPatient[0] += 3.0
    save(tmp_path / "b" / "bent.dcm", bent)
    refused(tmp_path / "b", "KUG-D33", "slice 4 of 6 3 mm off the line")


def test_small_rounding_is_no_gap(tmp_path):
    affine = np.diag([-1.0, -1.0, 0.625, 1.0])
    for k in range(9):
        made = dataset(np.zeros((5, 4), np.int16), **place(affine, k))
        made.ImagePositionPatient[2] = round(0.625 * k, 2)
        save(tmp_path / f"{k}.dcm", made)
    assert dicom.read(tmp_path).spacing == pytest.approx((1, 1, 0.625))


def test_two_images_at_one_place(tmp_path):
    stored, _, affine = ramp()
    write_series(tmp_path / "a", stored, affine)
    write_series(tmp_path / "b", stored, affine)
    refused(tmp_path, "KUG-D10", "12 images at 6 positions", "Echoes")


def test_no_pixel_spacing_in_a_stack(tmp_path):
    stored, _, affine = ramp()
    for k in range(2):
        made = dataset(stored[:, :, k].T, **place(affine, k))
        del made.PixelSpacing
        save(tmp_path / f"{k}.dcm", made)
    refused(tmp_path, "KUG-D11", "without PixelSpacing")


def test_hounsfield_stays_integer(tmp_path):
    values = np.array([[0, 1024, 4095], [24, 1000, 2000]], np.uint16)
    tags = {"RescaleSlope": 1, "RescaleIntercept": -1024}
    save(tmp_path / "a.dcm", dataset(values, **place(np.eye(4)), **tags))
    volume = dicom.read(tmp_path / "a.dcm")
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array[..., 0].T, values.astype(int) - 1024)
    assert volume.scheme == "ct"
    assert dicom.read(tmp_path / "a.dcm").spacing_known


@pytest.mark.parametrize(
    ("values", "bits", "expected"),
    [
        (np.array([[0, 1, 4095]], np.uint16), 12, [[4095, 4094, 0]]),
        (np.array([[0, 7, 255]], np.uint8), 8, [[255, 248, 0]]),
        (np.array([[-5, 0, 4]], np.int16), 16, [[4, -1, -5]]),
    ],
)
def test_monochrome1_is_inverted(values, bits, expected, tmp_path):
    made = dataset(values, "DX", PhotometricInterpretation="MONOCHROME1", BitsStored=bits)
    made.HighBit = bits - 1
    save(tmp_path / "x.dcm", made)
    volume = volumes.read(tmp_path / "x.dcm")
    np.testing.assert_array_equal(volume.array[..., 0].T, expected)
    assert not volume.spacing_known
    np.testing.assert_array_equal(np.diag(volume.affine), [-1, -1, 1, 1])
    made.ImagerPixelSpacing = [0.2, 0.1]
    save(tmp_path / "x.dcm", made)
    volume = volumes.read(tmp_path / "x.dcm")
    assert volume.spacing_known
    assert volume.spacing == (0.1, 0.2, 1.0)


def test_lookup_table(tmp_path):
    made = dataset(np.array([[0, 1, 2]], np.uint8), "CR")
    made.ModalityLUTSequence = item(
        LUTDescriptor=[3, 0, 16], ModalityLUTType="US", LUTData=[10, 40, 90]
    )
    made.ModalityLUTSequence[0]["LUTDescriptor"].VR = "US"
    made.ModalityLUTSequence[0]["LUTData"].VR = "US"
    save(tmp_path / "x.dcm", made)
    np.testing.assert_array_equal(volumes.read(tmp_path / "x.dcm").array.ravel(), [10, 40, 90])


def test_colours_need_a_channel(tmp_path):
    values = np.zeros((5, 4, 3), np.uint8)
    values[..., 1] = 7
    made = dataset(values, "XC", SamplesPerPixel=3, PhotometricInterpretation="RGB")
    made.Rows, made.Columns, made.PlanarConfiguration = 5, 4, 0
    save(tmp_path / "x.dcm", made)
    refused(tmp_path / "x.dcm", "KUG-D10", "3 channels")
    assert (volumes.read(tmp_path / "x.dcm", channel=1).array == 7).all()


def pet(**changes):
    """A PET slice whose SUV is worked by hand; half of the dose is left after 6000 s."""
    tags = {
        "Units": "BQML",
        "CorrectedImage": ["DECY", "ATTN", "SCAT"],
        "DecayCorrection": "START",
        "PatientWeight": 80,
        "SeriesDate": "20200102",
        "SeriesTime": "120000",
        "AcquisitionDate": "20200102",
        "AcquisitionTime": "120130.5",
        "RescaleSlope": 2,
        "RescaleIntercept": 0,
    }
    drug = {
        "RadionuclideTotalDose": 4e8,
        "RadionuclideHalfLife": 6000,
        "RadiopharmaceuticalStartTime": "102000.00",
    }
    for name, value in changes.items():
        target = drug if name in drug or name.startswith("Radio") else tags
        target[name] = value
    made = dataset(np.full((5, 4), 1000, np.uint16), "PT", **place(np.eye(4)))
    made.RadiopharmaceuticalInformationSequence = item(**drug)
    for name, value in {**tags, **{k: v for k, v in changes.items() if k in tags}}.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 2000 * 80000 / 2e8),
        ({"DecayCorrection": "ADMIN"}, 2000 * 80000 / 4e8),
        # A series written anew at night: the acquisition counts.
        ({"SeriesTime": "230000", "AcquisitionTime": "120000"}, 2000 * 80000 / 2e8),
        ({"RadiopharmaceuticalStartDateTime": "20200102102000.00+0100"}, 2000 * 80000 / 2e8),
        ({"SeriesTime": "004000", "RadiopharmaceuticalStartTime": "230000"}, 2000 * 80000 / 2e8),
        ({"Units": "GML"}, 2000),
    ],
)
def test_pet_is_suv(changes, expected, tmp_path):
    save(tmp_path / "p.dcm", pet(**changes))
    volume = dicom.read(tmp_path / "p.dcm")
    np.testing.assert_allclose(volume.array, expected, rtol=1e-5)
    assert volume.scheme == "pet_suv"


@pytest.mark.parametrize(
    ("word", "scheme"),
    [
        *(("CT", "ct"), ("MR", "mr"), ("DX", "xray"), ("MG", "xray"), ("NM", "spect_counts")),
        *(("PT", "spect_counts"), ("US", "ultrasound"), ("SM", "microscopy"), ("OT", None)),
    ],
)
def test_word_for_a_modality_names_its_scheme(word, scheme):
    assert dicom_values.scheme_of(word) == scheme
    assert scheme is None or scheme in SCHEMES
    assert dicom_values.scheme_of(word, in_suv=True) == ("pet_suv" if word == "PT" else scheme)


def test_philips_pet(tmp_path):
    made = pet(Units="CNTS")
    made.private_block(0x7053, "Philips PET Private Group", create=True).add_new(0, "DS", "0.5")
    save(tmp_path / "p.dcm", made)
    np.testing.assert_allclose(dicom.read(tmp_path / "p.dcm").array, 1000)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"Units": "CNTS"}, "Units"),
        ({"Units": "PROPCPS"}, "Units"),
        ({"CorrectedImage": ["DECY"]}, "CorrectedImage"),
        ({"PatientWeight": 0}, "PatientWeight"),
        ({"DecayCorrection": "NONE"}, "DecayCorrection"),
        ({"RadiopharmaceuticalStartTime": ""}, "RadiopharmaceuticalStartTime"),
        ({"AcquisitionTime": "noon"}, "AcquisitionTime"),
    ],
)
def test_pet_without_the_tags_stays_as_stored(changes, named, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = pet(**changes)
        save(tmp_path / "p.dcm", made)
    with pytest.warns(UserWarning, match=f"not SUV: .*{named}"):
        volume = dicom.read(tmp_path / "p.dcm")
    np.testing.assert_array_equal(volume.array, 2000)
    assert volume.scheme == "spect_counts"


@pytest.mark.parametrize(
    "name",
    [
        *("MR_small_RLE", "MR_small_jp2klossless", "MR_small_jpeg_ls_lossless"),
        *("MR_small_bigendian", "MR_small_implicit", "MR_small_expb"),
    ],
)
def test_transfer_syntaxes(name):
    plain, other = (dicom.read(SAMPLES / f"{n}.dcm") for n in ("MR_small", name))
    np.testing.assert_array_equal(other.array, plain.array)
    np.testing.assert_array_equal(other.affine, plain.affine)
    assert other.spacing_known


def test_lossy_jpeg_and_deflated():
    refused(SAMPLES / "JPGExtended.dcm", "KUG-D34", "JPEG Extended")
    assert dicom.read(SAMPLES / "JPEG2000.dcm").shape == (256, 1024, 1)
    assert dicom.read(SAMPLES / "image_dfl.dcm").shape == (512, 512, 1)
    refused(SAMPLES / "examples_palette.dcm", "KUG-D10", "palette")


@pytest.mark.parametrize(
    ("syntax", "code", "text"),
    [
        ("1.2.840.10008.1.2.4.100", "KUG-D34", "transfer syntax MPEG2"),
        ("1.2.840.10008.1.2.4.90", "KUG-D07", "ends early or is damaged"),
    ],
)
def test_pixels_that_do_not_decode(syntax, code, text, tmp_path):
    made = dataset(np.zeros((5, 4), np.uint8))
    made.PixelData = pydicom.encaps.encapsulate([b"no picture at all."])
    made["PixelData"].VR = "OB"
    made.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    save(tmp_path / "x.dcm", made)
    refused(tmp_path / "x.dcm", code, text)


def test_decoder_not_installed(tmp_path, monkeypatch):
    from pydicom.pixels.decoders import JPEGLSLosslessDecoder

    monkeypatch.setattr(JPEGLSLosslessDecoder, "_available", {})
    name = SAMPLES / "MR_small_jpeg_ls_lossless.dcm"
    refused(name, "KUG-E01", "JPEG-LS", 'pip install "keras-unigan[dicom]"')


def test_extra_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    refused(tmp_path, "KUG-E01", "no package pydicom", 'pip install "keras-unigan[dicom]"')


def test_damaged_and_missing(tmp_path):
    stored, _, affine = ramp()
    save(tmp_path / "a.dcm", dataset(stored[..., 0].T, **place(affine)))
    data = (tmp_path / "a.dcm").read_bytes()
    (tmp_path / "a.dcm").write_bytes(data[:-9])
    refused(tmp_path / "a.dcm", "KUG-D07", "ends early")
    (tmp_path / "a.dcm").write_bytes(b"no image")
    refused(tmp_path / "a.dcm", "KUG-D07", "ends early")
    refused(tmp_path, "KUG-D07")
    (tmp_path / "b.dcm").write_bytes(b"no image")
    refused(tmp_path, "KUG-D01", "no DICOM image among 2 files")
    refused(tmp_path / "none", "KUG-D01", "no such file or folder")
    (tmp_path / "c.zip").write_bytes(b"no zip")
    refused(tmp_path / "c.zip", "KUG-D07", "BadZipFile")
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        archive.writestr("a.txt", "no image")
        archive.writestr("b.txt", "no image")
    refused(tmp_path / "d.zip", "KUG-D01", "among 2 files")


def test_bad_values_of_tags_are_not_repeated(tmp_path, capfd, caplog):
    made = dataset(np.zeros((5, 4), np.uint8), **place(np.eye(4)), SpacingBetweenSlices=1234567)
    save(tmp_path / "a.dcm", made)
    data = (tmp_path / "a.dcm").read_bytes()
    assert data.count(b"1234567") == 1
    (tmp_path / "a.dcm").write_bytes(data.replace(b"1234567", b"CANARY^"))
    refused(tmp_path / "a.dcm", "KUG-D07")
    assert "CANARY" not in "".join(capfd.readouterr()) + caplog.text


def test_without_an_extension_in_the_name(tmp_path):
    stored, _, affine = ramp()
    save(tmp_path / "IM0001", dataset(stored[..., 0].T, **place(affine)))
    assert volumes.read(tmp_path / "IM0001").shape == (4, 5, 1)


def test_channel_of_one():
    array = np.zeros((2, 2, 2))
    array[..., 1] = 1
    with pytest.raises(CodedError, match="KUG-D10 x: found 2 channels and channel 2 asked for"):
        dicom_values.one_channel(array, 2, "x")
