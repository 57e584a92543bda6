"""UniGAN: the Unified GAN with SegAN's multi-scale critic on its segmentation; the default."""

import keras
import tensorflow as tf

from keras_unigan.models.base import Move
from keras_unigan.models.masked import MaskedCritic, check_weights
from keras_unigan.models.schedules import cosine
from keras_unigan.models.translation import TranslationGame
from keras_unigan.models.unified import UnifiedGAN

RATE, ADVERSARY_RATE = 2e-4, 1e-4


@keras.saving.register_keras_serializable(package="keras_unigan")
class UniGAN(MaskedCritic, UnifiedGAN):
    """`UnifiedGAN` with a third player: a critic that looks at masked images at several scales.

    Order of the moves: discriminator, critic, generator.

    Args:
        generator: Network from image and code to logits and image.
        discriminator: Network from image to patch scores and domain logits.
        critic: Network from masked image to a list of features.
        plan: `config.Plan`, or its JSON dictionary.
        spatial_dims: 2 or 3.
        adversarial: "hinge" with R1 (default), "wgan_gp", "lsgan", "minimax" or
            "minimax_saturating".
        adversarial_weight: Weight of the generator's adversarial loss. Where it and
            `domain_weight` are 0, the discriminator is left out.
        domain_weight: Weight of the domain classification, on both sides.
        cycle_weight: Weight of the cycle.
        penalty_weight: Weight of R1, or of the gradient penalty under "wgan_gp".
        segmentation_weight: Weight of cross-entropy, Dice and critic term together.
        shape_weight: Weight of the shape term at the end of its ramp.
        shape_ramp: Share of `total_steps` over which that weight grows.
        distillation_weight: Weight of the distillation between the modalities' prototypes.
        multi_scale_weight: Weight of the critic's term within the segmentation loss; 0 leaves the
            critic out.
        mask_mode: As in `SegAN`.
        critic_mode: As in `SegAN`.
        include_input: As in `SegAN`.
        weighting: As in `SegAN`.
        constraint: As in `SegAN`.
        shift: As in `SegAN`.
        clip_value: As in `SegAN`.
        ema_decay: Decay of the weight average.
        total_steps: Steps that the ramp and the learning-rate schedule are made for.
        name: Name of the model.

    Raises:
        ValueError: For unknown options, or networks that do not fit them.
    """

    roles = ("generator", "discriminator", "critic")
    terms = (*UnifiedGAN.terms, "critic_loss", "multi_scale_l1")

    def __init__(
        self,
        generator,
        discriminator,
        critic,
        plan,
        spatial_dims=2,
        adversarial="hinge",
        adversarial_weight=1.0,
        domain_weight=1.0,
        cycle_weight=10.0,
        penalty_weight=1.0,
        segmentation_weight=10.0,
        shape_weight=10.0,
        shape_ramp=0.5,
        distillation_weight=0.0,
        multi_scale_weight=0.1,
        mask_mode="concat",
        critic_mode="shared",
        include_input=True,
        weighting="level",
        constraint="spectral",
        shift=True,
        clip_value=0.05,
        ema_decay=0.999,
        total_steps=1000,
        name="unigan",
    ):
        networks = {"generator": generator, "discriminator": discriminator, "critic": critic}
        TranslationGame.__init__(self, networks, plan, spatial_dims, ema_decay, total_steps, name)
        self.set_adversary(
            adversarial, adversarial_weight, domain_weight, cycle_weight, penalty_weight
        )
        self.set_tasks(segmentation_weight, shape_weight, shape_ramp, distillation_weight)
        self.set_masking(
            generator.channels,
            critic,
            mask_mode,
            include_input,
            weighting,
            constraint,
            shift,
            clip_value,
            critic_mode,
        )
        check_weights(multi_scale_weight=multi_scale_weight)
        self.multi_scale_weight = multi_scale_weight

    @classmethod
    def network_arguments(cls, plan, channels=1, spatial_dims=2, **options):
        return {
            **super().network_arguments(plan, channels, spatial_dims),
            "critic": cls.critic_arguments(plan, channels, **options),
        }

    def default_optimizers(self, learning_rate=None):
        rate = RATE if learning_rate is None else learning_rate
        rates = {"discriminator": ADVERSARY_RATE, "critic": ADVERSARY_RATE}
        adversaries = {
            role: keras.optimizers.Adam(cosine(own, self.total_steps), 0.5, 0.99)
            for role, own in rates.items()
        }
        schedule = cosine(rate, self.total_steps)
        return {"generator": keras.optimizers.AdamW(schedule, global_clipnorm=5.0), **adversaries}

    def play_between(self, image, logits, truth, valid):
        if not self.multi_scale_weight:
            return {"critic_loss": tf.zeros(())}, {}
        probabilities = self.activate(logits)
        with tf.GradientTape() as tape:
            critic_loss = -self.gap(image, probabilities, truth, valid, training=True)
        annotated = tf.reduce_any(valid > 0)
        norm = yield Move(critic_loss, tape, "critic", annotated)
        self.constrain_critic()
        return {"critic_loss": critic_loss}, {"critic": norm}

    def score(self, batch):
        terms, probabilities = super().score(batch)
        return {**terms, "critic_loss": -terms["multi_scale_l1"]}, probabilities

    def generator_losses(self, generator, batch, logits, fake, truth, valid, training):
        loss, terms, variety = super().generator_losses(
            generator, batch, logits, fake, truth, valid, training
        )
        if not self.multi_scale_weight:
            return loss, {**terms, "multi_scale_l1": tf.zeros(())}, variety
        training = training and self.constraint == "clip"
        gap = self.gap(batch["image"], self.activate(logits), truth, valid, training)
        loss = loss + self.segmentation_weight * self.multi_scale_weight * gap
        return loss, {**terms, "multi_scale_l1": gap}, variety

    def get_config(self):
        own = {"multi_scale_weight": self.multi_scale_weight}
        return {**super().get_config(), **self.masking_config(), **own}
