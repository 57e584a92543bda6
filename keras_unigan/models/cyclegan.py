"""CycleGAN: a translator and a discriminator for each direction between two modalities."""

import keras
import tensorflow as tf

from keras_unigan.losses import least_squares, sample_cycle
from keras_unigan.models.masked import check_weights
from keras_unigan.models.pairs import PairGame, mean_scores
from keras_unigan.models.schedules import constant_then_linear
from keras_unigan.models.stepping import Move

RATE = 2e-4


@keras.saving.register_keras_serializable(package="keras_unigan")
class CycleGAN(PairGame):
    """Translation between two modalities of the plan, there and back, by a network each.

    Order of the moves: both translators together, then the discriminator of the first and of the
    second modality, which see earlier translations too (`ImagePool`). Every image of the pair goes
    to the other modality; see `PairGame` for the rest of a batch.

    Args:
        generator: `networks.PairTranslator` of the pair.
        discriminator_a: Network from an image of the first modality to patch scores.
        discriminator_b: The same for the second modality.
        plan: `config.Plan`, or its JSON dictionary.
        spatial_dims: 2.
        pair: Names of the two modalities; None takes the first two of the plan.
        adversarial_weight: Weight of the translators' least-squares loss.
        cycle_weight: Weight of the cycles.
        identity_weight: Weight of the distance between an image and what the translator to its own
            modality makes of it; 0 leaves it out. (The authors have half the cycle's weight for
            paintings, and 0 elsewhere.)
        pool_size: Earlier translations kept for each discriminator; 0 keeps none.
        ema_decay: Decay of the weight average of both translators.
        total_steps: Steps that the learning-rate schedule is made for.
        name: Name of the model.

    Reference: Zhu et al. 2017, Unpaired image-to-image translation using cycle-consistent
        adversarial networks, arXiv:1703.10593.

    Raises:
        ValueError: For unknown options, or networks that do not fit them.
    """

    roles = ("generator", "discriminator_a", "discriminator_b")
    terms: tuple[str, ...] = (
        *("loss", "adversarial", "cycle", "identity"),
        *("discriminator_a_loss", "discriminator_b_loss"),
    )
    watched = ("real_score", "fake_score", "copy_ratio", "diversity")

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
        pool_size=50,
        ema_decay=0.999,
        total_steps=1000,
        name="cyclegan",
    ):
        networks = {"generator": generator, "discriminator_a": discriminator_a}
        networks["discriminator_b"] = discriminator_b
        super().__init__(networks, plan, spatial_dims, ema_decay, total_steps, name)
        self.set_pair(pair, generator, pool_size)
        check_weights(
            adversarial_weight=adversarial_weight,
            cycle_weight=cycle_weight,
            identity_weight=identity_weight,
        )
        self.adversarial_weight, self.cycle_weight = adversarial_weight, cycle_weight
        self.identity_weight = identity_weight

    @classmethod
    def network_arguments(cls, plan, channels=1, **options):
        return {
            "generator": {"channels": channels, "pair": cls.indices(plan, options)},
            "discriminator_a": {"channels": channels},
            "discriminator_b": {"channels": channels},
        }

    def default_optimizers(self, learning_rate=None, adversary_rate=None):
        asked = dict.fromkeys(self.roles[1:], adversary_rate) | {"generator": learning_rate}
        rates = {role: RATE if own is None else own for role, own in asked.items()}
        return {
            role: keras.optimizers.Adam(
                constant_then_linear(rates[role], self.total_steps),
                0.5,
                0.999,
                global_clipnorm=5.0 if role == "generator" else None,
            )
            for role in self.roles
        }

    def play(self, batch):
        sides = self.sides(batch)
        some = [self.some(side) for side in sides]
        # 1. Both translators: taken for real, and back again.
        with tf.GradientTape() as tape:
            fakes = self.fakes(self.generator, sides, training=True)
            loss, terms, variety = self.generator_losses(self.generator, sides, fakes, True)
            own, lessons = self.lessons(self.generator, sides, fakes, training=True)
            loss += own
        norm = yield Move(loss, tape, "generator", some[0] | some[1])
        norms = {"generator_gradient_norm": norm}
        # 2. and 3. Each discriminator: real from made, now or earlier.
        scores = []
        for role, side, other, fake, pool in self.judged(sides, fakes):
            fake = self.pooled(pool, batch, other, fake)
            with tf.GradientTape() as discriminator_tape:
                discriminator_loss, *seen = self.discriminate(role, side, other, fake)
                # Of one side alone there is nothing to tell apart.
                both = some[0] & some[1]
                discriminator_loss = tf.where(both, discriminator_loss, 0.0)
            norm = yield Move(discriminator_loss, discriminator_tape, role, both)
            norms[f"{role}_gradient_norm"] = norm
            terms[f"{role}_loss"] = discriminator_loss
            scores.append(seen)
        return {"loss": loss, **terms, **lessons, **mean_scores(scores), **variety, **norms}

    def score(self, batch):
        sides = self.sides(batch)
        fakes = self.fakes(self.network, sides, training=False)
        loss, terms, variety = self.generator_losses(self.network, sides, fakes, False)
        scores = []
        for role, side, other, fake, _ in self.judged(sides, fakes):
            terms[f"{role}_loss"], *seen = self.discriminate(role, side, other, fake)
            scores.append(seen)
        terms = self.of_both(sides, {"loss": loss, **terms})
        own, lessons = self.lessons(self.network, sides, fakes, training=False)
        terms["loss"] += own
        return {**terms, **lessons, **mean_scores(scores), **variety}, None

    def lessons(self, network, sides, fakes, training):
        """What a game learns beside the translation: its loss, and the terms of that."""
        return 0.0, {}

    def fakes(self, generator, sides, training):
        """Translations of both sides to the other one."""
        ways = (generator.forth, generator.back)
        return [w(s["image"], training=training) for w, s in zip(ways, sides, strict=True)]

    def generator_losses(self, generator, sides, fakes, training):
        """Loss of both translators, its terms and watched values, scalars."""
        adversarial = back = same = tf.zeros(())
        to_own = (generator.back, generator.forth)
        judges = (self.discriminator_b, self.discriminator_a)
        for side, fake, own, judge in zip(sides, fakes, to_own, judges, strict=True):
            scores, weight = judge(fake, training=True), side["weight"]
            adversarial += self.average(least_squares(scores, 1.0), weight)
            again = own(fake, training=training)
            back += self.average(sample_cycle(side["real"], again), weight)
            if self.identity_weight:
                kept = own(side["image"], training=training)
                same += self.average(sample_cycle(side["real"], kept), weight)
        loss = (
            self.adversarial_weight * adversarial
            + self.cycle_weight * back
            + self.identity_weight * same
        )
        terms = {"adversarial": adversarial, "cycle": back, "identity": same}
        return loss, terms, self.pair_variety(sides, fakes)

    def call(self, inputs):
        """Translations of the averaged translators.

        Args:
            inputs: Dict with `image` `(batch, *spatial, channels)` and int32 `(batch,)` `domain`
                (-1 unknown) and `target`.

        Returns:
            float32, the shape of the image; see `networks.PairTranslator.translate`.
        """
        return self.network.translate(inputs["image"], inputs["domain"], inputs["target"])

    def get_config(self):
        names = ("adversarial_weight", "cycle_weight", "identity_weight", "pool_size")
        own = {name: getattr(self, name) for name in names}
        return {**super().get_config(), "pair": list(self.pair), **own}
