"""A scan to what a server answers for it: as one file, in windows, or slice by slice.

`client.Client` decides where to ask; what is asked for a scan, and what becomes of the answer, is
here. No header text of a scan travels: files that are sent are written anew, with geometry alone.
"""

import types
from pathlib import Path

import nibabel
import numpy as np

from keras_unigan import inference, translation
from keras_unigan.config import Plan, write_json
from keras_unigan.data import nifti, preprocessing
from keras_unigan.errors import CodedError
from keras_unigan.serving.client import names

_HEADER = 352
_SLICES = 8
"""Slices of a translation in one request."""


def segment(
    client, card, ask, source, modality, output, spacing, batch_size, channel, via, progress
):
    """Label map of one scan from one version; see `client.Client.segment`.

    Args:
        client: `client.Client`.
        card: Its model card.
        ask: Function `(patches, modality, statistics) -> probabilities`, with its `version`.
        source: See `client.Client.segment`; also for the rest.
        modality: Name or None.
        output: Path or None.
        spacing: Of an array.
        batch_size: Windows per request.
        channel: Of a file that holds several.
        via: "auto", "file" or "windows".
        progress: Function of what is done and what there is, or None.
    """
    where = f"{client.address} {client.model}"
    plan = Plan.from_dict(card["plan"], where)
    modality = inference.check_modality(plan, modality)
    volume, name, is_array = inference.open_source(
        source, output, plan, spacing, channel, pictured=True
    )
    able = "segment_nifti" in card["signatures"]
    if via == "file" and not able:
        raise CodedError(
            "KUG-S02",
            where,
            "a model without the signature segment_nifti",
            "a model that takes whole files",
            fix="export it again with this version, or send windows (via='windows')",
        )
    label_map = None
    if able and via != "windows":
        label_map = _whole_file(client, ask.version, volume, modality, name, via, progress)
    if label_map is None:
        label_map, _ = inference.segment_volume(
            volume, plan, ask, modality, card["spatial_dims"], batch_size, name, progress
        )
    shape = np.shape(source)[: -1 if plan.channels > 1 else None] if is_array else None
    return inference.hand_over(label_map, volume, output, shape, mark(client.model, ask.version))


def _whole_file(client, version, volume, modality, name, via, progress):
    """Label map of a file sent at once; None where it is too large and `via` is "auto"."""
    preprocessing.check_image(volume, name)
    report = progress or (lambda done, total: None)
    report(0, 1)
    inputs = {"nifti_bytes": _object(to_bytes(volume)), "modality": names(modality, 1)}
    try:
        answer = client.whole(inputs, "segment_nifti", "label_map_nifti_bytes", version)
    except CodedError as error:
        # Windows have no such limits: neither the message's nor the graph's.
        if via == "auto" and (error.code == "KUG-S03" or "too large" in error.found):
            return None
        raise
    report(1, 1)
    return label_map_of(answer[0], volume.shape, f"{client.address} {client.model}")


def _object(data):
    """Object array of one bytes value: NumPy's own bytes type would drop trailing zeros."""
    array = np.empty(1, object)
    array[0] = data
    return array


def to_bytes(volume):
    """NIfTI-1 bytes of a scan for the wire: its geometry and its exact values, and nothing else.

    Args:
        volume: `data.nifti.Volume`.
    """
    values = narrow(volume.array)
    header = volume.header
    if isinstance(header, nibabel.Nifti1Header) and not isinstance(header, nibabel.Nifti2Header):
        return nifti.encode(values, volume)
    return nifti.encode(values, affine=volume.affine)


def narrow(array):
    """The same values in the smallest type that `segment_nifti` takes.

    CT often comes as float64, because its header has an intercept; as int16 it is a quarter.

    Args:
        array: Finite real numbers.
    """
    array = np.asarray(array)
    low, high = array.min(), array.max()
    if array.dtype.kind in "iub" or not np.any(array != np.rint(array)):
        for dtype in (np.uint8, np.int16, np.uint16, np.int32):
            limits = np.iinfo(dtype)
            if limits.min <= low and high <= limits.max:
                return array.astype(dtype, copy=False)
    with np.errstate(over="ignore"):
        single = array.astype(np.float32, copy=False)
    return single if np.array_equal(single, array) else array.astype(np.float64, copy=False)


def label_map_of(data, shape, where):
    """Label map of the NIfTI-1 bytes that `segment_nifti` answers.

    Args:
        data: The bytes.
        shape: Voxels along (x, y, z) of the scan that was sent.
        where: What errors call the server.

    Returns:
        uint8 `shape`; a view of `data`.

    Raises:
        CodedError: KUG-S04 when the answer is no uint8 volume of that shape.
    """
    head = np.frombuffer(data[:_HEADER].ljust(_HEADER, b"\0"), "<i2")
    sizes = tuple(int(n) if axis < head[20] else 1 for axis, n in enumerate(head[21:24]))
    values = np.frombuffer(data, np.uint8, offset=min(_HEADER, len(data)))
    if head[35] != 2 or sizes != tuple(shape) or values.size != np.prod(shape):
        raise CodedError(
            "KUG-S04",
            where,
            f"{len(data)} bytes that are no label map of the scan",
            f"a uint8 NIfTI-1 volume of {tuple(shape)} voxels",
        )
    return values.reshape(shape, order="F")


