"""Times the training stream against the training step of the smallest game; one JSON line.

For 2-D and 3-D, volumes in memory ("cached") and read from their shards ("streamed"), and each
level of augmentation: examples a second out of `data.load`, nothing else running in the process.
The step is that of `joint` (one network, no adversary) on a batch that is already there. `fed` is
their ratio: above 1 the model never waits, as far as both have cores of their own. On a machine
without an accelerator they share them, and the stream takes `1 / (1 + fed)` of the time.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time

from keras_unigan import data, training
from keras_unigan.config import TrainOptions
from keras_unigan.data import phantoms
from keras_unigan.pipelines import preprocess

LEVELS = ("none", "light", "standard", "contrast")


def spread(values):
    """Minimum, median and maximum."""
    return [round(v, 1) for v in (min(values), statistics.median(values), max(values))]


def rates(batches, batch_size, repeats, seconds):
    """Examples a second of an endless iterator, over some stretches of time."""
    found = []
    for _ in range(repeats):
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            next(batches)
            count += 1
        found.append(count * batch_size / (time.perf_counter() - start))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=96, help="voxels of a phantom along x and y")
    parser.add_argument("--depth", type=int, default=24)
    parser.add_argument("--subjects", type=int, default=3, help="of each of two modalities")
    parser.add_argument("--dims", default="2,3")
    parser.add_argument("--levels", default=",".join(LEVELS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each stretch")
    options = parser.parse_args()
    result = {"benchmark": "input_pipeline", **vars(options), "unit": "examples/s"}
    with tempfile.TemporaryDirectory() as folder:
        study = phantoms.write_study(
            folder, ("ct", "t1"), options.subjects, size=options.size, depth=options.depth
        )
        shards = f"{folder}/shards"
        preprocess.run(["--study", study.path("study.json"), "--output", shards])
        for dims in (int(d) for d in options.dims.split(",")):
            streams = {}
            for level, cached in itertools.product(options.levels.split(","), (True, False)):
                train, _, plan = data.load(
                    shards,
                    dims,
                    options=TrainOptions(augment=level),
                    endless=True,
                    cache_gib=4.0 if cached else 0.0,
                )
                batches, size = iter(train), plan.configuration(dims).batch_size
                for _ in range(5):
                    batch = next(batches)
                found = rates(batches, size, options.repeats, options.seconds)
                streams[f"{level} {'cached' if cached else 'streamed'}"] = found
                del batches
            model = training.build_model("joint", plan, spatial_dims=dims)
            steps = (model.train_on_batch(batch) for _ in itertools.count())
            for _ in range(3):
                next(steps)
            step = rates(steps, size, options.repeats, options.seconds)
            middle = statistics.median(step)
            result[f"{dims}d"] = {
                "patch": plan.configuration(dims).patch_size,
                "batch": size,
                "parameters": model.count_params(),
                "step": spread(step),
                "stream": {name: spread(found) for name, found in streams.items()},
                "fed": {n: round(statistics.median(f) / middle, 2) for n, f in streams.items()},
            }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
