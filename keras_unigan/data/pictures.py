"""PNG, JPEG and TIFF to volumes, and label maps to PNG and TIFF; needs the extra [formats].

Columns run to the left and rows to the back, as ITK reads pictures; a pixel counts 1, as the
resolution in such files is that of a printer. Pixels stay as stored: no turning by camera tags.
"""

import os
from pathlib import Path

import numpy as np

from keras_unigan.config import ALL_CHANNELS
from keras_unigan.data import nifti
from keras_unigan.data.dicom_planes import LPS_TO_RAS
from keras_unigan.data.dicom_values import one_channel
from keras_unigan.errors import CodedError, missing_extra

_STACKS = ("YX", "ZYX", "IYX", "QYX")


def read(path, name, channel=None):
    """Reads a picture of 8 or 16 bits, or a grey TIFF of any depth with one or more pages.

    Args:
        path: Local path of a `.png`, `.jpg`, `.jpeg`, `.tif` or `.tiff`.
        name: What errors call it.
        channel: Index of the colour or channel to keep; None for grey, also where all colours are
            the same. `config.ALL_CHANNELS` keeps them, but for an opacity that is full everywhere.

    Returns:
        `nifti.Volume` (columns, rows, pages[, channels]) with unknown spacing.

    Raises:
        CodedError: KUG-D10 for colours without `channel`, palettes and further axes; KUG-E01
            without the extra.
        Exception: What the readers raise for damaged files.
    """
    tiff = str(path).lower().endswith((".tif", ".tiff"))
    array = _tiff(path, name, channel) if tiff else _picture(path, name, channel)
    if array.dtype == bool:
        array = array.astype(np.uint8)
    # (pages, rows, columns) to (columns, rows, pages).
    array = np.moveaxis(array, (0, 1, 2), (2, 1, 0))
    return nifti.Volume(array, LPS_TO_RAS.copy(), spacing_known=False)


def write(path, array):
    """Writes a label map as a picture of 8 bits, without loss and without the name of anybody.

    Args:
        path: `.png` for one slice, `.tif` or `.tiff` for one or more.
        array: uint8 (columns, rows, pages), as `read` gives it; perhaps three colours last.

    Raises:
        CodedError: KUG-T02 for several pages in a PNG, or another ending; KUG-E01 without the
            extra.
    """
    path, pages = Path(path), np.moveaxis(np.asarray(array, np.uint8), (0, 1, 2), (2, 1, 0))
    check_pages(path, len(pages))
    try:
        from PIL import Image
    except ImportError as error:
        raise missing_extra(path, "pillow", "formats") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *rest = [Image.fromarray(np.ascontiguousarray(page)) for page in pages]
    temporary = path.with_name(f".{os.getpid()}{path.name}")
    try:
        if path.suffix.lower() == ".png":
            first.save(temporary, "PNG")
        else:
            first.save(temporary, "TIFF", compression="tiff_adobe_deflate", save_all=True,
                       append_images=rest)  # fmt: skip
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


LABEL_ENDINGS = (".png", ".tif", ".tiff")
"""Endings of pictures that hold label maps; JPEG changes values."""


def holds_labels(path):
    """Whether a name is that of a picture that `write` writes."""
    return Path(path).suffix.lower() in LABEL_ENDINGS


def check_pages(path, pages):
    """Raises KUG-T02 for a picture that cannot hold so many pages, or loses values."""
    known = LABEL_ENDINGS if pages == 1 else LABEL_ENDINGS[1:]
    if Path(path).suffix.lower() not in known:
        raise CodedError(
            "KUG-T02",
            "--output",
            f"a {Path(path).suffix} picture for {pages} slices",
            f"one of {', '.join(known)}, or .nii.gz",
            "Nothing of a label map may be lost.",
        )


def label_ending(path):
    """Ending of the label map of a picture, or None where a path is no picture."""
    ending = Path(path).suffix.lower()
    return {".jpg": ".png", ".jpeg": ".png", ".png": ".png"}.get(
        ending, ending if ending in LABEL_ENDINGS else None
    )


def _picture(path, name, channel):
    try:
        from PIL import Image
    except ImportError as error:
        raise missing_extra(name, "pillow", "formats") from error
    with Image.open(path) as image:
        if image.mode in ("P", "PA"):
            raise CodedError(
                "KUG-D10", name, "colours of a palette", "grey values", fix="save it as grey"
            )
        stored = [str(tile[3]) for tile in image.tile]
        if len(image.getbands()) > 1 and any("16" in mode for mode in stored):
            # Pillow would drop the lower half of each value in silence.
            raise CodedError(
                "KUG-D10", name, "colours of 16 bits", "8 bits, or grey", fix="save it as TIFF"
            )
        array, opacity = np.asarray(image), image.mode in ("RGBA", "LA")
    if array.ndim == 2:
        return array[None]
    return one_channel(_colours(array, channel, opacity), channel, name)[None]


def _colours(array, channel, opacity):
    """Channels of a picture that is kept whole, without an opacity (last) that tells nothing."""
    full = opacity and channel == ALL_CHANNELS and (array[..., -1] == _opaque(array)).all()
    return array[..., :-1] if full else array


def _opaque(array):
    return np.iinfo(array.dtype).max if array.dtype.kind in "iu" else 1.0


def _tiff(path, name, channel):
    try:
        import tifffile
    except ImportError as error:
        raise missing_extra(name, "tifffile", "formats") from error
    with tifffile.TiffFile(path) as file:
        series = file.series
        axes, palette = series[0].axes, series[0].keyframe.photometric == 3
        opacity = 2 in (series[0].keyframe.extrasamples or ())  # 2: unassociated alpha
        if len(series) > 1 or palette:
            found = "colours of a palette" if palette else f"{len(series)} images of unlike size"
            raise CodedError("KUG-D10", name, found, "one grey picture or stack")
        try:
            array = series[0].asarray()
        except ValueError as error:
            if "imagecodecs" not in str(error) or axes not in (*_STACKS, "YXS"):
                raise
            array = _compressed(path, name).reshape(series[0].shape)
    colours = [i for i, axis in enumerate(axes) if axis in "CS"]
    rest: tuple[int, ...] = ()
    if len(colours) == 1:
        array = _colours(np.moveaxis(array, colours[0], -1), channel, opacity)
        array = one_channel(array, channel, name)
        axes = axes[: colours[0]] + axes[colours[0] + 1 :]
        rest = array.shape[len(axes) :]
    keep = [i for i, axis in enumerate(axes) if axis in "YX" or array.shape[i] > 1]
    axes = "".join(axes[i] for i in keep)
    if axes not in _STACKS:
        raise CodedError(
            "KUG-D10", name, f"axes {axes}", "a picture (YX) or a stack (ZYX), one channel named"
        )
    array = array.reshape([*(array.shape[i] for i in keep), *rest])
    return array[None] if len(axes) == 2 else array


def _compressed(path, name):
    """Pages of a TIFF whose compression (LZW, JPEG) Pillow decodes and tifffile alone does not."""
    try:
        from PIL import Image, ImageSequence
    except ImportError as error:
        raise missing_extra(name, "pillow", "formats") from error
    with Image.open(path) as image:
        return np.stack([np.asarray(page) for page in ImageSequence.Iterator(image)])
