"""Entropy and disagreement of probabilities."""

import hypothesis
import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import numpy as np
import pytest

from keras_unigan.uncertainty import disagreement, entropy


def test_entropy_worked_by_hand():
    p = np.array([[1, 0, 0], [1 / 3] * 3, [0.5, 0.5, 0], [0.5, 0.25, 0.25]])
    expected = [0, 1, np.log(2) / np.log(3), 1.5 * np.log(2) / np.log(3)]
    np.testing.assert_allclose(entropy(p), expected, atol=1e-6)
    # Two regions: one coin, and one that is surely there; then two coins.
    regions = np.array([[0.5, 1.0], [0.5, 0.5], [0.25, 0.0]])
    quarter = -(0.25 * np.log2(0.25) + 0.75 * np.log2(0.75))
    np.testing.assert_allclose(entropy(regions, True), [0.5, 1.0, quarter / 2], atol=1e-6)
    assert entropy(p).dtype == np.float32
    with pytest.raises(ValueError, match="two or more"):
        entropy(np.ones((3, 1)))


def test_disagreement_worked_by_hand():
    sure = np.array([[1.0, 0.0], [0.0, 1.0]])
    unsure = np.array([[0.5, 0.5], [0.5, 0.5]])
    for members, expected in ((sure, 1.0), (unsure, 0.0), (sure[[0, 0]], 0.0)):
        mean = members.mean(axis=0)
        assert disagreement(mean, entropy(members).mean()) == pytest.approx(expected, abs=1e-6)


@hypothesis.given(arrays.arrays(np.float32, (4, 3, 3), elements=st.floats(0, 1, width=32)))
def test_disagreement_is_a_part_of_the_entropy(values):
    for overlapping in (False, True):
        members = values if overlapping else (values + 0.1) / (values + 0.1).sum(-1, keepdims=True)
        mean, own = members.mean(axis=0), entropy(members, overlapping).mean(axis=0)
        found, whole = disagreement(mean, own, overlapping), entropy(mean, overlapping)
        assert (found >= 0).all()
        assert (found <= whole + 1e-5).all()
        assert (whole <= 1 + 1e-5).all()
        # Entropy is concave: the mean of members is never surer than they are.
        assert (whole >= own - 1e-5).all()
