"""What the label maps of a batch say, and the losses of logits against it."""

import tensorflow as tf

from keras_unigan.config import IGNORE
from keras_unigan.losses import (
    class_cross_entropy,
    marginal_logits,
    prototype_distillation,
    region_cross_entropy,
    region_prototype_distillation,
    soft_dice,
)


class Annotation:
    """Truth of a batch and the terms of a segmentation, over annotated voxels, classes and samples.

    Everywhere, `annotated` is float32 `(batch, names)`, 1 for the names of `plan.labels.foreground`
    that the sample's label map shows, and None where all label maps show all. Of exclusive classes
    the others may be anywhere in what a label map calls background: there the game asks for
    "background or one of them" (`losses.marginal_logits`). Of regions the others are left out.
    """

    def target(self, label_map, annotated=None):
        """Truth of every output, and where it is known.

        Args:
            label_map: `(batch, *spatial)` label indices, 255 where not annotated.
            annotated: See the class. What a label map says of other names plays no part.

        Returns:
            Target `(batch, *spatial, outputs)` and mask `(batch, *spatial)`, float32; the target is
            0 where not annotated, and in every output that was not.
        """
        valid = label_map != IGNORE
        table = tf.constant(self.plan.labels.membership, "float32")
        index = tf.where(valid, tf.cast(label_map, "int32"), 0)
        if annotated is not None and not self.plan.labels.overlapping:
            index *= tf.cast(tf.gather(_with_background(annotated), index, batch_dims=1), "int32")
        valid = tf.cast(valid, "float32")
        return self.shown(tf.gather(table, index) * valid[..., None], annotated), valid

    def shown(self, values, annotated=None):
        """Values `(batch, *spatial, outputs)`, with 0 in outputs that were not annotated."""
        if annotated is None:
            return values
        regions = self.plan.labels.overlapping
        return values * _over_voxels(annotated if regions else _with_background(annotated), values)

    def certain(self, target, annotated=None):
        """The target without voxels of which only is known that they are none of the annotated."""
        if annotated is None or self.plan.labels.overlapping:
            return target
        complete = tf.reduce_min(annotated, axis=-1, keepdims=True)
        return target * _over_voxels(tf.concat([complete, annotated], axis=-1), target)

    def activate(self, logits, annotated=None):
        """Probabilities of logits: sigmoid for regions, softmax for classes; float32.

        With `annotated`, 0 for all other names, whose share of exclusive classes falls to the
        background.
        """
        if self.plan.labels.overlapping:
            return self.shown(tf.sigmoid(tf.cast(logits, "float32")), annotated)
        if annotated is not None:
            logits = marginal_logits(logits, annotated)
        return tf.nn.softmax(tf.cast(logits, "float32"))

    def cross_entropy(self, target, logits, valid, annotated=None, class_weights=None):
        """Cross-entropy of each sample and its weight; `class_weights` of exclusive classes."""
        if self.plan.labels.overlapping:
            return region_cross_entropy(target, logits, valid, annotated)
        if annotated is not None:
            logits = marginal_logits(logits, annotated)
        return class_cross_entropy(target, logits, valid, class_weights)

    def dice_loss(self, target, logits, valid, annotated=None):
        """One minus soft Dice of each sample and its weight."""
        return soft_dice(target, self.activate(logits, annotated), valid)

    def distill(self, target, logits, valid, domain, annotated=None):
        """Distillation between the modalities' prototypes, over voxels whose class is certain."""
        regions = self.plan.labels.overlapping
        distil = region_prototype_distillation if regions else prototype_distillation
        target = self.certain(target, annotated)
        return distil(target, logits, valid, domain, len(self.plan.modalities))


def _with_background(annotated):
    """A column of ones before those of the names."""
    return tf.pad(annotated, [[0, 0], [1, 0]], constant_values=1.0)


def _over_voxels(values, like):
    """`(batch, n)` in a shape that multiplies `(batch, *spatial, n)`."""
    return tf.reshape(values, (-1, *[1] * (like.shape.rank - 2), values.shape[-1]))
