"""UNet: counts, shapes, round trips, golden values."""

import numpy as np
import pytest
from checks import cheap_weights, check_network, golden, parameters

from keras_unigan.networks import UNet


def block(inputs, width):
    """Two 3x3 convolutions with biases; instance norm has no parameters here."""
    return 9 * inputs * width + width + 9 * width * width + width


@pytest.mark.parametrize(("f", "count"), [(64, 31_030_658), (32, 7_759_554), (16, 1_940_834)])
def test_exact_parameter_count(monkeypatch, f, count):
    cheap_weights(monkeypatch)
    # f = 64: encoder 37,568 + 221,440 + 885,248 + 3,539,968; centre 14,157,824; decoder
    # (2x2 deconvolution and block) 9,176,576 + 2,294,528 + 573,824 + 143,552; head 130.
    encoder = block(1, f) + block(f, 2 * f) + block(2 * f, 4 * f) + block(4 * f, 8 * f)
    decoder = [4 * 2 * w * w + w + block(2 * w, w) for w in (8 * f, 4 * f, 2 * f, f)]
    expected = encoder + block(8 * f, 16 * f) + sum(decoder) + 2 * f + 2
    assert parameters(UNet(filters=f)) == count == expected


def test_network_2d(tmp_path):
    check_network(
        UNet,
        # Two dimensions are the default, so `spatial_dims` is tried in 3-D below.
        {
            "channels": 2,
            "classes": 3,
            "filters": 4,
            "levels": 3,
            "spatial_dims": 2,
            "local_contrast": True,
        },
        [(2, 16, 24, 2), (1, 8, 8, 2)],
        lambda shape: [(*shape[:-1], 3)],
        tmp_path,
        at_default=("strides", "spatial_dims"),
        cancelled=("_conv_0/bias", "_conv_1/bias"),
    )


def test_network_3d_with_strides_per_axis(tmp_path):
    check_network(
        UNet,
        {
            "channels": 2,
            "classes": 3,
            "filters": 4,
            "levels": 2,
            "strides": [[2, 2, 1], [2, 1, 2]],
            "spatial_dims": 3,
            "local_contrast": True,
        },
        [(2, 8, 4, 6, 2), (1, 4, 6, 4, 2)],
        lambda shape: [(*shape[:-1], 3)],
        tmp_path,
        cancelled=("_conv_0/bias", "_conv_1/bias"),
    )


def test_strides_decide_the_levels():
    network = UNet(filters=2, levels=4, strides=((2, 1), (1, 2)))
    assert network.levels == 2
    assert network(np.zeros((1, 2, 6, 1), "float32")).shape == (1, 2, 6, 2)


def test_strides_of_the_wrong_rank_are_named():
    with pytest.raises(ValueError, match=r"Expected strides of 2 axes, got \(2, 2, 2\)"):
        UNet(strides=((2, 2, 2),))


def test_spatial_dims_out_of_range():
    with pytest.raises(ValueError, match="Expected spatial_dims 2 or 3, got 4"):
        UNet(spatial_dims=4)


def test_golden_values():
    found = golden(UNet(filters=4, levels=2), (1, 8, 12, 1))
    np.testing.assert_allclose(found, [[0.43974, 0.43398, -0.07548]], atol=1e-4)


def test_kernels_do_not_reach_along_a_coarse_axis_before_it_is_pooled():
    network = UNet(filters=2, strides=((2, 2, 1), (2, 2, 2), (2, 2, 1)), spatial_dims=3)
    kernels = {layer.name: layer.kernel_size for layer in network.layers if "_conv_0" in layer.name}
    assert kernels["encoder_0_conv_0"] == kernels["decoder_0_conv_0"] == (3, 3, 1)
    assert {k for name, k in kernels.items() if "_0_conv" not in name} == {(3, 3, 3)}
    # A thin axis that is never pooled is not a coarse one.
    thin = UNet(filters=2, strides=((2, 2, 1), (2, 2, 1)), spatial_dims=3)
    assert thin.get_layer("encoder_0_conv_0").kernel_size == (3, 3, 3)
