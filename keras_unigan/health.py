"""Health of an adversarial run: logged terms of each epoch -> OK, WATCH or FAIL, and what to do.

Losses of a healthy game do not converge, so none of these rules looks at a loss going up or down.
Each looks at a sign that one side has left the game. A term that a game does not log is not judged.
A sign of one epoch is WATCH; one that lasts `LASTING` epochs, or cannot mend itself, is FAIL.
"""

import dataclasses
import math
import statistics

LEVELS = ("OK", "WATCH", "FAIL")
LASTING = 3
"""Epochs in a row after which a sign is a failure."""

DEAD_NORM = 1e-6
"""Gradient norm below which a network does not learn. The smallest ones of healthy runs, those of
the spectral and clipped critics of `segan` and `segan_paper`, stayed above 0.01."""

SAME_SCORE = 1e-4
"""Distance of the scores of real and fake, relative to their size, below which D tells nothing."""

COLLAPSE, SHRUNK = 0.002, 0.05
"""Diversity of translations in a batch (images lie in [-1, 1]) that is none; and the share of the
run's own largest that is suspicious."""

COPY = 0.02
"""`copy_ratio` below which a translation is its input: a fiftieth of the spread of the image."""

CHANCE_STEPS = 300
"""Steps that a domain classifier is given; untrained it is at chance too."""

LOUD, EXPLODED, GROWTH = 1e3, 1e5, 100.0
"""Gradient norm, or distance of scores, of a critic that is watched, and one that is lost; and the
growth over the first epochs' median that is watched from a fifth of `LOUD` on. Norms of healthy
games start near 0.1 and stay below 50."""

REMEDIES = {
    "non-finite": "lower the rate (--set train.learning_rate=1e-4); under mixed_float16 try "
    "--set train.mixed_precision=mixed_bfloat16; look for NaN in the scans",
    "exploding critic": "lower the critic's rate, then constrain it: R1 penalty or spectral norm "
    "in place of none",
    "dead critic": "start again with a lower rate and spectral norm or R1; then give it more "
    "steps for each one of the generator",
    "critic won": "raise the R1 penalty or lower the critic's rate, so that its score keeps a "
    "slope for the generator",
    "dead network": "lower its rate and start again: its activations have saturated",
    "classifier at chance": "give the discriminator more steps, then a higher rate; check that "
    "modalities are named rightly in study.json",
    "collapse": "give the critic more steps, or spectral norm or R1; then lower the generator's "
    "rate; the cycle weight keeps images apart",
    "identity copy": "raise the weight of the domain classification or lower that of cycle and "
    "identity; then more critic steps",
}
"""Sign -> first remedy."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What is wrong with a run, if anything.

    Attributes:
        level: "OK", "WATCH" or "FAIL".
        sign: Key of `REMEDIES`; empty for OK.
        term: Logged term that shows it.
        since: Epoch (from 1) since which it lasts.
        reason: One sentence with the numbers.
        remedy: What to try first.
    """

    level: str = "OK"
    sign: str = ""
    term: str = ""
    since: int | None = None
    reason: str = ""
    remedy: str = ""

    def __str__(self):
        if self.level == "OK":
            return "OK"
        return f"{self.level} {self.sign} since epoch {self.since} ({self.term}): {self.reason}"


def verdict(rows, domains=None):
    """The worst of `findings`, or OK.

    Args:
        rows: See `findings`.
        domains: See `findings`.
    """
    return next(iter(findings(rows, domains)), Verdict())


def findings(rows, domains=None):
    """All that is wrong at the last epoch, the worst first.

    Args:
        rows: Rows of `history.csv`, one dictionary of numbers an epoch; missing or NaN where an
            epoch has no value. Terms: `skipped` (steps), `step` (so far), `loss`,
            `<role>_gradient_norm`, `real_score` and `fake_score` (mean over patches),
            `domain_accuracy` (of D on real images), `copy_ratio` (mean |translation - image| where
            the target is another modality, over the spread of the images) and `diversity` (of the
            translations of a batch, 0 when all are one image).
        domains: Number of modalities; None: `domain_accuracy` is not judged.

    Returns:
        List of `Verdict`, none of them OK.
    """
    found = []
    for rule in RULES:
        found += [_judge(*sign) for sign in rule(rows, domains)]
    found = [each for each in found if each is not None]
    # The rules stand in the order in which one sign causes the next.
    return sorted(found, key=lambda each: -LEVELS.index(each.level))


def _judge(sign, term, marks):
    """Verdict of the marks of one sign, or None.

    Args:
        sign: Key of `REMEDIES`.
        term: Logged term.
        marks: Per epoch with a value: `(epoch, severity, reason)`; severity 0 nothing, 1 a sign, 2
            one that cannot mend itself.
    """
    lasting = []
    for mark in reversed(marks):
        if not mark[1]:
            break
        lasting.append(mark)
    if not lasting:
        return None
    _, severity, reason = lasting[0]
    level = "FAIL" if severity > 1 or len(lasting) >= LASTING else "WATCH"
    return Verdict(level, sign, term, lasting[-1][0], reason, REMEDIES[sign])


