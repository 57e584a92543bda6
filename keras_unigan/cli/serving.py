"""`unigan export`, `push`, `serve` and `deploy`: models before a server."""

import os
from shlex import quote
from typing import Annotated

import typer

from keras_unigan.cli.common import (
    Device,
    Json,
    Printer,
    Quiet,
    need,
    use_device,
)
from keras_unigan.errors import CodedError, did_you_mean


def export(
    run: Annotated[str, typer.Argument(help="Run folder.")],
    output: Annotated[str, typer.Option("--output", "-o", help="Model folder; versions inside.")],
    keep: Annotated[int | None, typer.Option(min=1, help="Versions to keep.")] = None,
    licence: Annotated[str | None, typer.Option(help="Terms of use, for the model card.")] = None,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
):
    """Publishes a run as the next SavedModel version, after checking it against the run."""
    use_device(device)
    push_module = need("keras_unigan.serving.push", "serving")
    from keras_unigan.exporting import cards
    from keras_unigan.postprocessing import Postprocessing

    printer = Printer(json, quiet)
    network, run_plan, others = _networks(run)
    facts = cards.facts_of_run(run, licence)
    result = push_module.export_model(network, run_plan, output, keep, facts=facts, **others)
    word = "Wrote" if result["pushed"] else "Already there, unchanged:"
    printer.say(f"{word} {result['destination']}")
    steps = Postprocessing.load(run)
    if steps and steps.steps:
        printer.say("The run's post-processing is not in the model: a server answers without it")
    printer.result(result, f"unigan serve {quote(output)} --port 8500 --rest_api_port 8501")


def _networks(run):
    """Segmentor, plan, and a dict of the other networks that signatures are made of, or None."""
    from pathlib import Path

    from keras_unigan import classification, inference, training

    network, run_plan = training.load_run(run)
    own = (Path(run) / "translator.keras").is_file()
    translator = inference.load_network(run, "translator.keras") if own else None
    classifier = classification.load(run)
    others = {"translator": translator, "classifier": classifier, "synthesizer": None}
    if (Path(run) / "renderer.keras").is_file():
        names = ("mask_generator.keras", "renderer.keras")
        others["synthesizer"] = tuple(inference.load_network(run, name) for name in names)
    return network, run_plan, others


