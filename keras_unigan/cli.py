"""`unigan <command>`: thin functions over the library; heavy imports inside the commands.

Exit codes: 0 ok, 1 bug, 2 usage, 3 data, 4 environment or server, 5 interrupted but resumable.
"""

import collections
import contextlib
import dataclasses
import importlib
import json as json_module
import math
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from keras_unigan.config import SPLITS, Experiment, Labels, Plan, Study, TrainOptions, finite
from keras_unigan.errors import CodedError

NOTICE = "For research use only: not a medical device."

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
app.add_typer(client_app, name="client")

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors.")]
Seed = Annotated[int, typer.Option(help="Seed of everything that is drawn.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is already there.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first N cases.")]
Memory = Annotated[float | None, typer.Option(help="GiB that one training step may take.")]
Device = Annotated[str, typer.Option(help="auto, cpu or gpu.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, e.g. train.batch_size=4."),
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


def claim(path, overwrite, file=False):
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
        raise CodedError(
            "KUG-E02", path, "something there already", "a new path", fix="add --overwrite"
        )


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


def table(title, columns, rows):
    """Prints a table on the terminal."""
    from rich.console import Console
    from rich.table import Table

    view = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        view.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        view.add_row(*[cell(value) for value in row])
    Console().print(view)


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


@app.command()
def doctor(json: Json = False):
    """Says what is installed, and what is in the way."""
    from importlib import metadata

    printer = Printer(json)
    packages: dict[str, str | None] = {}
    for name in (
        "keras-unigan", "tensorflow", "keras", "numpy", "nibabel", "scipy",
        "apache-beam", "tensorflow-serving-api", "grpcio", "starlette",
    ):  # fmt: skip
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = None
    advice = []
    if packages["keras"] and int(packages["keras"].split(".")[0]) < 3:
        advice.append('Keras 2 is installed: pip install "keras>=3.12"')
    if os.environ.get("TF_USE_LEGACY_KERAS") in ("1", "true", "True"):
        advice.append("TF_USE_LEGACY_KERAS is set: unset it, this package needs Keras 3")
    for old in ("tensorflow-addons", "keras-cv"):
        try:
            metadata.version(old)
            advice.append(f"{old} is installed and not needed: pip uninstall {old}")
        except metadata.PackageNotFoundError:
            pass
    for name, extra in (("apache-beam", "pipelines"), ("tensorflow-serving-api", "serving")):
        if not packages[name]:
            advice.append(f'{name} is missing: pip install "keras-unigan[{extra}]"')
    report = {
        "python": sys.version.split()[0],
        "packages": packages,
        "cpus": os.cpu_count(),
        "unigan_data": os.environ.get("UNIGAN_DATA"),
        "advice": advice,
    }
    printer.say(f"python {report['python']}, {report['cpus']} cores")
    printer.say(*[f"{name} {number or 'not installed'}" for name, number in packages.items()])
    printer.say(*(advice or ["Nothing is in the way."]))
    printer.result(report)


@app.command()
def models(json: Json = False):
    """Lists the systems that `--model` takes."""
    from keras_unigan.systems import SYSTEMS

    printer = Printer(json)
    if not json:
        rows = []
        for name, system in SYSTEMS.items():
            axes = " ".join(f"{dims}-D" for dims in system["spatial_dims"])
            count = f"{system['parameters']:,}"
            rows.append((name, system["summary"], system["year"], count, axes))
        table("Systems", ("name", "what", "year", "segmentor parameters", "axes"), rows)
    printer.result(SYSTEMS)


@app.command()
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
    reader: Annotated[str | None, typer.Option(help="folder or csv; left out: by looking.")] = None,
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
    from keras_unigan.data import cases

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
    found = len(cases.READERS[reader or cases.detect(source)](source))
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


@app.command()
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


@app.command()
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


@app.command()
def train(
    shards: Annotated[str, typer.Argument(help="Folder that `unigan prepare` wrote.")],
    output: Annotated[str, typer.Option("--output", "-o", help="Run folder.")],
    model: Annotated[
        str | None, typer.Option(help="A name of `unigan models`; left out: segan.")
    ] = None,
    spatial_dims: Annotated[int | None, typer.Option(help="2 or 3; left out: 2.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Budget in minutes.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Budget in epochs.")] = None,
    steps: Annotated[int | None, typer.Option(help="Budget in steps.")] = None,
    replicas: Annotated[
        int | None, typer.Option(help="Replicas under MirroredStrategy; left out: 1.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything; left out: 0.")] = None,
    settings: Set = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint.")
    ] = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
):
    """Trains a system on shards; the best weights by validation Dice become network.keras."""
    printer = Printer(json, quiet)
    budget = {"minutes": minutes, "epochs": epochs, "steps": steps}
    given: dict = {"model": model, "spatial_dims": spatial_dims, "seed": seed, "replicas": replicas}
    given = {key: value for key, value in given.items() if value is not None}
    if any(value is not None for value in budget.values()):
        given |= budget
    config = Path(output) / "config.json"
    # A resumed run keeps what it was started with, but for what is said now.
    known = dataclasses.asdict(Experiment.load(config)) if resume and config.is_file() else {}
    known |= {"shards": shards, "output": output, **given}
    if "train" in known:
        known["train"] = TrainOptions(**known["train"])
    experiment = Experiment(**known).override(settings or [])
    use_device(device)
    from keras_unigan import training

    if dry_run:
        data = training.describe(experiment)
        printer.say(*[f"{k}: {v}" for k, v in data.items()])
        printer.result(data)
        return
    try:
        summary = training.run(experiment, resume=resume, overwrite=overwrite, quiet=printer.silent)
    except KeyboardInterrupt:
        print(
            f"Interrupted. Go on with: unigan train {shards} -o {output} --resume", file=sys.stderr
        )
        raise typer.Exit(5) from None
    best = summary["best_dice"]
    kept = "no validation case, so the last weights" if math.isnan(best) else f"Dice {best:.3f}"
    printer.say(f"Wrote {output}: best validation: {kept}")
    printer.result(summary, f"unigan evaluate {output} study.json")


