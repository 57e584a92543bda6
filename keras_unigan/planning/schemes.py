"""Which scheme normalises a modality, and the range that becomes -1 to 1."""

import dataclasses
import re

from keras_unigan.config import Normalization
from keras_unigan.errors import CodedError
from keras_unigan.planning.facts import OF_CHANNELS

NAMES = {
    "ct": ("ct", "cta", "ldct", "ncct", "cect", "cbct"),
    "pet_suv": ("pet", "pt", "fdg", "suv"),
    "spect_counts": ("spect", "nm", "scintigraphy"),
    "xray": ("xray", "cr", "dx", "mg", "rx", "radiograph", "cxr", "mammography", "fluoroscopy"),
    "ultrasound": ("us", "ultrasound", "trus", "echo"),
    "microscopy": ("microscopy", "he", "em", "dapi", "histology", "fluorescence", "sm"),
    "mr": (
        *("mr", "mri", "t1", "t2", "pd", "flair", "t1w", "t2w", "pdw", "t1c", "t1ce", "t1gd"),
        *("t1n", "t2f", "t2star", "dwi", "adc", "swi", "mra", "bold", "asl", "dce", "dixon"),
        *("stir",),
    ),
}
"""Scheme -> words of a modality's name that mean it."""

WINDOWS = ("foreground", "core")
"""Voxels that a window of the data set is measured on."""

_SUV_LIMIT = 100.0
_CORE_SHARE = 0.1
_TELLING = 1.25  # a window so many times as wide as that of the core is worth a remark

_WHY = {
    "ct": "Hounsfield units mean the same in every scan: one window of the data set",
    "mr": "units differ from scan to scan: each volume's own mean and deviation, then the median "
    "percentiles",
    "xray": "exposure and display scale differ: each image's own mean and deviation, then the "
    "median percentiles",
    "pet_suv": "SUV means the same in every scan: from no uptake to the data set's 99.5 percentile",
    "spect_counts": "counts follow dose and time, and 0 is none: from 0 to the median 99.5 "
    "percentile in each volume's own mean and deviation",
    "ultrasound": "gain and compression differ: each scan's own mean and deviation, then the "
    "median percentiles",
    "microscopy": "stain and exposure differ from channel to channel: each one's own 0.5 and 99.5 "
    "percentile",
}


def named(modality):
    """Scheme that the first word of a modality's name means, or None."""
    words = re.split(r"[^a-z0-9]+", modality)
    return next((s for s, names in NAMES.items() if words[0] in names), None)


def scheme_of(modality, setting, facts):
    """Scheme of a modality and how it was found.

    The study's setting counts most, then what DICOM tags say, then the modality's name; all else is
    treated like MR.

    Args:
        modality: Its name.
        setting: Scheme that the study names, or None.
        facts: `config.ModalityFingerprint`.

    Returns:
        Name in `config.SCHEMES` and a reason.
    """
    if setting:
        return setting, "named in study.json"
    tags = facts.schemes
    if set(tags) == {"pet_suv", "spect_counts"}:
        count = f"{tags['spect_counts']} of {sum(tags.values())}"
        return "spect_counts", f"DICOM tags say PET, and do not allow SUV in {count} series"
    if len(tags) == 1:
        (scheme,) = tags
        return scheme, f"DICOM tags of {tags[scheme]} of {facts.cases} cases"
    mixed = f"DICOM tags disagree ({', '.join(f'{n} {s}' for s, n in tags.items())}), so "
    found = named(modality)
    if found == "pet_suv" and facts.high > _SUV_LIMIT:
        return (
            "spect_counts",
            f"{mixed * bool(tags)}the name {modality!r}; foreground up to {facts.high:g} is no SUV",
        )
    if found:
        return found, f"{mixed * bool(tags)}the name {modality!r}"
    return "mr", (
        f"{mixed * bool(tags)}no known kind of image is called {modality!r}; "
        f'"normalization": {{"{modality}": "…"}} in study.json names one'
    )


def normalization(modality, setting, facts, window, reasons):
    """Scheme and range of a modality; of several channels each has its own range.

    Args:
        modality: Its name.
        setting: Scheme that the study names, or None.
        facts: `config.ModalityFingerprint`.
        window: One of `WINDOWS`.
        reasons: Receives `normalization.<modality>`.

    Returns:
        `config.Normalization`.

    Raises:
        CodedError: KUG-D12 when the foreground is constant.
    """
    if isinstance(facts.mean, tuple):
        return _of_channels(modality, setting, facts, window, reasons)
    scheme, chosen = scheme_of(modality, setting, facts)
    sd, detail = facts.sd or 1.0, ""
    if scheme == "ct":
        ends, detail = _window(facts, window)
        low, high = ((v - facts.mean) / sd for v in ends)
    elif scheme == "pet_suv":
        low, high = -facts.mean / sd, (facts.high - facts.mean) / sd
    elif scheme == "spect_counts":
        low, high = -facts.mean / sd, facts.scaled_high
    else:
        low, high = facts.scaled_low, facts.scaled_high
    if not high > low or not facts.sd > 0:
        raise CodedError(
            "KUG-D12",
            modality,
            f"foreground intensities from {facts.low:g} to {facts.high:g}, deviation {facts.sd:g}",
            "foreground that varies",
            "Constant intensities cannot be normalised.",
            f"look at the {modality} images and their label maps",
        )
    reasons[f"normalization.{modality}"] = f"{chosen}; {_WHY[scheme]}{detail}"
    return Normalization(scheme, facts.mean, facts.sd, float(low), float(high))


def _of_channels(modality, setting, facts, window, reasons):
    """`normalization` of each channel by itself, in one."""
    count = len(facts.mean)
    channels = [_channel(facts, number) for number in range(count)]
    scheme, chosen = scheme_of(modality, setting, channels[0])
    found = [
        normalization(f"{modality}, channel {number}", scheme, own, window, {})
        for number, own in enumerate(channels)
    ]
    reasons[f"normalization.{modality}"] = (
        f"{chosen}; {_WHY[scheme]}; each of {count} channels by its own numbers"
    )
    numbers = {n: tuple(getattr(f, n) for f in found) for n in ("mean", "sd", "low", "high")}
    return Normalization(scheme, **numbers)


def _channel(facts, number):
    """Facts of one channel, as those of an image that has no other."""
    values = {name: getattr(facts, name) for name in OF_CHANNELS}
    return dataclasses.replace(
        facts, **{name: v if v is None else v[number] for name, v in values.items()}
    )


def _window(facts, window):
    """Raw ends of a CT window, and what there is to say of them."""
    whole, core = (facts.low, facts.high), (facts.core_low, facts.core_high)
    known = facts.core_share >= _CORE_SHARE and core[0] is not None and core[1] > core[0]
    if window == "core" and known:
        return core, (
            f", 0.5 to 99.5 percentile of the {facts.core_share:.0%} of the foreground away from "
            f"its border (of all: {whole[0]:g} to {whole[1]:g})"
        )
    detail = ", 0.5 to 99.5 percentile of the foreground"
    if window == "core":
        return whole, f"{detail}; only {facts.core_share:.0%} of it lie away from its border"
    if known and whole[1] - whole[0] > _TELLING * (core[1] - core[0]):
        detail += (
            f"; the {facts.core_share:.0%} away from its border span {core[0]:g} to {core[1]:g}: "
            "where labels touch bone or air that is not meant, --window core takes those"
        )
    return whole, detail
