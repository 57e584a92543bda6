"""`unigan export`, `push`, `serve`, `deploy` and `client`: models on a server."""

import os
from typing import Annotated

import typer

from keras_unigan.cli.common import (
    Device,
    Json,
    Modality,
    Overwrite,
    Printer,
    Quiet,
    claim,
    each,
    need,
    use_device,
)
from keras_unigan.errors import CodedError


def export(
    run: Annotated[str, typer.Argument(help="Run folder.")],
    output: Annotated[str, typer.Option("--output", "-o", help="Model folder; versions inside.")],
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
):
    """Publishes a run as the next SavedModel version, after checking it against the run."""
    use_device(device)
    push_module = need("keras_unigan.serving.push", "serving")
    from keras_unigan import training

    printer = Printer(json, quiet)
    network, run_plan = training.load_run(run)
    result = push_module.export_model(network, run_plan, output)
    word = "Wrote" if result["pushed"] else "Already there, unchanged:"
    printer.say(f"{word} {result['destination']}")
    printer.result(result, f"unigan serve {output} --port 8500 --rest_api_port 8501")


def push(
    version_folder: Annotated[str, typer.Argument(metavar="VERSION_DIR", help="A SavedModel.")],
    output: Annotated[str, typer.Option("--output", "-o", help="Model folder; versions inside.")],
    keep: Annotated[int | None, typer.Option(min=1, help="Versions to keep.")] = None,
    json: Json = False,
    quiet: Quiet = False,
):
    """Publishes a SavedModel as the next version, in one rename."""
    push_module = need("keras_unigan.serving.push", "serving")
    printer = Printer(json, quiet)
    result = push_module.push(version_folder, output, keep=keep)
    word = "Wrote" if result["pushed"] else "Already there, unchanged:"
    printer.say(f"{word} {result['destination']}")
    printer.result(result, f"unigan serve {output}")


def serve(context: typer.Context):
    """Serves models over gRPC and REST with TensorFlow Serving's protocols and flag names."""
    if not context.args or {"-h", "--help"} & set(context.args):
        settings = need("keras_unigan.serving.settings", "serving")
        print(settings.parser().format_help())
        raise typer.Exit(0 if context.args else 2)
    use_device("auto")
    settings = need("keras_unigan.serving.settings", "serving")
    server = need("keras_unigan.serving.server", "serving")
    raise typer.Exit(server.serve(settings.Options.parse(context.args)))


def deploy(
    kind: Annotated[str, typer.Argument(help="compose")],
    models: Annotated[str, typer.Option(help="Model folder; versions inside.")],
    output: Annotated[str, typer.Option("--output", "-o", help="Folder for the files.")],
    json: Json = False,
):
    """Writes the files that run a model under the stock TensorFlow Serving image."""
    deploy_module = need("keras_unigan.serving.deploy", "serving")
    if kind != "compose":
        raise CodedError("KUG-T02", "kind", repr(kind), "compose")
    folder = os.path.abspath(models)
    written = deploy_module.compose(output, os.path.basename(folder), folder)
    printer = Printer(json)
    printer.say(*[f"Wrote {path}" for path in written])
    printer.result(
        {"outputs": [str(path) for path in written]}, f"docker compose -f {written[0]} up"
    )


Address = Annotated[str, typer.Argument(metavar="HOST:PORT", help="gRPC address.")]
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model.")]
Timeout = Annotated[float, typer.Option(help="Seconds that one answer may take.")]
Version = Annotated[int | None, typer.Option(help="Version; left out: the newest available.")]


def connect(address, model, version, timeout):
    """Client of one model; the import waits until the arguments are known to be good."""
    client = need("keras_unigan.serving.client", "serving")
    return client.Client(address, model, version=version, timeout=timeout)


def segment(
    address: Address,
    model: ModelName,
    inputs: Annotated[list[str], typer.Argument(help="Files, folders or globs.")],
    output: Annotated[str, typer.Option("--output", "-o", help="A file, or a folder for many.")],
    modality: Modality = None,
    version: Version = None,
    timeout: Timeout = 60.0,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
):
    """Segments scans on a server; each label map lands on its scan's own grid."""
    from keras_unigan import inference

    printer = Printer(json, quiet)
    pairs = inference.outputs_for(inputs, output, pictured=True)
    for _, target in pairs:
        claim(target, overwrite)
    with connect(address, model, version, timeout) as asked:
        each(printer, pairs, lambda s, t: asked.segment(s, modality=modality, output=t))


def status(
    address: Address,
    model: ModelName,
    version: Version = None,
    timeout: Timeout = 10.0,
    json: Json = False,
):
    """Shows the versions of a model and their states."""
    with connect(address, model, version, timeout) as asked:
        found = asked.status()
    printer = Printer(json)
    printer.say(*[f"version {v['version']}: {v['state']} {v['error_message']}" for v in found])
    printer.result(found)


def describe(
    address: Address,
    model: ModelName,
    version: Version = None,
    timeout: Timeout = 10.0,
    json: Json = False,
):
    """Shows the model card: labels, modalities, spacing, signatures."""
    with connect(address, model, version, timeout) as asked:
        card = asked.describe()
    printer = Printer(json)
    keys = ("study", "network", "spatial_dims", "modalities", "spacing", "patch_size", "notice")
    printer.say(*[f"{key}: {card[key]}" for key in keys], f"labels: {card['labels']['names']}")
    printer.result(card)
