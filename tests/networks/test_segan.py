"""SegANSegmentor and SegANCritic: counts, shapes, round trips, golden values."""

import keras
import numpy as np
import pytest
from checks import cheap_weights, check_network, golden, maps, parameters, random

from keras_unigan.networks import NETWORKS, SegANCritic, SegANScalarCritic, SegANSegmentor
from keras_unigan.networks.segan import LinearUpSampling


@pytest.mark.parametrize(
    ("channels", "classes", "count"), [(1, 1, 4_674_369), (3, 3, 4_678_723), (1, 3, 4_676_675)]
)
def test_exact_parameter_count_of_the_segmentor(monkeypatch, channels, classes, count):
    cheap_weights(monkeypatch)
    # Down: 4x4 convolution to 64 with bias (1,088 for one channel), then 64 -> 128 -> 256 -> 512
    # without bias and with batch norm's two numbers a channel: 131,328 + 524,800 + 2,098,176. Up:
    # 512 -> 256, 512 -> 128, 256 -> 64: 1,180,160 + 590,080 + 147,584. Out: 3x3 from 128 with bias.
    down = 16 * channels * 64 + 64 + 131_328 + 524_800 + 2_098_176
    up = 1_180_160 + 590_080 + 147_584
    expected = down + up + 9 * 128 * classes + classes
    assert parameters(SegANSegmentor(channels, classes)) == count == expected


@pytest.mark.parametrize(
    ("channels", "constraint", "count"),
    [
        # 16 * channels * 64 + 64, then 131,072 + 256 and 524,288 + 512 with batch norm.
        (1, "clip", 657_216),
        (3, "clip", 659_264),
        # No batch norm, biases everywhere: 131,072 + 128 and 524,288 + 256.
        (1, "spectral", 656_832),
        (2, "spectral", 657_856),
    ],
)
def test_exact_parameter_count_of_the_critic(monkeypatch, channels, constraint, count):
    cheap_weights(monkeypatch)
    extra = 256 + 512 if constraint == "clip" else 128 + 256
    assert 16 * channels * 64 + 64 + 131_072 + 524_288 + extra == count
    assert parameters(SegANCritic(channels, constraint=constraint)) == count


@pytest.mark.parametrize("strides", [None, ((2, 1), (2, 2)), ((2, 2, 1), (2, 2, 2))])
def test_segmentor(tmp_path, strides):
    spatial_dims = 2 if strides is None else len(strides[0])
    options = {"channels": 2, "classes": 3, "filters": 4, "spatial_dims": spatial_dims}
    default = ("spatial_dims",) if spatial_dims == 2 else ()
    if strides is None:
        default += ("strides",)
        expected = [[2, 2]] * 4
        inputs = [(2, 16, 32, 2), (1, 32, 16, 2)]
    else:
        expected = options["strides"] = [list(stride) for stride in strides]
        inputs = [(2, 8, *[6] * (spatial_dims - 1), 2), (1, 4, *[2] * (spatial_dims - 1), 2)]
        inputs = [(*shape[:2], *[4 * s for s in shape[2:-1]], 2) for shape in inputs]
    assert SegANSegmentor(**options).get_config()["strides"] == expected
    outputs = lambda shape: [(*shape[:-1], 3)]  # noqa: E731
    check_network(SegANSegmentor, options, inputs, outputs, tmp_path, at_default=default)


def test_nothing_reaches_along_a_coarse_axis_before_it_is_halved():
    strides = ((2, 2, 1), (2, 2, 2))
    segmentor = SegANSegmentor(filters=2, strides=strides, spatial_dims=3)
    found = {n: segmentor.get_layer(n).kernel_size for n in ("down_0", "down_1", "up_0", "logits")}
    assert found == {
        "down_0": (4, 4, 1),
        "down_1": (4, 4, 4),
        "up_0": (3,) * 3,
        "logits": (3, 3, 1),
    }
    critic = SegANCritic(1, (2, 2, 2), "clip", strides, spatial_dims=3)
    layers = [critic.get_layer(f"conv_{level}") for level in range(3)]
    assert [layer.kernel_size for layer in layers] == [(4, 4, 1), (4, 4, 4), (4, 4, 4)]
    assert [layer.strides for layer in layers] == [*strides, (2, 2, 2)]
    # Slices do not know of each other behind the first convolution.
    image = random((1, 8, 8, 4, 1))
    alone = np.concatenate([critic(image[:, :, :, z : z + 1])[1] for z in range(4)], axis=3)
    np.testing.assert_allclose(critic(image)[1], alone, atol=1e-5)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("constraint", ["spectral", "clip"])
