"""From a scan to the image that another modality would show, on the scan's own grid.

Every image made here is marked: "SYNTHETIC" in the header, and a JSON file beside it that says from
which modality and with which model it was made. It shows what a network learnt to expect, and must
not be read like a scan.
"""

from pathlib import Path

import nibabel
import numpy as np

from keras_unigan import __version__, inference
from keras_unigan.alarm import Alarm
from keras_unigan.config import Plan, read_json, write_json
from keras_unigan.data import nifti, preprocessing, volumes
from keras_unigan.data.windows import sliding_window
from keras_unigan.errors import CodedError

MARK = f"{nifti.SYNTHETIC} (keras_unigan)"
NOTICE = "Made by a network, not by a scanner. For research use only: not a medical device."

BACKGROUND = {"ct": -1000.0}
"""Scheme of a modality -> raw intensity outside the body, where it is not 0."""
UNITS = {"ct": "HU", "pet_suv": "SUV"}
"""Scheme of a modality -> units of its intensities, where they have one."""


def intensity_range(normalization):
    """Raw intensities that -1 and 1 of a translation become.

    "ct" and "pet_suv": the planned window, in Hounsfield units or SUV, so that a translation
    normalises back to itself. Others: units are arbitrary and differ from scan to scan; the planned
    z-score limits with the mean and standard deviation of the training scans give the width of a
    typical one, moved up where it would start below 0, which is the background. Normalising by the
    volume's own statistics, as training does, takes gain and offset out again.

    Args:
        normalization: `config.Normalization` of the target modality.

    Returns:
        `(low, high)`; of several channels arrays with one number for each.
    """
    of_channels = (normalization.mean, normalization.sd, normalization.low, normalization.high)
    mean, sd, low, high = map(np.asarray, of_channels)
    start = mean + sd * low
    if normalization.scheme not in UNITS:
        start = np.maximum(start, 0.0)
    return start, start + sd * (high - low)


def background(normalization):
    """Raw intensity of a modality where there is nothing: never above its `intensity_range`."""
    return np.minimum(BACKGROUND.get(normalization.scheme, 0.0), intensity_range(normalization)[0])


class Translator:
    """Normalised translations of raw patches by a network on this machine.

    Args:
        network: Network with `translate(image, source, target)`.
        plan: `config.Plan` that it was trained with.
        name: What records of its images call it.
        alarm: `alarm.Alarm` that looks at scans before `translate` translates them, or None.

    Raises:
        CodedError: KUG-T04 for a network that does not translate.
    """

    def __init__(self, network, plan, name="", alarm=None):
        if not hasattr(network, "translate"):
            raise CodedError(
                "KUG-T04",
                name or "model",
                f"a {type(network).__name__}, which only segments",
                "a network that translates",
                fix="train a system that does (cyclegan, stargan, uagan, unified_gan, unigan)",
            )
        import tensorflow as tf

        from keras_unigan import layers

        self.network, self.plan, self.alarm = network, plan, alarm
        self.name = name or type(network).__name__
        self.spatial_dims = network.spatial_dims
        inputs = layers.check_inputs(network, plan)
        normalization = layers.IntensityNormalization.from_plan(plan)

        @tf.function(
            input_signature=[
                tf.TensorSpec((None,) * (self.spatial_dims + 1) + (inputs,), tf.float32),
                tf.TensorSpec((None,), tf.int32),
                tf.TensorSpec((None,), tf.int32),
                tf.TensorSpec((None, *plan.statistics_shape), tf.float32),
            ]
        )
        def run(patches, source, target, statistics):
            image = normalization(patches, source, statistics)
            return tf.cast(network.translate(image, source, target, training=False), tf.float32)

        self._run = run

    def serves(self, source, target):
        """Whether the network translates between two modalities: one of a pair knows no third.

        Args:
            source: Name in the plan, or None where it is not known.
            target: Name in the plan.
        """
        pair = getattr(self.network, "pair", range(len(self.plan.modalities)))
        names = {self.plan.modalities[index] for index in pair}
        return {target, target if source is None else source} <= names

    def __call__(self, patches, source, target, statistics):
        """Translations `(batch, *patch, channels)` in [-1, 1] of raw patches of the same shape.

        Args:
            patches: Raw intensities, float32.
            source: Modality of the patches in the plan, or None for unknown.
            target: Modality to translate to.
            statistics: Mean, standard deviation, 0.5 and 99.5 percentile of the whole volume.
        """
        count = len(patches)
        indices = [-1 if m is None else self.plan.modalities.index(m) for m in (source, target)]
        codes = [np.full(count, index, np.int32) for index in indices]
        shape = (count, *self.plan.statistics_shape)
        rows = np.broadcast_to(np.asarray(statistics, np.float32), shape)
        return self._run(patches, *codes, rows).numpy()


