"""Beam job: prepares every case of a study and writes TFRecord shards with their manifest.

One element is one shard: its cases are prepared one after the other and go straight into the file,
so memory does not grow with the study and nothing large is shuffled. Which case goes where is
decided beforehand, so any number of workers writes the same bytes.
"""

import dataclasses
import importlib.metadata
import platform
import sys
import time

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems

from keras_unigan import planning
from keras_unigan.config import SPLITS, Plan
from keras_unigan.errors import CodedError
from keras_unigan.pipelines import files, fingerprint, shards, sources

DEAD_LETTERS = "dead_letters.jsonl"


def arguments(argv):
    """The job's own flags, and what goes to Beam.

    Raises:
        CodedError: KUG-T02 for flags that exclude each other.
    """
    parser = sources.parser("preprocess")
    parser.add_argument("--plan", help="plan.json; measured and planned now when left out")
    parser.add_argument(
        "--memory", type=float, default=planning.MEMORY_GIB, help="GiB for one training step"
    )
    fingerprint.add_window(parser)
    parser.add_argument("--cases_per_shard", type=int, default=shards.CASES_PER_SHARD)
    sources.add_flag(parser, "--resume", "keep finished shards whose scans did not change")
    own, rest = parser.parse_known_args(argv)
    if own.resume and own.overwrite:
        raise CodedError("KUG-T02", "--resume, --overwrite", "both", "one of them")
    if own.cases_per_shard < 1:
        raise CodedError("KUG-T02", "--cases_per_shard", f"{own.cases_per_shard}", "1 or more")
    return own, rest


def run(argv=None):
    """Prepares a study.

    Args:
        argv: `--study`, `--output` (folder of shards), `--plan` (the folder's own with `--resume`,
            else planned now when left out), `--memory`, `--window`,
            `--cases_per_shard`, `--limit`, `--resume`, `--overwrite`; the rest goes to Beam.

    Returns:
        Dict: `output`, `cases` (asked for), `splits` (split -> modality -> cases written),
        `dead_letters` (their number), `dead_letter_file`, `counters` (see `shards.count`),
        `seconds`. Of a dry run: `output`, `cases`, `shards` (their number), `graph_bytes`.

    Raises:
        CodedError: KUG-D14 when nothing is left to train on, KUG-D08 when the plan is of another
            study, KUG-E02 when shards are there, KUG-T02 for flags that do not fit, and those of
            `fingerprint.run`.
    """
    start = time.perf_counter()
    own, rest = arguments(argv)
    output = files.absolute(own.output)
    paths = {n: files.join(output, n) for n in ("shards.json", "plan.json", "fingerprint.json")}
    options = sources.pipeline_options(rest)
    dry = sources.is_dry(options)
    again = own.overwrite or own.resume or dry
    files.refuse_existing(paths["shards.json"], again, "add --overwrite, or --resume")
    files.refuse_existing(paths["plan.json"], again, "add --resume to go on, or --overwrite")
    study = sources.load_study(own.study, own.limit)
    todo = shards.shards_of(study, own.cases_per_shard)
    plan, measured = _plan(own, study, options, paths["plan.json"])
    work = files.join(output, "work.part")
    lines, places = files.worklist(
        [{**s, "cases": [dataclasses.asdict(c) for c in s["cases"]]} for s in todo]
    )
    result_path = files.join(output, "shards.part")

    def build(pipeline):
        entries = (
            pipeline
            # The next step spreads them: once is enough.
            | "Shards" >> beam.Create(places, reshuffle=False)
            | "Spread" >> beam.Reshuffle()
            | "Write" >> beam.ParDo(shards.WriteShard(plan, output, work, own.resume))
        )
        sources.collect(entries, result_path)

    if dry:
        size = sources.describe(sources.run_pipeline(build, options), options)
        summary = {"output": own.output, "cases": len(study.cases), "shards": len(todo)}
        return {**summary, "graph_bytes": size}
    if files.exists(paths["shards.json"]):
        # No reader may take what is there now for the new study.
        FileSystems.delete([paths["shards.json"]])
    if own.overwrite:
        shards.sweep(output, ())
    files.write_json(paths["plan.json"], plan.to_dict())
    if measured:
        files.write_json(paths["fingerprint.json"], dataclasses.asdict(measured))
    files.write_bytes(work, lines)
    sources.run_pipeline(build, options, len(places))
    entries = {e["file"]: e for e in sources.take(result_path)}
    ordered = [entries[shard["file"]] for shard in todo]
    summary = _summary(own, study, ordered)
    shards.sweep(output, [n for s in todo for n in (s["file"], shards.entry_file(s["file"]))])
    if not any(e["cases"] and e["split"] == "train" for e in ordered):
        letters = summary["dead_letter_file"]
        raise CodedError(
            "KUG-D14",
            own.study,
            f"no usable training case among {len(study.cases)} cases",
            "at least one",
            fix=f"see {letters}" if letters else "change the splits of the study",
        )
    summary["seconds"] = round(time.perf_counter() - start, 2)
    _write_folder(own, output, plan, study, ordered, summary)
    return summary


