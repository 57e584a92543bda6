"""DICOM folders, files and zips to volumes; needs the extra [dicom].

Errors name the folder, counts and positions along the slices. They repeat no text of a file: no
name, no description, no date.
"""

import collections
import contextlib
import dataclasses
import functools
import io
import logging
import struct
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np

from keras_unigan.config import ALL_CHANNELS
from keras_unigan.data import dicom_planes, dicom_values, nifti
from keras_unigan.errors import CodedError, missing_extra

_DAMAGED = (
    *(OSError, EOFError, ValueError, TypeError, AttributeError, LookupError, RuntimeError),
    *(OverflowError, MemoryError, NotImplementedError, struct.error, zlib.error),
    *(zipfile.BadZipFile, UnicodeError),
)


@dataclasses.dataclass(frozen=True, eq=False)
class Series:
    """One series of images, as its headers tell it.

    Attributes:
        uid: SeriesInstanceUID.
        modality: DICOM's word: "CT", "MR", "PT", "NM", "DX".
        count: Images in it.
        shape: (rows, columns) of the first image.
        spacing: mm between columns, rows and slices of the first images; None where not said.
        localiser: Whether all images call themselves LOCALIZER.
        description: Free text of the scanner; people write names into it, so it is never printed.
        planes: `dicom_planes.Plane` of each image.
    """

    uid: str
    modality: str
    count: int
    shape: tuple[int, int]
    spacing: tuple[float, float, float] | None
    localiser: bool
    description: str = dataclasses.field(repr=False)
    planes: tuple = dataclasses.field(repr=False)

    def __str__(self):
        sizes = " x ".join(f"{s:g}" for s in self.spacing) + " mm" if self.spacing else "no spacing"
        kind = " (localiser)" if self.localiser else ""
        rows, columns = self.shape
        images = f"{self.count} images of {rows} x {columns}, {sizes}"
        return f"{self.uid}: {self.modality}{kind}, {images}"


def is_dicom(path):
    """Whether a local file begins as DICOM files do."""
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def series_table(path):
    """Lists the series of images in a folder (with all below it), zip or file.

    Args:
        path: Local path.

    Returns:
        List of `Series`, sorted by UID. Files without pixels (reports, contours) do not count.

    Raises:
        CodedError: KUG-D01 without any image, KUG-D07 damaged, KUG-E01 without the extra.
    """
    with _opened(path) as files:
        return _table(files, path)


def read(path, channel=None, series=None):
    """Reads one series as a volume.

    Slices are put in order by their positions. Series of localisers are passed over where there is
    another one. MONOCHROME1 is inverted; rescale slope and intercept are applied; PET becomes SUV
    by body weight where the tags allow, else a warning names the tag that is missing. An image
    without pixel spacing counts 1 per pixel.

    Args:
        path: Folder (with all below it), `.zip`, or one file with one or more frames.
        channel: Colour of a colour image, or frame of a file whose frames have no place. All of
            them (`config.ALL_CHANNELS`) are not read: that asks for one grey image as None does.
        series: SeriesInstanceUID; None where there is one.

    Returns:
        `nifti.Volume` (columns, rows, slices) without header.

    Raises:
        CodedError: KUG-D01, KUG-D07, KUG-D10, KUG-D11, KUG-D30 to KUG-D34, KUG-E01; see
            `dicom_planes.stack` and `dicom_values.frames_of`.
    """
    channel = None if channel == ALL_CHANNELS else channel
    with _opened(path) as files:
        chosen = _choose(_table(files, path), series, path)
        planes, affine, known = _stack(chosen, channel, path)
        datasets: dict = {plane.file: None for plane in planes}
        images: dict = {}
        colour = channel if len(planes) == chosen.count else None
        for number in datasets:
            dataset = _dataset(files[number])
            images[number] = dicom_values.frames_of(dataset, path, colour)
            del dataset.PixelData
            datasets[number] = dataset
        array = np.stack([images[plane.file][plane.frame].T for plane in planes], axis=2)
    factor = _suv(list(datasets.values()), path)
    if factor is not None:
        array = (array * np.float64(factor)).astype(np.float32)
    nifti.check_affine(affine, str(path))
    scheme = dicom_values.scheme_of(chosen.modality, factor is not None)
    return nifti.Volume(array, affine, spacing_known=known, scheme=scheme)


@contextlib.contextmanager
def quiet():
    """Keeps pydicom's warnings to itself: they repeat values of tags, which may be a patient's."""
    import pydicom

    log = logging.getLogger("pydicom")
    told = log.propagate
    with pydicom.config.disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log.propagate = False
        try:
            yield
        finally:
            log.propagate = told