def each(printer, pairs, segment_one):
    """Segments every scan, bad ones aside; then ends with the code of the first that failed.

    Raises:
        CodedError: When there was one scan only.
    """
    written, errors = [], []
    for source, target in pairs:
        try:
            segment_one(source, target)
        except CodedError as error:
            if len(pairs) == 1:
                raise
            errors.append(error)
            print(error, file=sys.stderr)
        else:
            written.append(str(target))
            printer.say(f"Wrote {target}")
    printer.result({"outputs": written, "errors": [str(error) for error in errors]})
    if errors:
        print(f"{len(errors)} of {len(pairs)} scans could not be used", file=sys.stderr)
        raise typer.Exit(errors[0].exit_code)


@app.command()
def predict(
    run: Annotated[str, typer.Argument(help="Run folder.")],
    inputs: Annotated[list[str], typer.Argument(help="Files, folders or globs.")],
    output: Annotated[str, typer.Option("--output", "-o", help="A file, or a folder for many.")],
    modality: Modality = None,
    limit: Limit = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
):
    """Segments scans; each label map lands on its scan's own grid."""
    from keras_unigan import inference

    printer = Printer(json, quiet)
    pairs = inference.outputs_for(inputs, output)[:limit]
    for _, target in pairs:
        claim(target, overwrite)
    use_device(device)
    model = inference.load(run)
    each(printer, pairs, lambda s, t: inference.predict(model, s, modality=modality, output=t))


