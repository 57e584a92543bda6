"""UnifiedGAN: one generator segments an image and translates it, in one game."""

import keras
import tensorflow as tf

from keras_unigan.layers import segment_logits
from keras_unigan.losses import ramp
from keras_unigan.models.masked import check_weights
from keras_unigan.models.schedules import cosine
from keras_unigan.models.stepping import Move
from keras_unigan.models.translation import TranslationGame

RATE, FLOOR, WEIGHT_DECAY = 3e-4, 3e-7, 3e-5


@keras.saving.register_keras_serializable(package="keras_unigan")
class UnifiedGAN(TranslationGame):
    """Segmentation and any-to-any translation of unpaired images by one network.

    The generator gives logits `p` and a translation `x~` of an image; fed with `x~` it gives logits
    `p'` and the way back. It lowers the adversarial, domain and cycle losses, the segmentation loss
    of `p`, and that of `p'` against the same label map (the shape term: a translation keeps its
    anatomy), whose weight grows from 0.

    Args:
        generator: Network from image and code to logits and image.
        discriminator: Network from image to patch scores and domain logits.
        plan: `config.Plan`, or its JSON dictionary.
        spatial_dims: 2 or 3.
        adversarial: "wgan_gp" (paper), "hinge", "lsgan", "minimax" or "minimax_saturating".
        adversarial_weight: Weight of the generator's adversarial loss. Where it and
            `domain_weight` are 0, the discriminator is left out.
        domain_weight: Weight of the domain classification, on both sides.
        cycle_weight: Weight of the cycle.
        penalty_weight: Weight of the gradient penalty, or of R1 in other families.
        segmentation_weight: Weight of the segmentation loss.
        shape_weight: Weight of the shape term at the end of its ramp.
        shape_ramp: Share of `total_steps` over which that weight grows.
        distillation_weight: Weight of the distillation between the modalities' prototypes.
        ema_decay: Decay of the weight average.
        total_steps: Steps that the ramp and the learning-rate schedule are made for.
        name: Name of the model.

    Reference: Yuan et al. 2020, Unified generative adversarial networks for multimodal segmentation
    from unpaired 3D medical images, doi:10.1016/j.media.2020.101731.

    Raises:
        ValueError: For unknown options, or networks that do not fit the plan.
    """

    roles: tuple[str, ...] = ("generator", "discriminator")
    labelled_fraction = 0.5
    segmentation_terms = ("segmentation_loss", "shape_loss", "distillation")
    terms: tuple[str, ...] = (
        "loss",
        *TranslationGame.discriminator_terms,
        *TranslationGame.generator_terms,
        *segmentation_terms,
    )

    def __init__(
        self,
        generator,
        discriminator,
        plan,
        spatial_dims=2,
        adversarial="wgan_gp",
        adversarial_weight=1.0,
        domain_weight=10.0,
        cycle_weight=100.0,
        penalty_weight=10.0,
        segmentation_weight=100.0,
        shape_weight=100.0,
        shape_ramp=1 / 3,
        distillation_weight=0.0,
        ema_decay=0.999,
        total_steps=1000,
        name="unified_gan",
    ):
        networks = {"generator": generator, "discriminator": discriminator}
        super().__init__(networks, plan, spatial_dims, ema_decay, total_steps, name)
        self.set_adversary(
            adversarial, adversarial_weight, domain_weight, cycle_weight, penalty_weight
        )
        self.set_tasks(segmentation_weight, shape_weight, shape_ramp, distillation_weight)

    def set_tasks(self, segmentation_weight, shape_weight, shape_ramp, distillation_weight):
        """Keeps the weights of the segmentation's terms; see the class for their meaning.

        Raises:
            ValueError: For one that is no number of at least 0.
        """
        weights = {"segmentation_weight": segmentation_weight, "shape_weight": shape_weight}
        check_weights(**weights, shape_ramp=shape_ramp, distillation_weight=distillation_weight)
        self.segmentation_weight = segmentation_weight
        self.shape_weight, self.shape_ramp = shape_weight, shape_ramp
        self.distillation_weight = distillation_weight

    @classmethod
    def network_arguments(cls, plan, channels=1, spatial_dims=2, **options):
        return {
            "generator": {
                "channels": channels,
                "classes": len(plan.labels.names),
                "domains": len(plan.modalities),
            },
            "discriminator": cls.discriminator_arguments(plan, channels, spatial_dims),
        }

    def default_optimizers(self, learning_rate=None, adversary_rate=None):
        adam = lambda rate, **clip: keras.optimizers.AdamW(  # noqa: E731
            cosine(rate or RATE, self.total_steps, 0.0, FLOOR), WEIGHT_DECAY, amsgrad=True, **clip
        )
        generator = adam(learning_rate, global_clipnorm=5.0)
        return {"generator": generator, "discriminator": adam(adversary_rate)}

    def play(self, batch):
        image, source, real, domain, target = self.unpack(batch)
        truth, valid = self.target(batch["label_map"], batch.get("annotated"))
        # What prediction asks for where the modality is not known has to be trained too: no
        # translation, for images that are to become what they are.
        asked = tf.where((source < 0) & (target == domain), -1, target)
        with tf.GradientTape() as tape:
            logits, fake = self.make(self.generator, image, source, asked, training=True)
        # 1. The discriminator: real from made, and which modality the real one is.
        norms = {}
        with tf.GradientTape() as discriminator_tape:
            terms, watched = self.discriminate(real, fake, batch)
        if self.has_adversary:
            loss = terms["discriminator_loss"]
            norms["discriminator"] = yield Move(loss, discriminator_tape, "discriminator")
        # 2. What a game adds, on the same logits.
        more, norms_between = yield from self.play_between(batch, logits, truth, valid)
        # 3. The generator: taken for real, back again, and the same anatomy before and after.
        with tape:
            loss, others, variety = self.generator_losses(
                self.generator, batch, logits, fake, truth, valid, training=True
            )
        norms.update(norms_between)
        norms["generator"] = yield Move(loss, tape, "generator")
        norms = {f"{role}_gradient_norm": norm for role, norm in norms.items()}
        return {"loss": loss, **terms, **more, **others, **watched, **variety, **norms}

    def play_between(self, batch, logits, truth, valid):
        """Moves between the discriminator's and the generator's; returns terms and norms."""
        yield from ()
        return {}, {}

    def score(self, batch):
        image, source, real, _, target = self.unpack(batch)
        truth, valid = self.target(batch["label_map"], batch.get("annotated"))
        fake = self.network.translate(image, source, target)
        logits = segment_logits(self.network, image, source)
        terms, watched = self.discriminate(real, fake, batch)
        loss, others, variety = self.generator_losses(
            self.network, batch, logits, fake, truth, valid, training=False
        )
        terms = {"loss": loss, **terms, **others, **watched, **variety}
        return terms, self.activate(logits)

    def make(self, generator, image, source, target, training):
        """Logits of an image, and the image as `target` shows it."""
        return generator([image, generator.code(source, target)], training=training)

    def generator_losses(self, generator, batch, logits, fake, truth, valid, training):
        """Loss of the generator, its terms and watched values, scalars."""
        image, source, _, domain, target = self.unpack(batch)
        again, back = self.make(generator, fake, target, domain, training)
        loss, terms, variety = self.persuade(image, source, fake, back, batch)
        annotated = batch.get("annotated")
        segmentation = self.segmentation_loss(truth, logits, valid, annotated)
        shape = self.segmentation_loss(truth, again, valid, annotated)
        share = ramp(self.completed_steps, self.shape_ramp * self.total_steps)
        distillation = tf.zeros(())
        if self.distillation_weight:
            distillation = self.distill(truth, logits, valid, domain, annotated)
        loss = (
            loss
            + self.segmentation_weight * segmentation
            + self.shape_weight * share * shape
            + self.distillation_weight * distillation
        )
        own = {"segmentation_loss": segmentation, "shape_loss": shape, "distillation": distillation}
        return loss, {**terms, **own}, variety

    def segmentation_loss(self, truth, logits, valid, annotated=None):
        """Cross-entropy plus Dice over what is annotated, a scalar."""
        dice_loss = self.average(*self.dice_loss(truth, logits, valid, annotated))
        return self.average(*self.cross_entropy(truth, logits, valid, annotated)) + dice_loss

    def get_config(self):
        names = ("segmentation_weight", "shape_weight", "shape_ramp", "distillation_weight")
        own = {name: getattr(self, name) for name in names}
        return {**super().get_config(), **self.adversary_config(), **own}
