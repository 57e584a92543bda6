"""Soak of the embedded server: mixed requests while versions come, break and go; one JSON line.

Several clients ask over gRPC and REST, some of it malformed, without a single repeated try. Good
answers are compared with what the version that gave them must answer; bad requests must be refused
with their code. Meanwhile versions are pushed, broken ones among them, and rolled back.

The server is a process of its own, whose memory is watched.
"""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

import numpy as np
from soak_requests import BAD, GOOD, IMAGES, MODEL, Answers, Asker

from keras_unigan import config
from keras_unigan.serving import push
from keras_unigan.serving.client import Client


def plan():
    """Three labels, CT and T1, 2-D windows of 16 x 16."""
    return config.Plan(
        "soak",
        ("ct", "t1"),
        config.Labels(classes={"organ": (3,), "lesion": (5,)}),
        (1.0, 1.0, 3.0),
        None,
        {
            "ct": config.Normalization("ct", mean=100.0, sd=50.0, low=-2.0, high=2.0),
            "t1": config.Normalization("mr", mean=0.0, sd=1.0, low=-1.5, high=2.5),
        },
        {"2d": config.Configuration((16, 16), 2, ((2, 2), (2, 2)), 4)},
    )


def make_model(folder):
    """Exports an untrained segmentor, with warm-up requests."""
    import keras

    from keras_unigan import export
    from keras_unigan.networks import UNet

    keras.utils.set_random_seed(0)
    network = UNet(classes=3, filters=4, levels=2)
    export.export(network, plan(), folder)
    push.write_warmup(folder, export.example_inputs(network, plan()))


def make_variant(source, folder, seed):
    """Copies a SavedModel with every weight moved: each version has answers of its own.

    A checkpoint may hold a weight under two names. Equal values move alike, so those stay equal.
    """
    import tensorflow as tf

    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("variables", "manifest.json"))
    reader = tf.train.load_checkpoint(f"{source}/variables/variables")
    names, tensors = [], []
    for name in sorted(reader.get_variable_to_shape_map()):
        value = reader.get_tensor(name)
        if getattr(value, "dtype", None) == np.float32:
            value = (value + 0.2 * np.sin(seed + 50 * value)).astype(np.float32)
        names.append(name)
        tensors.append(tf.constant(value))
    os.makedirs(f"{folder}/variables")
    tf.raw_ops.SaveV2(
        prefix=f"{folder}/variables/variables",
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=tensors,
    )
    return folder


