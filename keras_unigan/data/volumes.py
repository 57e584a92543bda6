"""The one door for scans: reads a file or folder of any kind that we know as a `nifti.Volume`.

The ending of the name says the kind; a file with another ending is DICOM or NIfTI by its content.
Packages for the kinds beside NIfTI, Analyze and MGH are extras, imported when a file needs them.
"""

import io
import struct
import tempfile
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np

from keras_unigan.config import ALL_CHANNELS
from keras_unigan.data import dicom, nifti, pictures
from keras_unigan.data.dicom_planes import LPS_TO_RAS
from keras_unigan.data.dicom_values import one_channel
from keras_unigan.errors import CodedError, missing_extra

_DAMAGED = (
    *(OSError, EOFError, ValueError, TypeError, AttributeError, LookupError, RuntimeError),
    *(OverflowError, MemoryError, NotImplementedError, StopIteration, struct.error, zlib.error),
    nib.filebasedimages.ImageFileError,
    nib.wrapstruct.WrapStructError,
)
_NIFTI = (".nii.gz", ".nii")
_HALVES = (".img", ".img.gz")
_PAIR = (".hdr", ".hdr.gz", *_HALVES)
_TO_RAS = {
    "right-anterior-superior": np.diag([1.0, 1.0, 1.0, 1.0]),
    "left-anterior-superior": np.diag([-1.0, 1.0, 1.0, 1.0]),
    "left-posterior-superior": LPS_TO_RAS,
}
_SHORT = {"ras": "right-anterior-superior", "las": "left-anterior-superior"}


def read(path, channel=None):
    """Reads a scan or label map of any kind in its own orientation.

    Args:
        path: Local file, or folder of one DICOM series. NIfTI, Analyze 7.5 (taken as radiological,
            as its header does not say), MGH and MGZ, NRRD, MetaImage, PNG, JPEG, TIFF, DICOM as
            folder, file or `.zip`.
        channel: Index of the channel to keep of a file that holds several; None for one;
            `config.ALL_CHANNELS` keeps them all (not those of DICOM).

    Returns:
        `nifti.Volume`; a flat image has shape (x, y, 1). `spacing_known` is False for pictures and
        for files that do not say their spacing.

    Raises:
        CodedError: KUG-D01 missing, KUG-D07 damaged or not the kind of its name, KUG-D10 not one
            real number a voxel, KUG-D11 unusable affine, KUG-D30 to KUG-D34 for DICOM, KUG-E01
            without the extra that the kind needs.
    """
    path = Path(path)
    if path.is_dir():
        return dicom.read(path, channel)
    if not path.is_file():
        raise CodedError(
            "KUG-D01", path, "no such file", "an image file", fix="check the path and the spelling"
        )
    return _read_file(path, str(path), channel)


def read_image(path, channels=1, channel=None):
    """Reads an image of a study; see `read`.

    Args:
        path: See `read`.
        channels: Number of channels of the study; above 1 the image keeps all of its own.
        channel: See `read`, where the study has one.

    Raises:
        CodedError: KUG-D36 for another number of channels, or one of them asked for; and as `read`.
    """
    if channels == 1:
        return read(path, channel)
    if channel is not None:
        raise CodedError(
            "KUG-D36",
            path,
            f"channel {channel} asked for",
            f"all {channels} channels",
            "All images of a study have as many.",
            "leave the number of the channel out",
        )
    volume = read(path, ALL_CHANNELS)
    check_channels(volume, channels, path)
    return volume


def check_channels(volume, channels, where):
    """Raises KUG-D36 for a volume that has not as many channels as its study."""
    if volume.channels != channels:
        raise CodedError(
            "KUG-D36",
            where,
            f"{volume.channels} channel{'s' * (volume.channels > 1)}",
            f"{channels}, as the study says",
            "A network has one input, so all images of a study have as many channels.",
            'make a study of these images alone, or correct "channels" in study.json',
        )


def read_bytes(data, name, channel=None):
    """Reads the bytes of a file that came from elsewhere; see `read`.

    Args:
        data: The whole file. Kinds of two files (`.hdr` and `.img`, `.mhd`, `.nhdr`) cannot be
            read from one of them.
        name: Its name or URI, which says the kind.
        channel: See `read`.
    """
    if ending(name) in (None, *_NIFTI):
        return nifti.read_bytes(data, name, channel)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"scan{ending(name)}"
        path.write_bytes(data)
        return _read_file(path, name, channel)


def ending(path):
    """Ending of a name that `read` knows, in lower case (".nii.gz", ".mha"); None for others."""
    name = str(path).lower()
    return next((e for e in ENDINGS if name.endswith(e)), None)


