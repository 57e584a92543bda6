"""Which modality an image is of, by the domain head of a discriminator.

The head was trained on images that were normalised by their modality, which is what is asked for
here. So the image is normalised as of each modality in turn, and each answer counts for that
modality only: how sure is the head of a modality once the image was treated as one of it.
"""

from pathlib import Path

import tensorflow as tf

from keras_unigan.config import read_json
from keras_unigan.layers import IntensityNormalization
from keras_unigan.systems import SYSTEMS


def load(folder):
    """Discriminator with a domain head, from the checkpoint of a run folder; None without one.

    Raises:
        CodedError: KUG-T04 for a folder of checkpoints without one.
    """
    from keras_unigan.training import transfer

    config = Path(folder) / "config.json"
    system = read_json(config).get("model") if config.is_file() else None
    if "discriminator" not in SYSTEMS.get(system, {}).get("networks", {}):
        return None
    found = transfer.checkpointed(Path(folder)) or {}
    return next((n for n in found.values() if getattr(n, "head", "") == "classify"), None)


def classifying_function(discriminator, plan):
    """Function of raw images `(N, *spatial, C)` giving scores `(N, M)` that add up to 1.

    Each image is normalised by its own statistics, and cut or filled up to the head's size about
    its centre.

    Args:
        discriminator: `networks.StarGANDiscriminator` with the head "classify".
        plan: `config.Plan` that it was trained with.

    Raises:
        ValueError: For a discriminator without a domain head.
    """
    if discriminator.head != "classify":
        raise ValueError(f'Expected the head "classify", got {discriminator.head!r}.')
    normalization = IntensityNormalization.from_plan(plan)

    def run(image):
        count = tf.shape(image)[0]
        statistics = tf.zeros([count, *plan.statistics_shape])
        own = []
        for domain in range(len(plan.modalities)):
            normal = normalization(image, tf.fill([count], domain), statistics)
            _, logits = discriminator(centred(normal, discriminator.patch_size), training=False)
            own.append(tf.nn.log_softmax(tf.cast(logits, tf.float32))[:, domain])
        return tf.nn.softmax(tf.stack(own, axis=1))

    return run


def centred(image, sides):
    """The middle of normalised images, filled up with -1, the darkest value."""
    found, wanted = tf.shape(image)[1:-1], tf.constant(sides)
    missing = tf.maximum(wanted - found, 0)
    margins = tf.stack([missing // 2, missing - missing // 2], axis=1)
    padded = tf.pad(image, tf.pad(margins, [[1, 1], [0, 0]]), constant_values=-1.0)
    begin = tf.maximum(found - wanted, 0) // 2
    part = tf.slice(padded, tf.pad(begin, [[1, 1]]), tf.concat([[-1], wanted, [-1]], axis=0))
    return tf.ensure_shape(part, [None, *sides, image.shape[-1]])
