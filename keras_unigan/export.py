"""Segmentor and plan to a SavedModel that takes raw intensities of any size.

Normalisation, padding, softmax and label map are inside the graph, by the layer that training used.
Each signature fixes the rank of its inputs first: a request of the wrong rank would otherwise abort
a stock TensorFlow Serving inside a convolution.
"""

import json
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import keras_unigan
from keras_unigan.config import write_json
from keras_unigan.errors import CodedError
from keras_unigan.layers import IntensityNormalization, segment_logits

NOTICE = "For research use only: not a medical device."
CARD_FILE = "assets.extra/model_card.json"


def serving_function(network, plan, multiples):
    """Raw images to what a server answers.

    Args:
        network: Segmentor that gives logits of normalised images.
        plan: `config.Plan` that it was trained with.
        multiples: `side_multiples(network)`.

    Returns:
        Function of image `(N, *spatial, C)` float32, domain `(N,)` int32 (-1 unknown) and
        statistics `(N, 4)` float32 (zeros: of the image itself), giving a dict of `probabilities`
        `(N, *spatial, outputs)` float32 and `label_map` `(N, *spatial)` uint8: the class index, or
        0 and the regions painted in order as 1, 2, ... where they are above one half. Sides that
        the network cannot take are padded with -1, the darkest value, and cropped again.

    Raises:
        CodedError: KUG-T04 when the network does not have one output per label.
    """
    labels, outputs = plan.labels, network.classes
    if outputs != len(labels.names):
        raise CodedError(
            "KUG-T04", network.name, f"{outputs} outputs", f"{len(labels.names)}: {labels.names}"
        )
    normalization = IntensityNormalization.from_plan(plan)

    def run(image, domain, statistics):
        normal = normalization(image, domain, statistics)
        sides = tf.shape(image)[1:-1]
        missing = -sides % tf.constant(multiples)
        margins = tf.pad(tf.stack([tf.zeros_like(missing), missing], axis=1), [[1, 1], [0, 0]])
        padded = tf.pad(normal, margins, constant_values=-1.0)
        logits = segment_logits(network, padded, domain)
        begin = tf.zeros(len(multiples) + 2, tf.int32)
        size = tf.concat([[-1], sides, [-1]], axis=0)
        logits = tf.slice(tf.cast(logits, tf.float32), begin, size)
        logits = tf.ensure_shape(logits, [None, *[None] * len(multiples), outputs])
        if labels.overlapping:
            probabilities = tf.nn.sigmoid(logits)
            label_map = tf.zeros_like(probabilities[..., 0], tf.uint8)
            for index in range(outputs):
                inside = probabilities[..., index] > 0.5
                label_map = tf.where(inside, tf.constant(index + 1, tf.uint8), label_map)
        else:
            probabilities = tf.nn.softmax(logits)
            label_map = tf.cast(tf.argmax(logits, axis=-1, output_type=tf.int32), tf.uint8)
        return {"probabilities": probabilities, "label_map": label_map}

    return run


def full_precision(network):
    """The network in float32 arithmetic, with the same weights.

    bfloat16 rounds differently in each graph that fuses other kernels, so one network would answer
    differently here and there. A `.keras` file loads as float32 too.
    """
    if all(layer.compute_dtype == "float32" for layer in network.layers):
        return network
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        result = type(network).from_config(network.get_config())
    finally:
        keras.config.set_dtype_policy(policy)
    result.set_weights(network.get_weights())
    return result


def side_multiples(network):
    """Numbers that divide the sides which a network takes, one per spatial axis.

    Found by tracing: three times a power of two fits only where every pooling of the axis comes out
    even.

    Raises:
        CodedError: KUG-T04 when no power of two up to 128 fits.
    """
    dims = network.spatial_dims
    found = []
    for axis in range(dims):
        for multiple in (2**power for power in range(8)):
            shape = [128] * dims
            shape[axis] = 3 * multiple
            if _takes(network, shape):
                found.append(multiple)
                break
        else:
            raise CodedError(
                "KUG-T04", network.name, f"no side that fits axis {axis}", "a multiple up to 128"
            )
    return tuple(found)


def _takes(network, shape):
    spec = tf.TensorSpec([1, *shape, network.channels])
    try:
        call = tf.function(lambda x: segment_logits(network, x, tf.constant([-1])))
        traced = call.get_concrete_function(spec)
    except ValueError:
        return False
    return list(traced.structured_outputs.shape[1:-1]) == shape


def model_card(network, plan, multiples):
    """What a client needs and cannot read over the wire otherwise; JSON-ready.

    It holds the whole plan, so that a client resamples, windows and names labels as training did.

    Args:
        network: Segmentor.
        plan: Its `config.Plan`.
        multiples: `side_multiples(network)`.
    """
    dims = network.spatial_dims
    labels = plan.labels
    return {
        "study": plan.study,
        "network": type(network).__name__,
        "spatial_dims": dims,
        "channels": network.channels,
        "labels": {
            "names": list(labels.names),
            "overlapping": labels.overlapping,
            "output_values": list(labels.output_values),
        },
        "modalities": list(plan.modalities),
        "modality_required": False,
        "spacing": list(plan.spacing),
        "nearest_axis": plan.nearest_axis,
        "patch_size": list(plan.configuration(dims).patch_size),
        "overlap": plan.overlap,
        "side_multiples": list(multiples),
        "orientation": "RAS+",
        "normalization": plan.to_dict()["normalization"],
        "signatures": {name: doc for name, (doc, _) in SIGNATURES.items()},
        "plan": plan.to_dict(),
        "graph_def": {
            "producer": tf.version.GRAPH_DEF_VERSION,
            "min_consumer": tf.version.GRAPH_DEF_VERSION_MIN_CONSUMER,
        },
        "versions": {
            "keras_unigan": keras_unigan.__version__,
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
        },
        "notice": NOTICE,
    }


