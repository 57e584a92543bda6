"""NIfTI files to volumes and back: read, reorient to RAS+, write on the input's own grid.

Arrays are indexed (x, y, z), and of images of several channels (x, y, z, channel); affines take
voxel indices to RAS+ millimetres. A 2-D file becomes a volume of one slice. Reorienting permutes
and flips axes and never interpolates.
"""

import dataclasses
import gzip
import io
import os
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np

from keras_unigan.config import ALL_CHANNELS
from keras_unigan.errors import CodedError

_DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    OverflowError,
    MemoryError,
    zlib.error,
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
    nib.wrapstruct.WrapStructError,
)
_KINDS = {
    size.to_bytes(4, order): kind
    for size, kind in ((348, nib.Nifti1Image), (540, nib.Nifti2Image))
    for order in ("little", "big")
}
_GEOMETRY = (
    *("pixdim", "xyzt_units", "dim_info", "qform_code", "sform_code"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z"),
)


SYNTHETIC = "SYNTHETIC"
"""How the description in the header of an image begins that a network made."""


@dataclasses.dataclass(frozen=True)
class Volume:
    """A scan or label map with its place in the world.

    Attributes:
        array: Values, shape (x, y, z) or (x, y, z, channels), scaled as the header says, in the
            file's voxel type where it has no scale.
        affine: Voxel index to RAS+ mm, (4, 4) float64.
        header: NIfTI header of the file that it came from, or None.
        spacing_known: Whether the file says how far voxels lie apart. Where it does not (PNG, a
            photograph), each axis counts 1 per voxel and distances are in pixels.
        scheme: How the file's own tags say that its intensities are to be normalised, a name in
            `config.SCHEMES`; None where it has no such tags.
    """

    array: np.ndarray
    affine: np.ndarray
    header: nib.Nifti1Header | None = None
    spacing_known: bool = True
    scheme: str | None = None

    @property
    def shape(self):
        """Voxels along (x, y, z)."""
        return self.array.shape[:3]

    @property
    def synthetic(self):
        """Whether the header says that no scanner made it."""
        text = b"" if self.header is None else bytes(self.header["descrip"])
        return text.startswith(SYNTHETIC.encode())

    @property
    def channels(self):
        """Numbers that each voxel holds."""
        return self.array.shape[3] if self.array.ndim > 3 else 1

    @property
    def spacing(self):
        """Millimetres between voxels along each axis of the array, a tuple of three floats."""
        return tuple(float(s) for s in nib.affines.voxel_sizes(self.affine))


def read(path, channel=None):
    """Reads a `.nii` or `.nii.gz` file in its own orientation.

    Args:
        path: Local path.
        channel: Index on the last axis of a file that holds several volumes; None for one volume;
            `config.ALL_CHANNELS` keeps all, also of a file whose voxels are colours.

    Returns:
        `Volume`; a 2-D file has shape (x, y, 1).

    Raises:
        CodedError: KUG-D01 missing, KUG-D07 damaged or not NIfTI, KUG-D10 not 2-D or 3-D or not one
            real number a voxel, KUG-D11 unusable affine.
    """
    path = Path(path)
    if not path.is_file():
        raise CodedError(
            "KUG-D01", path, "no such file", "a NIfTI file", fix="check the path and the spelling"
        )
    return read_bytes(path.read_bytes(), str(path), channel)


def read_bytes(data, name, channel=None):
    """Reads the bytes of a `.nii` or `.nii.gz` file; see `read`.

    Args:
        data: The whole file.
        name: What errors call it.
        channel: See `read`.
    """
    size = len(data)
    try:
        if data[:2] == b"\x1f\x8b":
            data = gunzip(data)
        kind = _KINDS.get(data[:4])
        if kind is None:
            raise nib.filebasedimages.ImageFileError("neither NIfTI-1 nor NIfTI-2")
        header = kind.header_class.from_fileobj(io.BytesIO(data), check=False)
        affine = _affine(header, name)
        image = kind.from_bytes(data)
        _check_kind(image, name, channel)
        array = np.asanyarray(image.dataobj)
    except CodedError:
        raise
    except _DAMAGED as error:
        raise _damaged(name, f"a file of {size} bytes", error) from error
    return _volume(array, affine, header, name, channel)


def gunzip(data):
    """What gzip has packed; with ISA-L, where it is installed, in half of zlib's time.

    Raises:
        EOFError, gzip.BadGzipFile, zlib.error: For bytes that are cut off or damaged.
    """
    try:
        from isal import igzip, isal_zlib
    except ImportError:
        return gzip.decompress(data)
    try:
        return igzip.decompress(data)
    except isal_zlib.error:
        # A kind of its own: let zlib say what is wrong.
        return gzip.decompress(data)


def from_image(image, name="image", channel=None):
    """Makes a `Volume` of a nibabel image in memory; see `read` for the errors."""
    _check_kind(image, name, channel)
    header = image.header if isinstance(image.header, nib.Nifti1Header) else None
    if image.affine is None:
        raise CodedError("KUG-D11", name, "no affine", "an affine to RAS+ mm")
    affine = np.array(image.affine, np.float64)
    check_affine(affine, name)
    try:
        array = np.asanyarray(image.dataobj)
    except _DAMAGED as error:
        raise _damaged(name, "an image", error) from error
    return _volume(array, affine, header, name, channel)


def _damaged(name, found, error):
    return CodedError(
        "KUG-D07",
        name,
        f"{found} that ends early or is no NIfTI ({type(error).__name__})",
        "a whole .nii or .nii.gz file",
        "A part of an image cannot be trusted.",
        "copy the file again from its source, or leave the case out",
    )


def _check_kind(image, name, channel):
    dtype = image.get_data_dtype()
    coloured = channel == ALL_CHANNELS and dtype.names == ("R", "G", "B")
    if (dtype.fields or dtype.kind not in "iuf") and not coloured:
        raise CodedError(
            "KUG-D10",
            name,
            f"voxels of type {'RGB' if dtype.fields else dtype}",
            "one real number a voxel",
            fix="save one channel as its own file",
        )


def _affine(header, name):
    """Best affine of an unchecked header; nibabel would turn a spacing of 0 into 1 in silence."""
    try:
        with np.errstate(all="ignore"):
            affine = np.array(header.get_best_affine(), np.float64)
    except (ValueError, nib.spatialimages.HeaderDataError) as error:
        raise CodedError(
            "KUG-D11", name, f"a qform that is no rotation ({error})", "a usable affine"
        ) from error
    if int(header["dim"][0]) == 2 and np.isfinite(affine).all() and not affine[:3, 2].any():
        # A 2-D file need not say where the next slice would be; 1 mm along the normal is neutral.
        normal = np.cross(affine[:3, 0], affine[:3, 1])
        affine[:3, 2] = normal / (np.linalg.norm(normal) or 1.0)
    check_affine(affine, name)
    return affine


def check_affine(affine, name):
    """Raises KUG-D11 for an affine (4, 4) that is not finite or has no inverse."""
    finite = bool(np.isfinite(affine).all())
    spacing = nib.affines.voxel_sizes(affine) if finite else np.full(3, np.nan)
    unit = affine[:3, :3] / np.where(spacing > 0, spacing, 1.0)
    if not finite or not (spacing > 1e-6).all() or abs(np.linalg.det(unit)) < 1e-3:
        raise CodedError(
            "KUG-D11",
            name,
            f"spacing {tuple(float(s) for s in np.round(spacing, 6))} mm and an affine that "
            + ("has no inverse" if finite else "is not finite"),
            "positive spacing and three independent axes",
            "Distances and orientation would be meaningless.",
            "write the right spacing into the header",
        )


def _volume(array, affine, header, name, channel):
    shape = array.shape
    if array.dtype.names:
        array = np.stack([array[colour] for colour in array.dtype.names], axis=-1)
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if channel == ALL_CHANNELS:
        return _whole(array, affine, header, name, shape)
    if channel is not None and array.ndim > 3 and 0 <= channel < array.shape[-1]:
        array = array[..., channel]
        while array.ndim > 3 and array.shape[-1] == 1:  # NIfTI has vectors on its fifth axis.
            array = array[..., 0]
        if header is not None:
            header = header.copy()
            header.set_data_shape(array.shape)
    elif channel:
        raise CodedError(
            "KUG-D10",
            name,
            f"sizes {shape} and channel {channel} asked for",
            "a channel that the last axis has, counted from 0",
            fix="correct the channel of the case in the study",
        )
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or 0 in array.shape:
        raise CodedError(
            "KUG-D10",
            name,
            f"{len(shape)} axes of sizes {shape}",
            "one volume (x, y, z) or one slice (x, y)",
            fix="of an image, name the channel (its index on the last axis) of each case in the "
            "study; save a label map as one volume with a value for each structure",
        )
    return Volume(array, affine, header)


def _whole(array, affine, header, name, shape):
    """`Volume` with all channels of a file, of which `shape` is that of its array."""
    if array.ndim == 5 and array.shape[3] == 1:  # NIfTI has vectors on its fifth axis.
        array = array[:, :, :, 0]
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise CodedError(
            "KUG-D10",
            name,
            f"{len(shape)} axes of sizes {shape}",
            "one volume (x, y, z), or (x, y, z, channels)",
            fix="save moments or wavelengths beyond one axis as files of their own",
        )
    if header is not None and array.ndim > 3:
        header = header.copy()
        header.set_data_shape(array.shape[:3])
    return Volume(array, affine, header)


def _orientation(shape, affine):
    """Nibabel orientation to RAS+.

    An image of one slice keeps its slice axis last, whatever plane it lies in: networks for slices
    work on the first two axes.
    """
    orientation = nib.io_orientation(affine)
    single = [axis for axis, size in enumerate(shape) if size == 1]
    if len(single) == 1:
        targets = orientation[:, 0]
        targets[targets > targets[single[0]]] -= 1
        targets[single[0]] = 2
    return orientation


def to_ras(volume):
    """Permutes and flips axes until they run to the right, to the front and up (nearest match).

    An image of one slice keeps its slice axis last. The world position of every voxel stays.

    Returns:
        `Volume` without header; its array may be a view of the same memory.
    """
    orientation = _orientation(volume.shape, volume.affine)
    array = nib.apply_orientation(volume.array, orientation)
    affine = volume.affine @ nib.orientations.inv_ornt_aff(orientation, volume.shape)
    return Volume(array, affine, spacing_known=volume.spacing_known)


def from_ras(array, reference):
    """Takes an array on `to_ras(reference)`'s grid back to the axes of `reference`.

    Args:
        array: Shape (x, y, z) or (x, y, z, channels) in RAS+.
        reference: `Volume` in its own orientation.
    """
    there = _orientation(reference.shape, reference.affine)
    back = nib.orientations.ornt_transform(np.array([[0, 1], [1, 1], [2, 1]]), there)
    return np.ascontiguousarray(nib.apply_orientation(array, back))


def encode(array, reference=None, affine=None, description=""):
    """Makes the bytes of an uncompressed `.nii` file.

    The header is new and takes only geometry from the reference (affine, qform and sform with their
    codes, spacing, units), so no name or description of a patient travels along.

    Args:
        array: Shape of `reference`, or (x, y, z) with `affine`; perhaps one axis of channels more.
        reference: `Volume` whose grid the array lies on.
        affine: Voxel index to RAS+ mm, for arrays without a reference.
        description: Text of the header, at most 79 bytes; it says what the array is, of nobody.

    Raises:
        ValueError: When the shape is not the reference's or NIfTI lacks the type.
    """
    if (reference is None) == (affine is None):
        raise ValueError("Expected one of reference and affine, got both or neither.")
    array = np.asarray(array)
    array = array.astype(np.uint8) if array.dtype == bool else array
    if reference is not None and (array.shape[:3] != reference.shape or array.ndim > 4):
        raise ValueError(f"Expected array of shape {reference.shape}, got {array.shape}.")
    source = reference.header if reference is not None else None
    header = type(source)(endianness="<") if source is not None else nib.Nifti1Header()
    try:
        header.set_data_dtype(array.dtype)
    except nib.spatialimages.HeaderDataError as error:
        raise ValueError(f"Expected a NIfTI voxel type, got {array.dtype}.") from error
    if source is None:
        header.set_data_shape(array.shape)
        header.set_xyzt_units("mm")
        grid = affine if reference is None else reference.affine
        header.set_sform(grid, code=1)
        header.set_qform(grid, code=1)
    else:
        # Of a flat image the reference knows whether it has a third axis.
        header.set_data_shape(array.shape if array.ndim > 3 else source.get_data_shape())
        for field in _GEOMETRY:
            header[field] = source[field]
    header["descrip"] = description.encode()
    header["vox_offset"] = header.single_vox_offset
    header["magic"] = header.single_magic
    header.set_slope_inter(1, 0)
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    # Four zero bytes after the header say that no extension follows.
    return header.binaryblock + b"\0\0\0\0" + little.tobytes(order="F")


def write(path, array, reference=None, affine=None, description=""):
    """Writes a `.nii` or `.nii.gz` file through a temporary sibling and a rename; see `encode`.

    The same input gives the same bytes. A 2-D reference gives a 2-D file.

    Args:
        path: Where to; the ending says whether it is compressed.
        array: See `encode`.
        reference: See `encode`.
        affine: See `encode`.
        description: See `encode`.

    Raises:
        ValueError: For another ending than `.nii` and `.nii.gz`, and as `encode`.
    """
    path = Path(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"Expected path ending in .nii or .nii.gz, got {path.name!r}.")
    write_bytes(path, encode(array, reference, affine, description))


def write_bytes(path, data):
    """Writes through a rename, compressed if the name says so, without gzip's name and time."""
    data = gzip.compress(data, 6, mtime=0) if path.name.endswith(".gz") else data
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
