"""One door for all kinds: the same grid in world coordinates whatever the file."""

import gzip
import struct
import sys
import zlib

import nibabel as nib
import numpy as np
import pytest
from dicoms import dataset, save, write_series
from grids import oblique_affine, world_ramp

from keras_unigan import inference
from keras_unigan.data import nifti, volumes
from keras_unigan.errors import CodedError

metaimageio = pytest.importorskip("metaimageio")
nrrd = pytest.importorskip("nrrd")
tifffile = pytest.importorskip("tifffile")
Image = pytest.importorskip("PIL.Image")

SHAPE = (4, 5, 6)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def ramp(affine=None):
    affine = oblique_affine() if affine is None else affine
    return world_ramp(SHAPE, affine).astype(np.float32), affine


def assert_in_place(volume, affine):
    np.testing.assert_allclose(volume.affine, affine, atol=1e-5)
    np.testing.assert_allclose(
        volume.array, world_ramp(volume.shape, volume.affine), rtol=1e-4, atol=1e-3
    )
    ras = nifti.to_ras(volume)
    np.testing.assert_allclose(ras.array, world_ramp(ras.shape, ras.affine), rtol=1e-4, atol=1e-3)
    assert ras.spacing_known == volume.spacing_known


def write_nrrd(path, array, affine, space="left-posterior-superior", **fields):
    turn = {"left-posterior-superior": LPS, "RAS": np.eye(4), "LAS": np.diag([-1.0, 1, 1, 1])}
    placed = turn[space] @ affine
    directions = placed[:3, :3].T
    if array.ndim == 4:
        directions = np.vstack([[np.nan] * 3, directions])
    header = {"space": space, "space directions": directions, "space origin": placed[:3, 3]}
    nrrd.write(str(path), array, {**header, **fields})


def write_meta(path, array, affine, **fields):
    placed = LPS @ affine
    spacing = np.linalg.norm(placed[:3, :3], axis=0)
    tags = {"ElementSpacing": spacing, "TransformMatrix": placed[:3, :3] / spacing}
    metaimageio.write(path, np.ascontiguousarray(array.T), **tags, Offset=placed[:3, 3], **fields)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.NII.GZ"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_nifti(name, kind, tmp_path):
    array, affine = ramp()
    data = kind(array, affine).to_bytes()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.lower().endswith("gz") else data)
    assert_in_place(volumes.read(tmp_path / name), affine)
    assert_in_place(volumes.read_bytes((tmp_path / name).read_bytes(), f"gs://b/{name}"), affine)


@pytest.mark.parametrize("kind", [nib.Nifti1Pair, nib.Nifti2Pair])
@pytest.mark.parametrize("zipped", ["", ".gz"])
def test_nifti_pair(kind, zipped, tmp_path):
    array, affine = ramp()
    kind(array, affine).to_filename(str(tmp_path / f"a.img{zipped}"))
    for half in ("hdr", "img"):
        volume = volumes.read(tmp_path / f"a.{half}{zipped}")
        assert_in_place(volume, affine)
    nifti.write(tmp_path / "out.nii", array > 0, volume)
    out = nib.load(tmp_path / "out.nii")
    np.testing.assert_allclose(out.affine, affine, atol=1e-5)
    assert out.header["magic"] == out.header.single_magic
    (tmp_path / f"a.hdr{zipped}").unlink()
    with pytest.raises(CodedError, match=rf"KUG-D01 .*found no a\.hdr{zipped} beside it"):
        volumes.read(tmp_path / f"a.img{zipped}")


def test_analyze_is_radiological(tmp_path):
    array = np.arange(120, dtype=np.int16).reshape(SHAPE)
    image = nib.AnalyzeImage(array, np.diag([-2.0, 3, 4, 1]))
    image.to_filename(str(tmp_path / "a.img"))
    assert b"n" not in (tmp_path / "a.hdr").read_bytes()[344:348]
    volume = volumes.read(tmp_path / "a.hdr")
    np.testing.assert_array_equal(volume.array, array)
    assert volume.header is None
    assert nib.aff2axcodes(volume.affine) == ("L", "A", "S")
    assert volume.spacing == (2, 3, 4)
    header = bytearray((tmp_path / "a.hdr").read_bytes())
    header[80:84] = b"\0\0\0\0"
    (tmp_path / "a.hdr").write_bytes(header)
    with pytest.raises(CodedError, match=r"KUG-D11 .*spacing \(0\.0, 3\.0, 4\.0\) mm"):
        volumes.read(tmp_path / "a.hdr")


