"""Learning rates over a run, as optimizers take them."""

import keras


def cosine(rate, steps, warmup=0.05, floor=0.0):
    """Linear warm-up to `rate`, then half a cosine down to `floor` at `steps`.

    Args:
        rate: Highest rate.
        steps: Steps of the whole run.
        warmup: Share of the steps that warm up; 0 starts at `rate`.
        floor: Last rate, if `rate` is not lower still.

    Returns:
        `keras.optimizers.schedules.LearningRateSchedule`.

    Raises:
        ValueError: Where the numbers make no schedule.

    Reference: Loshchilov & Hutter 2017, SGDR, arXiv:1608.03983, eq. 5 without restarts.
    """
    _check(rate, steps, "warmup", warmup)
    warm = min(round(warmup * steps), steps - 1)
    return keras.optimizers.schedules.CosineDecay(
        # Not from 0: the first step is to move something.
        rate / (warm + 1),
        steps - warm,
        alpha=min(floor / rate, 1.0),
        warmup_target=rate,
        warmup_steps=warm,
    )


def constant_then_linear(rate, steps, share=0.5, floor=0.0):
    """`rate` for a share of the steps, then in a straight line to `floor` at `steps`.

    Args:
        rate: First rate.
        steps: Steps of the whole run.
        share: Share of the steps at `rate`.
        floor: Last rate, if `rate` is not lower still.

    Returns:
        `keras.optimizers.schedules.LearningRateSchedule`.

    Raises:
        ValueError: Where the numbers make no schedule.
    """
    _check(rate, steps, "share", share)
    return ConstantThenLinear(rate, round(share * steps), steps, min(floor, rate))


def polynomial(rate, steps, power=0.9):
    """`rate * (1 - step / steps) ** power`, 0 from `steps` on.

    Args:
        rate: First rate.
        steps: Steps of the whole run.
        power: Exponent.

    Returns:
        `keras.optimizers.schedules.LearningRateSchedule`.

    Raises:
        ValueError: Where the numbers make no schedule.

    Reference: Chen et al. 2018, DeepLab, arXiv:1606.00915, §4.1.2.
    """
    _check(rate, steps, "power", power)
    return keras.optimizers.schedules.PolynomialDecay(rate, steps, 0.0, power)


def halving(rate, every, floor=0.0):
    """`rate`, halved again and again.

    Args:
        rate: First rate.
        every: Steps from one halving to the next.
        floor: Lowest rate, if `rate` is not lower still.

    Returns:
        `keras.optimizers.schedules.LearningRateSchedule`.

    Raises:
        ValueError: Where the numbers make no schedule.
    """
    _check(rate, every, "floor", min(floor, 1.0))
    return Halving(rate, every, min(floor, rate))


@keras.saving.register_keras_serializable(package="keras_unigan")
class Halving(keras.optimizers.schedules.LearningRateSchedule):
    """`rate`, halved every `every` steps, never below `floor`.

    Args:
        rate: First rate.
        every: Steps from one halving to the next.
        floor: Lowest rate.
    """

    def __init__(self, rate, every, floor=0.0):
        self.rate, self.every, self.floor = rate, every, floor

    def __call__(self, step):
        # Whole numbers: as a float32 quotient, a step just before a halving may round up to it.
        times = keras.ops.cast(keras.ops.cast(step, "int32") // self.every, "float32")
        return keras.ops.maximum(self.rate * 0.5**times, self.floor)

    def get_config(self):
        return {name: getattr(self, name) for name in ("rate", "every", "floor")}


@keras.saving.register_keras_serializable(package="keras_unigan")
class ConstantThenLinear(keras.optimizers.schedules.LearningRateSchedule):
    """`rate` until step `start`, then in a straight line to `floor` at step `end`.

    Args:
        rate: First rate.
        start: Step at which it begins to fall.
        end: Step from which it is `floor`.
        floor: Last rate.
    """

    def __init__(self, rate, start, end, floor=0.0):
        self.rate, self.start, self.end, self.floor = rate, start, end, floor

    def __call__(self, step):
        step = keras.ops.cast(step, "float32")
        left = (self.end - step) / max(self.end - self.start, 1)
        return self.floor + (self.rate - self.floor) * keras.ops.clip(left, 0.0, 1.0)

    def get_config(self):
        names = ("rate", "start", "end", "floor")
        return {name: getattr(self, name) for name in names}


def _check(rate, steps, name, share):
    """Raises `ValueError` where the numbers make no schedule."""
    if steps < 1:
        raise ValueError(f"Expected steps of at least 1, got {steps}.")
    if not 0 <= share <= 1:
        raise ValueError(f"Expected 0 <= {name} <= 1, got {share}.")
    if rate <= 0:
        raise ValueError(f"Expected a learning rate above 0, got {rate}.")
