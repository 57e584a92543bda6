"""Lesion-wise detection: connected components of the truth matched with those of a prediction."""

import dataclasses
import math

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse import csgraph

from keras_unigan.metrics.overlap import masks_of

OVERLAP = 0.1
"""IoU from which on two lesions are a match, unless told otherwise."""


@dataclasses.dataclass(frozen=True)
class LesionScores:
    """Counts of lesions in one case.

    Attributes:
        true: Lesions of the truth.
        predicted: Lesions of the prediction.
        found: Lesions of the truth that have a partner; as many of the prediction have one.
    """

    true: int
    predicted: int
    found: int

    @property
    def sensitivity(self):
        """Share of true lesions that were found; NaN where there is none."""
        return self.found / self.true if self.true else math.nan

    @property
    def precision(self):
        """Share of predicted lesions that are true; NaN where nothing is predicted."""
        return self.found / self.predicted if self.predicted else math.nan

    @property
    def f1(self):
        """Harmonic mean of both; NaN where neither truth nor prediction holds a lesion."""
        size = self.true + self.predicted
        return 2 * self.found / size if size else math.nan

    @property
    def false_positives(self):
        """Predicted lesions without a partner: 0 for a prediction of nothing, so no score alone."""
        return self.predicted - self.found


def lesion_scores(truth, prediction, overlap=OVERLAP):
    """Counts the lesions that were found.

    A lesion is a connected component; voxels that share a corner belong together. Lesions of truth
    and prediction are partners when their intersection over union reaches `overlap`, each with one
    partner at most, chosen so that as many as possible are found. So neither one blob over several
    lesions nor many crumbs of one count as more than one.

    Args:
        truth: Mask, `(x, y)` or `(x, y, z)`.
        prediction: Mask of the same shape.
        overlap: Least IoU of partners, above 0 up to 1.

    Returns:
        `LesionScores`.
    """
    if not 0 < overlap <= 1:
        raise ValueError(f"Expected overlap above 0 and up to 1, got {overlap}.")
    truth, prediction = masks_of(truth, prediction)
    corners = np.ones((3,) * truth.ndim, bool)
    true, predicted = (ndimage.label(mask, corners) for mask in (truth, prediction))
    return LesionScores(true[1], predicted[1], _partners(true[0], predicted[0], overlap))


def _partners(true, predicted, overlap):
    """Largest number of pairs of components whose IoU is enough."""
    both = (true > 0) & (predicted > 0)
    if not both.any():
        return 0
    pairs, common = np.unique(np.stack([true[both], predicted[both]]), axis=1, return_counts=True)
    sizes = np.bincount(true.ravel())[pairs[0]] + np.bincount(predicted.ravel())[pairs[1]]
    enough = pairs[:, common / (sizes - common) >= overlap]
    if not enough.size:
        return 0
    graph = sparse.coo_matrix((np.ones(enough.shape[1], bool), (enough[0], enough[1])))
    matching = csgraph.maximum_bipartite_matching(graph.tocsr(), perm_type="column")
    return int(np.count_nonzero(matching >= 0))
