"""Shares subjects out so that every part gets about as much of each trait.

Traits are whatever a subject has: modalities, sites, classes. The rarest trait is shared out first,
as iterative stratification does (Sechidis et al. 2011, doi:10.1007/978-3-642-23808-6_10); unlike
there, the subjects that have the very same modalities are shared out exactly, and swaps among them
mend what was chosen too early.
"""

import collections
import dataclasses
import itertools
import random
from collections.abc import Iterable

_MOST_KINDS = 200
"""Kinds of subjects of one stratum among which swaps are tried."""
_SWEEPS = 10


@dataclasses.dataclass(frozen=True)
class Unit:
    """Subjects that must stay together.

    Attributes:
        subjects: Their names, sorted.
        stratum: Its modalities; units of one stratum are shared out exactly if there are enough.
        traits: What is to be balanced; values that sort.
        given: Split that the data say, or None.
    """

    subjects: tuple[str, ...]
    stratum: tuple[str, ...]
    traits: frozenset[tuple[str, ...]]
    given: str | None = None

    @property
    def name(self):
        """The first subject."""
        return self.subjects[0]


def allot(units: Iterable[Unit], shares, seed):
    """Gives each unit a part: training, validation, test.

    A part with a positive share gets one unit of a trait (and of a stratum) at least, as long as
    there are enough, the first part before the second.

    Args:
        units: `Unit`s.
        shares: Share of each part; they sum to 1.
        seed: Text or number that decides between equals.

    Returns:
        Name of a unit -> number of its part.
    """
    of = {unit.name: unit for unit in units}
    counts = collections.Counter(t for unit in of.values() for t in unit.traits)
    need = {trait: share_out(count, shares) for trait, count in counts.items()}
    sizes = collections.Counter(unit.stratum for unit in of.values())
    parts = sum(share > 0 for share in shares)
    quotas = {s: share_out(n, shares) for s, n in sizes.items() if n >= parts}

    def room(unit, total):
        quota = quotas.get(unit.stratum, shares)
        return [i for i, share in enumerate(shares) if share > 0 and quota[i] > 0]

    def placed(unit, part):
        if unit.stratum in quotas:
            quotas[unit.stratum][part] -= 1

    return _rarest_first(of, counts, need, shares, seed, room, placed)


def deal(units: Iterable[Unit], count, seed):
    """Gives each unit one of `count` folds, whose sizes differ by one unit at most.

    Args:
        units: `Unit`s, `count` of them at least.
        count: Number of folds.
        seed: Text or number that decides between equals.

    Returns:
        Name of a unit -> number of its fold.
    """
    of = {unit.name: unit for unit in units}
    counts = collections.Counter(t for unit in of.values() for t in unit.traits)
    need = {trait: [n / count] * count for trait, n in counts.items()}

    def room(unit, total):
        return [i for i, left in enumerate(total) if left > 0]

    shares = (1 / count,) * count
    return _rarest_first(of, counts, need, shares, seed, room, lambda unit, part: None)


def _rarest_first(of, counts, need, shares, seed, room, placed):
    """Places the units of the rarest trait, then those of the rarest that is left, and so on.

    Units that are alike are counted out first and then named, in a shuffled order.

    Args:
        of: Name -> unit.
        counts: Trait -> number of units.
        need: Trait -> what each part still wants; changed.
        shares: Share of each part.
        seed: Decides between equal units.
        room: Unit and what each part still wants of all -> parts that may take it.
        placed: Called with each unit and its part.

    Returns:
        Name of a unit -> number of its part.
    """
    total = share_out(len(of), shares)
    least = {trait: [min(1, n) for n in row] for trait, row in need.items()}
    kinds = list(_kinds(of, seed))
    holders = collections.defaultdict(list)
    for number, kind in enumerate(kinds):
        for trait in kind[0].traits:
            holders[trait].append(number)
    left, amounts = dict(counts), {}
    got = {trait: [0] * len(shares) for trait in counts}

    def choose(unit, trait):
        parts = room(unit, total)
        # Before all else each part that must see a modality sees it.
        first = {
            i: sum(t[0] == "modality" and got[t][i] < least[t][i] >= 1 for t in unit.traits)
            for i in parts
        }
        wanted = {i: sum(need[t][i] / counts[t] for t in sorted(unit.traits)) for i in parts}
        # Rounded, so that the order of a sum does not decide.
        part = max(
            parts,
            key=lambda i: (
                *(first[i], round(need[trait][i], 9), round(wanted[i], 9)),
                *(total[i], -i),
            ),
        )
        for other in unit.traits:
            got[other][part] += 1
        for tally in (total, *(need[t] for t in unit.traits)):
            tally[part] -= 1
        placed(unit, part)
        return part

    while any(left.values()):
        rarest = min((t for t, n in left.items() if n), key=lambda t: (left[t], t))
        for number in holders[rarest]:
            kind = kinds[number]
            if number in amounts:
                continue
            amounts[number] = [0] * len(total)
            for unit in kind:
                amounts[number][choose(unit, rarest)] += 1
            for trait in kind[0].traits:
                left[trait] -= len(kind)
    _swap(kinds, amounts, counts, shares, least)
    return {
        unit.name: part
        for number, kind in enumerate(kinds)
        for unit, part in zip(
            kind, [i for i, n in enumerate(amounts[number]) for _ in range(n)], strict=True
        )
    }


