"""What the jobs share: options, studies and volumes through Beam's file systems, command lines."""

import argparse
import collections
import dataclasses
import io
import json
import os
import posixpath
import shutil
import sys

import apache_beam as beam
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from keras_unigan.config import SPLITS, Study
from keras_unigan.data import volumes
from keras_unigan.errors import CodedError


def is_remote(path):
    """Whether a path is a URI of an object store."""
    return "://" in str(path)


def join(folder, *names):
    """Joins with slashes in a URI and as the system does elsewhere."""
    return (posixpath if is_remote(folder) else os.path).join(str(folder), *names)


def read_bytes(path):
    """Reads a file, local or remote, as it is.

    Raises:
        CodedError: KUG-D01 when it cannot be opened, KUG-E01 for a URI that Beam does not know.
    """
    try:
        with FileSystems.open(str(path), compression_type=CompressionTypes.UNCOMPRESSED) as file:
            return file.read()
    except (OSError, BeamIOError) as error:
        raise CodedError(
            "KUG-D01", path, f"no readable file ({type(error).__name__})", "a file"
        ) from error
    except ValueError as error:
        raise CodedError(
            "KUG-E01",
            path,
            "no file system for this URI",
            "one that Beam knows",
            fix='pip install "keras-unigan[gcp]" for gs://',
        ) from error


def read_json(path):
    """Reads a JSON file, local or remote.

    Raises:
        CodedError: As `read_bytes` does; KUG-D08 when it is not JSON.
    """
    data = read_bytes(path)
    try:
        return json.loads(data)
    except ValueError as error:
        raise CodedError("KUG-D08", path, "text that is not JSON", "JSON") from error


def write_bytes(path, data):
    """Writes a file, local or remote, through a temporary sibling and a rename."""
    write_stream(path, io.BytesIO(data))


def write_stream(path, stream):
    """Copies an open binary file to a path, piece by piece; see `write_bytes`."""
    path = str(path)
    folder, name = FileSystems.split(path)
    if not is_remote(path):
        os.makedirs(folder or ".", exist_ok=True)
    temporary = FileSystems.join(folder, f".{name}.part")
    raw = {
        "mime_type": "application/octet-stream",
        "compression_type": CompressionTypes.UNCOMPRESSED,
    }
    with FileSystems.create(temporary, **raw) as file:
        shutil.copyfileobj(stream, file, 1 << 22)
    if is_remote(path) and FileSystems.exists(path):
        FileSystems.delete([path])
    FileSystems.rename([temporary], [path])


def write_json(path, data):
    """Writes what `json` takes; see `write_bytes`."""
    write_bytes(path, (json.dumps(data, indent=2) + "\n").encode())


def write_dead_letters(path, letters):
    """Writes one JSON object a line: case, code, message; sorted by case."""
    lines = sorted(json.dumps(letter) for letter in letters)
    write_bytes(path, "".join(line + "\n" for line in lines).encode())


def load_study(path, limit=None):
    """Reads `study.json`, local or remote, with the paths of its cases made absolute.

    Args:
        path: The study file.
        limit: Number of cases to keep, or None: those of every split and modality in turn.

    Raises:
        CodedError: As `Study.load` does; KUG-D14 for cases without a split.
    """
    if is_remote(path):
        study = Study.from_dict(read_json(path), posixpath.dirname(str(path)), str(path))
    else:
        study = Study.load(path)
    bare = [c.id for c in study.cases if c.split is None]
    if bare:
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


def read_case(case):
    """Image and label `Volume` (or None) of a case with absolute paths.

    Raises:
        CodedError: As `volumes.read` does.
    """
    image = _read_volume(case.image, case.channel)
    return image, None if case.label is None else _read_volume(case.label)


def _read_volume(path, channel=None):
    if is_remote(path):
        return volumes.read_bytes(read_bytes(path), path, channel)
    return volumes.read(path, channel)


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
    result.add_argument("--overwrite", action="store_true", help="replace the output")
    return result


def pipeline_options(arguments):
    """Beam options; the default runner works in this process.

    Beam's own default first looks for a Go runner, which it would fetch from the network.
    """
    options = PipelineOptions(arguments)
    standard = options.view_as(StandardOptions)
    if standard.runner in (None, "DirectRunner"):
        standard.runner = "FnApiRunner"
    return options


def run_pipeline(build, options):
    """Builds and runs a pipeline to its end.

    Args:
        build: Function that takes the `beam.Pipeline` and adds to it.
        options: `PipelineOptions`.
    """
    with beam.Pipeline(options=options) as pipeline:
        build(pipeline)


def collect(values, path):
    """Adds steps that write a small collection as one JSON list, in any order."""
    return (
        values
        | "Gather" >> beam.combiners.ToList()
        | "WriteResult" >> beam.Map(lambda items, path: write_json(path, items), path)
    )


def take(path):
    """Reads what `collect` wrote and removes it."""
    items = read_json(path)
    FileSystems.delete([path])
    return items


def refuse_existing(path, overwrite):
    """Raises KUG-E02 when something is there and may not be replaced."""
    if not overwrite and FileSystems.exists(str(path)):
        raise CodedError(
            "KUG-E02", path, "a file that is there already", "a new path", fix="add --overwrite"
        )


def main(run):
    """Command line of a job: prints its summary or its coded error and returns the exit code."""
    try:
        summary = run(sys.argv[1:])
    except CodedError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(json.dumps(summary, indent=2))
    return 3 if summary["dead_letters"] else 0
