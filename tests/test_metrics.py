import itertools
import math

import hypothesis
import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import keras
import numpy as np
import pytest

from keras_unigan import metrics


def brute_surface(mask):
    """Voxels with a face neighbour outside the mask or the array, one voxel at a time."""
    points = []
    for index in itertools.product(*map(range, mask.shape)):
        if not mask[index]:
            continue
        for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
            near = list(index)
            near[axis] += step
            if not 0 <= near[axis] < mask.shape[axis] or not mask[tuple(near)]:
                points.append(index)
                break
    return points


def brute_scores(truth, prediction, spacing):
    a, b = (np.array(brute_surface(m)) * spacing for m in (truth, prediction))
    table = np.linalg.norm(a[:, None] - b[None], axis=-1)
    pooled = np.concatenate([table.min(1), table.min(0)])
    return np.percentile(pooled, 95), pooled.mean()


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 1.3, 4.0)])
@pytest.mark.parametrize("seed", range(6))
def test_surface_scores_equal_brute_force(seed, spacing):
    rng = np.random.default_rng(seed)
    truth, prediction = rng.random((2, 6, 5, 4)) < rng.uniform(0.05, 0.8)
    truth[2, 2, 2] = prediction[3, 3, 3] = True
    expected = brute_scores(truth, prediction, np.array(spacing))
    np.testing.assert_allclose(metrics.surface_scores(truth, prediction, spacing), expected)
    np.testing.assert_allclose(metrics.hd95(truth, prediction, spacing), expected[0])
    np.testing.assert_allclose(metrics.assd(truth, prediction, spacing), expected[1])


def test_one_slice_volume_is_measured_in_its_plane():
    rng = np.random.default_rng(3)
    truth, prediction = rng.random((2, 7, 9)) < 0.4
    flat = metrics.surface_scores(truth, prediction, (0.5, 2.0))
    np.testing.assert_allclose(flat, brute_scores(truth, prediction, np.array([0.5, 2.0])))
    volume = metrics.surface_scores(truth[..., None], prediction[..., None], (0.5, 2.0, 50.0))
    assert volume == flat


def test_concentric_spheres_differ_by_their_radii():
    spacing = np.array([1.0, 0.5, 2.0])
    grid = np.stack(np.meshgrid(*(np.arange(-24, 24.1, s) for s in spacing), indexing="ij"), -1)
    radius = np.linalg.norm(grid, axis=-1)
    small, large = radius <= 12, radius <= 17
    high, mean = metrics.surface_scores(small, large, spacing)
    assert mean == pytest.approx(5, abs=0.5)
    assert high == pytest.approx(5, abs=1.0)
    # Volumes of two spheres, one in the other: Dice is 2 r^3 / (r^3 + R^3).
    assert metrics.dice(small, large) == pytest.approx(2 * 12**3 / (12**3 + 17**3), abs=0.005)


def test_shifted_box_has_the_shift_as_distance():
    truth, prediction = np.zeros((2, 20, 20, 20), bool)
    truth[5, 5:10, 5:10], prediction[8, 5:10, 5:10] = True, True
    assert metrics.surface_scores(truth, prediction, (2.0, 1.0, 1.0)) == (6.0, 6.0)


def test_empty_masks():
    empty, full = np.zeros((3, 4, 2), bool), np.ones((3, 4, 2), bool)
    assert math.isnan(metrics.dice(empty, empty))
    assert all(map(math.isnan, metrics.surface_scores(empty, empty, (1, 1, 1))))
    diagonal = math.sqrt(3**2 + 8**2 + 6**2)
    for pair in ((empty, full), (full, empty)):
        assert metrics.dice(*pair) == 0.0
        assert metrics.surface_scores(*pair, (1, 2, 3)) == pytest.approx((diagonal, diagonal))
    point = np.ones((1, 1, 1), bool)
    assert metrics.surface_scores(point, point, (1, 1, 1)) == (0.0, 0.0)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"one shape, got \(2, 2\) and \(2, 3\)"):
        metrics.dice(np.ones((2, 2)), np.ones((2, 3)))
    with pytest.raises(ValueError, match="2 values in spacing"):
        metrics.hd95(np.ones((2, 2)), np.ones((2, 2)), (1.0,))


masks = arrays.arrays(bool, (4, 5, 3))


