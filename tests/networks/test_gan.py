"""PairGenerator and PairDiscriminator: exact counts, shapes, round trips."""

import numpy as np
import pytest
from checks import cheap_weights, check_network, parameters

from keras_unigan.networks import PairDiscriminator, PairGenerator


def test_exact_parameter_count(monkeypatch):
    cheap_weights(monkeypatch)
    widths = [64, 128, 256, 512, 512]  # the finest first
    first = (128 + 3) * 8 * 8 * 512 + 2 * 512
    ups = sum(16 * a * b + 2 * b for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True))
    heads = (9 * 64 + 1) * (1 + 2)
    assert parameters(PairGenerator(domains=3)) == 11_244_099 == first + ups + heads
    # Image, two masks and three planes of the modality; then one logit of the last map.
    downs = sum(16 * a * b + b for a, b in zip([1 + 2 + 3, *widths[:3]], widths[:4], strict=True))
    last = 8 * 8 * 512 + 1
    assert parameters(PairDiscriminator(3, domains=3)) == 2_792_385 == downs + last


@pytest.mark.parametrize("spatial_dims", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_generator(tmp_path, spatial_dims):
    strides = ((2,) * spatial_dims, (2, 1, 2)[:spatial_dims])
    patch = (8, 6, 4)[:spatial_dims]
    arguments = {
        "channels": 2,
        "classes": 3,
        "domains": 2,
        "patch_size": patch,
        "latent": 5,
        "filters": 4,
        "strides": strides,
        "spatial_dims": spatial_dims,
    }
    check_network(
        PairGenerator,
        arguments,
        [(4, 5), (2, 5)],
        lambda shape: [(shape[0], *patch, n) for n in (2, 3)],
        tmp_path,
        at_default=("spatial_dims",),
    )


def test_discriminator(tmp_path):
    arguments = {
        "channels": 2,
        "domains": 2,
        "patch_size": (8, 8, 4),
        "filters": 4,
        "strides": ((2, 2, 1), (2, 2, 2)),
        "spatial_dims": 3,
    }
    outputs = lambda shape: [(shape[0], 1)]  # noqa: E731
    check_network(
        PairDiscriminator, arguments, [(2, 8, 8, 4, 2), (1, 8, 8, 4, 2)], outputs, tmp_path
    )


def test_the_same_seeds_give_the_same_pair():
    network = PairGenerator(domains=2, patch_size=(8, 8), filters=2, strides=((2, 2),))
    network.set_weights([w + 0.1 for w in network.get_weights()])
    seeds = np.array([[1, 2], [3, 4], [1, 2]])
    image, logits = network.sample(seeds, [0, 0, 0])
    alone, own = network.sample(seeds[2:], [0])
    np.testing.assert_allclose(image[0], alone[0], atol=1e-6)
    np.testing.assert_allclose(logits[2], own[0], atol=1e-6)
    assert np.abs(image[0] - image[1]).max() > 1e-4
    other, _ = network.sample(seeds, [1, 0, 0])
    assert np.abs(image[0] - other[0]).max() > 1e-4
    assert np.abs(image).max() <= 1


def test_a_patch_that_cannot_be_halved_is_named():
    with pytest.raises(ValueError, match="Expected a patch of 2 axes"):
        PairGenerator(patch_size=(20, 16))
    with pytest.raises(ValueError, match="Expected a patch of 2 axes"):
        PairDiscriminator(patch_size=(16, 16, 16), strides=((2, 2),))