def _guard(conditions, tensors):
    """Passes tensors on once the conditions hold; texts are constant, so no value can leak."""
    checks = [tf.debugging.Assert(condition, [text]) for condition, text in conditions]
    with tf.control_dependencies(checks):
        return [tf.identity(t) for t in tensors]


def _image_conditions(image):
    return [
        (tf.reduce_all(tf.shape(image) > 0), "image has an axis of size 0"),
        (tf.reduce_all(tf.math.is_finite(image)), "image holds NaN or infinite values"),
    ]


def _image_spec(network):
    shape = [None] * (network.spatial_dims + 1)
    return tf.TensorSpec([*shape, network.channels], tf.float32, name="image")


def _serving_default(network, plan, run, card):
    spec = _image_spec(network)

    def serving_default(image):
        image = tf.ensure_shape(image, spec.shape)
        (image,) = _guard(_image_conditions(image), [image])
        count = tf.shape(image)[0]
        return run(image, tf.fill([count], -1), tf.zeros([count, 4]))

    return serving_default, [spec]


def _segment(network, plan, run, card):
    spec = _image_spec(network)
    specs = [
        spec,
        tf.TensorSpec([None], tf.string, name="modality"),
        tf.TensorSpec([None, 4], tf.float32, name="statistics"),
    ]
    known = ", ".join(plan.modalities)

    def segment(image, modality, statistics):
        image = tf.ensure_shape(image, spec.shape)
        modality = tf.ensure_shape(modality, [None])
        statistics = tf.ensure_shape(statistics, [None, 4])
        names = tf.strings.lower(tf.strings.strip(modality))
        same = names[:, None] == tf.constant(plan.modalities)[None, :]
        found = tf.reduce_any(same, axis=1)
        count = tf.shape(image)[0]
        conditions = [
            *_image_conditions(image),
            (
                (tf.shape(modality)[0] == count) & (tf.shape(statistics)[0] == count),
                "image, modality and statistics differ in batch size",
            ),
            (
                tf.reduce_all(tf.math.is_finite(statistics)),
                "statistics hold NaN or infinite values",
            ),
            (
                tf.reduce_all(found | (names == "")),
                f"Unknown modality. Known: {known}; empty where it is not known",
            ),
        ]
        domain = tf.where(found, tf.argmax(same, axis=1, output_type=tf.int32), -1)
        image, domain, statistics = _guard(conditions, [image, domain, statistics])
        return run(image, domain, statistics)

    return segment, specs


def _describe(network, plan, run, card):
    text = json.dumps(card)

    def describe(request):
        request = tf.ensure_shape(request, [None])
        return {"model_card": tf.fill(tf.shape(request), text)}

    return describe, [tf.TensorSpec([None], tf.int64, name="request")]


# Signature -> (what it is for, maker of its function and input specs).
SIGNATURES = {
    "serving_default": ("raw image; normalised by its own statistics", _serving_default),
    "segment": ("raw patch, modality and statistics of its whole volume", _segment),
    "describe": ("this card", _describe),
}


def export(network, plan, folder):
    """Writes a SavedModel with the named signatures of `SIGNATURES`.

    Args:
        network: Segmentor that gives logits of normalised images; 2-D or 3-D. Whatever its dtype
            policy, what is written works in float32.
        plan: `config.Plan` that it was trained with.
        folder: New folder.

    Returns:
        The model card, which is also in the folder's `assets.extra/`.

    Raises:
        CodedError: KUG-T04 when the network does not fit the plan.
    """
    if hasattr(network, "translate") and not hasattr(network, "segment"):
        raise CodedError(
            "KUG-T04",
            network.name,
            f"a {type(network).__name__}, which only translates",
            "a network that segments",
        )
    folder, network = Path(folder), full_precision(network)
    multiples = side_multiples(network)
    card = model_card(network, plan, multiples)
    run = serving_function(network, plan, multiples)
    archive = keras.export.ExportArchive()
    archive.track(network)
    for name, (_, make) in SIGNATURES.items():
        function, specs = make(network, plan, run, card)
        archive.add_endpoint(name, function, input_signature=specs)
    archive.write_out(str(folder), verbose=False)
    write_json(folder / CARD_FILE, card)
    return card


def example_inputs(network, plan, sides=None):
    """One synthetic request per signature, for warm-up and for checks; never data of a patient.

    Args:
        network: The exported network.
        plan: Its plan.
        sides: Spatial size; None takes the patch of the plan.

    Returns:
        Signature -> inputs (name -> array).
    """
    dims = network.spatial_dims
    sides = tuple(sides or plan.configuration(dims).patch_size)
    shape = (1, *sides, network.channels)
    image = np.random.default_rng(0).uniform(0, 1000, shape).astype(np.float32)
    statistics = np.array([[500.0, 250.0, 5.0, 995.0]], np.float32)
    modality = np.array([plan.modalities[0].encode()], object)
    return {
        "serving_default": {"image": image},
        "segment": {"image": image, "modality": modality, "statistics": statistics},
        "describe": {"request": np.zeros(1, np.int64)},
    }
