"""Shards of a study: which cases go where, the step that writes one, and what a later run keeps.

Beside each shard lies an entry under `done/` that says what the shard was made of. With `--resume`
a worker keeps a shard whose entry still holds, so a killed run goes on where it stopped and a
changed case costs its own shard only.
"""

import collections
import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import tempfile
import time

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems
from apache_beam.metrics import Metrics

from keras_unigan.config import SPLITS, Case, from_dict
from keras_unigan.data import preprocessing
from keras_unigan.errors import CodedError
from keras_unigan.pipelines import files, sources

CASES_PER_SHARD = 8
"""Cases of one file; 8 whole-body volumes stay below 2 GB."""

DONE = "done"
STAGES = ("read", "prepare", "write")
MISSING = "missing"

_OURS = re.compile(
    r"\w+/.+-\d{5,}-of-\d{5,}\.tfrecord\.gz|done/.+\.json"
    r"|(work|shards|fingerprint)\.part|(.*/)?\.[^/]*\.part"
)
"""Names that the job gives to shards, entries and unfinished files."""


def shards_of(study, cases_per_shard=CASES_PER_SHARD):
    """Which cases go into which file.

    Returns:
        List of dicts `file`, `split`, `modality`, `cases`; cases sorted by id.
    """
    groups = collections.defaultdict(list)
    for case in sorted(study.cases, key=lambda c: c.id):
        groups[case.split, case.modality].append(case)
    result = []
    for split in SPLITS:
        for modality in study.modalities:
            cases = groups[split, modality]
            count = math.ceil(len(cases) / cases_per_shard)
            for i in range(count):
                result.append(
                    {
                        "file": f"{split}/{modality}-{i:05d}-of-{count:05d}.tfrecord.gz",
                        "split": split,
                        "modality": modality,
                        "cases": cases[i * cases_per_shard : (i + 1) * cases_per_shard],
                    }
                )
    return result


def entry_file(shard_file):
    """Name of the entry of a shard."""
    return f"{DONE}/{shard_file.removesuffix('.tfrecord.gz')}.json"


