"""From a scan to a label map by one run or the mean of several, as `unigan predict` makes it.

`inference` asks one network once. Here it may be asked for several views of each window, flipped
(`mirror`) or as its generator shows it in the other modalities (`translate`); several runs may be
asked; probabilities are averaged on the scan's own grid, so that runs may differ in grid, window
and axes; and what the validation cases taught (`postprocessing`) is applied.
"""

import copy
import dataclasses
import os
from pathlib import Path

import numpy as np

from keras_unigan import inference, postprocessing, translation, uncertainty
from keras_unigan.alarm import Alarm, Reading
from keras_unigan.config import read_json, write_json
from keras_unigan.data import nifti, preprocessing, volumes
from keras_unigan.errors import CodedError, did_you_mean
from keras_unigan.postprocessing import Postprocessing
from keras_unigan.views import Translated, mirrored

TTA = ("none", "mirror", "translate")
"""Views of each window that are averaged: itself; its flips; its translations."""
ENSEMBLE = "ensemble.json"
"""File of a folder that stands for several runs."""


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """What is found in a scan.

    Attributes:
        label_map: uint8 file values on the scan's native grid.
        masks: Of each scored name, Boolean `(names, x, y, z)` on the RAS+ grid.
        probabilities: Mean over the views of each run, then over runs, float32
            `(x, y, z, outputs)`, RAS+.
        uncertainty: Entropy of that mean (`uncertainty.entropy`), RAS+; None where not asked for.
        disagreement: Part of it that is there because views or runs differ; None where not asked
            for, or where there is one view only.
        reading: What the run's alarm says of the scan; None for a run without one.
    """

    label_map: np.ndarray
    masks: np.ndarray
    probabilities: np.ndarray
    uncertainty: np.ndarray | None = None
    disagreement: np.ndarray | None = None
    reading: Reading | None = None


