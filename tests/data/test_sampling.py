import numpy as np
import pytest
import tensorflow as tf

from keras_unigan.data import sampling

# Three modalities; the subject of cases 2 and 3 was scanned twice.
SUBJECTS = [[[0], [1], [2, 3]], [[4], [5]], [[6]]]


def draws(schedule, count):
    """Modality stream and case of the first draws."""

    def one(draw):
        stream, visit = schedule.modality(draw)
        return stream, schedule.case(stream, visit)

    dataset = tf.data.Dataset.range(count).map(one)
    return np.array([(int(s), int(c)) for s, c in dataset])


def test_every_block_of_draws_has_each_modality_once():
    found = draws(sampling.Schedule(SUBJECTS, seed=3), 120)[:, 0].reshape(40, 3)
    assert (np.sort(found, axis=1) == [0, 1, 2]).all()
    assert len({tuple(row) for row in found}) == 6


def test_every_cycle_has_each_subject_once_and_all_their_cases():
    found = draws(sampling.Schedule(SUBJECTS, seed=3), 360)
    first = np.minimum(found[found[:, 0] == 0, 1], 2).reshape(40, 3)
    assert (np.sort(first, axis=1) == [0, 1, 2]).all()
    assert len({tuple(row) for row in first}) > 2
    assert set(found[found[:, 0] == 0, 1]) == {0, 1, 2, 3}
    assert set(found[found[:, 0] == 2, 1]) == {6}


def test_the_order_follows_the_seed():
    first, same, other = (draws(sampling.Schedule(SUBJECTS, seed=s), 60) for s in (1, 1, 2))
    assert (first == same).all()
    assert (first != other).any()


@pytest.mark.parametrize("fraction", [0.0, 0.34, 0.5, 1.0])
@pytest.mark.parametrize("stream", [0, 2])
def test_the_share_of_foreground_draws_is_kept(fraction, stream):
    schedule = sampling.Schedule(SUBJECTS, seed=0)
    wanted = [bool(schedule.wants_foreground(stream, v, fraction)) for v in range(200)]
    assert abs(sum(wanted) - 200 * fraction) <= 1
    # Evenly spread: no tenth of the draws is without its share.
    parts = np.reshape(wanted, (10, 20)).sum(axis=1)
    assert parts.max() - parts.min() <= 2


def test_targets_and_noise_follow_seed_and_step():
    domain = tf.constant([0, 1, 2, 0, 1, 2])
    found = {}
    for how in ("permute", "uniform"):
        steps = [
            sampling.targets(4, s, domain, how, tf.constant([0, 2])).numpy() for s in range(60)
        ]
        again = sampling.targets(4, 7, domain, how, tf.constant([0, 2]))
        np.testing.assert_array_equal(again, steps[7])
        assert steps[7].dtype == np.int32
        assert len({s.tobytes() for s in steps}) > 20
        found[how] = np.array(steps)
    # A permutation makes as many fakes of each modality as there are real images.
    assert (np.sort(found["permute"], axis=1) == [0, 0, 1, 1, 2, 2]).all()
    assert set(np.unique(found["uniform"])) == {0, 2}
    assert 0.4 < (found["uniform"] == 0).mean() < 0.6
    assert 0.2 < (found["permute"] == domain.numpy()).mean() < 0.45
    noise = np.array([sampling.noise(4, s, 6) for s in range(60)])
    np.testing.assert_array_equal(sampling.noise(4, 7, 6), noise[7])
    assert 0 <= noise.min() < 0.05
    assert 0.95 < noise.max() < 1
    assert len(np.unique(noise)) > 350


def starts(shape, patch, foreground, wanted, count=400):
    """First voxels of many draws."""
    shape, patch = tf.constant(shape), tf.constant(patch)
    foreground = tf.constant(np.reshape(foreground, (-1, 4)), tf.int32)
    dataset = tf.data.Dataset.range(count).map(
        lambda i: sampling.patch_start(
            shape, patch, foreground, tf.constant(wanted), sampling.uniforms(5, 0, i)
        )
    )
    return np.array([start.numpy() for start in dataset])


def test_patches_lie_anywhere_in_the_volume():
    found = starts((20, 17, 6), (16, 16, 1), [], False)
    assert (found.min(axis=0) == 0).all()
    assert (found.max(axis=0) == (4, 1, 5)).all()
    counts = np.bincount(found[:, 2], minlength=6)
    assert counts.min() > 400 / 6 / 2


def test_wanted_foreground_is_inside_and_classes_are_drawn_alike():
    # Class 1 has nine voxels in slice 1, class 2 one voxel at the far corner.
    voxels = [(10 + i, 11, 1, 1) for i in range(9)] + [(39, 29, 4, 2)]
    found = starts((40, 30, 5), (8, 12, 1), voxels, True)
    corner = np.array((39, 29, 4))
    holds_corner = ((found <= corner) & (corner < found + np.array((8, 12, 1)))).all(axis=1)
    assert 0.4 < holds_corner.mean() < 0.6
    assert (found[holds_corner] <= (32, 18, 4)).all()
    rest = found[~holds_corner]
    assert (rest[:, 2] == 1).all()
    assert ((rest[:, 1] <= 11) & (rest[:, 1] + 12 > 11)).all()
    assert ((rest[:, 0] <= 18) & (rest[:, 0] + 8 > 10)).all()
    # Not always in the same place of the patch.
    assert len(set(rest[:, 1])) > 3


