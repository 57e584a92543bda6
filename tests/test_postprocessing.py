"""Steps that take components out of label maps, and how validation cases choose them."""

import dataclasses

import hypothesis
import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import numpy as np
import pytest
from scipy import ndimage

from keras_unigan import config, inference, metrics, postprocessing, step_selection
from keras_unigan.errors import CodedError
from keras_unigan.postprocessing import LARGEST, SMALL, Postprocessing, Step
from keras_unigan.step_selection import Case

NAMES = ("organ", "lesion")
MASKS = arrays.arrays(bool, (2, 5, 4, 3))


def masks_of(text):
    """Masks of organ (o) and lesion (x) from lines of one slice."""
    rows = np.array([list(line) for line in text.split()])
    return np.stack([rows == letter for letter in "ox"])[..., None]


def case_of(truth, prediction, modality="ct", judged=None, names=NAMES, voxel=1.0):
    judged = np.ones(truth.shape[1:], bool) if judged is None else judged
    return Case(modality, truth, prediction, judged, names, voxel)


def test_steps_worked_by_hand():
    masks = masks_of("ooo..x ooo... .....o x....o")
    kept = postprocessing.apply_step(Step(LARGEST), masks, NAMES, 1.0)
    np.testing.assert_array_equal(kept, masks_of("ooo... ooo... ...... ......"))
    kept = postprocessing.apply_step(Step(LARGEST, "organ"), masks, NAMES, 1.0)
    np.testing.assert_array_equal(kept, masks_of("ooo..x ooo... ...... x....."))
    # Of two lesions of one voxel the first stays; what is at most the size goes, as a volume.
    kept = postprocessing.apply_step(Step(LARGEST, "lesion"), masks, NAMES, 1.0)
    np.testing.assert_array_equal(kept, masks_of("ooo..x ooo... .....o .....o"))
    steps = Postprocessing((Step(SMALL, "organ", 6.0),))
    kept = steps.apply(masks, NAMES, (1.0, 1.5, 2.0))  # voxels of 3 mm³: 18 and 6
    np.testing.assert_array_equal(kept, masks_of("ooo..x ooo... ...... x....."))
    assert steps.apply(masks, NAMES, (1.0, 1.5, 2.1)) is masks


def test_components_may_touch_by_a_corner():
    masks = masks_of("o.... .o... ..... ...oo")
    kept = postprocessing.apply_step(Step(LARGEST, "organ"), masks, NAMES, 1.0)
    np.testing.assert_array_equal(kept, masks_of("o.... .o... ..... ....."))


@hypothesis.given(MASKS, st.sampled_from([None, *NAMES]), st.floats(0, 30))
def test_steps_only_take_away_and_do_so_once(masks, name, size):
    for step in (Step(LARGEST, name), Step(SMALL, name, size)):
        kept = postprocessing.apply_step(step, masks, NAMES, 2.0)
        assert not (kept & ~masks).any()
        np.testing.assert_array_equal(postprocessing.apply_step(step, kept, NAMES, 2.0), kept)
        looked_at = kept.any(0) if name is None else kept[NAMES.index(name)]
        _, sizes = postprocessing.components(looked_at)
        before = masks.any(0) if name is None else masks[NAMES.index(name)]
        if step.kind == LARGEST:
            assert len(sizes) == min(before.any(), 1)
            assert sizes.sum() == max(postprocessing.components(before)[1], default=0)
        else:
            assert (sizes * 2.0 > size * (1 - 1e-5)).all()
        others = [n for n in NAMES if name not in (None, n)]
        for other in others:
            n = NAMES.index(other)
            np.testing.assert_array_equal(kept[n], masks[n])


def test_what_helps_is_kept_and_what_hurts_one_name_is_not():
    truth = masks_of("oooo.. oooo.. ...... .x..x.")
    prediction = masks_of("oooo.o oooo.. ...... .x..x.")
    found = step_selection.learn([case_of(truth, prediction)], NAMES)
    # The largest component of all would take both lesions, that of the organ its crumb.
    assert found.steps == (Step(LARGEST, "organ"),)
    assert found.learned["dice_before"] == pytest.approx((16 / 17 + 1) / 2)
    assert found.learned["dice_after"] == 1.0
    verdicts = {tried["step"]: tried for tried in found.learned["tried"]}
    lost = verdicts["largest component of all foreground"]
    assert not lost["kept"]
    assert lost["reason"].startswith("lesion in ct would fall: 1.0000 -> 0.0000")
    assert "no gain" not in verdicts["largest component of organ"]["reason"]
    # With both lesions true, the largest alone is worse; there is no false one to drop.
    assert "would fall" in verdicts["largest component of lesion"]["reason"]
    assert not any(name.startswith("components of") for name in verdicts)
    assert found.learned["table"][0] == {
        "modality": "ct", "name": "organ", "cases": 1,
        "before": pytest.approx(16 / 17), "after": 1.0,
    }  # fmt: skip


def test_a_name_that_falls_in_one_modality_only_is_enough_to_refuse():
    one, two = masks_of("xx..x. ......"), masks_of("xx.... ......")
    gains = [case_of(two, one, "t1") for _ in range(5)]
    assert step_selection.learn(gains, NAMES).steps == (Step(LARGEST),)
    refused = step_selection.learn([*gains, case_of(one, one, "ct")], NAMES)
    assert refused.steps == ()
    reasons = {t["step"]: t["reason"] for t in refused.learned["tried"]}
    assert reasons.pop("largest component of organ").startswith("no gain")
    assert len(reasons) == 3
    assert all("lesion in ct would fall" in reason for reason in reasons.values())