def push(
    version_folder: Annotated[
        str | None, typer.Argument(metavar="VERSION_DIR", help="A SavedModel.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="Model folder, or URI of one; versions inside."),
    ] = None,
    keep: Annotated[int | None, typer.Option(min=1, help="Versions to keep.")] = None,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Take the newest version away instead.")
    ] = False,
    run: Annotated[
        str | None, typer.Option(help="Run folder that it came from: check it against that.")
    ] = None,
    study: Annotated[
        str | None, typer.Option(help="study.json to judge its quality on, beside what is served.")
    ] = None,
    split: Annotated[str, typer.Option(help="Cases of the study: train, val or test.")] = "val",
    minimum: Annotated[
        float | None, typer.Option(help="Least mean Dice, overall and of each modality.")
    ] = None,
    most_drop: Annotated[
        float | None, typer.Option(help="Most Dice that it may lie below the served version.")
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Wait for this server; roll back where it fails."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Its name there; left out: the last part of --output.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Publish a model that nobody has checked.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
):
    """Publishes a SavedModel that passed its checks as the next version, in one rename."""
    push_module = need("keras_unigan.serving.push", "serving")
    printer = Printer(json, quiet)
    if output is None or (version_folder is None) != rollback:
        raise CodedError(
            "KUG-T02",
            "push",
            "no --output" if output is None else "VERSION_DIR and --rollback, or neither",
            "a model folder, and one of VERSION_DIR and --rollback",
            fix="unigan push VERSION_DIR -o models/NAME",
        )
    if rollback:
        result = push_module.rollback(output)
        printer.say(f"Withdrew version {result['withdrawn']}; {result['version']} is the newest")
        printer.result(result)
        return
    if study is None and (minimum is not None or most_drop is not None):
        raise CodedError("KUG-T02", "push", "a threshold without --study", "a study to measure on")
    if run or study:
        use_device("auto")
    if run:
        _check_infra(version_folder, run, printer)
    if study:
        _check_quality(version_folder, output, study, split, minimum, most_drop, printer)
    result = push_module.push(
        version_folder, output, keep=keep, force=force, server=server, model=model
    )
    word = "Wrote" if result["pushed"] else "Already there, unchanged:"
    checked = ", ".join(result["blessings"]) or "nothing: forced"
    printer.say(f"{word} {result['destination']} (checked: {checked})")
    printer.result(result, f"unigan serve {quote(output)}")


def _check_infra(folder, run, printer):
    gates = need("keras_unigan.serving.gates", "serving")
    network, run_plan, others = _networks(run)
    path = gates.judge_infra(folder, network, run_plan, **others)
    printer.say(f"Checked against {run}: {path}")


def _check_quality(folder, base, study, split, minimum, most_drop, printer):
    quality = need("keras_unigan.serving.quality", "serving")
    thresholds = quality.Thresholds(minimum, most_drop)
    path, report = quality.judge(folder, study, thresholds, quality.served(base), split)
    for name, found in report["slices"].items():
        before = "" if found["baseline"] is None else f" (served: {found['baseline']:.4f})"
        printer.say(f"{name}: Dice {found['candidate']:.4f}{before}")
    printer.say(f"Judged on {report['study']}: {path}")


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
    kind: Annotated[str, typer.Argument(help="compose, kubernetes or kserve.")],
    output: Annotated[str, typer.Option("--output", "-o", help="Folder for the files.")],
    models: Annotated[
        str | None,
        typer.Option(
            help="Model folder; versions inside. compose mounts it; the others take name and size."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the model; left out: that of its folder.")
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(min=0.1, help="GiB; left out: twice the newest version and 2, at least 4."),
    ] = None,
    batching: Annotated[
        bool, typer.Option("--batching", help="Put requests of the same shapes together.")
    ] = False,
    claim: Annotated[
        str | None,
        typer.Option(help="Volume claim with the model folder inside; left out: NAME-models."),
    ] = None,
    replicas: Annotated[int | None, typer.Option(min=1, help="Pods; left out: 1.")] = None,
    json: Json = False,
):
    """Writes the files that run a model under the stock TensorFlow Serving image."""
    deploy_module = need("keras_unigan.serving.deploy", "serving")
    if kind not in deploy_module.KINDS:
        hint = did_you_mean(kind, deploy_module.KINDS)
        raise CodedError("KUG-T02", "kind", f"{kind!r}{hint}", ", ".join(deploy_module.KINDS))
    folder = os.path.abspath(models) if models else None
    name = name or (os.path.basename(folder) if folder else None)
    if folder is None and (kind == "compose" or name is None):
        raise CodedError("KUG-T02", "--models", "none", "the model folder", fix="--models DIR")
    options = {"name": name, "models": folder, "memory_gib": memory, "batching": batching}
    cluster = {"claim": claim, "replicas": replicas}
    wrong = [key for key, value in cluster.items() if value is not None and kind == "compose"]
    if kind == "kserve" and options.pop("batching"):
        wrong.append("batching")
    if wrong:
        raise CodedError("KUG-T02", f"--{wrong[0]}", f"it with {kind}", "one that has it")
    options |= {key: value for key, value in cluster.items() if value is not None}
    written = getattr(deploy_module, kind)(output, **options)
    printer = Printer(json)
    printer.say(*[f"Wrote {path}" for path in written])
    start = "docker compose -f {} up" if kind == "compose" else "kubectl apply -f {}"
    printer.result({"outputs": [str(path) for path in written]}, start.format(written[0]))
