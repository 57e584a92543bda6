"""`unigan split`, and what `init` and `prepare` share with it: who is in which split and fold."""

import collections
import dataclasses
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from keras_unigan.cli.common import DryRun, Json, Overwrite, Printer, Quiet, Seed, claim
from keras_unigan.config import SPLITS, Study
from keras_unigan.errors import CodedError

FRACTIONS = "0.6,0.2,0.2"

Folds = Annotated[
    int | None,
    typer.Option(min=2, help="Share the subjects that are not for testing out into N folds."),
]
Fold = Annotated[
    int | None,
    typer.Option(min=0, help="The fold that validates (or, by sites, tests), from 0."),
]
BySite = Annotated[
    bool, typer.Option("--leave-one-site-out", help="Each site is the test set once.")
]
Pairs = Annotated[
    bool, typer.Option("--pairs", help="Training subjects give all their modalities, not one.")
]
Content = Annotated[
    bool,
    typer.Option(
        "--content/--no-content",
        help="Open all files: copies stay in one split, classes are balanced.",
    ),
]


def split(
    study: Annotated[str, typer.Argument(help="study.json")],
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Left out: the study itself.")
    ] = None,
    fractions: Annotated[
        str | None, typer.Option(help=f"Shares of train, val and test; {FRACTIONS}.")
    ] = None,
    folds: Folds = None,
    fold: Fold = None,
    leave_one_site_out: BySite = False,
    pairs: Pairs = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the splits that cases have.")] = False,
    content: Content = True,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
):
    """Splits a study again, or takes another fold of it (--fold alone)."""
    from keras_unigan.data import cases, splits

    printer = Printer(json, quiet)
    output = output or study
    if not dry_run:
        claim(output, overwrite, file=True)
        claim(splits.path_of(output), overwrite, file=True)
    if fold is not None and folds is None and not (leave_one_site_out or fractions):
        done, made = read_fold(study, fold)
        copies, unread = [], []
    else:
        scheme = scheme_of(fractions or FRACTIONS, folds, leave_one_site_out, pairs, seed)
        whole = whole_study(study)
        if not keep:
            bare = tuple(dataclasses.replace(case, split=None) for case in whole.cases)
            whole = dataclasses.replace(whole, cases=bare)
        done, made, copies, unread = cases.share_out(whole, scheme, fold, content)
    lines, result = summary(done, made, copies, unread)
    files = [output, splits.path_of(output)]
    if not dry_run:
        cases.save_split(done, made, output)
    verb = "Would write" if dry_run else "Wrote"
    printer.say(*lines, f"{verb} {files[0]} and {files[1]}")
    result = {"study": output, "assignment": str(files[1]), **result}
    printer.result(result, f"unigan check {quote(output)}")


def scheme_of(fractions, folds, leave_one_site_out, pairs, seed):
    """`splits.Scheme` of the flags.

    Raises:
        CodedError: KUG-T02 for fractions that are none.
    """
    from keras_unigan.data import splits

    try:
        shares = tuple(float(share) for share in fractions.split(","))
        return splits.Scheme(shares, folds, leave_one_site_out, pairs, seed)
    except CodedError:
        raise
    except ValueError:
        raise CodedError(
            "KUG-T02",
            "--fractions",
            fractions,
            "three shares that sum to 1, the first positive",
            fix="--fractions 0.7,0.15,0.15",
        ) from None


def whole_study(path):
    """A study with the cases that its assignment file holds beside it."""
    from keras_unigan.data import splits

    study, file = Study.load(path), splits.path_of(path)
    return splits.whole(study, splits.Assignment.load(file)) if file.is_file() else study


def read_fold(path, fold):
    """One fold of a study that was split into folds before.

    Args:
        path: Study file; its assignment file lies beside it.
        fold: Number of the fold.

    Returns:
        `config.Study` and `splits.Assignment`.

    Raises:
        CodedError: KUG-D01 without an assignment file, KUG-T02 for a fold that is not there.
    """
    from keras_unigan.data import splits

    study, file = Study.load(path), splits.path_of(path)
    if not file.is_file():
        raise CodedError(
            "KUG-D01", file, "no such file", "the folds of the study",
            fix=f"unigan split {path} --folds 5 --overwrite",
        )  # fmt: skip
    return splits.take_fold(study, splits.Assignment.load(file), fold)


def write_fold(path, fold, overwrite):
    """Writes one fold as a study of its own beside the study: `study.fold2.json`.

    Args:
        path: Study file with folds.
        fold: Number of the fold.
        overwrite: Whether to replace a file that holds something else.

    Returns:
        Path of the new study.

    Raises:
        CodedError: As `read_fold`; KUG-E02.
    """
    from keras_unigan.data import cases

    study, made = read_fold(path, fold)
    output = Path(path).with_name(f"{Path(path).name.removesuffix('.json')}.fold{fold}.json")
    if not output.is_file() or Study.load(output) != study:
        claim(output, overwrite, file=True)
        cases.save_split(study, made, output)
    return str(output)


def summary(study, made, copies, unread):
    """What to say of a split, and the same for programs.

    Args:
        study: `config.Study`.
        made: `splits.Assignment`.
        copies: List of `copies.Copy`.
        unread: Ids of cases that could not be searched.

    Returns:
        List of sentences, and a dictionary.
    """
    pairs = collections.Counter((case.split, case.modality) for case in study.cases)
    sites = collections.Counter((case.split, case.site) for case in study.cases if case.site)
    counts = {s: {m: pairs[s, m] for m in study.modalities} for s in SPLITS}
    classes = {s: collections.Counter() for s in SPLITS}
    used = {case.subject for case in study.cases}
    for subject, place in made.subjects.items():
        if subject in used:
            classes[place.split].update(place.classes)
    lines = []
    if made.folds:
        of = f" (site {made.sites[made.fold]})" if made.sites else ""
        lines.append(f"Fold {made.fold}{of} of {made.folds}")
    for name in SPLITS:
        text = f"{name}: {', '.join(f'{n} {m}' for m, n in counts[name].items())}"
        where = [f"{n} of {site}" for (split, site), n in sorted(sites.items()) if split == name]
        shown = [f"{n} in {classes[name][n]} subjects" for n in study.labels.foreground]
        text += f"; sites: {', '.join(where)}" if where else ""
        if any(classes.values()) and len(shown) <= 8:
            text += f"; {', '.join(shown)}"
        lines.append(text)
    lines += [
        f"{c.second.id} shows the same as {c.first.id} ({c.how}): their subjects stay together"
        for c in copies[:10]
    ]
    lines += [f"… and {len(copies) - 10} more copies: --json lists all"] * (len(copies) > 10)
    lines += [f"{len(unread)} images could not be searched for copies"] * bool(unread)
    if made.left_out:
        lines.append(
            f"{len(made.left_out)} scans left out: a subject that is trained on or chosen by gives "
            "one modality"
            + (", and one that is tested the scans of its site" if made.sites else "")
        )
    spare = {c.modality for c in made.left_out if made.subjects[c.subject].split == "train"}
    spare = [m for m in study.modalities if m in spare and not counts["train"][m]]
    if spare:
        lines.append(
            f"No training scan of {', '.join(spare)}: too few subjects. --pairs lets each give all "
            "its modalities"
        )
    result = {"splits": counts, "fold": made.fold, "folds": made.folds}
    result |= {"sites": list(made.sites), "left_out": len(made.left_out)}
    result["classes"] = {name: dict(found) for name, found in classes.items()}
    result["copies"] = [[c.first.id, c.second.id, c.how] for c in copies]
    result |= {"groups": [list(group) for group in made.groups], "unread": unread}
    return lines, result
