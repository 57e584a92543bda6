"""ConvMuon against its definition."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_unigan.models.optimizers import OPTIMIZERS, ConvMuon


def variable(shape, path="kernel"):
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return keras.Variable(values, name=path)


def change(optimizer, shape, gradient, path="kernel"):
    """What one step adds to a variable."""
    kernel = variable(shape, path)
    optimizer.build([kernel])
    before = kernel.numpy()
    optimizer.apply([tf.constant(gradient)], [kernel])
    return kernel.numpy() - before


@pytest.mark.parametrize("shape", [(3, 3, 4, 6), (3, 3, 3, 2, 40), (8, 5)])
def test_the_update_of_a_kernel_is_nearly_orthogonal(shape):
    gradient = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    step = -change(ConvMuon(1.0, rms_rate=None), shape, gradient).reshape(-1, shape[-1])
    # Newton and Schulz bring every singular value near 1, whatever it was.
    assert np.all(np.abs(np.linalg.svd(step, compute_uv=False) - 1) < 0.35)
    # And the directions stay those of the gradient.
    u, _, v = np.linalg.svd(gradient.reshape(step.shape), full_matrices=False)
    mixed = u.T @ step @ v.T
    assert np.abs(mixed - np.diag(np.diag(mixed))).max() < 1e-2


def test_the_update_does_not_depend_on_the_scale_of_the_gradient():
    gradient = np.random.default_rng(1).normal(size=(3, 3, 4, 6)).astype(np.float32)
    steps = [change(ConvMuon(0.1), gradient.shape, gradient * s) for s in (1.0, 1000.0)]
    np.testing.assert_allclose(*steps, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "path"), [((6,), "bias"), ((3, 3, 1, 6), "kernel"), ((1, 1, 4, 6), "logits")]
)
def test_the_rest_follows_adam(shape, path):
    gradient = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    step = change(ConvMuon(0.1, adam_lr_ratio=0.5), shape, gradient, path)
    # Adam's first step is its rate times the sign.
    np.testing.assert_allclose(step, -0.05 * np.sign(gradient), rtol=1e-3)


def test_it_comes_back_from_its_configuration():
    optimizer = OPTIMIZERS["muon"](100, 0.01)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert type(again) is ConvMuon
    assert again.get_config() == optimizer.get_config()


def test_no_weight_decays_unasked():
    gradient = np.zeros((3, 3, 4, 6), np.float32)
    assert np.all(change(ConvMuon(0.1), gradient.shape, gradient) == 0)