def _epoch(rows, index):
    return int(rows[index].get("epoch", index + 1))


def _values(rows, *terms):
    """`(epoch, value, ...)` of the rows that have all terms as finite numbers."""
    return [
        (_epoch(rows, i), *(row[t] for t in terms))
        for i, row in enumerate(rows)
        if all(math.isfinite(row.get(t, math.nan)) for t in terms)
    ]


def _terms(rows, ending):
    return [t for t in dict.fromkeys(k for row in rows for k in row) if t.endswith(ending)]


def _norms(rows):
    """Gradient norms as (term, role, whether the role is a critic)."""
    for term in _terms(rows, "_gradient_norm"):
        role = term.removesuffix("_gradient_norm")
        yield term, role, "critic" in role or "discriminator" in role


def _non_finite(rows, domains):
    """Steps that were left out because a loss or gradient was not finite."""
    marks, before = [], 0
    has_loss = any("loss" in row for row in rows)
    for i, row in enumerate(rows):
        steps = row.get("step", math.nan) - before
        before = row.get("step", before)
        skipped = row.get("skipped", 0)
        of = f" of {steps:.0f}" if steps > 0 else ""
        share = skipped / steps if steps > 0 else float(skipped > 0)
        # Half the steps of an epoch are no accident; a mean of nothing was never finite.
        lost = share >= 0.5 or (has_loss and not math.isfinite(row.get("loss", math.nan)))
        text = f"{skipped:.0f}{of} steps had a loss or gradient that was not finite"
        marks.append((_epoch(rows, i), 2 if lost else int(skipped > 0), text))
    yield "non-finite", "skipped", marks


def _exploding(rows, domains):
    """A critic whose gradient, or distance between real and fake, leaves all bounds."""
    series = [(t, _values(rows, t)) for t, _, critic in _norms(rows) if critic]
    scores = _values(rows, "real_score", "fake_score")
    series.append(("real_score", [(e, abs(real - fake)) for e, real, fake in scores]))
    for term, values in series:
        start = statistics.median([v for _, v in values[:LASTING]] or [0.0])
        what = "gradient norm" if term.endswith("_norm") else "distance of real and fake scores"
        marks = []
        for epoch, value in values:
            grown = value > GROWTH * start and value > LOUD / 5
            severity = 2 if value > EXPLODED else int(value > LOUD or grown)
            marks.append((epoch, severity, f"{what} {value:.3g}, {start:.3g} at first"))
        yield "exploding critic", term, marks


def _dead(rows, domains):
    """A network without gradient."""
    scores = _values(rows, "real_score", "fake_score")
    gaps = {epoch: abs(real - fake) for epoch, real, fake in scores}
    for term, role, critic in _norms(rows):
        values = _values(rows, term)
        marks = [
            (e, int(v < DEAD_NORM), f"the {role} has a gradient norm of {v:.2g}") for e, v in values
        ]
        won = bool(values) and gaps.get(values[-1][0], 0) > 1
        sign = ("critic won" if won else "dead critic") if critic else "dead network"
        yield sign, term, marks


def _same_scores(rows, domains):
    """A discriminator that gives real and fake one score."""
    marks = []
    for epoch, real, fake in _values(rows, "real_score", "fake_score"):
        same = abs(real - fake) <= SAME_SCORE * max(abs(real), abs(fake))
        marks.append((epoch, int(same), f"real and fake images both score {real:.4g}"))
    yield "dead critic", "real_score", marks


def _chance(rows, domains):
    """A domain classifier that does not tell modalities apart."""
    if not domains or domains < 2:
        return
    chance = 1 / domains
    limit = chance + 0.1 * (1 - chance)
    marks = [
        (e, int(value < limit), f"{value:.2f} of real images recognised, chance is {chance:.2f}")
        for e, step, value in _values(rows, "step", "domain_accuracy")
        if step >= CHANCE_STEPS
    ]
    yield "classifier at chance", "domain_accuracy", marks


def _collapse(rows, domains):
    """Translations that are all the same image."""
    marks, largest = [], 0.0
    for epoch, value in _values(rows, "diversity"):
        small = value < COLLAPSE or value < SHRUNK * largest
        largest = max(largest, value)
        text = f"translations of a batch differ by {value:.2g} (most so far {largest:.2g})"
        marks.append((epoch, int(small), text))
    yield "collapse", "diversity", marks


def _copy(rows, domains):
    """Translations that are their input."""
    marks = [
        (e, int(v < COPY), f"translations differ from their input by {v:.2g} of its spread")
        for e, v in _values(rows, "copy_ratio")
    ]
    yield "identity copy", "copy_ratio", marks


RULES = (_non_finite, _exploding, _dead, _copy, _same_scores, _chance, _collapse)
