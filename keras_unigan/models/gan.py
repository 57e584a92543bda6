"""GAN: the founding game, of pairs of an image and its masks."""

import keras
import tensorflow as tf

from keras_unigan.losses import ADVERSARIAL, r1_penalty
from keras_unigan.models.base import AdversarialModel
from keras_unigan.models.masked import check_weights, choose
from keras_unigan.models.stepping import Move

RATE = 2e-4
FAMILIES = ("minimax", "minimax_saturating")


@keras.saving.register_keras_serializable(package="keras_unigan")
class GAN(AdversarialModel):
    """A generator makes pairs of image and masks from noise; a discriminator tells them from real.

    `min over G, max over D of E log D(x, y) + E log(1 - D(G(z)))`. Order of the moves: 1. the
    discriminator raises that sum; 2. the generator, on new noise, lowers it ("minimax_saturating",
    the equation as written) or raises `E log D(G(z))` ("minimax", the authors' advice). Both are
    told the modality. Where label maps are not annotated, masks are hidden on both sides.

    It makes neither label maps of scans nor translations: a run holds the averaged generator and
    pictures of its pairs.

    Args:
        generator: `networks.PairGenerator`.
        discriminator: `networks.PairDiscriminator`.
        plan: `config.Plan`, or its JSON dictionary.
        spatial_dims: 2 or 3.
        adversarial: "minimax" or "minimax_saturating".
        penalty_weight: Weight of the discriminator's R1 penalty; 0 is the paper.
        ema_decay: Decay of the weight average of the generator.
        total_steps: Steps that the run is meant to have.
        name: Name of the model.

    Reference: Goodfellow et al. 2014, Generative adversarial nets, arXiv:1406.2661, eq. 1 and
        algorithm 1.

    Raises:
        ValueError: For an unknown family or a weight below 0.
    """

    roles = ("generator", "discriminator")
    labelled_fraction = 1.0
    terms = ("loss", "discriminator_loss", "penalty")
    watched = ("real_score", "fake_score", "diversity")

    def __init__(
        self,
        generator,
        discriminator,
        plan,
        spatial_dims=2,
        adversarial="minimax",
        penalty_weight=0.0,
        ema_decay=0.999,
        total_steps=1000,
        name="gan",
    ):
        networks = {"generator": generator, "discriminator": discriminator}
        super().__init__(networks, plan, spatial_dims, ema_decay, total_steps, name)
        choose("adversarial", adversarial, FAMILIES)
        check_weights(penalty_weight=penalty_weight)
        self.adversarial, self.penalty_weight = adversarial, penalty_weight

    @classmethod
    def network_arguments(cls, plan, channels=1, spatial_dims=2, **options):
        patch, outputs = plan.configuration(spatial_dims).patch_size, len(plan.labels.names)
        common = {"domains": len(plan.modalities), "patch_size": patch}
        return {
            "generator": {**common, "channels": channels, "classes": outputs},
            "discriminator": {**common, "channels": channels + outputs},
        }

    def default_optimizers(self, learning_rate=None, adversary_rate=None):
        asked = {"generator": learning_rate, "discriminator": adversary_rate}
        return {
            role: keras.optimizers.Adam(RATE if rate is None else rate, 0.5, 0.999)
            for role, rate in asked.items()
        }

    def play(self, batch):
        real, seen, code = self.real(batch)
        # 1. The discriminator: real pairs from made ones.
        fake = self.made(self.generator, batch, seen, 0, training=True)
        with tf.GradientTape() as tape:
            terms, watched = self.told_apart(real, fake, code)
        norm = yield Move(terms["discriminator_loss"], tape, "discriminator")
        # 2. The generator: pairs from new noise that are taken for real.
        with tf.GradientTape() as tape:
            fake = self.made(self.generator, batch, seen, 1, training=True)
            loss = self.deceived(fake, code)
        own = yield Move(loss, tape, "generator")
        return {
            "loss": loss,
            **terms,
            **watched,
            "diversity": self.spread(fake),
            "discriminator_gradient_norm": norm,
            "generator_gradient_norm": own,
        }

    def score(self, batch):
        real, seen, code = self.real(batch)
        fake = self.made(self.network, batch, seen, 0, training=False)
        terms, watched = self.told_apart(real, fake, code)
        loss = self.deceived(fake, code)
        return {"loss": loss, **terms, **watched, "diversity": self.spread(fake)}, None

    def real(self, batch):
        """Real pairs `(batch, *spatial, channels + outputs)`, what of the masks is seen, codes."""
        annotated = batch.get("annotated")
        target, valid = self.target(batch["label_map"], annotated)
        seen = self.shown(tf.ones_like(target) * valid[..., None], annotated)
        code = tf.one_hot(batch["domain"], len(self.plan.modalities))
        return tf.concat([tf.cast(batch["image"], "float32"), target * seen], -1), seen, code

    def made(self, generator, batch, seen, salt, training):
        """Made pairs of the modalities of a batch, masks hidden where the real ones are."""
        # The batch's own noise, so that a batch split over replicas makes the same pairs.
        own = tf.cast(batch["noise"] * 2.0**24, "int64")
        step = 2 * tf.cast(self.completed_steps, "int64") + salt
        seeds = tf.stack([own, tf.fill(tf.shape(own), step)], axis=-1)
        image, logits = generator.sample(seeds, batch["domain"], training=training)
        return tf.concat([image, self.activate(logits) * seen], -1)

    def told_apart(self, real, fake, code):
        """Terms and watched values of the discriminator's side, scalars."""
        pairs, codes = tf.concat([real, fake], axis=0), tf.concat([code, code], axis=0)
        real_scores, fake_scores = tf.split(self.discriminator([pairs, codes], training=True), 2)
        loss, penalty = ADVERSARIAL[self.adversarial][0](real_scores, fake_scores), tf.zeros(())
        if self.penalty_weight:
            penalty = r1_penalty(lambda x: self.discriminator([x, code], training=True), real)
        terms = {"discriminator_loss": loss + self.penalty_weight * penalty, "penalty": penalty}
        means = tf.reduce_mean(real_scores), tf.reduce_mean(fake_scores)
        return terms, dict(zip(("real_score", "fake_score"), means, strict=True))

    def deceived(self, fake, code):
        """Loss of the generator, a scalar."""
        return ADVERSARIAL[self.adversarial][1](self.discriminator([fake, code], training=True))

    def spread(self, fake):
        """Mean distance of made pairs from their mean over all replicas; NaN for one alone."""
        mean = tf.reduce_mean(fake, 0, keepdims=True)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        if replicas > 1:
            context = tf.distribute.get_replica_context()
            mean = context.all_reduce(tf.distribute.ReduceOp.MEAN, mean)
        alone = replicas * tf.shape(fake)[0] < 2
        return tf.where(alone, float("nan"), tf.reduce_mean(tf.abs(fake - mean)))

    def call(self, inputs):
        """Pairs of the averaged generator.

        Args:
            inputs: Dict with `noise` float32 `(batch,)` in [0, 1) and int32 `(batch,)` `domain`.

        Returns:
            float32 `(batch, *patch, channels + outputs)`, image and probabilities.
        """
        own = tf.cast(inputs["noise"] * 2.0**24, "int64")
        seeds = tf.stack([own, tf.zeros_like(own)], axis=-1)
        image, logits = self.network.sample(seeds, inputs["domain"])
        return tf.concat([image, self.activate(logits)], -1)

    def get_config(self):
        own = {"adversarial": self.adversarial, "penalty_weight": self.penalty_weight}
        return {**super().get_config(), **own}
