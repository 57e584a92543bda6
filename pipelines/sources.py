"""What the jobs share: options, studies and volumes through Beam's file systems, command lines."""

import argparse
import collections
import contextlib
import dataclasses
import hashlib
import importlib
import json
import logging
import os
import pathlib
import posixpath
import sys
import tempfile

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import (
    DebugOptions,
    PipelineOptions,
    StandardOptions,
    TestOptions,
)
from google.protobuf import json_format

from keras_unigan.config import SPLITS, Study, synthetic_error
from keras_unigan.data import volumes
from keras_unigan.errors import CodedError, did_you_mean, missing_extra

# Some of these only for the jobs, which find here all that they share.
from keras_unigan.pipelines.files import (  # noqa: F401
    absolute,
    exists,
    is_remote,
    join,
    listing,
    match,
    read_bytes,
    read_item,
    read_json,
    refuse_existing,
    sha256,
    worklist,
    write_bytes,
    write_json,
    write_stream,
)

RUNNERS = {
    # Beam's own default first looks for a Go runner, which it would fetch from the network.
    None: "FnApiRunner",
    "DirectRunner": "FnApiRunner",
    # Beam does not know this one by its short name.
    "DaskRunner": "apache_beam.runners.dask.dask_runner.DaskRunner",
}
"""Short names that Beam would take otherwise; all other names go to Beam as they are."""

DASK_PARTITIONS = 256
"""Most pieces of work on Dask; by its own default 128 elements, often the whole study, are one."""

_PAIRED = (".hdr", ".hdr.gz", ".img", ".img.gz", ".mhd", ".nhdr")


def write_dead_letters(path, letters):
    """Writes one JSON object a line: case, code, message; sorted by case."""
    lines = sorted(json.dumps(letter) for letter in letters)
    write_bytes(path, "".join(line + "\n" for line in lines).encode())


def load_study(path, limit=None, splits=True):
    """Reads `study.json`, local or remote, with the paths of its cases made absolute.

    Args:
        path: The study file.
        limit: Number of cases to keep, or None: those of every split and modality in turn.
        splits: Whether every case must have a split.

    Raises:
        CodedError: As `Study.load` does; KUG-D14 for cases without a split.
    """
    if is_remote(path):
        study = Study.from_dict(read_json(path), posixpath.dirname(str(path)), str(path))
    else:
        study = Study.load(path)
    bare = [c.id for c in study.cases if c.split is None]
    if bare and splits:
        raise CodedError(
            "KUG-D14",
            path,
            f"{len(bare)} cases without a split, e.g. {bare[0]}",
            "train, val or test in each",
            "What is trained on must be known before anything is measured.",
            "unigan init FOLDER_OR_CSV -o study.json",
        )
    cases = [
        dataclasses.replace(c, image=study.path(c.image), label=study.path(c.label))
        for c in study.cases
    ]
    if limit is not None:
        cases = _in_turn(cases)[:limit]
    return dataclasses.replace(study, cases=tuple(cases))


def _in_turn(cases):
    """Cases reordered: the first of every split (train first) and modality, then the second, ..."""
    seen, keyed = collections.Counter(), []
    for case in cases:
        rank = seen[case.split, case.modality]
        seen[case.split, case.modality] += 1
        keyed.append(((rank, SPLITS.index(case.split)), case))
    return [case for _, case in sorted(keyed, key=lambda item: item[0])]


@contextlib.contextmanager
def at_hand(case):
    """The case with its files on this machine: where they lie, or copies that go again.

    Raises:
        CodedError: As `read_bytes` does. Errors from inside name the remote file.
    """
    remote = {k: getattr(case, k) for k in ("image", "label") if is_remote(getattr(case, k))}
    if not remote:
        yield case
        return
    with tempfile.TemporaryDirectory() as folder:
        here = {key: _copy(path, os.path.join(folder, key)) for key, path in remote.items()}
        try:
            yield dataclasses.replace(case, **here)
        except CodedError as error:
            where = error.where
            for key, path in here.items():
                where = where.replace(path, remote[key])
            raise CodedError(error.code, where, *error.args[2:]) from error


