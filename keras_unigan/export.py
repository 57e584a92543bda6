"""Segmentor and plan to a SavedModel that takes raw intensities of any size.

Normalisation, padding, softmax and label map are inside the graph, by the layer that training used;
for whole volumes and NIfTI files also geometry and the sliding window. `exporting` holds the parts.
"""

from pathlib import Path

import keras
import tensorflow as tf

from keras_unigan.classification import classifying_function
from keras_unigan.errors import CodedError
from keras_unigan.exporting import cards, operations, requests, signatures, volumes
from keras_unigan.exporting.cards import CARD_FILE, NOTICE
from keras_unigan.exporting.signatures import SIGNATURES
from keras_unigan.layers import IntensityNormalization, segment_logits

__all__ = [
    "CARD_FILE",
    "NOTICE",
    "SIGNATURES",
    "example_inputs",
    "export",
    "full_precision",
    "model_card",
    "serving_function",
    "side_multiples",
    "synthesizing_function",
    "translating_function",
]


def serving_function(network, plan, multiples):
    """Raw images to what a server answers.

    Args:
        network: Segmentor that gives logits of normalised images.
        plan: `config.Plan` that it was trained with.
        multiples: `side_multiples(network)`.

    Returns:
        Function of image `(N, *spatial, C)` float32, domain `(N,)` int32 (-1 unknown) and
        statistics `(N, 4)` float32, of several channels `(N, C, 4)` (zeros: of the image itself),
        giving a dict of `probabilities` `(N, *spatial, outputs)` float32 and `label_map`
        `(N, *spatial)` uint8: the class index, or 0 and the regions painted in order as 1, 2, ...
        where they are above one half. Sides that the network cannot take are padded with -1, the
        darkest value, and cropped again.

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
        logits = _padded(lambda x: segment_logits(network, x, domain), normal, multiples, outputs)
        probabilities = tf.nn.sigmoid(logits) if labels.overlapping else tf.nn.softmax(logits)
        label_map = volumes.paint(probabilities, labels.overlapping)
        return {"probabilities": probabilities, "label_map": label_map}

    return run


def translating_function(network, plan, multiples):
    """Raw images to synthetic intensities of another modality; see `signatures.translation`.

    Args:
        network: Network with `translate(image, source, target)`.
        plan: `config.Plan` that it was trained with.
        multiples: `side_multiples(network)`.
    """

    def translate(image, source, target):
        def call(x):
            return network.translate(x, source, target, training=False)

        return _padded(call, image, multiples, network.channels)

    return signatures.translation(translate, plan, IntensityNormalization.from_plan(plan))


def _padded(call, image, multiples, outputs):
    """Calls a network on an image with sides that it can take; float32 of the image's own sides."""
    sides = tf.shape(image)[1:-1]
    missing = -sides % tf.constant(multiples)
    margins = tf.pad(tf.stack([tf.zeros_like(missing), missing], axis=1), [[1, 1], [0, 0]])
    result = tf.cast(call(tf.pad(image, margins, constant_values=-1.0)), tf.float32)
    begin = tf.zeros(len(multiples) + 2, tf.int32)
    result = tf.slice(result, begin, tf.concat([[-1], sides, [-1]], axis=0))
    return tf.ensure_shape(result, [None, *[None] * len(multiples), outputs])


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

    def call(x):
        domain = tf.constant([-1])
        if _only_translates(network):
            return network.translate(x, domain, tf.constant([0]), training=False)
        return segment_logits(network, x, domain)

    try:
        traced = tf.function(call).get_concrete_function(spec)
    except ValueError:
        return False
    return list(traced.structured_outputs.shape[1:-1]) == shape


def _only_translates(network):
    makes = hasattr(network, "translate") or hasattr(network, "sample")
    return makes and not hasattr(network, "segment")


def synthesizing_function(synthesizer, plan):
    """Seeds and domains to images and label maps; see `signatures.synthesis`.

    Args:
        synthesizer: `networks.MaskGenerator` and `networks.ImageRenderer`.
        plan: `config.Plan` that they were trained with.
    """
    return signatures.synthesis(*synthesizer, plan)


