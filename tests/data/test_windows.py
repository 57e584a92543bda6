import numpy as np
import pytest

from keras_unigan.data import windows


@pytest.mark.parametrize(
    ("size", "patch", "overlap"),
    [(8, 8, 0.5), (9, 8, 0.5), (37, 8, 0.5), (37, 7, 0.25), (40, 8, 0), (41, 8, 0.9), (5, 1, 0.5)],
)
def test_windows_cover_the_axis_and_weights_add_up_to_one(size, patch, overlap):
    starts, weights = windows.window_weights(size, patch, overlap)
    total = np.zeros(size)
    for start, weight in zip(starts, weights, strict=True):
        total[start : start + patch] += weight
    np.testing.assert_allclose(total, 1, rtol=1e-6)
    assert (starts[0], starts[-1]) == (0, size - patch)
    assert np.diff(starts, append=starts[-1]).max() <= np.ceil(patch * (1 - overlap))


def test_weights_are_gaussian_with_an_eighth_of_the_window():
    (_, weights) = windows.window_weights(24, 16, 0.5)
    # Two windows share voxels 8..15; at voxel 9 they are 1.5 and 6.5 voxels from their middles.
    near, far = np.exp(-0.5 * (np.array([1.5, 6.5]) / 2) ** 2)
    assert weights[0][9] == pytest.approx(near / (near + far), rel=1e-5)
    assert weights[1][1] == pytest.approx(far / (near + far), rel=1e-5)


@pytest.mark.parametrize("patch", [(8, 6), (8, 6, 4)])
@pytest.mark.parametrize("shape", [(19, 14, 7), (5, 14, 2), (3, 2, 1)])
def test_pointwise_predictions_are_those_of_the_whole_volume(shape, patch):
    volume = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    result = windows.sliding_window(
        volume, lambda x: np.concatenate([x, x**2], -1), patch, batch_size=3
    )
    np.testing.assert_allclose(result, np.stack([volume, volume**2], -1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("patch", [(8, 8), (8, 8, 4)])
def test_result_does_not_depend_on_the_batch_size(patch):
    volume = np.random.default_rng(1).normal(size=(21, 17, 9)).astype(np.float32)

    def predict(patches):
        # Not pointwise: each window's own mean enters, so blending is exercised.
        axes = tuple(range(1, patches.ndim))
        return patches - patches.mean(axes, keepdims=True)

    results = [windows.sliding_window(volume, predict, patch, 0.5, n) for n in (1, 4, 1000)]
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_constant_prediction_stays_constant():
    result = windows.sliding_window(
        np.zeros((30, 25, 3), np.float32), lambda x: np.full((*x.shape[:-1], 2), 0.3), (16, 8)
    )
    np.testing.assert_allclose(result, 0.3, rtol=1e-6)


def test_slices_are_batched_and_small_volumes_padded_with_their_minimum():
    volume = np.full((4, 6, 5), 7.0, np.float32)
    volume[1, 1] = 9.0
    seen = []

    def predict(patches):
        seen.append(patches)
        return patches

    result = windows.sliding_window(volume, predict, (8, 6), batch_size=3)
    assert [p.shape for p in seen] == [(3, 8, 6, 1), (2, 8, 6, 1)]
    assert (seen[0][:, [0, 1, 6, 7]] == 7).all()
    np.testing.assert_array_equal(result[..., 0], volume)


def test_wrong_arguments_are_named():
    volume = np.zeros((4, 4, 4), np.float32)
    with pytest.raises(ValueError, match=r"overlap < 1, got \(4, 4, 4\), \(4, 4\), 4 and 1"):
        windows.sliding_window(volume, lambda x: x, (4, 4), overlap=1)
    with pytest.raises(ValueError, match=r"keep batch and patch \(4, 4, 4\), got \(2, 4, 4, 1"):
        windows.sliding_window(volume, lambda x: x[:2], (4, 4))
