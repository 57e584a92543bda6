"""`unigan init`, `plan` and `prepare`: from a folder of scans to shards."""

import collections
import json as json_module
import sys
from pathlib import Path
from typing import Annotated

import typer

from keras_unigan.cli.common import (
    DryRun,
    Json,
    Limit,
    Memory,
    Overwrite,
    Printer,
    Quiet,
    Seed,
    claim,
    need,
    parse_scheme,
    use_device,
)
from keras_unigan.config import SPLITS, Labels, Plan, Study
from keras_unigan.errors import CodedError


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
        typer.Option(help="folder, csv, bids, msd, nnunet or brats; left out: by looking."),
    ] = None,
    fractions: Annotated[
        str, typer.Option(help="Shares of train, val and test subjects without a split.")
    ] = "0.6,0.2,0.2",
    name: Annotated[str | None, typer.Option(help="Name of the study.")] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
):
    """Makes study.json from a folder of scans or a CSV."""
    from keras_unigan.data import cases, readers

    printer = Printer(json, quiet)
    claim(output, overwrite or dry_run, file=True)
    classes, regions = parse_scheme(label, "--label"), parse_scheme(region, "--region")
    labels = Labels(classes=classes, regions=regions) if classes or regions else None
    try:
        shares = tuple(float(share) for share in fractions.split(","))
    except ValueError:
        shares = ()
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6 or not shares[0]:
        raise CodedError(
            "KUG-T02", "--fractions", fractions, "three shares that sum to 1, the first positive"
        )
    study = cases.init_study(
        source, labels=labels, name=name, reader=reader, fractions=shares, seed=seed
    )
    bare = sum(case.label is None for case in study.cases)
    found = len(readers.read(source, reader).cases)
    study = cases.relative_to(study, output)
    pairs = collections.Counter((case.split, case.modality) for case in study.cases)
    counts = {s: {m: pairs[s, m] for m in study.modalities} for s in SPLITS}
    if not dry_run:
        study.save(output)
    names = ", ".join(f"{n} = {list(study.labels.file_values(n))}" for n in study.labels.foreground)
    printer.say(
        f"{len(study.cases)} cases of {len({c.subject for c in study.cases})} subjects, "
        f"modalities {', '.join(study.modalities)}",
        f"{'Regions' if study.labels.overlapping else 'Labels'}: {names}",
        *[f"{s}: {', '.join(f'{n} {m}' for m, n in c.items())}" for s, c in counts.items()],
        *[f"{bare} images have no label map"] * bool(bare),
        *[
            f"{found - len(study.cases)} scans left out: a subject that is trained on or chosen by "
            "gives one modality"
        ]
        * (found > len(study.cases)),
        "Would write " + output if dry_run else f"Wrote {output}",
    )
    result = {"study": output, "cases": len(study.cases), "splits": counts}
    result |= {"without_label": bare, "left_out": found - len(study.cases)}
    printer.result(result, f"unigan prepare {output} -o shards")


def plan(
    study: Annotated[str, typer.Argument(help="study.json")],
    output: Annotated[str, typer.Option("--output", "-o")] = "plan.json",
    memory: Memory = None,
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
    arguments = ["--study", study, "--output", str(Path(output).with_name("fingerprint.json"))]
    arguments += ["--plan_output", output, *(["--limit", str(limit)] if limit else [])]
    arguments += ["--overwrite"] if overwrite else []
    arguments += ["--memory", str(memory)] if memory else []
    summary = job.run([*arguments, *(beam or [])])
    decided = Plan.load(output)
    printer.say(*[f"{k} = {setting(decided, k)}: {why}" for k, why in decided.reasons.items()])
    printer.say(f"Wrote {output} and {arguments[3]}")
    printer.result(
        {**summary, "plan": decided.to_dict()}, f"unigan prepare {study} --plan {output} -o shards"
    )
    refuse_dead_letters(summary)


def setting(plan, key):
    """Value of a plan that `reasons` names, e.g. "2d.patch_size"."""
    value = plan.to_dict()
    value = {**value, **value["configurations"]}
    for part in key.split("."):
        value = value[part]
    if isinstance(value, dict):
        return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else v for k, v in value.items())
    return value


def refuse_dead_letters(summary):
    """Lists the volumes that a job could not use and ends with the data exit code."""
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
    raise typer.Exit(3)


def prepare(
    study: Annotated[str, typer.Argument(help="study.json")],
    output: Annotated[str, typer.Option("--output", "-o")] = "shards",
    plan: Annotated[str | None, typer.Option(help="plan.json; left out: planned now.")] = None,
    memory: Memory = None,
    limit: Limit = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    beam: Annotated[
        list[str] | None, typer.Argument(help="Beam options, after `--`: -- --runner=…")
    ] = None,
):
    """Resamples every scan once and writes TFRecord shards, with Beam."""
    job = need("keras_unigan.pipelines.preprocess", "pipelines")
    printer = Printer(json, quiet)
    loaded = Study.load(study)
    if dry_run:
        printer.say(f"Would prepare {len(loaded.cases)} cases of {study} into {output}")
        printer.result({"cases": len(loaded.cases), "output": output})
        return
    claim(output, overwrite)
    use_device("auto")
    arguments = ["--study", study, "--output", output, *(["--plan", plan] if plan else [])]
    arguments += ["--limit", str(limit)] if limit else []
    arguments += ["--overwrite"] if overwrite else []
    arguments += ["--memory", str(memory)] if memory else []
    summary = job.run([*arguments, *(beam or [])])
    for split, counts in summary["splits"].items():
        printer.say(f"{split}: {', '.join(f'{n} {m}' for m, n in counts.items())}")
    printer.say(f"Wrote {output} in {summary['seconds']:.1f} s")
    done = not summary["dead_letters"]
    printer.result(summary, f"unigan train {output} --model segan -o runs/a" if done else None)
    refuse_dead_letters(summary)
