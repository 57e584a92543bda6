"""From a scan to a label map on the scan's own grid, with any model.

`segment` takes any function from raw patches to probabilities: a local network or a remote
call. TensorFlow is imported by `Predictor` only, so that a client can use this module without it.
"""

import glob
import os
from pathlib import Path

import nibabel
import numpy as np

from keras_unigan.config import ALL_CHANNELS, Plan
from keras_unigan.data import nifti, pictures, preprocessing, volumes
from keras_unigan.data.windows import sliding_window
from keras_unigan.errors import CodedError, did_you_mean

MAPS = ("uncertainty", "disagreement")
"""Maps that may lie beside a label map, by the end of their names."""


def paint(probabilities, labels):
    """Label map in the study's own file values.

    Args:
        probabilities: `(..., outputs)`.
        labels: `config.Labels`. Classes: the most probable one, a merged class by its first value.
            Regions: painted in order where the probability is above one half.

    Returns:
        uint8 `(...)`.
    """
    values = np.array(labels.output_values, np.uint8)
    if not labels.overlapping:
        return values[np.argmax(probabilities, axis=-1)]
    painted = np.zeros(probabilities.shape[:-1], np.uint8)
    for index, value in enumerate(values):
        painted[probabilities[..., index] > 0.5] = value
    return painted


def check_modality(plan, modality):
    """Name of a modality as the plan has it; None stays None (unknown).

    Raises:
        CodedError: KUG-T03 when the plan has no such modality.
    """
    if modality is None or modality.lower() in plan.modalities:
        return modality and modality.lower()
    raise CodedError(
        "KUG-T03",
        "modality",
        f"{modality!r}{did_you_mean(modality.lower(), plan.modalities)}",
        f"one of {list(plan.modalities)}, or none where it is not known",
    )


class Predictor:
    """Probabilities of raw patches from a network on this machine.

    Calling it is the `predict` of `segment_volume`. One for many scans traces its graph once.

    Args:
        network: Segmentor that gives logits of normalised patches.
        plan: `config.Plan` that it was trained with.

    Raises:
        CodedError: KUG-T04 for a network that only translates.
    """

    def __init__(self, network, plan):
        only = {"translate": "only translates", "sample": "makes pairs from noise"}
        told = [text for method, text in only.items() if hasattr(network, method)]
        if told and not hasattr(network, "segment"):
            raise CodedError(
                "KUG-T04",
                "model",
                f"a {type(network).__name__}, which {told[0]}",
                "a network that segments",
                fix="unigan translate, or train a system that segments"
                if hasattr(network, "translate")
                else "train a system that segments",
            )
        import keras
        import tensorflow as tf

        from keras_unigan import layers

        self.network, self.plan = network, plan
        self.spatial_dims = network.spatial_dims
        inputs, self.row = layers.check_inputs(network, plan), plan.statistics_shape
        normalization = layers.IntensityNormalization.from_plan(plan)
        activation = keras.ops.sigmoid if plan.labels.overlapping else keras.ops.softmax

        @tf.function(
            input_signature=[
                tf.TensorSpec((None,) * (self.spatial_dims + 1) + (inputs,), tf.float32),
                tf.TensorSpec((None,), tf.int32),
                tf.TensorSpec((None, *self.row), tf.float32),
            ]
        )
        def run(patches, domain, statistics):
            image = normalization(patches, domain, statistics)
            logits = layers.segment_logits(network, image, domain)
            return activation(keras.ops.cast(logits, "float32"))

        self._run = run

    def __call__(self, patches, modality, statistics):
        """Probabilities `(batch, *patch, outputs)` of raw patches `(batch, *patch, channels)`.

        Args:
            patches: Raw intensities, float32.
            modality: Name in the plan, or None for unknown.
            statistics: Mean, standard deviation, 0.5 and 99.5 percentile of the whole volume; of
                images of several channels a row for each.
        """
        index = -1 if modality is None else self.plan.modalities.index(modality)
        count = len(patches)
        rows = np.broadcast_to(np.asarray(statistics, np.float32), (count, *self.row))
        return self._run(patches, np.full(count, index, np.int32), rows).numpy()


