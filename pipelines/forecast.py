"""What `unigan prepare` will take: seconds, disk and memory, from a few cases prepared for real."""

import dataclasses
import math
import os
import shutil
import tempfile
import time
from pathlib import Path

from keras_unigan import planning
from keras_unigan.errors import CodedError
from keras_unigan.pipelines import files, fingerprint, preprocess, sources

CASES = 8
"""Most cases of a probe; one of every split and modality where there are as many."""

SPARE = 1.1
"""Factor by which cheaper settings stay below the limit."""


def input_bytes(case):
    """Bytes of the files of a case with local absolute paths; 0 where nobody knows here."""
    return sum(_size(Path(p)) for p in (case.image, case.label) if p and not files.is_remote(p))


def _size(path):
    if path.is_dir():
        return sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    return path.stat().st_size if path.is_file() else 0


def make_plan(study, output, options, memory=planning.MEMORY_GIB, window=planning.WINDOWS[0]):
    """Measures a study and plans, and writes nothing.

    Args:
        study: `config.Study` with absolute paths.
        output: Folder that the shards are for; if remote, its workers meet there for a moment.
        options: Beam options.
        memory: See `planning.make_plan`.
        window: The same.

    Returns:
        `config.Plan`, number of dead letters and seconds.
    """
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = output if files.is_remote(output) else scratch
        measured, dead = fingerprint.measure(study, files.join(folder, "dry.part"), options)
    plan = planning.make_plan(study, measured, memory, window)
    return plan, len(dead), time.perf_counter() - start


def forecast(study, plan, output, free=None):
    """Prepares a few cases in a scratch folder and says what all of them will take.

    Args:
        study: `config.Study` with absolute paths.
        plan: `config.Plan`.
        output: Folder that the shards are for.
        free: Bytes that they may take; None takes what is free where they are to lie.

    Returns:
        Dict: `seconds` of one process, `disk_bytes`, `memory_bytes` (most that the process held, 0
        where the system does not say), `cases` and `probed` (their numbers), `dead_letters` among
        those probed.

    Raises:
        CodedError: KUG-T06 when the disk will not hold them, with settings that fit; else as
            `preprocess.run`.
    """
    count = min(CASES, len(study.cases))
    with tempfile.TemporaryDirectory() as scratch:
        dataclasses.replace(study, folder=scratch).save(Path(scratch, "study.json"))
        plan.save(Path(scratch, "plan.json"))
        argv = ["--study", f"{scratch}/study.json", "--plan", f"{scratch}/plan.json"]
        argv += ["--output", f"{scratch}/shards", "--limit", str(count)]
        summary = preprocess.run(argv)
        chosen = sources.load_study(f"{scratch}/study.json", count).cases
        counters = summary["counters"]
        extra = summary["seconds"] - sum(counters["stage_seconds"].values())
        share, largest = _shares(study.cases, chosen)
    held = _peak()
    disk = math.ceil(share * counters["bytes_written"])
    result = {
        "seconds": round(extra + share * sum(counters["stage_seconds"].values()), 2),
        "disk_bytes": disk,
        "memory_bytes": round(held * max(1.0, largest)) if held else 0,
        "cases": len(study.cases),
        "probed": count,
        "dead_letters": summary["dead_letters"],
    }
    free = _free(output) if free is None else free
    if free is not None and disk > free:
        raise _too_large(study, plan, output, disk, free)
    return result


def _shares(cases, chosen):
    """All cases in units of those chosen, and their largest in units of the largest chosen."""
    every, some = ([input_bytes(case) for case in group] for group in (cases, chosen))
    if not all(every):
        return len(cases) / len(chosen), 1.0
    return sum(every) / sum(some), max(every) / max(some)


def _peak():
    """Most bytes that this process has held, 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def _free(output):
    """Free bytes where a local folder is or will be; None for a remote one."""
    if files.is_remote(output):
        return None
    folder = Path(os.path.abspath(output))
    return shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free


def crowded(study, output):
    """Whether shards might not fit on their disk, so that it is worth looking closer.

    Scans are compressed about as well as shards are; resampling to a finer grid may make more of
    them.
    """
    free = _free(output)
    return free is not None and 8 * sum(input_bytes(case) for case in study.cases) > free


def _too_large(study, plan, output, disk, free):
    """KUG-T06 with three cheaper settings: fewer cases, and two coarser grids."""
    ratio = SPARE * disk / max(free, 1)
    count = int(len(study.cases) / ratio)

    def coarser(axes):
        grid = [s * ratio ** (1 / axes) if i < axes else s for i, s in enumerate(plan.spacing)]
        return f'"spacing": {[math.ceil(100 * value) / 100 for value in grid]} in the plan'

    offers = [f"--limit {count}"] * (count > 0) + [coarser(3), coarser(2)]
    return CodedError(
        "KUG-T06",
        "disk",
        f"about {disk / 2**20:.0f} MiB of shards for {output}",
        f"at most {free / 2**20:.0f} MiB",
        "The job would end on its way.",
        "; or ".join([*offers, "another disk with -o"]),
    )
