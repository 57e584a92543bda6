"""Blocks of `keras_unigan.layers` that networks are made of, against NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from checks import random

from keras_unigan.layers import (
    FiLM,
    LabelPlanes,
    check_strides,
    domain_code,
    instance_norm,
    level_kernel,
    max_pool,
    squeeze_excitation,
    strided_conv,
)


def round_trip(layer, inputs, folder):
    """The layer in a saved and loaded model of unknown sizes; both outputs."""
    ends = [keras.Input((*[None] * (x.ndim - 2), x.shape[-1])) for x in inputs]
    model = keras.Model(ends, layer(ends))
    model.save(folder / "model.keras")
    loaded = keras.saving.load_model(folder / "model.keras")  # safe mode
    tensors = [tf.constant(x) for x in inputs]
    return model(tensors).numpy(), loaded(tensors).numpy()


def test_code_of_known_and_unknown_domains():
    domain = np.array([1, -1, 0, 7])
    np.testing.assert_array_equal(domain_code(domain, 2), [[0, 1], [0, 0], [1, 0], [0, 0]])
    expected = [[0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 0, 1]]
    np.testing.assert_array_equal(domain_code(domain, 2, unknown=True), expected)
    assert domain_code(domain, 2).dtype == tf.float32


@pytest.mark.parametrize("shape", [(2, 3, 4, 2), (2, 3, 4, 5, 2)])
def test_label_planes(tmp_path, shape):
    image, code = random(shape), random((2, 3), 1)
    planes = np.broadcast_to(code.reshape(2, *[1] * (len(shape) - 2), 3), (*shape[:-1], 3))
    for found in round_trip(LabelPlanes(), [image, code], tmp_path):
        np.testing.assert_array_equal(found, np.concatenate([image, planes], axis=-1))


@pytest.mark.parametrize("shape", [(2, 3, 4, 2), (2, 3, 4, 5, 2)])
def test_film(tmp_path, shape):
    layer, image, code = FiLM(), random(shape), np.eye(3, dtype="float32")[[2, 0]]
    np.testing.assert_array_equal(layer([image, tf.constant(code)]), image)
    tables = [random((3, 2), 1), random((3, 2), 2)]
    layer.set_weights(tables)
    rows = [t[[2, 0]].reshape(2, *[1] * (len(shape) - 2), 2) for t in tables]
    for found in round_trip(layer, [image, code], tmp_path):
        np.testing.assert_allclose(found, image * rows[0] + rows[1], atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 6, 4, 3), (2, 3, 4, 2, 3)])
def test_instance_norm_is_per_sample_in_training_and_inference(shape):
    image, axes = 5 + 3 * random(shape), tuple(range(1, len(shape) - 1))
    centred = image - image.mean(axes, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(axes, keepdims=True) + 1e-5)
    plain, scaled = instance_norm("plain"), instance_norm("scaled", scale=True)
    for training in (False, True):
        np.testing.assert_allclose(plain(image, training=training), expected, atol=1e-5)
        np.testing.assert_allclose(scaled(image, training=training), expected, atol=1e-5)
    assert plain.weights == []
    assert [w.shape for w in scaled.weights] == [(3,), (3,)]


@pytest.mark.parametrize("shape", [(2, 6, 4, 8), (2, 3, 4, 2, 8)])
def test_squeeze_excitation(shape):
    image = keras.Input((*[None] * (len(shape) - 2), 8))
    model = keras.Model(image, squeeze_excitation(image, 3, "se"))
    squeeze, excite = model.get_weights()
    assert [w.shape for w in model.weights] == [(8, 3), (3, 8)]
    x = random(shape)
    gate = np.maximum(x.mean(tuple(range(1, len(shape) - 1))) @ squeeze, 0) @ excite
    gate = 1 / (1 + np.exp(-gate.reshape(2, *[1] * (len(shape) - 2), 8)))
    np.testing.assert_allclose(model(x), x * gate, atol=1e-5)


@pytest.mark.parametrize("sides", [(8, 6), (None, None)])
def test_a_strided_convolution_pads_alike_whatever_is_known_of_the_size(sides):
    image = keras.Input((*sides, 1))
    outputs = strided_conv(image, 2, 1, 4, 2, "conv", use_bias=False)
    model, kernel = keras.Model(image, outputs), random((4, 4))
    model.set_weights([kernel[..., None, None]])
    x = random((1, 8, 6, 1))
    padded = np.pad(x[0, ..., 0], 1)
    expected = [
        [np.sum(padded[2 * i : 2 * i + 4, 2 * j : 2 * j + 4] * kernel) for j in range(3)]
        for i in range(4)
    ]
    np.testing.assert_allclose(model(x)[0, ..., 0], expected, atol=1e-5)


def test_padding_follows_the_kernel_of_each_axis():
    image = keras.Input((9, 8, 5, 1))
    assert strided_conv(image, 3, 2, (3, 3, 1), (2, 2, 1), "flat").shape == (None, 5, 4, 5, 2)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_max_pool_has_a_kernel_for_every_dtype(spatial_dims, dtype):
    x = np.arange(4**spatial_dims).reshape(1, *[4] * spatial_dims, 1)
    layer = max_pool(spatial_dims, 2, "pool")
    layer.dtype_policy = dtype if spatial_dims == 2 else layer.dtype_policy
    found = np.asarray(layer(tf.cast(x, dtype)), "float32")[0, ..., 0]
    assert found.shape == (2,) * spatial_dims
    corner = (slice(1, None, 2),) * spatial_dims
    np.testing.assert_array_equal(found, x[0, ..., 0][corner])


def test_kernels_of_levels():
    strides = ((2, 2, 1), (2, 2, 2), (2, 2, 1))
    kernels = [level_kernel(strides, level) for level in range(4)]
    assert kernels == [(3, 3, 1), (3, 3, 3), (3, 3, 3), (3, 3, 3)]
    assert level_kernel(((2, 2, 1), (2, 2, 1)), 0) == (3, 3, 3)


def test_strides_of_the_wrong_rank_are_named():
    assert check_strides([[2, 1], [1, 2]], 2) == ((2, 1), (1, 2))
    with pytest.raises(ValueError, match=r"Expected strides of 3 axes, got \(2, 2\)"):
        check_strides([[2, 2, 2], [2, 2]], 3)
