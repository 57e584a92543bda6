"""UMMKD: shared kernels, norms for each modality, and distillation between the modalities."""

import keras
import tensorflow as tf

from keras_unigan.losses import soft_dice
from keras_unigan.models.comparison import DistilledModel
from keras_unigan.models.masked import check_weights

RATE, DECAY, DECAY_STEPS = 1e-3, 0.95, 1000
MATRIX_AXES = 2


@keras.saving.register_keras_serializable(package="keras_unigan")
class UMMKD(DistilledModel):
    """Weighted cross-entropy, Dice with squares, distillation and a penalty on the kernels.

    A class weighs one minus its share of the batch's annotated voxels in the cross-entropy. Regions
    that overlap all weigh the same. Adam at 1e-3, times 0.95 after every 1000 steps.

    Args:
        segmentor: `networks.CompactDilatedNet`, or another that is told the modality.
        plan: `config.Plan`, or its JSON dictionary.
        spatial_dims: 2, or 3 with a network that has as many.
        ce_weight: Weight of the cross-entropy.
        dice_weight: Weight of soft Dice.
        distillation_weight: Weight of `losses.prototype_distillation`.
        kernel_weight: Weight of half the sum of squares of all kernels.
        ema_decay: Decay of the weight average.
        total_steps: Steps that the run is meant to have.
        name: Name of the model.

    Reference: Dou et al. 2020, Unpaired multi-modal segmentation via knowledge distillation,
        arXiv:2001.03111.

    Raises:
        ValueError: For a weight below 0.
    """

    terms = (*DistilledModel.terms, "kernel_loss")

    def __init__(
        self,
        segmentor,
        plan,
        spatial_dims=2,
        ce_weight=1.0,
        dice_weight=1.0,
        distillation_weight=0.5,
        kernel_weight=1e-4,
        ema_decay=0.999,
        total_steps=1000,
        name="ummkd",
    ):
        super().__init__(
            *(segmentor, plan, spatial_dims, ce_weight, dice_weight, distillation_weight),
            *(ema_decay, total_steps, name),
        )
        check_weights(kernel_weight=kernel_weight)
        self.kernel_weight = kernel_weight

    def default_optimizers(self, learning_rate=None, adversary_rate=None):
        rate = RATE if learning_rate is None else learning_rate
        falling = keras.optimizers.schedules.ExponentialDecay(
            rate, DECAY_STEPS, DECAY, staircase=True
        )
        return {"segmentor": keras.optimizers.Adam(falling)}

    def evaluated(self, network, batch, training):
        terms, logits = super().evaluated(network, batch, training)
        kernels = [v for v in network.trainable_variables if len(v.shape) > MATRIX_AXES]
        kernel_loss = tf.add_n([tf.nn.l2_loss(tf.convert_to_tensor(kernel)) for kernel in kernels])
        loss = terms["loss"] + self.kernel_weight * kernel_loss
        return {**terms, "loss": loss, "kernel_loss": kernel_loss}, logits

    def cross_entropy(self, target, logits, valid, annotated=None, class_weights=None):
        if not self.plan.labels.overlapping:
            class_weights = 1.0 - self.shares(target, valid)
        return super().cross_entropy(target, logits, valid, annotated, class_weights)

    def dice_loss(self, target, logits, valid, annotated=None):
        return soft_dice(target, self.activate(logits, annotated), valid, power=2)

    def shares(self, target, valid):
        """Share of each class in the annotated voxels of the whole batch, `(classes,)`."""
        axes = list(range(target.shape.rank - 1))
        counts = tf.reduce_sum(target * valid[..., None], axes)
        if tf.distribute.get_strategy().num_replicas_in_sync > 1:
            context = tf.distribute.get_replica_context()
            counts = context.all_reduce(tf.distribute.ReduceOp.SUM, counts)
        return counts / tf.maximum(tf.reduce_sum(counts), 1.0)

    def get_config(self):
        return {**super().get_config(), "kernel_weight": self.kernel_weight}
