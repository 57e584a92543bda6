"""UAGAN: two streams, one segments and one translates, with attention between them."""

import keras

from keras_unigan.models.schedules import constant_then_linear
from keras_unigan.models.unified import UnifiedGAN

RATE, FLOOR = 1e-4, 1e-6


@keras.saving.register_keras_serializable(package="keras_unigan")
class UAGAN(UnifiedGAN):
    """The moves of `UnifiedGAN` with the losses and optimizers of UAGAN.

    Args:
        generator: Network from image and code of the target to logits and image.
        discriminator: Network from image to patch scores and domain logits.
        plan: `config.Plan`, or its JSON dictionary.
        spatial_dims: 2.
        adversarial: As in `UnifiedGAN`.
        adversarial_weight: Weight of the generator's adversarial loss. Where it and
            `domain_weight` are 0, the discriminator is left out.
        domain_weight: Weight of the domain classification, on both sides.
        cycle_weight: Weight of the cycle.
        penalty_weight: Weight of the gradient penalty, or of R1 in other families.
        segmentation_weight: Weight of the cross-entropy.
        shape_weight: Weight of the shape term at the end of its ramp.
        shape_ramp: Share of `total_steps` over which that weight grows.
        background_weight: Weight of the background in the cross-entropy of exclusive classes, of
            which foreground has the rest; None weighs all alike.
        ema_decay: Decay of the weight average.
        total_steps: Steps that the ramp and the learning-rate schedule are made for.
        name: Name of the model.

    Reference: Yuan et al. 2019, Unified attentional generative adversarial network for brain tumor
    segmentation from multimodal unpaired images, arXiv:1907.03548.

    Raises:
        ValueError: For unknown options, or networks that do not fit the plan.
    """

    terms = tuple(t for t in UnifiedGAN.terms if t != "distillation")

    def __init__(
        self,
        generator,
        discriminator,
        plan,
        spatial_dims=2,
        adversarial="wgan_gp",
        adversarial_weight=1.0,
        domain_weight=1.0,
        cycle_weight=10.0,
        penalty_weight=10.0,
        segmentation_weight=100.0,
        shape_weight=100.0,
        shape_ramp=0.6,
        background_weight=0.02,
        ema_decay=0.999,
        total_steps=1000,
        name="uagan",
    ):
        if background_weight is not None and not 0 < background_weight < 1:
            raise ValueError(f"Expected 0 < background_weight < 1, got {background_weight}.")
        super().__init__(
            generator,
            discriminator,
            plan,
            spatial_dims,
            adversarial,
            adversarial_weight,
            domain_weight,
            cycle_weight,
            penalty_weight,
            segmentation_weight,
            shape_weight,
            shape_ramp,
            ema_decay=ema_decay,
            total_steps=total_steps,
            name=name,
        )
        self.background_weight = background_weight

    def default_optimizers(self, learning_rate=None, adversary_rate=None):
        adam = lambda rate, **clip: keras.optimizers.Adam(  # noqa: E731
            constant_then_linear(rate or RATE, self.total_steps, 0.6, FLOOR), 0.9, 0.999, **clip
        )
        generator = adam(learning_rate, global_clipnorm=5.0)
        return {"generator": generator, "discriminator": adam(adversary_rate)}

    def generator_losses(self, *args, **kwargs):
        loss, terms, variety = super().generator_losses(*args, **kwargs)
        return loss, {name: terms[name] for name in terms if name in self.terms}, variety

    def segmentation_loss(self, truth, logits, valid, annotated=None):
        """Cross-entropy over what is annotated, background weighed down; a scalar."""
        weights = None
        if self.background_weight is not None:
            foreground = len(self.plan.labels.names) - 1
            weights = [self.background_weight, *[1 - self.background_weight] * foreground]
        return self.average(*self.cross_entropy(truth, logits, valid, annotated, weights))

    def get_config(self):
        config = super().get_config()
        del config["distillation_weight"]
        return {**config, "background_weight": self.background_weight}
