"""CompactDilatedNet: exact counts, norms of each modality, round trips."""

import numpy as np
import pytest
import tensorflow as tf
from checks import cheap_weights, check_network, feed, parameters, random, two_replicas

from keras_unigan.networks import CompactDilatedNet
from keras_unigan.networks.ummkd import DepthToSpace, ModalBatchNorm


@pytest.mark.parametrize("domains", [1, 2])
def test_exact_parameter_count(monkeypatch, domains):
    cheap_weights(monkeypatch)
    network = CompactDilatedNet(channels=3, classes=5, domains=domains)
    assert parameters(network) == 39_302_456 + 20_192 * domains
    kernels = sum(int(np.prod(v.shape)) for v in network.trainable_variables if len(v.shape) > 2)
    assert kernels == 39_302_456


@pytest.mark.slow
def test_network(tmp_path):
    check_network(
        CompactDilatedNet,
        {"channels": 2, "classes": 3, "domains": 2, "filters": 2, "dropout": 0.0},
        [(2, 16, 24, 2), (1, 8, 16, 2)],
        lambda shape: [(*shape[:-1], 3)],
        tmp_path,
    )


def by_hand(x):
    mean, variance = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
    return (x - mean) / np.sqrt(variance + 1e-5), mean, variance


def test_statistics_are_those_of_a_modality():
    layer, x = ModalBatchNorm(), random((4, 3, 5, 2))
    x[1:] *= 3.0
    code = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0]], "float32")
    found = layer([x, code], training=True).numpy()
    for modality, own in ((0, [0, 2]), (1, [1, 3])):
        expected, mean, variance = by_hand(x[own])
        np.testing.assert_allclose(found[own], expected, atol=1e-5)
        np.testing.assert_allclose(layer.moving_mean[modality], 0.1 * mean, atol=1e-5)
        np.testing.assert_allclose(layer.moving_variance[modality], 0.9 + 0.1 * variance, rtol=1e-5)
    # A modality that was not there keeps what it had.
    np.testing.assert_array_equal(layer.moving_mean[2], [0, 0])
    np.testing.assert_array_equal(layer.moving_variance[2], [1, 1])
    still = layer([x, code], training=False).numpy()
    mean, variance = np.array(layer.moving_mean)[1], np.array(layer.moving_variance)[1]
    np.testing.assert_allclose(still[3], (x[3] - mean) / np.sqrt(variance + 1e-5), atol=1e-5)


def test_replicas_share_the_statistics():
    x = random((4, 3, 3, 2))
    code = np.array([[1, 0], [1, 0], [1, 0], [0, 1]], "float32")
    single = ModalBatchNorm()
    expected = single([x, code], training=True).numpy()
    strategy = two_replicas()
    with strategy.scope():
        layer = ModalBatchNorm()
        layer.build([x.shape, code.shape])
    parts = [
        strategy.experimental_distribute_values_from_function(
            lambda context, whole=whole: tf.constant(
                np.split(whole, 2)[context.replica_id_in_sync_group]
            )
        )
        for whole in (x, code)
    ]
    run = tf.function(lambda *given: strategy.run(lambda a, c: layer([a, c], training=True), given))
    found = np.concatenate([part.numpy() for part in run(*parts).values])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(layer.moving_mean.numpy(), single.moving_mean.numpy(), atol=1e-6)


def test_depth_to_space():
    x = np.arange(16, dtype="float32").reshape(1, 1, 2, 8)
    found = DepthToSpace(2)(x).numpy()
    np.testing.assert_array_equal(found[0, :, :, 0], [[0, 2, 8, 10], [4, 6, 12, 14]])
    assert found.shape == DepthToSpace(2).compute_output_shape(x.shape)


def test_an_unknown_modality_mixes_the_norms():
    network = CompactDilatedNet(domains=2, filters=2, dropout=0.0)
    image = feed(network, (1, 8, 8, 1))[0]
    same = [network.segment(image, [n]).numpy() for n in (0, 1, -1)]
    np.testing.assert_allclose(same[1:], same[:1] * 2, atol=1e-5)
    mean = next(w for w in network.weights if w.path.endswith("last_1_norm/moving_mean"))
    mean.assign(np.stack([np.zeros(64), np.ones(64)]))
    other = [network.segment(image, [n]).numpy() for n in (0, 1, -1)]
    np.testing.assert_allclose(other[0], same[0], atol=1e-5)
    assert np.abs(other[1] - same[1]).max() > 1e-3
    assert np.abs(other[2] - other[1]).max() > 1e-3
