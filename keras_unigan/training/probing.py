"""A few real steps of a run, in a process of their own, and what they took.

`python -m keras_unigan.training.probing REQUEST.json RESULT.json` is how `forecasting` starts it:
memory is then counted from nothing, and a probe that the system kills for its memory ends alone.
"""

import contextlib
import dataclasses
import itertools
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import keras
import tensorflow as tf

from keras_unigan import callbacks
from keras_unigan.config import Experiment, from_dict, read_json, write_json
from keras_unigan.data import audit
from keras_unigan.errors import CodedError
from keras_unigan.training import fitting, running
from keras_unigan.training.devices import Workers
from keras_unigan.training.session import Session

STEPS, SECONDS, TILES = 40, 20.0, 16
"""Most steps, most seconds after the first one, and most validation batches of a probe."""

_LEAST = 4  # steps


class Watch(keras.callbacks.Callback):
    """Notes when what happened; ends the steps when they have taken long enough."""

    def __init__(self):
        super().__init__()
        self.events = []

    def note(self, name):
        """Adds an event."""
        self.events.append((name, time.monotonic(), time.process_time()))

    def on_train_begin(self, logs=None):
        """Notes the begin."""
        self.note("begin")

    def on_train_batch_end(self, batch, logs=None):
        """Notes a step."""
        self.note("step")
        first = next(t for name, t, _ in self.events if name == "step")
        if batch + 1 >= _LEAST and time.monotonic() - first > SECONDS:
            self.model.stop_training = True

    def on_test_begin(self, logs=None):
        """Notes the begin of a validation."""
        self.note("test_begin")

    def on_test_batch_end(self, batch, logs=None):
        """Notes a batch of validation."""
        self.note("test")

    def on_test_end(self, logs=None):
        """Notes the end of a validation."""
        self.note("test_end")

    def on_epoch_end(self, epoch, logs=None):
        """Notes that all but the pictures is written."""
        self.note("epoch_end")

    def on_train_end(self, logs=None):
        """Notes the end."""
        self.note("end")


def _gaps(events, name):
    """Seconds from each event of a name to the next one."""
    times = [t for found, t in events if found == name]
    return [after - before for before, after in itertools.pairwise(times)]


