"""SegANScalar: SegAN with an ordinary discriminator, which its critic is measured against."""

import keras
import tensorflow as tf

from keras_unigan.losses import minimax_critic_loss, minimax_generator_loss
from keras_unigan.models.base import AdversarialModel
from keras_unigan.models.masked import MaskedCritic, annotated_samples, check_weights
from keras_unigan.models.segan import SPECTRAL_RATE
from keras_unigan.models.stepping import Move


@keras.saving.register_keras_serializable(package="keras_unigan")
class SegANScalar(MaskedCritic, AdversarialModel):
    """Minimax game over one real-or-fake logit per masked image.

    As `SegAN`, with `u = mask(x, p)` and `v = mask(x, y)` for each foreground class (or region) and
    one critic for all, but the critic says whether a mask is true or predicted, and the segmentor
    wants its own to be called true.

    Args:
        segmentor: Network from image to logits, one channel per output of `plan.labels`.
        critic: Network from masked image to one logit, bounded by spectral norm.
        plan: `config.Plan`, or its JSON dictionary.
        spatial_dims: 2 or 3.
        mask_mode: "concat" shows the critic `[x p, p]`, "multiply" `x p`.
        shift: In "multiply", maps `x` from [-1, 1] to [0.1, 1] so that no pixel is lost.
        lambda_dice: Weight of soft Dice in the segmentor's loss.
        ce_weight: Weight of the cross-entropy in the segmentor's loss.
        ema_decay: Decay of the weight average.
        total_steps: Steps that the run is meant to have.
        name: Name of the model.

    Reference: Goodfellow et al. 2014, arXiv:1406.2661, eq. 1, non-saturating for the segmentor; the
        comparison: Xue et al. 2018, SegAN, arXiv:1706.01805.

    Raises:
        ValueError: For unknown options, or networks that do not fit them.
    """

    roles = ("segmentor", "critic")
    labelled_fraction = 1.0
    terms = ("loss", "critic_loss", "adversarial_loss", "dice_loss", "ce_loss")
    masking = ("mask_mode", "shift")

    def __init__(
        self,
        segmentor,
        critic,
        plan,
        spatial_dims=2,
        mask_mode="concat",
        shift=True,
        lambda_dice=1.0,
        ce_weight=0.0,
        ema_decay=0.999,
        total_steps=1000,
        name="segan_scalar",
    ):
        networks = {"segmentor": segmentor, "critic": critic}
        super().__init__(networks, plan, spatial_dims, ema_decay, total_steps, name)
        self.set_masking(segmentor.channels, critic, mask_mode, shift=shift)
        check_weights(lambda_dice=lambda_dice, ce_weight=ce_weight)
        self.lambda_dice, self.ce_weight = lambda_dice, ce_weight

    @classmethod
    def network_arguments(cls, plan, channels=1, **options):
        return {
            "segmentor": {"channels": channels, "classes": len(plan.labels.names)},
            "critic": cls.critic_arguments(plan, channels, **options),
        }

    def default_optimizers(self, learning_rate=None, adversary_rate=None):
        rate = SPECTRAL_RATE if learning_rate is None else learning_rate
        own = SPECTRAL_RATE if adversary_rate is None else adversary_rate
        return {
            "segmentor": keras.optimizers.Adam(rate, 0.5, 0.999, global_clipnorm=5.0),
            "critic": keras.optimizers.Adam(own, 0.5, 0.999),
        }

    def play(self, batch):
        image, annotated = batch["image"], batch.get("annotated")
        target, valid = self.target(batch["label_map"], annotated)
        some = tf.reduce_any(valid > 0)
        with tf.GradientTape() as segmentor_tape:
            logits = self.segmentor(image, training=True)
            probabilities = self.activate(logits, annotated)
        # 1. The critic tells true masks from predicted ones.
        with tf.GradientTape() as critic_tape:
            fake, real = self.scores(image, probabilities, target, valid, training=True)
            scores = real, fake
            each = self.of_samples(minimax_critic_loss, valid, *scores, annotated=annotated)
            critic_loss = self.average(*each)
        critic_norm = yield Move(critic_loss, critic_tape, "critic", some)
        # 2. The segmentor wants its masks to be called true.
        with segmentor_tape:
            fake, _ = self.scores(image, probabilities, target, valid, training=False)
            terms = self.losses_of(fake, logits, target, valid, annotated)
        norm = yield Move(terms["loss"], segmentor_tape, "segmentor", some)
        return {
            **terms,
            "critic_loss": critic_loss,
            "segmentor_gradient_norm": norm,
            "critic_gradient_norm": critic_norm,
        }

    def score(self, batch):
        image, annotated = batch["image"], batch.get("annotated")
        target, valid = self.target(batch["label_map"], annotated)
        logits = self.network(image, training=False)
        probabilities = self.activate(logits, annotated)
        fake, real = self.scores(image, probabilities, target, valid, training=False)
        each = self.of_samples(minimax_critic_loss, valid, real, fake, annotated=annotated)
        terms = self.losses_of(fake, logits, target, valid, annotated)
        return {**terms, "critic_loss": self.average(*each)}, self.activate(logits)

    def losses_of(self, fake, logits, target, valid, annotated=None):
        """Every term of the segmentor's loss, scalars."""
        each = self.of_samples(minimax_generator_loss, valid, fake, annotated=annotated)
        adversarial = self.average(*each)
        dice_loss = self.average(*self.dice_loss(target, logits, valid, annotated))
        ce_loss = self.average(*self.cross_entropy(target, logits, valid, annotated))
        loss = adversarial + self.lambda_dice * dice_loss + self.ce_weight * ce_loss
        return {
            "loss": loss,
            "adversarial_loss": adversarial,
            "dice_loss": dice_loss,
            "ce_loss": ce_loss,
        }

    def scores(self, image, probabilities, target, valid, training):
        """Logits of predicted and of true masks, each `(batch, foreground classes)`.

        Both go through the critic in one call: spectral norm moves on at each one.
        """
        masked = self.masked(image, probabilities, target, valid)
        halves = tf.split(self.critic(masked, training=training), 2, axis=0)
        return [tf.transpose(tf.reshape(half, (-1, tf.shape(valid)[0]))) for half in halves]

    def of_samples(self, loss, valid, *scores, annotated=None):
        """A loss of each sample, the mean over its annotated classes, and the samples' weights."""
        each = tf.vectorized_map(lambda s: loss(*s), [tf.reshape(s, (-1,)) for s in scores])
        each = tf.reshape(each, tf.shape(scores[0]))
        counted = tf.ones_like(each) if annotated is None else annotated
        count = tf.maximum(tf.reduce_sum(counted, axis=-1), 1.0)
        return tf.reduce_sum(counted * each, axis=-1) / count, annotated_samples(valid)

    def get_config(self):
        weights = {"lambda_dice": self.lambda_dice, "ce_weight": self.ce_weight}
        return {**super().get_config(), **self.masking_config(), **weights}
