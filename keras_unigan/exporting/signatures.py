"""Signatures of an exported model: named inputs and outputs, each guarded.

Every function fixes the rank of its inputs first: stock TensorFlow Serving compares nothing with
the signature, and a request of the wrong rank would abort its process inside a convolution. Every
output has the batch first and a type that REST can carry.
"""

import dataclasses
import functools
import typing

import numpy as np
import tensorflow as tf

from keras_unigan.data import records
from keras_unigan.exporting import volumes
from keras_unigan.exporting.volumes import require
from keras_unigan.translation import background, intensity_range


@dataclasses.dataclass(frozen=True)
class Model:
    """What signatures are made of.

    Attributes:
        network: Segmentor in float32.
        plan: Its `config.Plan`.
        run: Function of images, domains and statistics; see `export.serving_function`.
        card: Text of the model card.
        translate: Function of images, sources and targets giving intensities, or None.
        classify: Function of images giving a score of each modality, or None.
        synthesize: Function of seeds and domains giving `image` and `label_map`, or None.
    """

    network: typing.Any
    plan: typing.Any
    run: typing.Callable
    card: str = ""
    translate: typing.Callable | None = None
    classify: typing.Callable | None = None
    synthesize: typing.Callable | None = None

    @property
    def one_channel(self):
        """Whether a voxel is one number, so that a volume is one array."""
        return self.plan.channels == 1

    @property
    def row(self):
        """Shape of the statistics of one image."""
        return self.plan.statistics_shape

    @property
    def image(self):
        """Spec of the input `image`."""
        shape = [None] * (self.network.spatial_dims + 1)
        return tf.TensorSpec([*shape, self.network.channels], tf.float32, name="image")

    @functools.cached_property
    def segmenter(self):
        """`volumes.Segmenter` of the network."""
        return volumes.Segmenter(
            self.plan,
            self.network.spatial_dims,
            lambda *x: self.run(*x)["probabilities"],
            self.network.classes,
        )

    @property
    def file_values(self):
        """Value in files of each index of a label map."""
        values = list(self.plan.labels.output_values)
        return [0, *values] if self.plan.labels.overlapping else values

    def domains(self, names, count, what="modality", unknown=True):
        """Domain of each name, int32 `(N,)`; -1 for an empty one where that is allowed.

        Args:
            names: string `(N,)`.
            count: N of the other inputs.
            what: Name of the input.
            unknown: Whether a name may be empty.
        """
        known = tf.constant(self.plan.modalities)
        names = require(
            tf.equal(tf.size(names), count), f"{what} differs from the rest in batch size", names
        )
        names = tf.strings.lower(tf.strings.strip(names))
        same = tf.equal(names[:, None], known[None, :])
        found = tf.reduce_any(same, axis=1)
        text = f"Unknown {what}. Known: {', '.join(self.plan.modalities)}"
        allowed = found
        if unknown:
            text, allowed = f"{text}; empty where it is not known", found | tf.equal(names, "")
        domain = tf.where(found, tf.argmax(same, axis=1, output_type=tf.int32), -1)
        return require(tf.reduce_all(allowed), text, domain)


def _strings(name):
    return tf.TensorSpec([None], tf.string, name=name)


def _checked_image(model, image):
    image = tf.ensure_shape(image, model.image.shape)
    full = tf.reduce_all(tf.shape(image) > 0)
    image = require(full, "image has an axis of size 0", image)
    finite = tf.reduce_all(tf.math.is_finite(image))
    return require(finite, "image holds NaN or infinite values", image)


def _some(tensor, name):
    return require(tf.size(tensor) > 0, f"{name} is empty", tensor)


def _serving_default(model):
    def serving_default(image):
        image = _checked_image(model, image)
        count = tf.shape(image)[0]
        return model.run(image, tf.fill([count], -1), tf.zeros([count, *model.row]))

    return serving_default, [model.image]


def _segment(model):
    specs = [
        model.image,
        _strings("modality"),
        tf.TensorSpec([None, *model.row], tf.float32, name="statistics"),
    ]

    def segment(image, modality, statistics):
        image = _checked_image(model, image)
        count = tf.shape(image)[0]
        modality = tf.ensure_shape(modality, [None])
        statistics = tf.ensure_shape(statistics, [None, *model.row])
        same = tf.equal(tf.shape(statistics)[0], count)
        statistics = require(same, "statistics differ from the rest in batch size", statistics)
        finite = tf.reduce_all(tf.math.is_finite(statistics))
        statistics = require(finite, "statistics hold NaN or infinite values", statistics)
        return model.run(image, model.domains(modality, count), statistics)

    return segment, specs


