"""Beam job: measures the training cases and writes `fingerprint.json` (and, if asked, the plan).

One combine of facts that merge exactly (`planning.merge`): any number of workers, in any order,
gives the same file. What moves between workers is a histogram per modality and a line per case,
never a volume.
"""

import dataclasses
import math
import sys
import time

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems

from keras_unigan import planning
from keras_unigan.config import Case, Fingerprint, from_dict
from keras_unigan.errors import CodedError
from keras_unigan.pipelines import files, sources

PIECES = 1024
"""Most elements of the pipeline: more cases share one, and are added up where they are read."""


class Measure(beam.DoFn):
    """Place in the list of work -> facts of its cases and letters of those that are unusable.

    Args:
        labels: `config.Labels`.
        work: File of work; see `files.worklist`.
        channels: That of the study.
    """

    def __init__(self, labels, work, channels=1):
        self.labels, self.work, self.channels = labels, work, channels

    def process(self, place):
        """Reads and measures some cases, one after the other."""
        total = Total().create_accumulator()
        for item in files.read_item(self.work, place):
            case = from_dict(Case, item, "case")
            try:
                image, label = sources.read_case(case, self.channels)
                whole = image, label, self.labels, case.id, case.annotated
                found = {case.modality: planning.measure(*whole)}, []
            except CodedError as error:
                found = {}, [sources.dead_letter(case, error)]
            total = Total().add_input(total, found)
        yield total


class Total(beam.CombineFn):
    """Adds pairs of (modality -> `planning.Facts`, dead letters) up; exact in any order."""

    def create_accumulator(self):
        """No case."""
        return {}, []

    def add_input(self, accumulator, measured):
        """Some cases more."""
        return self.merge_accumulators([accumulator, measured])

    def merge_accumulators(self, accumulators):
        """All cases of several workers."""
        total, dead = {}, []
        for facts_of, letters in accumulators:
            dead += letters
            for modality, facts in facts_of.items():
                known = total.get(modality)
                total[modality] = planning.merge(known, facts) if known else facts
        return total, dead

    def extract_output(self, accumulator):
        """The facts and letters as they are."""
        return accumulator


def _close(total, study):
    """Fingerprint as JSON, or the arguments of the error: Beam would wrap it beyond recognition."""
    facts, dead = total
    dead = sorted(dead, key=lambda letter: letter["case"])
    try:
        return {"fingerprint": dataclasses.asdict(planning.fingerprint(study, facts)), "dead": dead}
    except CodedError as error:
        return {"error": list(error.args), "dead": dead}


def measure(study, result_path, options):
    """Runs the pipeline.

    Args:
        study: `config.Study` with absolute paths.
        result_path: Where the workers may leave a small file, which is removed again.
        options: Beam options.

    Returns:
        `config.Fingerprint` and the list of dead letters; None and an empty list where Beam only
        checks the job graph.

    Raises:
        CodedError: KUG-D14 when a modality has no usable training case.
    """
    cases = [dataclasses.asdict(c) for c in study.cases if c.split == "train"]
    head = dataclasses.replace(study, cases=())
    size = math.ceil(len(cases) / PIECES) or 1
    groups = [cases[start : start + size] for start in range(0, len(cases), size)]
    lines, places = files.worklist(groups)
    folder, name = FileSystems.split(str(result_path))
    work = FileSystems.join(folder, f".{name}.work.part")

    def build(pipeline):
        closed = (
            pipeline
            | "Cases" >> beam.Create(places, reshuffle=False)
            | "Spread" >> beam.Reshuffle()
            | "Measure" >> beam.ParDo(Measure(study.labels, work, study.channels))
            | "Merge" >> beam.CombineGlobally(Total())
            | "Close" >> beam.Map(_close, head)
        )
        sources.collect(closed, result_path)

    if sources.is_dry(options):
        sources.run_pipeline(build, options)
        return None, []
    files.write_bytes(work, lines)
    try:
        sources.run_pipeline(build, options, len(places))
    finally:
        FileSystems.delete([work])
    (closed,) = sources.take(result_path)
    dead = closed["dead"]
    if "error" in closed:
        code, where, found, *rest = closed["error"]
        if dead:
            found += f"; {len(dead)} could not be used, the first: {dead[0]['message']}"
        raise CodedError(code, where, found, *rest)
    return from_dict(Fingerprint, closed["fingerprint"], "fingerprint"), dead


def add_window(parser):
    """Adds `--window` to the parser of a job that plans."""
    parser.add_argument(
        "--window",
        default=planning.WINDOWS[0],
        help=f"voxels that a CT window is measured on: {' or '.join(planning.WINDOWS)}",
    )


def run(argv=None):
    """Measures a study.

    Args:
        argv: `--study`, `--output` (fingerprint.json), `--plan_output`, `--memory`, `--window`,
            `--limit`, `--overwrite`; the rest goes to Beam.

    Returns:
        Dict: `output`, `plan`, `cases`, `dead_letters` (their number), `dead_letter_file` and
        `seconds`. Of a dry run of Beam: `output`, `cases`, `dead_letters` 0.

    Raises:
        CodedError: KUG-D14 and those of `config.Study` and `planning.make_plan`; KUG-E02.
    """
    start = time.perf_counter()
    parser = sources.parser("fingerprint")
    parser.add_argument("--plan_output", help="also plan, and write plan.json here")
    parser.add_argument(
        "--memory", type=float, default=planning.MEMORY_GIB, help="GiB for one training step"
    )
    add_window(parser)
    own, rest = parser.parse_known_args(argv)
    for path in (own.output, own.plan_output):
        if path:
            files.refuse_existing(path, own.overwrite)
    study = sources.load_study(own.study, own.limit)
    options = sources.pipeline_options(rest)
    count = sum(c.split == "train" for c in study.cases)
    measured, dead = measure(study, f"{files.absolute(own.output)}.part", options)
    if measured is None:
        return {"output": own.output, "cases": count, "dead_letters": 0}
    plan = None
    if own.plan_output:
        plan = planning.make_plan(study, measured, own.memory, own.window)
    letters = f"{own.output.removesuffix('.json')}.dead_letters.jsonl" if dead else None
    files.write_json(own.output, dataclasses.asdict(measured))
    if plan:
        files.write_json(own.plan_output, plan.to_dict())
    if dead:
        sources.write_dead_letters(letters, dead)
    return {
        "output": own.output,
        "plan": own.plan_output,
        "cases": count,
        "dead_letters": len(dead),
        "dead_letter_file": letters,
        "seconds": round(time.perf_counter() - start, 2),
    }


if __name__ == "__main__":
    from keras_unigan.pipelines import fingerprint

    sys.exit(sources.main(fingerprint.run))
