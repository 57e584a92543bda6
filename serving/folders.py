"""Version folders on disk: which there are, and whether each is whole, byte for byte."""

import hashlib
import json
import os
from pathlib import Path

from keras_unigan.serving.status import ServingError

MANIFEST = "manifest.json"
BLESSING = "blessing"
"""Folder of verdicts on a version; see `blessings`. It is no part of the digest."""


def scan(base_path):
    """Version folders of a model: number -> path. Names that are not all digits are ignored."""
    found = {}
    with os.scandir(base_path) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            if entry.name.isascii() and entry.name.isdigit() and entry.is_dir():
                found.setdefault(int(entry.name), entry.path)
    return found


def describe(folder):
    """Lists a version folder: path -> {"sha256", "bytes"}, and one digest over all of it."""
    folder = Path(folder)
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != MANIFEST and not name.startswith(f"{BLESSING}/"):
            files[name] = {"sha256": _sha256(path), "bytes": path.stat().st_size}
    text = json.dumps(files, sort_keys=True)
    return {"version": 1, "digest": hashlib.sha256(text.encode()).hexdigest(), "files": files}


def write_manifest(folder):
    """Writes the manifest into a version folder and returns it."""
    data = describe(folder)
    (Path(folder) / MANIFEST).write_text(text(data), encoding="utf-8")
    return data


def text(manifest):
    """What the file of a manifest holds."""
    return json.dumps(manifest, indent=1) + "\n"


def digest(folder):
    """Digest that the folder's manifest states, or None without a readable one."""
    try:
        return json.loads((Path(folder) / MANIFEST).read_text(encoding="utf-8"))["digest"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check(folder):
    """Compares a folder with its manifest; a folder without one is taken as it is.

    Raises:
        ServingError: DATA_LOSS when a listed file is missing or differs; no file is named.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        return
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        wrong = sum(not _same(os.path.join(folder, name), entry) for name, entry in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ServingError("DATA_LOSS", "The digest manifest cannot be read") from None
    if wrong:
        raise ServingError(
            "DATA_LOSS",
            f"The version is incomplete: {wrong} of {len(files)} files are missing or differ from "
            "the digest manifest",
        )


def _same(path, entry):
    if not os.path.isfile(path) or os.path.getsize(path) != entry["bytes"]:
        return False
    return _sha256(path) == entry["sha256"]


def _sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
