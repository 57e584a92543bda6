"""What the benchmarks that train share: runs that go on after a kill, and rows that are kept."""

import argparse
import dataclasses
import json
import os
from pathlib import Path

from keras_unigan import training
from keras_unigan.config import Experiment, finite, read_json


def parser(description, rows):
    """Command line with the budget options of `quality.py`.

    Args:
        description: Text of the help.
        rows: Default path of the rows.
    """
    result = argparse.ArgumentParser(description=description)
    result.add_argument("action", choices=("run", "table"), nargs="?", default="table")
    result.add_argument("--seeds", type=lambda s: [int(n) for n in s.split(",")], default=[0])
    result.add_argument("--steps", type=int, default=1000)
    result.add_argument("--batch", type=int, default=8)
    result.add_argument("--filters", type=int, default=16)
    result.add_argument("--steps_per_epoch", type=int, default=100)
    result.add_argument("--augment", default="light")
    result.add_argument("--learning_rate", type=float)
    result.add_argument("--game", default="{}", help="JSON: further options of every game")
    result.add_argument("--train", default="{}", help="JSON: further options of training")
    result.add_argument("--network", default="{}", help="JSON: further options of the main network")
    result.add_argument("--tag", default="", help="tells apart rows of other options")
    result.add_argument("--work", default="quality_runs", help="may be that of quality.py")
    result.add_argument("--rows", default=str(rows))
    result.add_argument("--data", default=os.environ.get("UNIGAN_DATA", "../shared/data"))
    result.add_argument("--quiet", action="store_true")
    return result


def budget(options):
    """What of the command line belongs to the key of a row."""
    return {name: getattr(options, name) for name in ("steps", "batch", "filters", "tag")}


def run_folder(folder, name, seed, options):
    """Folder of a run; the one that `quality.py` has for the same run."""
    size = f"{options.steps}x{options.batch}_width{options.filters}"
    return Path(folder) / "runs" / f"{name}{options.tag}_{seed}_{size}".replace(" ", "_")


def train(experiment, quiet):
    """Trains a run, goes on with it, or leaves it as it is where it has finished.

    Returns:
        Seconds of all its sessions.
    """
    output = Path(experiment.output)
    resume = (output / "checkpoints" / "state.json").is_file()
    entries = output / "run.json"
    if resume:
        before = dataclasses.replace(Experiment.load(output / "config.json"), horizon=None)
        if before != experiment:
            raise SystemExit(
                f"{output} was trained with other settings: give --tag a name for these"
            )
        if entries.is_file() and sessions(entries)[-1]["status"] == "finished":
            return sum(entry["seconds"] for entry in sessions(entries))
    training.run(experiment, resume=resume, overwrite=not resume, quiet=quiet)
    return sum(entry["seconds"] for entry in sessions(entries))


def sessions(path):
    """Entries of training in a `run.json`."""
    return [entry for entry in read_json(path) if entry["command"] == "train"]


def read_rows(path):
    """Rows so far."""
    path = Path(path)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def add_row(path, row):
    """Adds a row, and prints it."""
    text = json.dumps(finite(row))
    with Path(path).open("a") as file:
        file.write(text + "\n")
    print(text, flush=True)


def rounded(scores, digits=4):
    """Numbers of a dictionary, rounded."""
    return {name: round(value, digits) for name, value in scores.items()}