def test_without_foreground_a_wanted_patch_lies_anywhere():
    assert (starts((9, 9, 3), (4, 4, 1), [], True) == starts((9, 9, 3), (4, 4, 1), [], False)).all()


def test_a_small_volume_lies_in_the_middle_of_the_patch():
    found = starts((10, 40, 3), (16, 16, 8), [(5, 5, 1, 1)], True, count=5)
    assert (found[:, [0, 2]] == (-3, -2)).all()
    assert (found[:, 1] <= 5).all()


@pytest.mark.parametrize("start", [(0, 0, 0), (2, 1, 1), (-3, 4, -1), (-2, -2, 0), (3, 5, 2)])
def test_cut_is_a_slice_of_the_padded_volume(start):
    volume = np.random.default_rng(0).normal(size=(7, 9, 4)).astype(np.float32)
    patch = (8, 6, 3)
    padded = np.pad(volume, 10, constant_values=-5.0)
    inside = tuple(slice(10 + s, 10 + s + p) for s, p in zip(start, patch, strict=True))
    found = sampling.cut(tf.constant(volume.transpose(2, 0, 1)), tf.constant(start), patch, -5.0)
    np.testing.assert_array_equal(found, padded[inside])


def records():
    """Two volumes of unequal size as `datasets` arranges them."""
    rng = np.random.default_rng(1)
    for shape, count in (((6, 5, 4), 3), ((9, 8, 2), 0)):
        image = rng.normal(size=shape).astype(np.float32)
        yield {
            "image": tf.constant(image.transpose(2, 0, 1)),
            "label_map": tf.constant(rng.integers(0, 3, shape).astype(np.uint8).transpose(2, 0, 1)),
            "shape": tf.constant(shape),
            "minimum": tf.constant(image.min()),
            "foreground": tf.constant(rng.integers(0, 2, (count, 4)), tf.int32),
            "statistics": tf.constant(rng.normal(size=4), tf.float32),
        }


@pytest.mark.parametrize("start", [(1, 2, 1), (-1, 0, 0), (0, 0, -1)])
def test_a_packed_volume_gives_the_same_patches_as_its_own_arrays(start):
    kept = list(records())
    packed = sampling.pack([dict(record) for record in kept])
    for case, record in enumerate(kept):
        expected = sampling.example(sampling.hold(record), tf.constant(start), (4, 4, 2))
        found = sampling.example(sampling.pick(packed, case), tf.constant(start), (4, 4, 2))
        assert set(found) == {"image", "label_map", "statistics"}
        for key, value in expected.items():
            np.testing.assert_array_equal(found[key], value)
        facts = sampling.pick(packed, case)[1]
        np.testing.assert_array_equal(facts["foreground"], record["foreground"])


@pytest.mark.parametrize("shape", [(16, 16, 3), (17, 30, 5), (5, 16, 2), (33, 7, 1)])
@pytest.mark.parametrize("patch", [(16, 16, 1), (8, 8, 4)])
def test_tiles_count_every_voxel_once(shape, patch):
    seen = np.zeros(shape, int)
    labels = tf.zeros(shape[::-1], tf.uint8)
    labels = tf.transpose(labels, [0, 2, 1])
    total = int(np.prod([sampling.tile_counts(n, p) for n, p in zip(shape, patch, strict=True)]))
    for number in range(total):
        start, fresh = sampling.tile(tf.constant(shape), tf.constant(patch), number)
        label_map = sampling.cut(labels, start, patch, tf.constant(255, tf.uint8))
        label_map = sampling.forget(label_map, start, fresh)
        counted = np.argwhere(label_map.numpy() != 255) + start.numpy()
        assert (counted >= 0).all()
        np.add.at(seen, tuple(counted.T), 1)
    assert (seen == 1).all()


def test_two_lists_of_modalities_share_the_draws():
    schedule = sampling.Schedule(SUBJECTS[:1], 5, SUBJECTS[1:], 0.25)
    found = draws(schedule, 400)
    labelled = found[:, 0] == 0
    assert labelled.sum() == 100
    # Evenly spread, and each list balanced within itself.
    assert (labelled.reshape(-1, 4).sum(axis=1) == 1).all()
    assert (np.sort(found[~labelled, 0].reshape(-1, 2), axis=1) == [1, 2]).all()
    assert set(found[found[:, 0] == 1, 1]) == {4, 5}
    assert set(found[found[:, 0] == 2, 1]) == {6}


@pytest.mark.parametrize("others", [[], SUBJECTS[1:]])
def test_visits_say_where_each_stream_stands(others):
    schedule = sampling.Schedule([SUBJECTS[0], SUBJECTS[2]], 5, others, 0.4 if others else 1.0)
    found = draws(schedule, 50)[:, 0]
    for draw in (0, 1, 7, 23, 50):
        expected = np.bincount(found[:draw], minlength=schedule.count)
        visits = schedule.visits(tf.constant(draw, tf.int64)).numpy()
        assert visits.tolist() == expected.tolist()
