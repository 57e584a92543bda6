"""De-identified copies: headers, file names and sidecars; voxels and geometry bit for bit.

Only what is known to be harmless goes out: of a header its numbers, of a sidecar physics and
geometry, of a name the modality, the visit's number and structural folders; of DICOM see
`scrub_dicom`. What is neither NIfTI, DICOM, a JSON sidecar nor a study file is left behind and
named. Subjects become `subject0001`, …; where the folder holds a `study.json`, its subjects decide
which files belong together, and a scrubbed one is written. Shards, tables and reports take their
ids from the study file: prepare the scrubbed one, and they hold the new names only. Faces and
burnt-in text stay.
"""

import collections
import dataclasses
import gzip
import io
import json
import os
import random
import re
import shutil
import zlib
from pathlib import Path

import nibabel as nib

from keras_unigan.config import Study, write_json
from keras_unigan.data import nifti, scrub_dicom
from keras_unigan.data.checks import identity, voxels
from keras_unigan.errors import CodedError

_ENDINGS = (".nii.gz", ".nii", ".json")
_WORDS = frozenset(
    (*voxels.KNOWN, "seg", "label", "labels", "mask", "dseg", "probseg", "image", "brain")
)
_FOLDERS = frozenset(
    (
        *("images", "labels", "image", "label", "train", "val", "test", "training", "validation"),
        *("testing", "imagestr", "labelstr", "imagests", "labelsts", "anat", "derivatives"),
        *("sourcedata", "rawdata", "raw", "data", "masks", "segmentations", "paired", "unpaired"),
    )
)
_DATE = re.compile(r"(?:19|20)\d\d[-.]?\d\d[-.]?\d\d")
_VISIT = re.compile(r"(?:ses-.+|(?:visit|v|tp|scan|session)-?\d{1,3})", re.IGNORECASE)
_TEXT = {
    nib.Nifti1Header: ("data_type", "db_name", "descrip", "aux_file", "intent_name"),
    nib.Nifti2Header: ("descrip", "aux_file", "intent_name", "unused_str"),
}


@dataclasses.dataclass(frozen=True)
class Scrubbed:
    """What was written.

    Attributes:
        files: Old path -> new path, both relative to their folders.
        subjects: Old subject -> new subject.
        left: Old paths of files that were not understood and not copied.
        fields: Kinds of fields that were emptied -> number of files.
    """

    files: dict
    subjects: dict
    left: list
    fields: dict


def scrub_header(data, name):
    """De-identifies one NIfTI file in memory.

    All text fields become empty and extensions are dropped; every number of the header, so the
    geometry, and every voxel byte stay. What lies behind the voxels goes.

    Args:
        data: Bytes of a `.nii` or `.nii.gz` file.
        name: What errors call it.

    Returns:
        Uncompressed bytes, and the list of what was emptied.

    Raises:
        CodedError: KUG-D07 when it is damaged or not NIfTI in one file.
    """
    try:
        raw = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        kind = next((k for k in _TEXT if k.may_contain_header(raw[:540])), None)
        if kind is None:
            raise ValueError("no NIfTI header")
        header = kind.from_fileobj(io.BytesIO(raw), check=False)
        if bytes(header["magic"].item())[:2] not in (b"n+",):
            raise ValueError("voxels in another file")
        offset = int(header["vox_offset"])
        shape, item = header.get_data_shape(), header.get_data_dtype().itemsize
    except (
        *(ValueError, OSError, EOFError, zlib.error, KeyError),
        nib.spatialimages.HeaderDataError,
    ) as error:
        raise _not_nifti(name, len(data), error) from error
    count = item
    for axis in shape:
        count *= int(axis)
    content = raw[offset : offset + count]
    if len(content) != count or offset < header.sizeof_hdr:
        raise _not_nifti(name, len(data), EOFError("voxels missing"))
    emptied = [f for f in _TEXT[kind] if bytes(header[f].item()).strip(b"\0 ")]
    emptied += ["extensions"] if offset > header.single_vox_offset or header.extensions else []
    for field in _TEXT[kind]:
        header[field] = b""
    header["vox_offset"] = header.single_vox_offset
    # Four zero bytes after the header say that no extension follows.
    return header.binaryblock + b"\0\0\0\0" + content, emptied


