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


@pytest.mark.parametrize("definition", metrics.HD95)
def test_both_definitions_of_hd95_equal_brute_force(definition):
    rng, spacing = np.random.default_rng(5), np.array((0.7, 1.3, 4.0))
    # Of unlike size, so that the directions differ.
    truth, prediction = rng.random((6, 5, 4)) < 0.05, rng.random((6, 5, 4)) < 0.6
    truth[2, 2, 2] = True
    a, b = (np.array(brute_surface(m)) * spacing for m in (truth, prediction))
    table = np.linalg.norm(a[:, None] - b[None], axis=-1)
    sides = table.min(1), table.min(0)
    worked = {
        "pooled": np.percentile(np.concatenate(sides), 95),
        "max": max(np.percentile(side, 95) for side in sides),
    }
    assert worked["pooled"] != pytest.approx(worked["max"])
    found = metrics.hd95(truth, prediction, spacing, definition)
    assert found == pytest.approx(worked[definition])


def test_normalised_surface_dice_of_shifted_squares():
    truth, prediction = np.zeros((2, 12, 12), bool)
    truth[2:6, 2:6], prediction[4:8, 2:6] = True, True
    # 12 surface pixels each: four of them lie on the other surface, the rest 2 mm or 4 mm off.
    sides = metrics.directed_distances(truth, prediction, (2.0, 2.0))
    assert sorted(sides[0]) == sorted(sides[1])
    shares = {t: metrics.nsd(truth, prediction, (2.0, 2.0), t) for t in (0, 1.9, 2, 3.9, 4)}
    worked = {t: np.mean(np.concatenate(sides) <= t) for t in shares}
    assert shares == worked
    assert shares[4] == 1.0
    assert shares[1.9] == shares[0] == 4 / 12
    empty = np.zeros_like(truth)
    assert metrics.nsd(truth, empty, (2.0, 2.0), 100) == 0.0
    assert math.isnan(metrics.nsd(empty, empty, (2.0, 2.0), 1))
    with pytest.raises(ValueError, match=r"tolerance of 0 or more, got -1"):
        metrics.nsd(truth, truth, (2.0, 2.0), -1)
    with pytest.raises(ValueError, match=r"one of \('pooled', 'max'\), got 'mean'"):
        metrics.hd95(truth, truth, (1, 1), "mean")
    with pytest.raises(ValueError, match="not empty"):
        metrics.directed_distances(truth, empty, (1, 1))


def test_overlap_and_volume_of_worked_masks():
    truth, prediction = np.zeros((2, 10, 10, 10), bool)
    truth[:5], prediction[2:8] = True, True
    assert metrics.dice(truth, prediction) == pytest.approx(2 * 300 / 1100)
    assert metrics.iou(truth, prediction) == pytest.approx(300 / 800)
    assert metrics.volume_similarity(truth, prediction) == pytest.approx(1 - 100 / 1100)
    volume = metrics.volume_error(truth, prediction, (2.0, 1.0, 0.5))
    assert (volume.true_ml, volume.predicted_ml) == pytest.approx((0.5, 0.6))
    assert (volume.signed_ml, volume.relative) == pytest.approx((0.1, 0.2))
    empty = np.zeros_like(truth)
    assert metrics.volume_error(truth, empty, (1, 1, 1)).relative == -1.0
    assert math.isnan(metrics.volume_error(empty, truth, (1, 1, 1)).relative)
    assert (metrics.iou(empty, truth), metrics.volume_similarity(empty, truth)) == (0.0, 0.0)
    assert math.isnan(metrics.iou(empty, empty))
    assert math.isnan(metrics.volume_similarity(empty, empty))
    with pytest.raises(ValueError, match="3 values in spacing"):
        metrics.volume_error(truth, truth, (1.0, 1.0))


def spots(*corners, side=3, shape=(20, 20)):
    mask = np.zeros(shape, bool)
    for x, y in corners:
        mask[x : x + side, y : y + side] = True
    return mask