@pytest.mark.parametrize("name", ["a.mgz", "a.mgh"])
def test_mgh(name, tmp_path):
    array, affine = ramp()
    nib.MGHImage(array, affine).to_filename(str(tmp_path / name))
    assert_in_place(volumes.read(tmp_path / name), affine)
    nib.MGHImage(np.stack([array, -array], -1), affine).to_filename(str(tmp_path / name))
    np.testing.assert_array_equal(volumes.read(tmp_path / name, channel=1).array, -array)


@pytest.mark.parametrize("space", ["left-posterior-superior", "RAS", "LAS"])
@pytest.mark.parametrize("encoding", ["gzip", "raw"])
@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr"])
def test_nrrd(name, encoding, space, tmp_path):
    array, affine = ramp()
    write_nrrd(tmp_path / name, array, affine, space, encoding=encoding)
    assert_in_place(volumes.read(tmp_path / name), affine)


def test_nrrd_with_channels_or_little_said(tmp_path):
    array, affine = ramp()
    path = tmp_path / "a.nrrd"
    write_nrrd(path, np.stack([array, 2 * array]), affine)
    with pytest.raises(CodedError, match=r"KUG-D10 .*2 channels"):
        volumes.read(path)
    np.testing.assert_array_equal(volumes.read(path, channel=1).array, 2 * array)
    nrrd.write(str(path), array, {"spacings": [2.0, 3.0, 4.0]})
    volume = volumes.read(path)
    assert (volume.spacing, volume.spacing_known) == ((2, 3, 4), True)
    nrrd.write(str(path), array[..., 0], {})
    volume = volumes.read(path)
    assert volume.shape == (4, 5, 1)
    assert (volume.spacing, volume.spacing_known) == ((1, 1, 1), False)
    np.testing.assert_array_equal(volume.affine, LPS)


@pytest.mark.parametrize("name", ["a.mha", "a.mhd"])
@pytest.mark.parametrize("fields", [{}, {"CompressedData": True}, {"ElementByteOrderMSB": True}])
def test_metaimage(name, fields, tmp_path):
    array, affine = ramp()
    if name == "a.mhd":
        fields = {**fields, "ElementDataFile": "a.zraw" if "CompressedData" in fields else "a.raw"}
    write_meta(tmp_path / name, array, affine, **fields)
    assert_in_place(volumes.read(tmp_path / name), affine)


def test_metaimage_with_channels_or_little_said(tmp_path):
    array, affine = ramp()
    path = tmp_path / "a.mha"
    write_meta(path, np.stack([array, 2 * array]), affine, ElementNumberOfChannels=2)
    with pytest.raises(CodedError, match=r"KUG-D10 .*2 channels"):
        volumes.read(path)
    np.testing.assert_array_equal(volumes.read(path, channel=1).array, 2 * array)
    path.write_bytes(
        b"NDims = 2\nDimSize = 2 3\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n012345"
    )
    volume = volumes.read(path)
    assert (volume.shape, volume.spacing_known) == ((2, 3, 1), False)
    np.testing.assert_array_equal(volume.array[..., 0].T, np.arange(48, 54).reshape(3, 2))
    path.write_bytes(path.read_bytes().replace(b"Dim", b"TransformMatrix = 1 0 0 1\nDim"))
    with pytest.raises(CodedError, match=r"KUG-D10 .*not three axes.*save it as \.nrrd"):
        volumes.read(path)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.tiff"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_grey_pictures(name, kind, tmp_path):
    rows = np.arange(20, dtype=kind).reshape(4, 5) * (11 if kind is np.uint8 else 3001)
    Image.fromarray(rows).save(tmp_path / name)
    volume = volumes.read(tmp_path / name)
    assert volume.array.dtype == kind
    np.testing.assert_array_equal(volume.array, rows.T[..., None])
    np.testing.assert_array_equal(volume.affine, LPS)
    assert not volume.spacing_known
    assert volumes.read_bytes((tmp_path / name).read_bytes(), name).shape == (5, 4, 1)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.jpeg", "a.tif"])
