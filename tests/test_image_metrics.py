import math

import numpy as np
import pytest

from keras_unigan import metrics


def pair(shape, seed=0):
    generator = np.random.default_rng(seed)
    x = generator.uniform(-1, 1, shape)
    return x, (0.7 * x + 0.3 * generator.uniform(-1, 1, shape)).clip(-1, 1)


def test_worked_numbers():
    x, y = np.array([0.0, 1.0, 0.5, 9.0]), np.array([0.5, 1.0, 0.0, -9.0])
    mask = np.array([True, True, True, False])
    assert metrics.mae(x, y, mask) == pytest.approx(1 / 3)
    assert metrics.psnr(x, y, 2.0, mask) == pytest.approx(10 * math.log10(4 / (0.5 / 3)))
    assert metrics.mae(x, y) == pytest.approx(19 / 4)
    assert metrics.psnr(x, x, 2.0) == math.inf
    nothing = np.zeros(4, bool)
    assert math.isnan(metrics.mae(x, y, nothing))
    assert math.isnan(metrics.psnr(x, y, 2.0, nothing))
    assert math.isnan(metrics.nmi(x, y, nothing))
    with pytest.raises(ValueError, match=r"Expected images and mask of one shape"):
        metrics.mae(x, y[:3])


@pytest.mark.parametrize("size", [(11, 11), (17, 23), (32, 12)])
def test_ssim_equals_that_of_tensorflow(size):
    import tensorflow as tf

    x, y = pair(size)
    reference, image = (tf.constant(a[..., None], tf.float32) for a in (x, y))
    expected = float(tf.image.ssim(reference, image, max_val=2.0))
    assert metrics.ssim(x, y, 2.0) == pytest.approx(expected, abs=2e-5)
    assert metrics.ssim(x, x, 2.0) == pytest.approx(1.0)


def test_ssim_of_volumes_and_masks():
    x, y = pair((20, 18, 4))
    slices = [metrics.ssim(x[..., k], y[..., k], 2.0) for k in range(4)]
    assert metrics.ssim(x, y, 2.0) == pytest.approx(np.mean(slices))
    assert metrics.ssim(x[..., :1], y[..., :1], 2.0) == pytest.approx(slices[0])
    # Where all slices are the same, a window across them adds nothing.
    deep_x, deep_y = (np.repeat(a[..., :1], 13, axis=2) for a in (x, y))
    assert metrics.ssim(deep_x, deep_y, 2.0) == pytest.approx(slices[0])
    half = np.zeros(x.shape, bool)
    half[..., :2] = True
    assert metrics.ssim(x, y, 2.0, half) == pytest.approx(np.mean(slices[:2]))
    assert math.isnan(metrics.ssim(x, y, 2.0, ~half & half))
    with pytest.raises(ValueError, match="an axis of at least 11 voxels"):
        metrics.ssim(x[:9, :9], y[:9, :9], 2.0)
    with pytest.raises(ValueError, match="of one shape"):
        metrics.ssim(x, y[:9], 2.0)


def test_mutual_information_asks_for_no_common_scale():
    x, y = pair((40, 40))
    assert metrics.nmi(x, -5 * x) == pytest.approx(2.0)
    assert 1.0 < metrics.nmi(x, y, bins=16) < 2.0
    steps = np.repeat([0.0, 1.0], 8), np.tile([0.0, 1.0], 8)
    assert metrics.nmi(*steps, bins=2) == pytest.approx(1.0)
    assert math.isnan(metrics.nmi(np.zeros(5), np.ones(5)))


def test_hallucination_spares_what_the_source_or_the_truth_shows():
    found = np.array([True, True, True, True, False, False])
    original = np.array([True, False, False, False, True, False])
    truth = np.array([False, True, False, False, False, True])
    assert metrics.hallucination(found, original) == 0.75
    assert metrics.hallucination(found, original, truth) == 0.5
    assert metrics.hallucination(original, original) == 0.0
    assert math.isnan(metrics.hallucination(~found & found, original))