@app.command()
def evaluate(
    run: Annotated[str, typer.Argument(help="Run folder.")],
    study: Annotated[str, typer.Argument(help="study.json")],
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    unknown_modality: Annotated[
        bool, typer.Option("--unknown-modality", help="Do not tell the model the modality.")
    ] = False,
    limit: Limit = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
):
    """Scores a run on a split: Dice, HD95 and ASSD in mm, per modality, on the original grid."""
    use_device(device)
    from keras_unigan import evaluation

    printer = Printer(json, quiet)
    claim(evaluation.metrics_files(run, not unknown_modality)[0], overwrite)
    summary = evaluation.evaluate_run(
        run, study, split=split, known_modality=not unknown_modality, limit=limit
    )
    show_scores(printer, summary)
    printer.say(*[f"Wrote {path}" for path in summary["outputs"]])
    printer.result(summary, f"unigan report {run}")
    if summary["failed"]:
        raise typer.Exit(3)


def show_scores(printer, summary):
    """Prints the per-modality table and the macro Dice."""
    if not printer.silent:
        columns = ("modality", "name", "n", "undefined", "Dice", "sd", "HD95 mm", "ASSD mm")
        keys = (
            "modality",
            "name",
            "n",
            "undefined",
            "dice_mean",
            "dice_sd",
            "hd95_mean",
            "assd_mean",
        )
        rows = [tuple(row[k] for k in keys) for row in summary["table"]]  # fmt: skip
        table(f"{summary['split']} split, original grid", columns, rows)
    printer.say(f"macro Dice {summary['macro_dice']:.2f}")


@app.command()
def report(
    run: Annotated[str, typer.Argument(help="Run folder.")],
    study: Annotated[str | None, typer.Option(help="study.json: adds the splits.")] = None,
    json: Json = False,
):
    """Writes report.html: one offline page with curves, tables and overlays."""
    from keras_unigan import report as report_module

    path = report_module.write(run, study)
    Printer(json).say(f"Wrote {path}")
    Printer(json).result({"report": str(path)}, f"unigan export {run} -o models/unigan")


@app.command()
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


@app.command()
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


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
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


@app.command()
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


@client_app.command()
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
    pairs = inference.outputs_for(inputs, output)
    for _, target in pairs:
        claim(target, overwrite)
    with connect(address, model, version, timeout) as asked:
        each(printer, pairs, lambda s, t: asked.segment(s, modality=modality, output=t))


@client_app.command()
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


@client_app.command()
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


@app.command()
def demo(
    output: Annotated[str, typer.Option("--output", "-o", help="Folder to fill.")] = "unigan_demo",
    modalities: Annotated[
        str, typer.Option(help="Comma-separated phantom modalities.")
    ] = "ct,t1,flair",
    model: Annotated[str, typer.Option(help="A name of `unigan models`.")] = "segan",
    steps: Annotated[int | None, typer.Option(help="Training steps.")] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
):
    """Runs the whole road on phantoms: prepare, train, evaluate, export, serve, ask, report."""
    printer = Printer(json, quiet)
    claim(output, overwrite)
    use_device(device)
    need("keras_unigan.pipelines.preprocess", "pipelines")
    need("keras_unigan.serving.server", "serving")
    demo_module = importlib.import_module("keras_unigan.demo")
    result = demo_module.run(
        output, modalities.split(","), model, steps, seed, printer.say, printer.silent
    )
    show_scores(printer, result["scores"])
    printer.say(*[f"{what}: {path}" for what, path in result["outputs"].items()], NOTICE)
    printer.result(
        result, f"unigan predict {result['outputs']['run']} YOUR_SCAN.nii.gz -o seg.nii.gz"
    )


def main(arguments=None):
    """Runs the command line and ends the process with its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    verbose = "-v" in own or "--verbose" in own
    rest = arguments[len(own) :]
    arguments = [a for a in own if a not in ("-v", "--verbose")] + rest
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "0" if verbose else "2")
    try:
        app(arguments)
    except CodedError as error:
        code, text, trace = error.exit_code, str(error), traceback.format_exc()
    except Exception as error:
        code, text = (
            1,
            f"Bug: {type(error).__name__}: {error}. Run again with -v for the traceback.",
        )
        trace = traceback.format_exc()
    print(trace + text if verbose else text, file=sys.stderr)
    sys.exit(code)
