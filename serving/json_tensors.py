"""JSON bodies of TensorFlow Serving's REST API to arrays and back.

Messages are TensorFlow Serving's without the part of the body that it quotes. The code sees Python
lists from `json`, so a volume costs about a hundred bytes a voxel: docs send volumes through gRPC.
"""

import base64
import binascii
import itertools
import json

import numpy as np

from keras_unigan.serving import wire
from keras_unigan.serving.status import ServingError, invalid

_KINDS = {
    dict: "Object",
    list: "Array",
    str: "String",
    int: "Number",
    float: "Number",
}


# NumPy has 64 axes, one of them for the rows; TensorFlow has more, but no model has so many.
_MOST_AXES = 63


def parse(body):
    """Parses a request body to its top-level object.

    Raises:
        ServingError: INVALID_ARGUMENT with the offset of the fault.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise invalid(
            f"JSON Parse error: Invalid encoding in string. at offset: {error.start}"
        ) from None
    if not text.strip():
        raise invalid("JSON Parse error: The document is empty")
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise invalid(f"JSON Parse error: Invalid value. at offset: {error.pos}") from None
    except RecursionError:
        raise invalid("JSON Parse error: Nested too deeply.") from None
    except ValueError:
        # Python refuses integers of thousands of digits.
        raise invalid("JSON Parse error: Number too big to be stored.") from None
    if not isinstance(document, dict):
        raise invalid("JSON Value Is not object")
    return document


def signature_name(document):
    """The `signature_name` of a request, empty when not given."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid(
            "JSON Value not formatted correctly. 'signature_name' key must be a string value."
        )
    return name


def inputs(document, signature):
    """Reads the tensors of a predict request.

    Args:
        document: Parsed body.
        signature: `servable.Signature` whose inputs it is for.

    Returns:
        (name -> array, whether the request had the row format).

    Raises:
        ServingError: INVALID_ARGUMENT.
    """
    if "instances" in document and "inputs" in document:
        raise invalid(
            "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist"
        )
    if "instances" in document:
        rows = document["instances"]
        if not isinstance(rows, list):
            raise invalid("Expecting 'instances' to be an list/array")
        if not rows:
            raise invalid("No values in 'instances' array")
        return _rows(rows, signature.inputs), True
    if "inputs" not in document:
        raise invalid("Missing 'inputs' or 'instances' key")
    return _columns(document["inputs"], signature.inputs), False


def _rows(rows, tensors):
    objects = _is_object(rows[0])
    if not isinstance(rows[0], dict) and len(tensors) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map"
        )
    shapes, values = {}, {name: [] for name in tensors}
    for index, row in enumerate(rows):
        if objects and not _is_object(row):
            raise invalid(f"Expecting object but got list at item {index} of input list")
        if not objects and _is_object(row):
            raise invalid(f"Expecting value/list but got object at item {index} of input list")
        items = row.items() if objects else [(next(iter(tensors)), row)]
        for name, item in items:
            try:
                _add(name, item, tensors, shapes, values)
            except ServingError as error:
                key = f" key: {name}" if objects else ""
                raise invalid(
                    f"Failed to process element: {index}{key} of 'instances' list. "
                    f"Error: INVALID_ARGUMENT: {error.message}"
                ) from None
        if objects and set(row) != set(tensors):
            raise invalid(
                f"Failed to process element: {index} of 'instances' list. JSON object keys must be "
                f"equal to: {','.join(sorted(tensors))}"
            )
    return {
        name: _array(values[name], tensors[name].number, [len(rows), *shapes[name]])
        for name in tensors
    }


def _add(name, item, tensors, shapes, values):
    """Appends the values of one row of one input; each row has the shape of the first."""
    if name not in tensors:
        raise invalid(f"JSON object: does not have named input: {name}")
    shape, before = _shape(item), len(values[name])
    _extend(values[name], item, shape, tensors[name].number)
    first = shapes.setdefault(name, shape)
    size, count = int(np.prod(first)), len(values[name]) - before
    if count != size:
        raise invalid(f"Expecting tensor size: {size} but got: {count}")
    if shape != first:
        raise invalid(f"Expecting shape {_show(first)} but got: {_show(shape)}")


def _columns(value, tensors):
    if not _is_object(value):
        if len(tensors) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors "
                "required as per tensorinfo_map"
            )
        value = {next(iter(tensors)): value}
    result = {}
    for name, tensor in tensors.items():
        if name not in value:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
        shape, found = _shape(value[name]), []
        _extend(found, value[name], shape, tensor.number)
        result[name] = _array(found, tensor.number, shape)
    return result


def _is_object(value):
    return isinstance(value, dict) and not is_base64(value)


def is_base64(value):
    """Whether a JSON value stands for bytes: `{"b64": "..."}`."""
    return isinstance(value, dict) and set(value) == {"b64"} and isinstance(value["b64"], str)


def _shape(value):
    """Shape by the first element of each level."""
    shape = []
    while isinstance(value, list):
        if len(shape) == _MOST_AXES:
            raise invalid("JSON Parse error: Nested too deeply.")
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return shape


def _show(shape):
    return f"[{','.join(str(s) for s in shape)}]"


