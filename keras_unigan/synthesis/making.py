"""Three ways to make an image and the label map that fits it."""

import dataclasses
from pathlib import Path

import numpy as np
import scipy.ndimage

from keras_unigan import inference, translation
from keras_unigan.config import Plan, read_json
from keras_unigan.data import preprocessing
from keras_unigan.data.windows import sliding_window
from keras_unigan.errors import CodedError
from keras_unigan.synthesis.sources import Sources

METHODS = ("translate", "deform", "noise")
"""translate: a labelled scan in another modality. deform: the label map of a scan, bent and painted
anew. noise: label map and image from nothing."""

_DARK = -0.98
"""Normalised intensity up to which a voxel that `gan` made without a label is background."""

_BEND = 0.03
"""Standard deviation of a deformation, as a share of the side of the image."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """An image and its label map.

    Attributes:
        image: float32 `(x, y, z)`, normalised to [-1, 1].
        inside: Mask of what is not background.
        label_map: uint8 indices.
        target: Modality.
        affine: Voxel index to RAS+ mm.
        source: Case that it was made of, or None.
        source_modality: Its modality, or None.
    """

    image: np.ndarray
    inside: np.ndarray
    label_map: np.ndarray
    target: str
    affine: np.ndarray
    source: str | None = None
    source_modality: str | None = None


class Maker:
    """Makes pairs by the networks of a run.

    Args:
        run: Run folder.
        method: One of `METHODS`; None takes "noise" where the run can, else "translate".
        shards: Folder of the shards whose training cases pairs are made of; None takes the run's.

    Raises:
        CodedError: KUG-T02 for a method that the run has no networks for, KUG-T04 for a folder
            without a run, and as `Sources`.
    """

    def __init__(self, run, method=None, shards=None):
        self.run, self.plan = Path(run), Plan.load(Path(run) / "plan.json")
        renders = (self.run / "renderer.keras").is_file()
        network = inference.load_network(run)
        # The network of `gan` makes image and masks by itself.
        self.pairs = network if hasattr(network, "sample") else None
        translates = translation.translates(run, network)
        methods = (*(["translate"] if translates else []), *(METHODS[1:] if renders else []))
        methods += ("noise",) if self.pairs else ()
        self.method = method or ("noise" if renders or self.pairs else "translate")
        if self.method not in methods:
            raise CodedError(
                "KUG-T02",
                "--method",
                self.method,
                f"one of {list(methods)}" if methods else "a run that makes images",
                f"{self.run} holds no network for it.",
                "unigan train SHARDS --model synthesis (deform, noise), --model gan (noise) or "
                "--model unigan (translate)",
            )
        self.translator = translation.load(run) if self.method == "translate" else None
        self.renderer = self.generator = None
        if self.method != "translate" and not self.pairs:
            self.renderer = inference.load_network(run, "renderer.keras")
        if self.method == "noise" and not self.pairs:
            self.generator = inference.load_network(run, "mask_generator.keras")
        self.shards = shards or read_json(self.run / "config.json")["shards"]
        self.sources = Sources(self.shards, self.plan)
        self.spatial_dims = (self.translator or self.renderer or self.pairs).spatial_dims

    def targets(self, to=None):
        """Modalities that images are made of, in turn.

        Args:
            to: One modality, or None for all that the networks make.

        Raises:
            CodedError: KUG-T03 for a modality that the plan does not have.
        """
        if to is not None:
            return [translation.check_target(self.plan, to)]
        if self.translator is None:
            return list(self.plan.modalities)
        return [m for m in self.plan.modalities if self.translator.serves(None, m)]

    def make(self, target, random):
        """One `Pair`.

        Args:
            target: Modality.
            random: `numpy.random.Generator`: the same state makes the same pair.
        """
        return getattr(self, f"_{self.method}")(target, random)

    def _drawn(self, random, without=None):
        """A labelled training case, of another modality than `without`."""
        numbers = [n for n, place in enumerate(self.sources.places) if place[1] != without]
        if without is not None:
            numbers = [
                n for n in numbers if self.translator.serves(self.sources.places[n][1], without)
            ]
        return self.sources.read(next(self.sources.labelled(random.permutation(numbers))))

    def _translate(self, target, random):
        source = self._drawn(random, without=target)
        inside = preprocessing.nonbackground(source.image)
        image = translation.translate_prepared(
            source.prepared,
            inside,
            self.plan,
            self.translator,
            source.modality,
            target,
            self.spatial_dims,
        )
        return Pair(
            image, inside, source.label_map, target, source.affine, source.case, source.modality
        )

    def _deform(self, target, random):
        import tensorflow as tf

        from keras_unigan import layers

        source = self._drawn(random)
        normalization = layers.IntensityNormalization.from_plan(self.plan)
        domain = self.plan.modalities.index(source.modality)
        # Slices or, in 3-D, the whole volume as the only one.
        slices = source.image if self.spatial_dims == 3 else np.moveaxis(source.image, 2, 0)
        slices = slices[None] if self.spatial_dims == 3 else slices
        images = slices[..., None] if self.plan.channels == 1 else slices
        count = len(images)
        rows = np.broadcast_to(source.statistics, (count, *self.plan.statistics_shape))
        images = normalization(
            images.astype(np.float32), np.full(count, domain, np.int32), rows.astype(np.float32)
        )
        label_map = np.where(source.label_map == 255, 0, source.label_map)
        label_map = label_map[None] if self.spatial_dims == 3 else np.moveaxis(label_map, 2, 0)
        table = np.array(self.plan.labels.membership, np.float32)
        planes = self.renderer.anatomy(images, tf.constant(table[label_map])).numpy()
        planes = planes[0] if self.spatial_dims == 3 else np.moveaxis(planes, 0, 2)
        planes = bent(planes, random)
        label_map = indices(planes[..., :-1], table)
        planes = np.concatenate([table[label_map], planes[..., -1:] > 0.5], axis=-1)
        image = self._rendered(planes.astype(np.float32), target, random)
        return Pair(
            image,
            planes[..., -1] > 0,
            label_map,
            target,
            source.affine,
            source.case,
            source.modality,
        )

    def _noise(self, target, random):
        seed = random.integers(0, 2**31, (1, 2))
        if self.pairs:
            return self._drawn_at_once(target, seed)
        planes = self.generator.sample(seed).numpy()[0]
        planes = planes[:, :, None] if self.spatial_dims == 2 else planes
        table = np.array(self.plan.labels.membership, np.float32)
        label_map = indices(planes[..., :-1], table)
        planes = np.concatenate([table[label_map], planes[..., -1:] > 0.5], axis=-1)
        image = self._rendered(planes.astype(np.float32), target, random)
        affine = np.diag([*self.plan.spacing, 1.0])
        return Pair(image, planes[..., -1] > 0, label_map, target, affine)

    def _drawn_at_once(self, target, seed):
        """A pair of `gan`: image and masks of one vector of noise."""
        import tensorflow as tf

        image, logits = self.pairs.sample(seed, [self.plan.modalities.index(target)])
        soft = tf.sigmoid(logits) if self.plan.labels.overlapping else tf.nn.softmax(logits)
        image, soft = image.numpy()[0], soft.numpy()[0]
        if self.spatial_dims == 2:
            image, soft = image[:, :, None], soft[:, :, None]
        label_map = indices(soft, np.array(self.plan.labels.membership, np.float32))
        inside = (image.max(axis=-1) > _DARK) | (label_map > 0)
        image = np.where(inside[..., None], image, np.float32(-1))
        if self.plan.channels == 1:
            # Of a stack, its own slice is the middle one.
            image = image[..., self.plan.configuration(self.spatial_dims).slices // 2]
        affine = np.diag([*self.plan.spacing, 1.0])
        return Pair(image, inside, label_map, target, affine)

    def _rendered(self, planes, target, random):
        """Image of a whole anatomy `(x, y, z, planes)`, `(x, y, z)` in [-1, 1]."""
        chosen = self.plan.configuration(self.spatial_dims)
        grain = random.standard_normal(planes.shape[:3])
        if self.spatial_dims == 2 and grain.shape[2] > 1:
            # Neighbouring slices of tissue are alike.
            grain = scipy.ndimage.gaussian_filter1d(grain, 2.0, axis=2)
            grain /= grain.std()
        # Nothing lies around the body, while windows are filled up with the least value.
        shown = np.concatenate([planes, grain[..., None]], axis=-1).astype(np.float32)
        window = (*chosen.patch_size, 1)[:3]
        shape = shown.shape[:3]
        more = [(0, max(w - n, 0)) for n, w in zip(shape, window, strict=True)]
        shown = np.pad(shown, [*more, (0, 0)])
        style = self.renderer.style(random.integers(0, 2**31, (1, 2))).numpy()
        number = self.plan.modalities.index(target)

        def paint(patches):
            count = len(patches)
            return self.renderer.paint(
                patches[..., :-1],
                patches[..., -1:],
                np.full(count, number, np.int32),
                np.repeat(style, count, axis=0),
            )

        image = sliding_window(shown, paint, chosen.patch_size, self.plan.overlap)
        image = image[tuple(slice(0, side) for side in shape)]
        # Of a stack, its own slice is the middle one.
        image = image[..., chosen.slices // 2] if self.plan.channels == 1 else image
        inside = planes[..., -1] > 0
        inside = inside[..., None] if image.ndim > 3 else inside
        return np.where(inside, image.clip(-1, 1), np.float32(-1))


def bent(planes, random):
    """Planes `(x, y, z, channels)` under a smooth random deformation of the axes of 4 or more."""
    shape = planes.shape[:3]
    moves = []
    for side in shape:
        if min(shape[:2]) < 4 or side < 4:
            moves.append(np.zeros(shape))
            continue
        field = scipy.ndimage.gaussian_filter(
            random.standard_normal(shape), [max(n / 8, 0.5) for n in shape]
        )
        moves.append(field / max(field.std(), 1e-6) * _BEND * side)
    places = [grid + move for grid, move in zip(np.indices(shape), moves, strict=True)]
    return np.stack(
        [
            scipy.ndimage.map_coordinates(plane, places, order=1)
            for plane in np.moveaxis(planes, -1, 0)
        ],
        axis=-1,
    )


def indices(values, table):
    """Label-map indices whose targets are nearest to soft planes, uint8.

    Args:
        values: `(x, y, z, outputs)` in [0, 1].
        table: Targets of each index, `(indices, outputs)`.
    """
    distances = np.stack([((values - row) ** 2).sum(-1) for row in table], axis=-1)
    return np.argmin(distances, axis=-1).astype(np.uint8)
