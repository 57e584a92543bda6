"""SupervisedModel: one segmentor and its label maps, the plain baseline."""

import keras
import tensorflow as tf

from keras_unigan.config import IGNORE
from keras_unigan.layers import segment_logits
from keras_unigan.models.base import AdversarialModel
from keras_unigan.models.masked import check_weights
from keras_unigan.models.optimizers import muon
from keras_unigan.models.stepping import Move


@keras.saving.register_keras_serializable(package="keras_unigan")
class SupervisedModel(AdversarialModel):
    """Cross-entropy plus Dice on annotated voxels.

    Args:
        segmentor: Network from image to logits, one channel per output of `plan.labels`; it may
            ask for the modality (`segment`).
        plan: `config.Plan`, or its JSON dictionary.
        spatial_dims: 2 or 3.
        ce_weight: Weight of the cross-entropy.
        dice_weight: Weight of soft Dice.
        ema_decay: Decay of the weight average.
        total_steps: Steps that the learning-rate schedule is made for.
        name: Name of the model.

    Reference: Isensee et al. 2021, nnU-Net, doi:10.1038/s41592-020-01008-z (the loss).
    """

    roles = ("segmentor",)
    labelled_fraction = 1.0
    terms: tuple[str, ...] = ("loss", "ce_loss", "dice_loss")

    def __init__(
        self,
        segmentor,
        plan,
        spatial_dims=2,
        ce_weight=1.0,
        dice_weight=1.0,
        ema_decay=0.999,
        total_steps=1000,
        name="supervised_model",
    ):
        networks = {"segmentor": segmentor}
        super().__init__(networks, plan, spatial_dims, ema_decay, total_steps, name)
        check_weights(ce_weight=ce_weight, dice_weight=dice_weight)
        self.ce_weight, self.dice_weight = ce_weight, dice_weight

    @classmethod
    def network_arguments(cls, plan, channels=1, **options):
        return {"segmentor": {"channels": channels, "classes": len(plan.labels.names)}}

    def default_optimizers(self, learning_rate=None, adversary_rate=None):
        return {"segmentor": muon(self.total_steps, learning_rate)}

    def play(self, batch):
        with tf.GradientTape() as tape:
            terms, _ = self.evaluated(self.segmentor, batch, training=True)
        norm = yield Move(terms["loss"], tape, "segmentor", self.teaches(batch))
        return {**terms, "segmentor_gradient_norm": norm}

    def score(self, batch):
        terms, logits = self.evaluated(self.network, batch, training=False)
        return terms, self.activate(logits)

    def teaches(self, batch):
        """Whether the segmentor can learn from a batch, scalar bool; None is yes."""
        return tf.reduce_any(batch["label_map"] != IGNORE)

    def evaluated(self, network, batch, training):
        """Terms of a batch, and its logits."""
        logits = segment_logits(network, batch["image"], self.told(batch), training)
        return self.losses_of(logits, batch["label_map"], batch.get("annotated")), logits

    def told(self, batch):
        """Modality that the segmentor is told, int32 `(batch,)`; -1 where it is not known."""
        domain = batch["domain"]
        if "known" not in batch or getattr(self.segmentor, "separate", False):
            return domain
        return tf.where(tf.cast(batch["known"], "bool"), domain, -1)

    def losses_of(self, logits, label_map, annotated=None):
        """Every term of the loss, scalars."""
        target, valid = self.target(label_map, annotated)
        ce_loss = self.average(*self.cross_entropy(target, logits, valid, annotated))
        dice_loss = self.average(*self.dice_loss(target, logits, valid, annotated))
        loss = self.ce_weight * ce_loss + self.dice_weight * dice_loss
        return {"loss": loss, "ce_loss": ce_loss, "dice_loss": dice_loss}

    def get_config(self):
        weights = {"ce_weight": self.ce_weight, "dice_weight": self.dice_weight}
        return {**super().get_config(), **weights}