def _copy(path, folder):
    """Copies a remote scan, with all files that belong to it; returns its local path."""
    uri, name = str(path).rstrip("/"), str(path).rstrip("/").rpartition("/")[2]
    ending = volumes.ending(uri)
    files = {name: uri}
    if ending in _PAIRED:
        parent = uri[: -len(name)]
        files |= {p[len(parent) :]: p for p in match(uri[: -len(ending)], ".*")}
    elif ending is None and not exists(uri):
        # No object of this name: a prefix with a DICOM series below it.
        files = {f"{name}/{n}": p for n, p in listing(uri).items()} or files
    for relative, remote in files.items():
        local = os.path.join(folder, relative)
        os.makedirs(os.path.dirname(local), exist_ok=True)
        with open(local, "wb") as file:
            file.write(read_bytes(remote))
    return os.path.join(folder, name)


def digest(case):
    """What the files of a case hold, whatever they are called.

    Args:
        case: `config.Case` with local files; see `at_hand`.

    Returns:
        Hexadecimal sha256 over image and label map, and how many bytes they have.

    Raises:
        CodedError: KUG-D01 for a file that is not there.
    """
    whole, size = hashlib.sha256(), 0
    for path in (case.image, case.label):
        for file in [] if path is None else _parts(pathlib.Path(path)):
            whole.update(f"{sha256(file)}\n".encode())
            size += file.stat().st_size
        whole.update(b"\n")
    return whole.hexdigest(), size


def _parts(path):
    """All files of a local scan, in a fixed order."""
    if path.is_dir():
        return sorted(p for p in path.rglob("*") if p.is_file())
    if not path.is_file():
        raise CodedError(
            "KUG-D01", path, "no such file", "an image file", fix="check the path and the spelling"
        )
    ending = volumes.ending(path)
    if ending not in _PAIRED:
        return [path]
    stem = path.name[: -len(ending)]
    return sorted(p for p in path.parent.iterdir() if p.name.startswith(f"{stem}."))


def read_case(case, channels=1):
    """Image and label `Volume` (or None) of a case with absolute paths or URIs.

    Args:
        case: `config.Case`.
        channels: That of the study or plan.

    Raises:
        CodedError: KUG-D37 for a synthetic image that is not for training, and as
            `volumes.read_image` does.
    """
    with at_hand(case) as here:
        image = volumes.read_image(here.image, channels, here.channel)
        if image.synthetic and case.split in SPLITS[1:]:
            raise synthetic_error(case.id, case.split)
        return image, None if here.label is None else volumes.read(here.label)


def dead_letter(case, error):
    """What the dead-letter file says of a case; of paths it keeps the file's name."""
    where = os.path.basename(error.where)
    where = case.id if case.id in where else f"{case.id} {where}"
    parts = (error.found, error.expected, error.why, error.fix)
    return {
        "case": case.id,
        "code": error.code,
        "message": str(CodedError(error.code, where, *parts)),
    }


def parser(job):
    """Argument parser with the flags that every job has."""
    result = argparse.ArgumentParser(
        prog=f"python -m keras_unigan.pipelines.{job}",
        description="Other flags go to Beam, e.g. --runner, --direct_num_workers.",
    )
    result.add_argument("--study", required=True, help="study.json, local or a URI")
    result.add_argument("--output", required=True, help="what to write, local or a URI")
    result.add_argument("--limit", type=int, help="use only this many cases")
    add_flag(result, "--overwrite", "replace the output")
    return result


def add_flag(parser, name, text):
    """A flag that also takes a value: Flex Templates hand over `--overwrite=true`."""
    parser.add_argument(
        name,
        nargs="?",
        const=True,
        default=False,
        type=json.loads,
        choices=(True, False),
        metavar="true|false",
        help=text,
    )


def pipeline_options(arguments):
    """Beam options; the default runner works in this process. See `RUNNERS`.

    Raises:
        CodedError: KUG-T02 for options that Beam refuses, or that nothing reads.
    """
    options = PipelineOptions(arguments)
    standard = options.view_as(StandardOptions)
    standard.runner = RUNNERS.get(standard.runner, standard.runner)
    _refuse_unread(arguments, standard.runner)
    try:
        # Beam checks them here, and a job had better not begin with wrong ones.
        beam.Pipeline(options=options)
    except ValueError as error:
        text = str(error).strip().replace("\n", " ")
        raise CodedError("KUG-T02", "options of Beam", text, "those of the runner") from error
    if is_dry(options) and standard.runner != "DataflowRunner":
        # Other runners would run the job all the same.
        raise CodedError("KUG-T02", "--dry_run", str(standard.runner), "--runner DataflowRunner")
    return options


