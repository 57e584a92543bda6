"""Splits by subject, balanced over modalities; each training subject gives one modality."""

import collections
import dataclasses
import random

from keras_unigan.config import SPLITS


def split(study, fractions=(0.6, 0.2, 0.2), seed=0):
    """Gives every subject a split, and each training or validation subject one modality.

    Subjects that have the same modalities are shuffled and shared out together, so that every split
    sees each modality in about the same share. A subject whose cases have a split already keeps it.
    Of a training or validation subject with several modalities one is kept (the one with the fewest
    subjects so far: round-robin), because unpaired training must never see two modalities of one
    subject; test subjects keep all they have (methods.md §9).

    Args:
        study: `config.Study`.
        fractions: Shares of train, val and test; each positive one gets at least one subject of a
            group as long as there are enough, train before val before test.
        seed: Seed of the shuffle.

    Returns:
        `config.Study` with a split in every case.

    Raises:
        ValueError: When fractions are not three shares that sum to 1 with a positive first.
    """
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(
            f"Expected fractions of train, val and test that sum to 1, got {fractions}."
        )
    if fractions[0] <= 0:
        raise ValueError(f"Expected a positive fraction for train, got {fractions[0]}.")
    modalities, splits = collections.defaultdict(set), {}
    for case in study.cases:
        modalities[case.subject].add(case.modality)
        splits[case.subject] = case.split
    groups = collections.defaultdict(list)
    for subject in sorted(modalities):
        if splits[subject] is None:
            groups[tuple(sorted(modalities[subject]))].append(subject)
    for key in sorted(groups):
        subjects = groups[key]
        random.Random(f"{seed} {' '.join(key)}").shuffle(subjects)
        counts = _share_out(len(subjects), fractions)
        names = [name for name, n in zip(SPLITS, counts, strict=True) for _ in range(n)]
        splits.update(zip(subjects, names, strict=True))
    kept = _one_modality(study, modalities, splits, seed)
    cases = tuple(
        dataclasses.replace(case, split=splits[case.subject])
        for case in study.cases
        if splits[case.subject] == "test" or kept[case.subject] == case.modality
    )
    return dataclasses.replace(study, cases=cases)


def _share_out(count, fractions):
    """Whole numbers that sum to `count` in about these shares."""
    wanted = [i for i, f in enumerate(fractions) if f > 0]
    result = [0, 0, 0]
    for i in wanted[:count]:
        result[i] = 1
    while sum(result) < count:
        behind = max(wanted, key=lambda i: fractions[i] * count - result[i])
        result[behind] += 1
    return result


def _one_modality(study, modalities, splits, seed):
    """Subject -> the modality that it gives to training or validation."""
    kept = {}
    for name in ("train", "val"):
        choices = {s: found for s, found in modalities.items() if splits[s] == name}
        kept.update(one_modality(choices, study.modalities, f"{seed} {name}"))
    return kept


def one_modality(choices, modalities, seed):
    """Gives each subject one of its modalities: round-robin, the rarest first.

    Args:
        choices: Subject -> the modalities that it has.
        modalities: All modalities; of equally rare ones the first is taken.
        seed: Text or number that decides the order of the subjects.

    Returns:
        Subject -> modality.
    """
    subjects = sorted(choices)
    random.Random(seed).shuffle(subjects)
    # Those without a choice first, so that the others can make up for them.
    subjects.sort(key=lambda s: len(choices[s]))
    kept, counts = {}, dict.fromkeys(modalities, 0)
    for subject in subjects:
        kept[subject] = min((m for m in modalities if m in choices[subject]), key=counts.get)
        counts[kept[subject]] += 1
    return kept
