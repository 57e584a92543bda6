"""`unigan init`, `plan` and `prepare`: from a folder of scans to shards."""

import collections
import dataclasses
import json as json_module
import sys
from os.path import relpath
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from keras_unigan.cli import foreseeing, splitting
from keras_unigan.cli.common import (
    DryRun,
    Json,
    Limit,
    Memory,
    Overwrite,
    Printer,
    Quiet,
    Seed,
    Window,
    claim,
    hushed,
    need,
    parse_scheme,
    use_device,
)
from keras_unigan.config import Labels, Plan, Study


def init(
    source: Annotated[str, typer.Argument(help="Folder of scans, or a CSV.")],
    output: Annotated[str, typer.Option("--output", "-o")] = "study.json",
    label: Annotated[
        list[str] | None, typer.Option(metavar="NAME=V[,V]", help="A class and its file values.")
    ] = None,
    region: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=V[,V]", help="An overlapping region, outermost first."),
    ] = None,
    reader: Annotated[
        str | None,
        typer.Option(help="folder, paired, csv, bids, msd, nnunet or brats; left out: by looking."),
    ] = None,
    label_name: Annotated[
        str | None,
        typer.Option(metavar="WORD", help="Word in the names of the label maps (plain folders)."),
    ] = None,
    modality: Annotated[
        str | None, typer.Option(help="Modality of files whose names say none (plain folders).")
    ] = None,
    fractions: Annotated[
        str, typer.Option(help="Shares of train, val and test subjects without a split.")
    ] = splitting.FRACTIONS,
    folds: splitting.Folds = None,
    fold: splitting.Fold = None,
    leave_one_site_out: splitting.BySite = False,
    pairs: splitting.Pairs = False,
    content: splitting.Content = True,
    channels: Annotated[
        int | None,
        typer.Option(
            min=1, help="Channels of every image; left out: 3 for colour microscopy, else 1."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the study.")] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
):
    """Makes study.json from a folder of scans or a CSV, with splits that do not leak."""
    from keras_unigan.data import cases, readers, splits
    from keras_unigan.data import channels as counting

    printer = Printer(json, quiet)
    assignment = str(splits.path_of(output))
    for file in (output, assignment):
        claim(file, overwrite or dry_run, file=True)
    classes, regions = parse_scheme(label, "--label"), parse_scheme(region, "--region")
    labels = Labels(classes=classes, regions=regions) if classes or regions else None
    scheme = splitting.scheme_of(fractions, folds, leave_one_site_out, pairs, seed)
    found = readers.read(source, reader, label_name, modality)
    whole = cases.study_of(found, source, labels, name, channels)
    if channels is None and counting.coloured(whole, _stained(whole)):
        whole = dataclasses.replace(whole, channels=counting.COLOURS)
    if whole.channels > 1:
        counting.check(whole)
    study, made, copies, unread = cases.share_out(whole, scheme, fold, content)
    bare = sum(case.label is None for case in study.cases)
    lines, more = splitting.summary(study, made, copies, unread)
    if not dry_run:
        cases.save_split(study, made, output)
    names = ", ".join(f"{n} = {list(study.labels.file_values(n))}" for n in study.labels.foreground)
    printer.say(
        f"{len(study.cases)} cases of {len({c.subject for c in study.cases})} subjects, "
        f"modalities {', '.join(study.modalities)}",
        *[f"{study.channels} channels in every image"] * (study.channels > 1),
        f"{'Regions' if study.labels.overlapping else 'Labels'}: {names}",
        *lines,
        *[f"{bare} images have no label map"] * bool(bare),
        *[f"Not used: {readers.common.listed((relpath(p, source) for p in found.left), 3)}"]
        * bool(found.left),
        f"Would write {output}" if dry_run else f"Wrote {output} and {assignment}",
    )
    result = {"study": output, "assignment": assignment, "cases": len(study.cases)}
    result |= {**more, "channels": study.channels, "without_label": bare}
    result["not_used"] = list(found.left)
    printer.result(result, f"unigan check {quote(output)}")


def _stained(study):
    """Modalities whose pictures are told apart by colour."""
    from keras_unigan.planning import schemes

    found = {m: study.normalization.get(m) or schemes.named(m) for m in study.modalities}
    return {modality for modality, scheme in found.items() if scheme == "microscopy"}


def plan(
    study: Annotated[str, typer.Argument(help="study.json")],
    output: Annotated[str, typer.Option("--output", "-o")] = "plan.json",
    memory: Memory = None,
    window: Window = None,
    limit: Limit = None,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
    beam: Annotated[
        list[str] | None, typer.Argument(help="Beam options, after `--`: -- --runner=…")
    ] = None,
):
    """Measures the training scans and decides spacing, patch, depth, batch, normalisation."""
    job = need("keras_unigan.pipelines.fingerprint", "pipelines")
    printer = Printer(json, quiet)
    claim(output, overwrite, file=True)
    stem = Path(output).stem
    # Plans of two studies may lie side by side.
    measured = "fingerprint.json" if stem == "plan" else f"{stem}.fingerprint.json"
    arguments = ["--study", study, "--output", str(Path(output).with_name(measured))]
    arguments += ["--plan_output", output, *(["--limit", str(limit)] if limit else [])]
    arguments += ["--overwrite"] if overwrite else []
    arguments += ["--memory", str(memory)] if memory is not None else []
    arguments += ["--window", window] if window else []
    with hushed(quiet):
        summary = job.run([*arguments, *(beam or [])])
    decided = Plan.load(output)
    printer.say(*foreseeing.plan_lines(decided))
    printer.say(f"Wrote {output} and {arguments[3]}")
    printer.result(
        {**summary, "plan": decided.to_dict()},
        f"unigan prepare {quote(study)} --plan {quote(output)} -o shards",
    )
    refuse_dead_letters(summary)


def refuse_dead_letters(summary, skip=False):
    """Lists the volumes that a job could not use; ends with the data exit code unless to skip."""
    if not summary.get("dead_letters"):
        return
    from keras_unigan.pipelines import sources

    file = summary["dead_letter_file"]
    letters = [json_module.loads(line) for line in sources.read_bytes(file).splitlines()]
    codes = collections.Counter(letter["code"] for letter in letters)
    lines = [letter["message"] for letter in letters[:10]]
    lines.append(
        f"{len(letters)} of {summary['cases']} volumes could not be used "
        f"({', '.join(f'{n} {code}' for code, n in sorted(codes.items()))}); all in {file}"
    )
    print(*lines, sep="\n", file=sys.stderr)
    if not skip:
        raise typer.Exit(3)


def counted(counters):
    """Sentences on what `unigan prepare` did; see `pipelines.shards.count`."""
    seconds = counters["stage_seconds"]
    stages = ", ".join(f"{stage} {value:.1f} s" for stage, value in seconds.items())
    kept = counters["volumes_kept"]
    return [
        f"{counters['volumes']} volumes worked on in {counters['shards']} shards by "
        f"{counters['workers']} worker(s), {counters['bytes_read'] / 1e6:.1f} MB read, "
        f"{counters['bytes_written'] / 1e6:.1f} MB written; {stages}",
        *[f"{kept} volumes in {counters['shards_kept']} shards were there already"] * (kept > 0),
    ]


def prepare(
    study: Annotated[str, typer.Argument(help="study.json")],
    output: Annotated[str, typer.Option("--output", "-o")] = "shards",
    plan: Annotated[str | None, typer.Option(help="plan.json; left out: planned now.")] = None,
    fold: Annotated[
        int | None, typer.Option(min=0, help="One fold of a study that was split into folds.")
    ] = None,
    memory: Memory = None,
    window: Window = None,
    limit: Limit = None,
    overwrite: Overwrite = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep finished shards whose scans did not change.")
    ] = False,
    skip_bad: Annotated[
        bool,
        typer.Option(
            "--skip-bad",
            help="Exit code 0 though scans had to be left out; they are listed all the same.",
        ),
    ] = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    beam: Annotated[
        list[str] | None, typer.Argument(help="Beam options, after `--`: -- --runner=…")
    ] = None,
):
    """Resamples every scan once and writes TFRecord shards, with Beam.

    Unusable scans are left out and listed in dead_letters.jsonl; the exit code is 3 then.
    """
    job = need("keras_unigan.pipelines.preprocess", "pipelines")
    printer = Printer(json, quiet)
    if dry_run:
        loaded = Study.load(study) if fold is None else splitting.read_fold(study, fold)[0]
        choices = plan, memory, window, limit, beam or ()
        lines, foreseen = foreseeing.preparation(loaded, output, *choices)
        printer.say(*lines)
        printer.result(foreseen)
        return
    if "://" not in output:
        claim(output, overwrite or resume, fix="add --resume to go on, or --overwrite")
    if fold is not None:
        study = splitting.write_fold(study, fold, overwrite or resume)
    if not resume and "://" not in f"{study}{output}":
        foreseeing.check_room(
            study, output, limit, plan=plan, memory=memory, window=window, beam=beam or ()
        )
    use_device("auto")
    arguments = ["--study", study, "--output", output, *(["--plan", plan] if plan else [])]
    arguments += ["--limit", str(limit)] if limit else []
    arguments += ["--overwrite"] if overwrite else []
    arguments += ["--resume"] if resume else []
    arguments += ["--memory", str(memory)] if memory is not None else []
    arguments += ["--window", window] if window else []
    with hushed(quiet):
        summary = job.run([*arguments, *(beam or [])])
    if "graph_bytes" in summary:
        printer.say(f"Job graph of {summary['shards']} shards: {summary['graph_bytes']} bytes")
        printer.result(summary)
        return
    for split, counts in summary["splits"].items():
        printer.say(f"{split}: {', '.join(f'{n} {m}' for m, n in counts.items())}")
    printer.say(*counted(summary["counters"]), f"Wrote {output} in {summary['seconds']:.1f} s")
    done = skip_bad or not summary["dead_letters"]
    printer.result(summary, f"unigan train {quote(output)} -o runs/a" if done else None)
    refuse_dead_letters(summary, skip_bad)