def segments(network):
    """Whether a network segments: all do but those that only translate."""
    return hasattr(network, "segment") or not hasattr(network, "translate")


def translates(folder, network):
    """Whether a run folder, whose `network.keras` is `network`, can make translations."""
    return hasattr(network, "translate") or (Path(folder) / "translator.keras").is_file()


def load(folder, alarm=False):
    """`Translator` of a run folder: its `translator.keras`, else its `network.keras`.

    Args:
        folder: Run folder.
        alarm: Whether its alarm is loaded too, where it has one.

    Raises:
        CodedError: KUG-T04 when the folder holds no run, or one that does not translate.
    """
    path = Path(folder)
    own = "translator.keras" if (path / "translator.keras").is_file() else "network.keras"
    network = inference.load_network(path, own)
    config = path / "config.json"
    system = read_json(config).get("model", "") if config.is_file() else ""
    heard = Alarm.load(path) if alarm else None
    return Translator(network, Plan.load(path / "plan.json"), system, heard)


def translator_of(model):
    """`Translator` of anything that `translate` takes as its model.

    Raises:
        CodedError: KUG-T04 for a folder without a run, or a network that does not translate.
        ValueError: For any other kind of model.
    """
    if isinstance(model, Translator):
        return model
    if isinstance(model, (str, Path)):
        return load(model, alarm=True)
    if isinstance(model, tuple) and len(model) == 2:
        return Translator(*model)
    if hasattr(model, "translator") and hasattr(model, "plan"):
        return Translator(model.translator, model.plan, model.name)
    raise ValueError(
        "Expected model to be a run folder, a pair of network and plan, a Translator or a game "
        f"that translates, got {type(model).__name__}."
    )


