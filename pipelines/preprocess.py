"""Beam job: prepares every case of a study and writes TFRecord shards with their manifest.

One element is one shard: its cases are prepared one after the other and go straight into the file,
so memory does not grow with the study and nothing large is shuffled. Which case goes where is
decided beforehand, so any number of workers writes the same bytes.
"""

import collections
import dataclasses
import importlib.metadata
import math
import os
import platform
import sys
import tempfile
import time

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems

from keras_unigan import planning
from keras_unigan.config import SPLITS, Plan
from keras_unigan.data import preprocessing
from keras_unigan.errors import CodedError
from keras_unigan.pipelines import fingerprint, sources

CASES_PER_SHARD = 8
"""Cases of one file; 8 whole-body volumes stay below 2 GB."""

DEAD_LETTERS = "dead_letters.jsonl"


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


class WriteShard(beam.DoFn):
    """Shard -> its entry in the manifest, with the dead letters of its cases.

    Args:
        plan: `config.Plan`.
        output: Folder of shards.
    """

    def __init__(self, plan, output):
        self.plan, self.output = plan, output

    def setup(self):
        """Imports TensorFlow on the worker alone: `--help` and planning stay instant."""
        from keras_unigan.data import records

        self.records = records

    def process(self, shard):
        """Prepares the cases of one shard and writes it, unless none of them is usable."""
        written, dead = [], []

        def examples():
            for case in shard["cases"]:
                try:
                    image, label = sources.read_case(case)
                    prepared = preprocessing.prepare(image, self.plan, label, case.id)
                except CodedError as error:
                    dead.append(sources.dead_letter(case, error))
                    continue
                written.append(case.id)
                yield self.records.to_example(case, prepared)

        with tempfile.TemporaryDirectory() as folder:
            local = os.path.join(folder, "shard")
            self.records.write_shard(local, examples())
            entry = {k: shard[k] for k in ("file", "split", "modality")}
            entry |= {"cases": written, "sha256": self.records.sha256(local)}
            entry |= {"bytes": os.path.getsize(local), "dead": dead}
            if written:
                with open(local, "rb") as file:
                    sources.write_stream(sources.join(self.output, shard["file"]), file)
        yield entry


def run(argv=None):
    """Prepares a study.

    Args:
        argv: `--study`, `--output` (folder of shards), `--plan` (planned now when left out),
            `--memory`, `--cases_per_shard`, `--limit`, `--overwrite`; the rest goes to Beam.

    Returns:
        Dict: `output`, `cases` (asked for), `splits` (split -> modality -> cases written),
        `dead_letters` (their number), `dead_letter_file`, `seconds`.

    Raises:
        CodedError: KUG-D14 when nothing is left to train on, KUG-D08 when the plan is of another
            study, KUG-E02 when shards are there, and those of `fingerprint.run`.
    """
    start = time.perf_counter()
    parser = sources.parser("preprocess")
    parser.add_argument("--plan", help="plan.json; measured and planned now when left out")
    parser.add_argument(
        "--memory", type=float, default=planning.MEMORY_GIB, help="GiB for one training step"
    )
    parser.add_argument("--cases_per_shard", type=int, default=CASES_PER_SHARD)
    own, rest = parser.parse_known_args(argv)
    manifest_path = sources.join(own.output, "shards.json")
    sources.refuse_existing(manifest_path, own.overwrite)
    study = sources.load_study(own.study, own.limit)
    options = sources.pipeline_options(rest)
    measured = None
    if own.plan:
        plan = Plan.from_dict(sources.read_json(own.plan), own.plan)
        _check_plan(plan, study, own.plan)
    else:
        result_path = sources.join(own.output, "fingerprint.part")
        measured, _ = fingerprint.measure(study, result_path, options)
        plan = planning.make_plan(study, measured, own.memory)
    _clear(own.output, manifest_path)
    shards = shards_of(study, own.cases_per_shard)
    result_path = sources.join(own.output, "shards.part")

    def build(pipeline):
        entries = (
            pipeline
            | "Shards" >> beam.Create(shards)
            | "Spread" >> beam.Reshuffle()
            | "Write" >> beam.ParDo(WriteShard(plan, own.output))
        )
        sources.collect(entries, result_path)

    sources.run_pipeline(build, options)
    entries = {e["file"]: e for e in sources.take(result_path)}
    ordered = [entries[shard["file"]] for shard in shards]
    dead = [letter for entry in ordered for letter in entry.pop("dead")]
    kept = [entry for entry in ordered if entry["cases"]]
    letters = sources.join(own.output, DEAD_LETTERS) if dead else None
    if dead:
        sources.write_dead_letters(letters, dead)
    if not any(entry["split"] == "train" for entry in kept):
        FileSystems.delete([sources.join(own.output, entry["file"]) for entry in kept])
        raise CodedError(
            "KUG-D14",
            own.study,
            f"no usable training case among {len(study.cases)} cases",
            "at least one",
            fix=f"see {letters}" if dead else "change the splits of the study",
        )
    counts = {s: dict.fromkeys(study.modalities, 0) for s in SPLITS}
    for entry in kept:
        counts[entry["split"]][entry["modality"]] += len(entry["cases"])
    summary = {
        "output": own.output,
        "cases": len(study.cases),
        "splits": counts,
        "dead_letters": len(dead),
        "dead_letter_file": letters,
        "seconds": round(time.perf_counter() - start, 2),
    }
    _write_folder(own, plan, measured, kept, summary)
    return summary


