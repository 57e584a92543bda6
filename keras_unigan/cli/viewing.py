"""`unigan view`: scans, label maps and predictions in three planes, in a browser."""

import contextlib
import signal
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from keras_unigan.cli.common import NOTICE, Device, Json, Printer, Quiet, need, use_device


def view(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="CASE|RUN|STUDY…",
            help="Scans (files, folders), study.json, ids of its cases, and what segments: a run "
            "folder, an exported model, or HOST:PORT/NAME.",
        ),
    ],
    label: Annotated[str | None, typer.Option(help="Label map of the one scan.")] = None,
    prediction: Annotated[
        str | None,
        typer.Option(help="Prediction of the one scan, or a folder that `unigan predict` filled."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Cases of the study: train, val or test.")
    ] = None,
    modality: Annotated[
        str | None, typer.Option(help="Modality of scans that are no cases of a study.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 0,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
    most_mib: Annotated[
        int, typer.Option(min=1, help="MiB of the largest file that may be dropped on the page.")
    ] = 1024,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
):
    """Shows scans in a page of this machine, and segments files that are dropped on it."""
    viewing = need("keras_unigan.viewing", "view")
    need("keras_unigan.viewing.app", "view").niivue()
    from keras_unigan.viewing import opening

    printer = Printer(json, quiet)
    models = [s for s in sources if opening.is_model(s)]
    scans = [s for s in sources if s not in models]
    opening.check_models(models)
    if models:
        use_device(device)
        if opening.needs_serving(models[0]):
            need("keras_unigan.serving.client", "serving")
        study = opening.study_of_run(models[0])
        # Of a run alone: what it was scored on, if that is still there.
        if not scans and study is not None:
            scans, split = [study], split or "test"
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(viewing.open_model(models[0])) if models else None
        gallery = viewing.open_gallery(scans, model, label, prediction, split, modality)
        title = " · ".join(Path(s).stem if s.endswith(".json") else Path(s).name for s in sources)
        viewer = viewing.Viewer(gallery, title, port, most_mib * 2**20)
        with viewer, _ended_by_signals():
            _announce(printer, viewer, gallery, browser)
            viewer.wait()


@contextlib.contextmanager
def _ended_by_signals():
    """Ends the block in good order, so that no scan stays behind, also when the terminal closes."""

    def stop(*_):
        raise KeyboardInterrupt

    names = ("SIGINT", "SIGTERM", "SIGHUP")
    signals = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.signal(number, stop) for number in signals}
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _announce(printer, viewer, gallery, browser):
    what = f"{len(gallery.entries)} scans"
    what += f", {gallery.model.kind} {gallery.model.name} segments" if gallery.model else ""
    printer.say(f"Viewer ({what}): {viewer.url}", NOTICE, "Ctrl-C ends it.")
    if printer.quiet and not printer.json:
        print(viewer.url, flush=True)
    printer.result({"url": viewer.url, "scans": len(gallery.entries)})
    if browser:
        webbrowser.open(viewer.url)
