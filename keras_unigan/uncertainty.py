"""How sure a segmentation is, voxel by voxel: entropy of probabilities, and where members disagree.

Both are shares of the largest value that there can be, so that they compare between studies with
more and fewer classes: 0 is certain, 1 is a class as likely as any other.
"""

import numpy as np


def entropy(probabilities, overlapping=False):
    """Entropy of probabilities, as a share of the largest one.

    Classes: `-sum p log p / log K`. Regions are questions of their own: the mean over them of the
    entropy of "inside or not", in bits.

    Args:
        probabilities: `(..., outputs)`; of classes they add up to 1.
        overlapping: Whether outputs are regions.

    Returns:
        float32 `(...)` in 0..1.
    """
    p = np.asarray(probabilities, np.float32)
    if overlapping:
        return ((_information(p) + _information(1 - p)) / np.log(2)).mean(axis=-1)
    outputs = p.shape[-1]
    if outputs < 2:
        raise ValueError(f"Expected probabilities of two or more classes, got {outputs}.")
    return (_information(p).sum(axis=-1) / np.log(outputs)).astype(np.float32)


def _information(p):
    """`-p log p`, which is 0 at 0."""
    positive = p > 0
    return -p * np.log(p, where=positive, out=np.zeros_like(p))


def disagreement(mean, members, overlapping=False):
    """Part of the entropy that is there because members differ (Jensen-Shannon divergence).

    The entropy of the mean less the mean entropy of the members: 0 where all say the same, however
    unsure they are, and as large as the entropy of the mean where each is sure of something else.

    Args:
        mean: Mean probabilities of the members, `(..., outputs)`.
        members: Mean over members of each one's `entropy`, `(...)`.
        overlapping: As of `entropy`.

    Returns:
        float32 `(...)` in 0..1.

    Reference: Lakshminarayanan et al. 2017, Simple and scalable predictive uncertainty estimation
        using deep ensembles, arXiv:1612.01474, section 3.5.
    """
    return np.clip(entropy(mean, overlapping) - members, 0.0, 1.0).astype(np.float32)
