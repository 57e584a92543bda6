"""Losses between a segmentor's output and the truth, over annotated voxels only.

Every function gives one loss and one weight per sample, both `(batch,)` and float32: the loss is
the mean over what is annotated in that sample, the weight is 1 where there was something to average
over and 0 elsewhere (the loss is then 0). The loss of a batch is the mean over samples of weight 1;
a game takes it over the batch of all replicas (`AdversarialModel.average`), so that splitting a
batch does not change it.
"""

import keras

EPSILON = 1e-5


def soft_dice(target, probabilities, valid):
    """One minus soft Dice, mean over the outputs that the sample holds (methods §3.1, q = 1).

    Outputs absent from the sample's truth are left out: their Dice is 0 whatever is predicted.

    Args:
        target: `(batch, *spatial, outputs)`, 0 or 1.
        probabilities: The same shape, in [0, 1].
        valid: `(batch, *spatial)`, 1 where annotated.

    Returns:
        Loss and weight, each `(batch,)`.
    """
    target, probabilities, valid = _float32(target, probabilities, valid)
    axes = tuple(range(1, len(target.shape) - 1))
    valid = valid[..., None]
    target, probabilities = target * valid, probabilities * valid
    size = keras.ops.sum(target, axes)
    common = keras.ops.sum(target * probabilities, axes)
    dice = (2.0 * common + EPSILON) / (keras.ops.sum(probabilities, axes) + size + EPSILON)
    present = keras.ops.cast(size > 0, "float32")
    count = keras.ops.sum(present, axis=-1)
    loss = keras.ops.sum(present * (1.0 - dice), axis=-1) / keras.ops.maximum(count, 1.0)
    return loss, keras.ops.cast(count > 0, "float32")


def class_cross_entropy(target, logits, valid):
    """Softmax cross-entropy of exclusive classes, mean over the annotated voxels of each sample.

    Args:
        target: One-hot `(batch, *spatial, classes)`.
        logits: The same shape.
        valid: `(batch, *spatial)`, 1 where annotated.

    Returns:
        Loss and weight, each `(batch,)`.
    """
    target, logits, valid = _float32(target, logits, valid)
    voxels = -keras.ops.sum(target * keras.ops.log_softmax(logits, axis=-1), axis=-1)
    return _annotated_mean(voxels, valid)


def region_cross_entropy(target, logits, valid):
    """Sigmoid cross-entropy of overlapping regions, mean over regions and annotated voxels.

    Args:
        target: `(batch, *spatial, regions)`, 0 or 1.
        logits: The same shape.
        valid: `(batch, *spatial)`, 1 where annotated.

    Returns:
        Loss and weight, each `(batch,)`.
    """
    target, logits, valid = _float32(target, logits, valid)
    # log(1 + e^z) - y z, in the form that does not overflow.
    voxels = keras.ops.softplus(logits) - target * logits
    return _annotated_mean(keras.ops.mean(voxels, axis=-1), valid)


def _annotated_mean(voxels, valid):
    """Mean of `(batch, *spatial)` over the voxels where `valid` is 1, and the sample weight."""
    axes = tuple(range(1, len(voxels.shape)))
    count = keras.ops.sum(valid, axes)
    loss = keras.ops.sum(voxels * valid, axes) / keras.ops.maximum(count, 1.0)
    return loss, keras.ops.cast(count > 0, "float32")


def _float32(*tensors):
    """Losses are computed in float32 whatever the dtype policy."""
    return [keras.ops.cast(t, "float32") for t in tensors]
