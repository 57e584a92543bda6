import math

import numpy as np
import pytest

from keras_unigan import health

NAN = float("nan")


def game(epochs=8, **terms):
    """Rows of a healthy translating game; `terms` replace some, as numbers or one an epoch."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(epochs):
        row = {
            "epoch": i + 1,
            "step": 100 * (i + 1),
            "loss": 20 / (i + 1) + rng.normal(),
            "generator_gradient_norm": 40 * rng.uniform(0.5, 3),
            "discriminator_gradient_norm": 5 * rng.uniform(0.3, 4),
            "skipped": 0.0,
            "real_score": rng.normal(),
            "fake_score": -1 + rng.normal(),
            "domain_accuracy": 0.3 + 0.7 * (1 - math.exp(-i)),
            "copy_ratio": 0.6 / (i + 1),
            "diversity": 0.1 * rng.uniform(0.7, 1.3),
        }
        rows.append(row)
    for name, values in terms.items():
        values = values if isinstance(values, list) else [values] * epochs
        for row, value in zip(rows, values, strict=True):
            row[name] = value
    return rows


def test_healthy_games_are_ok():
    assert health.findings(game(), 3) == []
    assert str(health.verdict(game(), 3)) == "OK"
    assert health.verdict([]).level == "OK"
    plain = [{"epoch": 1, "step": 50, "loss": 0.9, "segmentor_gradient_norm": 2.0, "skipped": 0}]
    assert health.verdict(plain, 3).level == "OK"
    # Noise of the sampler, and a generator that starts with large gradients, are no signs.
    assert health.verdict(game(generator_gradient_norm=[9e4] + [50.0] * 7), 3).level == "OK"
    # The published SegAN: tiny clipped features, so tiny gradients and losses.
    segan = game(
        critic_gradient_norm=2e-4,
        critic_loss=-1e-3,
        multi_scale_l1=1e-3,
        segmentor_gradient_norm=1e-4,
    )
    assert health.verdict(segan, 3).level == "OK"


@pytest.mark.parametrize(
    ("terms", "sign", "term"),
    [
        ({"diversity": [0.1] * 5 + [0.0005] * 3}, "collapse", "diversity"),
        ({"diversity": [0.2] * 5 + [0.004] * 3}, "collapse", "diversity"),
        ({"copy_ratio": [0.5] * 5 + [0.003] * 3}, "identity copy", "copy_ratio"),
        (
            {
                "discriminator_gradient_norm": [3.0] * 5 + [0.0] * 3,
                "fake_score": 0.0,
                "real_score": 0.5,
            },
            "dead critic",
            "discriminator_gradient_norm",
        ),
        (
            {"discriminator_gradient_norm": [3.0] * 5 + [0.0] * 3, "fake_score": -9.0},
            "critic won",
            "discriminator_gradient_norm",
        ),
        (
            {"generator_gradient_norm": [3.0] * 5 + [1e-9] * 3},
            "dead network",
            "generator_gradient_norm",
        ),
        (
            {"real_score": [1.0] * 5 + [0.25] * 3, "fake_score": [0.0] * 5 + [0.25] * 3},
            "dead critic",
            "real_score",
        ),
        ({"domain_accuracy": [0.9] * 5 + [0.35] * 3}, "classifier at chance", "domain_accuracy"),
        (
            {"discriminator_gradient_norm": [3.0] * 5 + [5e3, 9e3, 8e3]},
            "exploding critic",
            "discriminator_gradient_norm",
        ),
        ({"fake_score": [-1.0] * 5 + [-2e3, -3e3, -4e3]}, "exploding critic", "real_score"),
        ({"skipped": [0.0] * 5 + [4.0, 3.0, 5.0]}, "non-finite", "skipped"),
    ],
)
def test_a_sign_is_watched_and_when_it_lasts_a_failure(terms, sign, term):
    rows = game(**terms)
    assert health.verdict(rows[:5], 3).level == "OK"
    first = health.verdict(rows[:6], 3)
    assert (first.level, first.sign, first.term, first.since) == ("WATCH", sign, term, 6)
    lasting = health.verdict(rows, 3)
    assert (lasting.level, lasting.sign, lasting.term, lasting.since) == ("FAIL", sign, term, 6)
    assert lasting.remedy == health.REMEDIES[sign]
    assert str(lasting).startswith(f"FAIL {sign} since epoch 6 ({term}): ")
    # One good epoch, and it is over.
    assert health.verdict([*rows, {**rows[4], "epoch": 9, "step": 900}], 3).level == "OK"


@pytest.mark.parametrize(
    ("terms", "sign"),
    [
        ({"skipped": [0.0] * 7 + [60.0]}, "non-finite"),
        ({"loss": [1.0] * 7 + [NAN]}, "non-finite"),
        ({"discriminator_gradient_norm": [1.0] * 7 + [3e6]}, "exploding critic"),
        ({"real_score": [1.0] * 7 + [3e6]}, "exploding critic"),
    ],
)
def test_what_cannot_mend_itself_fails_at_once(terms, sign):
    found = health.verdict(game(**terms))
    assert (found.level, found.sign, found.since) == ("FAIL", sign, 8)


def test_a_loss_that_the_file_left_out_was_not_finite():
    rows = game(4)
    del rows[-1]["loss"]
    assert health.verdict(rows).sign == "non-finite"


def test_epochs_without_a_value_neither_end_nor_start_a_sign():
    rows = game(copy_ratio=[0.5, 0.5, 0.003, NAN, 0.003, NAN, 0.003, NAN])
    found = health.verdict(rows)
    assert (found.level, found.since) == ("FAIL", 3)
    assert health.verdict(game(copy_ratio=NAN)).level == "OK"


def test_the_worst_comes_first_and_the_cause_before_its_effects():
    rows = game(
        diversity=[0.1] * 7 + [0.0],
        copy_ratio=[0.5] * 5 + [0.001] * 3,
        discriminator_gradient_norm=[1.0] * 5 + [0.0] * 3,
        real_score=0.0,
        fake_score=0.1,
    )
    signs = [(f.level, f.sign) for f in health.findings(rows)]
    assert signs == [("FAIL", "dead critic"), ("FAIL", "identity copy"), ("WATCH", "collapse")]


def test_a_classifier_is_not_judged_before_it_had_a_chance():
    rows = game(domain_accuracy=0.33)
    assert health.verdict(rows[:2], 3).level == "OK"
    assert health.verdict(rows[:3], 3).sign == "classifier at chance"
    assert health.verdict(rows, None).level == "OK"
    assert health.verdict(rows, 1).level == "OK"
