"""`unigan predict` by the Beam job: exported and served models, whole studies, other runners."""

import sys
from pathlib import Path

from keras_unigan.cli.common import hushed, need
from keras_unigan.cli.preparing import refuse_dead_letters
from keras_unigan.errors import CodedError


def is_job(model, inputs, beam):
    """Whether the job is asked for, rather than a run folder and scans in this process."""
    return bool(beam) or study_of(inputs) is not None or not is_run(model)


def is_run(path):
    """Whether a path is a run folder, or a folder that stands for several runs."""
    return (Path(path) / "plan.json").is_file() or is_ensemble(path)


def is_ensemble(path):
    """Whether a path is a folder that stands for several runs."""
    return (Path(path) / "ensemble.json").is_file()


def split_runs(model, inputs):
    """Run folders at the head of a command, and the inputs behind them.

    Args:
        model: First word.
        inputs: Words behind it, of which the first ones may be run folders too.

    Returns:
        `(runs, inputs)`.

    Raises:
        CodedError: KUG-T02 where nothing is left for the inputs.
    """
    count = 0
    while is_run(model) and count < len(inputs) and is_run(inputs[count]):
        count += 1
    if count and count == len(inputs):
        raise CodedError("KUG-T02", "inputs", "run folders only", "scans behind them")
    return [model, *inputs[:count]], inputs[count:]


def refuse_with_job(method):
    """Refuses what only works with run folders and scans in this process.

    Args:
        method: Flag -> whether it was given.

    Raises:
        CodedError: KUG-T02.
    """
    wrong = next((flag for flag, given in method.items() if given), None)
    if wrong:
        raise CodedError(
            "KUG-T02",
            wrong,
            "a study, Beam options, or a model that is no run folder",
            "run folders, and scans as files, folders or globs",
            "The job asks one model once.",
            f"leave out {wrong}, or give the scans themselves",
        )


def study_of(inputs):
    """The study file among the inputs, or None.

    Raises:
        CodedError: KUG-T02 for a study beside other inputs.
    """
    studies = [text for text in inputs if text.endswith(".json")]
    if studies and len(inputs) > 1:
        raise CodedError("KUG-T02", "inputs", f"{studies[0]} beside others", "a study or scans")
    return studies[0] if studies else None


def predict(printer, model, inputs, output, split, flags, beam):
    """Runs the job and says what it wrote.

    Args:
        printer: `common.Printer`.
        model: See `pipelines.handlers.Model.find`.
        inputs: A study, or files, folders and globs.
        output: Folder of the label maps.
        split: Of a study; None for all cases.
        flags: Other flags of the job -> value; None and False are left out.
        beam: Beam options.
    """
    job = need("keras_unigan.pipelines.predict", "pipelines")
    study = study_of(inputs)
    given = ["--study", study] if study else ["--inputs", *inputs]
    arguments = ["--model", str(model), *given, "--output", str(output)]
    for name, value in {**flags, "split": split}.items():
        if value not in (None, False):
            arguments += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    with hushed(printer.quiet):
        summary = job.run([*arguments, *beam])
    counts = ", ".join(f"{n} {m}" for m, n in summary.get("volumes", {}).items())
    printer.say(f"Wrote {counts or 'nothing'} to {output}")
    printer.result(summary)
    if summary.get("alarms"):
        where = f"of {summary['cases']} scans are unlike those that the run was trained on"
        text = f"Warning: KUG-D38 {summary['alarms']} {where}; which: {summary['alarm_file']}"
        print(text, file=sys.stderr)
    refuse_dead_letters(summary)