def _not_nifti(name, size, error):
    return CodedError(
        "KUG-D07", name, f"{size} bytes that are no whole NIfTI file ({type(error).__name__})",
        "a .nii or .nii.gz file", "What is not understood cannot be de-identified.",
        "convert it to NIfTI first, or leave it out",
    )  # fmt: skip


def scrub(source, output, mapping=None, seed=0, dry_run=False):
    """Writes de-identified copies of a file or folder; a scan that is damaged is left behind.

    Args:
        source: A NIfTI or DICOM file, a zip of DICOM files, or a folder.
        output: A new file (for a file, when the name ends like one) or folder outside the source.
        mapping: Where to write old and new names, outside `output`; None writes no such file.
        seed: Order in which subjects get their numbers; keep it as private as the mapping.
        dry_run: Only say what would be written.

    Returns:
        `Scrubbed`.

    Raises:
        CodedError: KUG-D01 for a missing source, one without scans, and a study with files
            outside it, KUG-D07 for a single damaged scan (in a folder it is left behind), KUG-E01
            for DICOM without its extra, KUG-E02 when the output or mapping lies where it must not.
    """
    source, output = Path(source).resolve(), Path(output).resolve()
    if not source.exists():
        raise CodedError("KUG-D01", source, "no such file or folder", "scans to de-identify")
    single = source.is_file() and output.name.lower().endswith((".nii", ".nii.gz"))
    _refuse_in_place(source, output, mapping)
    root = source.parent if source.is_file() else source
    found = [source] if source.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
    known = [p for p in found if p.name.lower().endswith(_ENDINGS)]
    scans = [p for p in known if not p.name.lower().endswith(".json")]
    own = root / "study.json"
    study = Study.load(own) if own in known else None
    owners = _owners(study)
    series = scrub_dicom.series_of([p for p in found if p not in known], owners)
    if not scans and not series:
        text = f"no NIfTI or DICOM image among {len(found)} files"
        raise CodedError("KUG-D01", source, text, "scans")
    _refuse_elsewhere(owners, {*scans, *(one.path for one in series)})
    keys = {path: _keys(root, path, owners) for path in scans}
    keys |= _keys_of_series(root, series, keys)
    names, subjects, visits = _new_names(root, keys, study, seed)
    if single:
        names[source] = output.name
    target = output.parent if single else output
    emptied: collections.Counter = collections.Counter()
    images = {}
    for one in series:
        old = keys[one.path][0]
        who = scrub_dicom.person(old, subjects[old], seed)
        written = _copy_series(one, who, names[one.path], None if dry_run else target, emptied)
        if written is None and source.is_file():
            raise _not_dicom(source)
        if written is None:
            del names[one.path]
        images.update(written or {})
    for path in scans:
        name = names[path]
        try:
            data, fields = scrub_header(path.read_bytes(), path)
        except CodedError:
            if source.is_file():
                raise
            del names[path]
            continue
        emptied.update(fields)
        if not dry_run:
            nifti.write_bytes(target / name, data)
    copied = {path: names[path] for path in scans if path in names}
    beside = _sidecars(known, copied)
    for path, name in beside.items():
        kept, dropped = identity.technical(_sidecar(path))
        emptied.update(["sidecar"] * (dropped > 0))
        if not dry_run:
            write_json(target / name, kept)
    if study is not None and not dry_run:
        _new_study(study, names, subjects, visits).save(target / "study.json")
    packed = {one.path for one in series if one.path in names}
    done = {**copied, **beside, **images}
    understood = {*done, *packed, *([own] if study is not None else [])}
    left = [str(p.relative_to(root)) for p in found if p not in understood]
    files = {str(p.relative_to(root)): n for p, n in done.items()}
    result = Scrubbed(files, subjects, left, dict(emptied))
    if mapping is not None and not dry_run:
        write_json(mapping, {"subjects": result.subjects, "files": files})
        os.chmod(mapping, 0o600)
    return result