def load(folder):
    """`Predictor` of a run folder (`network.keras` and `plan.json`).

    Raises:
        CodedError: KUG-T04 when the folder holds no run.
    """
    return Predictor(load_network(folder), Plan.load(Path(folder) / "plan.json"))


def load_network(folder, name="network.keras"):
    """A network of a run folder.

    Args:
        folder: Run folder; it must have a plan too.
        name: File of the network.

    Raises:
        CodedError: KUG-T04 when the folder holds no run, or a file that Keras cannot load.
    """
    path = Path(folder)
    for file in (name, "plan.json"):
        if not (path / file).is_file():
            raise CodedError(
                "KUG-T04", path, f"no {file}", "a run folder", fix="unigan train shards -o RUN"
            )
    import keras

    import keras_unigan.networks  # noqa: F401  Keras revives only classes that were imported.

    try:
        return keras.saving.load_model(path / name, compile=False)
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise CodedError(
            "KUG-T04",
            path / name,
            f"a file that Keras cannot load ({type(error).__name__})",
            "a network of this package and version",
            fix="copy the run folder again, or train again",
        ) from error


def predictor_of(model):
    """`Predictor` of anything that `predict` takes as its model.

    Raises:
        CodedError: KUG-T04 for a folder without a run.
        ValueError: For any other kind of model.
    """
    if isinstance(model, Predictor):
        return model
    if isinstance(model, (str, os.PathLike)):
        return load(model)
    if isinstance(model, tuple) and len(model) == 2:
        return Predictor(*model)
    if hasattr(model, "network") and hasattr(model, "plan"):
        return Predictor(model.network, model.plan)
    raise ValueError(
        "Expected model to be a run folder, a pair of network and plan, a Predictor or a game, got "
        f"{type(model).__name__}."
    )


def segment_volume(
    volume,
    plan,
    predict,
    modality=None,
    spatial_dims=2,
    batch_size=4,
    where="volume",
    progress=None,
):
    """Label map of a volume on its own grid.

    The volume is turned to RAS+, cropped and resampled as the plan says, and predicted window by
    window; probabilities are resampled back before the label is chosen.

    Args:
        volume: `data.nifti.Volume` on its native grid.
        plan: `config.Plan`.
        predict: Function `(patches, modality, statistics) -> probabilities`; see `Predictor`.
        modality: Name in the plan, or None where it is not known.
        spatial_dims: 2 or 3: which configuration of the plan gives the window.
        batch_size: Windows per call of `predict`.
        where: What errors call the volume.
        progress: See `data.windows.sliding_window`.

    Returns:
        `(label_map, probabilities)`: uint8 file values on the native grid, and float32
        `(x, y, z, outputs)` on the RAS+ grid.

    Raises:
        CodedError: KUG-T03 for an unknown modality, KUG-D06 for NaN, KUG-D12 for a constant volume.
    """
    modality = check_modality(plan, modality)
    volumes.check_channels(volume, plan.channels, where)
    prepared = preprocessing.prepare(volume, plan, None, where)
    probabilities = infer(prepared, plan, predict, modality, spatial_dims, batch_size, progress)
    return nifti.from_ras(paint(probabilities, plan.labels), volume), probabilities


def infer(prepared, plan, predict, modality, spatial_dims=2, batch_size=4, progress=None):
    """Probabilities of a prepared case on its RAS+ grid; see `segment_volume`.

    Args:
        prepared: `data.preprocessing.Prepared`.
        plan: As of `segment_volume`; also for `predict`, `spatial_dims`, `batch_size`, `progress`.
        predict: As said.
        modality: Name as the plan has it, or None.
        spatial_dims: As said.
        batch_size: As said.
        progress: As said.

    Returns:
        float32 `(x, y, z, outputs)`.
    """
    chosen = plan.configuration(spatial_dims)
    probabilities = sliding_window(
        prepared.image,
        lambda patches: predict(patches, modality, prepared.statistics),
        chosen.patch_size,
        plan.overlap,
        batch_size,
        chosen.slices,
        progress,
    )
    return preprocessing.restore(probabilities, prepared)


