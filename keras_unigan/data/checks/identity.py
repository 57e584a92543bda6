"""What in headers, names and sidecars may identify a person; shared by `check` and `scrub`.

A rule can find the usual traces (dates, DICOM names, e-mail addresses, long numbers, fields made
for identities), never all of them. So `check` reports what it knows, and `scrub` keeps only what it
knows.
"""

import re

HEADER_FIELDS = ("descrip", "aux_file", "intent_name", "db_name", "data_type")
"""Text fields of NIfTI headers; NIfTI-2 lacks the last two."""

_TRACES = {
    "a date": re.compile(
        r"(?<!\d)(?:(?:19|20)\d\d([-_./]?)(?:0[1-9]|1[0-2])\1(?:0[1-9]|[12]\d|3[01])"
        r"|(?:0[1-9]|[12]\d|3[01])([-_./])(?:0[1-9]|1[0-2])\2(?:19|20)\d\d)(?!\d)"
    ),
    "a DICOM name": re.compile(r"[^\W\d_]+\^"),
    "a name with a comma": re.compile(r"[^\W\d_]{2,},\s?[^\W\d_]{2,}"),
    "an e-mail address": re.compile(r"[\w.+-]+@[\w-]+\.\w+"),
    "a long number": re.compile(r"(?<![\d.])\d{8,}(?![\d.])"),
    "a word for identities": re.compile(
        r"(?<![a-z])(?:dob|mrn|ssn|birth\w*|surname|firstname|lastname|patient_?(?:name|id))(?![a-z])",
        re.IGNORECASE,
    ),
}
_TECHNICAL = re.compile(
    r"(?:none|img|image|seg|mask|[\d.]+"
    r"|(?:fsl|spm|freesurfer|mri_convert|ants|itk|nibabel|mrtrix|niftyreg|elastix|c3d|afni|nilearn"
    r"|synthetic|keras.unigan)(?![a-z]).*)?",
    re.IGNORECASE,
)
_PERSONAL_KEYS = re.compile(
    r"(?:Patient|Physician|Operator|Institution|Referring|Performing|Requesting|Responsible)\w*"
    r"|\w*(?:Address|Telephone|Birth\w*|InstanceUID|DateTime|Date|Time|Name)"
    r"|(?:Study|Accession|DeviceSerial|Issuer\w*)\w*|StationName|ProcedureStepDescription",
)
TECHNICAL_KEYS = frozenset(
    (
        *("EchoTime", "EchoTime1", "EchoTime2", "RepetitionTime", "RepetitionTimeExcitation"),
        *("RepetitionTimePreparation", "InversionTime", "FlipAngle", "MagneticFieldStrength"),
        *("Modality", "ImagingFrequency", "SliceThickness", "SpacingBetweenSlices", "SliceTiming"),
        *("PixelBandwidth", "EchoTrainLength", "MRAcquisitionType", "ScanningSequence"),
        *("SequenceVariant", "ScanOptions", "Manufacturer", "ManufacturersModelName"),
        *("PhaseEncodingDirection", "TotalReadoutTime", "EffectiveEchoSpacing"),
        *("AcquisitionMatrixPE", "PercentPhaseFOV", "PercentSampling"),
        *("ParallelReductionFactorInPlane", "NumberOfAverages", "KVP", "XRayTubeCurrent"),
        *("ExposureTime", "Exposure", "ConvolutionKernel", "FilterType", "GantryDetectorTilt"),
        *("ReconstructionDiameter", "SoftwareVersions", "Units", "Synthetic", "SkullStripped"),
        *("SpatialReference", "BodyPartExamined", "PatientPosition"),
        *("ImageOrientationPatientDICOM", "InPlanePhaseEncodingDirectionDICOM"),
    )
)
"""Keys of a sidecar that `scrub` keeps: physics and geometry."""
_NOT_PERSONAL = TECHNICAL_KEYS | {
    *("DwellTime", "ProtocolName", "SequenceName", "PulseSequenceName", "TaskName"),
    *("ReceiveCoilName", "PatientWeight", "PatientSize"),
}


def traces(text):
    """Kinds of identifying text that a string holds, e.g. ["a date"]; never the text itself."""
    found, rest = [], str(text)
    for kind, pattern in _TRACES.items():
        if pattern.search(rest):
            found.append(kind)
            # What is a date must not count as a long number as well.
            rest = pattern.sub(" ", rest)
    return found


def header_text(header):
    """Text fields of a NIfTI header that are not empty: field -> text."""
    found = {}
    for field in HEADER_FIELDS:
        if field in header:
            text = bytes(header[field].item()).rstrip(b"\0 ").decode("latin-1").strip()
            if text:
                found[field] = text
    return found


def personal_fields(header):
    """Header fields that identify, with what they hold, and those of free text.

    Returns:
        Dict field -> kinds of traces, and a list of the fields that hold words nobody knows.
    """
    personal, free = {}, []
    for field, text in header_text(header).items():
        kinds = traces(text)
        if kinds:
            personal[field] = kinds
        elif not _TECHNICAL.fullmatch(text):
            free.append(field)
    return personal, free


def personal_keys(data):
    """Keys of a sidecar (dict) that name a person, place or time, nested ones with dots."""
    found = []
    for key, value in data.items():
        if isinstance(value, dict):
            found += [f"{key}.{k}" for k in personal_keys(value)]
        elif key not in _NOT_PERSONAL and _PERSONAL_KEYS.fullmatch(key) and value not in ("", None):
            found.append(key)
    return found


def technical(data):
    """The part of a sidecar that is known to be physics or geometry.

    Text is kept only without traces of identities.

    Returns:
        The kept part, and the number of entries left out.
    """
    kept, dropped = {}, 0
    for key, value in data.items():
        values = value if isinstance(value, list) else [value]
        plain = all(isinstance(v, (int, float, bool, str)) for v in values)
        clean = plain and not any(isinstance(v, str) and traces(v) for v in values)
        if key in TECHNICAL_KEYS and clean:
            kept[key] = value
        else:
            dropped += 1
    return kept, dropped
