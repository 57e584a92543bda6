"""Makes the splits: by subject over modalities and visits, balanced, one modality a subject."""

import collections
import dataclasses

from keras_unigan.config import SPLITS, prelabelled_error
from keras_unigan.data.splits import units
from keras_unigan.data.splits.assignment import Assignment, Place, Scheme
from keras_unigan.data.splits.balance import allot, deal, one_modality
from keras_unigan.errors import CodedError


def split(study, fractions=(0.6, 0.2, 0.2), seed=0):
    """Gives every subject a split, and each training or validation subject one modality.

    Short for `assign` with a scheme of fractions alone.

    Args:
        study: `config.Study`.
        fractions: Shares of train, val and test.
        seed: Seed of the shuffle.

    Returns:
        `config.Study` with a split in every case, without the cases that are left out.

    Raises:
        ValueError: When fractions are not three shares that sum to 1 with a positive first.
    """
    return assign(study, Scheme(tuple(fractions), seed=seed))[0]


def assign(study, scheme, classes=None, together=(), fold=None):
    """Shares the subjects of a study out.

    Subjects are never torn apart: all modalities and visits of one, subjects that share a file and
    those that `together` names have one split and one fold. Every part gets about the same share of
    each modality, class and site. A split that a case has already stays; with folds only "test"
    does, and where each site is the test set once, none does.

    Of a training or validation subject with several modalities one is kept (round-robin, see
    `balance.one_modality`), because unpaired training must never see two modalities of one subject;
    test subjects keep all they have (methods.md §9). It is the same one in all folds.

    Args:
        study: `config.Study` with all cases.
        scheme: `Scheme`.
        classes: Subject -> classes that its label maps show; None balances no classes.
        together: Pairs of subjects that must not be torn apart.
        fold: Which fold to make of several; None: the first.

    Returns:
        `config.Study` of the fold, and its `Assignment`.

    Raises:
        CodedError: KUG-T02 for more folds than groups of subjects, a fold that is not there, or
            sites that do not allow the scheme; KUG-D37 for a study with synthetic images.
    """
    classes = classes or {}
    made = next((case.id for case in study.cases if case.synthetic), None)
    if made is not None:
        raise CodedError(
            "KUG-D37",
            made,
            "a synthetic image in a study that is to be split",
            "scans alone",
            "It was made of training subjects, and would leak them into another split.",
            "split the scans first, then unigan synthesize from a run that was trained on them",
        )
    made = next((case.id for case in study.cases if case.prelabelled), None)
    if made is not None:
        fix = "split the scans first, then unigan prelabel"
        raise prelabelled_error(made, "in a study that is to be split", fix)
    groups = units.linked(study, together)
    found = units.units_of(study.cases, groups, classes)
    sites = _sites(study) if scheme.leave_one_site_out else ()
    if sites:
        folds = _by_site(study, found, sites)
        parts = dict.fromkeys(folds, SPLITS[0])
    else:
        parts = _parts(found, scheme)
        folds = _folds(found, parts, scheme) if scheme.folds else dict.fromkeys(parts)
    kept = _modalities(study, found, parts, folds, scheme, classes)
    places = {
        subject: Place(
            parts[unit.name],
            folds[unit.name],
            kept.get(subject),
            unit.name,
            tuple(sorted(classes.get(subject, ()))),
        )
        for unit in found
        for subject in unit.subjects
    }
    order = {c.subject: None for c in study.cases}
    made = Assignment(study.name, scheme, {s: places[s] for s in order}, None, sites)
    return take_fold(study, made, 0 if fold is None and made.folds else fold)


def take_fold(study, made, fold):
    """Makes one fold of a study that was shared out.

    Args:
        study: `config.Study` of any fold; its cases with those of `made.left_out` are all cases.
        made: `Assignment`.
        fold: Number of the fold: the one that validates or, by sites, tests. None without folds.

    Returns:
        `config.Study` and `Assignment` of that fold.

    Raises:
        CodedError: KUG-T02 for a fold that is not there, KUG-D08 for a subject without a place.
    """
    if fold is not None and not 0 <= fold < made.folds:
        count = f"0 to {made.folds - 1}" if made.folds else "none: it was split without folds"
        raise CodedError("KUG-T02", "fold", f"{fold}", f"a fold: {count}",
                         fix="unigan split study.json --folds 5 --overwrite")  # fmt: skip
    cases = whole(study, made).cases
    new = sorted({c.subject for c in cases} - set(made.subjects))
    if new:
        raise CodedError(
            "KUG-D08", "assignment", f"no place for {len(new)} subjects, {new[0]!r} first",
            "every subject of the study",
            fix="share them out again: unigan split study.json --overwrite",
        )  # fmt: skip
    parts = _of_fold(cases, made, fold)
    places = {s: dataclasses.replace(p, split=parts[s]) for s, p in made.subjects.items()}
    used, left = [], []
    for case in cases:
        place = places[case.subject]
        good = place.split == "test" or place.modality in (None, case.modality)
        if made.sites and place.split == "test":
            # Scans of a test subject from a site that is trained on tell nothing of a new site.
            good = case.site == made.sites[fold]
        if good:
            used.append(dataclasses.replace(case, split=place.split))
        else:
            left.append(dataclasses.replace(case, split=None))
    made = dataclasses.replace(made, subjects=places, fold=fold, left_out=tuple(left))
    return dataclasses.replace(study, cases=tuple(used)), made


