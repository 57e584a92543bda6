"""ResNetTranslator and PatchDiscriminator: counts, shapes, padding, round trips, golden values."""

import numpy as np
import pytest
import tensorflow as tf
from checks import cheap_weights, check_network, golden, maps, parameters, random

from keras_unigan.networks import PairTranslator, PatchDiscriminator, ResNetTranslator


@pytest.mark.parametrize(("classes", "count"), [(None, 11_365_633), (7, 11_384_455)])
def test_exact_parameter_count(monkeypatch, classes, count):
    cheap_weights(monkeypatch)
    # 7x7 to 64; 3x3 to 128 and 256; 18 convolutions of 256; back; 7x7 out. Biases everywhere.
    down = 3_200 + 73_856 + 295_168
    up = 295_040 + 73_792
    expected = down + 18 * 590_080 + up + (49 * 64 + 1) * (classes or 1)
    assert parameters(ResNetTranslator(classes=classes)) == count == expected


def test_exact_parameter_count_of_the_patch_discriminator(monkeypatch):
    cheap_weights(monkeypatch)
    expected = 1_088 + 131_200 + 524_544 + 2_097_664 + 8_193
    assert parameters(PatchDiscriminator()) == 2_762_689 == expected


@pytest.mark.parametrize("size", [128, 256])
def test_maps(size):
    names = ["first_act", "down_1_act", "down_2_act", "block_8_sum", "up_1_act", "outputs"]
    half, quarter = size // 2, size // 4
    assert maps(ResNetTranslator(filters=2), names, size) == [
        (size, size, 2),
        (half, half, 4),
        (quarter, quarter, 8),
        (quarter, quarter, 8),
        (half, half, 4),
        (size, size, 1),
    ]
    last = {128: 19, 256: 35}[size]
    assert maps(PatchDiscriminator(filters=2), ["patches"], size) == [(last, last, 1)]


def test_translator(tmp_path):
    check_network(
        ResNetTranslator,
        {"channels": 2, "classes": 3, "filters": 4, "blocks": 1},
        [(2, 12, 16, 2), (1, 16, 8, 2)],
        lambda shape: [(*shape[:-1], 3)],
        tmp_path,
        cancelled=("first/bias", "down_1/bias", "down_2/bias", "_conv_", "up_1/bias", "up_0/bias"),
    )


def test_patch_discriminator(tmp_path):
    def outputs(shape):
        sides = np.array(shape[1:-1])
        for _ in range(3):  # two zeros on each side of a 4-wide convolution: one more than half
            sides = sides // 2 + 1
        return [(shape[0], *(sides + 2), 1)]

    check_network(
        PatchDiscriminator,
        {"channels": 2, "filters": 4},
        [(2, 16, 24, 2), (1, 17, 9, 2)],
        outputs,
        tmp_path,
        cancelled=("conv_1/bias", "conv_2/bias", "conv_3/bias"),
    )


def test_an_image_stays_in_range_and_logits_do_not():
    image = random((1, 8, 8, 1))
    for classes, bound in ((None, 1), (1, np.inf)):
        network = ResNetTranslator(classes=classes, filters=2, blocks=0)
        network.set_weights([10 * w for w in network.get_weights()])
        network.get_layer("outputs").bias.assign([5.0])
        assert np.abs(network(image)).max() <= bound
    assert np.abs(network(image)).max() > 1


def test_up_is_the_mirror_image_of_down():
    # The transposed convolution is the gradient of the strided one, borders included.
    network = ResNetTranslator(filters=1, blocks=0)
    down, up = network.get_layer("down_1"), network.get_layer("up_0")
    pad, crop = network.get_layer("down_1_pad"), network.get_layer("up_0_crop")
    kernel = random((3, 3, 1, 2))
    for layer in (down, up):  # from one channel to two, and from two to one
        layer.set_weights([kernel, np.zeros(layer.bias.shape)])
    small, image = random((1, 4, 4, 2)), tf.Variable(random((1, 8, 8, 1)))
    with tf.GradientTape() as tape:
        projected = tf.reduce_sum(down(pad(image)) * small)
    np.testing.assert_allclose(crop(up(small)), tape.gradient(projected, image), atol=1e-5)


def test_golden_values():
    found = golden(ResNetTranslator(filters=4, blocks=1), (1, 8, 12, 1))
    np.testing.assert_allclose(found, [[0.79822, 0.75371, 0.89401]], atol=1e-4)
    found = golden(PatchDiscriminator(filters=4), (1, 8, 12, 1))
    np.testing.assert_allclose(found, [[0.84766, 0.95097, 0.4976]], atol=1e-4)


def test_the_name_is_the_one_given():
    assert ResNetTranslator(filters=2, blocks=1, name="other").name == "other"


# Two translators in one.


def test_pair_translator(tmp_path, monkeypatch):
    check_network(
        PairTranslator,
        {"channels": 2, "pair": (2, 0), "filters": 4, "blocks": 1},
        [(2, 12, 16, 2), (1, 16, 8, 2)],
        lambda shape: [shape, shape],
        tmp_path,
        cancelled=("first/bias", "down_1/bias", "down_2/bias", "_conv_", "up_1/bias", "up_0/bias"),
    )
    paths = [v.path for v in PairTranslator(filters=2, blocks=1).weights]
    assert len(set(paths)) == len(paths)
    cheap_weights(monkeypatch)
    assert parameters(PairTranslator()) == 2 * 11_365_633


def test_a_pair_serves_two_modalities_and_says_nothing_of_a_third():
    network = PairTranslator(pair=(2, 0), filters=2, blocks=0)
    image = random((6, 8, 8, 1))
    forth, back = network(image)
    found = network.translate(image, np.array([2, 0, -1, 0, 1, 2]), np.array([0, 2, 0, 0, 0, 1]))
    found = found.numpy()
    np.testing.assert_allclose(found[[0, 2]], forth.numpy()[[0, 2]], atol=1e-6)
    np.testing.assert_allclose(found[1], back.numpy()[1], atol=1e-6)
    np.testing.assert_array_equal(found[3], image[3])
    assert np.isnan(found[4:]).all()


@pytest.mark.parametrize("pair", [(0,), (1, 1), (-1, 0)])
def test_a_pair_is_of_two_modalities(pair):
    with pytest.raises(ValueError, match="Expected a pair of two modalities"):
        PairTranslator(pair=pair)
