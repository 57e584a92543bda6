"""One file, opened once: its bytes, header and volume, and what is wrong with its outside."""

import dataclasses
import gzip
import io
import json
import zlib
from pathlib import Path

import nibabel as nib

from keras_unigan.data import nifti, volumes
from keras_unigan.data.checks import identity
from keras_unigan.errors import CodedError, did_you_mean

_NAMES = (".nii", ".nii.gz")
_MAGIC = (
    (128, b"DICM", "DICOM"),
    (0, b"\x89PNG", "PNG"),
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"NRRD", "NRRD"),
    (0, b"ObjectType", "MetaImage"),
    (0, b"PK\x03\x04", "zip"),
    (0, b"\x89HDF", "HDF5"),
    (0, b"version https://git-lfs", "a git-lfs pointer (git lfs pull)"),
    (0, b"<", "a web page or XML"),
)
_EXTENSIONS = {2: "DICOM", 4: "AFNI", 6: "comment"}


@dataclasses.dataclass(frozen=True)
class Scan:
    """A file that was read.

    Attributes:
        volume: `nifti.Volume`, or None where it cannot be used.
        error: The `CodedError` that says why not, or None.
        header: NIfTI header, also of a volume that cannot be used; None where there is none.
        size: Bytes of the file; 0 where it is not one NIfTI file.
        packed: Whether its bytes are gzip.
        kind: Name of another format that the bytes are, or empty.
        by_content: Whether the name told no other format, so that it should end like NIfTI.
    """

    volume: nifti.Volume | None
    error: CodedError | None
    header: object
    size: int
    packed: bool
    kind: str = ""
    by_content: bool = True


def open_scan(path, channel=None):
    """Reads a scan once; never raises for what is in it.

    Args:
        path: Local path of a file or DICOM folder that exists.
        channel: See `volumes.read`.

    Returns:
        `Scan`.
    """
    path = Path(path)
    if path.is_dir() or volumes.ending(path) not in (None, *_NAMES):
        return _open_other(path, channel)
    return _open_nifti(path, channel)


def _open_other(path, channel):
    """A scan whose name says another format than NIfTI in one file."""
    try:
        volume, error = volumes.read(path, channel), None
    except CodedError as found:
        volume, error = None, found
    header = None if volume is None else volume.header
    return Scan(volume, error, header, 0, False, by_content=False)


def _open_nifti(path, channel):
    try:
        data = path.read_bytes()
    except OSError as error:
        found = f"a file that the system cannot read ({error.strerror})"
        return Scan(None, CodedError("KUG-D07", path, found, "a readable file"), None, 0, False)
    size, packed = len(data), data[:2] == b"\x1f\x8b"
    if packed:
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            found = f"{size} bytes of gzip that are damaged or end early ({type(error).__name__})"
            damaged = CodedError(
                "KUG-D07", path, found, "a whole file",
                "A part of an image cannot be trusted.", "copy the file again from its source",
            )  # fmt: skip
            return Scan(None, damaged, None, size, packed)
    header = _header(data)
    kind = "" if header is not None else _kind(data)
    if kind == "DICOM" and volumes.ending(path) is None:
        return _open_other(path, channel)
    try:
        volume = nifti.read_bytes(data, str(path), channel)
    except CodedError as error:
        return Scan(None, error, header, size, packed, kind)
    return Scan(volume, None, header, size, packed)


def _header(data):
    """NIfTI header of uncompressed bytes with its extensions, or None."""
    for kind in (nib.Nifti1Header, nib.Nifti2Header):
        if kind.may_contain_header(data[:540]):
            try:
                return kind.from_fileobj(io.BytesIO(data), check=False)
            except (ValueError, OSError, nib.spatialimages.HeaderDataError):
                return None
    return None


def _kind(data):
    if not data:
        return "an empty file"
    return next((name for at, magic, name in _MAGIC if data[at : at + len(magic)] == magic), "")