def segment(
    source,
    plan,
    predict,
    modality=None,
    output=None,
    *,
    spatial_dims=2,
    spacing=None,
    batch_size=4,
    channel=None,
):
    """Segments one scan of any kind; the label map lies on the scan's own grid.

    Args:
        source: Path of a scan (any kind that `data.volumes.read` reads), nibabel image, or array
            `(x, y, z)` or `(x, y)` in RAS+; for a plan of several channels with these last.
        plan: `config.Plan`.
        predict: See `segment_volume`; also for `modality`, `spatial_dims` and `batch_size`.
        modality: Name in the plan; None where it is not known.
        output: Path that receives the label map as `.nii` or `.nii.gz`; of pictures and DICOM also
            as `.png` (one slice) or `.tif`, with the same columns and rows.
        spatial_dims: 2 or 3.
        spacing: mm per voxel of each axis of an array; None: that of the plan. Files and images
            carry their own.
        batch_size: Windows per call of `predict`.
        channel: Channel to take of a file that holds several, counted from 0.

    Returns:
        Values of the study's label files, uint8: an array for an array, else a nibabel image with
        the input's geometry. With `output`, the path written.

    Raises:
        CodedError: KUG-T03 for an unknown modality, KUG-E02 when `output` is the scan itself,
            KUG-D01 to KUG-D12, KUG-D30 to KUG-D36 and KUG-E01 for a scan that cannot be used.
        ValueError: For a source of another kind, or `spacing` that does not fit it.
    """
    volume, where, is_array = open_source(source, output, plan, spacing, channel, pictured=True)
    label_map, _ = segment_volume(volume, plan, predict, modality, spatial_dims, batch_size, where)
    shape = np.shape(source)[: -1 if plan.channels > 1 else None] if is_array else None
    return hand_over(label_map, volume, output, shape)


def hand_over(label_map, volume, output=None, shape=None, description=""):
    """Gives a label map in the kind that was asked for.

    Args:
        label_map: uint8 file values on the grid of `volume`.
        volume: `data.nifti.Volume` of the scan.
        output: Path that receives it, or None; see `segment`.
        shape: Shape of the array that the scan was; None where it was none.
        description: Text for the header of a NIfTI file or image, at most 79 bytes.

    Returns:
        See `segment`.
    """
    if output is not None:
        if pictures.holds_labels(output):
            pictures.write(output, label_map)
        else:
            nifti.write(output, label_map, volume, description=description)
        return output
    if shape is not None:
        return label_map.reshape(shape)
    second = isinstance(volume.header, nibabel.Nifti2Header)
    kind = nibabel.Nifti2Image if second else nibabel.Nifti1Image
    return kind.from_bytes(nifti.encode(label_map, volume, description=description))


def open_source(source, output, plan, spacing, channel=None, pictured=False):
    """Volume of a source, what errors call it, and whether it is an array; see `segment`.

    `pictured` says whether the output may be a picture.
    """
    is_image = isinstance(source, nibabel.spatialimages.SpatialImage)
    is_path = isinstance(source, (str, os.PathLike))
    if spacing is not None and (is_image or is_path):
        raise ValueError("Expected spacing with an array only: files and images carry their own.")
    picture = output is not None and pictured and pictures.holds_labels(output)
    if output is not None and not (stem(output) or picture):
        raise ValueError(f"Expected output ending in .nii or .nii.gz, got {str(output)!r}.")
    if picture and (not is_path or volumes.ending(source) in (".nii", ".nii.gz")):
        raise CodedError(
            "KUG-T02",
            "--output",
            f"a {Path(output).suffix} picture of a volume with a place in space",
            ".nii or .nii.gz",
            "A picture has none.",
        )
    if is_path:
        if output is not None:
            _refuse_same_file(source, output)
        volume = volumes.read_image(source, plan.channels, channel)
        if picture:
            pictures.check_pages(output, volume.shape[2])
        return volume, str(source), False
    if is_image:
        kept = ALL_CHANNELS if plan.channels > 1 else channel
        return nifti.from_image(source, channel=kept), "image", False
    array = np.asarray(source)
    axes = array.ndim - (plan.channels > 1)
    if axes not in (2, 3) or array.dtype.kind not in "iuf":
        raise ValueError(
            "Expected a path, a nibabel image, or an array (x, y, z) or (x, y) of numbers"
            f"{f', {plan.channels} channels last' * (plan.channels > 1)}, got "
            f"{type(source).__name__} of shape {array.shape} and type {array.dtype}."
        )
    sizes = (*(plan.spacing[:axes] if spacing is None else spacing), 1.0)[:3]
    if len(sizes) != 3 or (spacing is not None and len(spacing) != axes):
        raise ValueError(f"Expected {axes} values in spacing, got {tuple(spacing)}.")
    grid = (*array.shape[:axes], 1)[:3]
    array = array.reshape(*grid, *array.shape[axes:])
    return nifti.Volume(array, np.diag([*sizes, 1.0])), "array", True


