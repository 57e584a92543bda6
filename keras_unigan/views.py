"""Views of a window that a network is asked about: its flips, and its translations."""

import itertools

import numpy as np


def mirrored(predict, spatial_dims):
    """Functions that ask about every flip of patches, the first one about none, and flip it back.

    Args:
        predict: Function `(patches, modality, statistics) -> probabilities`.
        spatial_dims: Axes that are flipped, behind that of the batch.

    Returns:
        `2**spatial_dims` functions of the same form.
    """
    axes = range(1, spatial_dims + 1)
    sets = (itertools.combinations(axes, count) for count in range(spatial_dims + 1))
    return [_flipped(predict, chosen) for chosen in itertools.chain(*sets)]


def _flipped(predict, axes):
    def ask(patches, modality, statistics):
        return np.flip(predict(np.flip(patches, axes), modality, statistics), axes)

    return ask if axes else predict


class Translated:
    """Segments what a generator makes of a window in another modality, in one graph.

    Args:
        predictor: `inference.Predictor`.
        translator: `translation.Translator` of the same plan.
    """

    def __init__(self, predictor, translator):
        import keras
        import tensorflow as tf

        from keras_unigan import layers

        self.plan, self.translator = predictor.plan, translator
        normalization = layers.IntensityNormalization.from_plan(self.plan)
        activation = keras.ops.sigmoid if self.plan.labels.overlapping else keras.ops.softmax
        inputs = layers.check_inputs(predictor.network, self.plan)
        image = tf.TensorSpec((None,) * (predictor.spatial_dims + 1) + (inputs,), tf.float32)
        domain = tf.TensorSpec((None,), tf.int32)
        rows = tf.TensorSpec((None, *self.plan.statistics_shape), tf.float32)

        @tf.function(input_signature=[image, domain, domain, rows])
        def run(patches, source, target, statistics):
            normal = normalization(patches, source, statistics)
            made = translator.network.translate(normal, source, target, training=False)
            # What a generator makes is in the range of normalised images, but of a linear head.
            made = keras.ops.clip(keras.ops.cast(made, "float32"), -1.0, 1.0)
            logits = layers.segment_logits(predictor.network, made, target)
            return activation(keras.ops.cast(logits, "float32"))

        self._run = run

    def views(self, modality):
        """One function for each modality that the generator can make of the scan's."""
        others = [m for m in self.plan.modalities if m != modality]
        return [self._view(m) for m in others if self.translator.serves(modality, m)]

    def _view(self, target):
        def view(patches, modality, statistics):
            count = len(patches)
            places = [
                -1 if name is None else self.plan.modalities.index(name)
                for name in (modality, target)
            ]
            codes = [np.full(count, place, np.int32) for place in places]
            shape = (count, *self.plan.statistics_shape)
            rows = np.broadcast_to(np.asarray(statistics, np.float32), shape)
            return self._run(patches, *codes, rows).numpy()

        return view
