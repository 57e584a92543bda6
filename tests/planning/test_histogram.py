"""Percentiles from counts: bounds, and the same bits for any order and grouping."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_unigan.planning import Histogram


@pytest.mark.parametrize("share", [0, 0.5, 37.3, 50, 99.5, 100])
def test_percentile_of_whole_numbers_is_numpys(share):
    values = np.random.default_rng(3).integers(-20, 20, 301)
    assert Histogram.of(values).percentile(share) == pytest.approx(np.percentile(values, share))


def test_hounsfield_units_are_exact_and_others_within_the_bound():
    units = np.arange(-4096, 4097, dtype=np.float32)
    np.testing.assert_array_equal(Histogram.of(units[::-1]).values, units)
    rng = np.random.default_rng(4)
    values = np.unique((rng.lognormal(0, 20, 5000) * rng.choice([-1, 1], 5000)).astype(np.float32))
    single = np.array([Histogram.of([v]).values[0] for v in values])
    np.testing.assert_allclose(single, values, rtol=2.0**-12)
    assert (np.diff(single) >= 0).all()
    for share in (0.5, 50, 99.5):
        found = Histogram.of(values).percentile(share)
        assert found == pytest.approx(np.percentile(values.astype(float), share), rel=2.0**-12)


def test_size_does_not_grow_with_the_number_of_values():
    # One binade of 2**11 values, each half a step wide at its ends.
    assert Histogram.of(np.linspace(1, 2, 100_001)).keys.size == 2**11 + 1
    rng = np.random.default_rng(0)
    few, many = (Histogram.of(rng.uniform(1, 4, n)) for n in (100_000, 1_000_000))
    assert many.total == 10 * few.total
    assert few.keys.size <= many.keys.size <= 2**12 + 1


@given(
    st.lists(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False)), min_size=1),
    st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None)
def test_any_grouping_gives_the_same_bits(parts, random):
    together = Histogram.of(np.array([v for part in parts for v in part], np.float32))
    trees = [Histogram.of(np.array(part, np.float32)) for part in parts]
    while len(trees) > 1:
        first, second = random.sample(range(len(trees)), 2)
        merged = trees[first].merge(trees[second])
        trees = [t for i, t in enumerate(trees) if i not in (first, second)] + [merged]
    np.testing.assert_array_equal(trees[0].keys, together.keys)
    np.testing.assert_array_equal(trees[0].counts, together.counts)


def test_nothing_and_minus_zero():
    empty = Histogram()
    with pytest.raises(ValueError, match="at least one value"):
        empty.percentile(50)
    zeros = functools.reduce(Histogram.merge, [empty, Histogram.of([-0.0]), Histogram.of([0.0])])
    assert (zeros.values.tolist(), zeros.counts.tolist()) == ([0.0], [2])
