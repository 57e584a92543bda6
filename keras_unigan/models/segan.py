"""SegAN: a critic looks for the scale at which predicted and true masks differ most."""

import keras
import tensorflow as tf

from keras_unigan.models.base import AdversarialModel
from keras_unigan.models.masked import MaskedCritic, check_weights
from keras_unigan.models.schedules import halving
from keras_unigan.models.stepping import Move

# RMSProp's rate of the published form, Adam's of the skin-lesion form and of the practical one. On
# 64x64 phantoms at width 32, 300 steps of 8, Adam gave Dice 0.942, 0.949 and 0.942 at 5e-4, 1e-3
# and 2e-3; the published form at its own rate needs far longer runs.
CLIP_RATE, SKIN_RATE, SPECTRAL_RATE = 2e-5, 1e-4, 1e-3

FLOOR = 1e-8  # lowest rate of those that are halved


@keras.saving.register_keras_serializable(package="keras_unigan")
class SegAN(MaskedCritic, AdversarialModel):
    """Min-max game over the multi-scale L1 distance of masked images.

    With `u = mask(x, p)` and `v = mask(x, y)` for prediction `p` and truth `y` of each foreground
    class (or region), the critic raises and the segmentor lowers `L_ms`, the mean absolute
    difference of the critic's features of `u` and `v`. The published form is
    `mask_mode="multiply"`, `shift=False`, `include_input=False`, `constraint="clip"` and
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
        critic_mode: "shared" (one critic for all classes, which sees one at a time), "joint" (one
            critic that sees all classes stacked as channels; the cheapest) or "per_class" (a critic
            of its own for each class, as groups of the critic's channels).
        halve_every: Steps after which the rates of both optimizers are halved, again and again, as
            in the skin-lesion form; None leaves them constant.
        ema_decay: Decay of the weight average.
        total_steps: Steps that the run is meant to have.
        name: Name of the model.

    Reference: Xue et al. 2018, SegAN, arXiv:1706.01805.

    Raises:
        ValueError: For unknown options, or networks that do not fit them.
    """

    roles = ("segmentor", "critic")
    labelled_fraction = 1.0
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
        critic_mode="shared",
        halve_every=None,
        ema_decay=0.999,
        total_steps=1000,
        name="segan",
    ):
        networks = {"segmentor": segmentor, "critic": critic}
        super().__init__(networks, plan, spatial_dims, ema_decay, total_steps, name)
        self.set_masking(
            segmentor.channels,
            critic,
            mask_mode,
            include_input,
            weighting,
            constraint,
            shift,
            clip_value,
            critic_mode,
        )
        check_weights(lambda_dice=lambda_dice, ce_weight=ce_weight)
        if halve_every is not None and halve_every < 1:
            raise ValueError(f"Expected halve_every >= 1 or None, got {halve_every}.")
        self.lambda_dice, self.ce_weight = lambda_dice, ce_weight
        self.halve_every = halve_every

    @classmethod
    def network_arguments(cls, plan, channels=1, **options):
        return {
            "segmentor": {"channels": channels, "classes": len(plan.labels.names)},
            "critic": cls.critic_arguments(plan, channels, **options),
        }

    def default_optimizers(self, learning_rate=None, adversary_rate=None):
        published = self.constraint == "clip" and self.weighting == "level"
        rate = CLIP_RATE if published else SKIN_RATE
        rate = SPECTRAL_RATE if self.constraint == "spectral" else rate
        own = rate if adversary_rate is None else adversary_rate
        rate = rate if learning_rate is None else learning_rate
        if self.halve_every is not None:
            rate, own = (halving(value, self.halve_every, FLOOR) for value in (rate, own))
        if published:
            return {
                "segmentor": keras.optimizers.RMSprop(rate, global_clipnorm=5.0),
                "critic": keras.optimizers.RMSprop(own),
            }
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
        # 1. The critic widens the gap between true and predicted masks.
        with tf.GradientTape() as critic_tape:
            masks = probabilities, target, valid
            critic_loss = -self.gap(image, *masks, training=True, annotated=annotated)
        critic_norm = yield Move(critic_loss, critic_tape, "critic", some)
        self.constrain_critic()
        # 2. The segmentor narrows it. Spectral norm has made its step; batch norm has no other
        # statistics that fit this batch.
        with segmentor_tape:
            training = self.constraint == "clip"
            terms = self.losses_of(image, logits, target, valid, training, annotated)
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
        terms = self.losses_of(image, logits, target, valid, training=False, annotated=annotated)
        return {**terms, "critic_loss": -terms["multi_scale_l1"]}, self.activate(logits)

    def losses_of(self, image, logits, target, valid, training, annotated=None):
        """Every term of the segmentor's loss, scalars."""
        probabilities = self.activate(logits, annotated)
        gap = self.gap(image, probabilities, target, valid, training, annotated)
        dice_loss = self.average(*self.dice_loss(target, logits, valid, annotated))
        ce_loss = self.average(*self.cross_entropy(target, logits, valid, annotated))
        loss = gap + self.lambda_dice * dice_loss + self.ce_weight * ce_loss
        return {"loss": loss, "multi_scale_l1": gap, "dice_loss": dice_loss, "ce_loss": ce_loss}

    def get_config(self):
        own = {name: getattr(self, name) for name in ("lambda_dice", "ce_weight", "halve_every")}
        return {**super().get_config(), **self.masking_config(), **own}
