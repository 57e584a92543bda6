"""NIfTI in and out: every statement about place is checked in world coordinates."""

import gzip
import sys
import zlib

import nibabel as nib
import numpy as np
import pytest
from grids import ORIENTATIONS, oblique_affine, oriented, world_ramp

from keras_unigan.data import nifti
from keras_unigan.errors import CodedError

GEOMETRY = ("dim", *nifti._GEOMETRY)


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=lambda o: "".join(map(str, o.ravel())))
def test_world_positions_survive_all_48_orientations(orientation, tmp_path):
    shape, affine = oriented((4, 5, 6), oblique_affine(), orientation)
    ramp = world_ramp(shape, affine)
    nifti.write(tmp_path / "a.nii.gz", ramp, affine=affine)

    volume = nifti.read(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(volume.affine, affine, atol=1e-5)
    ras = nifti.to_ras(volume)
    assert nib.aff2axcodes(ras.affine) == ("R", "A", "S")
    assert ras.shape == (4, 5, 6)
    np.testing.assert_allclose(ras.spacing, (0.8, 1.5, 3.0), atol=1e-5)
    np.testing.assert_allclose(world_ramp(ras.shape, ras.affine), ras.array, atol=1e-3)
    np.testing.assert_array_equal(nifti.from_ras(ras.array, volume), volume.array)

    nifti.write(tmp_path / "b.nii.gz", nifti.from_ras(ras.array, volume), volume)
    assert (tmp_path / "b.nii.gz").read_bytes() == (tmp_path / "a.nii.gz").read_bytes()


@pytest.mark.parametrize("orientation", ORIENTATIONS[::5], ids=lambda o: str(o.ravel()))
def test_one_slice_keeps_its_slice_axis_last(orientation):
    shape, affine = oriented((7, 5, 1), oblique_affine(), orientation)
    volume = nifti.Volume(world_ramp(shape, affine), affine)
    ras = nifti.to_ras(volume)
    assert ras.shape[2] == 1
    assert sorted(ras.shape) == [1, 5, 7]
    np.testing.assert_allclose(world_ramp(ras.shape, ras.affine), ras.array, atol=1e-6)
    np.testing.assert_array_equal(nifti.from_ras(ras.array, volume), volume.array)


def test_from_ras_keeps_channels():
    shape, affine = oriented((4, 5, 6), oblique_affine(), ORIENTATIONS[11])
    volume = nifti.Volume(world_ramp(shape, affine), affine)
    array = nifti.to_ras(volume).array
    back = nifti.from_ras(np.stack([array, -array], axis=-1), volume)
    np.testing.assert_array_equal(back[..., 1], -volume.array)


def flat_image(path, sform_z=True):
    affine = oblique_affine()
    if not sform_z:
        affine[:3, 2] = 0
    image = nib.Nifti1Image(np.arange(12, dtype=np.int16).reshape(3, 4), np.eye(4))
    image.header["sform_code"] = 1
    for row, name in zip(affine, ("srow_x", "srow_y", "srow_z"), strict=False):
        image.header[name] = row
    path.write_bytes(image.header.binaryblock + b"\0" * 4 + image.dataobj.tobytes(order="F"))
    return affine


def test_2d_file_in_and_out(tmp_path):
    affine = flat_image(tmp_path / "flat.nii")
    volume = nifti.read(tmp_path / "flat.nii")
    assert volume.shape == (3, 4, 1)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-5)
    nifti.write(tmp_path / "out.nii", volume.array.astype(np.uint8), volume)
    out = nib.load(tmp_path / "out.nii")
    assert out.shape == (3, 4)
    np.testing.assert_allclose(out.affine, affine, atol=1e-5)


def test_2d_file_without_slice_direction_gets_the_normal(tmp_path):
    flat_image(tmp_path / "flat.nii", sform_z=False)
    volume = nifti.read(tmp_path / "flat.nii")
    np.testing.assert_allclose(volume.affine[:3, :2].T @ volume.affine[:3, 2], 0, atol=1e-5)
    assert volume.spacing[2] == pytest.approx(1.0)