class Ensemble:
    """One predictor or the mean of several, with views and post-processing.

    Args:
        predictors: List of `inference.Predictor`; the first one's plan is the plan of all.
        tta: One of `TTA`.
        postprocessing: `Postprocessing`, or None.
        names: What results call the predictors; None where they have no names.
        translators: Of each predictor its `translation.Translator`, for "translate"; None: made of
            the same networks.
        alarm: `alarm.Alarm` that looks at each scan, or None.

    Raises:
        CodedError: KUG-T02 for another `tta`, KUG-T08 for predictors of other labels, modalities or
            channels, KUG-T04 for "translate" with a network that does not.
    """

    def __init__(
        self,
        predictors,
        tta="none",
        postprocessing=None,
        names=None,
        translators=None,
        alarm=None,
    ):
        if tta not in TTA:
            raise CodedError("KUG-T02", "tta", f"{tta!r}{did_you_mean(tta, TTA)}", f"one of {TTA}")
        self.predictors, self.tta = list(predictors), tta
        self.names = list(names or [])
        self.postprocessing, self.alarm = postprocessing, alarm
        self.plan, self.spatial_dims = self.predictors[0].plan, self.predictors[0].spatial_dims
        for number, predictor in enumerate(self.predictors[1:], 1):
            self._check_member(number, predictor.plan)
        self._translated = []
        if tta == "translate":
            translators = translators or [
                translation.Translator(p.network, p.plan) for p in self.predictors
            ]
            made = zip(self.predictors, translators, strict=True)
            self._translated = [Translated(*pair) for pair in made]

    def _check_member(self, number, plan):
        where = self.names[number] if self.names else f"run {number + 1}"
        for what, (first, other) in {
            "labels": (self.plan.labels, plan.labels),
            "modalities": (sorted(self.plan.modalities), sorted(plan.modalities)),
            "channels": (self.plan.channels, plan.channels),
        }.items():
            if first != other:
                raise CodedError(
                    "KUG-T08",
                    where,
                    f"{what} {_shown(other)}",
                    f"{_shown(first)}, as of the first run",
                    "A mean of answers to different questions means nothing.",
                    "predict with each by itself, or train runs of one study",
                )

    @property
    def method(self):
        """How label maps are made, as JSON: `runs`, `tta` and the steps of `postprocessing`."""
        steps = self.postprocessing.described if self.postprocessing else []
        return {"runs": self.names, "tta": self.tta, "postprocessing": steps}

    def of(self, numbers):
        """The same with some of its predictors only.

        Args:
            numbers: Of the predictors, at least one.
        """
        if list(numbers) == list(range(len(self.predictors))):
            return self
        part = copy.copy(self)
        part.predictors = [self.predictors[n] for n in numbers]
        part.names = [self.names[n] for n in numbers] if self.names else []
        part._translated = [self._translated[n] for n in numbers] if self._translated else []
        return part

    def views(self, number, modality):
        """Functions `(patches, modality, statistics) -> probabilities` whose mean is taken.

        Args:
            number: Of the predictor.
            modality: Of the scan, or None.
        """
        predictor = self.predictors[number]
        if self.tta == "mirror":
            return mirrored(predictor, predictor.spatial_dims)
        if self.tta == "translate":
            return [predictor, *self._translated[number].views(modality)]
        return [predictor]

    def segment_volume(
        self, volume, modality=None, batch_size=4, where="volume", uncertain=False, progress=None
    ):
        """Segments a volume; see `inference.segment_volume`.

        Args:
            volume: `data.nifti.Volume` on its native grid.
            modality: Name in the plan, or None where it is not known.
            batch_size: Windows per call of a network.
            where: What errors call the volume.
            uncertain: Whether the uncertainty is wanted too.
            progress: See `data.windows.sliding_window`; starts again for each view.

        Returns:
            `Segmentation`.

        Raises:
            CodedError: As `inference.segment_volume` does.
        """
        modality, labels = inference.check_modality(self.plan, modality), self.plan.labels
        volumes.check_channels(volume, self.plan.channels, where)
        total, sure, count, grids = None, None, 0, {}
        runs = len(self.predictors)

        def prepared(plan):
            grid = plan.spacing, plan.nearest_axis
            if grid not in grids:
                grids[grid] = preprocessing.prepare(volume, plan, None, where)
            return grids[grid]

        reading = self.alarm and self.alarm.read(prepared(self.alarm.plan), modality)
        for number, predictor in enumerate(self.predictors):
            views = self.views(number, modality)
            # Runs count alike, however many views each has.
            share, count = np.float32(1 / (len(views) * runs)), count + len(views)
            for view in views:
                settings = view, modality, predictor.spatial_dims, batch_size, progress
                found = inference.infer(prepared(predictor.plan), predictor.plan, *settings)
                if uncertain:
                    own = share * uncertainty.entropy(found, labels.overlapping)
                    sure = own if sure is None else sure + own
                found *= share
                total = found if total is None else np.add(total, found, out=total)
        masks = postprocessing.predicted_masks(total, labels)
        if self.postprocessing:
            spacing = nifti.to_ras(volume).spacing
            masks = self.postprocessing.apply(masks, labels.foreground, spacing)
        label_map = nifti.from_ras(postprocessing.paint(masks, labels), volume)
        if not uncertain:
            return Segmentation(label_map, masks, total, reading=reading)
        differ = uncertainty.disagreement(total, sure, labels.overlapping)
        entropy = uncertainty.entropy(total, labels.overlapping)
        maps = entropy, differ if count > 1 else None
        return Segmentation(label_map, masks, total, *maps, reading)


def _shown(value):
    if hasattr(value, "foreground"):
        return {name: list(value.file_values(name)) for name in value.foreground}
    return value


def load(model, tta="none", postprocessing=True, alarm=True):
    """`Ensemble` of anything that `predict` takes as its model.

    Args:
        model: Run folder, folder with `ensemble.json`, game (with `network` and `plan`), pair
            `(network, plan)`, `inference.Predictor`, `Ensemble` (taken as it is), or a list of
            runs.
        tta: One of `TTA`.
        postprocessing: True: what the folder holds, if it is one; False: none; or a
            `Postprocessing`. A list of runs has none of its own.
        alarm: Whether the alarm of the (first) run folder that has one is loaded too.

    Raises:
        CodedError: KUG-T04 for a folder without a run; see `Ensemble`.
        ValueError: For any other kind of model.
    """
    if isinstance(model, Ensemble):
        return model
    found = None if isinstance(postprocessing, bool) else postprocessing
    if isinstance(model, (str, os.PathLike)) and postprocessing is True:
        found = Postprocessing.load(model)
    models = members(model) if isinstance(model, (str, os.PathLike)) else model
    models = models if isinstance(models, list) else [models]
    predictors = [inference.predictor_of(each) for each in models]
    folders = [each for each in models if isinstance(each, (str, os.PathLike))]
    names = [Path(each).resolve().name for each in folders]
    translators = None
    if tta == "translate" and len(folders) == len(models):
        translators = [
            translation.Translator(p.network, p.plan, n)
            if hasattr(p.network, "translate")
            else translation.load(folder)
            for p, n, folder in zip(predictors, names, folders, strict=True)
        ]
    named = names if len(names) == len(models) else None
    heard = next(filter(None, map(Alarm.load, folders)), None) if alarm else None
    return Ensemble(predictors, tta, found, named, translators, heard)


