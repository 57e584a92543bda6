"""Structural similarity of volumes, which TensorFlow has for 2-D images only."""

import tensorflow as tf

from keras_unigan.data.augmentation import geometry

K1, K2 = 0.01, 0.03


def _windows(size, width, sigma):
    """Gaussian windows that lie wholly inside an axis: float32 (1, size - width + 1, size)."""
    centre = tf.range(size - width + 1)[:, None] + width // 2
    distance = tf.range(size) - centre
    weights = tf.exp(-0.5 * (tf.cast(distance, tf.float32) / sigma) ** 2)
    weights = tf.where(tf.abs(distance) <= width // 2, weights, 0.0)
    return (weights / tf.reduce_sum(weights, axis=1, keepdims=True))[None]


def ssim3d(first, second, max_val=2.0, filter_size=11, filter_sigma=1.5):
    """Mean structural similarity of each pair; in 2-D it equals `tf.image.ssim`.

    Args:
        first: `(batch, *spatial, channels)` with 2 or 3 spatial axes, each at least `filter_size`.
        second: The same shape.
        max_val: Range of the values; 2 for images in [-1, 1].
        filter_size: Odd width of the Gaussian window in voxels.
        filter_sigma: Its standard deviation.

    Returns:
        float32 `(batch,)`; 1 for equal images.

    Raises:
        ValueError: For a window that is even or larger than the images, or unequal shapes.

    Reference: Wang et al. 2004, doi:10.1109/TIP.2003.819861.
    """
    first, second = (tf.cast(tf.convert_to_tensor(i), tf.float32) for i in (first, second))
    if first.shape.rank not in (4, 5) or not first.shape.is_compatible_with(second.shape):
        raise ValueError(
            "Expected two images of one shape (batch, *spatial, channels) with 2 or 3 spatial "
            f"axes, got {first.shape} and {second.shape}."
        )
    sides = geometry.sizes(first)
    if filter_size % 2 == 0 or any(isinstance(n, int) and n < filter_size for n in sides):
        raise ValueError(
            f"Expected an odd filter_size of at most the shortest side of {sides}, got "
            f"{filter_size}."
        )
    matrices = [_windows(n, filter_size, filter_sigma) for n in sides]

    def mean(image):
        return geometry.along_axes(image, matrices)

    a, b = mean(first), mean(second)
    c1, c2 = (K1 * max_val) ** 2, (K2 * max_val) ** 2
    covariance = mean(first * second) - a * b
    variances = mean(first**2 + second**2) - a**2 - b**2
    values = (2 * a * b + c1) / (a**2 + b**2 + c1) * (2 * covariance + c2) / (variances + c2)
    return tf.reduce_mean(values, axis=tuple(range(1, first.shape.rank)))
