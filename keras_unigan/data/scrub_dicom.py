"""De-identified copies of DICOM images: tags by a list of what is harmless; pixels bit for bit.

Nothing goes out but: numbers and the standard's own words on geometry, pixels and physics; UIDs,
each replaced by a new one wherever it stands; dates, moved by as many days in all files of a
subject; and what PET needs for its SUV. All that the Basic Application Level Confidentiality
Profile of PS3.15 lists (in the table of `dicom-anonymizer`) goes or is replaced, numbers too.
"""

import collections
import dataclasses
import datetime
import functools
import hashlib
import io
import itertools
import random
import zipfile
from pathlib import Path

from keras_unigan.data import dicom, dicom_values
from keras_unigan.errors import CodedError, missing_extra

_GROUPS = (0x0018, 0x0020, 0x0022, 0x0028, 0x0054, 0x5200)
"""Acquisition, relationship, ophthalmic, image, nuclear medicine and functional groups."""
_NUMBERS = ("US", "SS", "UL", "SL", "SV", "UV", "FL", "FD", "AT", "DS", "IS")
_TEXT = ("LO", "SH", "ST", "LT", "UT", "UC", "UR", "AE", "CS")
_TIMES = ("DA", "TM", "DT", "AS")
_PIXELS = frozenset(
    (
        *("PixelData", "FloatPixelData", "DoubleFloatPixelData", "LUTData", "LUTDescriptor"),
        *("RedPaletteColorLookupTableData", "GreenPaletteColorLookupTableData"),
        *("BluePaletteColorLookupTableData", "AlphaPaletteColorLookupTableData"),
        *("SegmentedRedPaletteColorLookupTableData", "SegmentedGreenPaletteColorLookupTableData"),
        *("SegmentedBluePaletteColorLookupTableData", "SmallestImagePixelValue"),
    )
)
_OTHER_NUMBERS = frozenset(
    ("PatientWeight", "RealWorldValueSlope", "RealWorldValueIntercept", "NumberOfFrames")
)
_SEQUENCES = frozenset(("RealWorldValueMappingSequence",))
_UIDS = frozenset(
    (
        *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"),
        *("FrameOfReferenceUID", "DimensionOrganizationUID", "ConcatenationUID"),
    )
)
_WELL_KNOWN = "1.2.840.10008."
_MOMENTS = frozenset(
    f"{what}{kind}"
    for what in ("Study", "Series", "Acquisition", "Content", "RadiopharmaceuticalStart")
    for kind in ("Date", "Time", "DateTime")
)
_YES = ("YES", "NO")
_WORDS = {
    "ImageType": (
        *("ORIGINAL", "DERIVED", "PRIMARY", "SECONDARY", "AXIAL", "LOCALIZER", "OTHER", "VOLUME"),
        *("STATIC", "DYNAMIC", "GATED", "WHOLE BODY"),
        *("TOMO", "RECON TOMO", "RECON GATED TOMO", "MPR"),
        *("EMISSION", "TRANSMISSION", "NONE", "RESAMPLED", "REFORMATTED", "M", "P", "R", "I"),
        *("ND", "NORM", "FFE", "SE", "ADC", "DIFFUSION", "PROJECTION IMAGE", "MAXIMUM", "MIXED"),
    ),
    "Modality": (
        *("CR", "CT", "DX", "MG", "MR", "NM", "PT", "US"),
        *("XA", "RF", "SM", "OT", "OP", "OPT", "SEG"),
        *("PX", "IO", "GM", "XC", "ES"),
    ),
    "PhotometricInterpretation": (
        *("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB"),
        *("YBR_FULL", "YBR_FULL_422", "YBR_RCT"),
        *("YBR_ICT", "YBR_PARTIAL_420"),
    ),
    "PatientPosition": ("HFP", "HFS", "HFDR", "HFDL", "FFDR", "FFDL", "FFP", "FFS"),
    "RescaleType": ("HU", "US", "OD", "HU_MOD", "MGML", "PCT"),
    "Units": ("CNTS", "NONE", "BQML", "CPS", "GML", "CM2", "CM2ML", "PCNT", "PROPCNTS"),
    "SUVType": ("BSA", "BW", "LBM", "LBMJAMES128", "LBMJANMA", "IBW"),
    "DecayCorrection": ("NONE", "START", "ADMIN"),
    "CorrectedImage": (
        *("DECY", "ATTN", "SCAT", "DTIM", "MOTN", "PMOT", "CLN", "RAN", "RADL", "DCAL", "NORM"),
    ),
    "SeriesType": ("STATIC", "DYNAMIC", "GATED", "WHOLE BODY", "IMAGE", "REPROJECTION"),
    "RandomsCorrectionMethod": ("NONE", "DLYD", "SING"),
    "PresentationIntentType": ("FOR PRESENTATION", "FOR PROCESSING"),
    "PresentationLUTShape": ("IDENTITY", "INVERSE"),
    "PixelIntensityRelationship": ("LIN", "LOG", "DISP"),
    "PixelSpacingCalibrationType": ("GEOMETRY", "FIDUCIAL"),
    "ModalityLUTType": ("HU", "US", "OD"),
    "VOILUTFunction": ("LINEAR", "LINEAR_EXACT", "SIGMOID"),
    "LossyImageCompression": ("00", "01"),
    "BurnedInAnnotation": _YES,
    "RecognizableVisualFeatures": _YES,
    "ScanningSequence": ("SE", "IR", "GR", "EP", "RM"),
    "SequenceVariant": ("SK", "MTC", "SS", "TRSS", "SP", "MP", "OSP", "NONE"),
    "MRAcquisitionType": ("1D", "2D", "3D"),
    "ViewPosition": ("AP", "PA", "LL", "RL", "RLD", "LLD", "RLO", "LLO", "CC", "MLO", "ML", "LM"),
    "Laterality": ("L", "R", "B", "U"),
    "ImageLaterality": ("L", "R", "B", "U"),
    "VolumetricProperties": ("VOLUME", "SAMPLED", "DISTORTED", "MIXED"),
    "PixelPresentation": ("MONOCHROME", "COLOR", "MIXED", "TRUE_COLOR"),
}
"""Texts that stay: keyword -> the standard's own words."""
_EMPTY = (
    *("PatientBirthDate", "PatientSex", "AccessionNumber", "ReferringPhysicianName", "StudyID"),
    *("StudyDate", "StudyTime"),
)
"""Tags that every image must have, if only with no value."""


