"""Dice while training, from counts pooled over the data set (`Dice`), and hard predictions."""

import keras


@keras.saving.register_keras_serializable(package="keras_unigan")
class Dice(keras.metrics.Metric):
    """Dice of hard predictions, from voxel counts summed over the whole data set.

    Counts are kept per modality and output, so the size of the batch does not change the result.
    `result()` is a dictionary: `dice` (mean over modalities of the mean over outputs) and
    `dice_<modality>` (mean over outputs). An output that neither the truth nor the prediction holds
    has no Dice and is left out of its mean; a mean of nothing is NaN. Samples of unknown modality
    count as one more modality in `dice`.

    Args:
        modalities: Names in the order of their domain index.
        names: Name of each network output.
        background: Whether output 0 is the background, which is not scored.
        name: Name of the metric and of its entries.
    """

    def __init__(self, modalities, names, background=True, name="dice", dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.modalities, self.names = tuple(modalities), tuple(names)
        self.background = background
        # (modality and "unknown", output, [true positive, false positive, false negative])
        self.counts = self.add_variable(
            (len(self.modalities) + 1, len(self.names), 3), "zeros", name="counts"
        )

    @classmethod
    def from_plan(cls, plan, name="dice"):
        """Builds the metric for a `config.Plan`."""
        return cls(plan.modalities, plan.labels.names, not plan.labels.overlapping, name=name)

    def update_state(self, truth, prediction, valid, domain):
        """Adds a batch.

        Args:
            truth: One-hot (or multi-hot, for regions) truth, `(batch, *spatial, outputs)`.
            prediction: Hard prediction of the same shape (see `harden`).
            valid: 1 where the voxel is labelled, `(batch, *spatial)`.
            domain: Domain index of each sample, `(batch,)`; negative for unknown.
        """
        ops = keras.ops
        truth, prediction = ops.cast(truth, self.dtype), ops.cast(prediction, self.dtype)
        valid = ops.cast(valid, self.dtype)[..., None]
        axes = tuple(range(1, len(truth.shape) - 1))
        hit = ops.sum(valid * truth * prediction, axes)
        predicted, true = ops.sum(valid * prediction, axes), ops.sum(valid * truth, axes)
        counts = ops.stack([hit, predicted - hit, true - hit], axis=-1)
        rows = len(self.modalities) + 1
        domain = ops.where(domain < 0, rows - 1, domain)
        # Not a matrix product: reduced-precision ones would round counts on a GPU.
        share = ops.one_hot(domain, rows, dtype=self.dtype)[:, :, None, None]
        self.counts.assign(self.counts + ops.sum(share * counts[:, None], axis=0))

    def table(self):
        """Dice per modality (and unknown, last) and scored output; NaN where there is none."""
        counts = self.counts[:, int(self.background) :]
        size = 2 * counts[..., 0] + counts[..., 1] + counts[..., 2]
        return keras.ops.where(
            size > 0, 2 * counts[..., 0] / keras.ops.maximum(size, 1), float("nan")
        )

    def result(self):
        """Dictionary of `dice` and `dice_<modality>`; scalars in 0..1 or NaN."""
        rows = _mean_of_finite(self.table())
        result = {self.name: _mean_of_finite(rows)}
        for index, modality in enumerate(self.modalities):
            result[f"{self.name}_{modality}"] = rows[index]
        return result

    def get_config(self):
        """Constructor arguments."""
        return {
            "modalities": self.modalities,
            "names": self.names,
            "background": self.background,
            "name": self.name,
            "dtype": self.dtype,
        }


def _mean_of_finite(values):
    """Mean over the last axis without NaN; NaN where nothing is left."""
    ops = keras.ops
    good = ops.logical_not(ops.isnan(values))
    count = ops.sum(ops.cast(good, values.dtype), axis=-1)
    total = ops.sum(ops.where(good, values, 0.0), axis=-1)
    return ops.where(count > 0, total / ops.maximum(count, 1), float("nan"))


def harden(probabilities, overlapping):
    """Hard prediction of 0 and 1, `(batch, *spatial, outputs)`, from probabilities.

    Args:
        probabilities: `(batch, *spatial, outputs)`.
        overlapping: True for regions (each above one half), False for classes (one-hot argmax).
    """
    if overlapping:
        return keras.ops.cast(probabilities > 0.5, probabilities.dtype)
    best = keras.ops.argmax(probabilities, axis=-1)
    return keras.ops.one_hot(best, probabilities.shape[-1], dtype=probabilities.dtype)
