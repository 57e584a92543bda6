"""Comparison networks: exact counts, routing, round trips."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from checks import cheap_weights, check_network, feed, parameters, random

from keras_unigan.layers import segment_logits
from keras_unigan.networks import comparison, parts

COUNTS = {
    "IndividualUNets": 23_278_662,
    "ConditionalUNet": 7_760_418,
    "DomainNormUNet": 7_777_218,
    "EarlyFusionUNet": 7_760_130,
    "LateFusionUNet": 23_315_458,
    "CrossModalityUNet": 10_364_514,
    "SharedLatentUNet": 19_246_533,
    "DualStreamUNet": 14_428_230,
    "YShapeUNet": 10_102_914,
    "PADNet": 7_861_414,
    "ExcitedUNet": 7_814_082,
}
MODAL = [n for n in COUNTS if n not in ("PADNet", "ExcitedUNet")]
CHANNELS = {"SharedLatentUNet": [3, 2], "PADNet": [3, 3, 2, 1]}


def some(*quick):
    """All names; the tests of those that are not named are slow ones."""
    return [n if n in quick else pytest.param(n, marks=pytest.mark.slow) for n in COUNTS]


@pytest.mark.parametrize("name", COUNTS)
def test_exact_parameter_count(monkeypatch, name):
    cheap_weights(monkeypatch)
    assert parameters(getattr(comparison, name)()) == COUNTS[name]


@pytest.mark.parametrize("name", some("CrossModalityUNet", "SharedLatentUNet", "PADNet"))
def test_network_2d(tmp_path, monkeypatch, name):
    # One rectified unit alone may be dead from the start.
    monkeypatch.setattr(parts, "REDUCTION", 1)
    arguments = {"channels": 2, "classes": 3, "filters": 4, "levels": 2}
    if name in MODAL:
        arguments["domains"] = 2
    else:
        arguments["local_contrast"] = True
    check_network(
        getattr(comparison, name),
        arguments,
        [(2, 16, 12, 2), (1, 8, 8, 2)],
        lambda shape: [(*shape[:-1], n) for n in CHANNELS.get(name, [3])],
        tmp_path,
        at_default=("strides", "spatial_dims"),
        cancelled=("_conv_0/bias", "_conv_1/bias"),
    )


@pytest.mark.parametrize(
    "name",
    [n if n == "DualStreamUNet" else pytest.param(n, marks=pytest.mark.slow) for n in COUNTS],
)
def test_strides_per_axis_in_3d(name):
    network = getattr(comparison, name)(
        filters=2, strides=((2, 2, 1), (2, 2, 2)), spatial_dims=3, classes=3
    )
    assert network.levels == 2
    logits = segment_logits(network, np.zeros((1, 4, 8, 2, 1), "float32"), [0])
    assert logits.shape == (1, 4, 8, 2, 3)


def test_routed_picks_the_map_of_each_sample():
    code = tf.constant([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    first, second = tf.ones((3, 2, 2, 1)), 3 * tf.ones((3, 2, 2, 1))
    routed = parts.Routed()([code, first, second])
    np.testing.assert_array_equal(routed[:, 0, 0, 0], [1.0, 3.0, 2.0])
    stacked = parts.Stacked()([code, first, second])
    np.testing.assert_array_equal(stacked[:, 0, 0], [[1.0, 0.0], [0.0, 3.0], [0.5, 1.5]])


@pytest.mark.parametrize("name", ["IndividualUNets", "YShapeUNet", "LateFusionUNet"])
def test_a_sample_goes_through_the_part_of_its_modality(name):
    network = getattr(comparison, name)(domains=2, filters=2, levels=1)
    image = feed(network, (2, 8, 8, 1))[0]
    domain = np.array([0, 1], "int32")
    before = network.segment(image, domain).numpy()
    weights = [w for w in network.weights if "m1_encoder" in w.path and "kernel" in w.path]
    assert weights
    for weight in weights:
        weight.assign(-2.0 * weight + 0.1)
    after = network.segment(image, domain).numpy()
    np.testing.assert_array_equal(after[0], before[0])
    assert np.abs(after[1] - before[1]).max() > 1e-3


def test_an_unknown_modality_is_the_mean_of_individual_networks():
    network = comparison.IndividualUNets(domains=2, filters=2, levels=1)
    image = feed(network, (1, 8, 8, 1))[0]
    each = [network.segment(image, [n]).numpy() for n in (0, 1)]
    np.testing.assert_allclose(network.segment(image, [-1]), np.mean(each, axis=0), atol=1e-5)


def test_norms_of_each_modality_share_their_kernels():
    network = comparison.DomainNormUNet(domains=2, filters=2, levels=1)
    image = feed(network, (1, 8, 8, 1))[0]
    np.testing.assert_array_equal(network.segment(image, [0]), network.segment(image, [1]))
    beta = next(w for w in network.weights if w.path.endswith("beta"))
    beta.assign([[0.0] * beta.shape[1], [1.0] * beta.shape[1]])
    assert np.abs(network.segment(image, [0]) - network.segment(image, [1])).max() > 1e-3


# The equations of the cards (docs/models), by hand.


def at(network, inputs, *names):
    """Maps behind named layers."""
    layers = [network.get_layer(name) for name in names]
    found = keras.Model(network.input, [layer.output for layer in layers])(inputs)
    return [np.asarray(x) for x in found]


def convolved(network, name, x):
    """What a convolution makes of a map, without its activation."""
    kernel, bias = network.get_layer(name).get_weights()
    return tf.nn.conv2d(x, kernel, 1, "SAME").numpy() + bias


def test_one_kernel_over_all_modalities_joins_their_maps():
    network = comparison.CrossModalityUNet(domains=2, filters=2, levels=1)
    code = np.array([[0.0, 1.0], [0.25, 0.75]], "float32")
    names = ("m0_encoder_0_act_1", "m1_encoder_0_act_1", "across_0")
    *maps, joined = at(network, [random((2, 4, 4, 1)), code], *names)
    kernel, bias = network.get_layer("across_0").get_weights()
    # (M, 1, 1): one matrix for each modality, and nothing of a neighbouring voxel.
    each = [
        (code[:, m, None, None, None] * maps[m]) @ kernel[0, 0, 2 * m : 2 * m + 2] for m in (0, 1)
    ]
    np.testing.assert_allclose(joined, sum(each) + bias, atol=1e-5)


def test_planes_say_the_modality():
    network = comparison.ConditionalUNet(domains=3, filters=2, levels=1)
    image, code = random((2, 4, 6, 1)), np.eye(3, dtype="float32")[[2, 0]]
    (found,) = at(network, [image, code], "planes", "planes")[:1]
    np.testing.assert_array_equal(found[..., :1], image)
    np.testing.assert_array_equal(found[..., 1:], np.tile(code[:, None, None], (1, 4, 6, 1)))


def test_squeeze_and_excitation_by_hand():
    network = comparison.ExcitedUNet(filters=32, levels=1)
    names = ("encoder_0_act_1", "encoder_0_se_scale")
    plain, scaled = at(network, random((2, 4, 4, 1)), *names)
    first, second = (
        network.get_layer(f"encoder_0_se_{n}").get_weights()[0] for n in ("squeeze", "excite")
    )
    assert (first.shape, second.shape) == ((32, 2), (2, 32))
    gate = 1 / (1 + np.exp(-np.maximum(plain.mean(axis=(1, 2)) @ first, 0) @ second))
    np.testing.assert_allclose(scaled, plain * gate[:, None, None], atol=1e-5)


def test_the_label_map_hears_the_other_tasks_through_its_gate():
    network = comparison.PADNet(filters=2, levels=1, classes=3)
    tasks = ("intermediate", "reconstruction", "boundary")
    names = [f"{task}_act_1" for task in tasks]
    own, *others, found = at(network, random((2, 4, 4, 1)), *names, "distilled")
    gate = 1 / (1 + np.exp(-convolved(network, "gate", own)))
    expected = own + sum(
        gate * convolved(network, f"{task}_message", x)
        for task, x in zip(tasks[1:], others, strict=True)
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_strides_of_the_wrong_rank_are_named():
    with pytest.raises(ValueError, match=r"Expected strides of 2 axes"):
        comparison.YShapeUNet(strides=((2, 2, 2),))
