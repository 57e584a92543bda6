"""Which runs a bench is made of, and the rows that they leave."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from keras_unigan.bench import one
from keras_unigan.config import AUGMENT_LEVELS, Study, finite, read_json
from keras_unigan.errors import CodedError, did_you_mean
from keras_unigan.systems import PAIR, PAIRS_MADE, SYSTEMS, TRANSLATED

ROWS = "rows.jsonl"

PHANTOMS = {"steps": 60, "batch_size": 4, "filters": 8, "steps_per_epoch": 30}
"""Budget of the bench on phantoms: small, so that all systems get through it on two cores."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all systems of a bench share.

    Attributes:
        steps: Training steps.
        batch_size: Samples a step.
        filters: Width of the main network at full resolution; other networks of a system keep
            their proportion to it. None: the plan's.
        steps_per_epoch: Steps from one validation to the next.
        augment: Level of augmentation, for all but those that learn from painted images; None
            leaves each system its own.
        spatial_dims: 2 or 3.
        split: What is scored.
    """

    steps: int = 1000
    batch_size: int = 8
    filters: int | None = None
    steps_per_epoch: int = 100
    augment: str | None = "light"
    spatial_dims: int = 2
    split: str = "test"

    def __post_init__(self):
        for name in ("steps", "batch_size", "steps_per_epoch"):
            if getattr(self, name) < 1:
                raise CodedError("KUG-T02", name, f"{getattr(self, name)}", "1 or more")
        if self.augment is not None and self.augment not in AUGMENT_LEVELS:
            raise CodedError("KUG-T02", "augment", self.augment, f"one of {AUGMENT_LEVELS}")


def segmenting(spatial_dims=2):
    """Names of the systems that make label maps, in the order of the table."""
    others = (TRANSLATED, PAIR, PAIRS_MADE)
    return [
        name
        for name, system in SYSTEMS.items()
        if system["needs"] not in others and spatial_dims in system["spatial_dims"]
    ]


def check_systems(names, spatial_dims=2):
    """Raises KUG-T01 for a name that is no system, KUG-T02 for one that makes no label maps."""
    known = segmenting(spatial_dims)
    for name in names:
        if name not in SYSTEMS:
            raise CodedError(
                "KUG-T01",
                "--systems",
                f"{name!r}{did_you_mean(name, known)}",
                f"some of {known}",
                fix="unigan models",
            )
        if name not in known:
            raise CodedError(
                "KUG-T02",
                "--systems",
                f"{name}, which makes no label maps in {spatial_dims}-D",
                f"some of {known}",
            )


def phantom_study(folder, modalities=("ct", "t1"), seed=0):
    """Writes phantoms and their shards; returns the paths of `study.json` and shards.

    Four subjects of each modality to train on, two to choose by, four that nothing has seen.
    """
    from keras_unigan.data import phantoms
    from keras_unigan.pipelines import preprocess

    folder = Path(folder)
    study, shards = folder / "study" / "study.json", folder / "shards"
    if not study.is_file():
        phantoms.write_study(
            folder / "study",
            modalities=modalities,
            subjects_per_modality=10,
            seed=seed,
            fractions=(0.4, 0.2, 0.4),
        )
    if not (shards / "shards.json").is_file():
        preprocess.run(["--study", str(study), "--output", str(shards), "--overwrite"])
    return study, shards


def key_of(row):
    """What makes two rows the same run."""
    return row["system"], row["seed"]


def read_rows(output):
    """Rows of a bench so far."""
    path = Path(output) / ROWS
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines]


def run(study, shards, output, systems=None, seeds=(0,), settings=None, say=print):
    """Trains and scores every system that has no row yet, and adds the row.

    A bench that was killed goes on where it was: rows are written one by one, and a run that had
    begun is resumed.

    Args:
        study: `study.json` with the cases that are scored.
        shards: Its shards.
        output: Folder of the bench: `rows.jsonl`, `settings.json`, `runs/`.
        systems: Names; None takes all that segment.
        seeds: Seeds of weights and sampling.
        settings: `Settings`.
        say: Called with a sentence before and after each run.

    Returns:
        All rows.

    Raises:
        CodedError: KUG-T01 and KUG-T02 for systems, KUG-T04 for a folder of other settings,
            KUG-D14 for a study without cases to score.
    """
    settings = settings or Settings()
    names = segmenting(settings.spatial_dims) if systems is None else list(systems)
    check_systems(names, settings.spatial_dims)
    if not any(case.split == settings.split for case in Study.load(study).cases):
        raise CodedError("KUG-D14", study, f"no case of {settings.split}", "one at least")
    output = Path(output)
    _remember(output, study, shards, settings)
    rows = read_rows(output)
    done = {key_of(row) for row in rows}
    wanted = [(name, seed) for seed in seeds for name in names if (name, seed) not in done]
    for place, (name, seed) in enumerate(wanted, 1):
        say(f"[{place}/{len(wanted)}] {name}, seed {seed}")
        row = _one(study, shards, output, name, seed, settings)
        with (output / ROWS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite(row)) + "\n")
        rows.append(row)
        say(_said(row))
    return rows


def _remember(output, study, shards, settings):
    """Writes what the bench is, or refuses to go on with another one."""
    path = output / "settings.json"
    here = dataclasses.asdict(settings)
    here |= {"study": os.path.abspath(study), "shards": os.path.abspath(shards)}
    if path.is_file():
        before = read_json(path)
        if before != here:
            differ = [key for key in here if before.get(key) != here[key]]
            raise CodedError(
                "KUG-T04",
                path,
                f"a bench with other {', '.join(differ)}",
                "the same settings",
                "Its rows could not be compared.",
                "another --output",
            )
        return
    output.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(here, indent=2) + "\n", encoding="utf-8")


def _one(study, shards, output, name, seed, settings):
    """Row of one run, made in a process of its own."""
    train = {"batch_size": settings.batch_size, "steps_per_epoch": settings.steps_per_epoch}
    train["steps_per_epoch"] = min(settings.steps_per_epoch, settings.steps)
    # Where few subjects are trained on, a class may be missing in a modality by chance.
    train["allow_missing_classes"] = True
    # Painting is no augmentation of a system, but what it learns from.
    paints = SYSTEMS[name].get("train", {}).get("augment") == "paint"
    if settings.augment is not None and not paints:
        train["augment"] = settings.augment
    folder = output / "runs" / f"{name.replace('+', '_')}_{seed}"
    experiment = one.experiment_dict(
        shards=str(shards),
        output=str(folder),
        model=name,
        spatial_dims=settings.spatial_dims,
        seed=seed,
        steps=settings.steps,
        train=train,
        network={} if settings.filters is None else {"filters": settings.filters},
    )
    task = {"experiment": experiment, "study": str(study), "split": settings.split}
    with tempfile.TemporaryDirectory() as scratch:
        paths = [Path(scratch) / "task.json", Path(scratch) / "row.json"]
        paths[0].write_text(json.dumps(task), encoding="utf-8")
        log = output / "runs" / f"{folder.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", one.__name__, *map(str, paths)]
        with log.open("wb") as file:
            code = subprocess.run(command, stdout=file, stderr=file, check=False).returncode
        if code == -signal.SIGINT:
            raise KeyboardInterrupt
        if not paths[1].is_file():
            # Not added: the next bench tries again.
            raise CodedError(
                "KUG-T05",
                name,
                f"a run that ended with {code}",
                "a row",
                f"Its last words are in {log}.",
                "leave it out with --systems, or run the bench again",
            )
        return read_json(paths[1])


def _said(row):
    """Sentence on a row."""
    if "refused" in row:
        return f"  refused: {row['refused']}"
    dice = "–" if row["macro_dice"] is None else f"{row['macro_dice']:.3f}"
    return f"  Dice {dice}, {row['step_seconds']:.2f} s a step, {row['peak_gib']:.1f} GiB"