class Soak:
    """The requests, counted by what became of them.

    Args:
        server: Has `grpc_addr` and `rest_url`.
        base: Model folder of the server.
        source: Folder of its first version.
        work: Folder for the versions to come.
        requests: How many at least, over all clients; they go on until the last event is over.
        clients: Threads that ask.
        memory: Function giving the server's bytes, or None.
        kinds: Kind of request -> how often, relative to the others.
        answers_of: Function of a SavedModel folder giving what it must answer.
    """

    def __init__(
        self,
        server,
        base,
        source,
        work,
        requests,
        clients,
        memory=None,
        kinds=GOOD | BAD,
        answers_of=Answers,
    ):
        self.base, self.source, self.work = base, pathlib.Path(source), pathlib.Path(work)
        self.answers, self._answers_of = {1: answers_of(source)}, answers_of
        self.kinds = random.Random(0).choices([*kinds], [*kinds.values()], k=requests)
        self._pushing = threading.Lock()
        self.askers = [
            Asker(server.grpc_addr, server.rest_url, self.answers, self._pushing)
            for _ in range(clients)
        ]
        self.watcher = Client(server.grpc_addr, MODEL, timeout=60)
        self.seconds, self.problems = collections.defaultdict(list), []
        self.memory, self.sizes, self.events = memory, [], []
        self._next, self._lock, self._over, self._ready = 0, threading.Lock(), False, []

    def run(self, events):
        """Runs all requests; `events`, names of methods below, are spread evenly over them."""
        for seed, event in enumerate(events, 1):
            if event != "rollback":
                folder = make_variant(self.source, self.work / f"variant{seed}", seed)
                self._ready.append((folder, self._answers_of(folder) if event == "swap" else None))
        threads = [threading.Thread(target=self._work, args=(a,)) for a in self.askers]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for number, event in enumerate(events, 1):
            self._wait_for(len(self.kinds) * number // (len(events) + 1))
            getattr(self, event)()
            self.events.append(event)
        self._wait_for(len(self.kinds))
        self._over = True
        for thread in threads:
            thread.join()
        elapsed = time.perf_counter() - started
        for asker in self.askers:
            asker.client.close()
        states = {v["version"]: v["state"] for v in self.watcher.status()}
        self.watcher.close()
        return self._report(elapsed, states)

    def _work(self, asker):
        while True:
            with self._lock:
                number, self._next = self._next, self._next + 1
            if self._over and number >= len(self.kinds):
                return
            kind = self.kinds[number % len(self.kinds)]
            started = time.perf_counter()
            problem = asker.ask(kind, number % len(IMAGES))
            self.seconds[kind].append(time.perf_counter() - started)
            if problem is not None:
                self.problems.append((kind, problem))

    def _wait_for(self, count):
        while self._next < count:
            if self.memory is not None:
                self.sizes.append((self._next, self.memory()))
            time.sleep(0.2)

    def _until(self, what, holds):
        """Waits for a state of the server, at most two minutes."""
        for _ in range(600):
            if holds({v["version"]: v for v in self.watcher.status()}):
                return
            time.sleep(0.2)
        self.problems.append(("event", f"{what} did not come to pass"))

    def swap(self):
        """Publishes a good version and waits until it has taken over."""
        folder, answers = self._ready.pop(0)
        with self._pushing:
            number = push.publish(folder, self.base)["version"]
            self.answers[number] = answers
        self._until(
            f"version {number} alone",
            lambda s: [n for n, v in s.items() if v["state"] == "AVAILABLE"] == [number],
        )

    def broken(self):
        """Publishes a version without half of its variables; the one before must serve on."""
        folder, _ = self._ready.pop(0)
        for path in (folder / "variables").iterdir():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        number = push.publish(folder, self.base)["version"]
        self._until(
            f"version {number} refused",
            lambda s: (
                number in s
                and s[number]["state"] in ("START", "END")
                and s[number]["error_message"]
                and any(v["state"] == "AVAILABLE" for v in s.values())
            ),
        )

    def rollback(self):
        """Takes the newest version away; the newest good one before it must take over."""
        newest = push.rollback(self.base)["withdrawn"]
        wanted = max(n for n in self.answers if n < newest)
        self._until(
            f"version {wanted} again",
            lambda s: [n for n, v in s.items() if v["state"] == "AVAILABLE"] == [wanted],
        )

    def _report(self, elapsed, states):
        good = [s for kind in GOOD for s in self.seconds[kind]]
        result = {
            "benchmark": "soak",
            "requests": sum(map(len, self.seconds.values())),
            "clients": len(self.askers),
            "events": self.events,
            "good": len(good),
            "malformed": sum(len(self.seconds[kind]) for kind in BAD),
            "answered_by": dict(
                sorted(
                    collections.Counter(
                        version for asker in self.askers for version in asker.versions
                    ).items()
                )
            ),
            "problems": len(self.problems),
            "first_problems": self.problems[:5],
            "seconds": round(elapsed, 1),
            "milliseconds": {
                "all good": spread(good),
                **{kind: spread(self.seconds[kind]) for kind in GOOD if self.seconds[kind]},
            },
            "states": {str(number): state for number, state in sorted(states.items())},
        }
        if self.sizes:
            result["memory_mib"] = growth(self.sizes, len(self.kinds))
        return result


def spread(seconds):
    """Median, 99th percentile and maximum in milliseconds."""
    ordered = sorted(seconds)
    values = (statistics.median(ordered), ordered[int(0.99 * (len(ordered) - 1))], ordered[-1])
    return {k: round(1000 * v, 1) for k, v in zip(("p50", "p99", "max"), values, strict=True)}


def growth(sizes, count):
    """Memory of the server in MiB after a fifth of the requests, at the end, and at most."""
    part = [[s for n, s in sizes if low * count <= n <= high * count] or [sizes[-1][1]]
            for low, high in ((0.15, 0.25), (0.9, 1.0))]  # fmt: skip
    early, late = (statistics.median(p) / 2**20 for p in part)
    most = max(s for _, s in sizes) / 2**20
    names = ("after_a_fifth", "at_the_end", "growth", "peak")
    values = (early, late, late - early, most)
    return {name: round(value) for name, value in zip(names, values, strict=True)}


class Process:
    """`unigan serve` in a process of its own, on ports that were free."""

    def __init__(self, base, log, *flags):
        with contextlib.ExitStack() as stack:
            ports = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in "ab"]
            grpc_port, rest_port = (p.getsockname()[1] for p in ports)
        self.grpc_addr, self.rest_url = f"127.0.0.1:{grpc_port}", f"http://127.0.0.1:{rest_port}"
        self._command = [sys.executable, "-m", "keras_unigan", "serve", str(base)]
        self._command += [f"--port={grpc_port}", f"--rest_api_port={rest_port}", *flags]
        self._log = log
        self.start()

    def start(self):
        """Starts the process; also again, on the same ports, after it ended."""
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
        with open(self._log, "ab") as log:
            self.process = subprocess.Popen(
                self._command, stdout=log, stderr=subprocess.STDOUT, env=environment
            )

    def wait(self, seconds=180):
        """Waits until every model is available."""
        for _ in range(int(seconds / 0.2)):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.rest_url}/readyz", timeout=5).close()
                return self
            if self.process.poll() is not None:
                break
            time.sleep(0.2)
        raise RuntimeError(f"The server did not become ready; see {self._log}.")

    def stop(self):
        """Asks the process to drain; returns its exit code."""
        self.process.terminate()
        return self.process.wait(120)

    def memory(self):
        """Resident bytes."""
        import psutil

        return psutil.Process(self.process.pid).memory_info().rss


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument(
        "--events", default="swap,broken,swap,broken,swap,rollback", help="spread over the requests"
    )
    parser.add_argument("--log", default=os.devnull, help="what the server says")
    own = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        make_model(work / "model")
        base = work / "models" / MODEL
        push.publish(work / "model", base)
        flags = ("--file_system_poll_wait_seconds=0.5", "--load_retry_interval_micros=2000000")
        process = Process(base, own.log, *flags).wait()
        try:
            soak = Soak(
                process, base, work / "model", work, own.requests, own.clients, process.memory
            )
            result = soak.run([e for e in own.events.split(",") if e])
        finally:
            code = process.stop()
    print(json.dumps(result | {"exit_code": code}))
    return 1 if result["problems"] or code else 0


if __name__ == "__main__":
    sys.exit(main())
