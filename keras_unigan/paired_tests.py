"""Paired differences: signed-rank test, effect sizes, bootstrap interval, Holm's correction."""

import math

import numpy as np
from scipy import stats

RESAMPLES = 9999
EXACT = 200
"""Pairs up to which the Wilcoxon test is exact, also with ties."""
EQUAL = 1e-9
"""Differences up to here are ties: what is left of rounding."""


def paired_statistics(differences, sign=1, seed=0):
    """What paired differences show.

    Args:
        differences: One number a subject, a minus b.
        sign: +1 where more is better, -1 where less is; decides wins and losses of a.
        seed: Of the bootstrap.

    Returns:
        Dict: `difference` (mean) with its 95 % interval `low`, `high` (bias-corrected bootstrap of
        `scipy.stats`; NaN below two subjects); `wins`, `ties`, `losses` of a; `p` (two-sided
        Wilcoxon signed-rank test, exact up to `EXACT`, ties left out) and `least_p` (the smallest
        that so many subjects could give); `rank_biserial` (share of the ranks for a minus that
        for b, -1..1: the effect size of the test) and `cohen_dz` (mean over standard deviation);
        both positive where a is better.
    """
    d = np.asarray(differences, float)
    better = sign * d
    wins, losses = int(np.sum(better > EQUAL)), int(np.sum(better < -EQUAL))
    low, high = _interval(d, seed)
    p, effect = wilcoxon(better)
    sd = float(np.std(d, ddof=1)) if len(d) > 1 else math.nan
    return {
        "difference": float(d.mean()) if len(d) else math.nan,
        "low": low,
        "high": high,
        "wins": wins,
        "ties": len(d) - wins - losses,
        "losses": losses,
        "p": p,
        "least_p": 2.0 ** (1 - len(d)) if len(d) else 1.0,
        "rank_biserial": effect,
        "cohen_dz": float(better.mean()) / sd if sd > EQUAL else math.nan,
    }


def _interval(differences, seed):
    """95 % interval of the mean."""
    if len(differences) < 2:
        return math.nan, math.nan
    if np.ptp(differences) <= EQUAL:
        return (float(differences.mean()),) * 2
    found = stats.bootstrap(
        (differences,),
        np.mean,
        n_resamples=RESAMPLES,
        random_state=np.random.default_rng(seed),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def wilcoxon(differences):
    """Two-sided Wilcoxon signed-rank test and its matched-pairs rank-biserial correlation.

    Differences of nothing are left out. Up to `EXACT` others, p is exact also where ranks are tied,
    which `scipy.stats.wilcoxon` is not: every choice of signs is counted, rank by rank.

    Returns:
        `(p, effect)`: p is 1 and the effect NaN where nothing is left.

    Reference: Kerby 2014, The simple difference formula, doi:10.2466/11.IT.3.1.
    """
    d = np.asarray(differences, float)
    d = d[np.abs(d) > EQUAL]
    if not len(d):
        return 1.0, math.nan
    # Rounded, so that equal differences tie whatever their last bits are.
    ranks = stats.rankdata(np.round(np.abs(d), 9))
    effect = float(np.sum(np.sign(d) * ranks) / np.sum(ranks))
    if len(d) > EXACT:
        return float(stats.wilcoxon(d, method="approx").pvalue), effect
    # Twice the ranks are whole numbers, ties or not.
    whole = np.rint(2 * ranks).astype(int)
    counts = np.zeros(whole.sum() + 1)
    counts[0] = 1.0
    for rank in whole:
        counts[rank:] = 0.5 * (counts[rank:] + counts[: len(counts) - rank])
        counts[:rank] *= 0.5
    positive = whole[d > 0].sum()
    tail = min(counts[: positive + 1].sum(), counts[positive:].sum())
    return float(min(1.0, 2 * tail)), effect


def holm(values):
    """Holm's step-down correction: p-values that hold for all tests of a family at once.

    Reference: Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    p = np.asarray(values, float)
    order = np.argsort(p)
    steps = p[order] * np.arange(len(p), 0, -1)
    result = np.empty(len(p))
    result[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return result.tolist()