def model_card(
    network, plan, multiples, translator=None, facts=None, classifier=None, synthesizer=None
):
    """What a client needs and cannot read over the wire otherwise; see `exporting.cards`.

    Args:
        network: Segmentor.
        plan: Its `config.Plan`.
        multiples: `side_multiples(network)`.
        translator: Network with `translate`, or None.
        facts: What is known of the run; see `cards.facts_of_run`.
        classifier: Discriminator with a domain head, or None.
        synthesizer: Mask generator and renderer, or None.
    """
    model = signatures.Model(
        network, plan, None, translate=translator, classify=classifier, synthesize=synthesizer
    )
    names = {name: SIGNATURES[name][0] for name in signatures.of(model)}
    return cards.model_card(network, plan, multiples, names, facts)


def export(network, plan, folder, translator=None, facts=None, classifier=None, synthesizer=None):
    """Writes a SavedModel with the named signatures of `SIGNATURES` that the networks can serve.

    Args:
        network: Segmentor that gives logits of normalised images; 2-D or 3-D. Whatever its dtype
            policy, what is written works in float32.
        plan: `config.Plan` that it was trained with.
        folder: New folder.
        translator: Network with `translate`, for `translate`; None takes that of the segmentor,
            where it has one.
        facts: For the model card; see `cards.facts_of_run`.
        classifier: Discriminator with a domain head, for `classify_modality`.
        synthesizer: Mask generator and renderer, for `synthesize`.

    Returns:
        The model card, which is also in the folder's `assets.extra/`, with the ops of the graph.

    Raises:
        CodedError: KUG-T04 when the network does not fit the plan.
    """
    if _only_translates(network):
        raise CodedError(
            "KUG-T04",
            network.name,
            f"a {type(network).__name__}, which "
            + ("only translates" if hasattr(network, "translate") else "makes pairs from noise"),
            "a network that segments",
        )
    folder, network = Path(folder), full_precision(network)
    multiples = side_multiples(network)
    if translator is None and hasattr(network, "translate"):
        translator = network
    archive = keras.export.ExportArchive()
    archive.track(network)
    translate = None
    if translator is not None:
        own = translator is network
        translator = network if own else full_precision(translator)
        sides = multiples if own else side_multiples(translator)
        translate = translating_function(translator, plan, sides)
        if not own:
            archive.track(translator)
    classify = None
    if classifier is not None:
        classifier = full_precision(classifier)
        classify = classifying_function(classifier, plan)
        archive.track(classifier)
    synthesize = None
    if synthesizer is not None:
        synthesizer = [full_precision(own) for own in synthesizer]
        synthesize = synthesizing_function(synthesizer, plan)
        for own in synthesizer:
            archive.track(own)
    card = model_card(network, plan, multiples, translate, facts, classify, synthesize)
    run = _shared(serving_function(network, plan, multiples), network, plan)
    ways = translate, classify, synthesize
    model = signatures.Model(network, plan, run, cards.text(card), *ways)
    for name in signatures.of(model):
        function, specs = SIGNATURES[name][1](model)
        archive.add_endpoint(name, _plain(function), input_signature=specs)
    archive.write_out(str(folder), verbose=False)
    card["graph_def"] = operations.of_saved_model(folder)
    cards.write(folder, card)
    return card


def _shared(run, network, plan):
    """The function as one graph that all signatures call: traced once, and once in the file."""
    image = tf.TensorSpec([None] * (network.spatial_dims + 1) + [network.channels])
    row = tf.TensorSpec([None, *plan.statistics_shape])
    specs = [image, tf.TensorSpec([None], tf.int32), row]
    return volumes.traced(run, specs)


def _plain(function):
    """The function for ever as it is: its control flow is in ops already."""
    return tf.autograph.experimental.do_not_convert(function)


def example_inputs(network, plan, sides=None, names=None):
    """One synthetic request per signature, for warm-up and for checks; never data of a patient.

    Args:
        network: The exported network.
        plan: Its plan.
        sides: Spatial size; None takes the patch of the plan.
        names: Signatures; None takes those of a segmentor alone.

    Returns:
        Signature -> inputs (name -> array).
    """
    if names is None:
        names = signatures.of(signatures.Model(network, plan, None))
    return requests.example_inputs(plan, names, network.spatial_dims, sides)
