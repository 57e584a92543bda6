"""SIFA: images and features of two modalities are brought together around one encoder."""

import keras
import tensorflow as tf

from keras_unigan.losses import least_squares, sample_cycle
from keras_unigan.models.base import AdversarialModel
from keras_unigan.models.masked import check_weights
from keras_unigan.models.pairs import PairGame, mean_scores
from keras_unigan.models.schedules import constant_then_linear
from keras_unigan.models.stepping import Move

RATE = 2e-4
JUDGES = ("discriminator_a", "discriminator_b", "discriminator_mask", "discriminator_low")


@keras.saving.register_keras_serializable(package="keras_unigan")
class SIFA(PairGame):
    """Labels of the first modality of the pair teach a segmentor of the second.

    The translator makes images of the second modality (`x~`). One encoder sees real and made ones;
    from its map a decoder makes images of the first modality, and segmentors make label maps.
    Losses: cross-entropy and Dice of `x~`; least squares of discriminators of both modalities;
    cycles both ways; of the label maps of real and made images, which a discriminator is not to
    tell apart, at both depths; and of images of the first modality that were translated once or
    there and back, which the second score of their discriminator is not to tell apart.

    Moves: (1) the translator, (2) the decoder, (3) encoder and segmentors, each on its own sum of
    these terms and all from one forward pass; then (4) to (7) the discriminators of the first and
    of the second modality, which see earlier translations too, and of the label maps of both
    depths. (The authors' code goes through the networks again before each of these moves.)

    At prediction images of the first modality are translated before; those of any other one, and of
    an unknown one, are taken for the second. Batches as in `PairGame`.

    Args:
        segmentor: `networks.SIFANetwork` of the pair.
        discriminator_a: Network from an image of the first modality to two scores a patch.
        discriminator_b: Network from an image of the second modality to one.
        discriminator_mask: Network from probabilities of all classes to one.
        discriminator_low: The same for those of the encoder's shallower map.
        plan: `config.Plan`, or its JSON dictionary.
        spatial_dims: 2.
        pair: Names of the labelled and of the other modality; None takes the first two of the plan.
        ce_weight: Weight of the cross-entropy.
        dice_weight: Weight of soft Dice.
        low_weight: Weight of both for the shallower map.
        cycle_weight: Weight of the cycles.
        decoder_weight: Share of the decoder's loss that the encoder takes on.
        mask_weight: Weight of deceiving the discriminator of label maps.
        low_mask_weight: The same for the shallower map.
        aux_weight: Weight of deceiving the second score of `discriminator_a`.
        pool_size: Earlier translations kept for each discriminator of images; 0 keeps none.
        ema_decay: Decay of the weight average.
        total_steps: Steps that the learning-rate schedule is made for.
        name: Name of the model.

    Reference: Chen et al. 2020, Unsupervised bidirectional cross-modality adaptation via deeply
        synergistic image and feature alignment, arXiv:2002.02255.

    Raises:
        ValueError: For unknown options, or networks that do not fit them.
    """

    roles = ("segmentor", "forth", "decoder", *JUDGES)
    parts = ("forth", "decoder")
    taught = True
    terms = (
        *("loss", "ce_loss", "dice_loss", "low_loss", "forth_loss", "decoder_loss", "cycle"),
        *("adversarial", "mask_adversarial", "aux_adversarial"),
        *(f"{role}_loss" for role in JUDGES),
    )
    watched = ("real_score", "fake_score", "copy_ratio", "diversity")
    weights_of_terms = (
        *("ce_weight", "dice_weight", "low_weight", "cycle_weight", "decoder_weight"),
        *("mask_weight", "low_mask_weight", "aux_weight"),
    )

    def __init__(
        self,
        segmentor,
        discriminator_a,
        discriminator_b,
        discriminator_mask,
        discriminator_low,
        plan,
        spatial_dims=2,
        pair=None,
        ce_weight=1.0,
        dice_weight=1.0,
        low_weight=0.1,
        cycle_weight=10.0,
        decoder_weight=0.1,
        mask_weight=0.1,
        low_mask_weight=0.01,
        aux_weight=0.1,
        pool_size=50,
        ema_decay=0.999,
        total_steps=1000,
        name="sifa",
    ):
        judges = (discriminator_a, discriminator_b, discriminator_mask, discriminator_low)
        networks = {"segmentor": segmentor, **dict(zip(JUDGES, judges, strict=True))}
        super().__init__(networks, plan, spatial_dims, ema_decay, total_steps, name)
        self.set_pair(pair, segmentor, pool_size)
        self.ce_weight, self.dice_weight, self.low_weight = ce_weight, dice_weight, low_weight
        self.cycle_weight, self.decoder_weight = cycle_weight, decoder_weight
        self.mask_weight, self.low_mask_weight = mask_weight, low_mask_weight
        self.aux_weight = aux_weight
        check_weights(**{name: getattr(self, name) for name in self.weights_of_terms})

    @property
    def forth(self):
        """The translator to the second modality."""
        return self.segmentor.forth

    @property
    def decoder(self):
        """From the encoder's map to an image of the first modality."""
        return self.segmentor.decoder

    @classmethod
    def network_arguments(cls, plan, channels=1, **options):
        classes = len(plan.labels.names)
        main = {"channels": channels, "classes": classes, "pair": cls.indices(plan, options)}
        return {
            "segmentor": main,
            "discriminator_a": {"channels": channels, "scores": 2},
            "discriminator_b": {"channels": channels},
            "discriminator_mask": {"channels": classes},
            "discriminator_low": {"channels": classes},
        }

    def default_optimizers(self, learning_rate=None, adversary_rate=None):
        own, other = (RATE if r is None else r for r in (learning_rate, adversary_rate))
        rates = {role: other if role in JUDGES else own for role in self.roles}
        return {
            role: keras.optimizers.Adam(
                constant_then_linear(rate, self.total_steps),
                0.9 if role == "segmentor" else 0.5,
                0.999,
                global_clipnorm=None if role in JUDGES else 5.0,
            )
            for role, rate in rates.items()
        }

    def play(self, batch):
        sides = self.sides(batch)
        some = [self.some(side) for side in sides]
        either, both = some[0] | some[1], some[0] & some[1]
        with tf.GradientTape(persistent=True) as tape:
            made = self.made(self.segmentor, sides, training=True)
            losses, terms = self.losses_of(sides, made)
        norms = {}
        # 1. The translator, 2. the decoder, 3. encoder and segmentors.
        for role in ("forth", "decoder", "segmentor"):
            norms[role] = yield Move(losses[role], tape, role, either)
        # 4. and 5. Images: real from made, now or earlier. 6. and 7. Label maps of either depth.
        seen = self.seen(batch, sides, made)
        scores = []
        for role, (real, fake, *rest) in seen.items():
            with tf.GradientTape() as judge_tape:
                loss, *means = self.told_apart(role, sides, real, fake, *rest)
                loss = tf.where(both, loss, 0.0)
            norms[role] = yield Move(loss, judge_tape, role, both)
            terms[f"{role}_loss"] = loss
            scores.append(means)
        variety = self.pair_variety(sides, (made["forth"], made["back"]))
        norms = {f"{role}_gradient_norm": norm for role, norm in norms.items()}
        return {**terms, **mean_scores(scores[:2]), **variety, **norms}

    def score(self, batch):
        sides = self.sides(batch)
        made = self.made(self.network, sides, training=False)
        _, terms = self.losses_of(sides, made)
        scores = []
        for role, (real, fake, *rest) in self.seen(batch, sides, made, pools=False).items():
            terms[f"{role}_loss"], *means = self.told_apart(role, sides, real, fake, *rest)
            scores.append(means)
        some = tf.reduce_any(tf.stack([self.some(side) for side in sides]))
        terms = {name: tf.where(some, value, float("nan")) for name, value in terms.items()}
        variety = self.pair_variety(sides, (made["forth"], made["back"]))
        _, source, *_ = self.unpack(batch)
        probabilities = self.activate(self.network.segment(batch["image"], source))
        return {**terms, **mean_scores(scores[:2]), **variety}, probabilities

    def made(self, network, sides, training):
        """All that the networks make of both sides, by name."""
        image_a, image_b = (side["image"] for side in sides)
        forth = network.forth(image_a, training=training)
        logits, low, latent = network.labels(image_b, training=training)
        back = network.decoder([latent, image_b], training=training)
        fake_logits, fake_low, fake_latent = network.labels(forth, training=training)
        return {
            "forth": forth,
            "back": back,
            "logits": fake_logits,
            "low": fake_low,
            "masks": self.activate(logits),
            "low_masks": self.activate(low),
            "fake_masks": self.activate(fake_logits),
            "fake_low_masks": self.activate(fake_low),
            "cycle_a": network.decoder([fake_latent, forth], training=training),
            "cycle_b": network.forth(back, training=training),
        }

    def losses_of(self, sides, made):
        """Loss of each role that makes something, and all their terms, scalars."""
        (a, b), goal = sides, lambda s, side: self.average(least_squares(s, 1.0), side["weight"])
        scores_a = self.discriminator_a(made["back"], training=True)
        cycle = self.average(sample_cycle(a["real"], made["cycle_a"]), a["weight"])
        cycle += self.average(sample_cycle(b["real"], made["cycle_b"]), b["weight"])
        to_a = goal(scores_a[..., :1], b)
        to_b = goal(self.discriminator_b(made["forth"], training=True), a)
        aux = goal(scores_a[..., 1:], b)
        masks = goal(self.discriminator_mask(made["masks"], training=True), b)
        low_masks = goal(self.discriminator_low(made["low_masks"], training=True), b)
        ce_loss, dice_loss, _ = self.taught_losses(a, made["logits"])
        low_ce, low_dice, _ = self.taught_losses(a, made["low"])
        low_loss = self.ce_weight * low_ce + self.dice_weight * low_dice
        decoder = self.cycle_weight * cycle + to_a
        deceived = self.mask_weight * masks + self.low_mask_weight * low_masks
        loss = (
            self.ce_weight * ce_loss
            + self.dice_weight * dice_loss
            + self.low_weight * low_loss
            + self.decoder_weight * decoder
            + deceived
            + self.aux_weight * aux
        )
        losses = {"forth": self.cycle_weight * cycle + to_b, "decoder": decoder, "segmentor": loss}
        return losses, {
            "loss": loss,
            "ce_loss": ce_loss,
            "dice_loss": dice_loss,
            "low_loss": low_loss,
            "forth_loss": losses["forth"],
            "decoder_loss": decoder,
            "cycle": cycle,
            "adversarial": to_a + to_b,
            "mask_adversarial": masks + low_masks,
            "aux_adversarial": aux,
        }

    def seen(self, batch, sides, made, pools=True):
        """Role -> what each discriminator is to take for real, and for made."""
        images = {}
        pairs = self.judged(sides, (made["forth"], made["back"]))
        for role, side, other, fake, pool in pairs:
            images[role] = [side["real"], self.pooled(pool if pools else None, batch, other, fake)]
        images["discriminator_a"].append(made["cycle_a"])
        return {
            **images,
            "discriminator_mask": [made["fake_masks"], made["masks"]],
            "discriminator_low": [made["fake_low_masks"], made["low_masks"]],
        }

    def told_apart(self, role, sides, real, fake, there_and_back=None):
        """Loss of a discriminator, and its mean scores of real and made images."""
        side, other = sides[::-1] if role == "discriminator_b" else sides
        judge = getattr(self, role)
        parts = [real, fake] + ([] if there_and_back is None else [there_and_back])
        # One call for all: there is no norm over the batch in it.
        scores = judge(tf.concat(parts, axis=0), training=True)
        scores = tf.split(scores, [tf.shape(part)[0] for part in parts])
        loss, *means = self.half_squares(scores[0][..., :1], scores[1][..., :1], side, other)
        if there_and_back is not None:
            loss += self.half_squares(scores[2][..., 1:], scores[1][..., 1:], side, other)[0]
        return loss, *means

    def call(self, inputs):
        """Probabilities of the averaged segmentor; see `AdversarialModel.call`."""
        return AdversarialModel.call(self, inputs)

    def get_config(self):
        names = (*self.weights_of_terms, "pool_size")
        own = {name: getattr(self, name) for name in names}
        return {**super().get_config(), "pair": list(self.pair), **own}
