"""Subjects that must not be torn apart, and what of them is to be balanced."""

import collections

from keras_unigan.config import SPLITS
from keras_unigan.data.splits.balance import Unit


def linked(study, pairs=()):
    """Subjects that belong together: those that share a file, and the given pairs.

    Args:
        study: `config.Study`.
        pairs: Pairs of subjects, such as those of copies.

    Returns:
        Subject -> first subject of its group.
    """
    parent = {case.subject: case.subject for case in study.cases}

    def root(subject):
        while parent[subject] != subject:
            parent[subject] = parent[parent[subject]]
            subject = parent[subject]
        return subject

    def link(a, b):
        first, second = sorted((root(a), root(b)))
        parent[second] = first

    owners: dict = {}
    for case in study.cases:
        # One label map for two subjects, or two channels of one file, are one scan.
        for name in (case.image, case.label):
            if name is not None:
                link(owners.setdefault(study.path(name), case.subject), case.subject)
    for a, b in pairs:
        link(a, b)
    return {subject: root(subject) for subject in parent}


def units_of(cases, groups, classes):
    """One `Unit` a group.

    Args:
        cases: All cases.
        groups: Subject -> name of its group.
        classes: Subject -> classes that its label maps show; subjects may lack.

    Returns:
        List of `Unit`s, sorted by name. A group whose cases have different splits is for training,
        else for validation: so nothing that was trained on is ever scored.
    """
    members, owned = collections.defaultdict(set), collections.defaultdict(list)
    for case in cases:
        members[groups[case.subject]].add(case.subject)
        owned[groups[case.subject]].append(case)
    units = []
    for group in sorted(members):
        own = owned[group]
        modalities = sorted({c.modality for c in own})
        shown = sorted({name for s in members[group] for name in classes.get(s, ())})
        traits = {("modality", m) for m in modalities} | {("class", name) for name in shown}
        traits |= {("class", name, m) for name in shown for m in modalities}
        traits |= {("site", c.site) for c in own if c.site is not None}
        traits |= {("labelled", c.modality) for c in own if c.label is not None}
        given = [name for name in SPLITS if any(c.split == name for c in own)]
        units.append(
            Unit(
                tuple(sorted(members[group])),
                tuple(modalities),
                frozenset(traits),
                given[0] if given else None,
            )
        )
    return units