@dataclasses.dataclass(frozen=True)
class Series:
    """DICOM images that belong together.

    Attributes:
        path: The file, folder or zip of a case; else of a series, a name of its own in its folder.
        patient: PatientID, else PatientName, of its first image.
        visit: Date and UID of its study, where the patient has several.
        words: Its modality, for the new name.
        owner: Subject and visit that a study file says, or None.
        files: Path of each image and a function that reads its bytes.
    """

    path: Path
    patient: str
    visit: str | None
    words: tuple
    owner: tuple | None
    files: list


def series_of(paths, owners):
    """DICOM images among files, by case, zip or series.

    Args:
        paths: Files, sorted.
        owners: File, folder or zip of a case -> subject and visit.

    Returns:
        List of `Series`; files without pixels (reports, indices) are in none.

    Raises:
        CodedError: KUG-E01 without the extra.
    """
    groups, heads = collections.defaultdict(list), {}
    for path, opener in itertools.chain.from_iterable(_opened(p) for p in paths):
        head = _head(opener)
        if head is None:
            continue
        place = next((p for p in (path, *path.parents) if p in owners), None)
        zipped = next((p for p in path.parents if p.suffix.lower() == ".zip"), None)
        # Of no case: each series of a folder by itself, however they are mixed.
        key = place or zipped or path.parent / str(head.get("SeriesInstanceUID") or "")
        heads.setdefault(key, head)
        groups[key].append((path, opener))
    studies = collections.defaultdict(set)
    for head in heads.values():
        studies[_patient(head)].add(_study(head))
    return [
        Series(
            path=key,
            patient=_patient(heads[key]),
            visit=_study(heads[key]) if len(studies[_patient(heads[key])]) > 1 else None,
            words=(str(heads[key].get("Modality") or "").lower(),) * _is_word(heads[key]),
            owner=owners.get(key),
            files=files,
        )
        for key, files in groups.items()
    ]


def _opened(path):
    """(path, function that reads it) of a DICOM file, or of all files in a zip."""
    if path.suffix.lower() == ".zip" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = sorted(i.filename for i in archive.infolist() if not i.is_dir())
        return [(path / name, functools.partial(_unzipped, path, name)) for name in names]
    return [(path, path.read_bytes)] if dicom.is_dicom(path) else []


