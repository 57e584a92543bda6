"""Beam job: segments every scan of a study or of folders with one model.

A label map lies on its scan's own grid, as `unigan predict` writes it: the same bytes for any
number of workers. Scans that cannot be used are set aside; what was counted travels as data, since
not every runner has metrics.
"""

import argparse
import collections
import dataclasses
import gzip
import importlib.metadata
import os
import pathlib
import platform
import sys
import tempfile
import time

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems
from apache_beam.ml.inference.base import RunInference

from keras_unigan import inference
from keras_unigan.config import SPLITS
from keras_unigan.data import nifti, pictures, volumes
from keras_unigan.errors import CodedError
from keras_unigan.pipelines import files, handlers, sources

DEAD_LETTERS = "dead_letters.jsonl"
ALARMS = "alarms.jsonl"
"""Scans that raised the alarm of a run (KUG-D38); their label maps are written all the same."""
STAGES = ("read", "predict", "write")


@dataclasses.dataclass(frozen=True)
class Scan:
    """One scan to segment; has what `sources.read_case` needs of a case.

    Attributes:
        id: What messages call it.
        image: Absolute path or URI.
        target: Path or URI of its label map.
        modality: Name in the plan, or None where it is not known.
        channel: See `config.Case`.
        label: No label map is read.
    """

    id: str
    image: str
    target: str
    modality: str | None = None
    channel: int | None = None
    label: None = None
    split: None = None


class Read(beam.DoFn):
    """Place in the list of scans -> batch of one `handlers.Loaded`.

    Args:
        work: Path of the list; see `files.worklist`.
        channels: That of the model's plan.
    """

    def __init__(self, work, channels=1):
        self.work, self.channels = work, channels

    def process(self, place):
        """Reads one scan."""
        scan, start = Scan(**files.read_item(self.work, place)), time.perf_counter()
        volume, wrong = None, None
        try:
            volume, _ = sources.read_case(scan, self.channels)
        except CodedError as error:
            wrong = error.args
        yield [handlers.Loaded(scan, volume, time.perf_counter() - start, wrong)]


class Write(beam.DoFn):
    """Result of `handlers.SegmentVolumes` -> what to count of it, once its file is written."""

    def process(self, result):
        """Writes one label map."""
        loaded, found = result.example, result.inference
        scan, volume = loaded.scan, loaded.volume
        if found.get("error"):
            if files.exists(scan.target):  # of an earlier run, which would pass for the answer
                FileSystems.delete([scan.target])
            yield sources.dead_letter(scan, CodedError(*found["error"]))
            return
        start = time.perf_counter()
        data = encode(found["label_map"], volume, scan.target)
        files.write_bytes(scan.target, data)
        seconds = (loaded.seconds, found["seconds"], time.perf_counter() - start)
        yield {
            "modality": scan.modality or "unknown",
            "bytes_in": int(volume.array.nbytes),
            "bytes_out": len(data),
            "seconds": dict(zip(STAGES, seconds, strict=True)),
            "alarm": _alarm(scan, found["reading"]),
        }


def _alarm(scan, reading):
    """What `ALARMS` says of a scan; None where there is no alarm, or none was raised."""
    if reading is None or not reading.raised:
        return None
    facts = sources.dead_letter(scan, reading.warning(scan.id, scan.modality))
    return facts | dataclasses.asdict(reading)


def encode(label_map, volume, target):
    """Bytes of a label map's file: compressed NIfTI, or a picture where the scan is one."""
    if not pictures.holds_labels(target):
        return gzip.compress(nifti.encode(label_map, volume), 6, mtime=0)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, f"label_map{pathlib.PurePath(target).suffix}")
        pictures.write(path, label_map)
        return path.read_bytes()


def _name_of(scan_id, source):
    """File name of a label map."""
    return f"{scan_id}_seg{pictures.label_ending(source) or '.nii.gz'}"


def scans_of_study(path, output, split=None, known_modality=True):
    """Scans of a study; label maps are named by the case.

    Args:
        path: study.json, local or a URI.
        output: Folder of the label maps.
        split: Only this split; None takes all cases.
        known_modality: Whether the model is told the modality.

    Raises:
        CodedError: As `Study.load` does; KUG-D14 when the split has no case.
    """
    study = sources.load_study(path, splits=False)
    cases = [c for c in study.cases if split in (None, c.split)]
    if not cases:
        raise CodedError("KUG-D14", path, f"no case of the split {split}", "at least one")
    return [
        Scan(
            id=case.id,
            image=case.image,
            target=files.join(files.absolute(output), _name_of(case.id, case.image)),
            modality=case.modality if known_modality else None,
            channel=case.channel,
        )
        for case in cases
    ]


