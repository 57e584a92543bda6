"""Counters and histograms under TensorFlow Serving's names, as a Prometheus text page.

The page is written here: the official client renames counters (`_total`), and dashboards that were
made for TensorFlow Serving would find nothing.
"""

import bisect
import threading

_PREFIX = ":tensorflow:serving:"
REQUEST_COUNT = f"{_PREFIX}request_count"
REQUEST_LATENCY = f"{_PREFIX}request_latency"
RUNTIME_LATENCY = f"{_PREFIX}runtime_latency"
WARMUP_LATENCY = f"{_PREFIX}model_warmup_latency"
QUEUING_LATENCY = f"{_PREFIX}batching_session:queuing_latency"

# Name -> names of its labels, in the order of the page.
_LABELS = {
    REQUEST_COUNT: ("model_name", "status"),
    REQUEST_LATENCY: ("model_name", "API", "entrypoint"),
    RUNTIME_LATENCY: ("model_name", "API", "runtime"),
    WARMUP_LATENCY: ("model_path", "status"),
    QUEUING_LATENCY: ("thread_pool_name",),
}
# 10 microseconds to about 20 minutes, then +Inf.
BOUNDS = tuple(10 * 1.8**power for power in range(33))


class Metrics:
    """What happened since the server started; safe to use from many threads."""

    def __init__(self):
        self._lock = threading.Lock()
        self._counters, self._histograms = {}, {}

    def count(self, name, *labels):
        """Adds one to a counter.

        Args:
            name: Name on the page.
            *labels: Values of its labels; they must come from a bounded set.
        """
        with self._lock:
            self._counters[name, labels] = self._counters.get((name, labels), 0) + 1

    def observe(self, name, microseconds, *labels):
        """Adds a time to a histogram.

        Args:
            name: Name on the page.
            microseconds: The time.
            *labels: As in `count`.
        """
        with self._lock:
            histogram = self._histograms.get((name, labels))
            if histogram is None:
                histogram = self._histograms[name, labels] = [[0] * (len(BOUNDS) + 1), 0.0]
            histogram[0][bisect.bisect_left(BOUNDS, microseconds)] += 1
            histogram[1] += microseconds

    def page(self):
        """The page in Prometheus' text format."""
        with self._lock:
            counters = sorted(self._counters.items())
            histograms = sorted((k, ([*v[0]], v[1])) for k, v in self._histograms.items())
        lines, typed = [], set()
        for (name, labels), value in counters:
            _declare(lines, typed, name, "counter")
            lines.append(f"{name}{{{_pairs(name, labels)}}} {value}")
        for (name, labels), (buckets, total) in histograms:
            _declare(lines, typed, name, "histogram")
            pairs, below = _pairs(name, labels), 0
            for bound, number in zip((*BOUNDS, None), buckets, strict=True):
                below += number
                limit = "+Inf" if bound is None else f"{bound:g}"
                lines.append(f'{name}_bucket{{{pairs},le="{limit}"}} {below}')
            lines.append(f"{name}_sum{{{pairs}}} {total:.1f}")
            lines.append(f"{name}_count{{{pairs}}} {below}")
        return "\n".join(lines) + "\n"


def _declare(lines, typed, name, kind):
    if name not in typed:
        typed.add(name)
        lines.append(f"# TYPE {name} {kind}")


def _pairs(name, labels):
    return ",".join(
        f'{label}="{_escaped(value)}"' for label, value in zip(_LABELS[name], labels, strict=True)
    )


def _escaped(value):
    return str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
