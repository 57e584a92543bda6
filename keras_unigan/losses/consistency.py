"""Losses that compare features or images of two versions of one sample."""

import keras

# Factor of each level in the skin-lesion form, the input first; deeper levels repeat the last.
FLAT_FACTORS = (1.0, 1.0, 2.0, 2.0, 2.0, 2.0, 4.0)


def multi_scale_l1_level(first, second):
    """Mean over levels of the mean absolute difference (SegAN, eq. 3).

    Args:
        first: List of features, each `(batch, *spatial, channels)`.
        second: Features of the other version, same shapes.

    Returns:
        `(batch,)`, float32.
    """
    means = [_mean(abs(a - b)) for a, b in _pairs(first, second)]
    return sum(means) / len(means)


def multi_scale_l1_flat(first, second, factors=None):
    """Mean over all elements of all levels, each level times its factor (skin-lesion form).

    Args:
        first: List of features, each `(batch, *spatial, channels)`.
        second: Features of the other version, same shapes.
        factors: Factor of each level; None takes `FLAT_FACTORS` in order.

    Returns:
        `(batch,)`, float32.
    """
    pairs = _pairs(first, second)
    if factors is None:
        factors = [FLAT_FACTORS[min(i, len(FLAT_FACTORS) - 1)] for i in range(len(pairs))]
    total, elements = 0.0, 0.0
    for factor, (a, b) in zip(factors, pairs, strict=True):
        size = keras.ops.cast(_voxels(a) * a.shape[-1], "float32")
        total = total + factor * _mean(abs(a - b)) * size
        elements = elements + size
    return total / elements


def cycle(image, reconstruction):
    """Mean absolute difference of an image and its translation there and back.

    Args:
        image: `(batch, *spatial, channels)`.
        reconstruction: The same shape.

    Returns:
        Scalar, float32.

    Reference: Choi et al. 2018, StarGAN, arXiv:1711.09020, eq. 4.
    """
    (pair,) = _pairs([image], [reconstruction])
    return keras.ops.mean(abs(pair[0] - pair[1]))


def sample_cycle(image, reconstruction):
    """`cycle` of each sample, where samples count apart.

    Args:
        image: `(batch, *spatial, channels)`.
        reconstruction: The same shape.

    Returns:
        `(batch,)`, float32.
    """
    (pair,) = _pairs([image], [reconstruction])
    return _mean(abs(pair[0] - pair[1]))


def identity(image, same):
    """Mean absolute difference of an image and its translation to its own modality.

    Args:
        image: `(batch, *spatial, channels)`.
        same: The same shape.

    Returns:
        Scalar, float32.

    Reference: Zhu et al. 2017, CycleGAN, arXiv:1703.10593, §5.2.
    """
    return cycle(image, same)


def ramp(step, length):
    """Weight that grows in a straight line from 0 at the first step to 1 at step `length`.

    Args:
        step: Steps done so far, int or int tensor.
        length: Steps until 1; 0 gives 1 from the start.

    Returns:
        Scalar in [0, 1], float32.
    """
    step = keras.ops.cast(step, "float32")
    return keras.ops.clip(step / length, 0.0, 1.0) if length > 0 else keras.ops.ones_like(step)


