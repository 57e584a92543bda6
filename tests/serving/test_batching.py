"""Batches of exactly equal shapes: what shares a run, what is refused, what never is padded."""

import threading
import time

import httpx
import numpy as np
import pytest
from serving_stubs import Stubs, predict, refused

from keras_unigan.serving import batching
from keras_unigan.serving.config_files import Batching
from keras_unigan.serving.server import Server
from keras_unigan.serving.status import ServingError, invalid


class Recorder:
    """A graph that doubles; it notes its runs, and can be held or made to fail."""

    def __init__(self):
        self.sizes, self.go, self.entered = [], threading.Event(), threading.Event()
        self.go.set()

    def run(self, feeds, timeout_ms):
        self.entered.set()
        assert self.go.wait(20)
        x = feeds["x:0"]
        self.sizes.append(len(x))
        if (x < 0).any():
            raise invalid("negative")
        return {"twice": 2 * x}


@pytest.fixture
def make():
    """Makes batchers that are stopped at the end; their queue times go to `.waits`."""
    made = []

    def batcher(**parameters):
        waits = []
        made.append(
            batching.Batcher(Batching(**{"num_batch_threads": 1, **parameters}), waits.append)
        )
        made[-1].waits = waits
        return made[-1]

    yield batcher
    for item in made:
        item.stop()


def together(batcher, graph, arrays, queue=("q",), timeout_ms=20_000):
    """Answers, or errors, of requests that wait at the same time."""
    answers = [None] * len(arrays)

    def ask(index):
        try:
            answers[index] = batcher.run(queue, {"x:0": arrays[index]}, graph.run, timeout_ms)
        except ServingError as error:
            answers[index] = error

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(arrays))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def rows(*values, side=2):
    return np.repeat(np.array(values, np.float32)[:, None], side, 1)


def test_requests_share_a_run_and_get_their_own_rows(make):
    graph, batcher = Recorder(), make(max_batch_size=4, batch_timeout_micros=10_000_000)
    arrays = [rows(1), rows(2, 3), rows(4)]
    answers = together(batcher, graph, arrays)
    assert graph.sizes == [4]
    for array, answer in zip(arrays, answers, strict=True):
        np.testing.assert_array_equal(answer["twice"], 2 * array)
    assert len(batcher.waits) == 3
    assert min(batcher.waits) >= 0


def test_other_shapes_run_apart_and_are_never_padded(make):
    graph, batcher = Recorder(), make(max_batch_size=4, batch_timeout_micros=100_000)
    answers = together(batcher, graph, [rows(1), rows(2, side=3), rows(3)])
    assert sorted(graph.sizes) == [1, 2]
    assert answers[1]["twice"].shape == (1, 3)


def test_a_failure_is_not_its_neighbours(make):
    graph, batcher = Recorder(), make(max_batch_size=3, batch_timeout_micros=10_000_000)
    first, bad, last = together(batcher, graph, [rows(1), rows(-1), rows(3)])
    assert first["twice"][0, 0] == 2
    assert last["twice"][0, 0] == 6
    assert (bad.code, bad.message) == ("INVALID_ARGUMENT", "negative")
    assert graph.sizes[0] == 3


def test_outputs_without_rows_are_run_alone(make):
    class Mean(Recorder):
        def run(self, feeds, timeout_ms):
            super().run(feeds, timeout_ms)
            return {"mean": feeds["x:0"].mean()}

    graph, batcher = Mean(), make(max_batch_size=2, batch_timeout_micros=10_000_000)
    answers = together(batcher, graph, [rows(1), rows(3)])
    assert [a["mean"] for a in answers] == [1, 3]


def test_allowed_sizes_cut_batches(make):
    graph = Recorder()
    batcher = make(max_batch_size=4, allowed_batch_sizes=(2, 4), batch_timeout_micros=200_000)
    answers = together(batcher, graph, [rows(1), rows(2), rows(3)])
    assert sorted(graph.sizes) == [1, 2]
    assert sorted(a["twice"][0, 0] for a in answers) == [2, 4, 6]