@hypothesis.given(masks, masks, st.permutations(range(3)), st.floats(0.3, 3))
@hypothesis.settings(max_examples=60, deadline=None)
def test_scores_are_symmetric_and_independent_of_axes_and_scale(a, b, order, scale):
    spacing = np.array([1.0, 2.0, 0.7])
    forward = (metrics.dice(a, b), *metrics.surface_scores(a, b, spacing))
    backward = (metrics.dice(b, a), *metrics.surface_scores(b, a, spacing))
    np.testing.assert_allclose(forward, backward)
    turned = metrics.surface_scores(
        a.transpose(order), b.transpose(order), scale * spacing[list(order)]
    )
    np.testing.assert_allclose(turned, scale * np.array(forward[1:]))


@hypothesis.given(masks, masks)
@hypothesis.settings(max_examples=60, deadline=None)
def test_an_empty_prediction_never_scores_better(truth, prediction):
    hypothesis.assume(truth.any() and prediction.any())
    spacing, empty = (1.0, 2.0, 3.0), np.zeros_like(truth)
    assert metrics.dice(truth, empty) <= metrics.dice(truth, prediction)
    high, mean = metrics.surface_scores(truth, prediction, spacing)
    assert metrics.hd95(truth, empty, spacing) >= high
    assert metrics.assd(truth, empty, spacing) >= mean


def update(metric, truth, prediction, valid, domain):
    count = len(metric.names)
    metric.update_state(
        np.eye(count)[truth], np.eye(count)[prediction], valid, np.array(domain, "int32")
    )


def test_dice_metric_of_worked_counts():
    metric = metrics.Dice(("t1", "ct"), ("background", "organ", "lesion"))
    truth = np.array([[1, 1, 0, 2], [1, 0, 0, 0]])
    prediction = np.array([[1, 0, 1, 2], [1, 1, 2, 0]])
    valid = np.array([[1, 1, 1, 1], [1, 1, 0, 1]])
    update(metric, truth, prediction, valid, [0, 1])
    # t1: organ 2*1/(2+2), lesion 1; ct: organ 2*1/(1+2), lesion only in the ignored voxel: none.
    np.testing.assert_allclose(metric.table()[:2], [[0.5, 1.0], [2 / 3, np.nan]], rtol=1e-6)
    result = {k: float(v) for k, v in metric.result().items()}
    assert result == pytest.approx({"dice": (0.75 + 2 / 3) / 2, "dice_t1": 0.75, "dice_ct": 2 / 3})


def test_dice_metric_pools_batches_and_counts_unknown_modalities():
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 3, (2, 6, 4, 4))
    valid, domain = rng.integers(0, 2, (6, 4, 4)), [0, 1, -1, 0, 1, -1]
    whole, parts = (metrics.Dice(("a", "b"), ("background", "x", "y")) for _ in range(2))
    update(whole, truth, prediction, valid, domain)
    for i in range(6):
        one = slice(i, i + 1)
        update(parts, truth[one], prediction[one], valid[one], domain[one])
    np.testing.assert_allclose(whole.table(), parts.table())
    # The array function on all voxels of one modality is the same number.
    chosen = (valid * (np.array(domain) == -1)[:, None, None]).astype(bool)
    expected = metrics.dice((truth == 2) & chosen, (prediction == 2) & chosen)
    assert float(whole.table()[2, 1]) == pytest.approx(expected)
    assert float(whole.result()["dice"]) == pytest.approx(float(np.mean(whole.table())))


def test_dice_metric_of_regions_scores_every_output():
    metric = metrics.Dice(("t1",), ("whole", "core"), background=False)
    truth = np.array([[[1, 1], [1, 0], [0, 0]]], "float32")
    probabilities = np.array([[[0.9, 0.2], [0.8, 0.1], [0.7, 0.4]]], "float32")
    hard = metrics.harden(probabilities, overlapping=True)
    metric.update_state(truth, hard, np.ones((1, 3)), np.zeros(1, "int32"))
    np.testing.assert_allclose(metric.table()[0], [0.8, 0.0], rtol=1e-6)


def test_harden_of_classes_is_one_hot():
    hard = metrics.harden(np.array([[0.2, 0.3, 0.5], [0.6, 0.4, 0.0]], "float32"), False)
    np.testing.assert_array_equal(hard, [[0, 0, 1], [1, 0, 0]])


def test_dice_metric_without_voxels_is_nan_resets_and_round_trips():
    metric = metrics.Dice(("t1",), ("whole", "core"), background=False, name="val")
    assert np.isnan(float(metric.result()["val"]))
    metric.update_state(np.ones((1, 2, 2)), np.ones((1, 2, 2)), np.ones((1, 2)), np.zeros(1, int))
    assert float(metric.result()["val_t1"]) == 1.0
    metric.reset_state()
    assert np.isnan(float(metric.result()["val_t1"]))
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(metric))
    assert again.get_config() == metric.get_config()
    assert (again.background, again.names) == (False, ("whole", "core"))