def _swap(kinds, amounts, counts, shares, least):
    """Swaps units of one stratum between parts as long as traits come nearer to their shares.

    Args:
        kinds: Lists of units that are alike.
        amounts: Number of a kind -> units of it in each part; changed.
        counts: Trait -> number of units.
        shares: Share of each part.
        least: Trait -> units that no swap may take from each part.
    """
    have = {trait: [0] * len(shares) for trait in counts}
    strata = collections.defaultdict(list)
    for number, row in amounts.items():
        strata[kinds[number][0].stratum].append(number)
        for trait in kinds[number][0].traits:
            have[trait] = [h + n for h, n in zip(have[trait], row, strict=True)]
    pairs = [
        pair
        for numbers in strata.values()
        if len(numbers) <= _MOST_KINDS
        for pair in itertools.combinations(sorted(numbers), 2)
    ]

    def gain(only, others, p, q):
        """By how much the squared distance falls when `only` goes from p to q, `others` back."""
        result = 0.0
        for traits, source, sink in ((only, p, q), (others, q, p)):
            for t in traits:
                if have[t][source] - 1 < least[t][source]:
                    return 0.0
                off = [have[t][i] - counts[t] * shares[i] for i in (source, sink)]
                result += (2 * (off[0] - off[1]) - 2) / counts[t]
        return result

    for _ in range(_SWEEPS):
        better = False
        for a, b in pairs:
            mine, theirs = kinds[a][0].traits, kinds[b][0].traits
            only, others = sorted(mine - theirs), sorted(theirs - mine)
            for p, q in itertools.permutations(range(len(amounts[a])), 2):
                while amounts[a][p] and amounts[b][q] and gain(only, others, p, q) > 1e-9:
                    for row, change in ((amounts[a], 1), (amounts[b], -1)):
                        row[p] -= change
                        row[q] += change
                    for traits, change in ((only, 1), (others, -1)):
                        for trait in traits:
                            have[trait][p] -= change
                            have[trait][q] += change
                    better = True
        if not better:
            return


def _kinds(of, seed):
    """Lists of units that are alike, each shuffled with all of its stratum."""
    strata = collections.defaultdict(list)
    for name in sorted(of):
        strata[of[name].stratum].append(of[name])
    for stratum in sorted(strata):
        random.Random(f"{seed} {' '.join(stratum)}").shuffle(strata[stratum])
        kinds = collections.defaultdict(list)
        for unit in strata[stratum]:
            kinds[unit.traits].append(unit)
        yield from kinds.values()


def share_out(count, shares):
    """Whole numbers that sum to `count` in about these shares; one each first, in their order."""
    wanted = [i for i, share in enumerate(shares) if share > 0]
    result = [0] * len(shares)
    for i in wanted[:count]:
        result[i] = 1
    while sum(result) < count:
        behind = max(wanted, key=lambda i: shares[i] * count - result[i])
        result[behind] += 1
    return result


def one_modality(choices, modalities, seed, groups=None):
    """Gives each subject one of its modalities: round-robin, the rarest first.

    Args:
        choices: Subject -> the modalities that it has.
        modalities: All modalities; of equally rare ones the first is taken.
        seed: Text or number that decides the order of the subjects.
        groups: Subject -> what it is counted with (a fold, the classes that it shows), the widest
            first: a modality is chosen by its count there, then in the narrower ones, then in all.
            None counts all together.

    Returns:
        Subject -> modality.
    """
    subjects = sorted(choices)
    random.Random(seed).shuffle(subjects)
    # Those without a choice first, so that the others can make up for them.
    subjects.sort(key=lambda s: len(choices[s]))
    kept, counts = {}, collections.Counter()
    for subject in subjects:
        own = groups[subject] if groups else ()
        # Each group lies inside the one before it; last, all subjects count.
        keys = [*(own[: n + 1] for n in range(len(own))), ()]
        found = (m for m in modalities if m in choices[subject])
        kept[subject] = min(found, key=lambda m: [counts[key, m] for key in keys])
        counts.update((key, kept[subject]) for key in set(keys))
    return kept