def _copy_series(series, who, folder, target, emptied):
    """Writes the scrubbed images of a series; old path -> new name, or None where one is damaged.

    Without a target nothing is written.
    """
    written = {}
    for number, (path, opener) in enumerate(series.files):
        try:
            data, kinds = scrub_dicom.scrub_image(opener(), who, path)
        except CodedError as error:
            if error.code != "KUG-D07":
                raise
            if target is not None:
                # A volume with a slice missing is worse than none.
                shutil.rmtree(target / folder, ignore_errors=True)
            return None
        emptied.update(kinds)
        written[path] = f"{folder}/{number + 1:05d}.dcm"
        if target is not None:
            nifti.write_bytes(target / written[path], data)
    return written


def _not_dicom(path):
    return CodedError(
        "KUG-D07", path, "a DICOM image that ends early or is damaged", "whole images",
        "What is not understood cannot be de-identified.", "copy it again, or leave it out",
    )  # fmt: skip


def _refuse_in_place(source, output, mapping):
    inside = source if source.is_dir() else source.parent
    wrong = output == source or output in source.parents
    wrong = wrong or (source.is_dir() and inside in output.parents)
    if wrong:
        raise CodedError(
            "KUG-E02", output, "the input, or a folder in or around it", "a folder beside it",
            "The input stays as it is, and copies must not be scrubbed again.",
            "-o OTHER_FOLDER",
        )  # fmt: skip
    if mapping is not None:
        place = Path(mapping).resolve()
        if output == place or output in place.parents:
            raise CodedError(
                "KUG-E02", mapping, "a mapping among the scrubbed files", "another place",
                "Who has both can undo the scrubbing.", "--mapping OTHER_FOLDER/mapping.json",
            )  # fmt: skip


def _sidecar(path):
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def _stem(path):
    return next(path.name[: -len(e)] for e in _ENDINGS if path.name.lower().endswith(e))


def _sidecars(known, names):
    """JSON file of each scan that is copied -> its new name."""
    stems = {(p.parent, _stem(p)): n for p, n in names.items()}
    found = {}
    for path in known:
        name = stems.get((path.parent, _stem(path)))
        if path.name.lower().endswith(".json") and name is not None:
            found[path] = str(Path(name).with_name(f"{_stem(Path(name))}.json"))
    return found


def parts_of(stem):
    """Splits a name into subject, visit and harmless words.

    Args:
        stem: File name without ending.

    Returns:
        Subject (may be empty), text of the visit or None, and the words to keep, in order.
    """
    tokens, words = stem.split("_"), []
    while tokens and (tokens[-1].lower() in _WORDS or re.fullmatch(r"000\d", tokens[-1])):
        words.insert(0, tokens.pop().lower())
    visit = [t for t in tokens if _DATE.fullmatch(t) or _VISIT.fullmatch(t)]
    rest = [t for t in tokens if t not in visit]
    return "_".join(rest), "_".join(visit) or None, words


def _keys(root, path, owners):
    """(subject, visit) that a file belongs to, and its words."""
    subject, visit, words = parts_of(_stem(path))
    folders = [p for p in path.relative_to(root).parts[:-1] if p.lower() not in _FOLDERS]
    if path in owners:
        return (*owners[path], words)
    if visit is None:
        visit = next((f for f in folders if _DATE.fullmatch(f) or _VISIT.fullmatch(f)), None)
    subjects = [f for f in folders if not (_DATE.fullmatch(f) or _VISIT.fullmatch(f))]
    # BIDS: `sub-X` is the subject whatever else the name says.
    bids = next((t for t in (*folders, *subject.split("_")) if t.startswith("sub-")), None)
    return bids or subject or (subjects[-1] if subjects else "scan"), visit, words


