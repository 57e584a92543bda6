"""Constants of all files, and dataclasses to and from strict JSON."""

import dataclasses
import json
import math
import os
import types
import typing
from pathlib import Path

from keras_unigan.errors import CodedError, did_you_mean

IGNORE = 255
"""Label-map index of a voxel that nobody labelled (also the file value)."""

SPLITS = ("train", "val", "test")

SCHEMES = ("ct", "mr", "xray", "pet_suv", "spect_counts", "ultrasound", "microscopy")
"""Ways to normalise intensities: the keys of `layers.NORMALIZATIONS`."""


UNKNOWN = ("percentiles", "equalized")
"""Ways to normalise an image of unknown modality."""

MOST_CHANNELS = 64
"""Channels of an image: more are wavelengths or moments, which want another network than these."""

ALL_CHANNELS = "all"
"""What readers take for the number of a channel, to keep all that an image has."""


def check_scheme(scheme, where):
    """Raises KUG-D08 for a name that is not in `SCHEMES`."""
    if scheme not in SCHEMES:
        raise CodedError(
            "KUG-D08", where, f"{scheme!r}{did_you_mean(scheme, SCHEMES)}", f"one of {SCHEMES}"
        )


def plain(value):
    """Turns dataclasses and tuples into what `json` writes."""
    if dataclasses.is_dataclass(value):
        return {
            f.name: plain(getattr(value, f.name))
            for f in dataclasses.fields(value)
            if f.metadata.get("json", True) and not left_out(f, getattr(value, f.name))
        }
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def rare(default):
    """Field that stands in the JSON only where it differs from its default.

    So files of studies that do without it are the same as before there was such a field.
    """
    return dataclasses.field(default=default, metadata={"rare": True})


def left_out(field, value):
    """Whether a field is left out of the JSON."""
    return field.metadata.get("rare", False) and value == field.default


def typed(kind, value, where):
    """Reads a JSON value as `kind`; raises `CodedError` that names the place."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType or origin is typing.Union:
        if value is None and type(None) in arguments:
            return None
        listed = [a for a in arguments if typing.get_origin(a) is tuple]
        if listed and isinstance(value, (list, tuple)):
            return typed(listed[0], value, where)
        return typed(next(a for a in arguments if a is not type(None)), value, where)
    if dataclasses.is_dataclass(kind):
        return from_dict(kind, value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise CodedError("KUG-D08", where, f"{type(value).__name__}", "a list")
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(typed(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(value))
        if len(value) != len(arguments):
            raise CodedError("KUG-D08", where, f"{len(value)} values", f"{len(arguments)}")
        return tuple(
            typed(a, v, f"{where}[{i}]")
            for i, (a, v) in enumerate(zip(arguments, value, strict=True))
        )
    if origin is dict or kind is dict:
        if not isinstance(value, dict):
            raise CodedError("KUG-D08", where, f"{type(value).__name__}", "an object")
        if not arguments:
            return dict(value)
        return {str(k): typed(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    if kind is typing.Any:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise CodedError("KUG-D08", where, f"{value!r}", f"a value of type {kind.__name__}")
    return value


def from_dict(cls, data, where):
    """Builds the dataclass `cls` from a JSON object; unknown and missing keys are errors.

    Raises:
        CodedError: KUG-D08 naming the key.
    """
    if not isinstance(data, dict):
        raise CodedError("KUG-D08", where, type(data).__name__, "an object")
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls) if f.metadata.get("json", True)}
    for key in data:
        if key not in known:
            hint = did_you_mean(key, known)
            raise CodedError(
                "KUG-D08", f"{where}.{key}", f"unknown key {key!r}{hint}", f"one of {list(known)}"
            )
    for name, field in known.items():
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if required and name not in data:
            raise CodedError("KUG-D08", where, f"no key {name!r}", "that key")
    return cls(**{k: typed(hints[k], v, f"{where}.{k}") for k, v in data.items()})


def read_json(path):
    """Reads a JSON file.

    Raises:
        CodedError: KUG-D01 when the file is missing, KUG-D08 when it is not JSON.
    """
    path = Path(path)
    if not path.is_file():
        raise CodedError("KUG-D01", path, "no such file", "a JSON file")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CodedError("KUG-D08", path, f"text that is not JSON ({error})", "JSON") from error


def finite(value):
    """The same data with None for NaN and infinities, which JSON does not know."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path, data):
    """Writes JSON through a temporary sibling and a rename, so that no reader sees half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(plain(data), indent=2) + "\n", encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
