"""StarGANSegAN: a translator and a segmentor that share no weights, in one literal game."""

import keras
import tensorflow as tf

from keras_unigan.layers import segment_logits
from keras_unigan.losses import ramp
from keras_unigan.models.masked import MaskedCritic, check_weights
from keras_unigan.models.schedules import cosine
from keras_unigan.models.stepping import Move
from keras_unigan.models.translation import TranslationGame

RATES = {"segmentor": 1e-3, "generator": 2e-4, "discriminator": 1e-4, "critic": 1e-3}


@keras.saving.register_keras_serializable(package="keras_unigan")
class StarGANSegAN(MaskedCritic, TranslationGame):
    """StarGAN beside SegAN: the segmentor learns from images and from their translations.

    Order of the moves: discriminator, critic, then generator and segmentor together on
    `-D(x~) + domain + cycle + L_ms(x, y) + L_ms(x~, y)` (and Dice on both), where the weight of the
    second `L_ms` grows from 0. The label map of an image is that of its translations too. The
    segmentor's loss reaches the generator through `x~`, which so has to keep the anatomy.

    Args:
        segmentor: Network from image to logits.
        generator: Network from image and code of the target to an image.
        discriminator: Network from image to patch scores and domain logits.
        critic: Network from masked image to a list of features.
        plan: `config.Plan`, or its JSON dictionary.
        spatial_dims: 2 or 3.
        adversarial: As in `StarGAN`.
        adversarial_weight: Weight of the generator's adversarial loss.
        domain_weight: Weight of the domain classification, on both sides.
        cycle_weight: Weight of the cycle.
        penalty_weight: Weight of the gradient penalty, or of R1 in other families.
        shape_weight: Weight of the terms on the translation at the end of their ramp.
        shape_ramp: Share of `total_steps` over which that weight grows.
        lambda_dice: Weight of soft Dice in both segmentation terms; 0 leaves it out.
        mask_mode: As in `SegAN`.
        critic_mode: As in `SegAN`.
        include_input: As in `SegAN`.
        weighting: As in `SegAN`.
        constraint: As in `SegAN`.
        shift: As in `SegAN`.
        clip_value: As in `SegAN`.
        ema_decay: Decay of the weight averages of segmentor and generator.
        total_steps: Steps that the ramp and the learning-rate schedule are made for.
        name: Name of the model.

    Raises:
        ValueError: For unknown options, or networks that do not fit them.
    """

    roles = ("segmentor", "generator", "discriminator", "critic")
    labelled_fraction = 0.5
    terms = (
        "loss",
        *TranslationGame.discriminator_terms,
        *TranslationGame.generator_terms,
        *("critic_loss", "multi_scale_l1", "shape_l1", "dice_loss", "shape_dice_loss"),
    )

    def __init__(
        self,
        segmentor,
        generator,
        discriminator,
        critic,
        plan,
        spatial_dims=2,
        adversarial="wgan_gp",
        adversarial_weight=1.0,
        domain_weight=1.0,
        cycle_weight=10.0,
        penalty_weight=10.0,
        shape_weight=1.0,
        shape_ramp=0.5,
        lambda_dice=1.0,
        mask_mode="concat",
        critic_mode="shared",
        include_input=True,
        weighting="level",
        constraint="spectral",
        shift=True,
        clip_value=0.05,
        ema_decay=0.999,
        total_steps=1000,
        name="stargan_segan",
    ):
        networks = {"segmentor": segmentor, "generator": generator}
        networks.update(discriminator=discriminator, critic=critic)
        super().__init__(networks, plan, spatial_dims, ema_decay, total_steps, name)
        self.set_adversary(
            adversarial, adversarial_weight, domain_weight, cycle_weight, penalty_weight
        )
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
        weights = {"shape_weight": shape_weight, "shape_ramp": shape_ramp}
        check_weights(**weights, lambda_dice=lambda_dice)
        self.shape_weight, self.shape_ramp = shape_weight, shape_ramp
        self.lambda_dice = lambda_dice

    @property
    def averaged(self):
        return self.roles[:2]

    @classmethod
    def network_arguments(cls, plan, channels=1, spatial_dims=2, **options):
        return {
            "segmentor": {"channels": channels, "classes": len(plan.labels.names)},
            "generator": {"channels": channels, "domains": len(plan.modalities)},
            "discriminator": cls.discriminator_arguments(plan, channels, spatial_dims),
            "critic": cls.critic_arguments(plan, channels, **options),
        }

    def default_optimizers(self, learning_rate=None, adversary_rate=None):
        chosen = {r: learning_rate if r in self.averaged else adversary_rate for r in RATES}
        return {
            role: keras.optimizers.Adam(
                cosine(rate if chosen[role] is None else chosen[role], self.total_steps),
                0.5,
                0.999,
                global_clipnorm=5.0 if role in self.averaged else None,
            )
            for role, rate in RATES.items()
        }

    def play(self, batch):
        image, source, real, _, target = self.unpack(batch)
        annotated = batch.get("annotated")
        truth, valid = self.target(batch["label_map"], annotated)
        some = tf.reduce_any(valid > 0)
        with tf.GradientTape(persistent=True) as tape:
            fake = self.generator.translate(image, source, target, training=True)
            logits = self.segmentor(image, training=True)
        # 1. The discriminator: real from made, and which modality the real one is.
        norms = {}
        with tf.GradientTape() as discriminator_tape:
            terms, watched = self.discriminate(real, fake, batch)
        if self.has_adversary:
            loss = terms["discriminator_loss"]
            norms["discriminator"] = yield Move(loss, discriminator_tape, "discriminator")
        # 2. The critic: true and predicted masks apart.
        with tf.GradientTape() as critic_tape:
            masks = self.activate(logits, annotated), truth, valid
            critic_loss = -self.gap(image, *masks, training=True, annotated=annotated)
        norms["critic"] = yield Move(critic_loss, critic_tape, "critic", some)
        self.constrain_critic()
        # 3. Generator and segmentor together, each by its own optimizer.
        with tape:
            networks = self.generator, self.segmentor
            loss, others, variety = self.losses_of(
                *networks, batch, logits, fake, truth, valid, training=True
            )
        norms["segmentor"] = yield Move(loss, tape, "segmentor", some)
        norms["generator"] = yield Move(loss, tape, "generator")
        norms = {f"{role}_gradient_norm": norm for role, norm in norms.items()}
        terms = {**terms, "critic_loss": critic_loss, **others}
        return {"loss": loss, **terms, **watched, **variety, **norms}

    def score(self, batch):
        image, source, real, _, target = self.unpack(batch)
        truth, valid = self.target(batch["label_map"], batch.get("annotated"))
        fake = self.translator.translate(image, source, target)
        logits = segment_logits(self.network, image, source)
        terms, watched = self.discriminate(real, fake, batch)
        loss, others, variety = self.losses_of(
            self.translator, self.network, batch, logits, fake, truth, valid, training=False
        )
        terms = {"loss": loss, **terms, "critic_loss": -others["multi_scale_l1"], **others}
        return {**terms, **watched, **variety}, self.activate(logits)

    def losses_of(self, generator, segmentor, batch, logits, fake, truth, valid, training):
        """The common loss of generator and segmentor, its terms and watched values, scalars."""
        image, source, _, domain, target = self.unpack(batch)
        back = generator.translate(fake, target, domain, training=training)
        loss, terms, variety = self.persuade(image, source, fake, back, batch)
        again = segmentor(fake, training=training)
        share = self.shape_weight * ramp(self.completed_steps, self.shape_ramp * self.total_steps)
        training, annotated = training and self.constraint == "clip", batch.get("annotated")
        for name, seen, found, weight in (
            ("", image, logits, 1.0),
            ("shape_", fake, again, share),
        ):
            probabilities = self.activate(found, annotated)
            gap = self.gap(seen, probabilities, truth, valid, training, annotated)
            dice_loss = self.average(*self.dice_loss(truth, found, valid, annotated))
            loss = loss + weight * (gap + self.lambda_dice * dice_loss)
            terms["shape_l1" if name else "multi_scale_l1"] = gap
            terms[f"{name}dice_loss"] = dice_loss
        return loss, terms, variety

    def get_config(self):
        names = ("shape_weight", "shape_ramp", "lambda_dice")
        own = {name: getattr(self, name) for name in names}
        adversary, masking = self.adversary_config(), self.masking_config()
        return {**super().get_config(), **adversary, **masking, **own}