def _describe(model):
    def describe(request):
        request = tf.ensure_shape(request, [None])
        return {"model_card": tf.fill(tf.shape(request), model.card)}

    return describe, [tf.TensorSpec([None], tf.int64, name="request")]


def _segment_volume(model):
    specs = [
        tf.TensorSpec([None] * 4, tf.float32, name="volume"),
        tf.TensorSpec([None, 3], tf.float32, name="spacing"),
        _strings("modality"),
    ]

    def segment_volume(volume, spacing, modality):
        volume = _some(tf.ensure_shape(volume, [None] * 4), "volume")
        spacing = tf.ensure_shape(spacing, [None, 3])
        modality = tf.ensure_shape(modality, [None])
        count = tf.shape(volume)[0]
        same = tf.equal(tf.shape(spacing)[0], count)
        spacing = require(same, "spacing differs from the rest in batch size", spacing)
        found = tf.map_fn(
            lambda row: volumes.segment_array(model.segmenter, *row),
            (volume, spacing, model.domains(modality, count)),
            fn_output_signature=tf.TensorSpec([None] * 3, tf.uint8),
            parallel_iterations=1,
        )
        return {"label_map": found}

    return segment_volume, specs


def _segment_nifti(model):
    def segment_nifti(nifti_bytes, modality):
        nifti_bytes = _some(tf.ensure_shape(nifti_bytes, [None]), "nifti_bytes")
        modality = tf.ensure_shape(modality, [None])
        domain = model.domains(modality, tf.size(nifti_bytes))
        found = tf.map_fn(
            lambda row: volumes.segment_file(model.segmenter, *row, model.file_values),
            (nifti_bytes, domain),
            fn_output_signature=tf.TensorSpec([], tf.string),
            parallel_iterations=1,
        )
        return {"label_map_nifti_bytes": found}

    return segment_nifti, [_strings("nifti_bytes"), _strings("modality")]


def _serve_examples(model):
    free = tf.TensorSpec([None, None, None, model.network.classes], tf.float32)

    def one(example):
        record = records.parse(example)
        image = volumes.require(
            tf.reduce_all(tf.math.is_finite(record["image"])),
            "image holds NaN or infinite values",
            record["image"],
        )
        image = _some(image, "image")
        domain = model.domains(record["modality"][None], 1)[0]
        return model.segmenter.windows(image, domain, record["statistics"])

    def serve_examples(examples):
        examples = _some(tf.ensure_shape(examples, [None]), "examples")
        found = tf.map_fn(one, examples, fn_output_signature=free, parallel_iterations=1)
        label_map = volumes.paint(found, model.plan.labels.overlapping)
        return {"probabilities": found, "label_map": label_map}

    return serve_examples, [_strings("examples")]


def _translate(model):
    def translate(image, modality, target):
        image = _checked_image(model, image)
        count = tf.shape(image)[0]
        source = model.domains(tf.ensure_shape(modality, [None]), count)
        wanted = model.domains(tf.ensure_shape(target, [None]), count, "target", unknown=False)
        return {"translated": model.translate(image, source, wanted)}

    return translate, [model.image, _strings("modality"), _strings("target")]


def _classify_modality(model):
    names = tf.constant(model.plan.modalities)

    def classify_modality(image):
        scores = model.classify(_checked_image(model, image))
        return {"scores": scores, "modality": tf.gather(names, tf.argmax(scores, axis=1))}

    return classify_modality, [model.image]


def _synthesize(model):
    def synthesize(seed, modality):
        seed = _some(tf.ensure_shape(seed, [None, 2]), "seed")
        modality = tf.ensure_shape(modality, [None])
        domain = model.domains(modality, tf.shape(seed)[0], unknown=False)
        return model.synthesize(seed, domain)

    return synthesize, [tf.TensorSpec([None, 2], tf.int64, name="seed"), _strings("modality")]