def whole(study, made):
    """The study with the cases that an assignment leaves out, in the order of their names."""
    if not made.left_out:
        return study
    known = {c.id for c in study.cases}
    splits = {c.subject: c.split for c in study.cases}
    more = [
        dataclasses.replace(c, split=splits.get(c.subject))
        for c in made.left_out
        if c.id not in known
    ]
    cases = sorted([*study.cases, *more], key=lambda c: c.id)
    return dataclasses.replace(study, cases=tuple(cases))


def _parts(found, scheme):
    """Name of a unit -> split. With folds, all that is not for testing is "train"."""
    shares, names = scheme.fractions, SPLITS
    if scheme.folds:
        shares, names = (1 - shares[2], shares[2]), ("train", "test")
    parts = {}
    for unit in found:
        given = unit.given if not scheme.folds or unit.given in (None, "test") else "train"
        if given is not None:
            parts[unit.name] = given
    free = allot([u for u in found if u.name not in parts], shares, scheme.seed)
    return parts | {name: names[part] for name, part in free.items()}


def _folds(found, parts, scheme):
    """Name of a unit -> fold, or None for those that are for testing."""
    members = [u for u in found if parts[u.name] != "test"]
    if len(members) < scheme.folds:
        raise CodedError(
            "KUG-T02", "folds", f"{scheme.folds} folds of {len(members)} subjects that are not "
            "for testing", "one subject a fold at least", fix="ask for fewer folds",
        )  # fmt: skip
    folds = deal(members, scheme.folds, f"{scheme.seed} folds")
    return {unit.name: folds.get(unit.name) for unit in found}


def _sites(study):
    """Sites of a study, sorted.

    Raises:
        CodedError: KUG-T02 where a case has none or all have the same.
    """
    sites = sorted({c.site for c in study.cases if c.site is not None})
    bare = [c.id for c in study.cases if c.site is None]
    if bare or len(sites) < 2:
        found = f"{len(bare)} cases without a site, {bare[0]} first" if bare else f"sites {sites}"
        raise CodedError(
            "KUG-T02", "leave-one-site-out", found, "a site in every case, and two of them",
            fix="add a column `site` to the CSV file or to participants.tsv",
        )  # fmt: skip
    return tuple(sites)


def _by_site(study, found, sites):
    """Name of a unit -> number of the site where most of its scans were made."""
    scans = collections.Counter((c.subject, c.site) for c in study.cases)
    return {
        unit.name: max(
            range(len(sites)), key=lambda i: (sum(scans[s, sites[i]] for s in unit.subjects), -i)
        )
        for unit in found
    }


def _modalities(study, found, parts, folds, scheme, classes):
    """Subject -> the one modality that it trains or validates with."""
    if scheme.pairs:
        return {}
    choices = collections.defaultdict(set)
    for case in study.cases:
        choices[case.subject].add(case.modality)
    kept = {}
    # Trained and validated on apart, or balanced in each fold: either is a part of its own.
    for part in ("train", "val"):
        own = {s: u for u in found for s in u.subjects if parts[u.name] == part}
        kept |= one_modality(
            {s: choices[s] for s in own},
            study.modalities,
            f"{scheme.seed} {part}",
            {s: (folds[u.name], tuple(sorted(classes.get(s, ())))) for s, u in own.items()},
        )
    return kept


def _of_fold(cases, made, fold):
    """Subject -> split in one fold."""
    if fold is None:
        return {s: p.split for s, p in made.subjects.items()}
    if not made.sites:
        names = {None: "test", fold: "val"}
        return {s: names.get(p.fold, "train") for s, p in made.subjects.items()}
    tested = {p.group for p in made.subjects.values() if p.fold == fold}
    tested |= {made.subjects[c.subject].group for c in cases if c.site == made.sites[fold]}
    groups = {s: p.group for s, p in made.subjects.items() if p.group not in tested}
    classes = {s: p.classes for s, p in made.subjects.items()}
    rest = units.units_of([c for c in cases if c.subject in groups], groups, classes)
    train, val, _ = made.scheme.fractions
    shares = (train / (train + val), val / (train + val))
    parts = allot(rest, shares, f"{made.scheme.seed} site {fold}")
    return {
        s: SPLITS[parts[p.group]] if p.group in parts else "test" for s, p in made.subjects.items()
    }