def scans_of_paths(inputs, output, modality=None, channel=None):
    """Scans that files, folders, globs (local; see `inference.outputs_for`) and URIs name.

    Args:
        inputs: Paths and URIs; the latter are files or prefixes.
        output: Folder of the label maps.
        modality: Of all of them; None where it is not known.
        channel: See `config.Case`.

    Raises:
        CodedError: KUG-D01 when an input gives no scan, KUG-E02 when two would write one file.
    """
    local = [i for i in inputs if not files.is_remote(i)]
    # Where the output is remote, only the names of the targets count.
    folder = "label_maps" if files.is_remote(output) else output
    pairs = inference.outputs_for(local, folder, pictured=True) if local else []
    pairs = [(str(source), target.name) for source, target in pairs]
    for uri in (i for i in inputs if files.is_remote(i)):
        # A file, or all scans below a prefix that are no label maps.
        paths = [uri] if volumes.stem(uri) else list(files.listing(uri).values())
        paths = [p for p in paths if volumes.stem(p) and not f"_{volumes.stem(p)}".endswith("_seg")]
        if not paths:
            raise CodedError("KUG-D01", uri, "no scan", f"files {', '.join(volumes.ENDINGS)}")
        pairs += [(path, _name_of(volumes.stem(path), path)) for path in paths]
    names = collections.Counter(name for _, name in pairs)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise CodedError(
            "KUG-E02", twice[0], "two scans of that name", "one", fix="use two output folders"
        )
    return [
        Scan(
            id=volumes.stem(source) or os.path.basename(source),
            image=files.absolute(source),
            target=files.join(files.absolute(output), name),
            modality=modality,
            channel=channel,
        )
        for source, name in pairs
    ]


def parser():
    """The job's own flags."""
    result = argparse.ArgumentParser(
        prog="python -m keras_unigan.pipelines.predict",
        description="Other flags go to Beam, e.g. --runner, --direct_num_workers.",
    )
    result.add_argument(
        "--model", required=True, help="SavedModel or folder of its versions, run folder (local or"
        " URIs), or HOST:PORT/NAME[/VERSION] of a server",
    )  # fmt: skip
    result.add_argument("--study", help="study.json, local or a URI")
    result.add_argument("--split", choices=SPLITS, help="of the study; left out: all cases")
    result.add_argument(
        "--unknown_modality", action="store_true", help="do not tell the model the modality"
    )
    result.add_argument("--inputs", nargs="+", help="files, folders, globs, URIs")
    result.add_argument("--modality", help="of all inputs; left out: unknown")
    result.add_argument("--channel", type=int, help="of files that hold several, from 0")
    result.add_argument("--output", required=True, help="folder of the label maps, local or a URI")
    result.add_argument("--batch_size", type=int, default=4, help="windows at once")
    result.add_argument("--limit", type=int, help="use only this many scans")
    result.add_argument("--overwrite", action="store_true", help="replace label maps")
    return result


def _scans(own, plan):
    """The scans that the flags name, each with a modality that the model knows."""
    if (own.study is None) == (own.inputs is None):
        raise CodedError("KUG-T02", "--study, --inputs", "both or neither", "one of them")
    if own.batch_size < 1:
        raise CodedError("KUG-T02", "--batch_size", str(own.batch_size), "1 or more")
    if inference.stem(own.output):
        raise CodedError("KUG-T02", "--output", f"the file {own.output}", "a folder")
    wrong = {"--split": own.split, "--unknown_modality": own.unknown_modality}
    if own.study is not None:
        wrong = {"--modality": own.modality, "--channel": own.channel}
    for name, value in wrong.items():
        if value not in (None, False):
            other = "--inputs" if own.study is not None else "--study"
            raise CodedError("KUG-T02", name, f"{value} without {other}", "none")
    if own.study is not None:
        scans = scans_of_study(own.study, own.output, own.split, not own.unknown_modality)
    else:
        modality = inference.check_modality(plan, own.modality)
        scans = scans_of_paths(own.inputs, own.output, modality, own.channel)
    for modality in sorted({s.modality for s in scans} - {None}):
        inference.check_modality(plan, modality)
    return scans[: own.limit]


