"""`unigan synthesize`."""

from pathlib import Path
from typing import Annotated

import typer

from keras_unigan.cli.common import (
    NOTICE,
    Device,
    Json,
    Overwrite,
    Printer,
    Quiet,
    Seed,
    claim,
    use_device,
)
from keras_unigan.errors import CodedError


def synthesize(
    run: Annotated[
        str, typer.Argument(help="Run folder: a translating system, `synthesis` or `gan`.")
    ],
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Pairs to keep.")],
    output: Annotated[str, typer.Option("--output", "-o", help="Folder of the pairs.")],
    method: Annotated[
        str | None,
        typer.Option(help="translate, deform or noise; left out: noise where the run can."),
    ] = None,
    to: Annotated[str | None, typer.Option(help="Only this modality.")] = None,
    judge: Annotated[
        str | None, typer.Option(help="Run whose segmentor judges; left out: the run's own.")
    ] = None,
    least_dice: Annotated[float, typer.Option(help="Mean Dice that a pair needs.")] = 0.7,
    least_probability: Annotated[
        float, typer.Option(help="Probability of its modality that a pair needs.")
    ] = 0.5,
    study: Annotated[
        str | None, typer.Option(help="study.json that the pairs are added to, in a copy.")
    ] = None,
    shards: Annotated[
        str | None, typer.Option(help="Folder of shards; left out: those of the run.")
    ] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
):
    """Makes images with label maps, keeps those a segmentor reads right, marks them SYNTHETIC."""
    printer = Printer(json, quiet)
    claim(Path(output) / "study.json", overwrite)
    use_device(device)
    from keras_unigan import synthesis

    printer.say(f"Synthetic images. {NOTICE}")
    summary = synthesis.synthesize(
        run,
        output,
        count,
        method,
        to,
        judge,
        least_dice,
        least_probability,
        shards,
        study,
        seed,
    )
    _report(printer, summary)
    if not summary["accepted"]:
        raise CodedError(
            "KUG-T09",
            run,
            f"no pair of {summary['made']} that passes the gate",
            "one at least",
            f"Most were refused for: {max(summary['rejected'], key=summary['rejected'].get)}.",
            "train longer, or look at rejected pairs with a lower --least-dice",
        )
    shown = f"unigan prepare {summary['study']} -o SHARDS --plan {Path(run) / 'plan.json'}"
    printer.result(summary, shown if study else None)


def _report(printer, summary):
    """Says what was made, what was kept and how near it is to what was trained on."""
    gate, memory = summary["gate"], summary["memorisation"]
    dice = "" if gate["mean_dice"] is None else f", mean Dice {gate['mean_dice']:.2f}"
    printer.say(
        f"{summary['accepted']} of {summary['made']} pairs kept ({summary['method']}){dice}"
    )
    for reason, number in summary["rejected"].items():
        printer.say(f"refused: {number} for {reason}")
    if gate["own_segmentor"]:
        printer.say("judged by the run's own segmentor; --judge RUN asks another one")
    if not gate["domain_head"]:
        printer.say("no domain head in this run: the modality of an image is not judged")
    if memory["compared"]:
        printer.say(
            f"nearest training case: {memory['median_ratio']:.2f} times as far as training cases "
            f"are from one another (median; least {memory['least_ratio']:.2f}); "
            f"{memory['copies']} count as copies"
        )
    printer.say(f"Wrote {summary['output']}")
