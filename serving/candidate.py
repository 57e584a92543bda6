"""Serves one SavedModel in a process of its own, for the checks before anyone else sees it.

`python -m keras_unigan.serving.candidate FOLDER` prints one line of JSON once the model has
answered its warm-up requests (`address`, `seconds`; or `error`), and ends when its standard input
does.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODEL = "candidate"
WAIT_SECONDS = 300.0


@contextlib.contextmanager
def running(folder):
    """Runs this module on a SavedModel folder: yields (process, what it said).

    It runs on the CPU: GPUs choose other kernels, with less precise products, from one graph to the
    next. A process that dies says `error`.
    """
    command = [sys.executable, "-m", "keras_unigan.serving.candidate", str(folder)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        text=True,
    )
    try:
        line = process.stdout.readline()
        dead = {"error": f"the process ended with code {process.wait()}"} if not line else None
        yield process, dead or json.loads(line)
    finally:
        process.stdin.close()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def peak_bytes(process):
    """Most memory that a process held so far, or None where the system does not say."""
    try:
        text = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    except OSError:
        return None
    found = [line.split()[1] for line in text.splitlines() if line.startswith("VmHWM")]
    return int(found[0]) * 1024 if found else None


def main(folder):
    """Serves a folder until standard input ends."""
    from keras_unigan.errors import CodedError
    from keras_unigan.serving.server import Server

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        base = Path(place) / MODEL
        base.mkdir()
        (base / "1").symlink_to(Path(folder).resolve(), target_is_directory=True)
        server = Server(base, rest_api_port=0, max_num_load_retries=0).start()
        try:
            server.wait_until_ready(WAIT_SECONDS)
            seconds = round(time.perf_counter() - started, 2)
            said = {"address": server.grpc_addr, "seconds": seconds}
        except CodedError as error:
            said = {"error": error.found}
        print(json.dumps(said), flush=True)
        if "address" in said:
            sys.stdin.read()
        server.stop(1)


if __name__ == "__main__":
    main(sys.argv[1])
