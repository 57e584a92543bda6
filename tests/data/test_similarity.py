import numpy as np
import pytest
import tensorflow as tf

import keras_unigan
from keras_unigan.data.similarity import ssim3d


def pair(shape, seed=0):
    """An image and a noisy copy, in [-1, 1]."""
    rng = np.random.default_rng(seed)
    first = rng.uniform(-1, 1, shape).astype(np.float32)
    return first, np.clip(first + rng.normal(0, 0.3, shape), -1, 1).astype(np.float32)


def test_in_2d_it_is_that_of_tensorflow():
    first, second = pair((3, 16, 20, 2))
    np.testing.assert_allclose(ssim3d(first, second), tf.image.ssim(first, second, 2.0), atol=1e-5)
    found = ssim3d(first, second, max_val=1.0, filter_size=7, filter_sigma=1.0)
    expected = tf.image.ssim(first, second, 1.0, filter_size=7, filter_sigma=1.0)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_volumes():
    first, second = pair((2, 12, 13, 14, 1))
    np.testing.assert_allclose(keras_unigan.ssim3d(first, first), 1, atol=1e-6)
    found = ssim3d(first, second).numpy()
    assert (found < 0.95).all()
    np.testing.assert_allclose(ssim3d(second, first), found, atol=1e-6)
    # By hand: a window as large as the image leaves one comparison.
    a, b = (i[:1, :5, :5, :5] for i in (first, second))
    w = np.exp(-0.5 * ((np.arange(5) - 2) / 1.5) ** 2)
    w = np.einsum("i,j,k->ijk", w, w, w)[None, ..., None] / w.sum() ** 3
    m, n = (a * w).sum(), (b * w).sum()
    s, t, c = (w * a * a).sum() - m * m, (w * b * b).sum() - n * n, (w * a * b).sum() - m * n
    c1, c2 = 0.02**2, 0.06**2
    expected = (2 * m * n + c1) * (2 * c + c2) / ((m * m + n * n + c1) * (s + t + c2))
    np.testing.assert_allclose(ssim3d(a, b, filter_size=5), [expected], atol=1e-5)


def test_bad_input():
    image = tf.zeros((1, 8, 8, 1))
    with pytest.raises(
        ValueError, match=r"odd filter_size of at most the shortest side of .*got 11"
    ):
        ssim3d(image, image)
    with pytest.raises(ValueError, match=r"Expected an odd filter_size .*got 4"):
        ssim3d(image, image, filter_size=4)
    with pytest.raises(ValueError, match="Expected two images of one shape"):
        ssim3d(image, image[:, :7])
