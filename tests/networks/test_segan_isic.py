"""SegAN, skin-lesion form: counts, shapes, round trips, golden values."""

import numpy as np
import pytest
import tensorflow as tf
from checks import cheap_weights, check_network, golden, maps, parameters, random

from keras_unigan.networks import SegANISICCritic, SegANISICSegmentor
from keras_unigan.networks.segan_isic import ResizeLike


def residual(width):
    """1x1 to twice the width, 3x3, 1x1 back; no biases."""
    return 40 * width * width


def large(kernel, inputs, width):
    """Two pairs of separable convolutions with biases, and batch norm."""
    return 2 * (kernel * inputs * width + kernel * width * width + 2 * width) + 2 * width


def plain(kernel, inputs, width):
    """One convolution without biases, and batch norm."""
    return kernel**2 * inputs * width + 2 * width


def test_exact_parameter_count(monkeypatch):
    cheap_weights(monkeypatch)
    encoder = plain(5, 64, 128) + plain(5, 128, 256) + plain(5, 256, 512) + plain(5, 512, 512)
    encoder += sum(residual(w) for w in (64, 128, 256, 512, 512))
    encoder += plain(4, 512, 1024) + plain(1, 1024, 1024) + plain(3, 1024, 2048)
    encoder += plain(1, 2048, 512)
    decoder = plain(1, 512, 2048) + plain(3, 4096, 1024) + plain(1, 1024, 1024)
    decoder += plain(3, 2048, 512) + large(7, 1024, 512) + large(7, 1024, 256)
    decoder += large(9, 512, 128) + large(9, 256, 64) + large(11, 128, 64)
    decoder += sum(residual(w) for w in (512, 512, 256, 128, 64, 64)) + 25 * 64
    for channels, count in ((3, 156_235_264), (1, 156_228_992)):
        assert 49 * channels * 64 + encoder + decoder == count
    # Built once only, being large.
    assert parameters(SegANISICSegmentor(3)) == 156_235_264


@pytest.mark.parametrize(("channels", "count"), [(3, 9_393_088), (1, 9_386_816)])
def test_exact_parameter_count_of_the_critic(monkeypatch, channels, count):
    cheap_weights(monkeypatch)
    expected = 49 * channels * 64 + plain(5, 64, 128) + plain(4, 128, 256) + plain(4, 256, 512)
    expected += plain(4, 512, 512) + plain(3, 512, 512)
    assert parameters(SegANISICCritic(channels)) == count == expected


def test_maps():
    segmentor, critic = SegANISICSegmentor(filters=2), SegANISICCritic(filters=2)
    names = [f"{way}_{level}_act" for way in ("down", "up") for level in range(8)]
    widths = [2, 4, 8, 16, 16, 32, 64, 16, 2, 2, 4, 8, 16, 16, 32, 64, 1]
    for size in (128, 256):
        down = [size // 2**level for level in range(1, 8)]
        sides = [*down, down[-1], size, *down, size]
        expected = [(s, s, w) for s, w in zip(sides, widths, strict=True)]
        assert maps(segmentor, [*names, "logits"], size) == expected
        found = maps(critic, [f"act_{level}" for level in range(6)], size)
        assert found == [(s, s, w) for s, w in zip(down, [2, 4, 8, 16, 16, 16], strict=False)]


def test_segmentor(tmp_path):
    check_network(
        SegANISICSegmentor,
        {"channels": 2, "classes": 3, "filters": 2},
        [(3, 64, 48, 2), (1, 33, 61, 2)],
        lambda shape: [(*shape[:-1], 3)],
        tmp_path,
        cancelled=("_0_1/bias", "_1_1/bias", "_0_0/bias", "_1_0/bias"),
    )


@pytest.mark.parametrize("constraint", ["clip", "spectral"])
def test_critic(tmp_path, constraint):
    def pyramid(shape):
        sides, found = shape[1:-1], [shape]
        for width, kernel in ((2, 7), (4, 5), (8, 4), (16, 4), (16, 4), (16, 3)):
            sides = tuple(side // 2 if kernel == 4 else -(-side // 2) for side in sides)
            found.append((shape[0], *sides, width))
        return found

    check_network(
        SegANISICCritic,
        {"channels": 2, "filters": 2, "constraint": constraint},
        [(2, 64, 48, 2), (1, 33, 61, 2)],
        pyramid,
        tmp_path,
        at_default=("constraint",) if constraint == "clip" else (),
    )


def test_resize_to_the_size_of_another_map():
    small, like = random((2, 3, 5, 2)), random((2, 7, 9, 4))
    found = ResizeLike()([small, like])
    np.testing.assert_allclose(found, tf.image.resize(small, (7, 9)), atol=1e-6)


def test_golden_values():
    found = golden(SegANISICSegmentor(filters=2), (1, 64, 64, 1))
    np.testing.assert_allclose(found, [[0.58775, 1.09192, -0.54179]], atol=1e-4)
    found = golden(SegANISICCritic(filters=2), (1, 64, 64, 1))[1:]
    expected = [[0.31486, 0.12437, -0.10428], [1.05303, 1.01667, -0.09111]]
    expected += [[0.67771, 0.66368, 0.6493], [0.51387, 0.49323, 0.07629]]
    expected += [[-0.00452, 0.01133, 0.10126], [-0.03097, -0.03097, 0.10821]]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_unknown_constraint():
    with pytest.raises(ValueError, match='Expected constraint "spectral" or "clip", got \'none\''):
        SegANISICCritic(constraint="none")