def _unzipped(path, name):
    with zipfile.ZipFile(path) as archive:
        return archive.read(name)


def _head(opener):
    """Tags of a DICOM image; None for other files."""
    data = opener()
    if data[128:132] != b"DICM":  # In a zip lies all sorts of things.
        return None
    _profile()
    import pydicom

    with dicom.quiet():
        try:
            head = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)
            return head if "Rows" in head else None
        except Exception:
            # Left behind, like all that is not understood.
            return None


def _patient(head):
    return str(head.get("PatientID") or head.get("PatientName") or "")


def _study(head):
    return f"{head.get('StudyDate') or ''} {head.get('StudyInstanceUID') or ''}"


def _is_word(head):
    return str(head.get("Modality") or "") in _WORDS["Modality"]


@dataclasses.dataclass(frozen=True)
class Person:
    """Who an image becomes.

    Attributes:
        name: New subject, which stands as PatientID and PatientName.
        days: By how many days its dates move; the same in all its files.
        secret: What new UIDs are made with.
    """

    name: str
    days: int
    secret: str


def person(subject, name, seed):
    """`Person` of an old and a new subject; the same for the same seed."""
    days = -random.Random(f"{seed}/{subject}").randint(366, 3660)
    return Person(name, days, f"{seed}")


@functools.cache
def _profile():
    """Tags of the confidentiality profile: those named, and (group, element, masks) of ranges."""
    try:
        from dicomanonymizer.dicom_anonymization_databases import dicomfields_2026c
    except ImportError as error:
        raise missing_extra("DICOM files", "dicom-anonymizer", "dicom") from error
    tags = dicomfields_2026c.ALL_TAGS
    return {t for t in tags if len(t) == 2}, [t for t in tags if len(t) == 4]


def _listed(tag):
    named, ranges = _profile()
    return (tag.group, tag.element) in named or any(
        tag.group & m == g and tag.element & n == e for g, e, m, n in ranges
    )


def scrub_image(data, who, name="image"):
    """De-identifies one file in memory.

    Args:
        data: Bytes of a DICOM file.
        who: `Person`.
        name: What errors call it.

    Returns:
        Bytes, and the kinds of what was taken out or replaced.

    Raises:
        CodedError: KUG-D07 when it is damaged or holds no image, KUG-E01 without the extra.
    """
    _profile()
    gone: collections.Counter = collections.Counter()
    with dicom.quiet():
        kept = _scrubbed(data, who, gone, name)
    return kept, sorted(kind for kind, count in gone.items() if count)


def _scrubbed(data, who, gone, name):
    import pydicom

    try:
        dataset = pydicom.dcmread(io.BytesIO(data))
        if "Rows" not in dataset or not _PIXELS & {e.keyword for e in dataset}:
            raise ValueError("no image")
        _check_length(dataset)
        kept = _kept(dataset, who, gone)
        for keyword in _EMPTY:
            if keyword not in kept:
                setattr(kept, keyword, "")
        kept.PatientName = kept.PatientID = who.name
        kept.PatientIdentityRemoved = "YES"
        kept.DeidentificationMethod = "keras_unigan: PS3.15 basic profile; dates moved"
        meta = pydicom.dataset.FileMetaDataset()
        meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
        meta.MediaStorageSOPClassUID = kept.SOPClassUID
        meta.MediaStorageSOPInstanceUID = kept.SOPInstanceUID
        kept.file_meta, kept.preamble = meta, bytes(128)
        written = io.BytesIO()
        kept.save_as(written, enforce_file_format=True)
    except Exception as error:
        if isinstance(error, CodedError | ImportError):
            raise
        # The text of the cause may repeat values of tags.
        raise CodedError(
            "KUG-D07", name, f"no whole DICOM image ({type(error).__name__})", "a DICOM image",
            "What is not understood cannot be de-identified.", "leave it out",
        ) from None  # fmt: skip
    return written.getvalue()


