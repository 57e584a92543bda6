"""StarGANGenerator and StarGANDiscriminator: counts, shapes, round trips, golden values."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from checks import cheap_weights, check_network, golden, maps, parameters, random

from keras_unigan.networks import StarGANDiscriminator, StarGANGenerator


@pytest.mark.parametrize(
    ("channels", "domains", "count"),
    [
        (1, 2, 8_408_576),
        (1, 3, 8_411_712),
        (1, 4, 8_414_848),
        (3, 5, 8_430_528),
        (3, 8, 8_439_936),
    ],
)
def test_exact_parameter_count_of_the_generator(monkeypatch, channels, domains, count):
    cheap_weights(monkeypatch)
    # No biases; two numbers a channel for each norm. Down, six blocks, up, and the last 7x7.
    first = 49 * (channels + domains) * 64 + 128
    expected = first + 131_328 + 524_800 + 6 * 1_180_672 + 524_544 + 131_200 + 49 * 64 * channels
    assert parameters(StarGANGenerator(channels, domains)) == count == expected


@pytest.mark.parametrize(
    ("channels", "domains", "size", "options", "count"),
    [
        (1, 2, 128, {}, 44_735_424),
        (1, 2, 256, {}, 44_784_576),
        (1, 3, 128, {}, 44_743_616),
        (1, 3, 256, {}, 44_817_344),
        (1, 4, 128, {}, 44_751_808),
        (1, 4, 256, {}, 44_850_112),
        (3, 5, 128, {}, 44_762_048),
        (3, 5, 256, {}, 44_884_928),
        (3, 8, 128, {}, 44_786_624),
        (1, 3, 128, {"max_dim": 512}, 11_154_880),
    ],
)
def test_exact_parameter_count_of_the_discriminator(
    monkeypatch, channels, domains, size, options, count
):
    cheap_weights(monkeypatch)
    widths = [min(64 * 2**level, options.get("max_dim", 2048)) for level in range(6)]
    trunk = sum(16 * a * b + b for a, b in zip([channels, *widths], widths, strict=False))
    heads = 9 * widths[-1] + (size // 64) ** 2 * widths[-1] * domains
    network = StarGANDiscriminator(channels, domains, (size, size), **options)
    assert parameters(network) == count == trunk + heads


def test_exact_parameter_count_of_the_discriminator_in_3d(monkeypatch):
    cheap_weights(monkeypatch)
    network = StarGANDiscriminator(
        1, 4, (96, 128, 128), filters=32, layers=5, head_bias=True, spatial_dims=3
    )
    trunk = 2_080 + 131_136 + 524_416 + 2_097_408 + 8_389_120  # 64 taps and a bias
    heads = 27 * 512 + 1 + 3 * 4 * 4 * 512 * 4 + 4
    assert parameters(network) == 11_256_293 == trunk + heads


@pytest.mark.parametrize("size", [128, 256])
def test_maps(size):
    generator = StarGANGenerator(domains=3, filters=2)
    names = ["first_act", "down_1_act", "down_2_act", "block_5_sum", "up_1_act", "up_0_act"]
    half, quarter = size // 2, size // 4
    expected = [(size, size, 2), (half, half, 4), (quarter, quarter, 8), (quarter, quarter, 8)]
    expected += [(half, half, 4), (size, size, 2), (size, size, 1)]
    assert maps(generator, [*names, "translated"], size) == expected
    discriminator = StarGANDiscriminator(1, 3, (size, size), filters=2)
    names = [f"act_{level}" for level in range(6)]
    sides = [size // 2**level for level in range(1, 7)]
    last = sides[-1]
    assert maps(discriminator, [*names, "source", "logits"], size) == [
        *((side, side, 2 * 2**level) for level, side in enumerate(sides)),
        (last, last, 1),
        (3,),
    ]


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_generator(tmp_path, spatial_dims):
    check_network(
        StarGANGenerator,
        {
            **{"channels": 2, "domains": 3, "filters": 4, "blocks": 1},
            "strides": [[*[2] * (spatial_dims - 1), 1], [2] * spatial_dims],
            "spatial_dims": spatial_dims,
        },
        [(2, 8, 12, *[6] * (spatial_dims - 2), 2), (1, 8, *[8] * (spatial_dims - 1), 2)],
        lambda shape: [(*shape[:-1], 2)],
        tmp_path,
        at_default=("spatial_dims",) if spatial_dims == 2 else (),
    )


def test_two_strides_of_a_plan_count():
    strides = ((2, 2, 1), (2, 2, 1), (2, 2, 2))
    network = StarGANGenerator(filters=2, blocks=1, strides=strides, spatial_dims=3)
    names = ("first", "down_1", "down_2", "block_0_conv_0", "up_1", "up_0", "translated")
    found = [network.get_layer(name).kernel_size for name in names]
    # The coarse axis is halved further down only: up there nothing reaches along it.
    assert found == [(7, 7, 1), (4, 4, 1), (4, 4, 1), (3,) * 3, *[(4, 4, 1)] * 2, (7, 7, 1)]
    assert maps(network, ["block_0_sum", "translated"], 8) == [(2, 2, 8, 8), (8, 8, 8, 1)]
    one = StarGANGenerator(filters=2, blocks=1, strides=((2, 2),))
    assert maps(one, ["block_0_sum", "translated"], 8) == [(4, 4, 4), (8, 8, 1)]
    with pytest.raises(ValueError, match="Expected strides of at least one level, got none"):
        StarGANGenerator(strides=())


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("head", ["classify", "multi"])
def test_discriminator(tmp_path, spatial_dims, head):
    patch = [8, 12, 10][:spatial_dims]
    shapes = [(2, *patch, 2)] + ([(1, *[9] * spatial_dims, 2)] if head == "multi" else [])

    def outputs(shape):
        patches = (shape[0], *(side // 4 for side in shape[1:-1]))
        return [(*patches, 1), (shape[0], 3)] if head == "classify" else [(*patches, 3)]

    default = [name for name, is_it in (("head", head == "classify"),) if is_it]
    check_network(
        StarGANDiscriminator,
        {
            "channels": 2,
            "domains": 3,
            "patch_size": patch,
            "filters": 4,
            "layers": 2,
            "max_dim": 6,
            "head": head,
            "slope": 0.2,
            "first_slope": 0.001,
            "head_bias": True,
            "spatial_dims": spatial_dims,
        },
        shapes,
        outputs,
        tmp_path,
        at_default=(*default, *(("spatial_dims",) if spatial_dims == 2 else ())),
    )


@pytest.mark.parametrize(
    ("patch", "depth", "last"),
    [
        *(((128, 128), 6, (2, 2)), ((256, 256), 6, (4, 4)), ((80, 96), 5, (2, 3))),
        *(((9, 7), 1, (4, 3)), ((32, 6), 4, (2, 3)), ((64, 15), 5, (2, 3))),
    ],
)
def test_depth_follows_the_patch(patch, depth, last):
    network = StarGANDiscriminator(patch_size=patch, filters=2, max_dim=4)
    assert network.depth == network.get_config()["layers"] == depth
    found = network(np.zeros((1, *patch, 1), "float32"))
    assert [f.shape for f in found] == [(1, *last, 1), (1, 2)]


def test_a_thin_axis_is_halved_while_it_can_be():
    network = StarGANDiscriminator(patch_size=(32, 32, 6), filters=1, spatial_dims=3)
    layers = [network.get_layer(f"conv_{level}") for level in range(4)]
    assert [layer.strides for layer in layers] == [(2, 2, 2), *[(2, 2, 1)] * 3]
    assert [layer.kernel_size for layer in layers] == [(4, 4, 4), *[(4, 4, 3)] * 3]
    assert [m.shape for m in network(np.zeros((1, 32, 32, 6, 1)))] == [(1, 2, 2, 3, 1), (1, 2)]


def test_one_zero_on_each_side_of_even_and_odd_maps():
    for size in (8, 9):
        for head in ("classify", "multi"):
            network = StarGANDiscriminator(
                patch_size=(size, size), filters=1, layers=1, head=head, slope=1.0
            )
            kernel = random((4, 4))
            network.get_layer("conv_0").set_weights([kernel[..., None, None], np.zeros(1)])
            source = network.get_layer("source")
            identity = np.zeros(source.kernel.shape, "float32")
            identity[1, 1] = 1
            source.set_weights([identity])
            image = random((1, size, size, 1))
            padded = np.pad(image[0, ..., 0], 1)
            found = keras.tree.flatten(network(image))[0][0, ..., 0]
            side = size // 2
            expected = [
                [np.sum(padded[2 * i : 2 * i + 4, 2 * j : 2 * j + 4] * kernel) for j in range(side)]
                for i in range(side)
            ]
            np.testing.assert_allclose(found, expected, atol=1e-4)


def test_slopes():
    network = StarGANDiscriminator(patch_size=(16, 16), filters=2, slope=0.3, first_slope=0.1)
    slopes = [network.get_layer(f"act_{level}").negative_slope for level in range(3)]
    np.testing.assert_allclose(slopes, [0.1, 0.3, 0.3])
    assert StarGANDiscriminator(filters=1).get_layer("act_0").negative_slope == pytest.approx(0.01)


def test_translate_goes_by_the_target_alone():
    network = StarGANGenerator(domains=3, filters=4, blocks=1)
    network.set_weights([w + random(w.shape, i) for i, w in enumerate(network.get_weights())])
    image, target = random((3, 8, 12, 1)), np.array([2, 0, -1])
    code = network.code(np.array([0, 1, 2]), target)
    np.testing.assert_array_equal(code, [[0, 0, 1], [1, 0, 0], [0, 0, 0]])
    found = network.translate(image, np.array([1, 1, 1]), target)
    np.testing.assert_array_equal(found, network([tf.constant(image), code]))
    assert network.code_size == 3
    assert not hasattr(network, "segment")
    other = network.translate(image, np.array([1, 1, 1]), np.array([1, 1, 1]))
    assert np.abs(found - other).max() > 1e-3


def test_golden_values():
    found = golden(StarGANGenerator(domains=3, filters=4, blocks=1), (1, 8, 12, 1))
    np.testing.assert_allclose(found, [[-0.62347, -0.42891, 0.32566]], atol=1e-4)
    network = StarGANDiscriminator(domains=3, patch_size=(16, 24), filters=4, layers=2)
    expected = [[0.348, 0.13365, -0.23926], [0.57049, 0.57049, -0.03481]]
    np.testing.assert_allclose(golden(network, (1, 16, 24, 1)), expected, atol=1e-4)


def test_errors():
    with pytest.raises(ValueError, match='Expected head "classify" or "multi", got \'both\''):
        StarGANDiscriminator(head="both")
    with pytest.raises(ValueError, match=r"Expected patch_size of 3 axes, got \(128, 128\)"):
        StarGANDiscriminator(spatial_dims=3)
    with pytest.raises(ValueError, match=r"patch_size of 128 or more on each axis, got \(64,"):
        StarGANDiscriminator(patch_size=(64, 256), layers=7)
    with pytest.raises(ValueError, match=r"patch_size of 4 or more on each axis, got \(3, 9\)"):
        StarGANDiscriminator(patch_size=(3, 9))