def test_what_is_too_large_or_too_much_is_refused(make):
    graph, batcher = Recorder(), make(max_batch_size=4, max_enqueued_batches=1)
    with pytest.raises(ServingError, match="Task size 5 is larger than maximum input batch size 4"):
        batcher.run(("q",), {"x:0": rows(1, 2, 3, 4, 5)}, graph.run)
    graph.go.clear()
    holder = threading.Thread(target=together, args=(batcher, graph, [rows(1)]))
    holder.start()
    assert graph.entered.wait(20)
    waiter = threading.Thread(target=together, args=(batcher, graph, [rows(1, 2, 3, 4)]))
    waiter.start()
    while not batcher._batches:
        time.sleep(0.001)
    with pytest.raises(
        ServingError, match="queue to which this task was submitted is full"
    ) as full:
        batcher.run(("q",), {"x:0": rows(1)}, graph.run)
    assert full.value.code == "UNAVAILABLE"
    # Another model has a queue of its own; here it only waits for a thread.
    with pytest.raises(ServingError, match="DEADLINE_EXCEEDED"):
        batcher.run(("other",), {"x:0": rows(1)}, graph.run, timeout_ms=50)
    graph.go.set()
    holder.join()
    waiter.join()
    assert graph.sizes == [1, 4]


def test_rows_of_feeds():
    assert batching.rows({"a": np.zeros((3, 2)), "b": np.zeros(3)}) == 3
    assert batching.rows({"a": np.zeros((3, 2)), "b": np.zeros(2)}) == 0
    assert batching.rows({"a": np.float32(1)}) == 0


def test_a_server_that_batches(base, tmp_path):
    (tmp_path / "batching.config").write_text(
        "max_batch_size { value: 4 } batch_timeout_micros { value: 300000 } "
        'num_batch_threads { value: 2 } thread_pool_name { value: "pool" }'
    )
    options = {"enable_batching": True, "batching_parameters_file": f"{tmp_path}/batching.config"}
    with Server(base, **options) as running:
        stubs = Stubs(running.grpc_addr)
        images = [
            np.random.default_rng(i).normal(size=(1, 2 + i % 2, 3, 1)).astype("f4")
            for i in range(8)
        ]
        futures = [stubs.prediction.Predict.future(predict(inputs={"image": i})) for i in images]
        for image, future in zip(images, futures, strict=True):
            found = list(future.result(timeout=30).outputs["probabilities"].float_val)
            np.testing.assert_array_equal(found, (2 * image).ravel())
        code, text = refused(
            stubs.prediction.Predict, predict(inputs={"image": np.zeros((5, 2, 2, 1), "f4")})
        )
        assert (code, text) == (
            "INVALID_ARGUMENT",
            "Task size 5 is larger than maximum input batch size 4",
        )
        # Inputs of different numbers of rows, and outputs without any, run alone.
        inputs = {"a": np.ones((3, 2), np.float32), "b": np.array([1, 2, 3])}
        assert stubs.prediction.Predict(predict(signature="pair", inputs=inputs)).outputs
        request = predict(signature="scalar", inputs={"x": np.arange(6, dtype=np.float32)})
        assert list(stubs.prediction.Predict(request).outputs["mean"].float_val) == [2.5]
        page = running.metrics.page()
        name = ':tensorflow:serving:batching_session:queuing_latency_count{thread_pool_name="pool"}'
        assert f"{name} 9" in page
        stubs.channel.close()


def test_a_full_queue_says_so_to_both_protocols(base, tmp_path):
    (tmp_path / "batching.config").write_text(
        "max_batch_size { value: 1 } max_enqueued_batches { value: 1 } "
        "num_batch_threads { value: 1 }"
    )
    options = {"enable_batching": True, "batching_parameters_file": f"{tmp_path}/batching.config"}
    with Server(base, max_request_seconds=5, **options) as running:
        stubs = Stubs(running.grpc_addr)
        # The graph's first run takes longer than the next ones.
        quick = predict(signature="slow", inputs={"rounds": np.array([1], np.int32)})
        assert stubs.prediction.Predict(quick, timeout=30).outputs
        slow = predict(signature="slow", inputs={"rounds": np.array([10**7], np.int32)})
        held = [stubs.prediction.Predict.future(slow)]
        # The queue holds one: the second may come when the first has been taken from it.
        name = 'queuing_latency_count{thread_pool_name="model_server_batch_threads"}'
        while f":batching_session:{name} 2" not in running.metrics.page():
            assert not held[0].done(), "over before it was seen to run"
            time.sleep(0.005)
        held.append(stubs.prediction.Predict.future(slow))
        while not running._batcher._batches:
            assert not any(f.done() for f in held), "over before both were there"
            time.sleep(0.005)
        text = "The batch scheduling queue to which this task was submitted is full"
        assert refused(stubs.prediction.Predict, slow) == ("UNAVAILABLE", text)
        answer = httpx.post(
            f"{running.rest_url}/v1/models/toy:predict",
            json={"signature_name": "slow", "instances": [1]},
        )
        assert (answer.status_code, answer.json()) == (503, {"error": text})
        assert [f.exception(30).code().name for f in held] == ["DEADLINE_EXCEEDED"] * 2
        stubs.channel.close()
