"""What a viewer shows: scans of a study, single files and dropped ones, and a model for them."""

import collections
import contextlib
import dataclasses
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from keras_unigan import inference
from keras_unigan.config import ALL_CHANNELS, IGNORE, Labels, Plan
from keras_unigan.data import nifti, preprocessing, volumes
from keras_unigan.errors import CodedError

COLOURS = ("#ff5a36", "#35c3ff", "#8ae234", "#ffd23f", "#c77dff", "#ff8fab", "#4be1c3")
"""Of the names of a study, in their order; then again from the first."""
KEPT = 8
"""Dropped scans that are kept, the newest ones."""

_LABEL_INTENT = 1002
_INTENT = {348: (68, 2), 540: (504, 4)}
"""Size of a NIfTI header, of version 1 or 2 -> place and bytes of its intent code."""


@dataclasses.dataclass(frozen=True)
class Model:
    """What segments.

    Attributes:
        name: What the page calls it.
        kind: "run", "exported" or "served".
        plan: `config.Plan`: modalities and labels.
        segment: Function of a path, a modality or None, the path of the output and a channel or
            None; writes what `prediction.predict` writes.
    """

    name: str
    kind: str
    plan: Plan
    segment: Callable


@dataclasses.dataclass(frozen=True)
class Entry:
    """One scan that can be shown.

    Attributes:
        name: What the page calls it.
        image: Local path.
        label: Path of its label map, or None.
        prediction: Path of a label map that some model has made of it, or None.
        modality: Lower-case name, or None where it is not known.
        split: Of a case of a study.
        channel: See `config.Case`.
        dropped: Whether it came through the page.
    """

    name: str
    image: str
    label: str | None = None
    prediction: str | None = None
    modality: str | None = None
    split: str | None = None
    channel: int | None = None
    dropped: bool = False


class Gallery:
    """Scans by number, their files as the page takes them, and predictions when asked for.

    Dropped scans and predictions lie in a temporary folder of this user until `close`.

    Args:
        entries: List of `Entry`.
        labels: `config.Labels` of the label maps, or None.
        model: `Model`, or None.
        channels: Numbers a voxel of every scan.
    """

    def __init__(self, entries=(), labels=None, model=None, channels=1):
        self.model, self.labels, self.channels = model, labels, channels
        self.entries = dict(enumerate(entries))
        self._next, self._dropped = len(self.entries), collections.deque()
        self._folder = tempfile.TemporaryDirectory(prefix="unigan_view_")
        self._state, self._work = threading.Lock(), threading.Lock()
        self._made: dict = {}

    def close(self):
        """Deletes what was dropped and predicted."""
        self._folder.cleanup()

    def __getitem__(self, number):
        """The entry of a number.

        Raises:
            CodedError: KUG-D01 for one that is not, or no longer, there.
        """
        try:
            return self.entries[number]
        except KeyError:
            raise CodedError(
                "KUG-D01",
                f"scan {number}",
                "none of that number",
                "one that the page lists",
                f"Only the last {KEPT} dropped scans are kept.",
                "drop the file again",
            ) from None

    def drop(self, name, data):
        """Adds a scan that came through the page.

        Args:
            name: Its file name, which says the kind.
            data: The whole file.

        Returns:
            Number of the entry.

        Raises:
            CodedError: As `data.volumes.read_image`.
        """
        name = Path(name.replace("\\", "/")).name or "scan"
        volume = self._from_bytes(name, data)
        preprocessing.check_image(volume, name)
        with self._state:
            number, self._next = self._next, self._next + 1
            folder = self._place(number)
            path = folder / f"scan{volumes.ending(name) or '.nii'}"
            path.write_bytes(data)
            self.entries[number] = Entry(name, str(path), dropped=True)
            self._dropped.append(number)
            if len(self._dropped) > KEPT:
                self._forget(self._dropped.popleft())
        return number

    def _from_bytes(self, name, data):
        if self.channels == 1:
            return volumes.read_bytes(data, name)
        volume = volumes.read_bytes(data, name, ALL_CHANNELS)
        volumes.check_channels(volume, self.channels, name)
        return volume

    def _place(self, number):
        folder = Path(self._folder.name, str(number))
        folder.mkdir(exist_ok=True)
        return folder

    def _forget(self, number):
        del self.entries[number]
        shutil.rmtree(self._place(number), ignore_errors=True)
        self._made = {key: path for key, path in self._made.items() if key[0] != number}

    def image(self, number):
        """Bytes of a `.nii` file with the scan, one number a voxel, in a type that browsers draw.

        Raises:
            CodedError: As `data.volumes.read_image`.
        """
        entry = self[number]
        with self._named(entry):
            volume = volumes.read_image(entry.image, self.channels, entry.channel)
        array = volume.array
        if array.ndim > 3:  # colours: their mean, as the report draws them
            array = array.astype(np.float32).mean(axis=-1)
        if array.dtype not in (np.uint8, np.int16, np.uint16, np.float32):
            array = array.astype(np.float32)
        return nifti.encode(array, volume)

    def label(self, number):
        """Bytes of a `.nii` file with the label map.

        Raises:
            CodedError: KUG-D02 where there is none, KUG-D05 for values that are no labels, and as
                `data.volumes.read`.
        """
        entry = self[number]
        if entry.label is None:
            raise CodedError("KUG-D02", entry.name, "no label map", "one")
        return _label_bytes(entry.label)

    def predict(self, number, modality=None):
        """Label map of a scan by the model; made once a modality.

        Args:
            number: Of the entry.
            modality: Name in the plan; None where it is not known.

        Returns:
            Dict: `seconds`, `made` (False where a file was there already) and `ml` (name ->
            millilitres, None where the scan does not say its spacing).

        Raises:
            CodedError: KUG-T04 without a model, and as `prediction.predict`.
        """
        entry, start = self[number], time.perf_counter()
        if self.model is None:
            raise CodedError(
                "KUG-T04",
                "viewer",
                "no model",
                "a run folder, an exported model or HOST:PORT/NAME",
                fix="unigan view RUN",
            )
        modality = inference.check_modality(self.model.plan, modality or None)
        key = number, modality
        with self._work:  # one at a time: each takes all cores
            made = key not in self._made
            if made:
                stem = volumes.stem(entry.name) or Path(entry.name).name
                target = self._place(number) / f"{modality or 'unknown'}" / f"{stem}_seg.nii.gz"
                with self._named(entry):
                    self.model.segment(entry.image, modality, target, entry.channel)
                self._made[key] = target
        seconds = round(time.perf_counter() - start, 2)
        found = self._volumes(self._made[key], self.model.plan.labels)
        return {"seconds": seconds, "made": made, "ml": found}

    def prediction(self, number, modality=None):
        """Path of a label map that `predict` has made, or of the one that the entry came with.

        Raises:
            CodedError: KUG-D01 where there is none.
        """
        entry = self[number]
        path = self._made.get((number, modality or None)) or entry.prediction
        if path is None:
            raise CodedError(
                "KUG-D01", entry.name, "no prediction", "one", fix="segment the scan first"
            )
        return Path(path)

    def prediction_bytes(self, number, modality=None):
        """Bytes of a `.nii` file with a prediction; see `prediction`."""
        return _label_bytes(self.prediction(number, modality))

    def _volumes(self, path, labels):
        volume = volumes.read(path)
        values = np.bincount(volume.array.astype(np.uint8).ravel(), minlength=IGNORE + 1)
        voxel = float(np.prod(volume.spacing)) / 1000 if volume.spacing_known else None
        shares = {n: sum(int(values[v]) for v in labels.file_values(n)) for n in labels.foreground}
        return {n: None if voxel is None else round(c * voxel, 3) for n, c in shares.items()}

    @contextlib.contextmanager
    def _named(self, entry):
        """Errors about a dropped scan name its file, not where we keep it."""
        try:
            yield
        except CodedError as error:
            if not entry.dropped:
                raise
            texts = [error.where, error.found, error.expected, error.why, error.fix]
            texts = [text.replace(entry.image, entry.name) for text in texts]
            raise CodedError(error.code, *texts) from error


