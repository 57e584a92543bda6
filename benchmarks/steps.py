"""Times a training step of `segan` and of `joint`, alternating in one process; one JSON line."""

import argparse
import json
import statistics
import time

import numpy as np

from keras_unigan import training
from keras_unigan.config import Configuration, Labels, Normalization, Plan


def made_up_plan(size, batch, filters):
    """A plan of one modality and one class for square slices."""
    configuration = Configuration((size, size), batch, ((2, 2),) * 4, filters)
    normalization = Normalization("mr", 0.0, 1.0, -2.0, 2.0)
    return Plan(
        study="made up",
        modalities=("t1",),
        labels=Labels(classes={"organ": (1,)}),
        spacing=(1.0, 1.0, 1.0),
        nearest_axis=None,
        normalization={"t1": normalization},
        configurations={"2d": configuration},
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--filters", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    plan = made_up_plan(options.size, options.batch, options.filters)
    rng = np.random.default_rng(0)
    shape = (options.batch, options.size, options.size)
    batch = {
        "image": rng.uniform(-1, 1, (*shape, 1)).astype("float32"),
        "label_map": rng.integers(0, 2, shape, "uint8"),
        "domain": np.zeros(options.batch, "int32"),
        "statistics": np.zeros((options.batch, 4), "float32"),
    }
    models = {n: training.build_model(n, plan, filters=options.filters) for n in ("segan", "joint")}
    seconds = {name: [] for name in models}
    for repeat in range(options.repeats + 2):
        for name, model in models.items():
            start = time.perf_counter()
            model.train_on_batch(batch)
            if repeat >= 2:
                seconds[name].append(time.perf_counter() - start)
    spread = {
        name: {
            "min": round(min(times), 3),
            "median": round(statistics.median(times), 3),
            "max": round(max(times), 3),
        }
        for name, times in seconds.items()
    }
    ratios = sorted(s / j for s, j in zip(seconds["segan"], seconds["joint"], strict=True))
    ratio = [round(r, 2) for r in (ratios[0], statistics.median(ratios), ratios[-1])]
    result = {"benchmark": "steps", **vars(options), "seconds": spread, "segan_to_joint": ratio}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
