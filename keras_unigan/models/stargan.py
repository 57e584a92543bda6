"""StarGAN: one generator and one discriminator for every pair of modalities."""

import keras
import tensorflow as tf

from keras_unigan.losses import cycle
from keras_unigan.models.masked import check_weights
from keras_unigan.models.schedules import constant_then_linear
from keras_unigan.models.stepping import Move
from keras_unigan.models.translation import TranslationGame

RATE = 1e-4
# Where the gradient penalty of each further discriminator move looks: a step of the golden ratio,
# so that no two moves of a step look at the same place.
GOLDEN = 0.6180339887


@keras.saving.register_keras_serializable(package="keras_unigan")
class StarGAN(TranslationGame):
    """Image-to-image translation between any two modalities with a single pair of networks.

    A step makes `n_critic` moves of the discriminator and one of the generator. All are made with
    the images of one batch; each further move of the discriminator takes the next modality as the
    target of each image, so that a step sees `n_critic` of the translations of every image. (The
    authors draw new images for each move.)

    Args:
        generator: Network from image and code of the target to an image.
        discriminator: Network from image to patch scores and domain logits.
        plan: `config.Plan`, or its JSON dictionary.
        spatial_dims: 2 or 3.
        adversarial: "wgan_gp" (paper), "hinge", "lsgan", "minimax" or "minimax_saturating".
        n_critic: Moves of the discriminator in a step.
        adversarial_weight: Weight of the generator's adversarial loss.
        domain_weight: Weight of the domain classification, on both sides.
        cycle_weight: Weight of the cycle.
        identity_weight: Weight of the distance between an image and its translation to its own
            modality; 0 is the paper.
        penalty_weight: Weight of the gradient penalty, or of R1 in other families.
        ema_decay: Decay of the weight average.
        total_steps: Steps that the learning-rate schedule is made for.
        name: Name of the model.

    Reference: Choi et al. 2018, StarGAN, arXiv:1711.09020.

    Raises:
        ValueError: For unknown options, or networks that do not fit the plan.
    """

    roles = ("generator", "discriminator")
    terms = (
        "loss",
        *TranslationGame.discriminator_terms,
        *TranslationGame.generator_terms,
        "identity",
    )

    def __init__(
        self,
        generator,
        discriminator,
        plan,
        spatial_dims=2,
        adversarial="wgan_gp",
        n_critic=5,
        adversarial_weight=1.0,
        domain_weight=1.0,
        cycle_weight=10.0,
        identity_weight=0.0,
        penalty_weight=10.0,
        ema_decay=0.999,
        total_steps=1000,
        name="stargan",
    ):
        networks = {"generator": generator, "discriminator": discriminator}
        super().__init__(networks, plan, spatial_dims, ema_decay, total_steps, name)
        if not isinstance(n_critic, int) or n_critic < 1:
            raise ValueError(f"Expected n_critic >= 1, a whole number, got {n_critic!r}.")
        check_weights(identity_weight=identity_weight)
        self.set_adversary(
            adversarial, adversarial_weight, domain_weight, cycle_weight, penalty_weight
        )
        self.n_critic, self.identity_weight = n_critic, identity_weight

    @classmethod
    def network_arguments(cls, plan, channels=1, spatial_dims=2, **options):
        return {
            "generator": {"channels": channels, "domains": len(plan.modalities)},
            "discriminator": cls.discriminator_arguments(plan, channels, spatial_dims),
        }

    def default_optimizers(self, learning_rate=None, adversary_rate=None):
        asked = {"generator": learning_rate, "discriminator": adversary_rate}
        rate = {role: RATE if own is None else own for role, own in asked.items()}
        moves = {"generator": self.total_steps, "discriminator": self.n_critic * self.total_steps}
        clip = {"generator": 5.0, "discriminator": None}
        return {
            role: keras.optimizers.Adam(
                constant_then_linear(rate[role], moves[role]),
                0.5,
                0.999,
                global_clipnorm=clip[role],
            )
            for role in self.roles
        }

    def play(self, batch):
        image, source, real, _, target = self.unpack(batch)
        with tf.GradientTape() as tape:
            fake = self.generator.translate(image, source, target, training=True)
        # 1. The discriminator, several times: real from made, and which modality the real one is.
        count = len(self.plan.modalities)
        for move in reversed(range(self.n_critic)):
            other = {**batch, "target": (target + move) % count}
            other["noise"] = (batch["noise"] + move * GOLDEN) % 1.0
            made = fake  # the last move's is the one that the generator's move uses
            if move:
                made = self.generator.translate(image, source, other["target"], training=True)
            with tf.GradientTape() as discriminator_tape:
                terms, watched = self.discriminate(real, made, other)
            loss = terms["discriminator_loss"]
            discriminator_norm = yield Move(loss, discriminator_tape, "discriminator")
        # 2. The generator: taken for real, of the modality asked for, and back again.
        with tape:
            loss, more, variety = self.generator_losses(
                self.generator, image, source, fake, batch, training=True
            )
        norm = yield Move(loss, tape, "generator")
        return {
            **{"loss": loss, **terms, **more, **watched, **variety},
            "generator_gradient_norm": norm,
            "discriminator_gradient_norm": discriminator_norm,
        }

    def score(self, batch):
        image, source, real, _, target = self.unpack(batch)
        fake = self.network.translate(image, source, target)
        terms, watched = self.discriminate(real, fake, batch)
        loss, more, variety = self.generator_losses(
            self.network, image, source, fake, batch, training=False
        )
        return {"loss": loss, **terms, **more, **watched, **variety}, None

    def generator_losses(self, generator, image, source, fake, batch, training):
        """Loss of the generator, its terms and watched values."""
        domain, target = batch["domain"], batch["target"]
        back = generator.translate(fake, target, domain, training=training)
        loss, terms, variety = self.persuade(image, source, fake, back, batch)
        same = tf.zeros(())
        if self.identity_weight:
            own = generator.translate(image, source, domain, training=training)
            same = cycle(batch["real"], own)
        return loss + self.identity_weight * same, {**terms, "identity": same}, variety

    def call(self, inputs):
        """Translations of the averaged generator.

        Args:
            inputs: Dict with `image` `(batch, *spatial, channels)` and int32 `(batch,)` `domain`
                (-1 unknown) and `target`.

        Returns:
            float32, the shape of the image.
        """
        return self.network.translate(inputs["image"], inputs["domain"], inputs["target"])

    def get_config(self):
        own = {"n_critic": self.n_critic, "identity_weight": self.identity_weight}
        return {**super().get_config(), **self.adversary_config(), **own}
