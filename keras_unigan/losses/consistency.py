"""Losses that compare features or images of two versions of one sample."""

import keras

# Factor of each level in the skin-lesion form, the input first; deeper levels repeat the last.
FLAT_FACTORS = (1.0, 1.0, 2.0, 2.0, 2.0, 2.0, 4.0)


def multi_scale_l1_level(first, second):
    """Mean over levels of the mean absolute difference (SegAN, eq. 3).

    Args:
        first: List of features, each `(batch, *spatial, channels)`.
        second: Features of the other version, same shapes.

    Returns:
        `(batch,)`, float32.
    """
    means = [_mean(abs(a - b)) for a, b in _pairs(first, second)]
    return sum(means) / len(means)


def multi_scale_l1_flat(first, second, factors=None):
    """Mean over all elements of all levels, each level times its factor (skin-lesion form).

    Args:
        first: List of features, each `(batch, *spatial, channels)`.
        second: Features of the other version, same shapes.
        factors: Factor of each level; None takes `FLAT_FACTORS` in order.

    Returns:
        `(batch,)`, float32.
    """
    pairs = _pairs(first, second)
    if factors is None:
        factors = [FLAT_FACTORS[min(i, len(FLAT_FACTORS) - 1)] for i in range(len(pairs))]
    total, elements = 0.0, 0.0
    for factor, (a, b) in zip(factors, pairs, strict=True):
        size = 1
        for side in keras.ops.shape(a)[1:]:
            size = size * side
        size = keras.ops.cast(size, "float32")
        total = total + factor * _mean(abs(a - b)) * size
        elements = elements + size
    return total / elements


def _pairs(first, second):
    """Levels side by side, in float32 whatever the dtype policy."""
    return [
        (keras.ops.cast(a, "float32"), keras.ops.cast(b, "float32"))
        for a, b in zip(first, second, strict=True)
    ]


def _mean(values):
    """Mean over all axes but the first."""
    return keras.ops.mean(values, axis=tuple(range(1, len(values.shape))))