def _extend(values, value, shape, number):
    """Appends the leaves below a JSON value of a shape.

    Whole levels are checked at once: a Python call a voxel would be the slowest part. Only where
    something does not fit does `_collect` go through it, to say what.
    """
    level = [value]
    for size in shape:
        if set(map(type, level)) != {list} or set(map(len, level)) != {size}:
            return _collect(value, 0, shape, number, values)
        level = list(itertools.chain.from_iterable(level))
    if not set(map(type, level)) <= _plain(number):
        return _collect(value, 0, shape, number, values)
    values.extend(level)


def _collect(value, level, shape, number, values):
    """Appends the leaves below a JSON value, checking each level against the shape."""
    if not isinstance(value, list):
        if level != len(shape):
            raise invalid(
                f"JSON Value found at incorrect level: {level + 1} in the JSON DOM. Expected at "
                f"level: {len(shape)}"
            )
        values.append(leaf(value, number))
        return
    if level >= len(shape):
        raise invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise invalid(
            f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: "
            f"{shape[level]}"
        )
    for item in value:
        _collect(item, level + 1, shape, number, values)


def _plain(number):
    """Python types of leaves that need no conversion."""
    dtype = wire.numpy_dtype(number)
    if dtype is None:
        raise ServingError("UNIMPLEMENTED", f"Conversion of JSON Value to {wire.type_name(number)}")
    kind = dtype.kind
    return {"f": {int, float}, "V": {int, float}, "b": {bool}}.get(
        kind, {int} if kind in "iu" else set()
    )


def leaf(value, number):
    """Value of a tensor of DataType `number` for one JSON leaf.

    Raises:
        ServingError: INVALID_ARGUMENT for a leaf of another type.
    """
    if number == wire.STRING:
        if isinstance(value, str):
            return value.encode("utf-8", "replace")
        if isinstance(value, dict):
            if not is_base64(value):
                raise invalid("JSON Value not formatted correctly for base64 data")
            return _decode(value["b64"])
    if type(value) not in _plain(number):
        raise _type_error(value, number)
    return value


def _decode(text):
    """Bytes of standard or URL-safe base64, with or without padding, as TensorFlow Serving."""
    text = text.replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise invalid("Unable to base64 decode") from None


def kind(value):
    """Name of a JSON value's type as TensorFlow Serving writes it; a Boolean's is its value."""
    return "Null" if value is None else _KINDS.get(type(value), str(value))


def _type_error(value, number):
    return invalid(
        f"JSON Value Type: {kind(value)} is not of expected type: {wire.type_name(number)}"
    )


def _array(values, number, shape):
    """Array of checked leaves; refuses numbers that the type cannot hold."""
    dtype = wire.numpy_dtype(number)
    if number == wire.STRING:
        result = np.empty(len(values), object)
        result[:] = values
        return result.reshape(shape)
    if dtype.kind in "iu" and values:
        limits = np.iinfo(dtype)
        if min(values) < limits.min or max(values) > limits.max:
            raise _type_error(0, number)
    try:
        wide = np.array(values, dtype if dtype.kind in "iub" else np.float64)
    except OverflowError:
        raise lossy(number) from None
    with np.errstate(over="ignore"):
        result = wide.astype(dtype)
    if dtype.kind not in "iub" and (np.isinf(result) & ~np.isinf(wide)).any():
        raise lossy(number)
    return result.reshape(shape)


def lossy(number):
    """The answer for a number that the type cannot hold."""
    return invalid(
        f"Cannot convert JSON value to {wire.type_name(number)} without loss of precision."
    )


def outputs(arrays, rows):
    """Writes the tensors of a response.

    Args:
        arrays: Output name -> array.
        rows: Whether in row format.

    Returns:
        Bytes of the JSON object.

    Raises:
        ServingError: INVALID_ARGUMENT when the outputs do not have rows.
    """
    if rows:
        size = None
        for name, array in sorted(arrays.items()):
            if not array.ndim:
                raise invalid(f"Tensor name: {name} has no shape information")
            if size is not None and len(array) != size:
                raise invalid(
                    f"Tensor name: {name} has inconsistent batch size: {len(array)} "
                    f"expecting: {size}"
                )
            size = len(array)
    lists = {name: _plain_list(name, array) for name, array in arrays.items()}
    if len(lists) == 1:
        (value,) = lists.values()
    elif rows:
        value = [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
    else:
        value = lists
    return json.dumps({"predictions" if rows else "outputs": value}).encode()


def _plain_list(name, array):
    if array.dtype == object:
        convert = _encode if name.endswith("_bytes") else _text
        flat = [convert(v) for v in array.ravel()]
    elif array.dtype.kind in "iub" or array.dtype == np.float64:
        return array.tolist()
    elif array.dtype.kind in "fV":
        # The text of a float32 is its shortest one; as float64 it would grow noise digits.
        flat = [float(str(v)) for v in array.ravel()]
    else:
        raise invalid(f"Failed to write JSON value for tensor type: {array.dtype}")
    nested = np.empty(array.size, object)
    nested[:] = flat
    return nested.reshape(array.shape).tolist()


def _encode(value):
    return {"b64": base64.b64encode(_as_bytes(value)).decode()}


def _text(value):
    return _as_bytes(value).decode("utf-8", "replace")


def _as_bytes(value):
    return value.encode() if isinstance(value, str) else bytes(value)
