"""TranslationGame: a generator between modalities against a discriminator that knows them."""

import keras
import tensorflow as tf

from keras_unigan.losses import (
    ADVERSARIAL,
    cycle,
    domain_classification,
    gradient_penalty,
    r1_penalty,
)
from keras_unigan.models.base import AdversarialModel
from keras_unigan.models.masked import check_weights, choose

HEADS = ("classify", "multi")

FLAT = 1e-3  # mean distance from its own mean below which an image is empty


class TranslationGame(AdversarialModel):
    """What StarGAN, UAGAN and the Unified GAN share: source and domain losses of two sides.

    Batches also hold `target` int32 `(batch,)`, the modality to translate to; `noise` float32
    `(batch,)` in [0, 1), the place between real and made image where WGAN-GP looks at the gradient;
    `known` int32 `(batch,)`, 0 where the image's intensities do not tell its modality; and
    `real`, the same image as its own modality shows it, which differs from `image` only where
    `known` is 0. The discriminator sees `real`, and cycles lead back to it.

    Every step also logs (`watched`) what `keras_unigan.health` reads: mean scores of real and made
    images, the accuracy of the domain head on real ones, how far translations are from their input
    (`copy_ratio`, 0 is a copy) and from one another (`diversity`, 0 is a collapse).
    """

    translates = True
    # Modalities that the game cannot do with fewer of.
    least_modalities = 2
    watched: tuple[str, ...] = (
        *("real_score", "fake_score", "domain_accuracy"),
        *("copy_ratio", "diversity"),
    )
    discriminator_terms = ("discriminator_loss", "penalty", "domain_loss")
    generator_terms = ("adversarial", "target_loss", "cycle")

    def set_adversary(
        self, adversarial, adversarial_weight, domain_weight, cycle_weight, penalty_weight
    ):
        """Keeps the options of the two sides.

        Args:
            adversarial: Family in `losses.ADVERSARIAL`.
            adversarial_weight: Weight of the generator's adversarial loss.
            domain_weight: Weight of the domain classification, on both sides.
            cycle_weight: Weight of the cycle.
            penalty_weight: Weight of the gradient penalty under "wgan_gp", else of R1.

        Raises:
            ValueError: For an unknown family, a weight below 0, or a discriminator of another head.
        """
        choose("adversarial", adversarial, tuple(ADVERSARIAL))
        choose("head of the discriminator", self.discriminator.head, HEADS)
        check_weights(
            adversarial_weight=adversarial_weight,
            domain_weight=domain_weight,
            cycle_weight=cycle_weight,
            penalty_weight=penalty_weight,
        )
        self.adversarial, self.adversarial_weight = adversarial, adversarial_weight
        self.domain_weight = domain_weight
        self.cycle_weight, self.penalty_weight = cycle_weight, penalty_weight

    def adversary_config(self):
        """Options of `set_adversary` as `get_config` has them."""
        names = ("adversarial", "adversarial_weight", "domain_weight", "cycle_weight")
        return {name: getattr(self, name) for name in (*names, "penalty_weight")}

    @property
    def has_adversary(self):
        """Whether anything that the discriminator says counts."""
        return bool(self.adversarial_weight or self.domain_weight)

    @staticmethod
    def discriminator_arguments(plan, channels=1, spatial_dims=2):
        """Constructor arguments that the plan demands of the discriminator."""
        patch = plan.configuration(spatial_dims).patch_size
        return {"channels": channels, "domains": len(plan.modalities), "patch_size": patch}

    def unpack(self, batch):
        """Image, its source (-1 where not known), its own modality's image, domain and target."""
        image, domain = batch["image"], batch["domain"]
        source = tf.where(tf.cast(batch["known"], "bool"), domain, -1)
        return image, source, batch["real"], domain, batch["target"]

    def judge(self, image, domain):
        """Patch scores of images as of their domain, and domain logits (None under "multi")."""
        outputs = self.discriminator(image, training=True)
        if self.discriminator.head == "classify":
            return outputs
        (maps,) = keras.tree.flatten(outputs)
        own = tf.one_hot(domain, len(self.plan.modalities))
        shape = (-1, *[1] * self.spatial_dims, own.shape[-1])
        return tf.reduce_sum(maps * tf.reshape(own, shape), -1, keepdims=True), None

    def discriminate(self, real, fake, batch):
        """Terms and watched values of the discriminator's side, scalars."""
        if not self.has_adversary:
            nothing = tf.constant(float("nan"))
            watched = dict.fromkeys(("real_score", "fake_score", "domain_accuracy"), nothing)
            return dict.fromkeys(self.discriminator_terms, tf.zeros(())), watched
        domain, target = batch["domain"], batch["target"]
        # One call for both: there is no norm over the batch in it.
        both = tf.concat([domain, target], axis=0)
        scores, logits = self.judge(tf.concat([real, fake], axis=0), both)
        real_scores, fake_scores = tf.split(scores, 2)
        critic_loss, _ = ADVERSARIAL[self.adversarial]
        loss = critic_loss(real_scores, fake_scores)
        penalty = domain_loss = tf.zeros(())
        accuracy = tf.constant(float("nan"))
        if self.penalty_weight and self.adversarial == "wgan_gp":
            between = lambda x: self.judge(x, target)[0]  # noqa: E731
            penalty = gradient_penalty(between, real, fake, batch["noise"])
        elif self.penalty_weight:
            penalty = r1_penalty(lambda x: self.judge(x, domain)[0], real)
        if logits is not None:
            # Real images only: the head would else learn the generator's mistakes.
            own = tf.split(logits, 2)[0]
            domain_loss = domain_classification(domain, own)
            right = tf.argmax(own, axis=-1, output_type=tf.int32) == domain
            accuracy = tf.reduce_mean(tf.cast(right, "float32"))
        terms = {
            "discriminator_loss": loss
            + self.penalty_weight * penalty
            + self.domain_weight * domain_loss,
            "penalty": penalty,
            "domain_loss": domain_loss,
        }
        watched = {
            "real_score": tf.reduce_mean(real_scores),
            "fake_score": tf.reduce_mean(fake_scores),
            "domain_accuracy": accuracy,
        }
        return terms, watched

    def persuade(self, image, source, fake, reconstruction, batch):
        """Terms and watched values of the generator's side, scalars.

        Returns:
            Their weighted sum, the terms, the watched values.
        """
        target, real = batch["target"], batch["real"]
        adversarial = target_loss = tf.zeros(())
        if self.has_adversary:
            scores, logits = self.judge(fake, target)
            _, generator_loss = ADVERSARIAL[self.adversarial]
            adversarial = generator_loss(scores)
            if logits is not None:
                target_loss = domain_classification(target, logits)
        back = cycle(real, reconstruction)
        loss = (
            self.adversarial_weight * adversarial
            + self.domain_weight * target_loss
            + self.cycle_weight * back
        )
        terms = {"adversarial": adversarial, "target_loss": target_loss, "cycle": back}
        return loss, terms, self.variety(image, source, fake, target)

    def variety(self, image, source, fake, target):
        """`copy_ratio` and `diversity` of a batch of translations, over all replicas."""
        image, fake = tf.cast(image, "float32"), tf.cast(fake, "float32")
        axes = list(range(1, image.shape.rank))
        moved = tf.reduce_mean(tf.abs(fake - image), axes)
        spread = tf.reduce_mean(tf.abs(image - tf.reduce_mean(image, axes, keepdims=True)), axes)
        # An empty patch has no spread to compare with.
        asked = tf.cast((source != target) & (spread > FLAT), "float32")
        ratio = self.average(moved / tf.maximum(spread, FLAT), asked)
        # Where nothing was asked for there is nothing to say, and the metric leaves NaN out.
        some = self._anywhere(tf.reduce_any(asked > 0))
        mean = tf.reduce_mean(fake, 0, keepdims=True)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        if replicas > 1:
            context = tf.distribute.get_replica_context()
            mean = context.all_reduce(tf.distribute.ReduceOp.MEAN, mean)
        return {
            "copy_ratio": tf.where(some, ratio, float("nan")),
            # One image alone differs from nothing, which is no collapse.
            "diversity": tf.where(
                replicas * tf.shape(fake)[0] > 1, tf.reduce_mean(tf.abs(fake - mean)), float("nan")
            ),
        }
