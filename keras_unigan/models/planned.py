"""PlannedModel: the training of nnU-Net, with a loss at every level of the decoder."""

import keras
import tensorflow as tf

from keras_unigan.layers import segment_logits
from keras_unigan.models.schedules import polynomial
from keras_unigan.models.supervised import SupervisedModel

RATE, MOMENTUM, DECAY, CLIP = 1e-2, 0.99, 3e-5, 12.0


@keras.saving.register_keras_serializable(package="keras_unigan")
class PlannedModel(SupervisedModel):
    """Cross-entropy plus Dice at every level of the decoder (deep supervision).

    The finest level weighs 1, each coarser one half of the one before, the coarsest nothing; the
    weights are then divided by their sum. A coarse level is held against the label map's nearest
    voxels. Validation and `ce_loss`, `dice_loss` are those of the finest level.

    The optimizer is the authors': SGD with Nesterov momentum 0.99 from a rate of 0.01 that falls
    as a polynomial of power 0.9, and a weight decay of 3e-5. Theirs runs through the momentum and
    so acts 1 / (1 - 0.99) times as strongly as one that Keras applies by itself: here it is 3e-3.

    Args:
        segmentor: `networks.PlannedUNet`, or any network whose `tasks` are logits of falling
            resolution; one without `tasks` has one level.
        plan: `config.Plan`, or its JSON dictionary.
        spatial_dims: 2 or 3.
        ce_weight: Weight of the cross-entropy.
        dice_weight: Weight of soft Dice.
        ema_decay: Decay of the weight average.
        total_steps: Steps that the learning-rate schedule is made for.
        name: Name of the model.

    Reference: Isensee et al. 2021, nnU-Net, doi:10.1038/s41592-020-01008-z.
    """

    def __init__(
        self,
        segmentor,
        plan,
        spatial_dims=2,
        ce_weight=1.0,
        dice_weight=1.0,
        ema_decay=0.999,
        total_steps=1000,
        name="planned_model",
    ):
        super().__init__(
            segmentor, plan, spatial_dims, ce_weight, dice_weight, ema_decay, total_steps, name
        )

    def default_optimizers(self, learning_rate=None, adversary_rate=None):
        rate = RATE if learning_rate is None else learning_rate
        optimizer = keras.optimizers.SGD(
            polynomial(rate, self.total_steps),
            momentum=MOMENTUM,
            nesterov=True,
            weight_decay=DECAY / (1 - MOMENTUM),
            global_clipnorm=CLIP,
        )
        return {"segmentor": optimizer}

    def evaluated(self, network, batch, training):
        label_map, annotated = batch["label_map"], batch.get("annotated")
        if hasattr(network, "tasks"):
            levels = network.tasks(batch["image"], self.told(batch), training)
        else:
            levels = [segment_logits(network, batch["image"], self.told(batch), training)]
        each = [self.losses_of(x, shrunk(label_map, x.shape), annotated) for x in levels]
        deep = sum(w * e["loss"] for w, e in zip(level_weights(len(each)), each, strict=True))
        return {**each[0], "loss": deep}, levels[0]


def level_weights(count):
    """Weights of the levels of a decoder, the finest first; their sum is 1."""
    weights = [0.5**level for level in range(count)]
    if count > 1:
        weights[-1] = 0.0
    return [weight / sum(weights) for weight in weights]


def shrunk(label_map, shape):
    """The voxels of a label map that lie nearest to those of a coarser grid.

    Args:
        label_map: `(batch, *spatial)`.
        shape: `(batch, *sides, channels)` of the coarser map, whose sides divide those above.
    """
    for axis in range(1, len(label_map.shape)):
        step = label_map.shape[axis] // shape[axis]
        if step > 1:
            # Of an even number of voxels two are as near: the upper one.
            place = tf.range(step // 2, label_map.shape[axis], step)
            label_map = tf.gather(label_map, place, axis=axis)
    return label_map
