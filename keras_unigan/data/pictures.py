"""PNG, JPEG and TIFF to volumes; needs the extra [formats].

Columns run to the left and rows to the back, as ITK reads pictures; a pixel counts 1, as the
resolution in such files is that of a printer. Pixels stay as stored: no turning by camera tags.
"""

import numpy as np

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
            the same.

    Returns:
        `nifti.Volume` (columns, rows, pages) with unknown spacing.

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
    return nifti.Volume(array.T, LPS_TO_RAS.copy(), spacing_known=False)


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
        array = np.asarray(image)
    return one_channel(array, channel, name)[None] if array.ndim == 3 else array[None]


def _tiff(path, name, channel):
    try:
        import tifffile
    except ImportError as error:
        raise missing_extra(name, "tifffile", "formats") from error
    with tifffile.TiffFile(path) as file:
        series = file.series
        axes, palette = series[0].axes, series[0].keyframe.photometric == 3
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
    if len(colours) == 1:
        array = one_channel(np.moveaxis(array, colours[0], -1), channel, name)
        axes = axes[: colours[0]] + axes[colours[0] + 1 :]
    keep = [i for i, axis in enumerate(axes) if axis in "YX" or array.shape[i] > 1]
    axes = "".join(axes[i] for i in keep)
    if axes not in _STACKS:
        raise CodedError(
            "KUG-D10", name, f"axes {axes}", "a picture (YX) or a stack (ZYX), one channel named"
        )
    array = array.reshape([array.shape[i] for i in keep])
    return array[None] if array.ndim == 2 else array


def _compressed(path, name):
    """Pages of a TIFF whose compression (LZW, JPEG) Pillow decodes and tifffile alone does not."""
    try:
        from PIL import Image, ImageSequence
    except ImportError as error:
        raise missing_extra(name, "pillow", "formats") from error
    with Image.open(path) as image:
        return np.stack([np.asarray(page) for page in ImageSequence.Iterator(image)])