def _refuse_same_file(source, output):
    if Path(output).resolve() == Path(source).resolve():
        raise CodedError(
            "KUG-E02",
            output,
            "the scan itself",
            "another path",
            "The result would replace the scan.",
            "choose another output",
        )


def stem(path):
    """File name without `.nii` or `.nii.gz`; None for other names."""
    name = Path(path).name
    return next((name.removesuffix(e) for e in (".nii.gz", ".nii") if name.endswith(e)), None)


def outputs_for(inputs, output, suffix="seg", pictured=False):
    """Scans named by files, folders and globs, each with the path of its result.

    Folders give the scans in them (`data.volumes.scans_in`; a folder of DICOM slices is one scan)
    but those named `seg` or `*_seg` (label maps beside scans), earlier results and `MAPS`.

    Args:
        inputs: Paths of files, folders, or globs.
        output: A `.nii` or `.nii.gz` path for one scan; else a folder for `<scan>_<suffix>.nii.gz`.
        suffix: What the results of a folder are named by.
        pictured: Whether the results of pictures are pictures: PNG of PNG and JPEG, TIFF of TIFF.
            DICOM files give NIfTI, as that keeps their place in the patient; also X-rays.

    Returns:
        List of `(source, target)` paths, in the order of the inputs and sorted inside each.

    Raises:
        CodedError: KUG-D01 when an input gives no scan, KUG-T02 for many scans and one output file,
            KUG-E02 when two scans would write the same file or one its own scan.
    """
    sources = []
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            results = ("_seg", f"_{suffix}", *(f"_{name}" for name in MAPS))
            found = volumes.scans_in(path)
            found = [p for p in found if not f"_{volumes.stem(p)}".endswith(results)]
        elif path.is_file():
            found = [path]
        else:
            matches = (Path(p) for p in sorted(glob.glob(str(text), recursive=True)))
            found = [p for p in matches if p.is_file() and volumes.stem(p)]
        if not found:
            known = ", ".join(volumes.ENDINGS)
            raise CodedError("KUG-D01", text, "no scan", f"a folder of DICOM, or files {known}")
        sources += [p for p in found if p not in sources]
    file = stem(output) or (pictured and pictures.holds_labels(output))
    if file and len(sources) > 1:
        raise CodedError("KUG-T02", "--output", f"one file for {len(sources)} scans", "a folder")
    folder = Path(output)
    if not file and folder.suffix[1:].isalpha() and not folder.is_dir():
        raise CodedError(
            "KUG-T02",
            "--output",
            f"a name ending in {folder.suffix}",
            f".nii, .nii.gz{', .png, .tif' if pictured else ''} or a folder",
        )
    endings = [(pictured and pictures.label_ending(p)) or ".nii.gz" for p in sources]
    targets = [
        folder if file else folder / f"{volumes.stem(p) or p.name}_{suffix}{ending}"
        for p, ending in zip(sources, endings, strict=True)
    ]
    for source, target in zip(sources, targets, strict=True):
        _refuse_same_file(source, target)
        if targets.count(target) > 1:
            raise CodedError(
                "KUG-E02", target, "two scans of that name", "one", fix="use two output folders"
            )
    return list(zip(sources, targets, strict=True))
