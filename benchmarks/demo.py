"""Times `unigan demo` stage by stage, each time in a new process; prints one JSON line."""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=1)
    repeats = parser.parse_args().repeats
    runs = []
    for seed in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "keras_unigan", "demo", "-o", f"{folder}/demo"]
            start = time.perf_counter()
            done = subprocess.run(
                [*command, "--json", "--seed", str(seed)], check=True, stdout=subprocess.PIPE
            )
            result = json.loads(done.stdout)
        seconds = {**result["seconds"], "process": round(time.perf_counter() - start, 1)}
        runs.append({"seconds": seconds, "macro_dice": result["macro_dice"]})
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(json.dumps({"benchmark": "demo", "runs": runs, "peak_gib": round(peak, 2)}))


if __name__ == "__main__":
    main()
