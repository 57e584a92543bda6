"""Losses between a segmentor's output and the truth, over annotated voxels only.

Every function gives one loss and one weight per sample, both `(batch,)` and float32: the loss is
the mean over what is annotated in that sample, the weight is 1 where there was something to average
over and 0 elsewhere (the loss is then 0). The loss of a batch is the weighted mean over samples; a
game takes it over the batch of all replicas (`AdversarialModel.average`), so that splitting a batch
does not change it.
"""

import keras

EPSILON = 1e-5
NEVER = -1e9
"""Logit of what cannot be: its probability is 0 in float32, and it has no gradient."""


def marginal_logits(logits, annotated):
    """Logits of exclusive classes where the background is all that may be one.

    Their softmax has the probability of the background and of all classes that were not annotated
    in place of the background's, and 0 in place of theirs. Cross-entropy and Dice of that against a
    label map without those classes are the marginal cross-entropy and Dice.

    Args:
        logits: `(batch, *spatial, classes)`, the background first.
        annotated: `(batch, classes - 1)`, 1 for the foreground classes that the sample's label map
            shows, 0 for those that may be anywhere in its background.

    Returns:
        The same shape, float32; the logits themselves where all is annotated.

    Reference: Shi et al. 2021, Marginal loss and exclusion loss for partially supervised
    multi-organ segmentation, arXiv:2007.03868; Fidon et al. 2021, Label-set loss functions
    for partial supervision, arXiv:2107.03846.
    """
    logits, annotated = _float32(logits, annotated)
    shape = (-1, *[1] * (len(logits.shape) - 2), annotated.shape[-1])
    own = keras.ops.reshape(annotated, shape) > 0
    background, rest = logits[..., :1], logits[..., 1:]
    inside = keras.ops.concatenate([background, keras.ops.where(own, NEVER, rest)], axis=-1)
    background = keras.ops.logsumexp(inside, axis=-1, keepdims=True)
    return keras.ops.concatenate([background, keras.ops.where(own, rest, NEVER)], axis=-1)


def soft_dice(target, probabilities, valid, power=1):
    """One minus soft Dice, mean over the outputs that the sample holds (methods §3.1).

    Outputs absent from the sample's truth are left out: their Dice is 0 whatever is predicted.

    Args:
        target: `(batch, *spatial, outputs)`, 0 or 1.
        probabilities: The same shape, in [0, 1].
        valid: `(batch, *spatial)`, 1 where annotated.
        power: Exponent of the probabilities in the denominator: 1, or 2 (Milletari et al. 2016,
            V-Net, arXiv:1606.04797).

    Returns:
        Loss and weight, each `(batch,)`.
    """
    common, predicted, size = _overlap(target, probabilities, valid, power)
    return _dice_of_present(common, predicted, size)


def pooled_dice(target, probabilities, valid, power=1):
    """As `soft_dice`, of the whole batch as if it were one sample.

    Steadier where most samples hold little of a class. A statistic of the batch: splitting it over
    replicas changes the value.

    Args:
        target: `(batch, *spatial, outputs)`, 0 or 1.
        probabilities: The same shape, in [0, 1].
        valid: `(batch, *spatial)`, 1 where annotated.
        power: As in `soft_dice`.

    Returns:
        Loss and weight, each `(1,)`.
    """
    parts = _overlap(target, probabilities, valid, power)
    return _dice_of_present(*(keras.ops.sum(part, axis=0, keepdims=True) for part in parts))


def focal_tversky(target, probabilities, valid, alpha=0.7, beta=0.3, gamma=4 / 3):
    """`(1 - T)^(1 / gamma)`, `T` the Tversky index, mean over the outputs that the sample holds.

    `T = TP / (TP + alpha FN + beta FP)` of soft counts: with `alpha > beta` a missed voxel costs
    more than a false one, and `gamma > 1` keeps the slope of outputs that are nearly right.

    Args:
        target: `(batch, *spatial, outputs)`, 0 or 1.
        probabilities: The same shape, in [0, 1].
        valid: `(batch, *spatial)`, 1 where annotated.
        alpha: Weight of missed voxels.
        beta: Weight of false voxels.
        gamma: Inverse of the exponent.

    Returns:
        Loss and weight, each `(batch,)`.

    Reference: Abraham & Khan 2019, arXiv:1810.07842, eq. 3 and 4.
    """
    common, predicted, size = _overlap(target, probabilities, valid, 1)
    wrong = alpha * (size - common) + beta * (predicted - common)
    missing = keras.ops.maximum(wrong / (common + wrong + EPSILON), 0.0)
    # Shifted by a little, because the power has no finite slope at 0.
    return _mean_of_present((missing + EPSILON) ** (1 / gamma) - EPSILON ** (1 / gamma), size)


