"""Requests of the same model, version, signature and shapes run together; nothing is ever padded.

As in TensorFlow Serving, a batch waits until it is full or its time is up, each model and signature
has a queue of limited length, and a pool of threads runs the batches. What differs is deliberate:
only requests whose arrays have exactly the same shape share a batch, and when a batch fails, each
of its requests runs once more alone, so that none fails for its neighbour.
"""

import collections
import dataclasses
import threading
import time

import numpy as np

from keras_unigan.serving.status import ServingError, invalid


@dataclasses.dataclass(eq=False)
class _Task:
    """One request: its rows, and its answer or error once it is `done`."""

    feeds: dict
    size: int
    deadline: float | None
    queued: float = dataclasses.field(default_factory=time.monotonic)
    done: threading.Event = dataclasses.field(default_factory=threading.Event)
    outputs: dict | None = None
    error: Exception | None = None

    def finish(self, outputs=None, error=None):
        self.outputs, self.error = outputs, error
        self.done.set()


@dataclasses.dataclass(eq=False)
class _Batch:
    """Requests that will run together."""

    queue: tuple
    shapes: tuple
    run: object
    due: float
    tasks: list = dataclasses.field(default_factory=list)
    closed: bool = False

    @property
    def size(self):
        return sum(task.size for task in self.tasks)


class Batcher:
    """Scheduler shared by all models of a server.

    Args:
        parameters: `config_files.Batching`.
        waited: Called with the microseconds that each request waited for its batch.
    """

    def __init__(self, parameters, waited):
        self.parameters, self._waited = parameters, waited
        self._condition = threading.Condition()
        self._batches = collections.deque()
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._work, name=f"unigan-batch-{i}", daemon=True)
            for i in range(parameters.num_batch_threads)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self):
        """Ends the threads; requests must have ended."""
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
        for thread in self._threads:
            thread.join()

    def run(self, queue, feeds, run, timeout_ms=None):
        """Runs a request in a batch with others of its queue and shapes.

        Args:
            queue: What requests must have in common to share a graph run: servable, outputs.
            feeds: Tensor name -> array; all have the same number of rows, at least one.
            run: Function of (feeds, timeout in ms) -> output alias -> array.
            timeout_ms: Longest time in milliseconds, waiting included; None is unlimited.

        Returns:
            Output alias -> array of this request's rows.

        Raises:
            ServingError: INVALID_ARGUMENT for more rows than a batch may have, UNAVAILABLE when the
                queue is full, DEADLINE_EXCEEDED, or what running it alone raises.
        """
        size = len(next(iter(feeds.values())))
        most = self.parameters.max_batch_size
        if size > most:
            raise invalid(f"Task size {size} is larger than maximum input batch size {most}")
        deadline = None if timeout_ms is None else time.monotonic() + timeout_ms / 1e3
        task = _Task(feeds, size, deadline)
        shapes = tuple(sorted((name, a.shape[1:], a.dtype.str) for name, a in feeds.items()))
        with self._condition:
            self._enqueue(task, queue, shapes, run)
        if not task.done.wait(None if timeout_ms is None else timeout_ms / 1e3):
            raise _late()
        if task.error is not None:
            raise task.error
        return task.outputs

    def _enqueue(self, task, queue, shapes, run):
        most = self.parameters.max_batch_size
        waiting = [batch for batch in self._batches if batch.queue == queue]
        for batch in waiting:
            if not batch.closed and batch.shapes == shapes:
                if batch.size + task.size <= most:
                    batch.tasks.append(task)
                    batch.closed = batch.size == most
                    self._condition.notify_all()
                    return
                batch.closed = True
        if len(waiting) >= self.parameters.max_enqueued_batches:
            raise ServingError(
                "UNAVAILABLE",
                "The batch scheduling queue to which this task was submitted is full",
            )
        due = task.queued + self.parameters.batch_timeout_micros / 1e6
        self._batches.append(_Batch(queue, shapes, run, due, [task], task.size == most))
        self._condition.notify_all()

    def _work(self):
        while True:
            batch = self._next()
            if batch is None:
                return
            self._run(batch)

    def _next(self):
        """Waits for a batch that is full or whose time is up, and takes it; None at the end."""
        with self._condition:
            while not self._stopping:
                now = time.monotonic()
                ready = [b for b in self._batches if b.closed or b.due <= now]
                if ready:
                    batch = min(ready, key=lambda b: b.due)
                    self._batches.remove(batch)
                    self._cut(batch)
                    return batch
                due = min((b.due for b in self._batches), default=None)
                self._condition.wait(None if due is None else due - now)
            return None

    def _cut(self, batch):
        """Leaves in the batch what makes the largest allowed size; the rest comes next.

        Where no allowed size can be made, it runs as it is: rows of padding would cost the same.
        """
        total, best = 0, 0
        for count, task in enumerate(batch.tasks, 1):
            total += task.size
            if total in self.parameters.allowed_batch_sizes:
                best = count
        rest = batch.tasks[best:] if best else []
        if rest:
            batch.tasks = batch.tasks[:best]
            self._batches.appendleft(
                _Batch(batch.queue, batch.shapes, batch.run, batch.due, rest, True)
            )
            self._condition.notify()

    def _run(self, batch):
        now, tasks = time.monotonic(), []
        for task in batch.tasks:
            self._waited((now - task.queued) * 1e6)
            if task.deadline is not None and task.deadline <= now:
                task.finish(error=_late())
            else:
                tasks.append(task)
        if len(tasks) > 1 and self._together(tasks, batch.run):
            return
        for task in tasks:
            try:
                task.finish(batch.run(task.feeds, _left([task])))
            except Exception as error:
                task.finish(error=error)

    @staticmethod
    def _together(tasks, run):
        """Runs several requests at once; False where that failed or the outputs are not by row."""
        try:
            names = tasks[0].feeds
            feeds = {name: np.concatenate([task.feeds[name] for task in tasks]) for name in names}
            outputs = run(feeds, _left(tasks))
        except Exception:
            # Whatever it was, one request may be at fault: each is then run alone, and told.
            return False
        ends = np.cumsum([task.size for task in tasks])
        if any(not array.ndim or len(array) != ends[-1] for array in outputs.values()):
            return False
        for task, end in zip(tasks, ends, strict=True):
            rows = slice(end - task.size, end)
            task.finish({name: array[rows] for name, array in outputs.items()})
        return True


def rows(feeds):
    """Rows that all arrays have in common; 0 where they cannot share a batch."""
    sizes = {len(array) if array.ndim else 0 for array in feeds.values()}
    return sizes.pop() if len(sizes) == 1 else 0


def _left(tasks):
    """Milliseconds until the last deadline; None where one has none."""
    deadlines = [task.deadline for task in tasks]
    if None in deadlines:
        return None
    return max(1.0, (max(deadlines) - time.monotonic()) * 1e3)


def _late():
    return ServingError("DEADLINE_EXCEEDED", "The deadline passed while the request waited to run")