def _plan(own, study, options, kept):
    """Plan of the flags, of the folder to go on with, or made now; with the fingerprint if so."""
    given = own.plan or (kept if own.resume and files.exists(kept) else None)
    if given:
        plan = Plan.from_dict(files.read_json(given), given)
        _check_plan(plan, study, given)
        return plan, None
    if sources.is_dry(options):
        raise CodedError(
            "KUG-T02",
            "--dry_run",
            "no --plan",
            "one: a dry run measures nothing",
            fix=f"unigan plan {own.study} -o plan.json",
        )
    result_path = files.join(files.absolute(own.output), "fingerprint.part")
    measured, _ = fingerprint.measure(study, result_path, options)
    return planning.make_plan(study, measured, own.memory, own.window), measured


def _check_plan(plan, study, where):
    """Raises KUG-D08 when a plan was made for other modalities or labels."""
    pairs = {
        "modalities": (plan.modalities, study.modalities),
        "labels": (plan.labels, study.labels),
        "channels": (plan.channels, study.channels),
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


def _summary(own, study, entries):
    """What `run` returns, but for the seconds; writes the dead letters or removes old ones."""
    dead = [letter for entry in entries for letter in entry["dead"]]
    letters = files.join(own.output, DEAD_LETTERS)
    if dead:
        sources.write_dead_letters(letters, dead)
    elif files.exists(letters):
        FileSystems.delete([letters])
    counts = {s: dict.fromkeys(study.modalities, 0) for s in SPLITS}
    for entry in entries:
        counts[entry["split"]][entry["modality"]] += len(entry["cases"])
    return {
        "output": own.output,
        "cases": len(study.cases),
        "splits": counts,
        "dead_letters": len(dead),
        "dead_letter_file": letters if dead else None,
        "counters": shards.count(entries),
    }


def _write_folder(own, output, plan, study, entries, summary):
    """Writes the run record, and the manifest last."""
    from keras_unigan.data import records

    fields = [field.name for field in dataclasses.fields(records.Shard)]
    kept = [records.Shard(**{n: e[n] for n in fields}) for e in entries if e["cases"]]
    manifest = records.Manifest(
        recipe=plan.recipe,
        plan=plan.to_dict(),
        schema=records.schema(plan.channels, study.cases),
        splits=summary["splits"],
        shards=tuple(kept),
        dead_letters=DEAD_LETTERS if summary["dead_letters"] else None,
    )
    packages = ("keras-unigan", "apache-beam", "numpy", "nibabel", "tensorflow")
    entry = {
        "command": "prepare",
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in packages},
        "config": vars(own),
        "inputs": {"study": own.study, "plan": own.plan},
        "outputs": {"manifest": files.join(own.output, records.MANIFEST), "recipe": plan.recipe},
        "counters": summary["counters"],
        "seconds": summary["seconds"],
    }
    path = files.join(output, "run.json")
    earlier = files.read_json(path) if own.resume and files.exists(path) else []
    files.write_json(path, [*earlier, entry])
    files.write_json(files.join(output, records.MANIFEST), manifest.to_dict())


if __name__ == "__main__":
    from keras_unigan.pipelines import preprocess

    sys.exit(sources.main(preprocess.run))
