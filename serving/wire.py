"""TensorProto to array and back, and the generated messages, without importing TensorFlow.

The stubs of `tensorflow-serving-api` import the message modules that live inside the `tensorflow`
package, whose own import takes about ten seconds. Those modules need nothing but protobuf, so they
are loaded here without running `tensorflow/__init__.py`: a client starts in a tenth of a second.
TensorFlow may be imported before or later in the process; protobuf hands out the same classes then.
"""

import importlib
import importlib.util
import math
import sys
import threading
import types

import numpy as np

from keras_unigan.serving.status import invalid

_lock = threading.Lock()


def _load(names):
    """Imports protobuf modules; a bare `tensorflow` package stands in if it is not imported."""
    with _lock:
        if "tensorflow" in sys.modules:
            return [importlib.import_module(name) for name in names]
        stand_in = types.ModuleType("tensorflow")
        stand_in.__path__ = list(importlib.util.find_spec("tensorflow").submodule_search_locations)
        sys.modules["tensorflow"] = stand_in
        try:
            return [importlib.import_module(name) for name in names]
        finally:
            for name in [n for n in sys.modules if n.split(".")[0] == "tensorflow"]:
                del sys.modules[name]


(
    tensor_pb2,
    example_pb2,
    model_pb2,
    input_pb2,
    classification_pb2,
    regression_pb2,
    inference_pb2,
    model_management_pb2,
    predict_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    prediction_log_pb2,
    prediction_service_pb2,
    prediction_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
    model_server_config_pb2,
    meta_graph_pb2,
    saved_model_pb2,
) = _load(
    [
        "tensorflow.core.framework.tensor_pb2",
        "tensorflow.core.example.example_pb2",
        *(
            f"tensorflow_serving.apis.{name}"
            for name in (
                "model_pb2",
                "input_pb2",
                "classification_pb2",
                "regression_pb2",
                "inference_pb2",
                "model_management_pb2",
                "predict_pb2",
                "get_model_metadata_pb2",
                "get_model_status_pb2",
                "prediction_log_pb2",
                "prediction_service_pb2",
                "prediction_service_pb2_grpc",
                "model_service_pb2",
                "model_service_pb2_grpc",
            )
        ),
        "tensorflow_serving.config.model_server_config_pb2",
        "tensorflow.core.protobuf.meta_graph_pb2",
        "tensorflow.core.protobuf.saved_model_pb2",
    ]
)

# DataType number -> (name as TensorFlow's messages write it, NumPy name, value field).
_TYPES = {
    1: ("float", "float32", "float_val"),
    2: ("double", "float64", "double_val"),
    3: ("int32", "int32", "int_val"),
    4: ("uint8", "uint8", "int_val"),
    5: ("int16", "int16", "int_val"),
    6: ("int8", "int8", "int_val"),
    7: ("string", "object", "string_val"),
    9: ("int64", "int64", "int64_val"),
    10: ("bool", "bool", "bool_val"),
    14: ("bfloat16", "bfloat16", "half_val"),
    17: ("uint16", "uint16", "int_val"),
    19: ("half", "float16", "half_val"),
    22: ("uint32", "uint32", "uint32_val"),
    23: ("uint64", "uint64", "uint64_val"),
}
_NUMBERS = {numpy_name: number for number, (_, numpy_name, _) in _TYPES.items()}
FLOAT, STRING = 1, 7
# Tag of each value field in TensorProto, wire type 2 (packed).
_TAGS = {
    "half_val": b"\x6a",
    "float_val": b"\x2a",
    "double_val": b"\x32",
    "int_val": b"\x3a",
    "int64_val": b"\x52",
    "bool_val": b"\x5a",
    "uint32_val": b"\x82\x01",
    "uint64_val": b"\x8a\x01",
}

# One value may stand for a whole tensor; more than this is not made out of nothing.
MAX_FILLED_BYTES = 64 * 2**20


def type_name(number):
    """Name of a DataType number as TensorFlow's messages write it, e.g. "float"."""
    return _TYPES[number][0] if number in _TYPES else f"type {number}"


def numpy_dtype(number):
    """NumPy dtype of a DataType number, None for one that no wire tensor has here."""
    if number not in _TYPES:
        return None
    name = _TYPES[number][1]
    if name == "bfloat16":
        return np.dtype(importlib.import_module("ml_dtypes").bfloat16)
    return np.dtype(name)


def type_number(dtype):
    """DataType number of a NumPy dtype; text and bytes are strings."""
    dtype = np.dtype(dtype)
    name = "object" if dtype.kind in "OSU" else dtype.name
    if name not in _NUMBERS:
        raise ValueError(f"Expected an array of a type that TensorProto has, got {dtype}.")
    return _NUMBERS[name]


def declared_bytes(proto):
    """Bytes that an array of a TensorProto's declared shape takes; strings count as they are."""
    dtype = numpy_dtype(proto.dtype)
    if dtype is None:
        return 0
    if proto.dtype == STRING:
        return len(proto.tensor_content) + sum(map(len, proto.string_val))
    return math.prod(max(0, d.size) for d in proto.tensor_shape.dim) * dtype.itemsize


def to_array(proto, name):
    """Reads a TensorProto; large contents are not copied (the array is then read-only).

    As TensorFlow does, fewer values than the shape holds repeat the last one, none are zeros, and
    more are ignored.

    Args:
        proto: TensorProto with `tensor_content` or value fields.
        name: Input that it came for, named in the error.

    Returns:
        Array of the declared shape; strings are an object array of bytes.

    Raises:
        ServingError: INVALID_ARGUMENT `tensor parsing error: NAME`.
    """
    dtype = numpy_dtype(proto.dtype)
    shape = [d.size for d in proto.tensor_shape.dim]
    if dtype is None or proto.tensor_shape.unknown_rank or min(shape, default=0) < 0:
        raise invalid(f"tensor parsing error: {name}")
    try:
        return _flat(proto, math.prod(shape), dtype, name).reshape(shape)
    except ValueError:
        # NumPy has fewer axes, and no sizes beyond its own, even beside a zero.
        raise invalid(f"tensor parsing error: {name}") from None


