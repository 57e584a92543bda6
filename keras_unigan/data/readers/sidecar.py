"""`unigan.json`: what a converted study holds and its layout cannot say.

A writer reads its own output with the layout's reader and notes every difference to the study; a
reader puts the differences back. So whatever a layout can say, it says itself.
"""

import dataclasses
import os
from pathlib import Path

from keras_unigan.config import Case, Labels, read_json, write_json
from keras_unigan.data.readers.common import Found, listed
from keras_unigan.errors import CodedError, did_you_mean

NAME = "unigan.json"
VERSION = 1
_KEYS = (
    *("version", "layout", "name", "modalities", "labels", "regions", "cases", "order", "files"),
    *("normalization", "channels"),
)
_FIELDS = tuple(f.name for f in dataclasses.fields(Case) if f.name not in ("image", "channel"))


def location(path):
    """Where the sidecar of a folder or table lies."""
    path = Path(path)
    return path / NAME if path.is_dir() else path.with_name(f"{path.name}.{NAME}")


def load(path):
    """Reads the sidecar of a folder or table; an empty dictionary where there is none.

    Raises:
        CodedError: KUG-D08 for another version, an unknown key or a part that is no object.
    """
    file = location(path)
    if not file.is_file():
        return {}
    data = read_json(file)
    if not isinstance(data, dict) or data.get("version") != VERSION:
        found = data.get("version") if isinstance(data, dict) else type(data).__name__
        raise CodedError("KUG-D08", file, f"version {found}", f"{VERSION}", fix="convert again")
    for key, value in data.items():
        if key not in _KEYS:
            hint = did_you_mean(key, _KEYS)
            raise CodedError("KUG-D08", file, f"unknown key {key!r}{hint}", f"one of {_KEYS}")
        objects = ("cases", "files", "labels", "regions", "normalization")
        if key in objects and not isinstance(value, dict):
            raise CodedError("KUG-D08", f"{file} {key}", type(value).__name__, "an object")
    return data


def key_of(case, folder):
    """Name of a case in the sidecar: its image relative to the folder, and the channel."""
    name = _relative(case.image, folder)
    return name if case.channel is None else f"{name}#{case.channel}"


def _relative(name, folder):
    if name is None or "://" in name:
        return name
    return Path(os.path.relpath(name, folder)).as_posix()


def difference(found, wanted, path, layout, files=None):
    """What the sidecar must say.

    Args:
        found: `Found` of the layout's reader alone.
        wanted: `Found` with the same images and what the study says of them.
        path: Folder or table that was read.
        layout: Its name.
        files: Image -> modalities of its channels, where the layout declares others.

    Returns:
        What `write` takes.
    """
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    known = {key_of(c, folder): c for c in found.cases}
    data = {"version": VERSION, "layout": layout}
    if found.name != wanted.name:
        data["name"] = wanted.name
    if found.modalities != wanted.modalities:
        data["modalities"] = list(wanted.modalities)
    if found.channels != wanted.channels:
        data["channels"] = wanted.channels
    if found.normalization != wanted.normalization:
        data["normalization"] = wanted.normalization
    scheme = _scheme(wanted.labels)
    # The order of classes counts, and dictionaries compare equal without it.
    if found.labels is None or list(_scheme(found.labels).items()) != list(scheme.items()):
        data["regions" if wanted.labels.overlapping else "labels"] = scheme
    changes = {}
    for case in wanted.cases:
        key = key_of(case, folder)
        changed = {f: getattr(case, f) for f in _FIELDS}
        changed = {f: v for f, v in changed.items() if v != getattr(known[key], f)}
        if "label" in changed:
            changed["label"] = _relative(changed["label"], folder)
        if changed:
            changes[key] = changed
    order = [key_of(c, folder) for c in wanted.cases]
    parts = {"cases": changes, "files": files, "order": order if order != list(known) else None}
    return data | {k: v for k, v in parts.items() if v}


def _scheme(labels):
    return {name: list(labels.file_values(name)) for name in labels.foreground}


def write(path, data):
    """Writes the sidecar of a folder or table."""
    write_json(location(path), data)


def apply(found, path):
    """Puts back what the layout could not say.

    Args:
        found: `Found` of the layout's reader.
        path: Folder or table that was read.

    Raises:
        CodedError: As `load`; KUG-D01 when a case of the sidecar has no file any more.
    """
    data = load(path)
    if not data:
        return found
    folder = Path(path).resolve()
    folder = folder if folder.is_dir() else folder.parent
    cases = {key_of(c, folder): c for c in found.cases}
    changes, order = data.get("cases", {}), data.get("order", list(cases))
    missing = sorted({*changes, *order} - set(cases))
    if missing:
        raise CodedError(
            "KUG-D01",
            location(path),
            f"{len(missing)} files missing: {listed(missing)}",
            "all files that it names",
            fix="put them back, or convert again",
        )
    for key, changed in changes.items():
        unknown = sorted(set(changed) - set(_FIELDS))
        if unknown:
            hint = did_you_mean(unknown[0], _FIELDS)
            where = f"{location(path)} {key}"
            raise CodedError("KUG-D08", where, f"{unknown[0]!r}{hint}", f"one of {_FIELDS}")
        if changed.get("label"):
            changed = changed | {"label": os.path.normpath(folder / changed["label"])}
        if changed.get("annotated"):
            changed = changed | {"annotated": tuple(changed["annotated"])}
        cases[key] = dataclasses.replace(cases[key], **changed)
    # Files that came later stand at the end.
    order = [*order, *(key for key in cases if key not in order)]
    labels = found.labels
    if "labels" in data or "regions" in data:
        labels = Labels(**{k: _tuples(data.get(n, {})) for k, n in _SCHEMES.items()})
    return Found(
        tuple(cases[key] for key in dict.fromkeys(order)),
        labels,
        tuple(data.get("modalities", found.modalities)),
        data.get("name", found.name),
        data.get("normalization", found.normalization),
        channels=data.get("channels", found.channels),
    )


_SCHEMES = {"classes": "labels", "regions": "regions"}


def _tuples(scheme):
    return {name: tuple(values) for name, values in scheme.items()}
