"""What the pixels of a DICOM file mean: decoded, MONOCHROME1 inverted, rescaled, PET as SUV."""

import datetime
import math

import numpy as np

from keras_unigan.config import ALL_CHANNELS
from keras_unigan.data.dicom_planes import functional_group
from keras_unigan.errors import CodedError, missing_extra

PHILIPS_SUV = (0x7053, "Philips PET Private Group", 0x00)


def frames_of(dataset, where, channel=None):
    """Decoded frames of a file with the meaning that its tags give them.

    Args:
        dataset: pydicom `Dataset` with pixels.
        where: What an error calls it.
        channel: Colour of a colour image to keep, 0 is red; None for grey ones.

    Returns:
        Array (frames, rows, columns); integers stay integers where the tags scale by 1.

    Raises:
        CodedError: KUG-D10 for colours, KUG-D34 for pixels that nothing here decodes, KUG-E01
            where a decoder is not installed.
    """
    array = _grey(_decode(dataset, where), dataset, where, channel)
    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        # Stored so that high is dark; the range that the bits allow is turned over.
        span = 2 ** int(dataset.BitsStored) - 1
        high = span if int(dataset.PixelRepresentation) == 0 else -1
        array = (high - array.astype(np.int64)).astype(array.dtype)
    if dataset.get("ModalityLUTSequence"):
        from pydicom.pixels import apply_modality_lut

        return apply_modality_lut(array, dataset).astype(np.float32)
    return np.stack([_rescale(a, *_scale(dataset, k)) for k, a in enumerate(array)])


def _decode(dataset, where):
    """Stored values (frames, rows, columns, samples)."""
    from pydicom.pixels import get_decoder, pixel_array

    if "PixelData" not in dataset:
        raise CodedError("KUG-D34", where, "no PixelData", "an image of whole numbers")
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_compressed and not syntax.is_deflated:
        try:
            available = get_decoder(syntax).is_available
        except NotImplementedError as error:
            raise _undecoded(syntax, where) from error
        if not available:
            raise missing_extra(where, f"that decodes {syntax.name}", "dicom")
    try:
        array = pixel_array(dataset)
    except RuntimeError as error:
        if "does not support" in str(error):  # As for lossy JPEG of 12 bits.
            raise _undecoded(syntax, where) from None
        raise
    samples = int(dataset.get("SamplesPerPixel") or 1)
    return array.reshape(-1, int(dataset.Rows), int(dataset.Columns), samples)


def _undecoded(syntax, where):
    return CodedError(
        "KUG-D34",
        where,
        f"transfer syntax {syntax.name}",
        "one that the extra [dicom] decodes",
        fix="decompress the file first, as with dcmdjpeg or gdcmconv --raw",
    )


def _grey(array, dataset, where, channel):
    if dataset.get("PhotometricInterpretation") == "PALETTE COLOR":
        raise CodedError("KUG-D10", where, "colours of a palette", "grey values")
    return one_channel(array, channel, where)


def one_channel(array, channel, where):
    """One channel of an array whose last axis holds them.

    Args:
        array: Shape (..., channels).
        channel: Index; None where there is one channel, or where all are the same;
            `config.ALL_CHANNELS` keeps them.
        where: What an error calls it.

    Returns:
        Array without the last axis, unless all are kept and there are several.

    Raises:
        CodedError: KUG-D10 for several channels without `channel`, or none of that number.
    """
    count = array.shape[-1]
    if channel == ALL_CHANNELS:
        return array if count > 1 else array[..., 0]
    if channel is None and (array == array[..., :1]).all():
        return array[..., 0]
    if channel is None or not 0 <= channel < count:
        raise CodedError(
            "KUG-D10",
            where,
            f"{count} channels" + ("" if channel is None else f" and channel {channel} asked for"),
            "one real number a voxel, or the number of the channel to take",
            "Colours and contrasts are not one intensity.",
            f"name the channel in the study: 0 to {count - 1}",
        )
    return array[..., channel]


def _scale(dataset, frame):
    item = functional_group(dataset, frame, "PixelValueTransformationSequence") or dataset
    slope, intercept = item.get("RescaleSlope"), item.get("RescaleIntercept")
    return (1.0 if slope is None else float(slope)), float(intercept or 0.0)


def _rescale(array, slope, intercept):
    if slope == 1.0 and intercept.is_integer():
        if intercept == 0.0:
            return array
        array = array.astype(np.int64) + int(intercept)
        for kind in (np.int16, np.int32):
            limits = np.iinfo(kind)
            if array.min() >= limits.min and array.max() <= limits.max:
                return array.astype(kind)
    return (array * np.float64(slope) + intercept).astype(np.float32)