def stem(path):
    """File name without an ending that `read` knows; None for other names."""
    found = ending(path)
    return Path(path).name[: -len(found)] if found else None


def scans_in(folder):
    """Scans that lie in a folder, label maps among them.

    Args:
        folder: Local folder.

    Returns:
        Sorted paths of the files that `read` knows (of a pair, the header). Without any: the folder
        itself where it holds DICOM files, else those of its folders that do.
    """
    entries = sorted(p for p in Path(folder).iterdir() if not p.name.startswith("."))
    known = [p for p in entries if p.is_file() and ending(p) not in (None, ".dcm", *_HALVES)]
    if known:
        return known
    if holds_dicom(entries):
        return [Path(folder)]
    return [p for p in entries if p.is_dir() and holds_dicom(p.iterdir())]


def holds_dicom(paths):
    """Whether one of the paths is a DICOM file."""
    return any(p.is_file() and (ending(p) == ".dcm" or dicom.is_dicom(p)) for p in paths)


def _read_file(path, name, channel):
    reader = _READERS.get(ending(path))
    if reader is None:
        reader = dicom.read if dicom.is_dicom(path) else nifti.read
        return reader(path, channel)
    try:
        volume = reader(path, name, channel)
    except CodedError:
        raise
    except Exception as error:
        if not isinstance(error, _DAMAGED) and type(error).__module__.split(".")[0] not in _OWN:
            raise
        raise CodedError(
            "KUG-D07",
            name,
            f"{path.stat().st_size} bytes that end early or are no {ending(path)} "
            f"({type(error).__name__})",
            f"a whole {ending(path)} file",
            "A part of an image cannot be trusted.",
            "copy the file again from its source, or leave the case out",
        ) from error
    nifti.check_affine(volume.affine, name)
    return volume


def _volume(array, affine, name, known=True, channels=False):
    """`Volume` of an array with one to three axes of space, and perhaps one of channels."""
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim == 2 + channels:
        array = array[:, :, None]
    if array.ndim != 3 + channels or 0 in array.shape or array.dtype.kind not in "iuf":
        raise CodedError(
            "KUG-D10",
            name,
            f"{array.ndim} axes of sizes {array.shape}, type {array.dtype}",
            "one volume (x, y, z) or one slice (x, y) of real numbers",
            fix="save each volume as its own file, or name the channel in the study",
        )
    return nifti.Volume(array, np.asarray(affine, np.float64), spacing_known=known)


def _nifti(path, name, channel):
    return nifti.read_bytes(path.read_bytes(), name, channel)


def _dicom(path, name, channel):
    return dicom.read(path, channel)


def _pair(path, name, channel):
    """NIfTI or Analyze 7.5 in two files."""
    zipped = path.suffix if path.suffix.lower() == ".gz" else ""
    base = path.with_suffix("") if zipped else path
    upper = base.suffix[1:].isupper()
    halves = [base.with_suffix(e.upper() if upper else e) for e in (".hdr", ".img")]
    halves = [half.with_name(half.name + zipped) for half in halves]
    for half in halves:
        if not half.is_file():
            raise CodedError("KUG-D01", name, f"no {half.name} beside it", "both files of the pair")
    header, data = (half.read_bytes() for half in halves)
    if zipped:
        header, data = nifti.gunzip(header), nifti.gunzip(data)
    if header[344:347] != b"ni1" and header[4:7] != b"ni2":
        return _analyze(halves[1], header, name, channel)
    kind = nib.Nifti2Pair if header[4:7] == b"ni2" else nib.Nifti1Pair
    # As one file it passes through all checks that single files pass.
    fields = kind.header_class.from_fileobj(io.BytesIO(header), check=False)
    offset = int(fields["vox_offset"])
    fields["magic"], fields["vox_offset"] = fields.single_magic, fields.single_vox_offset
    return nifti.read_bytes(fields.binaryblock + b"\0\0\0\0" + data[offset:], name, channel)


def _analyze(path, header, name, channel):
    fields = nib.AnalyzeHeader.from_fileobj(io.BytesIO(header), check=False)
    spacing = fields["pixdim"][1 : 1 + min(int(fields["dim"][0]), 3)]
    if not (spacing > 0).all():
        # nibabel would take 1 mm in silence.
        raise CodedError(
            "KUG-D11",
            name,
            f"spacing {tuple(float(s) for s in spacing)} mm",
            "positive spacing",
            "Distances would be meaningless.",
            "write the right spacing into the header",
        )
    return nifti.from_image(nib.load(path), name, channel)