def test_the_least_size_that_does_best_is_chosen():
    truth = masks_of("xxxx.... ........ ....xxx. ........")
    prediction = masks_of("xxxx.x.x ........ x...xxx. x..x....")
    found = step_selection.learn([case_of(truth, prediction, voxel=0.5)], NAMES)
    # Crumbs of one and two voxels (0.5 and 1 mm³); the true lesions have 4 and 3 or more.
    assert found.steps == (Step(SMALL, "lesion", 1.0),)
    assert found.learned["dice_after"] == pytest.approx(2 * 7 / (7 + 8))


def test_what_nobody_labelled_or_looked_for_teaches_nothing():
    truth, prediction = masks_of("ooo... ......"), masks_of("ooo..o ......")
    judged = np.ones(truth.shape[1:], bool)
    judged[0, 5] = False
    assert step_selection.learn([case_of(truth, prediction, judged=judged)], NAMES).steps == ()
    assert step_selection.learn([case_of(truth, prediction, names=("lesion",))], NAMES).steps == ()
    assert step_selection.learn([case_of(truth, prediction)], NAMES).steps == (Step(LARGEST),)


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
    st.lists(st.tuples(MASKS, MASKS, arrays.arrays(bool, (5, 4, 3))), min_size=1, max_size=3)
)
def test_no_name_is_ever_worse_for_what_was_learnt(drawn):
    cases = [case_of(t, p, "ct" if n else "t1", j) for n, (t, p, j) in enumerate(drawn)]
    found = step_selection.learn([case.cropped() for case in cases], NAMES)
    rows = {(row["modality"], row["name"]): row for row in found.learned["table"]}
    for (modality, name), row in rows.items():
        # A name that nobody has and nobody finds any more has no Dice left to fall.
        assert not row["after"] < row["before"] - 1e-9
        index, own = NAMES.index(name), [c for c in cases if c.modality == modality]
        dices = [
            metrics.dice(
                c.truth[index] & c.judged,
                found.apply(c.prediction, NAMES, (1, 1, 1))[index] & c.judged,
            )
            for c in own
        ]
        some = [d for d in dices if d == d]
        expected = np.mean(some) if some else np.nan
        np.testing.assert_allclose(row["after"], expected, atol=1e-9)
    if found.steps:
        assert found.learned["dice_after"] > found.learned["dice_before"]


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(MASKS, MASKS)
def test_a_size_is_judged_as_if_it_had_been_applied(truth, prediction):
    case = case_of(truth, prediction, voxel=3.0)
    before = step_selection._scores([case], NAMES)
    step = step_selection._best_size([case], NAMES, "lesion", before)
    numbers, sizes = ndimage.label(prediction[1], np.ones((3, 3, 3)))
    wrong = {
        3.0 * np.sum(numbers == n) for n in range(1, sizes + 1) if not truth[1][numbers == n].any()
    }
    if not wrong:
        assert step is None
        return

    def dice(size):
        kept = postprocessing.apply_step(Step(SMALL, "lesion", size), prediction, NAMES, 3.0)
        found = metrics.dice(truth[1], kept[1])
        return -1.0 if found != found else found

    falls = [size for size in wrong if 0 <= dice(size) < before["ct", "lesion"][0] - 1e-9]
    allowed = set(wrong) - set(falls) or set(wrong)
    if dice(step.larger_than) >= 0:
        assert dice(step.larger_than) == pytest.approx(max(map(dice, allowed)))


def test_a_file_gives_the_same_steps_back(tmp_path):
    truth, prediction = masks_of("ooo... ......"), masks_of("ooo..o ......")
    found = step_selection.learn([case_of(truth, prediction)], NAMES)
    path = found.save(tmp_path)
    loaded = Postprocessing.load(tmp_path)
    assert (loaded.steps, loaded.learned) == (found.steps, config.finite(found.learned))
    assert Postprocessing.of_steps(found.described).steps == found.steps
    assert Postprocessing.load(tmp_path / "other") is None
    for text in ('{"steps": [{"kind": "shrink"}]}', '{"steps": [{"size": 3}]}', '{"a": 1}'):
        path.write_text(text)
        with pytest.raises(CodedError, match=r"KUG-D08 .*postprocessing\.json"):
            Postprocessing.load(tmp_path)
    with pytest.raises(CodedError, match="minimum_size"):
        Step(SMALL, "organ")
    with pytest.raises(CodedError, match="a step for 'kidney'"):
        postprocessing.apply_step(Step(LARGEST, "kidney"), prediction, NAMES, 1.0)


@pytest.mark.parametrize(
    "labels",
    [
        config.Labels(classes={"organ": (3, 4), "lesion": (9,)}),
        config.Labels(regions={"whole": (1, 2), "core": (2,)}),
    ],
)
def test_masks_are_painted_as_probabilities_are(labels):
    shape = (6, 5, 4, len(labels.names))
    probabilities = np.random.default_rng(0).uniform(size=shape).astype(np.float32)
    masks = postprocessing.predicted_masks(probabilities, labels)
    painted = postprocessing.paint(masks, labels)
    np.testing.assert_array_equal(painted, inference.paint(probabilities, labels))
    assert len(np.unique(painted)) == 3


def test_cropping_changes_no_verdict():
    truth, prediction = masks_of(".... .oo. .... ...."), masks_of(".... .oo. .... .o..")
    case = case_of(truth, prediction)
    small = case.cropped()
    assert small.truth.shape == (2, 3, 2, 1)
    first, second = (step_selection.learn([c], NAMES) for c in (case, small))
    assert first == second
    empty = dataclasses.replace(case, truth=truth & False, prediction=truth & False).cropped()
    assert empty.truth.shape == (2, 1, 1, 1)
