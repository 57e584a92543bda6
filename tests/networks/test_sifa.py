"""SIFANetwork, its discriminator and SynSegNetwork: exact counts, shapes, round trips."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from checks import cheap_weights, check_network, parameters

from keras_unigan.networks import (
    PatchDiscriminator,
    SIFADiscriminator,
    SIFANetwork,
    SynSegNetwork,
)

# Biases that a norm takes out again.
INSTANCE = tuple(
    f"{name}/bias"
    for name in ("first", "down_1", "down_2", "_conv_0", "_conv_1", "up_2", "up_1", "up_0")
)


def test_exact_parameter_counts_of_the_reference(monkeypatch):
    cheap_weights(monkeypatch)
    zeros = lambda self, shape, dtype=None: tf.zeros(shape, dtype)  # noqa: E731
    monkeypatch.setattr(keras.initializers.TruncatedNormal, "__call__", zeros)
    network = SIFANetwork(classes=5)
    each = [parameters(network.get_layer(n)) for n in ("forth", "labels", "decoder")]
    # The heads have 512 weights a class at either depth.
    assert each == [2_849_537, 27_519_472 + 2 * 512 * 5, 1_902_848]
    judges = [SIFADiscriminator(scores=2), SIFADiscriminator(), *(SIFADiscriminator(5),) * 2]
    counts = [parameters(judge) for judge in judges]
    assert counts == [2_771_712, 2_763_520, 2_767_616, 2_767_616]
    assert parameters(network) + sum(counts) == 43_347_441
    synseg = parameters(SynSegNetwork())
    assert synseg == 3 * 11_365_633 + 49 * 64 + 1
    assert synseg + 2 * parameters(PatchDiscriminator()) == 39_625_414


@pytest.mark.slow
def test_sifa_network(tmp_path):
    check_network(
        SIFANetwork,
        {"channels": 2, "classes": 3, "pair": (2, 0), "filters": 2, "dropout": 0.0},
        [(2, 16, 24, 2), (1, 8, 16, 2)],
        lambda s: [(*s[:-1], 3), (*s[:-1], 3), s, s],
        tmp_path,
        cancelled=INSTANCE,
    )


def test_synseg_network(tmp_path):
    check_network(
        SynSegNetwork,
        {"channels": 2, "classes": 3, "pair": (2, 0), "filters": 2, "blocks": 1},
        [(2, 12, 16, 2), (1, 16, 8, 2)],
        lambda s: [(*s[:-1], 3), s, s],
        tmp_path,
        cancelled=INSTANCE,
    )
    paths = [v.path for v in SynSegNetwork(filters=2, blocks=1).weights]
    assert len(set(paths)) == len(paths)


def test_sifa_discriminator(tmp_path):
    def outputs(shape):
        sides = np.array(shape[1:-1])
        for _ in range(3):
            sides = sides // 2 + 1
        return [(shape[0], *(sides + 2), 2)]

    arguments = {"channels": 2, "scores": 2, "filters": 4}
    check_network(SIFADiscriminator, arguments, [(2, 16, 24, 2), (1, 17, 9, 2)], outputs, tmp_path)


def test_it_translates_both_ways():
    network = SIFANetwork(pair=(1, 0), filters=2)
    image = np.linspace(-1, 1, 64, dtype="float32").reshape(1, 8, 8, 1).repeat(3, 0)
    found = network.translate(image, np.array([1, 0, 0]), np.array([0, 1, 0])).numpy()
    np.testing.assert_allclose(found[0], network.forth(image)[0], atol=1e-5)
    np.testing.assert_allclose(found[1], network.back(image)[0], atol=1e-5)
    np.testing.assert_array_equal(found[2], image[2])
    assert np.abs(found).max() <= 1