_SCHEMES = {
    "ct": ("CT",),
    "mr": ("MR",),
    "xray": ("CR", "DX", "IO", "MG", "PX", "RF", "RG", "XA"),
    "spect_counts": ("NM", "PT"),
    "ultrasound": ("US", "IVUS"),
    "microscopy": ("SM", "GM"),
}


def scheme_of(modality, in_suv=False):
    """Scheme of `config.SCHEMES` that DICOM's word for a modality stands for, or None.

    Args:
        modality: "CT", "PT", "DX", ...
        in_suv: Whether the values are SUV; those of PET that are not have no fixed scale.
    """
    if modality == "PT" and in_suv:
        return "pet_suv"
    return next((scheme for scheme, words in _SCHEMES.items() if modality in words), None)


def suv_factor(datasets):
    """What turns the rescaled PET values of a series into SUV by body weight.

    Args:
        datasets: pydicom `Dataset`s of all images of the series.

    Returns:
        Factor and None; or None and the names of the tags that are missing or unusable. Where
        decay is corrected to the start of the scan, that is the series' time or, where later, the
        first acquisition (the series may have been written anew).
    """
    first = datasets[0]
    units = str(first.get("Units") or "")
    if units == "GML" and str(first.get("SUVType") or "BW") == "BW":
        return 1.0, None
    if units == "CNTS":
        return _philips_factor(first)
    if units != "BQML":
        return None, "Units"
    missing = [
        name
        for name in ("ATTN", "DECY")
        if name not in [str(v) for v in first.get("CorrectedImage") or []]
    ]
    if missing:
        return None, "CorrectedImage"
    drug = (first.get("RadiopharmaceuticalInformationSequence") or [{}])[0]
    weight, dose = _positive(first, "PatientWeight"), _positive(drug, "RadionuclideTotalDose")
    half_life = _positive(drug, "RadionuclideHalfLife")
    if weight is None or dose is None:
        return None, "PatientWeight or RadionuclideTotalDose"
    correction = first.get("DecayCorrection")
    if correction == "ADMIN":
        return weight * 1000.0 / dose, None
    if correction != "START" or half_life is None:
        return None, "DecayCorrection or RadionuclideHalfLife"
    seconds = _seconds(datasets, drug)
    if seconds is None:
        return None, "RadiopharmaceuticalStartTime or AcquisitionTime"
    return weight * 1000.0 / (dose * math.exp(-math.log(2.0) * seconds / half_life)), None


def _philips_factor(dataset):
    group, creator, element = PHILIPS_SUV
    try:
        factor = float(dataset.private_block(group, creator)[element].value)
    except (KeyError, TypeError, ValueError):
        factor = 0.0
    return (factor, None) if factor > 0 else (None, "Units")


def _positive(item, name):
    value = item.get(name)
    try:
        value = float(value)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) and value > 0 else None


def _moment(date, time):
    """Datetime of DICOM's date and time texts; None when one is not usable."""
    try:
        day = datetime.datetime.strptime(str(date), "%Y%m%d")
        whole, _, part = str(time).partition(".")
        if len(whole) < 2:
            return None
        clock = datetime.datetime.strptime(whole.ljust(6, "0"), "%H%M%S")
        seconds = float(f"0.{part}") if part else 0.0
    except ValueError:
        return None
    return datetime.datetime.combine(day, clock.time()) + datetime.timedelta(seconds=seconds)


def _stamp(item, name, date=None):
    """Moment of the tag `<name>DateTime`, else of `<name>Date` (or `date`) and `<name>Time`."""
    text = str(item.get(f"{name}DateTime") or "")
    if len(text) >= 14:
        # A zone may follow; all tags of a file are told in one.
        return _moment(text[:8], text[8:].split("+")[0].split("-")[0])
    return _moment(item.get(f"{name}Date") or date, item.get(f"{name}Time"))


def _seconds(datasets, drug):
    """Seconds from the injection to the start of the scan; None when not told."""
    first = datasets[0]
    begun = [m for m in (_stamp(d, "Acquisition") for d in datasets) if m is not None]
    series = _stamp(first, "Series")
    if not begun:
        return None
    start = min(begun) if series is None or series > min(begun) else series
    injected = _stamp(drug, "RadiopharmaceuticalStart", start.strftime("%Y%m%d"))
    if injected is None:
        return None
    seconds = (start - injected).total_seconds()
    if seconds < 0 and not drug.get("RadiopharmaceuticalStartDateTime"):
        seconds += 86400.0  # Injected before midnight, and only the clock was written down.
    return seconds if 0 <= seconds < 86400.0 else None
