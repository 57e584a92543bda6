"""What all commands share: their options, what they print, and what they refuse."""

import contextlib
import importlib
import json as json_module
import math
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Annotated

import typer

from keras_unigan.config import finite
from keras_unigan.errors import CodedError

NOTICE = "For research use only: not a medical device."
SHOWN = 10
"""Most problems of one kind that are printed."""
_WIDEST = 10_000

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors.")]
Seed = Annotated[int, typer.Option(help="Seed of everything that is drawn.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is already there.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first N cases.")]
Memory = Annotated[float | None, typer.Option(help="GiB that one training step may take.")]
RunMemory = Annotated[
    float | None,
    typer.Option("--memory", min=0, help="GiB that the run may take; left out: what is free."),
]
Window = Annotated[
    str | None,
    typer.Option(
        metavar="foreground|core",
        help="Voxels that a CT window is measured on: all labelled ones, or those away from "
        "their border.",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu or gpu.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, e.g. train.batch_size=4."),
]
Tta = Annotated[
    str,
    typer.Option(
        metavar="none|mirror|translate",
        help="Views that are averaged: the scan; its flips; its translations too.",
    ),
]
Postprocessing = Annotated[
    bool, typer.Option(help="Take out what `unigan tune` learnt to take out.")
]
Modality = Annotated[
    str | None, typer.Option(help="Modality of the scan; left out: unknown to the model.")
]


class Printer:
    """What a command says: sentences for people, one JSON object for programs."""

    def __init__(self, json=False, quiet=False):
        self.json, self.quiet = json, quiet

    @property
    def silent(self):
        """Whether nothing but errors and JSON may be printed."""
        return self.json or self.quiet

    def say(self, *lines):
        """Prints sentences unless the command is silent."""
        if not self.silent:
            for line in lines:
                print(line, flush=True)

    def result(self, data, next_command=None):
        """Ends a command: its result as JSON, or the next sensible command."""
        if self.json:
            print(json_module.dumps(finite(data), indent=2, default=str), flush=True)
        elif next_command:
            self.say(f"Next: {next_command}")


def need(module, extra):
    """Imports a module of an extra.

    Raises:
        CodedError: KUG-E01 with the install line when a package is missing.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("keras_unigan"):
            raise
        raise CodedError(
            "KUG-E01",
            module,
            f"no package {error.name!r}",
            f"the extra [{extra}]",
            fix=f'pip install "keras-unigan[{extra}]"',
        ) from error


def claim(path, overwrite, file=False, fix="add --overwrite"):
    """Refuses to write over a file or a folder that holds something, unless asked.

    Raises:
        CodedError: KUG-E02.
    """
    path = Path(path)
    wrong = next((p for p in path.parents if p.is_file()), None)
    if wrong is not None or (file and path.is_dir()):
        raise CodedError(
            "KUG-E02",
            path,
            f"a file at {wrong}" if wrong else "a folder",
            "a path that can be written",
        )
    if path.exists() and not overwrite and (path.is_file() or any(path.iterdir())):
        raise CodedError("KUG-E02", path, "something there already", "a new path", fix=fix)


def use_device(device):
    """Chooses the device and starts TensorFlow, whose remarks on GPUs it keeps from the terminal.

    Raises:
        CodedError: KUG-T02 for another word, KUG-E03 when there is no GPU to use.
    """
    if device not in ("auto", "cpu", "gpu"):
        raise CodedError("KUG-T02", "--device", repr(device), "auto, cpu or gpu")
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    # Those remarks come from C++ and before any log level counts: only the descriptor stops them.
    with contextlib.ExitStack() as stack:
        if os.environ.get("TF_CPP_MIN_LOG_LEVEL") != "0":
            sys.stderr.flush()
            stack.callback(os.close, keep := os.dup(2))
            stack.callback(os.dup2, keep, 2)
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), 2)
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
    if device == "gpu" and not gpus:
        raise CodedError(
            "KUG-E03", "--device", "no GPU that TensorFlow sees", "one", fix="--device auto"
        )


@contextlib.contextmanager
def hushed(quiet):
    """While it lasts, what this process and its children say on stderr is kept, not shown.

    Worker processes of Beam report each of their steps. Where the work fails, it is shown.

    Args:
        quiet: Whether anything is kept at all.
    """
    if not quiet:
        yield
        return
    sys.stderr.flush()
    keep = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        except BaseException:
            said.seek(0)
            os.write(keep, said.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(keep, 2)
            os.close(keep)


def parse_scheme(pairs, option):
    """`name=1,2` texts -> {name: (1, 2)}."""
    result = {}
    for pair in pairs or []:
        name, _, values = pair.partition("=")
        if name in result:
            raise CodedError(
                "KUG-T02", option, f"{name!r} twice", "each name once", fix=f"{name}=1,2 merges"
            )
        try:
            result[name] = tuple(int(v) for v in values.split(","))
        except ValueError:
            raise CodedError("KUG-T02", option, repr(pair), "name=value[,value…]") from None
    return result


def cell(value):
    """Text of a table cell; a number that is not defined is a dash."""
    if isinstance(value, float):
        return "–" if math.isnan(value) else f"{value:.3f}"
    return str(value)


def table(title, columns, rows, keys=None):
    """Prints a table on the terminal.

    Args:
        title: Above it.
        columns: Headings.
        rows: One value a column.
        keys: Of a table of numbers, of which nothing may be cut off: how many columns at the left
            say what a row is of. What is too wide for a terminal is printed in parts that each
            begin with these. None: a table of words, which are wrapped.
    """
    from rich.console import Console

    texts = [[cell(value) for value in row] for row in rows]
    if keys is None:
        Console().print(_view(title, columns, texts, range(len(columns))))
        return
    # A file or a pipe has no width.
    console = Console() if sys.stdout.isatty() else Console(width=_WIDEST)
    always, left = range(keys), list(range(keys, len(columns)))

    def part(count):
        return _view(title, columns, texts, [*always, *left[:count]], keys)

    def fits(count):
        options = console.options.update(max_width=_WIDEST)
        return console.measure(part(count), options=options).maximum <= console.width

    while left:
        count = next((n for n in range(len(left), 1, -1) if fits(n)), 1)
        console.print(part(count))
        left = left[count:]


def _view(title, columns, texts, chosen, keys=None):
    """Some columns of a table, for `rich`."""
    from rich.table import Table

    view = Table(title=title, title_justify="left")
    for i in chosen:
        justify = "left" if i < (keys or 1) else "right"
        view.add_column(columns[i], justify=justify, no_wrap=keys is not None)
    for row in texts:
        view.add_row(*[row[i] for i in chosen])
    return view


def some(lines, where):
    """The first lines of many, and where all of them are.

    Args:
        lines: List of sentences.
        where: File that holds them.
    """
    more = [f"and {len(lines) - SHOWN} more, all in {where}"] if len(lines) > SHOWN else []
    return [*lines[:SHOWN], *more]


def each(printer, pairs, segment_one):
    """Segments every scan, bad ones aside; then ends with the code of the first that failed.

    Args:
        printer: `Printer`. As JSON: `outputs` (one file a scan), `scans` (of each its `scan`,
            `output`, all `files` that were written, and `warnings`), `errors`.
        pairs: List of `(source, target)`.
        segment_one: Called with both; returns the paths that it wrote beside the target, or None.

    Raises:
        CodedError: When there was one scan only.
    """
    scans, errors = [], []
    for source, target in pairs:
        try:
            with _noted() as said:
                more = segment_one(source, target)
        except CodedError as error:
            if len(pairs) == 1:
                raise
            errors.append(error)
            print(error, file=sys.stderr)
        else:
            files = dict.fromkeys(map(str, [target, *(more or ())]))
            scans.append({"scan": str(source), "output": str(target), "files": list(files)})
            scans[-1]["warnings"] = said
            printer.say(*[f"Wrote {path}" for path in files])
    written = [scan["output"] for scan in scans]
    wrong = [str(error) for error in errors]
    printer.result({"outputs": written, "scans": scans, "errors": wrong})
    if errors:
        print(f"{len(errors)} of {len(pairs)} scans could not be used", file=sys.stderr)
        raise typer.Exit(errors[0].exit_code)


@contextlib.contextmanager
def _noted():
    """Shows warnings once the block has ended; gives the list that then holds their texts."""
    texts: list[str] = []
    caught: list[warnings.WarningMessage] | None = None
    try:
        with warnings.catch_warnings(record=True) as caught:
            yield texts
    finally:
        for said in caught or ():
            texts.append(str(said.message))
            warnings.showwarning(said.message, said.category, said.filename, said.lineno)
