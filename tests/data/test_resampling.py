"""Resampling against the plain loop over taps and classes: the same numbers to the last bit."""

import numpy as np
import pytest

from keras_unigan.config import IGNORE
from keras_unigan.data import resampling


def plain(array, out_shape, order, nearest_axis):
    """Every output voxel as the sum over its taps, one axis after the other."""
    result = np.asarray(array, np.float32)
    for axis, size in enumerate(out_shape):
        if result.shape[axis] == size:
            continue
        kernel = "nearest" if axis == nearest_axis else order
        indices, weights = resampling.axis_weights(result.shape[axis], size, kernel)
        column = [1] * result.ndim
        column[axis] = size
        total = np.zeros((), np.float32)
        for tap in range(indices.shape[1]):
            taken = np.take(result, indices[:, tap], axis=axis)
            total = total + taken * weights[:, tap].reshape(column)
        result = total
    return result


def plain_labels(index_map, out_shape, count, nearest_axis):
    """Every class over the whole volume; the first largest share wins."""
    classes = [
        i for i in range(IGNORE + 1) if (i < count or i == IGNORE) and (index_map == i).any()
    ]
    shares = [plain(index_map == i, out_shape, "linear", nearest_axis) for i in classes]
    return np.array(classes, np.uint8)[np.argmax(shares, axis=0)]


@pytest.fixture(params=range(60))
def sizes(request):
    """Random sizes in and out, and perhaps an axis of nearest slices."""
    rng = np.random.default_rng(request.param)
    before, after = rng.integers(1, 14, (2, 3))
    after = tuple(1 if n == 1 else int(m) for n, m in zip(before, after, strict=True))
    return rng, tuple(before), after, (None, 0, 1, 2)[request.param % 4]


@pytest.mark.parametrize("order", ["cubic", "linear", "nearest"])
def test_volumes(order, sizes):
    rng, before, after, nearest_axis = sizes
    for array in (rng.normal(size=before), np.asfortranarray(rng.normal(size=(*before, 2)))):
        got = resampling.resample(array, after, order, nearest_axis)
        assert got.flags.c_contiguous
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, plain(array, after, order, nearest_axis))


def test_label_maps(sizes):
    rng, before, after, nearest_axis = sizes
    index_map = rng.choice([0, 1, 2, IGNORE], before, p=[0.6, 0.2, 0.15, 0.05]).astype(np.uint8)
    # Without background, and with a class in one corner only.
    corner = np.where(np.arange(before[0])[:, None, None] < 1, 2, np.ones(before)).astype(np.uint8)
    for case in (index_map, np.maximum(index_map, 1), np.asfortranarray(corner)):
        got = resampling.resample_labels(case, after, 3, nearest_axis)
        if before != after:
            np.testing.assert_array_equal(got, plain_labels(case, after, 3, nearest_axis))


def test_a_class_that_falls_between_the_new_voxels_is_gone():
    index_map = np.zeros((12, 2, 2), np.uint8)
    index_map[1] = 1
    assert not resampling.resample_labels(index_map, (2, 2, 2), 2).any()
