"""PlannedUNet: exact counts, depth and kernels from the plan, round trips."""

import dataclasses

import numpy as np
import pytest
from checks import cheap_weights, check_network, maps, parameters, plan

from keras_unigan import training
from keras_unigan.config import Configuration, halvings
from keras_unigan.layers import segment_logits
from keras_unigan.networks import PlannedUNet


def expected(widths, classes, channels, window):
    """Sum over stages, worked out by hand: window is the number of voxels of a kernel."""
    total, before = 0, channels
    for width in widths:  # two convolutions with biases, each with a norm's scale and offset
        total += (window * before + 1 + 2) * width + (window * width + 1 + 2) * width
        before = width
    up = 2 ** {9: 2, 27: 3}[window]
    for above, width in zip(widths[:0:-1], widths[-2::-1], strict=True):
        total += (up * above + 1) * width
        total += (window * 2 * width + 3) * width + (window * width + 3) * width
        total += (width + 1) * classes
    return total


@pytest.mark.parametrize(
    ("patch", "options", "count"),
    [
        ((128, 128), {"classes": 2}, 20_619_082),
        ((256, 256), {"classes": 2}, 33_471_820),
        pytest.param((128,) * 3, {"channels": 4, "classes": 4}, 31_199_796, marks=pytest.mark.slow),
    ],
)
def test_exact_parameter_count(monkeypatch, patch, options, count):
    cheap_weights(monkeypatch)
    dims = len(patch)
    strides = halvings(patch, (1.0,) * dims)
    assert len(strides) == {128: 5, 256: 6}[patch[0]]
    network = PlannedUNet(strides=strides, spatial_dims=dims, **options)
    most = {2: 512, 3: 320}[dims]
    widths = [min(32 * 2**n, most) for n in range(len(strides) + 1)]
    by_hand = expected(widths, options["classes"], options.get("channels", 1), 3**dims)
    assert parameters(network) == count == by_hand


def test_network(tmp_path):
    check_network(
        PlannedUNet,
        {
            "channels": 2,
            "classes": 3,
            "filters": 4,
            "strides": ((2, 2, 1), (2, 2, 2)),
            "spatial_dims": 3,
            "widest": 6,
        },
        [(2, 8, 12, 4, 2), (1, 4, 4, 2, 2)],
        lambda s: [(*s[:-1], 3), (s[0], s[1] // 2, s[2] // 2, s[3], 3)],
        tmp_path,
        cancelled=("_conv_0/bias", "_conv_1/bias"),
    )


def test_maps_and_widths():
    network = PlannedUNet(filters=4, strides=((2, 2),) * 5, widest=20)
    names = ["encoder_0_act_1", "encoder_5_act_1", "decoder_4_act_1", "logits_4", "logits"]
    sizes = [(128, 128, 4), (4, 4, 20), (8, 8, 20), (8, 8, 2), (128, 128, 2)]
    assert maps(network, names, 128) == sizes
    with pytest.raises(ValueError, match="Expected strides of at least one level"):
        PlannedUNet(strides=())


def test_the_plan_decides_depth_and_kernels(monkeypatch):
    cheap_weights(monkeypatch)
    a_plan = plan(spatial_dims=3)
    # 5 mm along z: not halved until x and y are as coarse.
    chosen = Configuration((64, 64, 16), 2, ((2, 2, 1),) * 2, 4)
    a_plan = dataclasses.replace(a_plan, spacing=(1.0, 1.0, 5.0), configurations={"3d": chosen})
    network = training.build_model("nnunet_plain", a_plan, 3).segmentor
    assert network.strides == ((2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2))
    kernels = [network.get_layer(f"encoder_{n}_conv_1").kernel_size for n in range(5)]
    assert kernels == [(3, 3, 1), (3, 3, 1), (3, 3, 3), (3, 3, 3), (3, 3, 3)]
    assert network.filters == 4
    # A setting of the user's stands over the plan.
    own = training.build_model("nnunet_plain", a_plan, 3, strides=((2, 2, 1),), filters=2)
    assert (own.segmentor.strides, own.segmentor.filters) == (((2, 2, 1),), 2)


def test_prediction_is_the_finest_level():
    network = PlannedUNet(filters=2, strides=((2, 2),))
    image = np.ones((1, 4, 6, 1), "float32")
    found = segment_logits(network, image, [0])
    assert found.shape == (1, 4, 6, 2)
    np.testing.assert_array_equal(found, network.tasks(image, [0])[0])