def _check_length(dataset):
    """Raises EOFError where pixels are missing at the end: pydicom reads such files in silence."""
    from pydicom.pixels.utils import get_expected_length

    if "PixelData" in dataset and not dataset.file_meta.TransferSyntaxUID.is_compressed:
        held, wanted = len(dataset.PixelData), get_expected_length(dataset)
        if held < wanted:
            raise EOFError(f"{held} bytes of {wanted}")


def _kept(dataset, who, gone):
    """The harmless part of a dataset or of an item of a sequence."""
    import pydicom

    result = pydicom.Dataset()
    tags = list(dataset.keys())
    for tag in tags:
        if tag.is_private:
            continue
        try:
            element = dataset[tag]
            value = _value(element, who, gone)
        except (ValueError, TypeError, NotImplementedError, OverflowError):
            value = None  # Text where a number should be.
        if value is None:
            gone[_kind(tag)] += 1
        elif value is element:
            result[tag] = element
        else:
            result.add_new(tag, element.VR, value)
    _keep_suv_factor(dataset, result)
    if any(tag.is_private for tag in tags):
        gone["DICOM private tags"] += 1
    return result


def _kind(tag):
    """What an element that goes is called in the summary."""
    from pydicom.datadict import dictionary_has_tag, dictionary_VR

    kind = dictionary_VR(tag) if dictionary_has_tag(tag) else ""
    if kind == "PN":
        return "DICOM names"
    if kind in _TIMES:
        return "DICOM dates"
    return "DICOM texts" if kind in _TEXT else "other DICOM tags"


def _value(element, who, gone):
    """New value of an element; the element itself where it stays; None where it goes."""
    keyword, kind = element.keyword, element.VR
    if keyword in _UIDS:
        gone["DICOM UIDs"] += keyword != "SOPClassUID"
        return _each(element.value, lambda uid: _new_uid(uid, who.secret))
    if keyword in _MOMENTS:
        gone["DICOM dates"] += 1
        return _moved(str(element.value or ""), kind, who.days)
    if keyword in _WORDS:
        known = _WORDS[keyword]
        words = _each(element.value, lambda word: str(word) if str(word) in known else "OTHER")
        gone["DICOM texts"] += words != _each(element.value, str)
        return words
    inside = element.tag.group in _GROUPS
    if keyword in _PIXELS:
        return element
    numeric = inside and any(k in _NUMBERS for k in kind.split(" or "))
    if keyword in _OTHER_NUMBERS or (numeric and not _listed(element.tag)):
        return element if _is_numeric(element.value, kind) else None
    if kind == "SQ" and (inside or keyword in _SEQUENCES) and not _listed(element.tag):
        return [_kept(item, who, gone) for item in element.value]
    return None


def _each(value, function):
    """Function of one value, or of each of several."""
    if value is None or isinstance(value, str):
        return function(value) if value else ""
    return [function(v) for v in value]


def _is_numeric(value, kind):
    if kind == "AT" or isinstance(value, bytes):
        return True  # Bytes where US or SS, which another tag decides.
    values = value if hasattr(value, "append") else [value]
    return all(v is None or v == "" or float(v) == float(v) for v in values)


def _new_uid(uid, secret):
    """UID that takes the place of another one, everywhere the same; the standard's own stay."""
    if str(uid).startswith(_WELL_KNOWN):
        return str(uid)
    digest = hashlib.sha256(f"{secret}/{uid}".encode()).digest()
    # A UUID as UID: PS3.5 B.2.
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"


def _moved(text, kind, days):
    """A date or moment some days away, a time as it is; None for other text."""
    if kind == "TM":
        digits = text.replace(".", "").replace(":", "")
        return text if not text or digits.isdecimal() else None
    if not text:
        return ""
    day = datetime.datetime.strptime(text[:8], "%Y%m%d") + datetime.timedelta(days=days)
    rest = text[8:]
    plain = not rest or rest.replace(".", "").replace("+", "").replace("-", "").isdecimal()
    return f"{day:%Y%m%d}{rest}" if plain and (kind == "DT" or not rest) else None


def _keep_suv_factor(dataset, result):
    """Keeps the one private number that counts of PET cannot be scaled without (PS3.15 E.3.10)."""
    group, creator, element = dicom_values.PHILIPS_SUV
    try:
        factor = float(dataset.private_block(group, creator)[element].value)
    except (KeyError, TypeError, ValueError):
        return
    result.private_block(group, creator, create=True).add_new(element, "DS", f"{factor:.10g}")
