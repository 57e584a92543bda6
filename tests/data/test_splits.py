"""Splits: by subject, balanced, repeatable, one modality a training subject."""

import collections
import dataclasses

import pytest

from keras_unigan.config import Case, Labels, Study
from keras_unigan.data import splits
from keras_unigan.data.splits import split
from keras_unigan.errors import CodedError

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
    modalities, given = collections.defaultdict(set), {}
    for case in result.cases:
        modalities[case.subject].add(case.modality)
        given[case.subject] = case.split
    assert sorted(given.values()) == ["test", "train", "train", "val"]
    for subject, name in given.items():
        assert len(modalities[subject]) == (2 if name == "test" else 1)
    trained = [m for s, found in modalities.items() if given[s] == "train" for m in found]
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


def labelled(count, modality="t1", **fields):
    """Cases of subjects s00, s01, … with a label map each."""
    return tuple(
        Case(f"s{i:02d}", modality, f"s{i:02d}.nii", f"s{i:02d}_seg.nii",
             **{k: v(i) for k, v in fields.items()})
        for i in range(count)
    )  # fmt: skip


def test_classes_and_sites_are_balanced_beside_modalities():
    cases = (
        *labelled(20, site=lambda i: "AB"[i % 2]),
        *(dataclasses.replace(c, subject=f"x{c.subject}", modality="ct", image=f"x{c.image}",
                              label=f"x{c.label}") for c in labelled(20)),
    )  # fmt: skip
    # A quarter of the subjects shows b, and site A has most of it.
    rare = {f"s{i:02d}" for i in (0, 2, 4, 6, 1)} | {f"xs{i:02d}" for i in range(5)}
    classes = {c.subject: {"a", "b"} if c.subject in rare else {"a"} for c in cases}
    whole = Study("study", ("ct", "t1"), Labels(classes={"a": (1,), "b": (2,)}), cases)
    for seed in range(5):
        study, made = splits.assign(whole, splits.Scheme(seed=seed), classes)
        assert counted(study) == {
            (s, m): n for s, n in (("train", 12), ("val", 4), ("test", 4)) for m in ("ct", "t1")
        }
        shown = collections.Counter(
            (p.split, s[0]) for s, p in made.subjects.items() if "b" in p.classes
        )
        for start in "sx":
            assert [shown[name, start] for name in ("train", "val", "test")] == [3, 1, 1]
        sites = collections.Counter((c.split, c.site) for c in study.cases if c.site)
        for site in "AB":
            assert [sites[name, site] for name in ("train", "val", "test")] == [6, 2, 2]


def test_each_fold_looks_like_the_others():
    cases = labelled(18, site=lambda i: "AB"[i % 2])
    classes = {c.subject: {"b"} if i < 6 else set() for i, c in enumerate(cases)}
    whole = Study("study", ("t1",), Labels(classes={"b": (2,)}), cases)
    _, made = splits.assign(whole, splits.Scheme((0.8, 0.2, 0.0), folds=3), classes)
    folds = collections.Counter(p.fold for p in made.subjects.values())
    assert folds == {0: 6, 1: 6, 2: 6}
    assert collections.Counter(p.fold for p in made.subjects.values() if p.classes) == {
        0: 2, 1: 2, 2: 2
    }  # fmt: skip
    at_a = collections.Counter(made.subjects[c.subject].fold for c in cases if c.site == "A")
    assert at_a == {0: 3, 1: 3, 2: 3}


def test_a_paired_subject_gives_the_same_modality_in_every_fold():
    whole = make_study({f"p{i:02d}": (("ct", "t1", "t2"), None) for i in range(12)})
    study, made = splits.assign(whole, splits.Scheme((0.8, 0.2, 0.0), folds=4))
    given = {}
    for fold in range(4):
        study, made = splits.take_fold(study, made, fold)
        for case in study.cases:
            assert given.setdefault(case.subject, case.modality) == case.modality
        assert set(counted(study).values()) == {1, 3}
    assert collections.Counter(given.values()) == {"ct": 4, "t1": 4, "t2": 4}
    paired, made = splits.assign(whole, splits.Scheme(pairs=True))
    assert len(paired.cases) == 36
    assert made.left_out == ()


