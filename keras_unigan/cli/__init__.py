"""`unigan <command>`: thin functions over the library; heavy imports inside the commands.

Exit codes: 0 ok, 1 bug, 2 usage, 3 data, 4 environment or server, 5 interrupted but resumable.
"""

import os
import sys
import traceback
import warnings
from typing import Annotated

import typer

from keras_unigan.cli import (
    asking,
    benching,
    checking,
    comparing,
    converting,
    demonstration,
    environment,
    prelabelling,
    preparing,
    reproducing,
    serving,
    splitting,
    synthesizing,
    training,
    translating,
    tuning,
    using,
    viewing,
)
from keras_unigan.cli.common import NOTICE
from keras_unigan.errors import CodedError, of_the_disk

app = typer.Typer(
    name="unigan",
    help=f"Segment organs and lesions from modalities that never met. {NOTICE} "
    "-v anywhere adds the traceback of an error.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
client_app = typer.Typer(
    no_args_is_help=True, help="Ask a TensorFlow Serving compatible server over gRPC."
)


def version(value: bool):
    """Prints the version and ends."""
    if value:
        from keras_unigan import __version__

        print(f"keras-unigan {__version__}")
        raise typer.Exit()


@app.callback()
def root(
    _version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")
    ] = False,
):
    """Options before the command."""


# The order of the commands is that of their help.
for _command in (
    *(environment.doctor, environment.models, preparing.init, splitting.split),
    converting.convert,
    *(checking.check, checking.scrub, prelabelling.prelabel, preparing.plan, preparing.prepare),
    *(training.train, tuning.tune, using.predict, translating.translate, using.evaluate),
    *(synthesizing.synthesize, comparing.compare, benching.bench),
    *(using.report, viewing.view, reproducing.reproduce),
    *(serving.export, serving.push),
):
    app.command()(_command)
# The server parses its own flags, which are those of TensorFlow Serving.
app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)(serving.serve)
app.command()(serving.deploy)
app.add_typer(client_app, name="client")
for _command in (
    *(asking.segment, asking.translate, asking.status, asking.metadata, asking.describe),
):
    client_app.command()(_command)
app.command()(demonstration.demo)


def main(arguments=None):
    """Runs the command line and ends the process with its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    verbose = "-v" in own or "--verbose" in own
    rest = arguments[len(own) :]
    arguments = [a for a in own if a not in ("-v", "--verbose")] + rest
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "0" if verbose else "2")
    if not verbose:
        # What a warning says, without the line of source that says it.
        warnings.formatwarning = lambda message, kind, *_, **__: f"Warning: {message}\n"
    try:
        app(arguments)
    except CodedError as error:
        code, text, trace = error.exit_code, str(error), traceback.format_exc()
    except Exception as error:
        code, trace = 1, traceback.format_exc()
        text = f"Bug: {type(error).__name__}: {error}. Run again with -v for the traceback."
        known = of_the_disk(error)
        if known is not None:
            code, text = known.exit_code, str(known)
    print(trace + text if verbose else text, file=sys.stderr)
    sys.exit(code)
