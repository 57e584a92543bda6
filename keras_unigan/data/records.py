"""Prepared cases to and from `tf.train.Example`, shards and their manifest.

The only module that knows feature keys. Arrays are raw little-endian bytes in C order, in the
smallest type that holds them exactly; the affine is float64.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import posixpath
import typing
import zlib

import numpy as np
import tensorflow as tf

from keras_unigan.config import IGNORE, Plan, from_dict, write_json
from keras_unigan.errors import CodedError

FEATURES = {
    "case": tf.io.FixedLenFeature([], tf.string),
    "subject": tf.io.FixedLenFeature([], tf.string),
    "modality": tf.io.FixedLenFeature([], tf.string),
    "split": tf.io.FixedLenFeature([], tf.string),
    "image": tf.io.FixedLenFeature([], tf.string),
    "image_dtype": tf.io.FixedLenFeature([], tf.string),
    "label_map": tf.io.FixedLenFeature([], tf.string),
    "labelled": tf.io.FixedLenFeature([], tf.int64),
    "shape": tf.io.FixedLenFeature([3], tf.int64),
    "statistics": tf.io.FixedLenFeature([4], tf.float32),
    "spacing": tf.io.FixedLenFeature([3], tf.float32),
    "affine": tf.io.FixedLenFeature([], tf.string),
    "foreground": tf.io.FixedLenFeature([], tf.string),
}
"""Key -> how it is parsed, of images of one channel; see `parse` for the meaning."""

ANNOTATED = {"annotated": tf.io.FixedLenSequenceFeature([], tf.string, allow_missing=True)}
"""As `FEATURES`, of what the records alone have whose label maps do not show all names."""

SYNTHETIC = {"synthetic": tf.io.FixedLenFeature([], tf.int64, 0)}
PRELABELLED = {"prelabelled": tf.io.FixedLenFeature([], tf.int64, 0)}
"""As `FEATURES`, of what the records alone have whose images no scanner made."""

IMAGE_DTYPES = ("uint8", "int16", "float32")
FOREGROUND_LIMIT = 2048
_PIECE = 1 << 17
RECORD_LIMIT = 2**31 - 2**20
"""Bytes of image and label map: Protocol Buffers hold 2 GiB, with all the rest."""

MANIFEST = "shards.json"
MANIFEST_VERSION = 1


def features(channels=1):
    """Key -> how it is parsed.

    Args:
        channels: Channels of the images. Records of several say how many, and have statistics of
            each; those of one channel are what they were before there were others.
    """
    if channels == 1:
        return FEATURES
    several = {
        "channels": tf.io.FixedLenFeature([], tf.int64),
        "statistics": tf.io.FixedLenFeature([channels, 4], tf.float32),
    }
    return FEATURES | several


def schema(channels=1, cases=()):
    """The features as JSON: key -> type and shape, -1 where records differ in it.

    Args:
        channels: Channels of the images.
        cases: `config.Case` of the records.
    """
    parsed = features(channels).items()
    found = {k: {"type": f.dtype.name, "shape": list(f.shape)} for k, f in parsed}
    if any(case.annotated for case in cases):
        found["annotated"] = {"type": "string", "shape": [-1]}
    if any(case.synthetic for case in cases):
        found["synthetic"] = {"type": "int64", "shape": []}
    if any(case.prelabelled for case in cases):
        found["prelabelled"] = {"type": "int64", "shape": []}
    return found


def _smallest(image):
    """The image in the smallest of `IMAGE_DTYPES` that holds every value exactly."""
    probe = image[len(image) // 2]
    if (np.rint(probe) != probe).any():  # Most interpolated images need no second look.
        return image
    low, high = image.min(), image.max()
    for name in IMAGE_DTYPES[:-1]:
        limits = np.iinfo(name)
        if limits.min <= low and high <= limits.max:
            small = image.astype(name)
            if (small == image).all():
                return small
    return image


def foreground_voxels(label_map, seed):
    """Draws up to `FOREGROUND_LIMIT` foreground voxels, each index an equal part.

    Args:
        label_map: uint8 indices; 0 and 255 are not foreground.
        seed: Text that seeds the draw.

    Returns:
        int32 array (n, 3) in C order; n is 0 without foreground.
    """
    rng = np.random.default_rng(zlib.crc32(seed.encode()))
    places = np.flatnonzero(label_map != 0)
    values = label_map.ravel()[places]
    present = [i for i in np.flatnonzero(np.bincount(values)) if i != IGNORE]
    drawn = [np.zeros(0, np.int64)]
    for i in present:
        found = places[values == i]
        share = max(1, FOREGROUND_LIMIT // len(present))
        drawn.append(rng.choice(found, share, replace=False) if len(found) > share else found)
    flat = np.sort(np.concatenate(drawn))[:FOREGROUND_LIMIT]
    return np.stack(np.unravel_index(flat, label_map.shape), axis=1).astype(np.int32)


def to_example(case, prepared):
    """Serialises a prepared case; the same case gives the same bytes.

    Args:
        case: `config.Case`.
        prepared: `preprocessing.Prepared`.

    Returns:
        Bytes of a `tf.train.Example` with the keys of `features`.

    Raises:
        CodedError: KUG-D35 for a volume above `RECORD_LIMIT`.
    """
    image = _smallest(prepared.image)
    labelled = prepared.label_map is not None
    label_map = prepared.label_map if labelled else np.zeros(0, np.uint8)
    if image.nbytes + label_map.nbytes > RECORD_LIMIT:
        raise CodedError(
            "KUG-D35",
            case.id,
            f"{' x '.join(map(str, image.shape))} voxels of {image.dtype}, "
            f"{(image.nbytes + label_map.nbytes) / 2**30:.2f} GiB with labels",
            f"{RECORD_LIMIT / 2**30:.2f} GiB",
            "No record can hold more.",
            "set a coarser spacing in plan.json, or cut the scan into parts",
        )
    foreground = np.zeros((0, 3), np.int32)
    if labelled:
        foreground = foreground_voxels(label_map, case.id)
    spacing = np.linalg.norm(prepared.affine[:3, :3], axis=0)
    texts = {
        "case": case.id.encode(),
        "subject": case.subject.encode(),
        "modality": case.modality.encode(),
        "split": (case.split or "").encode(),
        "image": _raw(image),
        "image_dtype": image.dtype.name.encode(),
        "label_map": _raw(label_map),
        "affine": _raw(np.asarray(prepared.affine, np.float64)),
        "foreground": _raw(foreground),
    }
    example = tf.train.Example()
    # Filled in place: a volume that is wrapped first is copied with each wrapping.
    parts = example.features.feature
    for key, value in texts.items():
        parts[key].bytes_list.value.append(value)
    parts["labelled"].int64_list.value.append(int(labelled))
    parts["shape"].int64_list.value.extend(image.shape[:3])
    parts["statistics"].float_list.value.extend(np.ravel(prepared.statistics).tolist())
    parts["spacing"].float_list.value.extend(spacing.tolist())
    if image.ndim > 3:
        parts["channels"].int64_list.value.extend(image.shape[3:])
    if labelled and case.annotated:
        names = [name.encode() for name in case.annotated]
        parts["annotated"].bytes_list.value.extend(names)
    if case.synthetic:
        parts["synthetic"].int64_list.value.append(1)
    if case.prelabelled:
        parts["prelabelled"].int64_list.value.append(1)
    return example.SerializeToString(deterministic=True)


def _raw(array):
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def parse(serialized, channels=1):
    """Reads one record; runs eagerly and inside `tf.data`.

    Args:
        serialized: Scalar string tensor.
        channels: Channels of the images: `config.Plan.channels` of the shards.

    Returns:
        Dict: `image` float32 (x, y, z), raw intensities, of several channels (x, y, z, channels);
        `label_map` uint8 (x, y, z), 255 everywhere when not labelled; `labelled` bool; `statistics`
        float32 (4,), of several channels (channels, 4); `spacing` float32 (3,) in mm; `affine`
        float64 (4, 4) to RAS+ mm; `foreground` int32 (n, 3), voxels to draw patches around;
        `annotated` strings (n,), names that the label map shows, none where it shows all; `case`,
        `subject`, `modality`, `split` strings.
    """
    record = tf.io.parse_single_example(serialized, features(channels) | ANNOTATED)
    shape = record["shape"]
    dtype = tf.argmax(tf.equal(record["image_dtype"], IMAGE_DTYPES))
    branches = [
        lambda name=name: tf.cast(tf.io.decode_raw(record["image"], name), tf.float32)
        for name in IMAGE_DTYPES
    ]
    image = tf.switch_case(tf.cast(dtype, tf.int32), branches)
    # A record of other channels has other statistics, and has been refused above.
    colours = (channels,) if channels > 1 else ()
    image = tf.reshape(image, [*tf.unstack(shape), *colours])
    labelled = record["labelled"] > 0
    label_map = tf.cond(
        labelled,
        lambda: tf.io.decode_raw(record["label_map"], tf.uint8),
        lambda: tf.fill([tf.reduce_prod(shape)], tf.constant(IGNORE, tf.uint8)),
    )
    return {
        "image": image,
        "label_map": tf.reshape(label_map, shape),
        "labelled": labelled,
        "statistics": record["statistics"],
        "spacing": record["spacing"],
        "affine": tf.reshape(tf.io.decode_raw(record["affine"], tf.float64), (4, 4)),
        "foreground": tf.reshape(tf.io.decode_raw(record["foreground"], tf.int32), (-1, 3)),
        **{k: record[k] for k in ("annotated", "case", "subject", "modality", "split")},
    }


def write_shard(path, examples):
    """Writes serialised examples as a GZIP TFRecord file; the same examples give the same bytes.

    Level 1: noise hardly shrinks any further, and writing is several times faster.

    Args:
        path: Local path.
        examples: Iterable of bytes.

    Returns:
        Number of examples.
    """
    count, examples = 0, iter(examples)
    first = next(examples, b"")
    options = tf.io.TFRecordOptions(
        compression_type="GZIP", compression_level=1, compression_strategy=_strategy(first)
    )
    with tf.io.TFRecordWriter(str(path), options) as writer:
        for example in itertools.chain([first] if first else [], examples):
            writer.write(example)
            count += 1
    return count


def _strategy(example):
    """How zlib is to compress a shard, tried on a piece of its first image.

    Interpolated values do not repeat, and to look for repeats takes most of the time.
    """
    start = max(0, len(example) * 2 // 5 - _PIECE // 2)
    piece, sizes = example[start : start + _PIECE], {}
    for strategy in (zlib.Z_RLE, zlib.Z_DEFAULT_STRATEGY):
        pressed = zlib.compressobj(1, strategy=strategy)
        sizes[strategy] = len(pressed.compress(piece) + pressed.flush())
    # A little space is not worth as much again of time.
    worth = sizes[zlib.Z_RLE] <= 1.02 * sizes[zlib.Z_DEFAULT_STRATEGY]
    return zlib.Z_RLE if worth else zlib.Z_DEFAULT_STRATEGY


def read_shards(paths, channels=1):
    """`tf.data.Dataset` of the parsed records of some shards, in order; see `parse`."""
    dataset = tf.data.TFRecordDataset([str(p) for p in paths], "GZIP")
    return dataset.map(lambda serialized: parse(serialized, channels))


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of records.

    Attributes:
        file: Path relative to the manifest.
        split: Split of its cases.
        modality: Modality of its cases.
        cases: Case ids, in the order of the records.
        sha256: Of the file.
        bytes: Size of the file.
    """

    file: str
    split: str
    modality: str
    cases: tuple[str, ...]
    sha256: str
    bytes: int


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds: `shards.json`.

    Attributes:
        recipe: `Plan.recipe` that made the records.
        plan: The plan as JSON.
        schema: See `schema`.
        splits: Split -> modality -> number of cases.
        shards: All shards.
        dead_letters: File that names the cases left out, or None.
        version: Version of this layout.
        folder: Where the manifest lies; not in the JSON.
    """

    recipe: str
    plan: dict[str, typing.Any]
    schema: dict[str, typing.Any]
    splits: dict[str, dict[str, int]]
    shards: tuple[Shard, ...]
    dead_letters: str | None = None
    version: int = MANIFEST_VERSION
    folder: str = dataclasses.field(default=".", metadata={"json": False})

    @classmethod
    def load(cls, folder, verify=True, plan=None):
        """Reads and checks the manifest of a folder.

        Args:
            folder: Folder that holds `shards.json`; local, or one that `tf.io.gfile` opens.
            verify: Whether every shard's sha256 is checked.
            plan: `config.Plan` that the shards must have been made with, or None.

        Raises:
            CodedError: KUG-D01 without a manifest, KUG-D08 when it is not valid, KUG-D09 when it is
                of another version or plan, or a shard is missing or damaged.
        """
        folder = str(folder)
        path = _join(folder, MANIFEST)
        if not tf.io.gfile.exists(path):
            raise CodedError(
                "KUG-D01",
                path,
                "no such file",
                "a folder of shards",
                fix="unigan prepare study.json",
            )
        try:
            data = json.loads(tf.io.gfile.GFile(path).read())
        except ValueError as error:
            raise CodedError("KUG-D08", path, "text that is not JSON", "JSON") from error
        version = data.get("version") if isinstance(data, dict) else None
        if version != MANIFEST_VERSION:
            raise _stale(path, f"version {version}", f"version {MANIFEST_VERSION}")
        manifest = dataclasses.replace(from_dict(cls, data, path), folder=folder)
        manifest._check(path, verify, plan)
        return manifest

    def _check(self, path, verify, plan):
        own = Plan.from_dict(self.plan, f"{path}.plan")
        if own.recipe != self.recipe:
            raise _stale(
                path, "a plan that was edited after the shards were made", "their own plan"
            )
        if plan is not None and plan.recipe != self.recipe:
            ours, theirs = own.to_dict(), plan.to_dict()
            keys = ("modalities", "labels", "spacing", "nearest_axis")
            ours["channels"], theirs["channels"] = own.channels, plan.channels
            keys += ("channels",)
            differ = [f"{k} {ours[k]}" for k in keys if ours[k] != theirs[k]]
            wanted = [f"{k} {theirs[k]}" for k in keys if ours[k] != theirs[k]]
            raise _stale(path, f"shards of {', '.join(differ)}", ", ".join(wanted))
        for shard in self.shards if verify else ():
            name = _join(self.folder, shard.file)
            if not tf.io.gfile.exists(name):
                raise _stale(name, "no such shard", "all shards of the manifest")
            digest = sha256(name)
            if digest != shard.sha256:
                raise _stale(name, f"sha256 {digest[:12]}…", f"{shard.sha256[:12]}…")

    def save(self, folder):
        """Writes `shards.json` into a local folder atomically."""
        write_json(os.path.join(folder, MANIFEST), self)

    def to_dict(self):
        """The JSON object."""
        data = dataclasses.asdict(self)
        del data["folder"]
        return data

    def files(self, split, modality):
        """Paths of the shards of a split and modality, in order."""
        return [
            _join(self.folder, s.file)
            for s in self.shards
            if s.split == split and s.modality == modality
        ]


def _join(folder, name):
    return posixpath.join(folder, name) if "://" in folder else os.path.join(folder, name)


def _stale(where, found, expected):
    return CodedError(
        "KUG-D09",
        where,
        found,
        expected,
        "Training on records of another recipe or on damaged ones gives wrong results in silence.",
        "unigan prepare study.json -o SHARDS --resume",
    )


def sha256(path):
    """Hexadecimal sha256 of a file that `tf.io.gfile` opens."""
    digest = hashlib.sha256()
    with tf.io.gfile.GFile(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
