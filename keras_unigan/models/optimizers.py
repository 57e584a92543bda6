"""Muon for convolutions: the optimizer of the package's own systems."""

import keras
from keras import ops

from keras_unigan.models.schedules import cosine

MATRIX_AXES = 2  # of a kernel, from the last: what comes in and what goes out

# Highest rates, and the last of both. Chosen by validation on the semi-real brains with a U-Net of
# width 16 and batches of 8 (decision 0008).
MUON_RATE, ADAM_RATE, FLOOR = 2e-2, 6e-3, 1e-6

CLIP = 5.0  # global norm of a gradient


@keras.saving.register_keras_serializable(package="keras_unigan")
class ConvMuon(keras.optimizers.Muon):
    """Muon that treats a convolution's kernel as the matrix from all its inputs to its outputs.

    Keras' own Muon orthogonalises the update of dense kernels and leaves every other variable to
    AdamW. In a segmentor almost all weights are convolution kernels `(*window, in, out)`; here the
    update of a kernel is orthogonalised as a matrix `(window * in, out)`, and a transposed
    convolution's `(*window, out, in)` as `(window * out, in)`. Vectors, tables, kernels that read a
    single channel (their matrix has next to no shape) and those in `exclude_layers` follow AdamW at
    `learning_rate * adam_lr_ratio`.

    Args:
        learning_rate: Rate of the orthogonalised updates, which are scaled to the root mean square
            of an Adam step (`rms_rate`).
        adam_lr_ratio: Rate of the other variables, as a share.
        exclude_layers: Patterns of variable paths that follow AdamW; the last layers by default.
        **kwargs: As `keras.optimizers.Muon`; no weight decay by default.

    Reference: Jordan et al. 2024, Muon, https://kellerjordan.github.io/posts/muon (convolutions as
        matrices); Liu et al. 2025, arXiv:2502.16982 (the scale).
    """

    def __init__(
        self,
        learning_rate=0.02,
        adam_lr_ratio=0.3,
        exclude_layers=("logits", "translated"),
        weight_decay=None,
        adam_weight_decay=None,
        name="conv_muon",
        **kwargs,
    ):
        super().__init__(
            learning_rate,
            adam_lr_ratio=adam_lr_ratio,
            exclude_layers=list(exclude_layers),
            weight_decay=weight_decay,
            adam_weight_decay=adam_weight_decay,
            name=name,
            **kwargs,
        )

    def _should_use_adamw(self, variable):
        shape = variable.shape
        single = len(shape) > MATRIX_AXES and shape[-2] == 1
        if len(shape) < MATRIX_AXES or single:
            return True
        return any(pattern in variable.path for pattern in self.exclude_layers)

    def _muon_update_step(self, gradient, variable, lr, m):
        self.assign_add(m, ops.add(gradient, m * (self.momentum - 1)))
        update = ops.add(gradient, self.momentum * m) if self.nesterov else m
        shape = update.shape
        update = ops.reshape(update, (-1, shape[-1]))
        update = self.zeropower_via_newtonschulz5(update, self.ns_steps)
        update = ops.reshape(self.lr_adjust(lr * update), shape)
        self.assign_sub(variable, update)


def muon(steps, rate=None):
    """`ConvMuon` with warm-up, cosine and clipped gradients.

    Args:
        steps: Steps of the whole run.
        rate: Highest rate; None takes `MUON_RATE`.
    """
    rate = MUON_RATE if rate is None else rate
    return ConvMuon(cosine(rate, steps, floor=FLOOR), global_clipnorm=CLIP)


def adam(steps, rate=None):
    """Adam with warm-up, cosine and clipped gradients.

    Args:
        steps: Steps of the whole run.
        rate: Highest rate; None takes `ADAM_RATE`.
    """
    rate = ADAM_RATE if rate is None else rate
    return keras.optimizers.Adam(cosine(rate, steps, floor=FLOOR), global_clipnorm=CLIP)


OPTIMIZERS = {"adam": adam, "muon": muon}
"""Name -> function(steps, rate) -> optimizer of a game's main network."""