def test_lesions_are_matched_one_to_one():
    truth = spots((1, 1), (1, 10), (10, 1))
    scores = metrics.lesion_scores(truth, spots((1, 2), (10, 10)))
    # The first is off by one column: IoU 6 / 12. The second lies where nothing is.
    assert (scores.true, scores.predicted, scores.found) == (3, 2, 1)
    assert (scores.sensitivity, scores.precision, scores.f1) == (1 / 3, 1 / 2, 2 / 5)
    assert scores.false_positives == 1
    assert metrics.lesion_scores(truth, spots((1, 2)), overlap=0.5).found == 1
    assert metrics.lesion_scores(truth, spots((1, 2)), overlap=0.51).found == 0
    # One blob over everything finds at most one; crumbs of one lesion are one find.
    assert metrics.lesion_scores(truth, np.ones_like(truth)).found == 0
    assert metrics.lesion_scores(truth, np.ones_like(truth), overlap=0.01).found == 1
    crumbs = spots((1, 1), side=1) | spots((3, 1), side=1) | spots((1, 3), side=1)
    crumbs = metrics.lesion_scores(spots((1, 1)), crumbs)
    assert (crumbs.found, crumbs.false_positives) == (1, 2)
    # Corners join.
    assert metrics.lesion_scores(spots((1, 1), (4, 4)), truth).true == 1
    nothing = metrics.lesion_scores(truth & ~truth, truth & ~truth)
    assert all(map(math.isnan, (nothing.f1, nothing.sensitivity, nothing.precision)))
    with pytest.raises(ValueError, match=r"above 0 and up to 1, got 0"):
        metrics.lesion_scores(truth, truth, overlap=0)


def test_most_lesions_are_matched_where_a_greedy_choice_would_lose_one():
    # The long prediction overlaps both lesions; the short one only the first, and less than it.
    truth = np.zeros((1, 30), bool)
    truth[0, 0:8], truth[0, 10:14] = True, True
    prediction = np.zeros_like(truth)
    prediction[0, 0:2], prediction[0, 3:13] = True, True
    scores = metrics.lesion_scores(truth, prediction)
    assert (scores.true, scores.predicted, scores.found) == (2, 2, 2)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 1.0, 2.0)])
def test_shapes_whose_scores_are_known(spacing):
    spacing, side = np.array(spacing), 24.0
    axes = [np.arange(-side, side + 0.1, s) for s in spacing]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    box = (abs(x) <= 10) & (abs(y) <= 10) & (abs(z) <= 10)
    grown = (abs(x) <= 14) & (abs(y) <= 14) & (abs(z) <= 14)
    # From a face of the small box to the large one it is 4 mm; from an edge or corner of the large
    # one to the small one further.
    forward, backward = metrics.directed_distances(box, grown, spacing)
    np.testing.assert_allclose(forward, 4.0)
    assert backward.max() == pytest.approx(4 * math.sqrt(3))
    assert metrics.nsd(box, grown, spacing, 3.99) == 0.0
    assert metrics.nsd(box, grown, spacing, 4 * math.sqrt(3) + 1e-9) == 1.0
    ball, moved = (np.sqrt((x - s) ** 2 + y**2 + z**2) <= 12 for s in (0, 6))
    # A ball moved by d, 2 r > d: common volume (4 r + d)(2 r - d)^2 pi / 12.
    common = (48 + 6) * (24 - 6) ** 2 / 12 / (4 / 3 * 12**3)
    assert metrics.dice(ball, moved) == pytest.approx(common, abs=0.01)
    assert metrics.iou(ball, moved) == pytest.approx(common / (2 - common), abs=0.01)
    volume = metrics.volume_error(ball, grown, spacing)
    assert volume.true_ml == pytest.approx(4 / 3 * math.pi * 1.2**3, rel=0.02)
    assert metrics.hd95(ball, moved, spacing, "max") <= 6.0


@hypothesis.given(masks, masks, st.floats(0, 5))
@hypothesis.settings(max_examples=60, deadline=None)
def test_an_empty_prediction_is_the_worst_of_all_scores(truth, prediction, tolerance):
    hypothesis.assume(truth.any())
    spacing, empty = (1.0, 2.0, 3.0), np.zeros_like(truth)
    scores = {
        "iou": metrics.iou,
        "volume": metrics.volume_similarity,
        "nsd": lambda a, b: metrics.nsd(a, b, spacing, tolerance),
        "f1": lambda a, b: metrics.lesion_scores(a, b).f1,
        "sensitivity": lambda a, b: metrics.lesion_scores(a, b).sensitivity,
    }
    for name, score in scores.items():
        assert score(truth, empty) == 0.0 <= score(truth, prediction) <= 1.0, name
        assert score(truth, truth) == 1.0, name
    for definition in metrics.HD95:
        worst = metrics.hd95(truth, empty, spacing, definition)
        assert worst >= metrics.hd95(truth, prediction, spacing, definition)


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