def prototype_distillation(target, logits, valid, domain, domains, temperature=2.0):
    """How differently two modalities see one class, mean over pairs of modalities.

    The prototype of class k in modality a is the softmax of the mean logits over the voxels of k
    (by the labels) in the batch's images of a, at `temperature`. Two modalities differ by the mean
    of both Kullback-Leibler divergences, averaged over the classes present in both; classes that
    one of them lacks are left out, since their prototype would be a spurious uniform. Pairs without
    a common class are left out too; 0 where nothing is left.

    A statistic of the batch: splitting it over replicas changes the value.

    Args:
        target: One-hot `(batch, *spatial, classes)`.
        logits: The same shape.
        valid: `(batch, *spatial)`, 1 where annotated.
        domain: int `(batch,)`.
        domains: Number of modalities.
        temperature: Divisor of the logits.

    Returns:
        Scalar, float32.

    Reference: Dou et al. 2020, arXiv:2001.03111, eq. 2 to 4 (prototypes of logits here).
    """
    prototypes, present = _prototypes(target, logits, valid, domain, domains)
    log_q = keras.ops.log_softmax(prototypes / temperature, axis=-1)
    a, b = log_q[:, None], log_q[None]
    divergence = 0.5 * keras.ops.sum((keras.ops.exp(a) - keras.ops.exp(b)) * (a - b), axis=-1)
    return _mean_over_pairs(divergence, present)


def region_prototype_distillation(target, logits, valid, domain, domains, temperature=2.0):
    """`prototype_distillation` for overlapping regions.

    Regions do not compete, so a prototype holds one Bernoulli distribution per region, the sigmoid
    of its mean logit, and divergences are summed over them.

    Args:
        target: `(batch, *spatial, regions)`, 0 or 1.
        logits: The same shape.
        valid: `(batch, *spatial)`, 1 where annotated.
        domain: int `(batch,)`.
        domains: Number of modalities.
        temperature: Divisor of the logits.

    Returns:
        Scalar, float32.
    """
    prototypes, present = _prototypes(target, logits, valid, domain, domains)
    prototypes = prototypes / temperature
    a, b = prototypes[:, None], prototypes[None]
    # KL(p || q) + KL(q || p) = (p - q) (logit p - logit q) for two Bernoulli distributions.
    gap = (keras.ops.sigmoid(a) - keras.ops.sigmoid(b)) * (a - b)
    return _mean_over_pairs(0.5 * keras.ops.sum(gap, axis=-1), present)


def _prototypes(target, logits, valid, domain, domains):
    """Mean logits `(domains, outputs, outputs)` over the voxels of each output, and where any."""
    target, logits, valid = (keras.ops.cast(t, "float32") for t in (target, logits, valid))
    outputs = target.shape[-1]
    target = keras.ops.reshape(target * valid[..., None], (-1, _voxels(target), outputs))
    logits = keras.ops.reshape(logits, (-1, _voxels(logits), outputs))
    member = keras.ops.one_hot(domain, domains, dtype="float32")
    sums = keras.ops.einsum("bnk,bnc->bkc", target, logits)
    sums = keras.ops.einsum("bm,bkc->mkc", member, sums)
    count = keras.ops.matmul(keras.ops.transpose(member), keras.ops.sum(target, axis=1))
    return sums / keras.ops.maximum(count, 1.0)[..., None], keras.ops.cast(count > 0, "float32")


def _voxels(tensor):
    """Number of voxels of a sample."""
    size = 1
    for side in keras.ops.shape(tensor)[1:-1]:
        size = size * side
    return size


def _mean_over_pairs(divergence, present):
    """Mean of `(domains, domains, outputs)` over common outputs, then over pairs of domains."""
    common = present[:, None] * present[None]
    count = keras.ops.sum(common, axis=-1)
    pairs = keras.ops.sum(divergence * common, axis=-1) / keras.ops.maximum(count, 1.0)
    # Each pair once: the part above the diagonal.
    counted = keras.ops.triu(keras.ops.cast(count > 0, "float32"), k=1)
    return keras.ops.sum(pairs * counted) / keras.ops.maximum(keras.ops.sum(counted), 1.0)


def _pairs(first, second):
    """Levels side by side, in float32 whatever the dtype policy."""
    return [
        (keras.ops.cast(a, "float32"), keras.ops.cast(b, "float32"))
        for a, b in zip(first, second, strict=True)
    ]


def _mean(values):
    """Mean over all axes but the first."""
    return keras.ops.mean(values, axis=tuple(range(1, len(values.shape))))