def _rate(gaps):
    """Mean of the later half: the first ones find data that was read while the graph was made."""
    return statistics.mean(gaps[len(gaps) // 2 :]) if gaps else 0.0


def _between(events, first, second):
    """Seconds from the last event of one name to that of another; 0 where one is missing."""
    times = dict(events)
    return times[second] - times[first] if first in times and second in times else 0.0


def _durations(events, begun):
    """What took how long.

    Args:
        events: (name, seconds) by one clock, in order.
        begun: The same clock's seconds when the probe began.
    """
    batches = _gaps(events, "test")
    ended = "test_end" if any(name == "test_end" for name, _ in events) else "step"
    tests = [t for name, t in events if name == "test"]
    return {
        "build": events[0][1] - begun,
        "first_step": next(t for n, t in events if n == "step") - events[0][1],
        "step": _rate(_gaps(events, "step")),
        "tile": _rate(batches),
        "first_tile": tests[0] - dict(events)["test_begin"] if tests else 0.0,
        "epoch_end": _between(events, ended, "epoch_end"),
        "picture": _between(events, "epoch_end", "end"),
        "save": _between(events, "save", "saved"),
    }


def _machine():
    """Seconds that all processes of this machine have computed; None where it does not say."""
    try:
        fields = [int(n) for n in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    except (OSError, ValueError, IndexError):
        return None
    idle = fields[3] + fields[4]
    return (sum(fields) - idle) / os.sysconf("SC_CLK_TCK")


def _others(computed, own, seconds):
    """Cores that other processes kept busy, on average."""
    if computed is None or seconds <= 0:
        return None
    return max(0.0, _machine() - computed - own) / seconds


def probe(experiment, limit=None):
    """Runs some steps, a piece of validation and all that ends an epoch, in a scratch folder.

    Args:
        experiment: `config.Experiment`.
        limit: Bytes of memory that the run may take; None takes what is free now.

    Returns:
        Dict of seconds by the clock (`build` until the first step begins, `first_step`, `step`,
        `first_tile`, `tile`, `epoch_end`, `picture`, `save`); `core`, the same in core-seconds, as
        the process counted them; `others`, how many cores other processes kept busy meanwhile
        (None where the system does not say); `tiles` (validation batches of a whole pass), `memory`
        and `disk` in bytes, and `picture_bytes`.

    Raises:
        CodedError: KUG-T06 before any step is made, where the graph says that it will not fit;
            otherwise as `training.run`.
    """
    begun = time.monotonic(), time.process_time()
    computed = _machine()
    with tempfile.TemporaryDirectory() as scratch:
        found = _probe(experiment, limit, Path(scratch), begun)
    seconds, own = time.monotonic() - begun[0], time.process_time() - begun[1]
    return found | {"others": _others(computed, own, seconds)}


def _probe(experiment, limit, folder, begun):
    options = dataclasses.replace(
        experiment.train, steps_per_epoch=STEPS, checkpoint_seconds=None, checkpoint_steps=None
    )
    short = dataclasses.replace(
        experiment, output=str(folder), minutes=None, epochs=None, steps=STEPS, train=options
    )
    seen = audit.Seen()
    train, val, plan, model = running._parts(running._with_horizon(short), 0, seen)
    if experiment.replicas == 1:
        fitting.check_memory(experiment, plan, model, train.element_spec, limit)
    tiles = 0 if val is None else int(val.cardinality())
    if val is not None:
        few = min(tiles, TILES)
        val = val.take(few).apply(tf.data.experimental.assert_cardinality(few))
    session = Session(short, STEPS, folder, callbacks.State(), seen, Workers(), True, None)
    watch = Watch()
    session.callbacks.append(watch)
    try:
        session.fit(model, train, val)
    except tf.errors.ResourceExhaustedError as error:
        raise _exhausted(short, plan, model, train.element_spec) from error
    finally:
        session.close()
    watch.note("save")
    session.checkpoint.save()
    watch.note("saved")
    clock, core = ([(e[0], e[n]) for e in watch.events] for n in (1, 2))
    result = {**_durations(clock, begun[0]), "core": _durations(core, begun[1]), "tiles": tiles}
    pictures = sum(f.stat().st_size for f in folder.rglob("translations_*.png"))
    files = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    # While a checkpoint is replaced, there are two.
    twice = sum(f.stat().st_size for f in (folder / "checkpoints").iterdir())
    return result | {
        "picture_bytes": pictures,
        "disk": files + twice,
        "memory": _memory(),
        "steps": sum(name == "step" for name, _ in clock),
        "batch_size": plan.configuration(experiment.spatial_dims).batch_size,
    }


def _exhausted(experiment, plan, model, batch):
    """KUG-T06 for a device that ran out of memory: what it holds is not known, so less by a third.

    Args:
        experiment: `config.Experiment`.
        plan: `config.Plan` with its patch and batch.
        model: Its game.
        batch: Specs of its batch.
    """
    held = fitting.variable_bytes(model)
    need = held + fitting.step_bytes(model, batch)
    offers = fitting.cheaper(experiment, plan, model, batch, 2 * need / 3, held)
    return CodedError(
        "KUG-T06",
        "memory",
        f"a step of about {fitting.gib(need)} that the device could not hold",
        "one that it holds",
        "The run would end at its first step.",
        "; or ".join(str(offer) for offer in offers) or "a device with more memory",
    )


def _memory():
    """Most bytes that this process has held; on a GPU those of its memory."""
    if tf.config.list_physical_devices("GPU"):
        return tf.config.experimental.get_memory_info("GPU:0")["peak"]
    return fitting.peak_bytes()


def main(request, result):
    """Answers one request: an experiment and a limit in, what `probe` found or an error out."""
    data = read_json(request)
    # Where memory runs out, this process is the one to end, and no other.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    start, loaded = time.time() - data["started"], time.process_time()
    try:
        found = probe(from_dict(Experiment, data["experiment"], "experiment"), data["limit"])
    except CodedError as error:
        write_json(result, {"error": list(error.args)})
        return
    found["core"]["start"] = loaded
    write_json(result, {"found": found | {"start": start}})


if __name__ == "__main__":
    main(*sys.argv[1:])