def test_output_keeps_geometry_and_nothing_else(tmp_path):
    image = nib.Nifti1Image(np.zeros((3, 4, 5, 1), np.int16), None)
    image.set_sform(oblique_affine(), code=2)
    image.set_qform(oblique_affine(degrees=18), code=4)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = b"NAME^PATIENT"
    image.header["pixdim"][4] = 2.5
    image.header.set_slope_inter(2.0, -10.0)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"NAME^PATIENT"))
    image.to_filename(tmp_path / "in.nii")

    volume = nifti.read(tmp_path / "in.nii")
    assert volume.shape == (3, 4, 5)
    np.testing.assert_array_equal(volume.array, -10.0)
    nifti.write(tmp_path / "out.nii.gz", np.full((3, 4, 5), 7, np.uint8), volume)
    out, source = nib.load(tmp_path / "out.nii.gz"), nib.load(tmp_path / "in.nii")
    for field in GEOMETRY:
        np.testing.assert_array_equal(out.header[field], source.header[field], err_msg=field)
    np.testing.assert_array_equal(out.affine, source.affine)
    assert out.get_data_dtype() == np.uint8
    assert (out.dataobj.slope, out.dataobj.inter, out.dataobj.offset) == (1, 0, 352)
    np.testing.assert_array_equal(np.asanyarray(out.dataobj), 7)
    assert b"NAME" not in gzip.decompress((tmp_path / "out.nii.gz").read_bytes())


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
def test_both_versions_and_byte_orders(kind, order, tmp_path):
    values = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    header = kind.header_class(endianness=order)
    header.set_data_dtype(np.dtype(np.int16).newbyteorder(order))
    image = kind(values, oblique_affine(), header)
    assert image.header.endianness == order
    image.to_filename(tmp_path / "in.nii.gz")
    volume = nifti.read(tmp_path / "in.nii.gz")
    np.testing.assert_array_equal(volume.array, values)
    nifti.write(tmp_path / "out.nii", volume.array.astype(np.int16), volume)
    out = nib.load(tmp_path / "out.nii")
    assert type(out) is kind
    np.testing.assert_array_equal(out.affine, nib.load(tmp_path / "in.nii.gz").affine)
    np.testing.assert_array_equal(np.asanyarray(out.dataobj), values)


def test_integers_stay_integers(tmp_path):
    values = np.array([[[-1000, 3000]]], np.int16)
    nifti.write(tmp_path / "a.nii", values, affine=np.eye(4))
    assert nifti.read(tmp_path / "a.nii").array.dtype == np.int16
    nifti.write(tmp_path / "b.nii", values > 0, affine=np.eye(4))
    assert nifti.read(tmp_path / "b.nii").array.dtype == np.uint8


def test_image_in_memory():
    image = nib.Nifti1Image(np.ones((2, 3), np.float32), oblique_affine())
    volume = nifti.from_image(image)
    assert volume.shape == (2, 3, 1)
    np.testing.assert_array_equal(volume.affine, image.affine)
    assert nib.Nifti1Image.from_bytes(nifti.encode(volume.array, volume)).shape == (2, 3)


def test_write_is_repeatable_and_leaves_no_half_file(tmp_path):
    array = np.ones((3, 4, 5), np.uint8)
    reference = nifti.Volume(array, np.eye(4))
    nifti.write(tmp_path / "a.nii.gz", array, reference)
    nifti.write(tmp_path / "b.nii.gz", array, reference)
    before = (tmp_path / "a.nii.gz").read_bytes()
    assert before == (tmp_path / "b.nii.gz").read_bytes()
    with pytest.raises(ValueError, match=r"Expected array of shape \(3, 4, 5\), got \(2, 2, 2\)"):
        nifti.write(tmp_path / "a.nii.gz", np.zeros((2, 2, 2)), reference)
    assert (tmp_path / "a.nii.gz").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nii.gz", "b.nii.gz"]


def test_arguments_of_write(tmp_path):
    with pytest.raises(ValueError, match=r"Expected path ending in \.nii or .*, got 'a\.png'"):
        nifti.write(tmp_path / "a.png", np.zeros((2, 2, 2)), affine=np.eye(4))
    with pytest.raises(ValueError, match="Expected one of reference and affine"):
        nifti.encode(np.zeros((2, 2, 2)))
    with pytest.raises(ValueError, match="Expected a NIfTI voxel type, got float16"):
        nifti.encode(np.zeros((2, 2, 2), np.float16), affine=np.eye(4))


def good_bytes(array=None, **fields):
    """A valid .nii file with header fields overwritten."""
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4) if array is None else array
    image = nib.Nifti1Image(array, np.diag([1.0, 2.0, 3.0, 1.0]))
    header = image.header
    header["vox_offset"] = 352
    for key, value in fields.items():
        header[key] = value
    return header.binaryblock + b"\0" * 4 + np.asarray(array).tobytes(order="F")


NO_FORMS = {"sform_code": 0, "qform_code": 0}
RGB = np.zeros((2, 3, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])