def synthesis(generator, renderer, plan):
    """Function of seeds `(N, 2)` and domains `(N,)` giving images and their label maps.

    As `synthesis.Maker` for the method "noise": the most fitting label of each voxel of the drawn
    anatomy, painted in the asked modality, in `translation.intensity_range`.

    Args:
        generator: `networks.MaskGenerator`.
        renderer: `networks.ImageRenderer`.
        plan: `config.Plan`.
    """
    table = tf.constant(plan.labels.membership, tf.float32)
    low, high = _ranges(plan)
    dark = [background(plan.normalization[m]) for m in plan.modalities]
    dark = tf.constant([np.atleast_1d(value) for value in dark], tf.float32)

    def run(seed, domain):
        planes = tf.cast(generator.sample(seed), tf.float32)
        distances = tf.reduce_sum((planes[..., None, :-1] - table) ** 2, axis=-1)
        index = tf.argmin(distances, axis=-1, output_type=tf.int32)
        inside = tf.cast(planes[..., -1:] > 0.5, tf.float32)
        planes = tf.concat([tf.gather(table, index), inside], axis=-1)
        made = tf.clip_by_value(renderer.render(planes, domain, seed), -1.0, 1.0)
        shape = [-1, *[1] * (len(planes.shape) - 2), low.shape[1]]
        begin, end, outside = (tf.reshape(tf.gather(x, domain), shape) for x in (low, high, dark))
        image = tf.where(inside > 0, begin + (made + 1.0) / 2.0 * (end - begin), outside)
        return {"image": image, "label_map": tf.cast(index, tf.uint8)}

    return run


def _ranges(plan):
    """Raw intensities that -1 and 1 become, each `(modalities, channels or 1)`."""
    ranges = [intensity_range(plan.normalization[m]) for m in plan.modalities]
    return (
        tf.constant([np.atleast_1d(end) for end in ends], tf.float32)
        for ends in zip(*ranges, strict=True)
    )


def translation(network, plan, normalization):
    """Function of images, sources and targets (domains) giving intensities of the target.

    As `translation.translate` for a patch by itself: normalised by its own statistics, clipped to
    [-1, 1], and brought to `translation.intensity_range`.

    Args:
        network: Padded network; function of normalised images, sources and targets.
        plan: `config.Plan`.
        normalization: `layers.IntensityNormalization`.
    """
    low, high = _ranges(plan)

    def run(image, source, target):
        zeros = tf.zeros([tf.shape(image)[0], *plan.statistics_shape])
        normal = normalization(image, source, zeros)
        made = tf.clip_by_value(network(normal, source, target), -1.0, 1.0)
        made = require(
            tf.reduce_all(tf.math.is_finite(made)),
            "This model does not translate between these modalities",
            made,
        )
        shape = [-1, *[1] * (len(image.shape) - 2), low.shape[1]]
        begin, end = (tf.reshape(tf.gather(x, target), shape) for x in (low, high))
        return begin + (made + 1.0) / 2.0 * (end - begin)

    return run


# Signature -> (what it is for, maker of its function and input specs, whether a model has it).
SIGNATURES = {
    "serving_default": (
        "raw image; normalised by its own statistics",
        _serving_default,
        lambda model: True,
    ),
    "segment": (
        "raw patch, modality and statistics of its whole volume",
        _segment,
        lambda model: True,
    ),
    "describe": ("this card", _describe, lambda model: True),
    "segment_volume": (
        "raw RAS+ volume of any size, its spacing and modality; label map of indices",
        _segment_volume,
        lambda model: model.one_channel,
    ),
    "segment_nifti": (
        "bytes of a .nii or .nii.gz; bytes of a label map with the study's own values",
        _segment_nifti,
        lambda model: model.one_channel,
    ),
    "serve_examples": (
        "serialized tf.Example as `unigan prepare` writes them, all of one size",
        _serve_examples,
        lambda model: model.one_channel,
    ),
    "translate": (
        "raw image, its modality and the one to translate to; synthetic intensities",
        _translate,
        lambda model: model.translate is not None,
    ),
    "classify_modality": (
        "raw image; a score of each modality of the card, and the likeliest",
        _classify_modality,
        lambda model: model.classify is not None,
    ),
    "synthesize": (
        "two whole numbers and a modality; a synthetic image and its label map of indices",
        _synthesize,
        lambda model: model.synthesize is not None,
    ),
}


def of(model):
    """Names of the signatures that a model has."""
    return [name for name, (_, _, has) in SIGNATURES.items() if has(model)]
