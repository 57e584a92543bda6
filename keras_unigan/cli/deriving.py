"""`unigan predict --bids`: label maps and probabilities as BIDS derivatives."""

from pathlib import Path

from keras_unigan.cli.batch import is_run
from keras_unigan.cli.common import claim, each, use_device
from keras_unigan.errors import CodedError


def predict(printer, runs, inputs, output, split, flags, beam):
    """Segments scans into a folder of BIDS derivatives.

    Args:
        printer: `common.Printer`.
        runs: Run folders.
        inputs: A study, or files, folders and globs.
        output: Folder of the derivatives.
        split: Of a study; None for all cases.
        flags: `modality`, `channel`, `limit`, `overwrite`, `device`, `tta` and `postprocessing` of
            the command.
        beam: Beam options, of which there may be none.

    Raises:
        CodedError: KUG-T02 for Beam options or a model that is no run folder, or settings that do
            not fit; KUG-E02 for results that are there already.
    """
    from keras_unigan import derivatives, inference
    from keras_unigan.config import Study

    run = runs[0]
    if beam or not is_run(run):
        raise CodedError(
            "KUG-T02",
            "--bids",
            "Beam options" if beam else f"{run}, which is no run folder",
            "a run folder and no Beam options",
            "The job writes label maps only.",
            "leave --bids out, or predict from the run folder",
        )
    studies = [text for text in inputs if text.endswith(".json")]
    told = {key: flags[key] for key in ("modality", "channel")}
    if studies:
        wrong = [f"{len(inputs)} inputs"] if len(inputs) > 1 else []
        wrong += [f"--{key} {value}" for key, value in told.items() if value is not None]
        if wrong:
            raise CodedError("KUG-T02", "inputs", f"a study with {wrong[0]}", "a study alone")
        scans = derivatives.scans_of(Study.load(studies[0]), split)
    else:
        if split is not None:
            raise CodedError("KUG-T02", "--split", split, "a study.json as the input")
        pairs = inference.outputs_for(inputs, output)
        scans = [derivatives.scan_of(source, **told) for source, _ in pairs]
    scans = scans[: flags["limit"]]
    derivatives.check_names(scans)
    for scan in scans:
        target = Path(output) / f"{scan.stem()}_dseg.nii.gz"
        claim(target, flags["overwrite"], file=True)
    use_device(flags["device"])
    from keras_unigan import prediction

    method = {key: flags[key] for key in ("tta", "postprocessing")}
    model = prediction.load(runs if len(runs) > 1 else run, **method)
    derivatives.describe(output, model.plan.labels, scans, flags["overwrite"])
    places = {Path(output) / f"{scan.stem()}_dseg.nii.gz": scan for scan in scans}
    pairs = [(scan.image, target) for target, scan in places.items()]
    each(printer, pairs, lambda _, target: derivatives.segment(model, places[target], output))