@pytest.mark.parametrize(
    ("data", "code", "text"),
    [
        (gzip.compress(good_bytes(), mtime=0)[:-12], "KUG-D07", "ends early"),
        (gzip.compress(good_bytes(), mtime=0) + b"rest", "KUG-D07", "bytes"),
        (good_bytes()[:-12], "KUG-D07", "ends early"),
        (good_bytes()[:200], "KUG-D07", "file of 200 bytes"),
        (b"subject,age\n1,50\n" * 40, "KUG-D07", "no NIfTI"),
        (b"", "KUG-D07", "file of 0 bytes"),
        (good_bytes(dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]), "KUG-D07", "copy the file again"),
        (good_bytes(datatype=9999), "KUG-D07", "no NIfTI"),
        (good_bytes(np.zeros((2, 3, 4, 2), np.float32)), "KUG-D10", r"4 axes .*\(2, 3, 4, 2\)"),
        (good_bytes(np.zeros(4, np.float32)), "KUG-D10", "1 axes"),
        (good_bytes(RGB), "KUG-D10", "RGB"),
        (good_bytes(np.zeros((2, 2, 2), np.complex64)), "KUG-D10", "complex64"),
        (good_bytes(pixdim=[1, 1, 0, 1, 1, 1, 1, 1], **NO_FORMS), "KUG-D11", "has no inverse"),
        (good_bytes(srow_x=[np.nan, 0, 0, 0]), "KUG-D11", "not finite"),
        (good_bytes(srow_x=[1, 0, 0, 0], srow_y=[1, 0, 0, 0]), "KUG-D11", "three independent axes"),
        (
            good_bytes(sform_code=0, qform_code=1, quatern_b=2.0),
            "KUG-D11",
            "qform that is no rotation",
        ),
    ],
)
def test_bad_files(data, code, text):
    with pytest.raises(CodedError, match=f"{code} scan.nii.gz: found .*{text}"):
        nifti.read_bytes(data, "scan.nii.gz")


def test_good_bytes_are_good():
    volume = nifti.read_bytes(good_bytes(), "scan.nii")
    np.testing.assert_array_equal(volume.array.ravel(), np.arange(24))
    assert nifti.read_bytes(good_bytes(np.full((2, 2, 2), np.nan)), "n.nii").shape == (2, 2, 2)


@pytest.mark.parametrize("installed", [True, False])
def test_packed_bytes_with_and_without_isal(installed, monkeypatch):
    if installed:
        pytest.importorskip("isal")
    else:
        monkeypatch.setitem(sys.modules, "isal", None)
    data = bytes(range(256)) * 999
    packed = gzip.compress(data)
    assert nifti.gunzip(packed + packed) == data + data
    with pytest.raises(EOFError):
        nifti.gunzip(packed[:-20])
    with pytest.raises(gzip.BadGzipFile):
        nifti.gunzip(packed[:-8] + bytes(8))
    with pytest.raises(zlib.error):
        nifti.gunzip(packed[:10] + b"\x07" * 40)


def test_missing_file(tmp_path):
    with pytest.raises(CodedError, match=r"KUG-D01 .*none\.nii\.gz: found no such file"):
        nifti.read(tmp_path / "none.nii.gz")


def test_bad_images_in_memory():
    with pytest.raises(CodedError, match="KUG-D11 image: found no affine"):
        nifti.from_image(nib.Nifti1Image(np.zeros((2, 2, 2), np.int16), None))
    with pytest.raises(CodedError, match=r"KUG-D10 image: found 4 axes of sizes \(2, 2, 2, 3\)"):
        nifti.from_image(nib.Nifti1Image(np.zeros((2, 2, 2, 3), np.int16), np.eye(4)))


def test_image_in_memory_whose_file_is_gone(tmp_path):
    path = tmp_path / "a.nii.gz"
    nifti.write(path, np.zeros((20, 20, 20), np.int16), affine=np.eye(4))
    image = nib.load(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CodedError, match="KUG-D07 image: found an image that ends early"):
        nifti.from_image(image)


def test_real_2d_files(unigan_data):
    folder = unigan_data / "brain_tumour_2d_4mod_brats2012"
    files = sorted(folder.rglob("*.nii*"))
    assert files
    for path in files:
        assert nifti.read(path).shape == (160, 216, 1)


def test_real_header_round_trip(unigan_data, tmp_path):
    folder = unigan_data / "brain_tumour_flair_t1c_brats2013" / "brats_2013_pat0001_1"
    volume = nifti.read(folder / "brainmask.nii.gz")
    assert volume.array.max() == pytest.approx(1.0, abs=1e-6)
    nifti.write(tmp_path / "out.nii.gz", np.zeros(volume.shape, np.uint8), volume)
    out = nib.load(tmp_path / "out.nii.gz").header
    source = nib.load(folder / "brainmask.nii.gz").header
    for field in GEOMETRY:
        np.testing.assert_array_equal(out[field], source[field], err_msg=field)