def _flat(proto, count, dtype, name):
    """The first `count` values of a TensorProto."""
    content = proto.tensor_content
    if proto.dtype == STRING:
        values = _strings(content, count, name) if content else list(proto.string_val)
        return _fill_strings(values, count, name)
    if content:
        if len(content) != count * dtype.itemsize:
            raise invalid(f"tensor parsing error: {name}")
        return np.frombuffer(content, dtype)
    values = _values(proto, _TYPES[proto.dtype][2], dtype)
    if len(values) < count:
        _check_fill(count * dtype.itemsize, values.nbytes, name)
        filled = np.full(count, values[-1] if len(values) else 0, dtype)
        filled[: len(values)] = values
        values = filled
    return values[:count]


def _values(proto, field, dtype):
    """Values of a number field.

    The repeated container has no buffer, and reading it one by one takes a second for a volume; its
    serialized form is one packed block, which is the array itself or its varints.
    """
    if not len(getattr(proto, field)):
        return np.empty(0, dtype)
    data, tag = memoryview(proto.SerializeToString()), _TAGS[field]
    at, block = 0, memoryview(b"")
    while at < len(data):
        start = at
        kind = data[at] & 7
        _, at = _varint(data, at)
        here = data[start:at] == tag
        if kind == 2:
            length, at = _varint(data, at)
            block = data[at : at + length] if here else block
            at += length
        else:
            at = _varint(data, at)[1] if kind == 0 else at + (8 if kind == 1 else 4)
    if field in ("float_val", "double_val", "bool_val"):
        return np.frombuffer(block, dtype)
    octets = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(octets < 128)
    if len(ends) == len(octets):
        wide = octets
    else:
        starts = np.concatenate([[0], ends[:-1] + 1])
        place = np.arange(len(octets)) - np.repeat(starts, ends - starts + 1)
        bits = (octets & 0x7F).astype(np.uint64) << (7 * place).astype(np.uint64)
        wide = np.add.reduceat(bits, starts)
    if field == "half_val":
        return wide.astype(np.uint16).view(dtype)
    return wide.astype(dtype)


def _varint(data, at):
    """Value of the varint at a position, and the position after it."""
    value, shift = 0, 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 0x7F) << shift, shift + 7, at + 1
        if byte < 0x80:
            return value, at


def _check_fill(size, sent, name):
    if size - sent > MAX_FILLED_BYTES:
        raise invalid(f"tensor parsing error: {name}: its shape is far larger than its values")


def _fill_strings(values, count, name):
    if len(values) < count:
        _check_fill(8 * count, 8 * len(values), name)
        values += [values[-1] if values else b""] * (count - len(values))
    result = np.empty(count, object)
    result[:] = values[:count]
    return result


def _strings(content, count, name):
    """Strings of `tensor_content`: all lengths as varints, then all bytes."""
    if count > len(content):
        raise invalid(f"tensor parsing error: {name}")
    lengths, at = [], 0
    for _ in range(count):
        try:
            length, at = _varint(content, at)
        except IndexError:
            raise invalid(f"tensor parsing error: {name}") from None
        lengths.append(length)
    if at + sum(lengths) != len(content):
        raise invalid(f"tensor parsing error: {name}")
    result = []
    for length in lengths:
        result.append(content[at : at + length])
        at += length
    return result


def fill(proto, array, tensor_content):
    """Writes an array into an empty TensorProto.

    Args:
        proto: TensorProto to fill.
        array: Array; text and bytes become strings.
        tensor_content: Whether numbers go to `tensor_content` or to the value field that
            third-party clients read. The field is written as one packed block: element by element
            takes seconds for a volume.
    """
    array = np.asarray(array)
    number = type_number(array.dtype)
    proto.dtype = number
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    field = _TYPES[number][2]
    if field == "string_val":
        proto.string_val.extend(
            v.encode("utf-8") if isinstance(v, str) else bytes(v) for v in array.ravel().tolist()
        )
    elif tensor_content:
        proto.tensor_content = array.tobytes()
    elif array.size:
        flat = np.ascontiguousarray(array).reshape(-1)
        if field in ("float_val", "double_val", "bool_val"):
            packed = flat.tobytes()
        elif field == "half_val":
            packed = _varints(flat.view(np.uint16))
        else:
            packed = _varints(flat)
        proto.MergeFromString(_TAGS[field] + _varints(np.array([len(packed)])) + packed)


def _varints(values):
    """Encodes integers as protobuf varints; negative ones take ten bytes."""
    if not values.size or (values.min() >= 0 and values.max() < 128):
        return values.astype(np.uint8).tobytes()
    if values.dtype.kind == "i":
        values = values.astype(np.int64).view(np.uint64)
    width = -(-int(values.max()).bit_length() // 7)
    # Column i holds bits 7i..7i+6; a byte is written while bits remain from it on.
    groups = np.stack([values >> np.array(7 * i, values.dtype) for i in range(width)], axis=1)
    keep = groups != 0
    keep[:, 0] = True
    result = (groups & np.array(0x7F, values.dtype)).astype(np.uint8)
    result[:, :-1] |= keep[:, 1:].astype(np.uint8) << 7
    return result[keep].tobytes()
