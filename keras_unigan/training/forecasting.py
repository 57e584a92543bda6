"""What a run will take: memory, disk and time, from a short probe of its own steps."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from keras_unigan.config import Plan, read_json, write_json
from keras_unigan.errors import CodedError
from keras_unigan.training import fitting, running
from keras_unigan.training.choosing import chosen
from keras_unigan.training.devices import Workers
from keras_unigan.training.session import PICTURES


def forecast(experiment, memory_gib=None):
    """Probes a run in a process of its own and says what the whole will take.

    Args:
        experiment: `config.Experiment`.
        memory_gib: GiB of memory that the run may take; None takes what is free now.

    Returns:
        Dict: `seconds` (by the clock, from the command to its end, with as much other work on the
        machine as during the probe; None for a budget in minutes), `core_seconds` (of computing,
        which other work changes little), `steps`, `epochs`, `validations`, `memory_bytes`,
        `disk_bytes`, `probe` (what `probing.probe` found) and `probe_seconds`.

    Raises:
        CodedError: KUG-T06 when memory or disk will not hold it, with settings that fit; KUG-T02
            for one of several workers, which cannot be probed alone; else as `training.run`.
    """
    if Workers.read().count > 1:
        raise CodedError(
            "KUG-T02",
            "--dry-run",
            "a TF_CONFIG of several workers",
            "one machine",
            "A worker makes no step without the others.",
            "unset TF_CONFIG",
        )
    begun = time.monotonic()
    experiment, _ = chosen(experiment)
    found = _ask(experiment, memory_gib)
    result = {**extrapolate(experiment, found), "probe": found}
    result["probe_seconds"] = round(time.monotonic() - begun, 1)
    check_disk(experiment, result["disk_bytes"])
    return result


def _ask(experiment, memory_gib):
    """What the probe of an experiment found, or the error that it met."""
    limit = None if memory_gib is None else int(memory_gib * 2**30)
    with tempfile.TemporaryDirectory() as folder:
        request, result = Path(folder, "request.json"), Path(folder, "result.json")
        data = {"started": time.time(), "limit": limit, "experiment": experiment}
        write_json(request, data)
        command = [sys.executable, "-m", "keras_unigan.training.probing", str(request), str(result)]
        done = subprocess.run(command, capture_output=True, text=True)
        if result.is_file():
            answer = read_json(result)
            if "error" in answer:
                raise CodedError(*answer["error"])
            return answer["found"]
        if done.returncode < 0:
            raise CodedError(
                "KUG-T06",
                "memory",
                f"a probe that the system ended with signal {-done.returncode}",
                "one that comes to its end",
                "That is what a system does with a process that takes too much memory.",
                "--dry-run --memory GIB with less than is free: it then names settings that fit",
            )
        raise RuntimeError(f"The probe ended with code {done.returncode}: {done.stderr[-2000:]}")


def extrapolate(experiment, found):
    """The whole run from its probe.

    Args:
        experiment: `config.Experiment`.
        found: What `probing.probe` found.

    Returns:
        `seconds`, `core_seconds`, `steps`, `epochs`, `validations`, `memory_bytes`, `disk_bytes`.
    """
    options = experiment.train
    every = max(1, -(-found["tiles"] // options.steps_per_epoch))
    validation = found["first_tile"] + (found["tiles"] - 1) * found["tile"] if found["tiles"] else 0
    steps = running.budget_of(experiment)
    if steps is None:
        # Of a budget in minutes: what its epochs leave for steps.
        epoch = options.steps_per_epoch * found["step"] + found["epoch_end"] + validation / every
        epochs = 60 * experiment.minutes / epoch
        steps = max(1, int(epochs * options.steps_per_epoch))
    epochs = -(-steps // options.steps_per_epoch)
    validations = -(-epochs // every) if found["tiles"] else 0
    pictures = min(epochs, max(PICTURES, 1)) if found["picture_bytes"] else 0
    training = found["first_step"] + (steps - 1) * found["step"]
    saves = int(training / options.checkpoint_seconds) if options.checkpoint_seconds else 0
    if options.checkpoint_steps:
        saves = max(saves, steps // options.checkpoint_steps)
    counts = {
        **{"start": 1, "build": 1, "first_step": 1, "step": steps - 1, "epoch_end": epochs},
        **{"picture": pictures, "save": max(0, saves - epochs)},
        # The graph of a validation is made once.
        **{"first_tile": min(1, validations)},
        "tile": validations * found["tiles"] - min(1, validations),
    }
    seconds, core = (sum(n * took[k] for k, n in counts.items()) for took in (found, found["core"]))
    disk = found["disk"] + max(0, pictures - 1) * found["picture_bytes"]
    return {
        "seconds": None if experiment.minutes is not None else round(seconds, 1),
        "core_seconds": round(core, 1),
        "steps": steps,
        "epochs": epochs,
        "validations": validations,
        "memory_bytes": int(found["memory"]),
        "disk_bytes": int(disk),
    }


def check_disk(experiment, need):
    """Refuses a run whose folder will not fit on its disk.

    Args:
        experiment: `config.Experiment`.
        need: Bytes that it takes.

    Raises:
        CodedError: KUG-T06.
    """
    folder = Path(os.path.abspath(experiment.output))
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if need <= free:
        return
    plan = plan_of(experiment)
    model, plan = fitting.built(experiment, plan)
    offers = fitting.cheaper(experiment, plan, model, {}, free, 0, memory=False)
    raise fitting.refuse(experiment, plan, "disk", need, free, offers)


def plan_of(experiment):
    """The plan of the shards of an experiment."""
    return Plan.load(os.path.join(experiment.shards, "plan.json"))


def sentences(result):
    """What a forecast says, as lines for people."""
    found = result["probe"]
    minutes = None if result["seconds"] is None else result["seconds"] / 60
    time_ = "as given" if minutes is None else f"about {minutes:.1f} minutes"
    busy = found["others"] or 0.0
    load = f"{busy:.1f} of {os.cpu_count()} cores were busy with other work during the probe"
    return [
        f"time: {time_} by the clock: {result['steps']} steps of {found['step']:.3g} s, "
        f"{result['validations']} validations of {found['tiles'] * found['tile']:.3g} s",
        *[f"time: {load}; without that it is shorter"] * (busy >= 0.2),
        f"computing: about {result['core_seconds']:.0f} core-seconds, whatever else is running",
        f"memory: about {fitting.gib(result['memory_bytes'])}",
        f"disk: about {fitting.gib(result['disk_bytes'])}",
        f"from a probe of {found['steps']} steps in {result['probe_seconds']:.0f} s",
    ]