def test_critic(tmp_path, spatial_dims, constraint):
    # The second convolution is beyond the strides, and halves every axis.
    strides = None if constraint == "spectral" else [[*[2] * (spatial_dims - 1), 1]]

    def pyramid(shape):
        halved = [tuple(side // 2**level for side in shape[1:-1]) for level in range(3)]
        if strides is not None:
            last = [shape[-2], shape[-2], shape[-2] // 2]
            halved = [(*h[:-1], side) for h, side in zip(halved, last, strict=True)]
        widths = (2, 4, 6) if constraint == "spectral" else (2, 8, 12)
        return [(shape[0], *h, c) for h, c in zip(halved, widths, strict=True)]

    default = ("constraint", "groups", "strides") if constraint == "spectral" else ()
    check_network(
        SegANCritic,
        {
            "channels": 2,
            "filters": [4, 6],
            "constraint": constraint,
            "strides": strides,
            "spatial_dims": spatial_dims,
            "groups": 1 if constraint == "spectral" else 2,
        },
        [(2, 8, 12, *[4] * (spatial_dims - 2), 2), (1, 4, *[8] * (spatial_dims - 1), 2)],
        pyramid,
        tmp_path,
        at_default=default + (("spatial_dims",) if spatial_dims == 2 else ()),
    )


def test_critic_hands_back_its_input_and_pads_one_on_each_side():
    critic = SegANCritic(1, (4,))
    image = random((1, 8, 8, 1))
    np.testing.assert_array_equal(critic(image)[0], image)
    kernel, bias = critic.get_layer("spectral_0").layer.get_weights()
    padded = np.pad(image[0, ..., 0], 1)
    corner = np.einsum("ij,ijf->f", padded[:4, :4], kernel[:, :, 0]) + bias
    last = np.einsum("ij,ijf->f", padded[6:, 6:], kernel[:, :, 0]) + bias
    features = np.asarray(critic(image)[1])
    np.testing.assert_allclose(features[0, 0, 0], np.where(corner > 0, corner, 0.2 * corner), 1e-5)
    np.testing.assert_allclose(features[0, -1, -1], np.where(last > 0, last, 0.2 * last), 1e-5)


def test_spectral_norm_of_every_kernel_approaches_one():
    keras.utils.set_random_seed(2)
    critic = SegANCritic(1, (8, 8))
    image = random((1, 8, 8, 1))
    for _ in range(60):
        critic(image, training=True)
    for level in range(2):
        kernel = np.asarray(critic.get_layer(f"spectral_{level}").layer.kernel)
        norm = np.linalg.svd(kernel.reshape(-1, 8), compute_uv=False)[0]
        assert norm == pytest.approx(1.0, abs=1e-2)


@pytest.mark.parametrize("constraint", ["spectral", "clip"])
def test_groups_are_critics_side_by_side(constraint):
    arguments = {"filters": (4, 6), "constraint": constraint}
    both = SegANCritic(4, groups=2, **arguments)
    assert parameters(both) == 2 * parameters(SegANCritic(2, **arguments))
    image = random((2, 8, 8, 4))
    for group in range(2):
        alone = SegANCritic(2, **arguments)
        for layer in alone.layers:
            if layer.weights:
                layer.set_weights(both.get_layer(f"{layer.name}_{group}").get_weights())
        share = image[..., 2 * group : 2 * group + 2]
        for level, (found, expected) in enumerate(zip(both(image), alone(share), strict=True)):
            width = (2, 4, 6)[level]
            np.testing.assert_allclose(
                found[..., group * width : (group + 1) * width], expected, atol=1e-6
            )


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("constraint", ["spectral", "clip"])
def test_scalar_critic(tmp_path, spatial_dims, constraint):
    default = ("constraint", "strides") if constraint == "spectral" else ()
    check_network(
        SegANScalarCritic,
        {
            "channels": 2,
            "filters": [4, 6],
            "constraint": constraint,
            "strides": None if default else [[*[2] * (spatial_dims - 1), 1]],
            "spatial_dims": spatial_dims,
        },
        [(2, 8, 12, *[4] * (spatial_dims - 2), 2), (1, 4, *[8] * (spatial_dims - 1), 2)],
        lambda shape: [(shape[0], 1)],
        tmp_path,
        at_default=default + (("spatial_dims",) if spatial_dims == 2 else ()),
    )


def test_scalar_critic_is_the_trunk_with_one_logit():
    for constraint, count in (("spectral", 656_832), ("clip", 657_216)):
        assert parameters(SegANScalarCritic(constraint=constraint)) == count + 256 + 1


@pytest.mark.parametrize("size", [128, 256])
def test_maps(size):
    segmentor = SegANSegmentor(filters=2)
    names = [f"down_{level}_act" for level in range(4)]
    names += [f"up_{level}_act" for level in (2, 1, 0)] + ["logits"]
    sides = [size // 2, size // 4, size // 8, size // 16, size // 8, size // 4, size // 2, size]
    widths = [2, 4, 8, 16, 8, 4, 2, 1]
    assert maps(segmentor, names, size) == [(s, s, w) for s, w in zip(sides, widths, strict=True)]
    found = maps(SegANCritic(filters=(2, 4, 8)), [f"act_{level}" for level in range(3)], size)
    assert found == [(s, s, w) for s, w in zip(sides[:3], (2, 4, 8), strict=True)]


def test_errors():
    for critic in (SegANCritic, SegANScalarCritic):
        with pytest.raises(ValueError, match='constraint "spectral" or "clip", got \'none\''):
            critic(constraint="none")
    with pytest.raises(ValueError, match="Expected channels divisible by groups=2, got 3"):
        SegANCritic(3, groups=2)
    with pytest.raises(ValueError, match="Expected strides of at least one level, got none"):
        SegANSegmentor(strides=())


def test_linear_up_sampling_is_bilinear_in_2d():
    image = random((2, 5, 7, 3))
    expected = keras.layers.UpSampling2D(2, interpolation="bilinear")(image)
    np.testing.assert_allclose(LinearUpSampling()(image), expected, atol=1e-6)


def test_linear_up_sampling_in_3d_is_three_times_linear():
    def double(array, axis):
        size = array.shape[axis]
        before = array.take([0, *range(size - 1)], axis)
        after = array.take([*range(1, size), size - 1], axis)
        pair = np.stack([0.75 * array + 0.25 * before, 0.75 * array + 0.25 * after], axis + 1)
        shape = list(array.shape)
        shape[axis] *= 2
        return pair.reshape(shape)

    image = expected = random((2, 3, 4, 5, 2))
    for axis in (1, 2, 3):
        expected = double(expected, axis)
    found = LinearUpSampling()(image)
    assert found.shape == (2, 6, 8, 10, 2)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    # Along some axes only.
    layer = LinearUpSampling([2, 1, 2])
    assert layer.compute_output_shape((None, 3, None, 5, 2)) == (None, 6, None, 10, 2)
    np.testing.assert_allclose(layer(image), double(double(image, 1), 3), atol=1e-6)
    plane = image[..., 0, :]
    np.testing.assert_allclose(LinearUpSampling((1, 2))(plane), double(plane, 2), atol=1e-6)


def test_golden_values():
    found = golden(SegANSegmentor(filters=4), (1, 16, 32, 1))
    np.testing.assert_allclose(found, [[0.69105, 0.94927, 0.6539]], atol=1e-4)
    found = golden(SegANCritic(filters=(4, 6)), (1, 8, 12, 1))[1:]
    expected = [[0.50796, 0.10861, 1.46914], [0.67945, 0.59046, 0.12242]]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    found = golden(SegANCritic(filters=(4, 6), constraint="clip"), (1, 8, 12, 1))[1:]
    expected = [[0.58622, 0.18688, 0.89999], [-0.07551, -0.11355, 0.07113]]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_table_names_each_class():
    assert all(cls.__name__ == name for name, cls in NETWORKS.items())
