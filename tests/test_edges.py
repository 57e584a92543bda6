"""Where the edges of a translation lie, and what it left as it was."""

import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from scipy import ndimage

from keras_unigan import metrics
from keras_unigan.metrics.edges import edges

SPACING = (1.0, 1.5, 2.0)


def body(shape=(48, 40, 20)):
    """A body with two organs, and the same in another contrast."""
    grid = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    blob = lambda centre, radius: sum(  # noqa: E731
        ((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radius, strict=True)
    )
    label = np.zeros(shape, int)
    label[blob((0, 0, 0), (0.8, 0.7, 0.9)) < 1] = 1
    label[blob((-0.3, 0.1, 0), (0.3, 0.35, 0.5)) < 1] = 2
    label[blob((0.3, -0.2, 0.2), (0.2, 0.25, 0.4)) < 1] = 3
    return np.choose(label, (-1.0, -0.2, 0.8, 0.1)), np.choose(label, (-1.0, 0.6, -0.4, 0.0))


def test_edges_worked_by_hand():
    ramp = np.repeat(np.arange(20.0)[:, None], 12, axis=1)
    np.testing.assert_allclose(edges(ramp, (2.0, 1.0))[5:-5], 0.5, atol=1e-6)
    np.testing.assert_allclose(edges(ramp.T, (2.0, 1.0))[:, 5:-5], 1.0, atol=1e-6)
    # An axis of few voxels shows no edge of its own.
    steps = np.zeros((20, 12, 3))
    steps[..., 1] = 9
    assert edges(steps, SPACING).max() == 0
    with pytest.raises(ValueError, match="an axis of at least 8 voxels"):
        edges(np.zeros((7, 7)), (1.0, 1.0))


def test_edges_know_no_contrast():
    first, second = body()
    kept = metrics.edge_nmi(first, second, SPACING)
    assert metrics.edge_nmi(first, first, SPACING) == pytest.approx(2.0)
    assert kept > 1.25
    moved = metrics.edge_nmi(first, ndimage.shift(second, (4, 4, 2), mode="nearest"), SPACING)
    noise = np.random.default_rng(0).normal(size=first.shape)
    assert kept > moved + 0.1 > metrics.edge_nmi(first, noise, SPACING)
    # All of one grey: it tells nothing, and has no place.
    assert metrics.edge_nmi(first, first * 0, SPACING) == pytest.approx(1.0)
    assert math.isnan(metrics.shift_mm(first, first * 0, SPACING))


@pytest.mark.parametrize("shape", [(48, 40, 20), (48, 40, 3), (48, 40)])
def test_a_shift_is_measured_in_mm_whatever_the_contrast(shape):
    first, second = (b[..., 8:11] if len(shape) > 2 and shape[2] == 3 else b for b in body())
    if len(shape) == 2:
        first, second = first[..., 10], second[..., 10]
    spacing = SPACING[: len(shape)]
    for moved in ((0, 0, 0), (3, 0, 0), (-2, 4, 0), (0.5, -1.5, 0), (0, 0, 2)):
        if moved[2] and shape[-1] != 20:
            continue
        by = moved[: len(shape)]
        expected = np.linalg.norm(np.multiply(by, spacing))
        image = ndimage.shift(second, by, order=1, mode="nearest")
        assert metrics.shift_mm(first, image, spacing) == pytest.approx(expected, abs=0.5)
    assert metrics.shift_mm(first, first, spacing) == pytest.approx(0.0, abs=1e-6)


@hypothesis.settings(deadline=None, max_examples=20)
@hypothesis.given(st.integers(0, 99), st.floats(0.01, 0.4), st.floats(-3, 3))
def test_the_edges_of_any_image_tell_those_of_its_negative(seed, gain, offset):
    image = np.random.default_rng(seed).normal(size=(12, 10))
    assert metrics.edge_nmi(image, offset - gain * image, (1, 1)) > 1.8
    assert metrics.shift_mm(image, offset - gain * image, (1, 1)) < 0.01


def test_copies_worked_by_hand():
    source = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    made = np.array([-1.0, -0.46, 0.06, 0.5, -1.0])
    assert metrics.copy_ratio(source, made) == pytest.approx(3 / 5)
    assert metrics.copy_ratio(source, made, np.array([1, 1, 1, 0, 0], bool)) == pytest.approx(2 / 3)
    assert metrics.copy_ratio(source, source) == 1.0
    assert metrics.copy_ratio(source, made, tolerance=0.1) == pytest.approx(4 / 5)
    assert math.isnan(metrics.copy_ratio(source, made, np.zeros(5, bool)))