def translate_prepared(
    prepared, inside, plan, translate, modality, target, spatial_dims=2, batch_size=4
):
    """Translation of a prepared case on the whole RAS+ grid, in [-1, 1].

    Windows overlap with Gaussian weights as in segmentation; the result is resampled back with the
    kernel of the way there. What is background in the scan stays background, -1: there is no
    anatomy to show.

    Args:
        prepared: `data.preprocessing.Prepared`.
        inside: What is not background in the scan, Boolean of shape `prepared.ras_shape`.
        plan: `config.Plan`.
        translate: Function `(patches, modality, target, statistics) -> images`; see `Translator`.
        modality: Name in the plan, or None where it is not known.
        target: Modality to translate to.
        spatial_dims: 2 or 3: which configuration of the plan gives the window.
        batch_size: Windows per call of `translate`.

    Returns:
        float32 of the shape of `inside`, with channels last where there are several.
    """
    chosen = plan.configuration(spatial_dims)
    images = sliding_window(
        prepared.image,
        lambda patches: translate(patches, modality, target, prepared.statistics),
        chosen.patch_size,
        plan.overlap,
        batch_size,
        chosen.slices,
    )
    if plan.channels == 1:
        # Of a stack, its own slice is the middle one.
        images = images[..., chosen.slices // 2]
    shape = tuple(s.stop - s.start for s in prepared.box)
    result = np.full((*prepared.ras_shape, *images.shape[3:]), -1.0, np.float32)
    result[prepared.box] = preprocessing.resample(images, shape, "cubic", plan.nearest_axis)
    return np.where(_beside(inside, result), result.clip(-1.0, 1.0), np.float32(-1.0))


def _beside(inside, image):
    """A mask with an axis for the channels of an image, where it has one."""
    return inside[..., None] if image.ndim > inside.ndim else inside


def to_intensities(normalised, inside, normalization):
    """Raw intensities of a translation.

    Args:
        normalised: Translation in [-1, 1].
        inside: Mask of what is not background.
        normalization: `config.Normalization` of the target modality.

    Returns:
        float32; see `intensity_range` and `background`.
    """
    low, high = intensity_range(normalization)
    image = low + (normalised + 1.0) / 2.0 * (high - low)
    inside = _beside(inside, image)
    return np.where(inside, image, background(normalization)).astype(np.float32)


def check_target(plan, target):
    """Name of the target modality as the plan has it.

    Raises:
        CodedError: KUG-T03 when there is none, or the plan has no such modality.
    """
    return inference.check_modality(plan, target or "")


def translate(model, source, target, modality=None, output=None, *, spacing=None, batch_size=4):
    """Translates one scan; the image lies on the scan's own grid and is marked as synthetic.

    Args:
        model: Run folder, game (with `translator` and `plan`), pair `(network, plan)`, or
            `Translator`.
        source: Path of a NIfTI file, nibabel image, or array `(x, y, z)` or `(x, y)` in RAS+.
        target: Modality to translate to.
        modality: Modality of the scan; None where it is not known.
        output: Path that receives the image as `.nii` or `.nii.gz`, with a `.json` beside it.
        spacing: mm per voxel of each axis of an array.
        batch_size: Windows per step.

    Returns:
        float32 intensities of the target modality (see `intensity_range`): an array for an array,
        else a nibabel image with the input's geometry. With `output`, the path written.

    Raises:
        CodedError: KUG-T03 for an unknown modality, or one beyond the pair of a model that
            translates between two only; KUG-T04 for a model that does not translate,
            KUG-E02 when `output` is the scan itself, KUG-D01 to KUG-D12 and KUG-D36 for a scan that
            cannot be used.
        ValueError: For a model or source of another kind.
    """
    translator = translator_of(model)
    plan = translator.plan
    modality, target = inference.check_modality(plan, modality), check_target(plan, target)
    if not translator.serves(modality, target):
        raise CodedError(
            "KUG-T03",
            "modality",
            f"{modality or 'unknown'} to {target}",
            f"two of {[plan.modalities[index] for index in translator.network.pair]}",
            "This model translates between two modalities only.",
            "train a system that serves all (stargan, unigan), or another --set game.pair=[...]",
        )
    volume, where, is_array = inference.open_source(source, output, plan, spacing)
    volumes.check_channels(volume, plan.channels, where)
    prepared = preprocessing.prepare(volume, plan, None, where)
    if translator.alarm is not None:
        translator.alarm.read(prepared, modality).warn(where, modality)
    inside = preprocessing.nonbackground(nifti.to_ras(volume).array)
    dims = translator.spatial_dims
    image = translate_prepared(
        prepared, inside, plan, translator, modality, target, dims, batch_size
    )
    image = to_intensities(image, inside, plan.normalization[target])
    image = nifti.from_ras(image, volume)
    if output is not None:
        nifti.write(output, image, volume, description=MARK)
        name = Path(where).name if isinstance(source, (str, Path)) else where
        write_json(sidecar(output), record(translator, name, modality, target))
        return output
    if is_array:
        return image.reshape(np.shape(source))
    second = isinstance(volume.header, nibabel.Nifti2Header)
    kind = nibabel.Nifti2Image if second else nibabel.Nifti1Image
    return kind.from_bytes(nifti.encode(image, volume, description=MARK))


def sidecar(output):
    """Path of the JSON file beside an image."""
    return Path(output).with_name(f"{inference.stem(output)}.json")


def record(translator, name, modality, target):
    """What the JSON file beside a translation says.

    Args:
        translator: The `Translator`.
        name: File name of the scan, without its folder, which may name a person or a place.
        modality: Modality that the scan was said to have, or None.
        target: Modality of the translation.
    """
    normalization = translator.plan.normalization[target]
    low, high = intensity_range(normalization)
    return {
        "Synthetic": True,
        "Source": name,
        "SourceModality": modality,
        "TargetModality": target,
        "Model": translator.name,
        "Network": type(translator.network).__name__,
        "Study": translator.plan.study,
        "Intensities": {
            "low": low.tolist(),
            "high": high.tolist(),
            "background": background(normalization).tolist(),
            "units": UNITS.get(normalization.scheme, "arbitrary"),
        },
        "Generator": f"keras_unigan {__version__}",
        "Notice": NOTICE,
    }