def run(argv=None):
    """Segments scans.

    Args:
        argv: See `parser`; the rest goes to Beam.

    Returns:
        Dict: `output`, `cases` (asked for), `volumes` (modality -> label maps written), `bytes_in`
        (of voxels), `bytes_out`, `stage_seconds` (summed over the workers), `dead_letters` (their
        number), `dead_letter_file`, `alarms` (scans that raised the run's alarm), `alarm_file`,
        `seconds`.

    Raises:
        CodedError: KUG-T02 for flags that do not fit, KUG-T03 for a modality that the model does
            not know, KUG-T04 without a model, KUG-S01 to KUG-S04 for a server, KUG-D01, KUG-D08 and
            KUG-D14 for study and inputs, KUG-E02 when a label map is there already, KUG-E05 for a
            runner that loses some of the work.
    """
    start = time.perf_counter()
    own, rest = parser().parse_known_args(argv)
    options = sources.pipeline_options(rest)
    model = handlers.Model.find(own.model)
    plan = model.plan()
    scans = _scans(own, plan)
    for scan in scans:
        files.refuse_existing(scan.target, own.overwrite)
    output = files.absolute(own.output)
    work, result_path = (files.join(output, f"{name}.part") for name in ("scans", "predictions"))
    data, places = files.worklist([dataclasses.asdict(scan) for scan in scans])
    files.write_bytes(work, data)

    def build(pipeline):
        written = (
            pipeline
            | "Scans" >> beam.Create(places)
            | "Spread" >> beam.Reshuffle()
            | "Read" >> beam.ParDo(Read(work, plan.channels))
            | "Segment" >> RunInference(handlers.SegmentVolumes(model, own.batch_size))
            | "Write" >> beam.ParDo(Write())
        )
        sources.collect(written, result_path)

    try:
        sources.run_pipeline(build, options, len(scans))
    finally:
        FileSystems.delete([work])
    if sources.is_dry(options):
        return {"output": own.output, "cases": len(scans), "dead_letters": 0}
    items = sources.take(result_path)
    if len(items) != len(scans):
        raise CodedError(
            "KUG-E05",
            own.output,
            f"results of {len(items)} of {len(scans)} scans",
            "one of each",
            "The runner lost some of the work and said nothing.",
            "another runner, e.g. --runner DirectRunner",
        )
    dead = [i for i in items if "code" in i]
    summary = {
        "output": own.output,
        "cases": len(scans),
        **count([i for i in items if "code" not in i]),
    }
    alarms = [i["alarm"] for i in items if i.get("alarm")]
    summary["dead_letters"] = len(dead)
    summary["dead_letter_file"] = _write_lines(files.join(own.output, DEAD_LETTERS), dead)
    summary["alarms"] = len(alarms)
    summary["alarm_file"] = _write_lines(files.join(own.output, ALARMS), alarms)
    summary["seconds"] = round(time.perf_counter() - start, 2)
    _record(own, model, plan, summary)
    return summary


def _write_lines(path, found):
    """Replaces a file of JSON lines by what was found; its path, or None for nothing."""
    if files.exists(path):
        FileSystems.delete([path])
    if not found:
        return None
    sources.write_dead_letters(path, found)
    return path


def count(entries):
    """Sums what `Write` says of each label map; see `run`."""
    total = {key: sum(entry[key] for entry in entries) for key in ("bytes_in", "bytes_out")}
    seconds = {s: round(sum(e["seconds"][s] for e in entries), 3) for s in STAGES}
    written = collections.Counter(entry["modality"] for entry in entries)
    return {"volumes": dict(sorted(written.items())), **total, "stage_seconds": seconds}


def _record(own, model, plan, summary):
    """Adds this session to `run.json`."""
    path = files.join(own.output, "run.json")
    entries = files.read_json(path) if files.exists(path) else []
    packages = ("keras-unigan", "apache-beam", "numpy", "nibabel", "tensorflow")
    entry = {
        "command": "predict",
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in packages},
        "config": vars(own),
        "inputs": {"model": dataclasses.asdict(model), "recipe": plan.recipe},
        "outputs": {k: v for k, v in summary.items() if k != "seconds"},
        "seconds": summary["seconds"],
    }
    files.write_json(path, [*entries, entry])


if __name__ == "__main__":
    from keras_unigan.pipelines import predict

    sys.exit(sources.main(predict.run))
