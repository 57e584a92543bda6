"""Beam job: measures the training cases and writes `fingerprint.json` (and, if asked, the plan)."""

import dataclasses
import sys
import time

import apache_beam as beam

from keras_unigan import planning
from keras_unigan.config import Fingerprint, from_dict
from keras_unigan.errors import CodedError
from keras_unigan.pipelines import sources


class Measure(beam.DoFn):
    """Case -> (modality, `planning.Facts`); unusable cases go to the output `dead`."""

    def __init__(self, labels):
        self.labels = labels

    def process(self, case):
        """Reads and measures one case."""
        try:
            image, label = sources.read_case(case)
            yield case.modality, planning.measure(image, label, self.labels, case.id)
        except CodedError as error:
            yield beam.pvalue.TaggedOutput("dead", sources.dead_letter(case, error))


class MergeFacts(beam.CombineFn):
    """Adds `planning.Facts` up per modality; exact, so any number of workers gives the same."""

    def create_accumulator(self):
        """No case."""
        return {}

    def add_input(self, accumulator, measured):
        """One case more."""
        modality, facts = measured
        return self.merge_accumulators([accumulator, {modality: facts}])

    def merge_accumulators(self, accumulators):
        """All cases of several workers."""
        total = {}
        for accumulator in accumulators:
            for modality, facts in accumulator.items():
                known = total.get(modality)
                total[modality] = planning.merge(known, facts) if known else facts
        return total

    def extract_output(self, accumulator):
        """The facts as they are."""
        return accumulator


def _close(facts, study):
    """Fingerprint as JSON, or the arguments of the error: Beam would wrap it beyond recognition."""
    try:
        return {"fingerprint": dataclasses.asdict(planning.fingerprint(study, facts))}
    except CodedError as error:
        return {"error": list(error.args)}


def measure(study, result_path, options):
    """Runs the pipeline.

    Args:
        study: `config.Study` with absolute paths.
        result_path: Where the workers may leave a small file, which is removed again.
        options: Beam options.

    Returns:
        `config.Fingerprint` and the list of dead letters.

    Raises:
        CodedError: KUG-D14 when a modality has no usable training case.
    """
    cases = [c for c in study.cases if c.split == "train"]
    head = dataclasses.replace(study, cases=())

    def build(pipeline):
        measured = (
            pipeline
            | "Cases" >> beam.Create(cases)
            | "Spread" >> beam.Reshuffle()
            | "Measure" >> beam.ParDo(Measure(study.labels)).with_outputs("dead", main="facts")
        )
        closed = (
            measured.facts
            | "Merge" >> beam.CombineGlobally(MergeFacts())
            | "Close" >> beam.Map(_close, head)
        )
        sources.collect((closed, measured.dead) | "Both" >> beam.Flatten(), result_path)

    sources.run_pipeline(build, options)
    items = sources.take(result_path)
    dead = [i for i in items if "code" in i]
    closed = next(i for i in items if "code" not in i)
    if "error" in closed:
        code, where, found, *rest = closed["error"]
        if dead:
            first = min(dead, key=lambda letter: letter["case"])
            found += f"; {len(dead)} could not be used, the first: {first['message']}"
        raise CodedError(code, where, found, *rest)
    return from_dict(Fingerprint, closed["fingerprint"], "fingerprint"), dead


def run(argv=None):
    """Measures a study.

    Args:
        argv: `--study`, `--output` (fingerprint.json), `--plan_output`, `--memory`, `--limit`,
            `--overwrite`; the rest goes to Beam.

    Returns:
        Dict: `output`, `plan`, `cases`, `dead_letters` (their number), `dead_letter_file` and
        `seconds`.

    Raises:
        CodedError: KUG-D14 and those of `config.Study` and `planning.make_plan`; KUG-E02.
    """
    start = time.perf_counter()
    parser = sources.parser("fingerprint")
    parser.add_argument("--plan_output", help="also plan, and write plan.json here")
    parser.add_argument(
        "--memory", type=float, default=planning.MEMORY_GIB, help="GiB for one training step"
    )
    own, rest = parser.parse_known_args(argv)
    for path in (own.output, own.plan_output):
        if path:
            sources.refuse_existing(path, own.overwrite)
    study = sources.load_study(own.study, own.limit)
    options = sources.pipeline_options(rest)
    measured, dead = measure(study, f"{own.output}.part", options)
    plan = planning.make_plan(study, measured, own.memory) if own.plan_output else None
    letters = f"{own.output.removesuffix('.json')}.dead_letters.jsonl" if dead else None
    sources.write_json(own.output, dataclasses.asdict(measured))
    if plan:
        sources.write_json(own.plan_output, plan.to_dict())
    if dead:
        sources.write_dead_letters(letters, dead)
    return {
        "output": own.output,
        "plan": own.plan_output,
        "cases": sum(c.split == "train" for c in study.cases),
        "dead_letters": len(dead),
        "dead_letter_file": letters,
        "seconds": round(time.perf_counter() - start, 2),
    }


if __name__ == "__main__":
    from keras_unigan.pipelines import fingerprint

    sys.exit(sources.main(fingerprint.run))
