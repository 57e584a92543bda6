"""UniGAN: the Unified GAN with SegAN's multi-scale critic on its segmentation; the default."""

import keras
import tensorflow as tf

from keras_unigan.layers import equalize, segment_logits
from keras_unigan.losses import ramp
from keras_unigan.metrics import harden
from keras_unigan.models.masked import MaskedCritic, annotated_samples, check_weights
from keras_unigan.models.optimizers import muon
from keras_unigan.models.schedules import cosine
from keras_unigan.models.stepping import Move
from keras_unigan.models.translation import TranslationGame
from keras_unigan.models.unified import UnifiedGAN

ADVERSARY_RATE = 1e-4


@keras.saving.register_keras_serializable(package="keras_unigan")
class UniGAN(MaskedCritic, UnifiedGAN):
    """`UnifiedGAN` with a third player: a critic that looks at masked images at several scales.

    Order of the moves: discriminator, critic, generator.

    On request images without labels teach the segmentation too (`consistency`): the averaged
    network is a teacher that sees them equalized (`plan.unknown`) but in no random contrast, and
    the generator, which sees them as the batch has them, is to find what the teacher was sure of.
    It is off by default because it lost where it was measured (decision 0008).

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
        consistency_weight: Weight, within the segmentation loss, of what the weight average says of
            images without labels; it grows as that of the shape term. 0 (default) leaves it out.
        confidence: Least probability at which what it says of a voxel counts.
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
    terms = (*UnifiedGAN.terms, "critic_loss", "multi_scale_l1", "consistency")

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
        consistency_weight=0.0,
        confidence=0.7,
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
        check_weights(multi_scale_weight=multi_scale_weight, consistency_weight=consistency_weight)
        if not 0 <= confidence < 1:
            raise ValueError(f"Expected 0 <= confidence < 1, got {confidence!r}.")
        self.multi_scale_weight = multi_scale_weight
        self.consistency_weight, self.confidence = consistency_weight, confidence

    @classmethod
    def network_arguments(cls, plan, channels=1, spatial_dims=2, **options):
        return {
            **super().network_arguments(plan, channels, spatial_dims),
            "critic": cls.critic_arguments(plan, channels, **options),
        }

    def default_optimizers(self, learning_rate=None, adversary_rate=None):
        own = ADVERSARY_RATE if adversary_rate is None else adversary_rate
        adversaries = {
            role: keras.optimizers.Adam(cosine(own, self.total_steps), 0.5, 0.99)
            for role in ("discriminator", "critic")
        }
        return {"generator": muon(self.total_steps, learning_rate), **adversaries}

    def play_between(self, batch, logits, truth, valid):
        if not self.multi_scale_weight:
            return {"critic_loss": tf.zeros(())}, {}
        annotated = batch.get("annotated")
        masks = self.activate(logits, annotated), truth, valid
        with tf.GradientTape() as tape:
            critic_loss = -self.gap(batch["image"], *masks, training=True, annotated=annotated)
        norm = yield Move(critic_loss, tape, "critic", tf.reduce_any(valid > 0))
        self.constrain_critic()
        return {"critic_loss": critic_loss}, {"critic": norm}

    def score(self, batch):
        terms, probabilities = super().score(batch)
        return {**terms, "critic_loss": -terms["multi_scale_l1"]}, probabilities

    def generator_losses(self, generator, batch, logits, fake, truth, valid, training):
        loss, terms, variety = super().generator_losses(
            generator, batch, logits, fake, truth, valid, training
        )
        gap = consistency = tf.zeros(())
        if self.multi_scale_weight:
            training = training and self.constraint == "clip"
            annotated = batch.get("annotated")
            probabilities = self.activate(logits, annotated)
            gap = self.gap(batch["image"], probabilities, truth, valid, training, annotated)
        if self.consistency_weight:
            consistency = self.consistency(batch["real"], logits, valid)
        share = ramp(self.completed_steps, self.shape_ramp * self.total_steps)
        own = self.multi_scale_weight * gap + self.consistency_weight * share * consistency
        terms = {**terms, "multi_scale_l1": gap, "consistency": consistency}
        return loss + self.segmentation_weight * own, terms, variety

    def consistency(self, real, logits, valid):
        """Segmentation loss of images without any label against what the teacher is sure of.

        Reference: Tarvainen & Valpola 2017, Mean teachers, arXiv:1703.01780; Sohn et al. 2020,
        FixMatch, arXiv:2001.07685, eq. 4 (hard targets above a confidence).
        """
        unlabelled = 1.0 - annotated_samples(valid)

        def teach():
            image = equalize(real) if self.plan.unknown == "equalized" else real
            nobody = tf.fill([tf.shape(real)[0]], -1)
            return self.activate(segment_logits(self.network, image, nobody))

        # Most studies have labels everywhere, and a teacher costs a forward pass.
        some = tf.reduce_any(unlabelled > 0)
        taught = tf.cond(some, teach, lambda: tf.zeros(tf.shape(logits), "float32"))
        taught = tf.stop_gradient(tf.ensure_shape(taught, logits.shape))
        overlapping = self.plan.labels.overlapping
        sure = tf.maximum(taught, 1.0 - taught) if overlapping else taught
        sure = tf.reduce_min(sure, -1) if overlapping else tf.reduce_max(sure, -1)
        shape = (-1, *[1] * self.spatial_dims)
        counted = tf.cast(sure > self.confidence, "float32") * tf.reshape(unlabelled, shape)
        truth = tf.cast(harden(taught, overlapping), "float32") * counted[..., None]
        return self.segmentation_loss(truth, logits, counted)

    def get_config(self):
        names = ("multi_scale_weight", "consistency_weight", "confidence")
        own = {name: getattr(self, name) for name in names}
        return {**super().get_config(), **self.masking_config(), **own}