def test_colour_pictures(name, tmp_path):
    rows = np.zeros((16, 24, 3), np.uint8)
    Image.fromarray(rows + 90).save(tmp_path / name)
    assert volumes.read(tmp_path / name).shape == (24, 16, 1)  # Grey, told thrice.
    rows[..., 2] = 200
    Image.fromarray(rows).save(tmp_path / name)
    with pytest.raises(CodedError, match=r"KUG-D10 .*3 channels.*name the channel .*0 to 2"):
        volumes.read(tmp_path / name)
    assert volumes.read(tmp_path / name, channel=2).array.min() > 180
    with pytest.raises(CodedError, match=r"KUG-D10 .*channel 3 asked for"):
        volumes.read(tmp_path / name, channel=3)


def test_black_and_white_and_palette(tmp_path):
    rows = np.eye(4, dtype=bool)
    Image.fromarray(rows).save(tmp_path / "a.png")
    np.testing.assert_array_equal(volumes.read(tmp_path / "a.png").array[..., 0], rows)
    for name in ("p.png", "p.tif"):
        Image.fromarray(rows.astype(np.uint8)).convert("P").save(tmp_path / name)
        with pytest.raises(CodedError, match=r"KUG-D10 .*palette"):
            volumes.read(tmp_path / name)


def test_tiff_stacks_channels_and_compressions(tmp_path):
    path = tmp_path / "a.tif"
    pages = np.arange(120, dtype=np.uint16).reshape(3, 5, 8)
    tifffile.imwrite(path, pages, photometric="minisblack")
    np.testing.assert_array_equal(volumes.read(path).array, pages.T)
    tifffile.imwrite(path, pages, imagej=True, metadata={"axes": "CYX"})
    with pytest.raises(CodedError, match=r"KUG-D10 .*3 channels"):
        volumes.read(path)
    np.testing.assert_array_equal(volumes.read(path, channel=2).array[..., 0], pages[2].T)
    tifffile.imwrite(path, pages, imagej=True, metadata={"axes": "TYX"})
    with pytest.raises(CodedError, match=r"KUG-D10 .*axes TYX"):
        volumes.read(path)
    first, *rest = (Image.fromarray(page) for page in pages)
    first.save(path, compression="tiff_lzw", save_all=True, append_images=rest)
    np.testing.assert_array_equal(volumes.read(path).array, pages.T)
    with tifffile.TiffWriter(path) as writer:
        writer.write(pages[0])
        writer.write(pages[0, :2])
    with pytest.raises(CodedError, match=r"KUG-D10 .*2 images of unlike size"):
        volumes.read(path)


def test_colours_of_16_bits_are_not_cut_to_8(tmp_path):
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    lines = b"".join(b"\0" + bytes(range(12)) for _ in range(2))
    head = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines))
    (tmp_path / "a.png").write_bytes(png + chunk(b"IEND", b""))
    with pytest.raises(CodedError, match=r"KUG-D10 .*colours of 16 bits.*save it as TIFF"):
        volumes.read(tmp_path / "a.png", channel=0)
    rows = np.arange(12, dtype=np.uint16).reshape(2, 2, 3) * 999
    tifffile.imwrite(tmp_path / "a.tif", rows, photometric="rgb")
    np.testing.assert_array_equal(
        volumes.read(tmp_path / "a.tif", channel=1).array[..., 0], rows[..., 1].T
    )


def make_all(folder):
    """One good file of each kind, by ending."""
    array, affine = ramp()
    nifti.write(folder / "a.nii", array, affine=affine)
    nifti.write(folder / "a.nii.gz", array, affine=affine)
    nib.Nifti1Pair(array, affine).to_filename(str(folder / "a.img"))
    for ending in (".mgz", ".mgh"):
        nib.MGHImage(array, affine).to_filename(str(folder / f"a{ending}"))
    write_nrrd(folder / "a.nrrd", array, affine)
    write_meta(folder / "a.mha", array, affine)
    for ending in (".png", ".jpg", ".tif"):
        Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(folder / f"a{ending}")
    save(folder / "a.dcm", dataset(np.zeros((16, 16), np.uint8)))