def missing(entry, path, name, part, used):
    """The finding on a file that is not there.

    Args:
        entry: The case.
        path: Where it should be.
        name: The same as the study says it.
        part: "image" or "label".
        used: Paths that the study names; the nearest other file in the folder is suggested.
    """
    folder = Path(path).parent
    siblings = [p.name for p in folder.iterdir() if str(p) not in used] if folder.is_dir() else []
    hint = did_you_mean(Path(path).name, [s for s in siblings if not identity.traces(s)])
    shown = "a name that looks like a person's" if identity.traces(name) else repr(name)
    return entry.finding(
        "KUG-D01", "error", f"no file {shown}{hint}", "the file that the study names",
        fix="correct the path (relative ones count from the study file)", part=part,
    )  # fmt: skip


def outside_findings(entry, scan, name, part):
    """Findings on a file that need no voxels: damage, wrong ending, identifying text."""
    if scan.kind:
        yield entry.finding(
            "KUG-D07", "error", f"{scan.kind} under the name of a NIfTI file", "NIfTI",
            "The content, not the name, decides.", "convert it, or give it its own ending", part,
        )  # fmt: skip
    elif scan.error is not None:
        yield entry.of_error(scan.error, part)
    lower = str(name).lower()
    if (
        scan.by_content
        and scan.header is not None
        and (not lower.endswith(_NAMES) or lower.endswith(".gz") != scan.packed)
    ):
        yield entry.finding(
            "KUG-D07", "warning",
            f"{'compressed' if scan.packed else 'plain'} NIfTI under another ending",
            ".nii.gz" if scan.packed else ".nii",
            "It is read here; other tools go by the name.",
            "unigan check STUDY --fix DIR writes a copy with the right ending", part,
        )  # fmt: skip
    if scan.header is not None:
        yield from _header_text(entry, scan.header, part)


def _header_text(entry, header, part):
    why = "Files that are shared, and what is made of them, may carry it on."
    fix = "unigan scrub FOLDER -o OUT"
    personal, free = identity.personal_fields(header)
    kinds = [_EXTENSIONS.get(e.get_code(), f"code {e.get_code()}") for e in header.extensions]
    if personal:
        found = ", ".join(f"{' and '.join(kinds)} in {f}" for f, kinds in personal.items())
        yield entry.finding("KUG-D16", "warning", found, "no identities", why, fix, part)
    if kinds:
        level = "warning" if set(kinds) & set(_EXTENSIONS.values()) else "info"
        found = f"header extensions ({', '.join(sorted(set(kinds)))})"
        yield entry.finding("KUG-D16", level, found, "none", why, fix, part)
    if free:
        found = f"free text in {', '.join(free)}"
        yield entry.finding("KUG-D16", "info", found, "nothing about a person", why, fix, part)


def name_findings(entry, name, part):
    """Findings on the file's own name and on the JSON sidecar beside it.

    Args:
        entry: The case.
        name: Path as the study says it; of an absolute one only the last two parts count.
        part: "image" or "label".
    """
    path = Path(name)
    shown = "/".join(path.parts[-2:]) if path.is_absolute() else path.as_posix()
    kinds = identity.traces(shown)
    if kinds:
        yield entry.finding(
            "KUG-D16", "warning", f"{' and '.join(kinds)} in the file name", "no identities",
            "Names go into shards, tables and reports.", "unigan scrub FOLDER -o OUT", part,
        )  # fmt: skip


def sidecar_findings(entry, path, part):
    """Findings on identifying fields of the JSON file beside a scan, if there is one."""
    path = Path(path)
    stem = path.name.removesuffix(".gz").removesuffix(".nii")
    sidecar = path.with_name(f"{stem}.json")
    if not sidecar.is_file():
        return
    try:
        data = json.loads(sidecar.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        found = "a sidecar that is not JSON"
        yield entry.finding("KUG-D08", "warning", found, "JSON", "It is not used.", part=part)
        return
    keys = identity.personal_keys(data) if isinstance(data, dict) else []
    if keys:
        yield entry.finding(
            "KUG-D16", "warning", f"sidecar fields {', '.join(keys[:8])}", "no identities",
            "Files that are shared carry them on.", "unigan scrub FOLDER -o OUT", part,
        )  # fmt: skip
