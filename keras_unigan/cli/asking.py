"""`unigan client`: asks a server for label maps, translations, and what it serves."""

import contextlib
import functools
import inspect
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from keras_unigan.cli.common import (
    NOTICE,
    Json,
    Modality,
    Overwrite,
    Printer,
    Quiet,
    claim,
    each,
    need,
)
from keras_unigan.errors import CodedError

Inputs = Annotated[list[str], typer.Argument(help="Files, folders or globs.")]
Output = Annotated[str, typer.Option("--output", "-o", help="A file, or a folder for many.")]
# Where to ask and how. The commands below get these options by `_asking`.
_CONNECTION = {
    "address": (str, typer.Argument(metavar="HOST:PORT", help="gRPC address.")),
    "model": (str, typer.Argument(metavar="MODEL", help="Name of the model.")),
    "version": (int, typer.Option(help="Version; left out: the newest available.")),
    "label": (str, typer.Option(help="Version label instead of a number.")),
    "timeout": (
        float,
        typer.Option(help="Seconds that one answer may take; a whole file ten times as long."),
    ),
    "retries": (int, typer.Option(min=0, help="Further tries while the server is UNAVAILABLE.")),
    "tls": (bool, typer.Option("--tls", help="Speak TLS.")),
    "ca": (str, typer.Option(help="PEM file of roots to trust; means --tls.")),
    "cert": (str, typer.Option(help="PEM file: certificate of this client (mTLS).")),
    "key": (str, typer.Option(help="PEM file: its private key.")),
    "server_name": (
        str,
        typer.Option(help="Name in the server's certificate, where it is not the host."),
    ),
    # Not the token itself: command lines can be read by every user of a machine.
    "token_file": (
        str,
        typer.Option(help="File with a bearer token; else the variable UNIGAN_TOKEN, if set."),
    ),
}
_DEFAULTS = {"timeout": 60.0, "retries": 4, "tls": False}
_REQUIRED = ("address", "model")


def connect(
    address, model, version, label, timeout, retries, tls, ca, cert, key, server_name, token_file
):
    """Client of one model; the import waits until the arguments are known to be good.

    Raises:
        CodedError: KUG-T02 for options that do not fit, and as `serving.client.Client`.
    """
    if version is not None and label is not None:
        raise CodedError("KUG-T02", "--label", "--version too", "one of them")
    if (cert is None) != (key is None):
        raise CodedError("KUG-T02", "--cert, --key", "one of them", "both")
    if not timeout > 0:
        raise CodedError("KUG-T02", "--timeout", f"{timeout}", "seconds above 0")
    client = need("keras_unigan.serving.client", "serving")
    secure = tls or ca or cert or server_name
    return client.Client(
        address,
        model,
        version=version,
        label=label,
        timeout=timeout,
        retries=retries,
        tls=client.Tls(ca, cert, key, server_name) if secure else None,
        token=_token(token_file),
    )


def _token(path):
    if path is None:
        return os.environ.get("UNIGAN_TOKEN") or None
    try:
        token = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        token = ""
    if not token or len(token.split()) > 1:
        raise CodedError("KUG-T02", "--token-file", "no file with one token", "one line of text")
    return token


def _asking(command):
    """Gives a command the options of `connect`; its first argument becomes the client."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    empty = inspect.Parameter.empty
    there = [
        inspect.Parameter(
            name,
            kind,
            default=empty if name in _REQUIRED else _DEFAULTS.get(name),
            annotation=Annotated[type_ if name in (*_REQUIRED, *_DEFAULTS) else type_ | None, how],
        )
        for name, (type_, how) in _CONNECTION.items()
    ]
    own = list(inspect.signature(command).parameters.values())[1:]
    # The address stands first; arguments without a default go before those with one.
    ordered = sorted([*there[:2], *own, *there[2:]], key=lambda p: p.default is not empty)

    @functools.wraps(command)
    def run(**arguments):
        where = {name: arguments.pop(name) for name in _CONNECTION}
        with connect(**where) as asked:
            command(asked, **arguments)

    run.__signature__ = inspect.Signature(ordered)
    run.__annotations__ = {p.name: p.annotation for p in ordered}
    del run.__wrapped__
    return run


@contextlib.contextmanager
def _bar(printer):
    """A progress function for one scan; a bar where a person looks on, else None."""
    if printer.silent or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("", total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)


@_asking
def segment(
    asked,
    inputs: Inputs,
    output: Output,
    modality: Modality = None,
    via: Annotated[
        str,
        typer.Option(
            metavar="auto|file|windows",
            help="file: the server does all of it; windows: geometry and blending happen here.",
        ),
    ] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Windows per request.")] = 4,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
):
    """Segments scans on a server; each label map lands on its scan's own grid."""
    if via not in ("auto", "file", "windows"):
        raise CodedError("KUG-T02", "--via", repr(via), "auto, file or windows")
    from keras_unigan import inference

    printer = Printer(json, quiet)
    pairs = inference.outputs_for(inputs, output, pictured=True)
    for _, target in pairs:
        claim(target, overwrite)

    def one(source, target):
        with _bar(printer) as progress:
            asked.segment(
                source, modality, target, batch_size=batch_size, via=via, progress=progress
            )

    each(printer, pairs, one)


@_asking
def translate(
    asked,
    inputs: Inputs,
    to: Annotated[str, typer.Option(help="Modality to translate to.")],
    output: Output,
    modality: Modality = None,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
):
    """Makes the images another modality would show on a server, marked SYNTHETIC."""
    from keras_unigan import inference

    printer = Printer(json, quiet)
    pairs = inference.outputs_for(inputs, output, f"to_{to.lower()}")
    for _, target in pairs:
        claim(target, overwrite)
    printer.say(f"Synthetic images. {NOTICE}")

    def one(source, target):
        with _bar(printer) as progress:
            asked.translate(source, to, modality, target, progress=progress)

    each(printer, pairs, one)


@_asking
def status(asked, json: Json = False):
    """Shows the versions of a model and their states."""
    found = asked.status()
    printer = Printer(json)
    printer.say(*[f"version {v['version']}: {v['state']} {v['error_message']}" for v in found])
    printer.result(found)


@_asking
def metadata(asked, json: Json = False):
    """Shows the signatures of a model: names, types and shapes of inputs and outputs."""
    found = asked.metadata()
    printer = Printer(json)
    for name, signature in found.items():
        printer.say(name)
        for kind in ("inputs", "outputs"):
            for key_, tensor in signature[kind].items():
                printer.say(f"  {kind[:-1]} {key_}: {tensor['dtype']} {_shape(tensor['shape'])}")
    printer.result(found)


def _shape(sizes):
    if sizes is None:
        return "of any rank"
    return f"[{', '.join('?' if size < 0 else str(size) for size in sizes)}]"


@_asking
def describe(asked, json: Json = False):
    """Shows the model card: labels, modalities, spacing, signatures."""
    card = asked.describe()
    printer = Printer(json)
    keys = ("study", "network", "spatial_dims", "modalities", "spacing", "patch_size", "notice")
    printer.say(*[f"{key}: {card[key]}" for key in keys], f"labels: {card['labels']['names']}")
    printer.result(card)