def _refuse_unread(arguments, runner):
    """Raises KUG-T02 for options that Beam itself would pass over with a remark.

    Those of other runners may be for a job server, which Beam here does not know.
    """
    if runner not in RUNNERS.values():
        return
    if runner == RUNNERS["DaskRunner"]:
        # Its options are known once it is imported.
        importlib.import_module("apache_beam.runners.dask.dask_runner")
    log = logging.getLogger("apache_beam.options.pipeline_options")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        known = PipelineOptions(arguments).get_all_options()
        every = PipelineOptions(arguments).get_all_options(retain_unknown_options=True)
    finally:
        log.setLevel(level)
    unknown = sorted(set(every) - set(known))
    if unknown:
        hint = did_you_mean(unknown[0], [*known, "cases_per_shard"])
        raise CodedError(
            "KUG-T02",
            "options of Beam",
            ", ".join(f"--{name}" for name in unknown) + hint,
            "options of the job or of the runner",
            "Nothing would read them.",
        )


def is_dry(options):
    """Whether Dataflow is to check the job graph without running it."""
    return bool(options.view_as(TestOptions).dry_run)


def describe(result, options):
    """Bytes of the job graph of a dry run, which goes where `--dataflow_job_file` says.

    Beam itself writes that file only for a job that it starts.
    """
    graph = result.job.proto_pipeline
    path = options.view_as(DebugOptions).dataflow_job_file
    if path:
        write_bytes(path, json_format.MessageToJson(graph).encode())
    return graph.ByteSize()


def run_pipeline(build, options, pieces=DASK_PARTITIONS):
    """Builds and runs a pipeline to its end.

    Args:
        build: Function that takes the `beam.Pipeline` and adds to it. Its last step must follow on
            all others, and no step may have tagged outputs: Dask runs what the last one needs,
            and gives all outputs to each of their readers.
        options: `PipelineOptions`.
        pieces: Number of its elements, which Dask gets one by one up to `DASK_PARTITIONS`.

    Returns:
        Beam's `PipelineResult`.

    Raises:
        CodedError: KUG-E01 where Dataflow's packages lack.
    """
    runner = options.view_as(StandardOptions).runner
    if runner == RUNNERS["DaskRunner"]:
        from apache_beam.runners.dask.dask_runner import DaskOptions

        dask = options.view_as(DaskOptions)
        if not dask.npartitions and not dask.partition_size:
            dask.npartitions = max(1, min(pieces, DASK_PARTITIONS))
    pipeline = beam.Pipeline(options=options)
    try:
        build(pipeline)
        result = pipeline.run()
    except ImportError as error:
        if runner != "DataflowRunner":
            raise
        raise missing_extra(f"--runner {runner}", "apache_beam[gcp]", "gcp") from error
    try:
        if not is_dry(options):
            result.wait_until_finish()
    finally:
        # Dask's client outlives its pipeline and would complain of a cluster that is gone.
        if client := getattr(result, "client", None):
            client.close()
    return result


def collect(values, path):
    """Adds steps that write a small collection as one JSON list, in any order."""
    return (
        values
        # Without a default, which would cost Beam some steps to find out that it is not needed.
        | "Gather" >> beam.CombineGlobally(beam.combiners.ToListCombineFn()).without_defaults()
        | "WriteResult" >> beam.Map(lambda items, path: write_json(path, items), path)
    )


def take(path):
    """Reads what `collect` wrote, which is nothing for an empty collection, and removes it."""
    if not exists(path):
        return []
    items = read_json(path)
    FileSystems.delete([path])
    return items


def main(run):
    """Command line of a job: prints its summary or its coded error and returns the exit code."""
    try:
        summary = run(sys.argv[1:])
    except CodedError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(json.dumps(summary, indent=2))
    return 3 if summary.get("dead_letters") else 0