def members(folder):
    """Run folders that a folder stands for: itself, or those of its `ensemble.json`.

    Raises:
        CodedError: KUG-D08 for a file that names no runs.
    """
    path = Path(folder) / ENSEMBLE
    if not path.is_file():
        return [folder]
    runs = read_json(path).get("runs")
    if not runs or not all(isinstance(run, str) for run in runs):
        raise CodedError("KUG-D08", path, f"runs {runs!r}", "a list of run folders")
    return [Path(folder) / run for run in runs]


def save_ensemble(folder, runs):
    """Writes `ensemble.json`: from now on the folder stands for all runs; returns its path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    relative = [Path(os.path.relpath(run, folder)).as_posix() for run in runs]
    write_json(folder / ENSEMBLE, {"runs": relative})
    return folder / ENSEMBLE


def predict(
    model,
    source,
    modality=None,
    output=None,
    *,
    spacing=None,
    batch_size=4,
    channel=None,
    tta="none",
    postprocessing=True,
    uncertain=False,
):
    """Segments one scan with a trained model, or the mean of several.

    Naming the modality normalises intensities as in training; systems that have parts for each
    modality use those of the named one.

    Args:
        model: See `load`.
        source: Path of a scan, nibabel image, or array; see `inference.segment`.
        modality: Name in the plan; None where it is not known.
        output: Path that receives the label map.
        spacing: mm per voxel of each axis of an array.
        batch_size: Windows per step.
        channel: See `inference.segment`.
        tta: One of `TTA`; "mirror" takes 4 times as long in 2-D and 8 times in 3-D, "translate" as
            many times as there are modalities. An `Ensemble` has its own.
        postprocessing: See `load`.
        uncertain: Whether to give maps of the uncertainty too; see `Segmentation`.

    Returns:
        The same kind as `source`, or `output`. With `uncertain` a tuple of it and of a dictionary
        "uncertainty" and (where there are several views) "disagreement" -> float32 map of that
        kind, or path; with `output` they lie beside it as NIfTI (`map_paths`).

    Raises:
        CodedError: See `load` and `inference.segment`.
        ValueError: For a model of another kind.
    """
    ensemble = load(model, tta, postprocessing)
    plan = ensemble.plan
    volume, where, is_array = inference.open_source(
        source, output, plan, spacing, channel, pictured=True
    )
    found = ensemble.segment_volume(volume, modality, batch_size, where, uncertain)
    if found.reading:
        found.reading.warn(where, inference.check_modality(plan, modality))
    shape = np.shape(source)[: -1 if plan.channels > 1 else None] if is_array else None
    result = inference.hand_over(found.label_map, volume, output, shape)
    if not uncertain:
        return result
    maps = {}
    for name, path in map_paths(output).items():
        values = getattr(found, name)
        if values is not None:
            values = nifti.from_ras(values, volume)
            text = f"{name} 0..1 (keras_unigan)"
            maps[name] = inference.hand_over(values, volume, path, shape, text)
        elif path is not None:
            path.unlink(missing_ok=True)  # of an earlier prediction, and would pass for this one's
    return result, maps


def map_paths(output):
    """Where `inference.MAPS` go: NIfTI files beside a label map; None without an output."""
    if output is None:
        return dict.fromkeys(inference.MAPS)
    path = Path(output)
    stem = volumes.stem(path) or path.stem
    return {name: path.with_name(f"{stem}_{name}.nii.gz") for name in inference.MAPS}