def mark(model, version, before="keras_unigan"):
    """What the header of a result says of its origin: at most 79 bytes, the version first."""
    text = f"{before}: version {version} of {model}".encode()
    return text[:79].decode(errors="ignore")


def translate(client, card, ask, source, target, modality, output, spacing, progress):
    """Translation of one scan by one version; see `client.Client.translate`.

    Args:
        client: `client.Client`.
        card: Its model card.
        ask: Has the `version`.
        source: See `client.Client.translate`; also for the rest.
        target: Name of the modality to translate to.
        modality: Name or None.
        output: Path or None.
        spacing: Of an array.
        progress: Function of slices done and their number, or None.
    """
    where = f"{client.address} {client.model}"
    if "translate" not in card["signatures"]:
        raise CodedError(
            "KUG-T04",
            where,
            "a model without the signature translate",
            "a model that translates",
            fix="export a run of a system that does (stargan+segan, uagan, unified_gan, unigan)",
        )
    plan = Plan.from_dict(card["plan"], where)
    modality = inference.check_modality(plan, modality)
    target = translation.check_target(plan, target)
    volume, name, is_array = inference.open_source(source, output, plan, spacing)
    prepared = preprocessing.prepare(volume, plan, None, name)
    low, high = translation.intensity_range(plan.normalization[target])
    background = translation.background(plan.normalization[target])

    def send(images):
        inputs = {
            "image": images,
            "modality": names(modality, len(images)),
            "target": names(target, len(images)),
        }
        return client.batches(inputs, "translate", ["translated"], ask.version)["translated"]

    dims = card["spatial_dims"]
    slices = plan.configuration(dims).slices
    made = _each_slice(prepared.image, dims, slices, send, background, progress)
    size = tuple(s.stop - s.start for s in prepared.box)
    made = preprocessing.resample(made, size, "cubic", plan.nearest_axis).clip(low, high)
    result = np.empty((*prepared.ras_shape, *made.shape[3:]), np.float32)
    result[...] = background
    result[prepared.box] = made
    # What is background in the scan stays so: there is no anatomy to show.
    inside = preprocessing.nonbackground(nifti.to_ras(volume).array)
    inside = inside[..., None] if result.ndim > 3 else inside
    result = nifti.from_ras(np.where(inside, result, background).astype(np.float32), volume)
    if output is not None:
        _write_record(client, card, ask.version, source, modality, target, output, plan)
    shape = np.shape(source) if is_array else None
    description = mark(client.model, ask.version, translation.MARK)
    return inference.hand_over(result, volume, output, shape, description)


def _each_slice(image, dims, slices, send, background, progress):
    """Translation of a prepared image, `(x, y, z)` or with channels last.

    Of a slice that has the same value everywhere there is nothing to ask.
    """
    channels = image.ndim > 3
    if dims == 3:
        made = send(np.asarray(image if channels else image[..., None], np.float32)[None])[0]
        if progress is not None:
            progress(1, 1)
        return made if channels else made[..., 0]
    if not channels:
        beside = [(0, 0), (0, 0), (slices // 2,) * 2]
        padded = np.pad(image, beside, constant_values=image.min())
        image = np.stack([padded[:, :, k : k + image.shape[2]] for k in range(slices)], axis=-1)
    stack = np.ascontiguousarray(np.moveaxis(image, 2, 0), np.float32)
    middle = stack if channels else stack[..., slices // 2]
    made = np.empty(middle.shape, np.float32)
    made[...] = background
    flat = middle.reshape(len(stack), -1)
    wanted = np.flatnonzero(flat.min(axis=1) < flat.max(axis=1))
    for at in range(0, len(wanted), _SLICES):
        chosen = wanted[at : at + _SLICES]
        answer = send(stack[chosen])
        made[chosen] = answer if channels else answer[..., slices // 2]
        if progress is not None:
            progress(at + len(chosen), len(wanted))
    return np.moveaxis(made, 0, 2)


def _write_record(client, card, version, source, modality, target, output, plan):
    """Writes the JSON file beside a translation."""
    name = Path(source).name if isinstance(source, (str, Path)) else "image"
    told = types.SimpleNamespace(plan=plan, name=client.model, network=None)
    record = translation.record(told, name, modality, target)
    record |= {"Network": card["network"], "ModelVersion": version}
    write_json(translation.sidecar(output), record)