def _owners(study):
    """File or folder of each case of a study -> subject and visit."""
    return {
        Path(study.path(name)).resolve(): (case.subject, case.visit)
        for case in (() if study is None else study.cases)
        for name in (case.image, case.label)
        if name is not None
    }


def _refuse_elsewhere(owners, scans):
    if not set(owners) <= scans:
        raise CodedError(
            "KUG-D01",
            "study.json",
            f"{len(set(owners) - scans)} files of cases that are not in the folder",
            "all files of the study in it, as NIfTI or DICOM",
            fix="scrub the folder that holds them all",
        )


def _keys_of_series(root, series, keys):
    """(subject, visit, words) of each DICOM series; see `_keys`.

    A folder that is called like NIfTI files beside it is of the same subject; elsewhere PatientID
    says whose it is.
    """
    named, found = {subject for subject, _, _ in keys.values()}, {}
    for one in series:
        place = one.path if one.path.exists() else one.path.parent
        subject, visit, words = parts_of(place.name.removesuffix(".zip"))
        if one.owner is not None:
            subject, visit = one.owner
        elif subject not in named:
            subject, visit = one.patient or subject or "scan", one.visit
        found[one.path] = (subject, visit, words or one.words)
    return found


def _new_names(root, keys, study, seed):
    """New name of each scan, and of each subject and (subject, visit).

    Args:
        root: Folder of the scans.
        keys: Path of each scan -> subject, visit and words that stay; see `_keys`.
        study: `config.Study` or None.
        seed: See `scrub`.
    """
    cases = () if study is None else study.cases
    pairs = {(c.subject, c.visit) for c in cases} | {(s, v) for s, v, _ in keys.values()}
    pairs = sorted(pairs, key=str)
    old = sorted({s for s, _ in pairs})
    random.Random(f"{seed}").shuffle(old)
    subjects = {s: f"subject{i + 1:04d}" for i, s in enumerate(old)}
    visits: dict = {}
    for subject, visit in pairs:
        if visit is not None:
            number = 1 + sum(s == subject for s, _ in visits)
            visits[subject, visit] = f"visit{number:02d}"
    names, taken = {}, set()
    for path, (subject, visit, words) in keys.items():
        kept = [p for p in path.relative_to(root).parts[:-1] if p.lower() in _FOLDERS]
        stem = "_".join([subjects[subject], *filter(None, [visits.get((subject, visit))]), *words])
        ending = next((e for e in _ENDINGS if path.name.lower().endswith(e)), "")
        number, name = 1, "/".join([*kept, stem + ending])
        while name in taken:
            number += 1
            name = "/".join([*kept, f"{stem}_{number}{ending}"])
        taken.add(name)
        names[path] = name
    return names, subjects, visits


def _new_study(study, names, subjects, visits):
    """The study with new subjects, visits and paths; sites become numbers, its name goes.

    Cases with a damaged file are left out.
    """
    given = sorted({c.site for c in study.cases if c.site})
    sites = {site: f"site{i + 1:02d}" for i, site in enumerate(given)}
    cases = []
    for case in study.cases:
        paths = {part: getattr(case, part) for part in ("image", "label")}
        paths = {p: Path(study.path(n)).resolve() for p, n in paths.items() if n is not None}
        if all(path in names for path in paths.values()):
            cases.append(
                dataclasses.replace(
                    case,
                    subject=subjects[case.subject],
                    visit=visits.get((case.subject, case.visit)),
                    site=sites.get(case.site),
                    **{part: names[path] for part, path in paths.items()},
                )
            )
    return dataclasses.replace(study, name="scrubbed", cases=tuple(cases))