@contextlib.contextmanager
def _opened(path):
    """Functions that open each file of a folder or zip; turns other errors into KUG-D07."""
    try:
        import pydicom  # noqa: F401
    except ImportError as error:
        raise missing_extra(path, "pydicom", "dicom") from error
    path = Path(path)
    if not path.exists():
        raise CodedError("KUG-D01", path, "no such file or folder", "DICOM", fix="check the path")
    try:
        with contextlib.ExitStack() as stack, quiet():
            yield _files(path, stack)
    except CodedError:
        raise
    except _DAMAGED as error:
        raise CodedError(
            "KUG-D07",
            path,
            f"DICOM that ends early or is damaged ({type(error).__name__})",
            "whole files",
            "A part of an image cannot be trusted.",
            "copy the files again from their source, or leave the case out",
        ) from None  # The text of the cause may repeat values of tags.


def _files(path, stack):
    if path.is_dir():
        names = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
        return [functools.partial(open, name, "rb") for name in names]
    if path.suffix.lower() != ".zip":
        return [functools.partial(open, path, "rb")]
    archive = stack.enter_context(zipfile.ZipFile(path))
    names = sorted(i.filename for i in archive.infolist() if not i.is_dir())
    return [lambda n=n: io.BytesIO(archive.read(n)) for n in names]


def _dataset(opener, pixels=True):
    import pydicom

    with opener() as file:
        return pydicom.dcmread(file, stop_before_pixels=not pixels)


def _table(files, path):
    """`Series` of all images among `files`."""
    import pydicom

    groups, seen = collections.defaultdict(list), set()
    for number, opener in enumerate(files):
        try:
            dataset = _dataset(opener, pixels=False)
        except pydicom.errors.InvalidDicomError as error:
            if len(files) == 1:
                raise ValueError("no DICOM") from error
            continue
        instance = dataset.get("SOPInstanceUID")
        # A second copy of a file is no second slice.
        if "Rows" in dataset and (not instance or instance not in seen):
            seen.add(instance)
            groups[str(dataset.get("SeriesInstanceUID") or "")].append((number, dataset))
    if not groups:
        raise CodedError(
            "KUG-D01",
            path,
            f"no DICOM image among {len(files)} files",
            "a series of DICOM images",
            fix="give the folder, zip or file that holds the images",
        )
    return [_series(uid, groups[uid]) for uid in sorted(groups)]


def _series(uid, members):
    first = members[0][1]
    planes = tuple(p for number, d in members for p in dicom_planes.planes_of(d, number))
    spacing = None
    if planes[0].spacing is not None:
        between = planes[0].thickness or 1.0
        placed = all(p.placed for p in planes)
        along = dicom_planes.in_order(planes)[1] if placed else np.zeros(1)
        gaps = np.diff(along)
        between = float(np.median(gaps)) if gaps.size else between
        spacing = (planes[0].spacing[1], planes[0].spacing[0], round(between, 4))
    return Series(
        uid=uid,
        modality=str(first.get("Modality") or "unknown"),
        count=len(planes),
        shape=planes[0].shape,
        spacing=spacing,
        localiser=all(p.localiser for p in planes),
        description=str(first.get("SeriesDescription") or ""),
        planes=planes,
    )


def _choose(table, uid, path):
    if uid is not None:
        found = [s for s in table if s.uid == uid]
    else:
        found = [s for s in table if not s.localiser] or table
    if len(found) == 1:
        return found[0]
    lines = [str(s) for s in table[:10]]
    more = f"; and {len(table) - 10} more" if len(table) > 10 else ""
    raise CodedError(
        "KUG-D30",
        path,
        f"{len(table)} series: {'; '.join(lines)}{more}",
        "one series" if uid is None else f"one with the UID {uid}",
        "Slices of different series do not belong into one volume.",
        "move each series to a folder of its own",
    )


def _stack(series, channel, path):
    """Planes in order, affine and whether spacing is known; see `dicom_planes.stack`."""
    planes = series.planes
    placed = all(plane.placed for plane in planes)
    one_file = len({plane.file for plane in planes}) == 1
    if not placed and one_file and len(planes) > 1 and channel is not None:
        # Views or moments: a frame is what a channel is elsewhere.
        if not 0 <= channel < len(planes):
            raise CodedError(
                "KUG-D10", path, f"{len(planes)} frames", f"a frame of number {channel}"
            )
        planes = planes[channel : channel + 1]
    return dicom_planes.stack(list(planes), path)


def _suv(datasets, path):
    """Factor to SUV of a PET series; None for others and, with a warning, where tags lack."""
    if datasets[0].get("Modality") != "PT":
        return None
    factor, missing = dicom_values.suv_factor(datasets)
    if factor is None:
        warnings.warn(
            f"{path}: PET values stay as stored, not SUV: {missing} missing or not usable",
            UserWarning,
            stacklevel=3,
        )
    return factor
