"""`unigan check` and `unigan scrub`: what is wrong with a study, and copies without identities."""

import collections
import dataclasses
from shlex import quote
from typing import Annotated

import typer

from keras_unigan.cli.common import (
    DryRun,
    Json,
    Limit,
    Overwrite,
    Printer,
    Quiet,
    Seed,
    claim,
    table,
)
from keras_unigan.errors import CODES, CodedError

_SHOWN = 10


def check(
    study: Annotated[str, typer.Argument(help="study.json")],
    fix: Annotated[
        str | None, typer.Option(metavar="DIR", help="Write repaired copies and a new study here.")
    ] = None,
    plan: Annotated[
        str | None, typer.Option(help="plan.json: finds volumes smaller than its patches.")
    ] = None,
    limit: Limit = None,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
):
    """Finds what is wrong with the scans of a study, in one pass, each problem with its fix."""
    from keras_unigan.config import Plan
    from keras_unigan.data.checks import passes, repair
    from keras_unigan.data.checks.findings import LEVELS

    printer = Printer(json, quiet)
    if fix is not None:
        if limit is not None:
            raise CodedError("KUG-T02", "--limit", f"{limit} beside --fix", "one of them")
        claim(fix, overwrite)
    decided = Plan.load(plan) if plan else None
    report, twins = passes.check(study, decided, limit)
    for finding in report.findings[:_SHOWN]:
        printer.say(f"{finding.level}: {finding}")
    more = len(report.findings) - _SHOWN
    printer.say(*[f"… and {more} more: --json lists all"] * (more > 0))
    if report.findings and not printer.silent:
        counts = collections.Counter((f.code, f.level) for f in report.findings)
        rows = [(c, *(counts[c, level] for level in LEVELS), CODES[c][0]) for c in report.counts]
        table("Findings", ("code", *LEVELS, "what"), rows)
    printer.say(f"{report.cases} cases, {report.files} files read")
    result = report.to_dict()
    if fix is not None:
        done = repair.repair(study, report, twins, fix)
        printer.say(*[f"{case}: {action}" for case, action in done.done])
        printer.say(*[f"{case}: left out: {why}" for case, why in done.left])
        printer.say(f"Wrote {done.study}")
        result["fix"] = dataclasses.asdict(done)
        printer.result(result, f"unigan check {quote(str(done.study))}")
    else:
        bad = report.levels["error"]
        advice = (
            f"unigan check {quote(study)} --fix repaired"
            if bad
            else f"unigan prepare {quote(study)} -o shards"
        )
        printer.result(result, advice)
    if report.levels["error"]:
        raise typer.Exit(3)


def scrub(
    source: Annotated[str, typer.Argument(help="A NIfTI or DICOM file, a zip, or a folder.")],
    output: Annotated[str, typer.Option("--output", "-o", help="A new file or folder.")],
    mapping: Annotated[
        str | None, typer.Option(help="JSON file for old and new names; left out: none is kept.")
    ] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
):
    """Copies scans without identities in headers, names and sidecars; geometry bit for bit."""
    from keras_unigan.data import scrub as scrubbing

    printer = Printer(json, quiet)
    if not dry_run:
        claim(output, overwrite)
        if mapping is not None:
            claim(mapping, overwrite, file=True)
    done = scrubbing.scrub(source, output, mapping, seed, dry_run)
    verb = "Would write" if dry_run else "Wrote"
    printer.say(
        f"{verb} {len(done.files)} files of {len(done.subjects)} subjects to {output}",
        *[f"Emptied or replaced: {', '.join(f'{f} ({n})' for f, n in done.fields.items())}"]
        * bool(done.fields),
        *[f"Left behind, as they are not understood: {len(done.left)} files"] * bool(done.left),
        *[f"Old and new names: {mapping}, keep it apart"] * bool(mapping and not dry_run),
        "Faces and text burnt into images stay: look before you share.",
    )
    result = {"output": output, "files": sorted(done.files.values()), "fields": done.fields}
    result |= {"subjects": len(done.subjects), "left": len(done.left), "mapping": mapping}
    printer.result(result, f"unigan init {quote(output)}")
