"""UnifiedGenerator: counts, shapes, conditioning, round trips, golden values."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from checks import cheap_weights, check_network, golden, maps, parameters, random

from keras_unigan.networks import UnifiedGenerator
from keras_unigan.networks.unified import CONDITIONING


def stage(inputs, width, taps=9):
    """Two convolutions with biases, each with the two numbers a channel of its norm."""
    return taps * inputs * width + taps * width * width + 6 * width


def count(widths, channels, classes, taps=9, corners=4):
    """Encoder, both decoders (deconvolution and stage), cross-task skip, heads."""
    encoder = sum(stage(a, b, taps) for a, b in zip([channels, *widths], widths, strict=False))
    decoder = sum(
        corners * below * width + stage(2 * width, width, taps)
        for width, below in itertools.pairwise(widths)
    )
    return encoder + 2 * decoder + 2 * 6 * widths[0] + (classes + 1) * widths[0]


@pytest.mark.parametrize(
    ("arguments", "widths", "taps", "expected"),
    [
        ({"domains": 3}, [32, 64, 128, 256, 512], 9, 10_815_520),
        (
            {"domains": 3, "strides": ((2, 2),) * 5},
            [32, 64, 128, 256, 512, 512],
            9,
            31_796_256,
        ),
        (
            {
                "domains": 4,
                "classes": 4,
                "filters": 12,
                "strides": ((2, 2, 2),) * 5,
                "spatial_dims": 3,
            },
            [12, 24, 48, 96, 192, 320],
            27,
            15_750_456,
        ),
    ],
)
def test_exact_parameter_count(monkeypatch, arguments, widths, taps, expected):
    cheap_weights(monkeypatch)
    network = UnifiedGenerator(**arguments)
    corners = 4 if taps == 9 else 8
    worked = count(widths, 1 + network.domains, network.classes, taps, corners)
    assert parameters(network) == worked == expected


def test_conditioning_changes_the_count_by_its_planes_and_tables():
    counts = {
        conditioning: parameters(
            UnifiedGenerator(domains=3, filters=2, strides=((2, 2),), conditioning=conditioning)
        )
        for conditioning in CONDITIONING
    }
    # One plane more: 9 taps for each of 2 channels.
    assert counts["concat"] == counts["difference"] + 18
    # 4 rows instead of 1 for two norms of 4 channels and two of 2.
    tables = 3 * 2 * 2 * (4 + 2)
    assert counts["film+difference"] == counts["difference"] + tables
    assert counts["film"] == counts["film+difference"] - 3 * 18


def test_maps():
    network = UnifiedGenerator(domains=3, filters=2)
    names = [f"encoder_{level}_act_1" for level in range(5)]
    names += [f"{task}_{i}_act_1" for task in ("segmentation", "translation") for i in range(4)]
    for size in (128, 256):
        expected = [(size // 2**level,) * 2 + (2 * 2**level,) for level in range(5)]
        expected += [*expected[:4] * 2, (size, size, 2), (size, size, 1)]
        assert maps(network, [*names, "logits", "translated"], size) == expected


# "film" and "concat" are parts of these two and of the test in 3-D.
@pytest.mark.parametrize("conditioning", ["difference", "concat"])
def test_network_2d(tmp_path, conditioning):
    default = ("conditioning",) if conditioning == "difference" else ()
    check_network(
        UnifiedGenerator,
        {
            "channels": 2,
            "classes": 3,
            "domains": 3,
            "filters": 4,
            "strides": [[2, 2], [2, 1]],
            "se_levels": 2,
            "conditioning": conditioning,
            "local_contrast": True,
        },
        [(2, 8, 6, 2), (1, 12, 4, 2)],
        lambda shape: [(*shape[:-1], 3), (*shape[:-1], 2)],
        tmp_path,
        at_default=("spatial_dims", *default),
        cancelled=("_conv_0/bias", "_conv_1/bias"),
    )


def test_network_3d_with_strides_per_axis(tmp_path):
    check_network(
        UnifiedGenerator,
        {
            "channels": 2,
            "classes": 3,
            "domains": 3,
            "filters": 4,
            "strides": [[2, 2, 1], [2, 1, 2]],
            "se_levels": 0,
            "conditioning": "film+difference",
            "spatial_dims": 3,
            "local_contrast": True,
        },
        [(2, 8, 4, 6, 2), (1, 4, 6, 4, 2)],
        lambda shape: [(*shape[:-1], 3), (*shape[:-1], 2)],
        tmp_path,
        cancelled=("_conv_0/bias", "_conv_1/bias"),
    )


def test_kernels_do_not_reach_along_a_coarse_axis_before_it_is_strided():
    network = UnifiedGenerator(filters=2, strides=((2, 2, 1), (2, 2, 2), (2, 2, 1)), spatial_dims=3)
    layers = [x for x in network.layers if "_conv_" in x.name and not x.name.endswith("_pad")]
    kernels = {layer.name: layer.kernel_size for layer in layers}
    flat = {name for name, kernel in kernels.items() if kernel == (3, 3, 1)}
    assert flat == {name for name in kernels if name.split("_")[1] == "0"}
    assert {k for name, k in kernels.items() if name not in flat} == {(3, 3, 3)}


def test_widths_are_capped(monkeypatch):
    cheap_weights(monkeypatch)
    assert maps(UnifiedGenerator(filters=300), ["encoder_4_act_1"], 16) == [(1, 1, 512)]


@pytest.mark.parametrize(
    ("conditioning", "expected"),
    [
        ("difference", [[-1, 0, 1], [0, 0, 0], [0, 1, 0], [0, 0, 0]]),
        ("concat", [[0, 0, 1, 0], [0, 0, 0, 1], [0, 1, 0, 0], [1, 0, 0, 0]]),
        ("film", [[0, 0, 1, 0], [0, 0, 0, 1], [0, 1, 0, 0], [1, 0, 0, 0]]),
        (
            "film+difference",
            [
                [-1, 0, 1, 0, 0, 1, 0],
                [0, 0, 0, 0, 0, 0, 1],
                [0, 1, 0, 0, 1, 0, 0],
                [0, 0, 0, 1, 0, 0, 0],
            ],
        ),
    ],
)
def test_codes(conditioning, expected):
    network = UnifiedGenerator(domains=3, filters=2, strides=((2, 2),), conditioning=conditioning)
    source, target = np.array([0, 0, -1, 0]), np.array([2, -1, 1, 0])
    found = network.code(source, target)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == tf.float32
    assert network.code_size == found.shape[1]


@pytest.mark.parametrize("conditioning", CONDITIONING)
def test_methods_are_calls_with_their_code(conditioning):
    network = UnifiedGenerator(domains=2, filters=4, strides=((2, 2),), conditioning=conditioning)
    network.set_weights([w + random(w.shape, i) for i, w in enumerate(network.get_weights())])
    image, source, target = random((3, 8, 6, 1)), np.array([0, 1, -1]), np.array([1, -1, 0])
    asked = network([tf.constant(image), network.code(source, target)])
    np.testing.assert_array_equal(network.translate(image, source, target), asked[1])
    own = network([tf.constant(image), network.code(source, source)])
    np.testing.assert_array_equal(network.segment(image, source), own[0])
    # Another target makes another image.
    assert np.abs(asked[1] - own[1]).max() > 1e-3
    assert np.abs(asked[1]).max() <= 1


def test_segmentation_needs_no_modality_with_the_difference_map():
    network = UnifiedGenerator(domains=3, filters=4, strides=((2, 2),) * 2)
    image = random((2, 8, 12, 1))
    unknown = network.segment(image, np.array([-1, -1]))
    for domain in range(3):
        np.testing.assert_array_equal(network.segment(image, np.array([domain] * 2)), unknown)


def test_the_code_reaches_the_logits_through_the_shared_input_only():
    network = UnifiedGenerator(domains=3, filters=4, strides=((2, 2),) * 2)
    first = network.get_layer("encoder_0_conv_0")
    kernel, bias = first.get_weights()
    assert kernel.shape[2] == 1 + 3
    kernel[:, :, 1:] = 0
    first.set_weights([kernel, bias])
    image = tf.constant(random((2, 8, 12, 1)))
    found = [network([image, tf.constant(random((2, 3), seed))]) for seed in (0, 1)]
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


def test_film_starts_without_effect_and_each_code_has_its_row():
    network = UnifiedGenerator(domains=2, filters=4, strides=((2, 2),), conditioning="film")
    image, source = random((3, 8, 6, 1)), np.array([0, 0, 0])
    rows = [0, 1, -1]
    start = network.translate(np.repeat(image[:1], 3, axis=0), source, np.array(rows))
    np.testing.assert_allclose(start[1:], start[:1].numpy().repeat(2, axis=0), atol=1e-6)
    tables = [v for v in network.trainable_variables if "film" in v.path]
    # Bottleneck and one decoder level, two norms each.
    assert [v.path.split("/")[-1] for v in tables] == ["gamma", "beta"] * 4
    for variable in tables:
        assert variable.shape[0] == 3
        assert (np.asarray(variable) == ("gamma" in variable.path)).all()
        variable.assign(variable + np.array([[0.0], [0.0], [0.5]], "float32"))
    end = network.translate(np.repeat(image[:1], 3, axis=0), source, np.array(rows))
    np.testing.assert_array_equal(end[:2], start[:2])
    assert np.abs(end[2] - start[2]).max() > 1e-3


def test_golden_values():
    arguments = {"domains": 3, "filters": 4, "strides": ((2, 2),) * 2}
    found = golden(UnifiedGenerator(**arguments), (1, 8, 12, 1))
    expected = [[-0.39355, -0.13681, -1.08842], [0.52405, 0.32548, 0.18737]]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    found = golden(UnifiedGenerator(conditioning="film", **arguments), (1, 8, 12, 1))
    expected = [[-0.36888, -0.12832, -1.12667], [0.73043, 0.41562, 0.00081]]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_errors():
    with pytest.raises(ValueError, match=r"Expected conditioning in \('difference', .* got 'sum'"):
        UnifiedGenerator(conditioning="sum")
    with pytest.raises(ValueError, match=r"Expected strides of 2 axes, got \(2, 2, 2\)"):
        UnifiedGenerator(strides=((2, 2, 2),))
    with pytest.raises(ValueError, match="Expected se_levels from 0 to 4, got 5"):
        UnifiedGenerator(se_levels=5)
