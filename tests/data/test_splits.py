"""Splits: by subject, balanced, repeatable, one modality a training subject."""

import collections

import pytest

from keras_unigan.config import Case, Labels, Study
from keras_unigan.data.splits import split

LABELS = Labels(classes={"a": (1,)})


def make_study(subjects):
    """Study of {subject: (modalities, split)}."""
    cases = [
        Case(subject=s, modality=m, image=f"{s}_{m}.nii", split=given)
        for s, (modalities, given) in subjects.items()
        for m in modalities
    ]
    names = tuple(sorted({c.modality for c in cases}))
    return Study("study", names, LABELS, tuple(cases))


def unpaired(count, modalities=("ct", "t1", "t2")):
    return {f"s{i:02d}": ((modalities[i % len(modalities)],), None) for i in range(count)}


def counted(study):
    return collections.Counter((c.split, c.modality) for c in study.cases)


@pytest.mark.parametrize(
    ("per_modality", "expected"),
    [(1, (1, 0, 0)), (2, (1, 1, 0)), (3, (1, 1, 1)), (5, (3, 1, 1)), (10, (6, 2, 2))],
)
def test_every_modality_gets_the_same_shares(per_modality, expected):
    result = split(make_study(unpaired(3 * per_modality)))
    counts = counted(result)
    for modality in ("ct", "t1", "t2"):
        assert tuple(counts[s, modality] for s in ("train", "val", "test")) == expected
    assert len(result.cases) == 3 * per_modality


def test_seeds():
    study = make_study(unpaired(30))
    assert split(study, seed=1) == split(study, seed=1)
    assert split(study, seed=1) != split(study, seed=2)
    # The order of the cases does not matter.
    turned = Study(study.name, study.modalities, LABELS, study.cases[::-1])
    assert {c.id: c.split for c in split(turned).cases} == {
        c.id: c.split for c in split(study).cases
    }


def test_paired_subjects_give_one_modality_each_but_are_tested_in_all():
    study = make_study({f"p{i}": (("flair", "t1c"), None) for i in range(4)})
    result = split(study)
    modalities, splits = collections.defaultdict(set), {}
    for case in result.cases:
        modalities[case.subject].add(case.modality)
        splits[case.subject] = case.split
    assert sorted(splits.values()) == ["test", "train", "train", "val"]
    for subject, name in splits.items():
        assert len(modalities[subject]) == (2 if name == "test" else 1)
    trained = [m for s, found in modalities.items() if splits[s] == "train" for m in found]
    assert sorted(trained) == ["flair", "t1c"]


def test_subjects_without_a_choice_are_made_up_for():
    subjects = {f"a{i}": (("t1",), None) for i in range(4)}
    subjects |= {f"b{i}": (("t1", "t2"), None) for i in range(4)}
    counts = counted(split(make_study(subjects), (1.0, 0.0, 0.0)))
    assert (counts["train", "t1"], counts["train", "t2"]) == (4, 4)


def test_given_splits_are_kept():
    subjects = unpaired(9)
    subjects |= {"x": (("ct", "t1"), "test"), "y": (("ct", "t1"), "train")}
    result = split(make_study(subjects))
    assert [(c.split, c.modality) for c in result.cases if c.subject == "x"] == [
        ("test", "ct"),
        ("test", "t1"),
    ]
    assert [c.split for c in result.cases if c.subject == "y"] == ["train"]


def test_visits_of_the_kept_modality_stay():
    cases = [
        Case("s", m, f"{v}{m}.nii", visit=v, split="train")
        for v in ("a", "b")
        for m in ("t1", "t2")
    ]
    result = split(Study("study", ("t1", "t2"), LABELS, tuple(cases)))
    assert [(c.visit, c.modality) for c in result.cases] == [("a", "t1"), ("b", "t1")]


@pytest.mark.parametrize(
    ("fractions", "text"),
    [
        ((0.5, 0.2, 0.2), "Expected fractions of train, val and test that sum to 1"),
        ((0.8, 0.2), "Expected fractions of train, val and test"),
        ((1.2, -0.1, -0.1), "Expected fractions of train, val and test"),
        ((0.0, 0.5, 0.5), "Expected a positive fraction for train, got 0.0"),
    ],
)
def test_bad_fractions(fractions, text):
    with pytest.raises(ValueError, match=text):
        split(make_study(unpaired(3)), fractions)
