"""Percentiles of more values than fit into memory, from a histogram that merges exactly."""

import dataclasses
import math

import numpy as np

_DROPPED = 12  # of the 24 significant bits of a float32
_SIGN = 1 << 19  # of the 20 bits that stay


@dataclasses.dataclass(frozen=True, eq=False)
class Histogram:
    """Counts of values that are rounded to 12 significant bits.

    Whole numbers up to 4096, so Hounsfield units too, are exact; others are off by 1 in 4096 of
    themselves at most, and so is every percentile. Merging adds counts up: order and grouping make
    no difference. It takes 12 bytes per distinct value, and never more than 12 MiB.

    Attributes:
        keys: uint32 (n,), ascending: the value's upper bits, turned so that they sort like it.
        counts: int64 (n,), how often each occurs.
    """

    keys: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.uint32))
    counts: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))

    @classmethod
    def of(cls, values):
        """Histogram of an array of finite values of any shape and numeric type."""
        # Adding 0 makes 0 of -0.
        bits = (np.ravel(values).astype(np.float32) + np.float32(0)).view(np.uint32)
        kept = (bits + np.uint32(1 << (_DROPPED - 1))) >> np.uint32(_DROPPED)
        below_zero = kept >= _SIGN
        keys = np.where(below_zero, np.uint32(2 * _SIGN - 1) - kept, kept + np.uint32(_SIGN))
        keys, counts = np.unique(keys.astype(np.uint32), return_counts=True)
        return cls(keys, counts.astype(np.int64))

    @property
    def total(self):
        """Number of values."""
        return int(self.counts.sum())

    @property
    def values(self):
        """The distinct rounded values, float32 (n,), ascending."""
        below_zero = self.keys < _SIGN
        kept = np.where(below_zero, 2 * _SIGN - 1 - self.keys, self.keys - np.uint32(_SIGN))
        return (kept.astype(np.uint32) << np.uint32(_DROPPED)).view(np.float32)

    def merge(self, other):
        """Histogram of the values of both."""
        keys = np.concatenate([self.keys, other.keys])
        keys, place = np.unique(keys, return_inverse=True)
        counts = np.zeros(keys.size, np.int64)
        np.add.at(counts, place, np.concatenate([self.counts, other.counts]))
        return Histogram(keys, counts)

    def percentile(self, share):
        """Percentile, interpolated linearly as `numpy.percentile` does.

        Args:
            share: 0 to 100.

        Raises:
            ValueError: Without any value.
        """
        if not self.keys.size:
            raise ValueError("Expected at least one value in the histogram, got none.")
        ends, values = np.cumsum(self.counts), self.values
        position = (int(ends[-1]) - 1) * share / 100
        below, above = math.floor(position), math.ceil(position)
        low, high = (float(values[np.searchsorted(ends, i, side="right")]) for i in (below, above))
        return low + (high - low) * (position - below)
