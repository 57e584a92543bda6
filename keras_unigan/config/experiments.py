"""TrainOptions and Experiment: one run."""

import dataclasses
import json
import typing

from keras_unigan.config.files import from_dict, plain, read_json, write_json
from keras_unigan.errors import CodedError, did_you_mean

AUGMENT_LEVELS = ("none", "light", "standard", "contrast", "paint")
TARGETS = ("permute", "uniform")
OPTIMIZERS = ("adam", "muon")


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """How a run is trained; each field is `--set train.<field>=value`.

    Attributes:
        batch_size: Global batch; None takes the plan's.
        patch_size: Patch in voxels; None takes the plan's.
        slices: Neighbouring slices that a 2-D network sees as channels, odd; see `Configuration`.
            None takes the plan's: 1 unless it was edited.
        steps_per_epoch: Steps between two validations.
        optimizer: "muon" or "adam", of the main network; None takes the system's own.
        learning_rate: Highest rate of that optimizer; None takes its own.
        adversary_rate: The same for discriminators and critics, whose optimizers stay.
        unknown_fraction: Share of samples normalised as if the modality were not known.
        foreground_fraction: Least share of draws that hold foreground.
        labelled_fraction: Share of draws that cases with labels get where some have none; balanced
            over modalities among those with and those without. None: the game's own (all of them
            where nothing is learnt from the others).
        augment: "none"; "light" (flips, intensity, gamma, noise); "standard" (also affine, elastic,
            bias field, blur, low resolution); "contrast" (standard, and a random contrast on a
            share of the samples); "paint" (standard, of images that are painted from their label
            maps). See `data.augmentation`. None: the system's own, "light" where it has none.
        contrast_fraction: Share of samples that "contrast" gives a random contrast; they count as
            of unknown modality.
        allow_missing_classes: Whether a translating game may train where a class occurs in the
            labelled cases of some modalities only.
        targets: How a translating game's target modalities are drawn: "permute" (those of the
            batch in another order) or "uniform" (each modality alike).
        pair_subjects: Whether a training subject with several modalities gives all of them. If not,
            it gives one, always the same.
        ema_decay: Decay of the weight average that validates and is exported.
        patience: Validations without a better Dice before the run stops; 0 is never.
        mixed_precision: Keras dtype policy: "float32", "mixed_bfloat16" or "mixed_float16".
        jit_compile: Whether steps are compiled by XLA.
        accumulate: Micro-batches that a batch is cut into; their gradients are averaged.
        folds: Parts that the subjects of train and val are dealt into, each of them one modality's
            as evenly as may be; 1 leaves the splits of the study.
        fold: Number of the part that validates, where there are several.
        checkpoint_seconds: Most seconds of an epoch that a kill may lose; None: the whole epoch.
        checkpoint_steps: Most steps of an epoch that a kill may lose; None: as many as it has.
    """

    batch_size: int | None = None
    patch_size: tuple[int, ...] | None = None
    slices: int | None = None
    steps_per_epoch: int = 50
    optimizer: str | None = None
    learning_rate: float | None = None
    adversary_rate: float | None = None
    unknown_fraction: float = 0.15
    foreground_fraction: float = 0.34
    labelled_fraction: float | None = None
    # Any: files of version 0.1.0 hold true or false, and the check says what that is now.
    augment: typing.Any = None
    contrast_fraction: float = 0.5
    targets: str = "permute"
    pair_subjects: bool = False
    ema_decay: float = 0.999
    patience: int = 0
    mixed_precision: str = "float32"
    jit_compile: bool = False
    accumulate: int = 1
    allow_missing_classes: bool = False
    folds: int = 1
    fold: int = 0
    checkpoint_seconds: float | None = 60.0
    checkpoint_steps: int | None = None

    def __post_init__(self):
        if self.folds < 1 or not 0 <= self.fold < self.folds:
            raise CodedError(
                "KUG-T02",
                "train.fold",
                f"fold {self.fold} of {self.folds}",
                "one of 0 to one less than train.folds, which is 1 or more",
            )
        choices = {
            "augment": (None, *AUGMENT_LEVELS),
            "targets": TARGETS,
            "optimizer": (None, *OPTIMIZERS),
        }
        for name, known in choices.items():
            value, fix = getattr(self, name), ""
            if isinstance(value, bool) and name == "augment":
                fix = f'write "{"light" if value else "none"}" for {str(value).lower()}'
            if value not in known:
                names = [k for k in known if k is not None]
                found, expected = f"{value!r}{did_you_mean(value, names)}", f"one of {names}"
                raise CodedError("KUG-T02", f"train.{name}", found, expected, fix=fix)
        checks = {
            "accumulate": self.accumulate > 0,
            "checkpoint_seconds": self.checkpoint_seconds is None or self.checkpoint_seconds >= 0,
            "checkpoint_steps": self.checkpoint_steps is None or self.checkpoint_steps > 0,
            "batch_size": self.batch_size is None or self.batch_size > 0,
            "slices": self.slices is None or (self.slices > 0 and self.slices % 2 == 1),
            "steps_per_epoch": self.steps_per_epoch > 0,
            "learning_rate": self.learning_rate is None or self.learning_rate > 0,
            "adversary_rate": self.adversary_rate is None or self.adversary_rate > 0,
            "unknown_fraction": 0 <= self.unknown_fraction <= 1,
            "foreground_fraction": 0 <= self.foreground_fraction <= 1,
            "labelled_fraction": self.labelled_fraction is None or 0 <= self.labelled_fraction <= 1,
            "contrast_fraction": 0 <= self.contrast_fraction <= 1,
            "ema_decay": 0 <= self.ema_decay < 1,
            "patience": self.patience >= 0,
            "mixed_precision": self.mixed_precision
            in ("float32", "mixed_bfloat16", "mixed_float16"),
        }
        for name, good in checks.items():
            if not good:
                raise CodedError(
                    "KUG-T02", f"train.{name}", f"{getattr(self, name)}", "a value in its range"
                )


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One run: data, system, budget and options; `config.json` of a run folder.

    Attributes:
        shards: Folder of shards.
        output: Run folder.
        model: Name in `systems.SYSTEMS`. None: `training.chosen` takes one by the data when the run
            starts; the `config.json` of a run has its name.
        spatial_dims: 2 or 3.
        seed: Seed of weights, sampling and augmentation.
        replicas: Number of replicas under MirroredStrategy.
        minutes: Stop after this many minutes of training.
        epochs: Stop after this many epochs.
        steps: Stop after this many steps.
        horizon: Steps for which learning rates and ramps are made. None is the budget; a resumed
            run keeps that of its first session, so that more budget does not bend them.
        deterministic: Whether every operation gives the same bits in every run, at some cost.
        init_from: Run folder whose networks the run starts from, or None.
        train: Options of the run.
        network: Constructor arguments that override the system's for its segmentor.
        game: Constructor arguments that override the system's for its game.
    """

    shards: str
    output: str
    model: str | None = None
    spatial_dims: int = 2
    seed: int = 0
    replicas: int = 1
    minutes: float | None = None
    epochs: int | None = None
    steps: int | None = None
    horizon: int | None = None
    deterministic: bool = False
    init_from: str | None = None
    train: TrainOptions = dataclasses.field(default_factory=TrainOptions)
    network: dict[str, typing.Any] = dataclasses.field(default_factory=dict)
    game: dict[str, typing.Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        given = [n for n in ("minutes", "epochs", "steps") if getattr(self, n) is not None]
        if len(given) > 1:
            raise CodedError(
                "KUG-T02", "budget", " and ".join(given), "one of minutes, epochs and steps"
            )
        for name in given:
            if not getattr(self, name) > 0:
                raise CodedError("KUG-T02", name, f"{getattr(self, name)}", "more than 0")
        if self.spatial_dims not in (2, 3):
            raise CodedError("KUG-T02", "spatial_dims", f"{self.spatial_dims}", "2 or 3")
        for name in ("replicas", "horizon"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise CodedError("KUG-T02", name, f"{getattr(self, name)}", "at least 1")

    @classmethod
    def load(cls, path):
        """Reads `config.json`."""
        return from_dict(cls, read_json(path), str(path))

    def save(self, path):
        """Writes `config.json` atomically."""
        write_json(path, self)

    def override(self, settings):
        """Returns a copy with `key=value` settings applied, e.g. `train.batch_size=4`.

        Values are JSON; what is not JSON is taken as text. Keys of `network` and `game` are checked
        against their constructors when the model is built.

        Raises:
            CodedError: KUG-T02 naming an unknown key or a value of the wrong type.
        """
        data = plain(self)
        for setting in settings:
            key, equals, text = setting.partition("=")
            if not equals:
                raise CodedError("KUG-T02", "--set", repr(setting), "key=value")
            try:
                value = json.loads(text)
            except json.JSONDecodeError:
                value = text
            group, _, name = key.partition(".")
            if group in ("network", "game") and name:
                data[group][name] = value
            elif group == "train" and name in data["train"]:
                data["train"][name] = value
            elif not name and key in data and key not in ("train", "network", "game"):
                data[key] = value
            else:
                known = [*(k for k in data if k not in ("train", "network", "game"))]
                known += [f"train.{k}" for k in data["train"]] + ["network.…", "game.…"]
                raise CodedError(
                    "KUG-T02", "--set", f"{key!r}{did_you_mean(key, known)}", f"one of {known}"
                )
        try:
            return from_dict(type(self), data, "--set")
        except CodedError as error:
            if error.code != "KUG-D08":
                raise
            raise CodedError("KUG-T02", error.where, error.found, error.expected) from error