def class_cross_entropy(target, logits, valid, class_weights=None):
    """Softmax cross-entropy of exclusive classes, mean over the annotated voxels of each sample.

    Args:
        target: One-hot `(batch, *spatial, classes)`.
        logits: The same shape.
        valid: `(batch, *spatial)`, 1 where annotated.
        class_weights: One number per class, the weight of its voxels in the mean; None counts all
            the same. The weight of a sample is then the sum over its voxels, so that the mean over
            samples is the weighted mean over the voxels of the batch.

    Returns:
        Loss and weight, each `(batch,)`.
    """
    target, logits, valid = _float32(target, logits, valid)
    voxels = -keras.ops.sum(target * keras.ops.log_softmax(logits, axis=-1), axis=-1)
    if class_weights is None:
        return _annotated_mean(voxels, valid)
    table = keras.ops.convert_to_tensor(class_weights, "float32")
    valid = valid * keras.ops.sum(target * table, axis=-1)
    loss, _ = _annotated_mean(voxels, valid)
    return loss, keras.ops.sum(valid, axis=tuple(range(1, len(valid.shape))))


def region_cross_entropy(target, logits, valid, annotated=None):
    """Sigmoid cross-entropy of overlapping regions, mean over annotated regions and voxels.

    Args:
        target: `(batch, *spatial, regions)`, 0 or 1.
        logits: The same shape.
        valid: `(batch, *spatial)`, 1 where annotated.
        annotated: `(batch, regions)`, 1 for those that the sample's label map shows; None for all.

    Returns:
        Loss and weight, each `(batch,)`.
    """
    target, logits, valid = _float32(target, logits, valid)
    # log(1 + e^z) - y z, in the form that does not overflow.
    voxels = keras.ops.softplus(logits) - target * logits
    if annotated is None:
        return _annotated_mean(keras.ops.mean(voxels, axis=-1), valid)
    axes = (-1, *[1] * (len(valid.shape) - 1))
    (annotated,) = _float32(annotated)
    count = keras.ops.sum(annotated, axis=-1)
    share = annotated / keras.ops.maximum(count, 1.0)[:, None]
    voxels = keras.ops.sum(voxels * keras.ops.reshape(share, (*axes, share.shape[-1])), axis=-1)
    some = keras.ops.cast(count > 0, "float32")
    return _annotated_mean(voxels, valid * keras.ops.reshape(some, axes))


def _overlap(target, probabilities, valid, power):
    """Sums over voxels of `p y`, `p^power` and `y`, each `(batch, outputs)`."""
    target, probabilities, valid = _float32(target, probabilities, valid)
    axes = tuple(range(1, len(target.shape) - 1))
    valid = valid[..., None]
    target, probabilities = target * valid, probabilities * valid
    common = keras.ops.sum(target * probabilities, axes)
    return common, keras.ops.sum(probabilities**power, axes), keras.ops.sum(target, axes)


def _dice_of_present(common, predicted, size):
    """One minus Dice of the sums of `_overlap`."""
    return _mean_of_present(1.0 - (2.0 * common + EPSILON) / (predicted + size + EPSILON), size)


def _mean_of_present(losses, size):
    """Mean of `(batch, outputs)` over the outputs of any size, and the sample weight."""
    present = keras.ops.cast(size > 0, "float32")
    count = keras.ops.sum(present, axis=-1)
    loss = keras.ops.sum(present * losses, axis=-1) / keras.ops.maximum(count, 1.0)
    return loss, keras.ops.cast(count > 0, "float32")


def _annotated_mean(voxels, valid):
    """Mean of `(batch, *spatial)` with the weights `valid`, and the sample weight."""
    axes = tuple(range(1, len(voxels.shape)))
    count = keras.ops.sum(valid, axes)
    loss = keras.ops.sum(voxels * valid, axes) / keras.ops.where(count > 0, count, 1.0)
    return loss, keras.ops.cast(count > 0, "float32")


def _float32(*tensors):
    """Losses are computed in float32 whatever the dtype policy."""
    return [keras.ops.cast(t, "float32") for t in tensors]
