"""Networks under mixed precision: float32 variables and logits, gradients that are finite."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from checks import random

from keras_unigan.networks import SegANCritic, SegANSegmentor, UNet


@pytest.fixture(params=["mixed_bfloat16", "mixed_float16"])
def policy(request):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy(before)


@pytest.mark.parametrize(
    "make",
    [
        lambda: UNet(filters=4, levels=2),
        lambda: SegANSegmentor(filters=4),
        lambda: SegANSegmentor(filters=4, spatial_dims=3),
        lambda: SegANCritic(filters=(4, 8)),
        lambda: SegANCritic(filters=(4, 8), constraint="clip", spatial_dims=3),
    ],
)
def test_runs_in_half_precision(policy, make):
    network = make()
    image = random((2, *[16] * network.spatial_dims, 1))
    with tf.GradientTape() as tape:
        found = keras.tree.flatten(network(image, training=True))
        loss = sum(tf.reduce_mean(tf.cast(f, "float32") ** 2) for f in found)
    gradients = tape.gradient(loss, network.trainable_variables)
    assert {v.dtype for v in network.trainable_variables} == {"float32"}
    assert all(np.isfinite(g).all() for g in gradients)
    compute = policy.removeprefix("mixed_")
    assert compute in {layer.compute_dtype for layer in network.layers}
    last = "float32" if not isinstance(network, SegANCritic) else compute
    assert found[-1].dtype == last