def _mgh(path, name, channel):
    data = path.read_bytes()
    data = nifti.gunzip(data) if data[:2] == b"\x1f\x8b" else data
    return nifti.from_image(nib.MGHImage.from_bytes(data), name, channel)


def _nrrd(path, name, channel):
    try:
        import nrrd
    except ImportError as error:
        raise missing_extra(name, "pynrrd", "formats") from error
    array, header = nrrd.read(str(path))
    columns = header.get("space directions")
    if columns is None:
        # Without directions the kinds tell which axes are of space.
        kinds = header.get("kinds") or ["domain"] * array.ndim
        spatial = [kind in ("domain", "space") for kind in kinds]
    else:
        columns = np.asarray(columns, np.float64)
        spatial = np.isfinite(columns).all(axis=1).tolist()
    rest = [i for i, inside in enumerate(spatial) if not inside]
    array = np.moveaxis(array, rest, range(array.ndim - len(rest), array.ndim))
    several = False
    if len(rest) == 1:
        several = channel == ALL_CHANNELS and array.shape[-1] > 1
        array = one_channel(array, channel, name)
    affine, known = np.eye(4), True
    if columns is None:
        sizes = np.asarray(header.get("spacings", [np.nan] * len(spatial)), np.float64)[spatial]
        known = bool(np.isfinite(sizes).all())
        columns = np.diag(sizes) if known else np.eye(len(sizes))
    else:
        columns = columns[spatial]
    _place(affine, columns, header.get("space origin"), name)
    space = str(header.get("space", "left-posterior-superior")).lower()
    space = _SHORT.get(space, space).removesuffix("-time")
    return _volume(array, _TO_RAS.get(space, LPS_TO_RAS) @ affine, name, known, several)


def _place(affine, columns, origin, name):
    """Fills an affine with the axes (one a row of `columns`) and the origin, in 2-D or 3-D."""
    if columns.shape[0] not in (2, 3) or columns.shape[1] not in (2, 3):
        raise CodedError("KUG-D10", name, f"{columns.shape[0]} axes of space", "2 or 3")
    affine[: columns.shape[1], : columns.shape[0]] = columns.T
    if len(columns) == 2:
        # The next slice would lie 1 mm along the normal.
        normal = np.cross(affine[:3, 0], affine[:3, 1])
        affine[:3, 2] = normal / (np.linalg.norm(normal) or 1.0)
    if origin is not None:
        affine[: len(origin), 3] = origin


def _metaimage(path, name, channel):
    try:
        import metaimageio
    except ImportError as error:
        raise missing_extra(name, "metaimageio", "formats") from error
    try:
        array, header = metaimageio.read(path)
    except ValueError as error:
        if b"NDims = 3" in path.read_bytes()[:4096]:
            raise
        # metaimageio takes the directions of three axes only.
        raise CodedError(
            "KUG-D10", name, "not three axes", "a volume (x, y, z)", fix="save it as .nrrd or .nii"
        ) from error
    several = int(header.get("ElementNumberOfChannels", 1)) > 1
    if several:
        array = one_channel(array, channel, name)
        several = channel == ALL_CHANNELS
    dimensions = array.ndim - several
    if dimensions not in (2, 3):
        raise CodedError("KUG-D10", name, f"{dimensions} axes", "2 or 3")
    turn = next((header[k] for k in _TURNS if k in header), np.eye(3))[:dimensions, :dimensions]
    spacing = header.get("ElementSpacing", header.get("ElementSize"))
    sizes = np.ones(dimensions) if spacing is None else spacing
    affine = np.eye(4)
    origin = next((header[k] for k in ("Offset", "Position", "Origin") if k in header), None)
    _place(affine, (turn * sizes).T, origin, name)
    array = np.moveaxis(array.T, 0, -1) if several else array.T
    return _volume(array, LPS_TO_RAS @ affine, name, spacing is not None, several)


PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_TURNS = ("TransformMatrix", "Orientation", "Rotation")
_OWN = ("nrrd", "tifffile", "PIL")
_READERS = {
    **dict.fromkeys(_NIFTI, _nifti),
    **dict.fromkeys(_PAIR, _pair),
    **dict.fromkeys((".mgz", ".mgh"), _mgh),
    **dict.fromkeys((".nrrd", ".nhdr"), _nrrd),
    **dict.fromkeys((".mha", ".mhd"), _metaimage),
    **dict.fromkeys(PICTURES, pictures.read),
    **dict.fromkeys((".dcm", ".zip"), _dicom),
}
ENDINGS = tuple(sorted(_READERS, key=len, reverse=True))
"""Endings of the names that `read` knows, longest first."""
