"""SynthesisGAN: label maps from noise, images from label maps, and a segmentor that reads them."""

import keras
import tensorflow as tf

from keras_unigan.layers import segment_logits
from keras_unigan.losses import ADVERSARIAL, cycle, domain_classification, gradient_penalty
from keras_unigan.models.masked import check_weights
from keras_unigan.models.optimizers import muon
from keras_unigan.models.schedules import constant_then_linear
from keras_unigan.models.stepping import Move
from keras_unigan.models.translation import TranslationGame

DARK = -0.99
"""Normalised intensity up to which a voxel that nobody annotated is taken to fill up a patch."""

RATES = {"renderer": 1e-3, "mask_generator": 1e-3, "discriminator": 4e-4, "mask_critic": 1e-3}


@keras.saving.register_keras_serializable(package="keras_unigan")
class SynthesisGAN(TranslationGame):
    """Synthetic images with their label maps, from noise.

    Order of the moves: 1. the discriminator tells rendered images from real ones, and the modality
    of real ones; 2. the critic tells made anatomies from real ones (WGAN-GP); 3. the segmentor
    learns from real images and their label maps, and from nothing else, so that it can judge what
    is made; 4. the renderer paints the anatomies of the batch in the asked modality, to be taken
    for real, of that modality, and to be segmented into the anatomy that was asked for
    (`L_seg(S(G(y)), y)`); of its own modality the image is known, and painted by mean absolute
    difference; 5. the mask generator is taken for real by the critic.

    Args:
        segmentor: Network from image to logits.
        renderer: `networks.ImageRenderer`.
        mask_generator: `networks.MaskGenerator`.
        discriminator: Network from image to patch scores and domain logits.
        mask_critic: `networks.MaskCritic`.
        plan: `config.Plan`, or its JSON dictionary.
        spatial_dims: 2 or 3.
        adversarial: Family in `losses.ADVERSARIAL` of the discriminator's game.
        adversarial_weight: Weight of the renderer's adversarial loss.
        domain_weight: Weight of the domain classification, on both sides.
        penalty_weight: Weight of the discriminator's penalty (R1, or the gradient penalty).
        own_weight: Weight of the mean absolute difference to the image of the same modality.
        anatomy_weight: Weight of cross-entropy and Dice of what the segmentor finds in a rendering.
        mask_penalty_weight: Weight of the gradient penalty of the mask critic.
        mean_weight: Weight of the mean absolute difference between the batch's mean of real and of
            made anatomies, which tells the mask generator early what lies where. It is a statistic
            of each replica's own samples.
        ema_decay: Decay of the weight averages of segmentor, renderer and mask generator.
        total_steps: Steps that the learning-rate schedules are made for.
        name: Name of the model.

    Reference: Park et al. 2019, SPADE, arXiv:1903.07291; Gulrajani et al. 2017, arXiv:1704.00028;
        Choi et al. 2018, StarGAN, arXiv:1711.09020 (the discriminator); Salimans et al. 2016,
        arXiv:1606.03498, eq. 1 (means, here of the planes themselves).

    Raises:
        ValueError: For an unknown family, or a weight below 0.
    """

    roles = ("segmentor", "renderer", "mask_generator", "discriminator", "mask_critic")
    least_modalities = 1
    labelled_fraction = 1.0
    terms = (
        *("loss", "ce_loss", "dice_loss"),
        *TranslationGame.discriminator_terms,
        *("mask_critic_loss", "mask_penalty", "mask_adversarial", "mask_mean"),
        *("renderer_loss", "adversarial", "target_loss", "own", "anatomy"),
    )

    def __init__(
        self,
        segmentor,
        renderer,
        mask_generator,
        discriminator,
        mask_critic,
        plan,
        spatial_dims=2,
        adversarial="hinge",
        adversarial_weight=1.0,
        domain_weight=1.0,
        penalty_weight=1.0,
        own_weight=10.0,
        anatomy_weight=1.0,
        mask_penalty_weight=10.0,
        mean_weight=20.0,
        ema_decay=0.999,
        total_steps=1000,
        name="synthesis_gan",
    ):
        networks = {"segmentor": segmentor, "renderer": renderer, "mask_generator": mask_generator}
        networks.update(discriminator=discriminator, mask_critic=mask_critic)
        super().__init__(networks, plan, spatial_dims, ema_decay, total_steps, name)
        self.set_adversary(adversarial, adversarial_weight, domain_weight, 0.0, penalty_weight)
        weights = {"own_weight": own_weight, "anatomy_weight": anatomy_weight}
        weights |= {"mask_penalty_weight": mask_penalty_weight, "mean_weight": mean_weight}
        check_weights(**weights)
        self.own_weight, self.anatomy_weight = own_weight, anatomy_weight
        self.mask_penalty_weight, self.mean_weight = mask_penalty_weight, mean_weight

    @property
    def averaged(self):
        return self.roles[:3]

    @property
    def kept(self):
        return {
            "renderer.keras": self.ema_renderer,
            "mask_generator.keras": self.ema_mask_generator,
        }

    @classmethod
    def network_arguments(cls, plan, channels=1, spatial_dims=2, **options):
        outputs = len(plan.labels.names)
        return {
            "segmentor": {"channels": channels, "classes": outputs},
            "renderer": {
                "planes": outputs + 1,
                "channels": channels,
                "domains": len(plan.modalities),
            },
            "mask_generator": {
                "planes": outputs + 1,
                "overlapping": plan.labels.overlapping,
                "patch_size": plan.configuration(spatial_dims).patch_size,
            },
            "discriminator": cls.discriminator_arguments(plan, channels, spatial_dims),
            "mask_critic": {"planes": outputs + 1},
        }

    def default_optimizers(self, learning_rate=None, adversary_rate=None):
        asked = dict.fromkeys(("renderer", "mask_generator"), learning_rate)
        asked.update(dict.fromkeys(("discriminator", "mask_critic"), adversary_rate))
        others = {
            role: keras.optimizers.Adam(
                constant_then_linear(own if asked[role] is None else asked[role], self.total_steps),
                0.5,
                0.999,
                global_clipnorm=5.0 if role in self.averaged else None,
            )
            for role, own in RATES.items()
        }
        return {"segmentor": muon(self.total_steps, learning_rate), **others}

    def seeds(self, batch, salt):
        """Whole numbers `(batch, 2)`: of the sample, so that replicas draw what one would."""
        own = tf.cast(batch["noise"] * 2.0**24, tf.int64)
        return tf.stack([own, tf.fill(tf.shape(own), tf.constant(salt, tf.int64))], axis=1)

    def play(self, batch):
        real, target = batch["real"], batch["target"]
        truth, valid = self.target(batch["label_map"], batch.get("annotated"))
        some = tf.reduce_any(valid > 0)
        planes, shown = self.anatomy(real, truth, valid)
        with tf.GradientTape() as renderer_tape:
            seeds = self.seeds(batch, 0)
            fake = self.renderer.render(planes, target, seeds, training=True)
        with tf.GradientTape() as mask_tape:
            made = self.mask_generator.sample(self.seeds(batch, 1), training=True)
        # 1. The discriminator: real from rendered, and which modality the real one is.
        norms = {}
        with tf.GradientTape() as tape:
            terms, watched = self.discriminate(real, fake, batch)
        if self.has_adversary:
            loss = terms["discriminator_loss"]
            norms["discriminator"] = yield Move(loss, tape, "discriminator")
        # 2. The mask critic: real anatomies from made ones, where all of the real one is known.
        known = self.known(shown, batch.get("annotated"))
        with tf.GradientTape() as tape:
            critic_terms = self.critic_losses(planes, made, known, batch)
        norms["mask_critic"] = yield Move(critic_terms["mask_critic_loss"], tape, "mask_critic")
        # 3. The segmentor, on real images.
        with tf.GradientTape() as tape:
            segmentor_terms, _ = self.segmentation(self.segmentor, batch, truth, valid, True)
        norms["segmentor"] = yield Move(segmentor_terms["loss"], tape, "segmentor", some)
        # 4. The renderer: taken for real, of the modality, showing the anatomy.
        with renderer_tape:
            loss, renderer_terms = self.renderer_losses(
                self.renderer, self.segmentor, batch, fake, planes, truth, valid, training=True
            )
        norms["renderer"] = yield Move(loss, renderer_tape, "renderer")
        # 5. The mask generator: taken for real.
        with mask_tape:
            mask_loss, mask_terms = self.mask_losses(made, planes, known)
        norms["mask_generator"] = yield Move(mask_loss, mask_tape, "mask_generator")
        norms = {f"{role}_gradient_norm": norm for role, norm in norms.items()}
        terms = {**terms, **critic_terms, **segmentor_terms, **renderer_terms, **mask_terms}
        _, source, *_ = self.unpack(batch)
        return {**terms, **watched, **self.variety(real, source, fake, target), **norms}

    def score(self, batch):
        real, target = batch["real"], batch["target"]
        truth, valid = self.target(batch["label_map"], batch.get("annotated"))
        planes, shown = self.anatomy(real, truth, valid)
        fake = self.ema_renderer.render(planes, target, self.seeds(batch, 0))
        made = self.ema_mask_generator.sample(self.seeds(batch, 1))
        terms, watched = self.discriminate(real, fake, batch)
        known = self.known(shown, batch.get("annotated"))
        segmentor_terms, logits = self.segmentation(self.network, batch, truth, valid, False)
        _, renderer_terms = self.renderer_losses(
            self.ema_renderer, self.network, batch, fake, planes, truth, valid, training=False
        )
        terms = {
            **terms,
            **self.critic_losses(planes, made, known, batch),
            **segmentor_terms,
            **renderer_terms,
            **self.mask_losses(made, planes, known)[1],
        }
        _, source, *_ = self.unpack(batch)
        watched.update(self.variety(real, source, fake, target))
        return {**terms, **watched}, self.activate(logits)

    def anatomy(self, real, truth, valid):
        """Planes of the images of a batch, and where they are known, float32 `(batch, *spatial)`.

        A patch that is larger than its scan is filled up with dark voxels that nobody annotated:
        they are outside, and background.
        """
        planes = self.renderer.anatomy(real, truth)
        filled = (1.0 - valid) * tf.cast(tf.reduce_max(real, axis=-1) <= DARK, tf.float32)
        inside = planes[..., -1:] * (1.0 - filled[..., None])
        outputs = planes[..., :-1]
        if not self.plan.labels.overlapping:
            background = outputs[..., :1] + filled[..., None]
            outputs = tf.concat([background, outputs[..., 1:]], axis=-1)
        return tf.concat([outputs, inside], axis=-1), tf.maximum(valid, filled)

    def known(self, shown, annotated):
        """1 for samples whose planes are known everywhere, of every name, float32 `(batch,)`."""
        known = tf.reduce_min(shown, axis=list(range(1, shown.shape.rank)))
        return known if annotated is None else known * tf.reduce_min(annotated, axis=-1)

    def critic_losses(self, planes, made, known, batch):
        """Loss of the mask critic and its penalty, scalars."""
        # One call for both: there is no norm over the batch in it.
        scores = self.mask_critic(tf.concat([planes, made], axis=0), training=True)
        real, fake = tf.split(tf.reduce_mean(scores, list(range(1, len(scores.shape)))), 2)
        penalty = tf.zeros(())
        if self.mask_penalty_weight:
            # Between made ones, where the real one is not known.
            shape = (-1, *[1] * (len(planes.shape) - 1))
            whole = tf.reshape(known, shape) * planes + (1.0 - tf.reshape(known, shape)) * made
            penalty = gradient_penalty(
                lambda x: self.mask_critic(x, training=True), whole, made, batch["noise"]
            )
        loss = tf.reduce_mean(fake) - self.average(real, known)
        loss += self.mask_penalty_weight * penalty
        return {"mask_critic_loss": loss, "mask_penalty": penalty}

    def mask_losses(self, made, planes, known):
        """Loss of the mask generator, and its terms, scalars."""
        adversarial, difference = (
            -tf.reduce_mean(self.mask_critic(made, training=True)),
            tf.zeros(()),
        )
        if self.mean_weight:
            weights = tf.reshape(known, (-1, *[1] * (len(planes.shape) - 1)))
            count = tf.reduce_sum(known)
            real = tf.reduce_sum(weights * planes, axis=0) / tf.maximum(count, 1.0)
            difference = tf.reduce_mean(tf.abs(real - tf.reduce_mean(made, axis=0)))
            difference *= tf.cast(count > 0, tf.float32)
        loss = adversarial + self.mean_weight * difference
        return loss, {"mask_adversarial": adversarial, "mask_mean": difference}

    def segmentation(self, network, batch, truth, valid, training):
        """Terms of the segmentor's loss on the images of a batch, and its logits."""
        _, source, *_ = self.unpack(batch)
        annotated = batch.get("annotated")
        logits = segment_logits(network, batch["image"], source, training)
        ce_loss = self.average(*self.cross_entropy(truth, logits, valid, annotated))
        dice_loss = self.average(*self.dice_loss(truth, logits, valid, annotated))
        return {"loss": ce_loss + dice_loss, "ce_loss": ce_loss, "dice_loss": dice_loss}, logits

    def renderer_losses(self, renderer, segmentor, batch, fake, planes, truth, valid, training):
        """Loss of the renderer, and its terms, scalars."""
        adversarial = target_loss = own = anatomy = tf.zeros(())
        if self.has_adversary:
            scores, logits = self.judge(fake, batch["target"])
            _, generator_loss = ADVERSARIAL[self.adversarial]
            adversarial = generator_loss(scores)
            if logits is not None:
                target_loss = domain_classification(batch["target"], logits)
        if self.own_weight:
            seeds = self.seeds(batch, 0)
            painted = renderer.render(planes, batch["domain"], seeds, training=training)
            own = cycle(batch["real"], painted)
        if self.anatomy_weight:
            annotated = batch.get("annotated")
            found = segment_logits(segmentor, fake, batch["target"])
            anatomy = self.average(*self.cross_entropy(truth, found, valid, annotated))
            anatomy += self.average(*self.dice_loss(truth, found, valid, annotated))
        loss = (
            self.adversarial_weight * adversarial
            + self.domain_weight * target_loss
            + self.own_weight * own
            + self.anatomy_weight * anatomy
        )
        terms = {"renderer_loss": loss, "adversarial": adversarial, "target_loss": target_loss}
        return loss, {**terms, "own": own, "anatomy": anatomy}

    def get_config(self):
        adversary = self.adversary_config()
        del adversary["cycle_weight"]
        names = ("own_weight", "anatomy_weight", "mask_penalty_weight", "mean_weight")
        return {**super().get_config(), **adversary, **{n: getattr(self, n) for n in names}}