def _check_plan(plan, study, where):
    """Raises KUG-D08 when a plan was made for other modalities or labels."""
    pairs = {
        "modalities": (plan.modalities, study.modalities),
        "labels": (plan.labels, study.labels),
    }
    for name, (planned, wanted) in pairs.items():
        if planned != wanted:
            raise CodedError(
                "KUG-D08",
                f"{where}.{name}",
                f"{planned}",
                f"the study's {wanted}",
                "Records would not mean what the study says.",
                "unigan plan study.json -o plan.json",
            )


def _clear(output, manifest_path):
    """Removes an earlier manifest, then its shards: no reader may take them for the new ones."""
    if not FileSystems.exists(manifest_path):
        return
    old = sources.read_json(manifest_path)
    names = [sources.join(output, s["file"]) for s in old.get("shards", [])]
    names.append(sources.join(output, DEAD_LETTERS))
    FileSystems.delete([manifest_path])
    FileSystems.delete([name for name in names if FileSystems.exists(name)])


def _write_folder(own, plan, measured, shards, summary):
    """Writes plan, fingerprint and run record, and the manifest last."""
    from keras_unigan.data import records

    def path(name):
        return sources.join(own.output, name)

    manifest = records.Manifest(
        recipe=plan.recipe,
        plan=plan.to_dict(),
        schema=records.schema(),
        splits=summary["splits"],
        shards=tuple(records.Shard(**entry) for entry in shards),
        dead_letters=DEAD_LETTERS if summary["dead_letters"] else None,
    )
    sources.write_json(path("plan.json"), plan.to_dict())
    if measured:
        sources.write_json(path("fingerprint.json"), dataclasses.asdict(measured))
    packages = ("keras-unigan", "apache-beam", "numpy", "nibabel", "tensorflow")
    entry = {
        "command": "prepare",
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in packages},
        "config": vars(own),
        "inputs": {"study": own.study, "plan": own.plan},
        "outputs": {"manifest": path(records.MANIFEST), "recipe": plan.recipe},
        "seconds": summary["seconds"],
    }
    sources.write_json(path("run.json"), [entry])
    sources.write_json(path(records.MANIFEST), manifest.to_dict())


if __name__ == "__main__":
    from keras_unigan.pipelines import preprocess

    sys.exit(sources.main(preprocess.run))
