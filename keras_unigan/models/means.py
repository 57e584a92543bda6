"""Metrics over steps of which some have nothing to say."""

import keras
import tensorflow as tf


class FiniteMean(keras.metrics.Mean):
    """Mean of the finite values; NaN, and not Keras' 0, where there were none."""

    def update_state(self, value, sample_weight=1.0):
        finite = tf.math.is_finite(value)
        weight = tf.where(finite, tf.cast(sample_weight, self.dtype), tf.zeros((), self.dtype))
        value = tf.where(finite, value, tf.zeros((), value.dtype))
        return super().update_state(value, sample_weight=weight)

    def result(self):
        return tf.where(self.count > 0, super().result(), tf.cast(float("nan"), self.dtype))


class FiniteDeviation(keras.metrics.Metric):
    """Standard deviation of the finite values; NaN where there were none."""

    def __init__(self, name="deviation", dtype=None):
        super().__init__(name=name, dtype=dtype)
        # float32 would lose a small deviation of large values.
        self.mean, self.square = (FiniteMean(name=n, dtype="float64") for n in ("mean", "square"))

    def update_state(self, value, sample_weight=1.0):
        value = tf.cast(value, "float64")
        self.mean.update_state(value, sample_weight)
        self.square.update_state(value**2, sample_weight)

    def result(self):
        variance = tf.maximum(self.square.result() - self.mean.result() ** 2, 0.0)
        return tf.cast(tf.sqrt(variance), self.dtype)
