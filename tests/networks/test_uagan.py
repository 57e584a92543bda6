"""UAGANGenerator: counts, shapes, attention between the streams, round trips, golden values."""

import numpy as np
import pytest
import tensorflow as tf
from checks import cheap_weights, check_network, golden, maps, parameters, random

from keras_unigan.networks import UAGANGenerator


@pytest.mark.parametrize(("domains", "count"), [(2, 60_442_179), (3, 60_442_755), (4, 60_443_331)])
def test_exact_parameter_count(monkeypatch, domains, count):
    cheap_weights(monkeypatch)
    encoder = 221_440 + 885_248 + 3_539_968  # behind the first block
    segmentation = 37_568 + encoder
    translation = 37_568 + 9 * 64 * domains + encoder
    decoder = 13_896_192 + 3_474_688 + 868_992 + 217_408
    expected = segmentation + translation + 14_157_824 + 2 * decoder + 130 + 65
    network = UAGANGenerator(domains=domains)
    assert parameters(network) == count == expected

    def part(*names):
        return sum(
            int(np.prod(v.shape))
            for v in network.trainable_variables
            if any(name in v.path for name in names)
        )

    assert part("segmentation_encoder") == 4_684_224
    assert part("translation_encoder") == translation
    assert part("centre") == 14_157_824
    assert part("segmentation_decoder", "logits") == 18_457_410
    assert part("translation_decoder", "translated") == 18_457_345


def test_maps():
    network = UAGANGenerator(domains=3, filters=2)
    names = [
        f"{task}_{coder}_{level}_act_1"
        for task in ("segmentation", "translation")
        for coder in ("encoder", "decoder")
        for level in range(4)
    ]
    for size in (128, 256):
        expected = [(size // 2**level,) * 2 + (2 * 2**level,) for level in range(4)] * 4
        expected += [(size // 16, size // 16, 16), (size, size, 2), (size, size, 1)]
        others = ["segmentation_encoder_3_pool", "logits", "translated"]
        assert maps(network, [*names, *others], size) == expected


def test_network(tmp_path):
    check_network(
        UAGANGenerator,
        {
            "channels": 2,
            "classes": 3,
            "domains": 3,
            "filters": 4,
            "levels": 2,
            "dropout": 0.25,
        },
        [(2, 8, 12, 2), (1, 12, 8, 2)],
        lambda shape: [(*shape[:-1], 3), (*shape[:-1], 2)],
        tmp_path,
        cancelled=("_conv_0/bias", "_conv_1/bias", "centre_conv", "_message/bias"),
    )


def test_both_streams_share_the_centre_and_hear_each_other():
    network = UAGANGenerator(filters=2, levels=1)
    assert len([v for v in network.trainable_variables if "centre" in v.path]) == 4
    image = tf.constant(random((1, 8, 8, 1)))
    codes = [tf.constant([row], tf.float32) for row in ([1, 0], [0, 1])]
    logits = [network([image, code])[0] for code in codes]
    # The code reaches the logits through the attention alone.
    assert np.abs(logits[0] - logits[1]).max() > 1e-4
    gate = network.get_layer("segmentation_decoder_0_gate")
    kernel, bias = gate.get_weights()
    gate.set_weights([0 * kernel, bias - 100])
    logits = [network([image, code])[0] for code in codes]
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-5)


def test_only_the_deepest_skip_is_dropped():
    network = UAGANGenerator(filters=2, levels=2)
    dropouts = [layer for layer in network.layers if "dropout" in layer.name]
    names = {layer.name for layer in dropouts}
    assert names == {f"{t}_encoder_1_dropout" for t in ("segmentation", "translation")}
    pooled = network.get_layer("segmentation_encoder_1_pool").input
    assert pooled is network.get_layer("segmentation_encoder_1_act_1").output
    assert all(layer.rate == 0.5 for layer in dropouts)


def test_methods_are_calls_with_their_code():
    network = UAGANGenerator(domains=3, filters=2, levels=2)
    image, source, target = random((3, 8, 12, 1)), np.array([0, 1, -1]), np.array([1, -1, 2])
    code = network.code(source, target)
    np.testing.assert_array_equal(code, [[0, 1, 0], [0, 0, 0], [0, 0, 1]])
    found = network.translate(image, source, target)
    np.testing.assert_array_equal(found, network([tf.constant(image), code])[1])
    own = network([tf.constant(image), network.code(source, source)])
    np.testing.assert_array_equal(network.segment(image, source), own[0])
    assert network.code_size == 3


def test_the_image_is_linear():
    network = UAGANGenerator(filters=2, levels=1)
    network.get_layer("translated").set_weights([np.zeros((1, 1, 2, 1)), np.full(1, 7.0)])
    image = random((1, 8, 8, 1))
    assert (network.translate(image, np.array([0]), np.array([1])).numpy() == 7).all()


def test_golden_values():
    found = golden(UAGANGenerator(domains=3, filters=4, levels=2), (1, 8, 12, 1))
    expected = [[0.61144, 0.77789, 0.8423], [0.59696, -0.98839, 0.43239]]
    np.testing.assert_allclose(found, expected, atol=1e-4)