def test_subjects_that_share_a_file_or_a_scan_stay_together():
    cases = [Case(f"s{i}", "t1", f"s{i}.nii", "one.nii" if i < 2 else None) for i in range(9)]
    cases += [Case("a", "t1", "4d.nii", channel=0), Case("b", "t1", "4d.nii", channel=1)]
    whole = Study("study", ("t1",), LABELS, tuple(cases))
    _, made = splits.assign(whole, splits.Scheme(), together=[("s7", "s8"), ("s8", "a")])
    assert sorted(made.groups) == [("s0", "s1"), ("s7", "s8", "a", "b")]
    for group in made.groups:
        assert len({made.subjects[s].split for s in group}) == 1
    # What was trained on is never scored, whoever said so.
    own = [dataclasses.replace(c, split="test" if c.subject == "s8" else None) for c in cases]
    own[7] = dataclasses.replace(own[7], split="train")
    study = dataclasses.replace(whole, cases=tuple(own))
    _, made = splits.assign(study, splits.Scheme(), together=[("s7", "s8")])
    assert made.subjects["s8"].split == "train"


def test_leave_one_site_out():
    cases = labelled(12, site=lambda i: ("Oslo", "Rome", "Ulm")[i % 3])
    # One subject moved: at Rome it is tested, what was seen of it at Ulm is then left out.
    cases = (*cases, dataclasses.replace(cases[1], visit="2", image="later.nii", site="Ulm"))
    whole = Study("study", ("t1",), LABELS, cases)
    study, made = splits.assign(whole, splits.Scheme(leave_one_site_out=True), fold=1)
    assert (made.sites, made.folds, made.fold) == (("Oslo", "Rome", "Ulm"), 3, 1)
    tested = [c for c in study.cases if c.split == "test"]
    assert {c.site for c in tested} == {"Rome"}
    assert [c.id for c in made.left_out] == ["s01_2_t1"]
    rest = collections.Counter(c.split for c in study.cases)
    assert rest == {"train": 6, "val": 2, "test": 4}
    for bad, text in (
        (cases[:1], r"sites \['Oslo'\]"),
        ((*cases, Case("n", "t1", "n.nii")), "1 cases without a site, n_t1 first"),
    ):
        with pytest.raises(CodedError, match=rf"KUG-T02 leave-one-site-out: .*{text}"):
            splits.assign(
                dataclasses.replace(whole, cases=bad), splits.Scheme(leave_one_site_out=True)
            )


def test_assignment_file(tmp_path):
    whole = make_study({f"p{i:02d}": (("ct", "t1"), None) for i in range(6)})
    study, made = splits.assign(whole, splits.Scheme(folds=2), {"p00": {"a"}}, [("p00", "p01")])
    assert splits.path_of(tmp_path / "my.study.json").name == "my.study.assignment.json"
    file = splits.path_of(tmp_path / "study.json")
    made.save(file)
    assert splits.Assignment.load(file) == made
    again = splits.whole(study, made)
    assert sorted(c.id for c in again.cases) == sorted(c.id for c in whole.cases)
    with pytest.raises(CodedError, match="KUG-T02 fold: found 2, expected a fold: 0 to 1"):
        splits.take_fold(study, made, 2)
    more = dataclasses.replace(study, cases=(*study.cases, Case("new", "ct", "new.nii")))
    with pytest.raises(
        CodedError, match="KUG-D08 assignment: found no place for 1 subjects, 'new'"
    ):
        splits.take_fold(more, made, 0)
    file.write_text(file.read_text().replace('"version": 1', '"version": 9'))
    with pytest.raises(CodedError, match=r"KUG-D08 assignment.version: found 9, expected 1"):
        splits.Assignment.load(file)
    file.write_text(file.read_text().replace('"version": 9', '"versoin": 1'))
    with pytest.raises(CodedError, match="did you mean 'version'"):
        splits.Assignment.load(file)


def test_schemes_that_cannot_be():
    with pytest.raises(CodedError, match="KUG-T02 folds: found 1, expected 2 or more"):
        splits.Scheme(folds=1)
    with pytest.raises(CodedError, match="KUG-T02 folds: found folds beside leave-one-site-out"):
        splits.Scheme(folds=3, leave_one_site_out=True)
    with pytest.raises(CodedError, match="KUG-T02 folds: found 5 folds of 3 subjects"):
        splits.assign(make_study(unpaired(4)), splits.Scheme((0.7, 0, 0.3), folds=5))
    with pytest.raises(CodedError, match=r"KUG-T02 fold: found 1, expected a fold: none"):
        splits.assign(make_study(unpaired(4)), splits.Scheme(), fold=1)
