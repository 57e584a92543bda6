"""LOSSES: pure functions of tensors, float32 inside; ADVERSARIAL: the pairs of a game's option."""

from keras_unigan.losses.adversarial import (
    ADVERSARIAL,
    domain_classification,
    gradient_penalty,
    hinge_critic_loss,
    hinge_generator_loss,
    least_squares,
    least_squares_critic_loss,
    least_squares_generator_loss,
    local_image,
    minimax_critic_loss,
    minimax_generator_loss,
    minimax_saturating_generator_loss,
    r1_penalty,
    wasserstein_critic_loss,
    wasserstein_generator_loss,
)
from keras_unigan.losses.consistency import (
    cycle,
    identity,
    multi_scale_l1_flat,
    multi_scale_l1_level,
    prototype_distillation,
    ramp,
    region_prototype_distillation,
    sample_cycle,
)
from keras_unigan.losses.segmentation import (
    class_cross_entropy,
    focal_tversky,
    marginal_logits,
    pooled_dice,
    region_cross_entropy,
    soft_dice,
)

LOSSES = {
    "soft_dice": soft_dice,
    "pooled_dice": pooled_dice,
    "focal_tversky": focal_tversky,
    "class_cross_entropy": class_cross_entropy,
    "region_cross_entropy": region_cross_entropy,
    "multi_scale_l1_level": multi_scale_l1_level,
    "multi_scale_l1_flat": multi_scale_l1_flat,
    "cycle": cycle,
    "sample_cycle": sample_cycle,
    "identity": identity,
    "prototype_distillation": prototype_distillation,
    "region_prototype_distillation": region_prototype_distillation,
    "wasserstein_critic_loss": wasserstein_critic_loss,
    "wasserstein_generator_loss": wasserstein_generator_loss,
    "hinge_critic_loss": hinge_critic_loss,
    "hinge_generator_loss": hinge_generator_loss,
    "least_squares": least_squares,
    "least_squares_critic_loss": least_squares_critic_loss,
    "least_squares_generator_loss": least_squares_generator_loss,
    "minimax_critic_loss": minimax_critic_loss,
    "minimax_generator_loss": minimax_generator_loss,
    "minimax_saturating_generator_loss": minimax_saturating_generator_loss,
    "gradient_penalty": gradient_penalty,
    "r1_penalty": r1_penalty,
    "domain_classification": domain_classification,
}

__all__ = ["ADVERSARIAL", "LOSSES", "local_image", "marginal_logits", "ramp", *LOSSES]
