import subprocess
import sys

import numpy as np
import pytest

from keras_unigan.serving import wire
from keras_unigan.serving.status import ServingError, truncate

NUMBERS = (
    *("float16", "float32", "float64", "bool"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
)


def sent(array, tensor_content):
    """TensorProto after a trip over the wire."""
    proto = wire.tensor_pb2.TensorProto()
    wire.fill(proto, array, tensor_content)
    return wire.tensor_pb2.TensorProto.FromString(proto.SerializeToString())


@pytest.mark.parametrize("tensor_content", [False, True])
@pytest.mark.parametrize("dtype", NUMBERS)
def test_numbers_round_trip(dtype, tensor_content):
    draw = np.random.default_rng(0).normal(size=(3, 4, 5)) * 1000
    with np.errstate(invalid="ignore"):
        array = draw.astype(dtype)
    if array.dtype.kind in "iu":
        limits = np.iinfo(dtype)
        array.ravel()[:4] = [limits.min, limits.max, 127, 0]
    proto = sent(array, tensor_content)
    assert bool(proto.tensor_content) == tensor_content
    found = wire.to_array(proto, "x")
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("array", [np.float32(2.5), np.zeros((2, 0), np.int32), np.zeros(0, "f4")])
def test_scalars_and_empty_arrays_round_trip(array):
    for tensor_content in (False, True):
        found = wire.to_array(sent(array, tensor_content), "x")
        assert found.shape == np.shape(array)
        np.testing.assert_array_equal(found, array)


def test_bytes_keep_their_zeros():
    array = np.array([[b"\x00a\x00", b""], ["ü".encode(), b"\xff"]], object)
    for tensor_content in (False, True):
        assert wire.to_array(sent(array, tensor_content), "x").tolist() == array.tolist()


def test_values_are_those_that_tensorflow_reads():
    import tensorflow as tf

    for dtype in NUMBERS:
        array = np.arange(6).reshape(2, 3).astype(dtype)
        for tensor_content in (False, True):
            np.testing.assert_array_equal(tf.make_ndarray(sent(array, tensor_content)), array)
        theirs = tf.make_tensor_proto(array)
        np.testing.assert_array_equal(wire.to_array(theirs, "x"), array)
    # This process has TensorFlow's own modules, or had them after ours.
    assert type(tf.make_tensor_proto(1.0)) is wire.tensor_pb2.TensorProto
    half = tf.constant([1.5, -2.0], tf.bfloat16).numpy()
    np.testing.assert_array_equal(wire.to_array(sent(half, False), "x"), half)


def float_proto(shape, values=(), content=b"", dtype=1):
    proto = wire.tensor_pb2.TensorProto(dtype=dtype, float_val=values, tensor_content=content)
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    return proto


@pytest.mark.parametrize(
    ("values", "expected"),
    [((1, 2), [1, 2, 2, 2]), ((), [0, 0, 0, 0]), ((1, 2, 3, 4, 5, 6), [1, 2, 3, 4])],
)
def test_missing_values_repeat_and_extra_ones_are_ignored(values, expected):
    found = wire.to_array(float_proto((2, 2), values), "x")
    assert found.ravel().tolist() == expected


def strings(count, content):
    return float_proto((count,), content=content, dtype=7)


def test_strings_may_come_as_tensor_content():
    assert wire.to_array(strings(2, b"\x02\x01aab"[:2] + b"hi\x00"), "x").tolist() == [b"hi", b"\0"]


@pytest.mark.parametrize(
    "proto",
    [
        wire.tensor_pb2.TensorProto(),
        float_proto((2, 2), content=b"\0" * 15),
        float_proto((2, 2), content=b"\0" * 20),
        float_proto((-1,)),
        float_proto((2,), dtype=8),
        float_proto((2,), dtype=1000),
        float_proto((100_000, 100_000), (1.0,)),
        float_proto((2**62, 2**62)),
        float_proto((2**40,), dtype=7),
        strings(2, b"\x02\x01ab"),
        strings(2, b"\x81"),
        strings(10**9, b"\x01a"),
    ],
    ids=lambda proto: str(proto).replace("\n", " ")[:60],
)
def test_tensors_that_do_not_fit_are_refused(proto):
    with pytest.raises(ServingError, match="tensor parsing error: image") as caught:
        wire.to_array(proto, "image")
    assert caught.value.code == "INVALID_ARGUMENT"


def test_arrays_of_other_types_are_refused():
    with pytest.raises(ValueError, match="type that TensorProto has, got datetime64"):
        wire.fill(wire.tensor_pb2.TensorProto(), np.array("2020", "datetime64"), True)


def test_messages_are_cut_at_1024_bytes():
    assert truncate("ü" * 512) == "ü" * 512
    found = truncate("ü" * 513)
    assert found.endswith("ü...TRUNCATED")
    assert len(found.encode()) <= 1024
    assert truncate("a\nb") == "a b"


def test_messages_do_not_need_tensorflow():
    code = (
        "import sys; import keras_unigan.serving.client, keras_unigan.serving.push;"
        "from keras_unigan.serving import wire;"
        "found = {'tensorflow', 'keras'} & set(sys.modules); assert not found, found;"
        # TensorFlow after them has to find itself, and the same classes.
        "import tensorflow as tf; from tensorflow.core.framework import tensor_pb2;"
        "assert tensor_pb2.TensorProto is wire.tensor_pb2.TensorProto;"
        "request = wire.predict_pb2.PredictRequest();"
        "request.inputs['a'].CopyFrom(tf.make_tensor_proto([1.0]))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