class WriteShard(beam.DoFn):
    """Place of a shard in the work list -> its entry in the manifest, with its dead letters.

    Args:
        plan: `config.Plan`.
        output: Folder of shards, absolute or a URI.
        work: Path of the work list.
        resume: Whether shards whose entry still holds are kept.
    """

    def __init__(self, plan, output, work, resume=False):
        self.plan, self.output, self.work, self.resume = plan, output, work, resume
        # Runners that have metrics show them while the job runs.
        self.volumes = Metrics.counter("prepare", "volumes")
        self.failed = Metrics.counter("prepare", "dead_letters")

    def setup(self):
        """Imports TensorFlow on the worker alone: `--help` and planning stay instant."""
        from keras_unigan.data import records

        self.records = records

    def process(self, place):
        """Writes one shard, unless it is there already."""
        shard = files.read_item(self.work, place)
        shard["cases"] = [from_dict(Case, case, shard["file"]) for case in shard["cases"]]
        path = files.join(self.output, entry_file(shard["file"]))
        entry = self.kept(shard, path) if self.resume else None
        kept = entry is not None
        if not kept:
            entry = self.write(shard)
            # Last, so that an entry never speaks of a shard that is not there.
            files.write_json(path, entry)
        self.volumes.inc(len(entry["inputs"]))
        self.failed.inc(len(entry["dead"]))
        yield {**entry, "kept": kept, "worker": f"{platform.node()}:{os.getpid()}"}

    def kept(self, shard, path):
        """The entry of an earlier run, or None where anything about the shard has changed."""
        if not files.exists(path):
            return None
        entry = files.read_json(path)
        if entry.get("settings") != self.settings(shard):
            return None
        if entry["inputs"] != {case.id: _digest(case) for case in shard["cases"]}:
            return None
        file = files.join(self.output, shard["file"])
        if entry["cases"] and not (files.exists(file) and files.sha256(file) == entry["sha256"]):
            return None
        return entry

    def settings(self, shard):
        """sha256 over all that decides the bytes of a shard, beside the content of the scans."""
        facts = [
            # Without a list there where all is annotated, as in entries of earlier versions.
            [c.id, c.subject, c.modality, c.split, c.channel, c.label is not None]
            + ([c.annotated] if c.annotated else [])
            + (["synthetic"] if c.synthetic else [])
            + (["prelabelled"] if c.prelabelled else [])
            for c in shard["cases"]
        ]
        version = importlib.metadata.version("keras-unigan")
        schema = self.records.schema(self.plan.channels)
        text = json.dumps([self.plan.recipe, schema, version, facts])
        return hashlib.sha256(text.encode()).hexdigest()

    def write(self, shard):
        """Prepares the cases and writes the shard, unless none of them is usable."""
        inputs, written, dead, sizes = {}, [], [], []
        clock, work = _Clock(), time.thread_time()

        def examples():
            for case in shard["cases"]:
                clock.lap("write")
                stage = "read"
                try:
                    with sources.at_hand(case) as here:
                        inputs[case.id], size = sources.digest(here)
                        sizes.append(size)
                        image, label = sources.read_case(here, self.plan.channels)
                    clock.lap(stage)
                    stage = "prepare"
                    whole = image, self.plan, label, case.id, case.annotated
                    prepared = preprocessing.prepare(*whole)
                    # The mark in a header counts, too.
                    made = case.synthetic or image.synthetic
                    own = dataclasses.replace(case, synthetic=made)
                    example = self.records.to_example(own, prepared)
                except CodedError as error:
                    inputs.setdefault(case.id, MISSING)
                    dead.append(sources.dead_letter(case, error))
                    continue
                finally:
                    clock.lap(stage)
                written.append(case.id)
                yield example

        path = files.join(self.output, shard["file"])
        with tempfile.TemporaryDirectory() as folder:
            local = os.path.join(folder, "shard")
            self.records.write_shard(local, examples())
            digest, size = self.records.sha256(local), os.path.getsize(local)
            if written:
                with open(local, "rb") as file:
                    files.write_stream(path, file)
            elif files.exists(path):
                FileSystems.delete([path])
        clock.lap("write")
        return {
            **{key: shard[key] for key in ("file", "split", "modality")},
            "cases": written,
            "sha256": digest,
            "bytes": size if written else 0,
            "dead": dead,
            "settings": self.settings(shard),
            "inputs": inputs,
            "bytes_read": sum(sizes),
            "stage_seconds": {k: round(v, 4) for k, v in clock.seconds.items()},
            "core_seconds": round(time.thread_time() - work, 4),
        }


class _Clock:
    """Seconds per stage: all time since the last lap belongs to the stage that it names."""

    def __init__(self):
        self.seconds, self._last = dict.fromkeys(STAGES, 0.0), time.perf_counter()

    def lap(self, stage):
        now = time.perf_counter()
        self.seconds[stage] += now - self._last
        self._last = now


def _digest(case):
    try:
        with sources.at_hand(case) as here:
            return sources.digest(here)[0]
    except CodedError:
        return MISSING


def count(entries):
    """Sums up what a run did.

    Args:
        entries: What `WriteShard` gives.

    Returns:
        Dict: `volumes` and `shards` done now, `volumes_kept` and `shards_kept` from an earlier
        run, `workers` (processes that did it), `bytes_read`, `bytes_written`, `stage_seconds`
        (by the clock) and `core_seconds` (of computing), both summed over the workers.
    """
    done = [e for e in entries if not e["kept"]]
    return {
        "volumes": sum(len(e["inputs"]) for e in done),
        "volumes_kept": sum(len(e["inputs"]) for e in entries if e["kept"]),
        "shards": len(done),
        "shards_kept": len(entries) - len(done),
        "workers": len({e["worker"] for e in entries}),
        "bytes_read": sum(e["bytes_read"] for e in done),
        "bytes_written": sum(e["bytes"] for e in done),
        "stage_seconds": {s: round(sum(e["stage_seconds"][s] for e in done), 3) for s in STAGES},
        "core_seconds": round(sum(e["core_seconds"] for e in done), 3),
    }


def sweep(output, keep):
    """Removes shards and entries beside those to keep, and files that a killed run left half.

    Args:
        output: Folder of shards, absolute or a URI.
        keep: Names of files in it.
    """
    keep, names = set(keep), files.listing(output)
    gone = [path for n, path in names.items() if _OURS.fullmatch(n) and n not in keep]
    if gone:
        FileSystems.delete(gone)
