"""`unigan demo`: the whole road on phantoms, from a folder of scans to an answered gRPC request."""

import shutil
import time
from pathlib import Path

from keras_unigan import evaluation, report, training
from keras_unigan.config import Experiment, TrainOptions
from keras_unigan.data import phantoms, pictures
from keras_unigan.pipelines import preprocess
from keras_unigan.serving import client, push, server

# Narrow and short, so that two cores finish in minutes; `unigan train` has the papers' widths.
FILTERS = 16
STEPS = 300


def run(output, modalities, model="segan", steps=None, seed=0, say=print, quiet=False):
    """Fills `output` with a phantom study, shards, a run, a served model and one answer.

    Args:
        output: Folder; emptied first.
        modalities: Names of phantom modalities, two or more; those in `phantoms.FLAT` are
            pictures, in colour where all are in `phantoms.STAINED`.
        model: Name in `systems.SYSTEMS`.
        steps: Training steps; None takes `STEPS`.
        seed: Seed of the phantoms, weights and sampling.
        say: Called with a sentence after each step.
        quiet: Whether training prints no progress.

    Returns:
        Dict of `scores` (see `evaluation.evaluate_run`), `outputs` (what -> path) and `seconds`.
    """
    output = Path(output)
    shutil.rmtree(output, ignore_errors=True)
    seconds, start = {}, time.perf_counter()

    def done(step, sentence):
        nonlocal start
        seconds[step] = round(time.perf_counter() - start, 1)
        say(f"[{step} {seconds[step]:.1f} s] {sentence}")
        start = time.perf_counter()

    # Four subjects of each modality to train on, two to choose by, two that nothing has seen.
    study = phantoms.write_study(
        output / "study",
        modalities=tuple(modalities),
        subjects_per_modality=8,
        seed=seed,
        fractions=(0.5, 0.25, 0.25),
    )
    study_path = output / "study" / "study.json"
    subjects = len({case.subject for case in study.cases})
    done("phantoms", f"{subjects} subjects, one of {', '.join(modalities)} each: {study_path}")

    shards = output / "shards"
    summary = preprocess.run(["--study", str(study_path), "--output", str(shards)])
    done("prepare", f"{summary['cases']} volumes through Beam into {shards}")

    experiment = Experiment(
        shards=str(shards),
        output=str(output / "run"),
        model=model,
        seed=seed,
        steps=steps or STEPS,
        train=TrainOptions(learning_rate=2e-3, ema_decay=0.98),
        network={"filters": FILTERS},
    )
    trained = training.run(experiment, quiet=quiet)
    done("train", f"{model}, best validation Dice {trained['best_dice']:.2f}: {output / 'run'}")

    scores = evaluation.evaluate_run(output / "run", study_path, split="test")
    done("evaluate", f"{scores['cases']} subjects that it never saw")

    network, plan = training.load_run(output / "run")
    published = push.export_model(network, plan, output / "models" / "unigan")
    done("export", f"checked against the run, then published: {published['destination']}")

    held_out = next(case for case in study.cases if case.split == "test")
    ending = pictures.label_ending(held_out.image) or ".nii.gz"
    answer = output / "answer" / f"{held_out.id}_seg{ending}"
    with server.Server(model_base_path=output / "models" / "unigan") as running:
        asked = client.Client(running.grpc_addr, "unigan")
        asked.segment(study.path(held_out.image), modality=held_out.modality, output=answer)
        asked.close()
    done("serve", f"one gRPC answer for {held_out.id}, on the scan's own grid: {answer}")

    page = report.write(output / "run")
    done("report", f"{page}")
    outputs = {
        "study": study_path,
        "shards": shards,
        "run": output / "run",
        "model": published["destination"],
        "answer": answer,
        "report": page,
    }
    return {
        "scores": scores,
        "macro_dice": scores["macro_dice"],
        "outputs": {what: str(path) for what, path in outputs.items()},
        "seconds": {**seconds, "all": round(sum(seconds.values()), 1)},
    }