def test_damaged_files_of_all_kinds(tmp_path):
    make_all(tmp_path)
    files = sorted(p for p in tmp_path.iterdir() if p.suffix != ".hdr")
    assert len(files) == 11
    for path in files:
        whole = path.read_bytes()
        volumes.read(path)
        for cut in (2 * len(whole) // 3, len(whole) // 2, 3, 0):
            path.write_bytes(whole[:cut])
            if path.suffix == ".jpg" and cut > 9:
                continue  # A decoder may take the end of a JPEG as read.
            with pytest.raises(CodedError, match=r"KUG-D(01|07|10|11|34)") as caught:
                volumes.read(path)
            assert path.name in str(caught.value)
        path.write_bytes(b"subject,age\n1,50\n" * 20)
        with pytest.raises(CodedError, match=r"KUG-D07") as caught:
            volumes.read(path)
        assert path.name in str(caught.value)
        path.write_bytes(whole)


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("a.nrrd", "nrrd", "pynrrd"),
        ("a.mha", "metaimageio", "metaimageio"),
        ("a.png", "PIL", "pillow"),
        ("a.tif", "tifffile", "tifffile"),
    ],
)
def test_extra_not_installed(name, package, extra, tmp_path, monkeypatch):
    make_all(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    text = rf'KUG-E01 .*{name}: found no package {extra}.*pip install "keras-unigan\[formats\]"'
    with pytest.raises(CodedError, match=text):
        volumes.read(tmp_path / name)


def test_names_and_missing_files(tmp_path):
    assert volumes.stem("x/a.b.NII.gz") == "a.b"
    assert volumes.stem("a.mha") == "a"
    assert volumes.stem("notes.txt") is None
    assert volumes.ending("s3://b/A.TIFF") == ".tiff"
    with pytest.raises(CodedError, match=r"KUG-D01 .*none\.mha: found no such file"):
        volumes.read(tmp_path / "none.mha")
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(CodedError, match=r"KUG-D07 .*notes\.txt"):
        volumes.read(tmp_path / "notes.txt")


def test_channel_of_a_nifti_file(tmp_path):
    array, affine = ramp()
    image = nib.Nifti1Image(np.stack([array, 2 * array], -1), affine)
    image.to_filename(tmp_path / "a.nii")
    volume = volumes.read(tmp_path / "a.nii", channel=1)
    np.testing.assert_array_equal(volume.array, 2 * array)
    nifti.write(tmp_path / "out.nii", volume.array > 0, volume)
    assert nib.load(tmp_path / "out.nii").shape == SHAPE
    with pytest.raises(CodedError, match=r"KUG-D10 .*name the channel"):
        volumes.read(tmp_path / "a.nii")
    with pytest.raises(CodedError, match=r"KUG-D10 .*channel 2 asked for"):
        volumes.read(tmp_path / "a.nii", channel=2)


def test_scans_of_a_folder_and_their_results(tmp_path):
    make_all(tmp_path)
    (tmp_path / "notes.txt").touch()
    names = [p.name for p in volumes.scans_in(tmp_path)]
    assert names == list(
        f"a.{e}" for e in ["hdr", "jpg", "mgh", "mgz", "mha", "nii", "nii.gz", "nrrd", "png", "tif"]
    )
    series = tmp_path / "series"
    for name in ("one", "two"):
        write_series(series / name, *ramp_of_16_bits())
    assert volumes.scans_in(series) == [series / "one", series / "two"]
    assert volumes.scans_in(series / "one") == [series / "one"]
    assert inference.outputs_for([series], tmp_path / "out") == [
        (series / name, tmp_path / "out" / f"{name}_seg.nii.gz") for name in ("one", "two")
    ]
    mha = tmp_path / "a.mha"
    assert inference.outputs_for([mha], tmp_path) == [(mha, tmp_path / "a_seg.nii.gz")]


def ramp_of_16_bits():
    return np.arange(120, dtype=np.uint16).reshape(SHAPE), oblique_affine()
