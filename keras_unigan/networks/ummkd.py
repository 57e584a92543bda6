"""CompactDilatedNet: kernels that all modalities share, with batch norms of their own for each."""

import keras
import tensorflow as tf

from keras_unigan.layers import conv
from keras_unigan.networks.comparison import ModalNetwork

DIMS = 2
EPSILON, MOMENTUM = 1e-5, 0.9


@keras.saving.register_keras_serializable(package="keras_unigan")
class ModalBatchNorm(keras.layers.Layer):
    """Batch norm with statistics, scale and offset of its own for each entry of a code.

    In training the statistics are those of each modality's samples in the batch of all replicas; a
    modality that a batch lacks keeps its moving ones. A code that is no one-hot vector mixes rows,
    which is how an unknown modality is treated.

    Call arguments: `[x, code]`, `(batch, *spatial, channels)` and `(batch, codes)`.
    Output shape: as `x`.
    Reference: Dou et al. 2020, arXiv:2001.03111, §III-B.
    """

    def __init__(self, **kwargs):
        # Sums over a batch lose their digits in half precision.
        super().__init__(**{**kwargs, "dtype": "float32"})

    def build(self, input_shape):
        (*_, channels), (_, codes) = input_shape
        table = (codes, channels)
        self.gamma = self.add_weight(table, "ones", name="gamma")
        self.beta = self.add_weight(table, "zeros", name="beta")
        still = {"trainable": False}
        self.moving_mean = self.add_weight(table, "zeros", name="moving_mean", **still)
        self.moving_variance = self.add_weight(table, "ones", name="moving_variance", **still)

    def call(self, inputs, training=False):
        x, code = inputs
        code = tf.nn.relu(code)
        axes = list(range(1, len(x.shape) - 1))
        rows = (-1, *[1] * len(axes), x.shape[-1])
        mean, variance = self.moving_mean, self.moving_variance
        if training:
            count = _everywhere(tf.reduce_sum(code, axis=0))[:, None]
            some = tf.cast(count > 0, "float32")
            share = some / tf.maximum(count, EPSILON)

            def of_modalities(values):
                total = tf.matmul(code, tf.reduce_mean(values, axes), transpose_a=True)
                return share * _everywhere(total)

            mean = of_modalities(x)
            apart = x - tf.reshape(tf.matmul(code, mean), rows)
            variance = of_modalities(apart**2)
            for old, new in ((self.moving_mean, mean), (self.moving_variance, variance)):
                old.assign(old + (1 - MOMENTUM) * some * (new - old))
        mean, variance, gamma, beta = (
            tf.reshape(tf.matmul(code, tf.convert_to_tensor(table)), rows)
            for table in (mean, variance, self.gamma, self.beta)
        )
        return (x - mean) * tf.math.rsqrt(variance + EPSILON) * gamma + beta

    def compute_output_shape(self, input_shape):
        return input_shape[0]