def _label_bytes(path):
    """Bytes of a `.nii` file with a label map, whose header says that it is one: NiiVue asks.

    Raises:
        CodedError: KUG-D05 for values that are not whole numbers of 0 to 255.
    """
    volume = volumes.read(path)
    array = volume.array
    whole = np.zeros(array.shape, np.uint8)
    np.copyto(whole, array, where=(array >= 0) & (array <= IGNORE), casting="unsafe")
    if not np.array_equal(whole, array):
        raise CodedError(
            "KUG-D05", path, "values that are no labels", "whole numbers from 0 to 255"
        )
    data = bytearray(nifti.encode(whole, volume))
    place, size = _INTENT[int.from_bytes(data[:4], "little")]
    data[place : place + size] = _LABEL_INTENT.to_bytes(size, "little")
    return bytes(data)


def legend(labels):
    """Colour and name of each file value of label maps.

    Args:
        labels: `config.Labels`, or None where nobody has named the values.

    Returns:
        List of `{"value", "name", "colour"}`, by value. A value of several regions has the name of
        the innermost; values without a name have their number and a colour each.
    """
    if labels is None:
        names = {value: str(value) for value in range(1, IGNORE)}
        order = list(names)
    else:
        names = {v: n for n in labels.foreground for v in labels.file_values(n)}
        order = list(labels.foreground)
    colour = {
        value: COLOURS[order.index(value if labels is None else name) % len(COLOURS)]
        for value, name in names.items()
    }
    return [{"value": v, "name": names[v], "colour": colour[v]} for v in sorted(names)]


def labels_of(gallery):
    """Legends of label maps and of predictions; see `legend`."""
    model = gallery.model
    plan_labels: Labels | None = model.plan.labels if model else gallery.labels
    return {"label": legend(gallery.labels), "prediction": legend(plan_labels)}
