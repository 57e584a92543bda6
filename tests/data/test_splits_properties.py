"""Splits of any study: no subject, file or copy in two of them, nothing lost, the same again."""

import collections
import dataclasses

from hypothesis import given, settings
from hypothesis import strategies as st

from keras_unigan.config import Case, Labels, Study
from keras_unigan.data import splits
from keras_unigan.data.splits import balance
from keras_unigan.errors import CodedError

MODALITIES = ("ct", "t1", "t2")
LABELS = Labels(classes={"a": (1,), "b": (2,)})
FRACTIONS = ((0.6, 0.2, 0.2), (0.8, 0.2, 0.0), (0.5, 0.0, 0.5), (1.0, 0.0, 0.0))


@st.composite
def studies(draw):
    """A study of up to 12 subjects with visits, sites, shared files and splits of its own."""
    cases, together = [], []
    names = [f"s{i}" for i in range(draw(st.integers(1, 12)))]
    for subject in names:
        own = draw(st.sampled_from((None, None, None, "train", "val", "test")))
        for visit in draw(st.sampled_from(((None,), (None,), ("a", "b")))):
            for modality in draw(st.sets(st.sampled_from(MODALITIES), min_size=1)):
                label = draw(st.sampled_from((None, f"{subject}_l.nii", "shared.nii")))
                image = f"{subject}{visit}{modality}.nii"
                site = draw(st.sampled_from((None, "x", "y")))
                cases.append(Case(subject, modality, image, label, own, site, visit))
    for subject in names:
        if draw(st.integers(0, 5)) == 0:
            together.append((subject, draw(st.sampled_from(names))))
    classes = {s: draw(st.sets(st.sampled_from(LABELS.foreground))) for s in names}
    return Study("study", MODALITIES, LABELS, tuple(cases)), classes, together


def all_ids(study, made):
    return sorted(c.id for c in (*study.cases, *made.left_out))


def check_no_leak(whole, study, made, together):
    """Asserts that nothing of one subject, file or copy is in two splits and that all is there."""
    split = {}
    for case in study.cases:
        assert split.setdefault(case.subject, case.split) == case.split
    assert all_ids(study, made) == sorted(c.id for c in whole.cases)
    files = collections.defaultdict(set)
    for case in study.cases:
        for name in (case.image, case.label):
            files[name].add(case.split)
    files.pop(None, None)
    assert all(len(found) == 1 for found in files.values())
    for a, b in together:
        if a in split and b in split:
            assert split[a] == split[b]
    if not made.scheme.pairs:
        modalities = collections.defaultdict(set)
        for case in study.cases:
            if case.split != "test":
                modalities[case.subject].add(case.modality)
        assert all(len(found) == 1 for found in modalities.values())
    for subject, place in made.subjects.items():
        assert split.get(subject, place.split) == place.split


@settings(deadline=None, max_examples=150)
@given(studies(), st.sampled_from(FRACTIONS), st.booleans(), st.integers(0, 3))
def test_one_split(found, fractions, pairs, seed):
    whole, classes, together = found
    scheme = splits.Scheme(fractions, pairs=pairs, seed=seed)
    study, made = splits.assign(whole, scheme, classes, together)
    check_no_leak(whole, study, made, together)
    assert {c.subject for c in study.cases} == {c.subject for c in whole.cases}
    # The order of the cases decides nothing.
    turned = dataclasses.replace(whole, cases=whole.cases[::-1])
    again, _ = splits.assign(turned, scheme, classes, together)
    assert {c.id: c.split for c in again.cases} == {c.id: c.split for c in study.cases}


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(MODALITIES),
            st.sets(st.sampled_from(LABELS.foreground)),
            st.sampled_from((None, "x", "y")),
        ),
        min_size=1,
        max_size=20,
    )
)
def test_modalities_are_shared_out_exactly_whatever_the_classes(subjects):
    cases = tuple(
        Case(f"s{i}", modality, f"s{i}.nii", site=site)
        for i, (modality, _, site) in enumerate(subjects)
    )
    classes = {f"s{i}": shown for i, (_, shown, _) in enumerate(subjects)}
    whole = Study("study", MODALITIES, LABELS, cases)
    study, _ = splits.assign(whole, splits.Scheme(), classes)
    for modality in MODALITIES:
        own = [c.split for c in study.cases if c.modality == modality]
        wanted = balance.share_out(len(own), (0.6, 0.2, 0.2))
        assert [own.count(name) for name in ("train", "val", "test")] == wanted


@settings(deadline=None, max_examples=100)
@given(studies(), st.sampled_from(FRACTIONS), st.integers(2, 4))
def test_folds(found, fractions, count):
    whole, classes, together = found
    try:
        study, made = splits.assign(whole, splits.Scheme(fractions, folds=count), classes, together)
    except CodedError as error:
        # Only where there are too few that could take turns.
        if f"{count} folds of " not in str(error):
            raise
        return
    validated = collections.Counter()
    tested = {s for s, p in made.subjects.items() if p.split == "test"}
    for fold in range(count):
        study, made = splits.take_fold(study, made, fold)
        check_no_leak(whole, study, made, together)
        assert {c.split for c in study.cases} >= {"train", "val"}
        validated.update(s for s, p in made.subjects.items() if p.split == "val")
        assert {s for s, p in made.subjects.items() if p.split == "test"} == tested
    # Each subject that is not for testing validates once.
    assert set(validated.values()) == {1}
    assert set(validated) == set(made.subjects) - tested


@settings(deadline=None, max_examples=100)
@given(studies(), st.sampled_from(FRACTIONS))
def test_leave_one_site_out(found, fractions):
    whole, classes, together = found
    cases = [dataclasses.replace(c, site=c.site or "xyz"[i % 3]) for i, c in enumerate(whole.cases)]
    whole = dataclasses.replace(whole, cases=tuple(cases))
    if len({c.site for c in cases}) < 2:
        return
    scheme = splits.Scheme(fractions, leave_one_site_out=True)
    study, made = splits.assign(whole, scheme, classes, together)
    for fold, site in enumerate(made.sites):
        study, made = splits.take_fold(study, made, fold)
        check_no_leak(whole, study, made, together)
        assert {c.site for c in study.cases if c.split == "test"} == {site}
        assert site not in {c.site for c in study.cases if c.split != "test"}
