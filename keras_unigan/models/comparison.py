"""Games of the comparison systems: supervised, with further tasks or with distillation."""

import keras
import tensorflow as tf

from keras_unigan.config import IGNORE
from keras_unigan.losses import cycle, region_cross_entropy
from keras_unigan.models.masked import check_weights
from keras_unigan.models.supervised import SupervisedModel


@keras.saving.register_keras_serializable(package="keras_unigan")
class MultiTaskModel(SupervisedModel):
    """Supervised segmentation by a network that has further tasks (its `further`).

    Tasks: "reconstruction", the image itself, by mean absolute difference over all images;
    "boundary", the voxels that have a neighbour with another label, by cross-entropy;
    "intermediate", a first guess of the label map, by the loss of the last one.

    Args:
        segmentor: Network with `tasks`, e.g. `networks.PADNet`.
        plan: `config.Plan`, or its JSON dictionary.
        spatial_dims: 2 or 3.
        ce_weight: Weight of the cross-entropy.
        dice_weight: Weight of soft Dice.
        task_weight: Weight of each further task.
        ema_decay: Decay of the weight average.
        total_steps: Steps that the learning-rate schedule is made for.
        name: Name of the model.

    Reference: Xu et al. 2018, PAD-Net, arXiv:1805.04409; Kuga et al. 2017, ICCV Workshops.

    Raises:
        ValueError: For a network without further tasks.
    """

    # Images without labels teach the reconstruction.
    labelled_fraction = 0.5

    def __init__(
        self,
        segmentor,
        plan,
        spatial_dims=2,
        ce_weight=1.0,
        dice_weight=1.0,
        task_weight=1.0,
        ema_decay=0.999,
        total_steps=1000,
        name="multi_task_model",
    ):
        if not getattr(segmentor, "further", ()):
            raise ValueError(f"Expected a segmentor with further tasks, got {segmentor.name}.")
        super().__init__(
            segmentor, plan, spatial_dims, ce_weight, dice_weight, ema_decay, total_steps, name
        )
        check_weights(task_weight=task_weight)
        self.task_weight = task_weight

    @property
    def terms(self):
        return (*SupervisedModel.terms, *self.segmentor.further)

    def teaches(self, batch):
        return None

    def evaluated(self, network, batch, training):
        image, label_map, annotated = batch["image"], batch["label_map"], batch.get("annotated")
        logits, *others = network.tasks(image, self.told(batch), training)
        terms = self.losses_of(logits, label_map, annotated)
        for task, output in zip(network.further, others, strict=True):
            if task == "reconstruction":
                terms[task] = cycle(image, output)
            elif task == "intermediate":
                terms[task] = self.losses_of(output, label_map, annotated)["loss"]
            else:
                edge, valid = self.boundary(label_map, annotated)
                terms[task] = self.average(*region_cross_entropy(edge, output, valid))
            terms["loss"] += self.task_weight * terms[task]
        return terms, logits

    def boundary(self, label_map, annotated=None):
        """`boundary` of a label map, and where it is known, in spite of what was not annotated.

        Anything may run through the background of a label map that does not show all classes, and
        through regions too. Of those the boundary is known where all regions are.
        """
        if annotated is None:
            return boundary(label_map)
        complete = tf.reduce_min(annotated, axis=-1)
        known = tf.reshape(complete, (-1, *[1] * self.spatial_dims))
        if not self.plan.labels.overlapping:
            target, valid = self.target(label_map, annotated)
            index = tf.argmax(target, axis=-1, output_type=tf.int32)
            label_map = tf.where(valid > 0, index, IGNORE)
        edge, valid = boundary(label_map)
        if not self.plan.labels.overlapping:
            inside = tf.cast(label_map > 0, "float32")
            known = tf.maximum(known, tf.maximum(inside, edge[..., 0]))
        return edge, valid * known

    def get_config(self):
        return {**super().get_config(), "task_weight": self.task_weight}


def boundary(label_map):
    """Voxels of which a neighbour along an axis has another label.

    Args:
        label_map: uint8 `(batch, *spatial)`, 255 = not annotated.

    Returns:
        float32 `(batch, *spatial, 1)`; and `(batch, *spatial)`, 0 where the voxel or a neighbour of
        it is not annotated.
    """
    low = high = index = tf.cast(label_map, "int32")
    valid = index != IGNORE
    for axis in range(1, len(label_map.shape)):
        for shift in (-1, 1):
            # The border of the image is no boundary: it is its own neighbour.
            beside = _shifted(index, axis, shift)
            low, high = tf.minimum(low, beside), tf.maximum(high, beside)
            valid = tf.logical_and(valid, beside != IGNORE)
    return tf.cast(low != high, "float32")[..., None], tf.cast(valid, "float32")


def _shifted(x, axis, shift):
    """Each voxel's neighbour along an axis; at the border, the voxel itself."""
    count = tf.shape(x)[axis]
    return tf.gather(x, tf.clip_by_value(tf.range(count) + shift, 0, count - 1), axis=axis)


@keras.saving.register_keras_serializable(package="keras_unigan")
class DistilledModel(SupervisedModel):
    """Supervised segmentation whose classes are to look alike in all modalities.

    Args:
        segmentor: As of `SupervisedModel`.
        plan: `config.Plan`, or its JSON dictionary.
        spatial_dims: 2 or 3.
        ce_weight: Weight of the cross-entropy.
        dice_weight: Weight of soft Dice.
        distillation_weight: Weight of `losses.prototype_distillation`.
        ema_decay: Decay of the weight average.
        total_steps: Steps that the learning-rate schedule is made for.
        name: Name of the model.

    Reference: Dou et al. 2020, Unpaired multi-modal segmentation via knowledge distillation,
    arXiv:2001.03111.
    """

    terms = (*SupervisedModel.terms, "distillation")

    def __init__(
        self,
        segmentor,
        plan,
        spatial_dims=2,
        ce_weight=1.0,
        dice_weight=1.0,
        distillation_weight=0.5,
        ema_decay=0.999,
        total_steps=1000,
        name="distilled_model",
    ):
        super().__init__(
            segmentor, plan, spatial_dims, ce_weight, dice_weight, ema_decay, total_steps, name
        )
        check_weights(distillation_weight=distillation_weight)
        self.distillation_weight = distillation_weight

    def evaluated(self, network, batch, training):
        terms, logits = super().evaluated(network, batch, training)
        annotated = batch.get("annotated")
        truth, valid = self.target(batch["label_map"], annotated)
        distillation = tf.zeros(())
        if self.distillation_weight:
            distillation = self.distill(truth, logits, valid, batch["domain"], annotated)
        loss = terms["loss"] + self.distillation_weight * distillation
        return {**terms, "loss": loss, "distillation": distillation}, logits

    def get_config(self):
        return {**super().get_config(), "distillation_weight": self.distillation_weight}
