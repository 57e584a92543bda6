"""SegAN: a critic looks for the scale at which predicted and true masks differ most."""

import keras
import tensorflow as tf

from keras_unigan.losses import (
    class_cross_entropy,
    multi_scale_l1_flat,
    multi_scale_l1_level,
    region_cross_entropy,
    soft_dice,
)
from keras_unigan.losses.consistency import FLAT_FACTORS
from keras_unigan.models.base import AdversarialModel

# RMSProp's rate of the published form, and Adam's of the practical one. On 64x64 phantoms at width
# 32, 300 steps of 8, Adam gave Dice 0.942, 0.949 and 0.942 at 5e-4, 1e-3 and 2e-3; the published
# form at its own rate needs far longer runs.
CLIP_RATE, SPECTRAL_RATE = 2e-5, 1e-3


@keras.saving.register_keras_serializable(package="keras_unigan")
class SegAN(AdversarialModel):
    """Min-max game over the multi-scale L1 distance of masked images.

    With `u = mask(x, p)` and `v = mask(x, y)` for prediction `p` and truth `y` of each foreground
    class (or region), the critic raises and the segmentor lowers `L_ms`, the mean absolute
    difference of the critic's features of `u` and `v`. One critic serves all classes. The published
    form is `mask_mode="multiply"`, `shift=False`, `include_input=False`, `constraint="clip"` and
    `lambda_dice=0`.

    Args:
        segmentor: Network from image to logits, one channel per output of `plan.labels`.
        critic: Network from masked image to a list of features, its input first.
        plan: `config.Plan`, or its JSON dictionary.
        spatial_dims: 2 or 3.
        mask_mode: "concat" compares `[x p, p]`, "multiply" (paper) compares `x p`, in which pixels
            with `x = 0` give the segmentor no gradient.
        include_input: Whether the masked images themselves count as a level, as in the released
            code.
        weighting: "level" (each level counts the same) or "flat" (skin-lesion form).
        constraint: "spectral" or "clip", which must be the critic's own.
        shift: In "multiply", maps `x` from [-1, 1] to [0.1, 1] so that no pixel is lost.
        lambda_dice: Weight of soft Dice in the segmentor's loss; 0 is the paper.
        ce_weight: Weight of the cross-entropy in the segmentor's loss; 0 is the paper. Dice and
            `L_ms` reach the logits through `p (1 - p)` only, so that a class which the segmentor
            has given up stays lost; the cross-entropy brings it back (decision 0004).
        clip_value: Bound of the critic's weights under "clip".
        ema_decay: Decay of the weight average.
        name: Name of the model.

    Reference: Xue et al. 2018, SegAN, arXiv:1706.01805.

    Raises:
        ValueError: For unknown options, or networks that do not fit them.
    """

    roles = ("segmentor", "critic")
    terms = ("loss", "critic_loss", "multi_scale_l1", "dice_loss", "ce_loss")

    def __init__(
        self,
        segmentor,
        critic,
        plan,
        spatial_dims=2,
        mask_mode="concat",
        include_input=True,
        weighting="level",
        constraint="spectral",
        shift=True,
        lambda_dice=1.0,
        ce_weight=0.0,
        clip_value=0.05,
        ema_decay=0.999,
        name="segan",
    ):
        networks = {"segmentor": segmentor, "critic": critic}
        super().__init__(networks, plan, spatial_dims, ema_decay, name)
        _choice("mask_mode", mask_mode, ("concat", "multiply"))
        _choice("weighting", weighting, ("level", "flat"))
        _choice("constraint", constraint, (getattr(critic, "constraint", constraint),))
        needed = segmentor.input_shape[-1] + (mask_mode == "concat")
        if critic.input_shape[-1] != needed:
            raise ValueError(
                f"Expected a critic of {needed} channels for mask_mode {mask_mode!r}, got "
                f"{critic.input_shape[-1]}."
            )
        self.mask_mode, self.include_input, self.weighting = mask_mode, include_input, weighting
        self.constraint, self.shift = constraint, shift
        self.lambda_dice, self.ce_weight = lambda_dice, ce_weight
        self.clip_value = clip_value

    @classmethod
    def network_arguments(cls, plan, channels=1, **options):
        constraint = options.get("constraint", "spectral")
        masked = channels + (options.get("mask_mode", "concat") == "concat")
        return {
            "segmentor": {"channels": channels, "classes": len(plan.labels.names)},
            "critic": {"channels": masked, "constraint": constraint},
        }

    def default_optimizers(self, learning_rate=None):
        if self.constraint == "clip":
            rate = CLIP_RATE if learning_rate is None else learning_rate
            return {
                "segmentor": keras.optimizers.RMSprop(rate, global_clipnorm=5.0),
                "critic": keras.optimizers.RMSprop(rate),
            }
        rate = SPECTRAL_RATE if learning_rate is None else learning_rate
        return {
            "segmentor": keras.optimizers.Adam(rate, 0.5, 0.999, global_clipnorm=5.0),
            "critic": keras.optimizers.Adam(rate, 0.5, 0.999),
        }

    def play(self, batch):
        image, (target, valid) = batch["image"], self.target(batch["label_map"])
        with tf.GradientTape() as segmentor_tape:
            logits = self.segmentor(image, training=True)
            probabilities = self.activate(logits)
            # 1. The critic widens the gap between true and predicted masks.
            with segmentor_tape.stop_recording():
                with tf.GradientTape() as critic_tape:
                    critic_loss = -self.gap(image, probabilities, target, valid, training=True)
                critic_norm = self.minimize(critic_loss, critic_tape, "critic")
                self.constrain_critic()
            # 2. The segmentor narrows it. Spectral norm has made its step; batch norm has no other
            # statistics that fit this batch.
            training = self.constraint == "clip"
            terms = self.losses_of(image, logits, target, valid, training)
        norm = self.minimize(terms["loss"], segmentor_tape, "segmentor")
        return {
            **terms,
            "critic_loss": critic_loss,
            "segmentor_gradient_norm": norm,
            "critic_gradient_norm": critic_norm,
        }

    def score(self, batch):
        image, (target, valid) = batch["image"], self.target(batch["label_map"])
        logits = self.network(image, training=False)
        terms = self.losses_of(image, logits, target, valid, training=False)
        return {**terms, "critic_loss": -terms["multi_scale_l1"]}, self.activate(logits)

    def losses_of(self, image, logits, target, valid, training):
        """Every term of the segmentor's loss, scalars."""
        probabilities = self.activate(logits)
        gap = self.gap(image, probabilities, target, valid, training)
        dice_loss = self.average(*soft_dice(target, probabilities, valid))
        entropy = region_cross_entropy if self.plan.labels.overlapping else class_cross_entropy
        ce_loss = self.average(*entropy(target, logits, valid))
        loss = gap + self.lambda_dice * dice_loss + self.ce_weight * ce_loss
        return {"loss": loss, "multi_scale_l1": gap, "dice_loss": dice_loss, "ce_loss": ce_loss}

    def gap(self, image, probabilities, target, valid, training):
        """`L_ms` between predicted and true masks, a scalar (methods §3.2).

        Voxels that are not annotated are 0 in both masks. Predicted and true masks of all
        foreground classes go through the critic in one call: spectral norm moves on at each one.
        """
        first = 0 if self.plan.labels.overlapping else 1
        outputs = range(first, len(self.plan.labels.names))
        masks = [m[..., k] * valid for m in (probabilities, target) for k in outputs]
        masked = tf.concat([self.mask(image, m) for m in masks], axis=0)
        # The input is taken as it is: the critic hands it back in its compute dtype.
        features = [masked, *self.critic(masked, training=training)[1:]]
        start = 0 if self.include_input else 1
        predicted, true = zip(*(tf.split(f, 2, axis=0) for f in features[start:]), strict=True)
        if self.weighting == "level":
            distance = multi_scale_l1_level(predicted, true)
        else:
            factors = [FLAT_FACTORS[min(i, len(FLAT_FACTORS) - 1)] for i in range(len(features))]
            distance = multi_scale_l1_flat(predicted, true, factors[start:])
        distance = tf.reduce_mean(tf.reshape(distance, (len(outputs), -1)), axis=0)
        annotated = tf.reduce_max(tf.reshape(valid, (tf.shape(valid)[0], -1)), axis=1)
        return self.average(distance, annotated)

    def mask(self, image, mask):
        """What the critic sees of one class: `(batch, *spatial, channels)`."""
        image, mask = tf.cast(image, "float32"), mask[..., None]
        if self.mask_mode == "concat":
            return tf.concat([image * mask, mask], axis=-1)
        return (0.55 + 0.45 * image if self.shift else image) * mask

    def constrain_critic(self):
        """Clips all weights of the critic; spectral norm needs nothing here."""
        if self.constraint == "clip":
            for variable in self.role_variables("critic"):
                variable.assign(tf.clip_by_value(variable, -self.clip_value, self.clip_value))

    def get_config(self):
        names = ("mask_mode", "include_input", "weighting", "constraint", "shift", "lambda_dice")
        options = {name: getattr(self, name) for name in (*names, "ce_weight", "clip_value")}
        return {**super().get_config(), **options}


def _choice(name, value, known):
    """Raises `ValueError` where `value` is not one of `known`."""
    if value not in known:
        raise ValueError(f"Expected {name} in {known}, got {value!r}.")
