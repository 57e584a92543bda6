"""Files through Beam's file systems: local, `gs://`, `s3://` and whatever else is registered."""

import hashlib
import io
import json
import os
import pathlib
import posixpath
import re
import shutil
import uuid

from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from keras_unigan.errors import CodedError

PART = ".part"
"""Ending of files that are not finished."""

_RAW = {
    "mime_type": "application/octet-stream",
    "compression_type": CompressionTypes.UNCOMPRESSED,
}
_BLOCK = 1 << 22


def is_remote(path):
    """Whether a path is a URI of an object store."""
    return "://" in str(path)


def absolute(path):
    """A path that means the same to every worker; a URI stays as it is."""
    return str(path) if is_remote(path) else os.path.abspath(path)


def join(folder, *names):
    """Joins with slashes in a URI and as the system does elsewhere."""
    return (posixpath if is_remote(folder) else os.path).join(str(folder), *names)


def read_bytes(path):
    """Reads a file, local or remote, as it is.

    Raises:
        CodedError: KUG-D01 when it cannot be opened, KUG-E01 for a URI that Beam does not know.
    """
    try:
        with FileSystems.open(str(path), **_RAW) as file:
            return file.read()
    except (OSError, BeamIOError) as error:
        raise CodedError(
            "KUG-D01", path, f"no readable file ({type(error).__name__})", "a file"
        ) from error
    except ValueError as error:
        raise _unknown(path) from error


def _unknown(path):
    return CodedError(
        "KUG-E01",
        path,
        "no file system for this URI",
        "one that Beam knows",
        fix='pip install "keras-unigan[gcp]" for gs://, "apache-beam[aws]" for s3://',
    )


def exists(path):
    """Whether a file is there, local or remote.

    Raises:
        CodedError: KUG-E01 for a URI that Beam does not know.
    """
    try:
        return FileSystems.exists(str(path))
    except ValueError as error:
        raise _unknown(path) from error


def read_json(path):
    """Reads a JSON file, local or remote.

    Raises:
        CodedError: As `read_bytes` does; KUG-D08 when it is not JSON.
    """
    data = read_bytes(path)
    try:
        return json.loads(data)
    except ValueError as error:
        raise CodedError("KUG-D08", path, "text that is not JSON", "JSON") from error


def write_bytes(path, data):
    """Writes a file, local or remote, through a temporary sibling and a rename."""
    write_stream(path, io.BytesIO(data))


def write_stream(path, stream):
    """Copies an open binary file to a path, piece by piece; see `write_bytes`."""
    path = str(path)
    folder, name = FileSystems.split(path)
    if not is_remote(path):
        os.makedirs(folder or ".", exist_ok=True)
    # A name of its own: a runner may try a piece of work twice at the same time.
    temporary = FileSystems.join(folder, f".{name}.{uuid.uuid4().hex}{PART}")
    with FileSystems.create(temporary, **_RAW) as file:
        shutil.copyfileobj(stream, file, _BLOCK)
    if is_remote(path) and FileSystems.exists(path):
        FileSystems.delete([path])
    FileSystems.rename([temporary], [path])


def write_json(path, data):
    """Writes what `json` takes; see `write_bytes`."""
    write_bytes(path, (json.dumps(data, indent=2) + "\n").encode())


def listing(folder):
    """Files below a folder or prefix, local or remote: name with slashes -> path."""
    folder = str(folder).rstrip("/")
    if is_remote(folder):
        paths = match(folder, "/**")
    else:
        paths = [str(p) for p in pathlib.Path(folder).rglob("*") if p.is_file()]
    return {p[len(folder) + 1 :].replace(os.sep, "/"): p for p in sorted(paths)}


def match(prefix, pattern):
    """URIs that start with a prefix, taken as it is, and go on as a pattern of Beam says."""
    # Beam cannot quote a character that means something in a pattern.
    safe = re.sub(r"[*?[]", "?", prefix)
    found = FileSystems.match([safe + pattern])[0].metadata_list
    return [m.path for m in found if m.path.startswith(prefix)]


def sha256(path):
    """Hexadecimal sha256 of a file, local or remote."""
    digest = hashlib.sha256()
    with FileSystems.open(str(path), **_RAW) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def refuse_existing(path, overwrite, fix="add --overwrite"):
    """Raises KUG-E02 when something is there and may not be replaced."""
    if not overwrite and exists(path):
        raise CodedError("KUG-E02", path, "a file that is there already", "a new path", fix=fix)


def worklist(items):
    """Lines of a file of work, and where each lies.

    Dataflow limits the size of a job graph. So the graph holds only places, 100 000 cases lie in a
    file, and a worker reads no line but its own.

    Args:
        items: What `json` takes.

    Returns:
        The file's bytes, and (start, length) of each item.
    """
    lines = [json.dumps(item).encode() + b"\n" for item in items]
    places, start = [], 0
    for line in lines:
        places.append((start, len(line)))
        start += len(line)
    return b"".join(lines), places


def read_item(path, place):
    """Reads one item of a work list."""
    start, length = place
    with FileSystems.open(str(path), **_RAW) as file:
        file.seek(start)
        return json.loads(file.read(length))
