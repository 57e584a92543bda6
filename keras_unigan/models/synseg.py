"""SynSeg: labels of one modality teach a segmentor of another, through translations."""

import keras
import tensorflow as tf

from keras_unigan.models.base import AdversarialModel
from keras_unigan.models.cyclegan import CycleGAN
from keras_unigan.models.masked import check_weights


@keras.saving.register_keras_serializable(package="keras_unigan")
class SynSeg(CycleGAN):
    """CycleGAN and a segmentor that sees labelled images as the other modality shows them.

    Of label maps only those of the first modality of the pair are learnt from: the segmentor sees
    `G(x_A)`, an image of the second modality that keeps the anatomy and so the label map of `x_A`.
    Order of the moves: translators and segmentor together, then the discriminator of the first and
    of the second modality. Batches and pools as in `CycleGAN`; Adam(0.5, 0.999) at 2e-4, constant
    for half of the steps and then in a straight line to 0.

    At prediction images of the first modality are translated before; those of any other one, and of
    an unknown one, are taken for the second.

    Args:
        generator: `networks.SynSegNetwork` of the pair.
        discriminator_a: Network from an image of the first modality to patch scores.
        discriminator_b: The same for the second modality.
        plan: `config.Plan`, or its JSON dictionary.
        spatial_dims: 2.
        pair: Names of the labelled and of the other modality; None takes the first two of the plan.
        adversarial_weight: Weight of the translators' least-squares loss.
        cycle_weight: Weight of the cycles.
        identity_weight: As in `CycleGAN`.
        ce_weight: Weight of the cross-entropy.
        dice_weight: Weight of soft Dice, which the paper does not have.
        pool_size: Earlier translations kept for each discriminator; 0 keeps none.
        ema_decay: Decay of the weight average.
        total_steps: Steps that the learning-rate schedule is made for.
        name: Name of the model.

    Reference: Huo et al. 2019, SynSeg-Net, arXiv:1810.06498.

    Raises:
        ValueError: For unknown options, or networks that do not fit them.
    """

    taught = True
    terms = (*CycleGAN.terms, "ce_loss", "dice_loss")

    def __init__(
        self,
        generator,
        discriminator_a,
        discriminator_b,
        plan,
        spatial_dims=2,
        pair=None,
        adversarial_weight=1.0,
        cycle_weight=10.0,
        identity_weight=0.0,
        ce_weight=1.0,
        dice_weight=1.0,
        pool_size=50,
        ema_decay=0.999,
        total_steps=1000,
        name="synseg",
    ):
        super().__init__(
            *(generator, discriminator_a, discriminator_b, plan, spatial_dims, pair),
            *(adversarial_weight, cycle_weight, identity_weight, pool_size),
            *(ema_decay, total_steps, name),
        )
        check_weights(ce_weight=ce_weight, dice_weight=dice_weight)
        self.ce_weight, self.dice_weight = ce_weight, dice_weight

    @classmethod
    def network_arguments(cls, plan, channels=1, **options):
        arguments = super().network_arguments(plan, channels, **options)
        arguments["generator"]["classes"] = len(plan.labels.names)
        return arguments

    def lessons(self, network, sides, fakes, training):
        """Cross-entropy and Dice of the translated images of the first modality."""
        logits = network.segmentor(fakes[0], training=training)
        ce_loss, dice_loss, some = self.taught_losses(sides[0], logits)
        loss = self.ce_weight * ce_loss + self.dice_weight * dice_loss
        if not training:
            # A validation batch without labels of it says nothing about these terms.
            ce_loss, dice_loss = (tf.where(some, x, float("nan")) for x in (ce_loss, dice_loss))
        return loss, {"ce_loss": ce_loss, "dice_loss": dice_loss}

    def score(self, batch):
        terms, _ = super().score(batch)
        _, source, *_ = self.unpack(batch)
        return terms, self.activate(self.network.segment(batch["image"], source))

    def call(self, inputs):
        """Probabilities of the averaged segmentor; see `AdversarialModel.call`."""
        return AdversarialModel.call(self, inputs)

    def get_config(self):
        own = {"ce_weight": self.ce_weight, "dice_weight": self.dice_weight}
        return {**super().get_config(), **own}