def _everywhere(values):
    """Sum of a tensor over all replicas."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return values
    return context.all_reduce(tf.distribute.ReduceOp.SUM, values)


@keras.saving.register_keras_serializable(package="keras_unigan")
class DepthToSpace(keras.layers.Layer):
    """Lays channels out as squares of voxels.

    Args:
        size: Side of a square; the channels must be divisible by `size**2`.

    Input shape: `(batch, height, width, channels)`.
    Output shape: `(batch, size * height, size * width, channels / size**2)`.
    Reference: Shi et al. 2016, arXiv:1609.05158.
    """

    def __init__(self, size, **kwargs):
        super().__init__(**kwargs)
        self.size = size

    def call(self, inputs):
        return tf.nn.depth_to_space(inputs, self.size)

    def compute_output_shape(self, input_shape):
        batch, *sides, channels = input_shape
        sides = [None if side is None else self.size * side for side in sides]
        return (batch, *sides, channels // self.size**2)

    def get_config(self):
        return {**super().get_config(), "size": self.size}


@keras.saving.register_keras_serializable(package="keras_unigan")
class CompactDilatedNet(ModalNetwork):
    """Residual blocks down to an eighth, dilated ones there, and one step back up.

    Kernels are shared by all modalities, every batch norm is each modality's own. A block is twice
    batch norm, leaky ReLU, convolution and dropout, beside the map itself, whose new channels are
    zeros.

    Args:
        channels: Channels of the image: three neighbouring slices in the paper.
        classes: Channels of the logits.
        domains: Number of modalities.
        filters: Width of the first blocks; the paper has 16, and 512 in the deepest ones.
        dropout: Share of the values that are dropped in training, behind each convolution.

    Input shape: `[(batch, height, width, channels), (batch, domains)]`, image and code; sides
        divisible by 8.
    Output shape: `(batch, height, width, classes)`, float32 logits.
    Reference: Dou et al. 2020, Unpaired multi-modal segmentation via knowledge distillation,
        arXiv:2001.03111.
    """

    def __init__(
        self,
        channels=1,
        classes=2,
        domains=3,
        filters=16,
        dropout=0.25,
        name="compact_dilated_net",
    ):
        image = keras.Input((None, None, channels), name="image")
        code = keras.Input((domains,), name="code")
        parts = _Parts(code, dropout)
        x = parts.conv(image, filters, "first")
        number = 0
        # Widths of the blocks between two poolings.
        for level, widths in enumerate(((1,), (2,), (4, 4), (8, 8, 16, 16, 16, 16, 32, 32))):
            if level:
                x = keras.layers.MaxPooling2D(2, name=f"pool_{level - 1}")(x)
            for width in widths:
                x = parts.block(x, width * filters, f"block_{number}")
                number += 1
        for block in range(2):
            x = parts.block(x, 32 * filters, f"dilated_{block}", dilation_rate=2)
        for last in range(2):
            x = parts.layer(x, 32 * filters, f"last_{last}")
        x = parts.mirrored(x, 64 * 8 * classes, 3, "wide")
        x = keras.layers.ReLU(name="wide_act")(ModalBatchNorm(name="wide_norm")([x, code]))
        x = DepthToSpace(8, name="up")(x)
        logits = parts.mirrored(x, classes, 5, "logits", dtype="float32")
        # Its own graph in place of `ModalNetwork`'s, whose methods it shares.
        super(ModalNetwork, self).__init__([image, code], logits, name=name)
        self.channels, self.classes, self.domains = channels, classes, domains
        self.filters, self.dropout = filters, dropout
        self.spatial_dims, self.code_size = DIMS, domains

    def get_config(self):
        return {
            "channels": self.channels,
            "classes": self.classes,
            "domains": self.domains,
            "filters": self.filters,
            "dropout": self.dropout,
            "name": self.name,
        }


class _Parts:
    """Builds the parts of the network by the names of their layers; no convolution has a bias."""

    def __init__(self, code, dropout):
        self.code, self.dropout = code, dropout

    def conv(self, x, width, name, size=3, **options):
        own = {"padding": "same", "use_bias": False, "kernel_initializer": "he_normal"}
        return conv(DIMS)(width, size, name=name, **{**own, **options})(x)

    def layer(self, x, width, name, **options):
        """Batch norm, leaky ReLU, convolution, dropout."""
        x = ModalBatchNorm(name=f"{name}_norm")([x, self.code])
        x = keras.layers.LeakyReLU(0.2, name=f"{name}_act")(x)
        x = self.conv(x, width, name, **options)
        return keras.layers.Dropout(self.dropout, name=f"{name}_drop")(x)

    def block(self, x, width, name, **options):
        """Two layers beside the map itself."""
        y = self.layer(x, width, f"{name}_0", **options)
        y = self.layer(y, width, f"{name}_1", **options)
        beside = (width - x.shape[-1]) // 2
        if beside:
            x = keras.ops.pad(x, ((0, 0), (0, 0), (0, 0), (beside, beside)))
        return keras.layers.Add(name=f"{name}_sum")([x, y])

    def mirrored(self, x, width, size, name, **options):
        """Convolution that sees the map mirrored beyond its border."""
        side = (size // 2, size // 2)
        x = keras.ops.pad(x, ((0, 0), side, side, (0, 0)), mode="symmetric")
        return self.conv(x, width, name, size, padding="valid", **options)
