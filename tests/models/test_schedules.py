"""Schedules: where they start, turn and end; round trip through an optimizer's config."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_unigan.models.schedules import (
    ConstantThenLinear,
    constant_then_linear,
    cosine,
    halving,
)


def rates(schedule, *steps):
    return [float(schedule(step)) for step in steps]


def test_cosine_warms_up_and_falls_to_its_floor():
    schedule = cosine(1e-3, 100, warmup=0.1, floor=1e-5)
    # From 1/11 of the rate up in ten steps; half-way down after the middle of what is left.
    assert rates(schedule, 0, 10, 55, 100, 500) == pytest.approx(
        [1e-3 / 11, 1e-3, (1e-3 + 1e-5) / 2, 1e-5, 1e-5], rel=1e-4
    )
    assert np.all(np.diff(rates(schedule, *range(11))) > 0)
    assert np.all(np.diff(rates(schedule, *range(10, 101))) < 0)


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 1.0])
def test_no_step_of_a_short_run_stands_still(steps, warmup):
    assert min(rates(cosine(1e-3, steps, warmup), *range(steps))) > 0
    assert rates(cosine(1e-3, steps, 0.0), 0) == pytest.approx([1e-3])


def test_constant_then_linear():
    schedule = constant_then_linear(1e-4, 100, share=0.6, floor=1e-6)
    expected = [1e-4, 1e-4, 1e-4, (1e-4 + 1e-6) / 2, 1e-6, 1e-6]
    assert rates(schedule, 0, 30, 60, 80, 100, 999) == pytest.approx(expected, rel=1e-4)
    assert rates(constant_then_linear(1e-4, 10, share=1.0), 0, 9) == pytest.approx([1e-4] * 2)
    assert rates(constant_then_linear(1e-4, 10, share=0.0), 0, 5) == pytest.approx([1e-4, 5e-5])


def test_halving():
    schedule = halving(1e-4, 25, floor=3e-5)
    expected = [1e-4, 1e-4, 5e-5, 5e-5, 3e-5, 3e-5]
    assert rates(schedule, 0, 24, 25, 49, 50, 10**6) == pytest.approx(expected, rel=1e-6)
    # Far into a long run the last step before a halving still belongs to the old rate.
    long = halving(1.0, 1400)
    assert rates(long, 1400 * 9 - 1, 1400 * 9) == pytest.approx([2**-8, 2**-9])


def test_a_rate_below_the_floor_stays():
    for make in (cosine, constant_then_linear):
        assert rates(make(1e-7, 10, floor=1e-6), 8, 10) == pytest.approx([1e-7] * 2, rel=1e-3)


@pytest.mark.parametrize("make", [cosine, constant_then_linear, halving])
def test_round_trip_and_graph(make):
    schedule = make(1e-3, 20, floor=1e-5)
    optimizer = keras.optimizers.Adam(schedule)
    loaded = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert loaded.get_config() == optimizer.get_config()
    traced = tf.function(schedule, input_signature=[tf.TensorSpec((), "int64")])
    for step in (0, 5, 19):
        assert float(traced(tf.constant(step, "int64"))) == pytest.approx(float(schedule(step)))
    assert ConstantThenLinear(1e-3, 5, 5).get_config()["floor"] == 0.0


def test_numbers_that_make_no_schedule():
    with pytest.raises(ValueError, match="steps of at least 1, got 0"):
        cosine(1e-3, 0)
    with pytest.raises(ValueError, match=r"0 <= warmup <= 1, got 2"):
        cosine(1e-3, 10, warmup=2)
    with pytest.raises(ValueError, match=r"0 <= share <= 1, got -1"):
        constant_then_linear(1e-3, 10, share=-1)
    with pytest.raises(ValueError, match="learning rate above 0, got 0"):
        constant_then_linear(0.0, 10)
