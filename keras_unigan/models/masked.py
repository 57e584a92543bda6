"""MaskedCritic: the critic of SegAN, as a part of the games that have one."""

import tensorflow as tf

from keras_unigan.losses import multi_scale_l1_flat, multi_scale_l1_level
from keras_unigan.losses.consistency import FLAT_FACTORS


class MaskedCritic:
    """What a game with the role `critic` compares predicted and true masks with.

    A game that mixes this in calls `set_masking` in its constructor, `gap` in its moves and
    `constrain_critic` after the critic's move.
    """

    masking: tuple[str, ...] = (
        *("mask_mode", "critic_mode", "include_input", "weighting", "constraint", "shift"),
        "clip_value",
    )

    def set_masking(
        self,
        channels,
        critic,
        mask_mode,
        include_input=True,
        weighting="level",
        constraint="spectral",
        shift=True,
        clip_value=0.05,
        critic_mode="shared",
    ):
        """Keeps the options of the gap; see `SegAN` for their meaning.

        Args:
            channels: Channels of an image.
            critic: The critic, whose channels, groups and constraint have to fit.
            mask_mode: "concat" or "multiply".
            include_input: Whether the masked images are a level.
            weighting: "level" or "flat".
            constraint: "spectral" or "clip".
            shift: Whether "multiply" maps the image to [0.1, 1].
            clip_value: Bound of the critic's weights under "clip".
            critic_mode: "shared", "joint" or "per_class".

        Raises:
            ValueError: For unknown options, or a critic that does not fit them.
        """
        check_weights(clip_value=clip_value)
        choose("mask_mode", mask_mode, ("concat", "multiply"))
        choose("critic_mode", critic_mode, ("shared", "joint", "per_class"))
        choose("weighting", weighting, ("level", "flat"))
        choose("constraint", constraint, (getattr(critic, "constraint", constraint),))
        options = {"mask_mode": mask_mode, "critic_mode": critic_mode}
        demanded = self.critic_arguments(self.plan, channels, **options)
        if critic.input_shape[-1] != demanded["channels"]:
            raise ValueError(
                f"Expected a critic of {demanded['channels']} channels for mask_mode "
                f"{mask_mode!r} and critic_mode {critic_mode!r}, got {critic.input_shape[-1]}."
            )
        needed, groups = demanded.get("groups", 1), getattr(critic, "groups", 1)
        if groups != needed:
            raise ValueError(
                f"Expected a critic of {needed} groups for critic_mode {critic_mode!r}, got "
                f"{groups}."
            )
        self.mask_mode, self.critic_mode = mask_mode, critic_mode
        self.include_input, self.weighting = include_input, weighting
        self.constraint, self.shift, self.clip_value = constraint, shift, clip_value

    @staticmethod
    def critic_arguments(plan, channels=1, **options):
        """Constructor arguments that the game's options demand of the critic."""
        masked = channels + (options.get("mask_mode", "concat") == "concat")
        arguments = {"constraint": options.get("constraint", "spectral")}
        outputs, mode = len(foreground(plan)), options.get("critic_mode", "shared")
        if mode == "per_class":
            arguments["groups"] = outputs
        return {**arguments, "channels": masked if mode == "shared" else masked * outputs}

    def gap(self, image, probabilities, target, valid, training, annotated=None):
        """`L_ms` between predicted and true masks, a scalar (methods §3.2).

        Predicted and true masks of all foreground classes go through the critic in one call:
        spectral norm moves on at each one. Masks of classes that were not annotated are 0 in both
        (`Annotation`), and so differ nowhere; means over classes leave them out. The features of a
        "joint" critic below its input are of all classes together.
        """
        masked = self.masked(image, probabilities, target, valid)
        # The input is taken as it is: the critic hands it back in its compute dtype.
        features = [masked, *self.critic(masked, training=training)[1:]]
        share = 1.0
        if annotated is not None:
            # All classes, as the means below count them, for each one that can differ.
            share = annotated.shape[-1] / tf.maximum(tf.reduce_sum(annotated, axis=-1), 1.0)
        if annotated is not None and self.critic_mode == "joint":
            both = tf.reshape(tf.tile(share, [2]), (-1, *[1] * (self.spatial_dims + 1)))
            features[0], share = both * masked, 1.0
        start = 0 if self.include_input else 1
        predicted, true = zip(*(tf.split(f, 2, axis=0) for f in features[start:]), strict=True)
        if self.weighting == "level":
            distance = multi_scale_l1_level(predicted, true)
        else:
            factors = [FLAT_FACTORS[min(i, len(FLAT_FACTORS) - 1)] for i in range(len(features))]
            distance = multi_scale_l1_flat(predicted, true, factors[start:])
        distance = tf.reduce_mean(tf.reshape(distance, (-1, tf.shape(valid)[0])), axis=0)
        return self.average(share * distance, annotated_samples(valid))

    def masked(self, image, probabilities, target, valid):
        """All that the critic sees of a batch, predicted masks first, then true ones.

        Voxels that are not annotated are 0 in both. Classes lie side by side in the batch for a
        shared critic, class by class, and in the channels for the others.
        """
        axis = 0 if self.critic_mode == "shared" else -1
        halves = [
            tf.concat([self.mask(image, m[..., k] * valid) for k in foreground(self.plan)], axis)
            for m in (probabilities, target)
        ]
        return tf.concat(halves, axis=0)

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

    def masking_config(self):
        """Options of `set_masking` as `get_config` has them."""
        return {name: getattr(self, name) for name in self.masking}


def foreground(plan):
    """Indices of the outputs that have a mask of their own: all but a background class."""
    return range(0 if plan.labels.overlapping else 1, len(plan.labels.names))


def annotated_samples(valid):
    """1 for samples with an annotated voxel, 0 for the others, `(batch,)`."""
    return tf.reduce_max(tf.reshape(valid, (tf.shape(valid)[0], -1)), axis=1)


def choose(name, value, known):
    """Raises `ValueError` where `value` is not one of `known`."""
    if value not in known:
        raise ValueError(f"Expected {name} in {known}, got {value!r}.")


def check_weights(**weights):
    """Raises `ValueError` for a weight that is no finite number of at least 0."""
    for name, value in weights.items():
        if not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
            raise ValueError(f"Expected {name} of at least 0, got {value!r}.")
