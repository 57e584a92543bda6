"""Renderer, mask generator and mask critic: house checks, parameters, anatomy, draws by seed."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from checks import check_network, parameters

from keras_unigan.networks.synthesis import (
    ImageRenderer,
    MaskCritic,
    MaskGenerator,
    anatomy,
    normals,
)

SEEDS = np.array([[3, 0], [4, 0]])


@pytest.mark.parametrize(
    ("strides", "shapes"),
    [
        (((2, 2), (2, 1)), [(2, 16, 16, 5), (1, 32, 8, 5)]),
        (((2, 2, 2), (2, 2, 1)), [(2, 8, 8, 4, 5), (1, 8, 8, 6, 5)]),
    ],
)
def test_renderer(strides, shapes, tmp_path):
    arguments = {"planes": 4, "channels": 2, "domains": 3, "latent": 5, "filters": 4}
    arguments |= {"strides": strides, "spatial_dims": len(strides[0])}
    flat = ("spatial_dims",) if len(strides[0]) == 2 else ()
    check = {key: value for key, value in arguments.items() if key not in flat}
    check_network(
        ImageRenderer, check, shapes, lambda shape: [(*shape[:-1], 2)], tmp_path, at_default=flat
    )


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_mask_generator(spatial_dims, tmp_path):
    patch = (16, 8, 4)[:spatial_dims]
    strides = [(2, 2, 2)[:spatial_dims], (2, 1, 1)[:spatial_dims]]
    arguments = {"planes": 4, "patch_size": patch, "overlapping": True, "latent": 5, "filters": 4}
    arguments |= {"strides": strides}
    flat = ("spatial_dims",) if spatial_dims == 2 else ()
    arguments |= {} if flat else {"spatial_dims": 3}
    check_network(
        MaskGenerator,
        arguments,
        [(2, 5), (3, 5)],
        lambda shape: [(shape[0], *patch, 4)],
        tmp_path,
        at_default=flat,
    )


def test_mask_critic(tmp_path):
    check_network(
        MaskCritic,
        {"planes": 4, "filters": 4, "layers": 2, "spatial_dims": 3},
        [(2, 16, 16, 4, 4), (1, 8, 8, 8, 4)],
        lambda shape: [(shape[0], *(side // 4 for side in shape[1:4]), 1)],
        tmp_path,
    )


def test_parameters():
    # MaskCritic: 4 x 4 kernels from 3 planes to 32, 64, 128 and 256, and a 3 x 3 kernel to 1.
    widths = (3, 32, 64, 128, 256)
    convs = sum(16 * a * b + b for a, b in itertools.pairwise(widths))
    assert parameters(MaskCritic()) == convs + 9 * 256 + 1 == 692_449
    # MaskGenerator: 128 numbers to 8 x 8 x 128; each level norms, then 3 x 3 to half the width.
    widths = (128, 128, 64, 32, 16)
    levels = sum(2 * a + 9 * a * b + b for a, b in itertools.pairwise(widths))
    dense = 129 * 8 * 8 * 128
    assert parameters(MaskGenerator()) == dense + levels + 9 * 16 * 3 + 3 == 1_302_371


def test_outside_of_the_body_there_is_nothing():
    network = ImageRenderer(planes=3, filters=4, strides=[(2, 2)])
    planes = np.zeros((2, 16, 16, 3), "float32")
    planes[:, 4:12, 4:12, 0] = planes[:, 4:12, 4:12, 2] = 1
    image = network.render(planes, [0, 1], SEEDS).numpy()
    inside = planes[..., 2] > 0
    assert (image[~inside] == -1).all()
    assert (image[inside] > -1).all()


def test_an_image_is_a_function_of_its_own_seed_and_modality():
    network = ImageRenderer(planes=3, filters=4, latent=4, strides=[(2, 2)])
    planes = np.random.default_rng(0).uniform(size=(2, 16, 16, 3)).astype("float32")
    planes[..., 2] = 1
    both = network.render(planes, [0, 1], SEEDS).numpy()
    alone = network.render(planes[1:], [1], SEEDS[1:]).numpy()
    np.testing.assert_allclose(both[1:], alone, atol=1e-6)
    for other in (
        network.render(planes[1:], [0], SEEDS[1:]),
        network.render(planes[1:], [1], [[5, 0]]),
    ):
        assert np.abs(other - alone).mean() > 1e-4


def test_draws_do_not_repeat_one_another():
    first = normals(SEEDS, (1000,), 1).numpy()
    np.testing.assert_array_equal(first, normals(SEEDS, (1000,), 1))
    assert (
        np.abs(np.corrcoef([*first, *normals(SEEDS, (1000,), 2).numpy()]) - np.eye(4)).max() < 0.2
    )
    assert abs(first.mean()) < 0.1
    assert first.std() == pytest.approx(1, abs=0.1)


def test_anatomy_fills_dark_voxels_and_drops_bright_ones():
    image = np.full((1, 20, 20, 1), -1.0, "float32")
    image[0, 5:15, 5:15] = 0.3
    image[0, 10, 10] = -1.0
    image[0, 1, 1] = 1.0
    target = np.zeros((1, 20, 20, 2), "float32")
    target[..., 1] = 1
    planes = anatomy(tf.constant(image), tf.constant(target)).numpy()
    assert planes.shape == (1, 20, 20, 3)
    np.testing.assert_array_equal(planes[..., :2], target)
    inside = planes[0, ..., 2]
    assert inside[10, 10] == 1
    assert inside[1, 1] == 0
    assert inside[5:15, 7:13].all()
    assert inside.sum() <= 100


def test_exclusive_planes_add_up_and_the_outside_is_background():
    network = MaskGenerator(planes=4, patch_size=(8, 8), latent=4, filters=2, strides=[(2, 2)])
    planes = network.sample(SEEDS).numpy()
    np.testing.assert_allclose(planes[..., :3].sum(-1), 1, atol=1e-6)
    # What is outside is background: no class can be.
    assert (planes[..., 1:3].sum(-1) <= planes[..., 3] + 1e-6).all()
    assert np.abs(planes[0] - planes[1]).max() > 0
    np.testing.assert_allclose(network.sample(SEEDS[1:]), planes[1:], atol=1e-6)


def test_a_patch_that_strides_do_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"Expected patch_size divisible by .*, got \(12, 10\)"):
        MaskGenerator(patch_size=(12, 10), strides=[(2, 2), (2, 2)])
