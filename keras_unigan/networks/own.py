"""A network from elsewhere as a segmentor, and as the part of a generator that segments."""

import keras
import tensorflow as tf

from keras_unigan.layers import conv, segment_logits

COLOURS = 3
HALF = "mixed_"  # how the names of policies with float32 variables begin


@keras.saving.register_keras_serializable(package="keras_unigan")
class WrappedSegmentor(keras.Model):
    """Any Keras network from image to logits, with all that games, prediction and export ask for.

    What is coarser than the image, as of a backbone, is brought to its grid by linear
    interpolation; the result is float32. A network of colour images gets three copies of an image
    of one channel. The network itself is `wrapped`, and is trained in place.

    Args:
        network: `keras.Model` from `(batch, *spatial, channels)` to one map per class, functional
            or a subclass. It ends in logits, not in probabilities.
        classes: Channels of the logits; None takes those of the network.
        channels: Channels of the image; None takes those of the network, where it says them.
        spatial_dims: 2 or 3; None takes those of the network, where it says them.
        head: Whether a 1-wide convolution makes logits of the network's maps, which may then have
            any number of channels: for backbones.
        tile: Sides of the pieces that a network sees which does not take images of any size. Images
            are cut into such tiles side by side, the last ones filled up with -1. None takes the
            size that the network was built for, where it was built for one.

    Input shape: `(batch, *spatial, channels)`.
    Output shape: `(batch, *spatial, classes)`, float32 logits.

    Raises:
        ValueError: For a network that does not fit: of other axes or channels, of several outputs,
            or ending in probabilities.
    """

    def __init__(
        self,
        network,
        classes=None,
        channels=None,
        spatial_dims=None,
        head=False,
        tile=None,
        name="wrapped_segmentor",
    ):
        own = _input_shape(network)
        channels, spatial_dims = channels or own[-1], spatial_dims or len(own) - 2
        if not channels or spatial_dims not in (2, 3):
            raise ValueError(
                f"Expected channels and spatial_dims of a {type(network).__name__}, which says "
                "them only when it is built, got none."
            )
        tile = _tile(own, tile, spatial_dims)
        image = x = keras.Input((*[None] * spatial_dims, channels), name="image")
        if channels == 1 and own[-1] == COLOURS:
            x = keras.layers.Concatenate(name="copies")([x] * COLOURS)
        x = x if tile is None else Tiles(tile, name="tiles")(x)
        if x.shape[-1] != (own[-1] or channels):
            raise ValueError(f"Expected a network of {channels} channels, got {own[-1]}.")
        maps = network(x)
        if not hasattr(maps, "shape"):
            raise ValueError(
                f"Expected a network of one output, got {len(keras.tree.flatten(maps))}: give "
                "keras.Model(network.inputs, the one that segments)."
            )
        classes = classes or maps.shape[-1]
        if head:
            maps = conv(spatial_dims)(classes, 1, dtype="float32", name="logits")(maps)
        elif maps.shape[-1] != classes:
            raise ValueError(
                f"Expected a network with {classes} outputs per voxel, got {maps.shape[-1]}: "
                "give it as many, or WrappedSegmentor(network, classes, head=True)."
            )
        elif _ends_in_probabilities(network):
            raise ValueError("Expected a network that ends in logits, got softmax or sigmoid.")
        seen = image if tile is None else x
        logits = OnGrid(name="on_grid", dtype="float32")([maps, seen])
        if tile is not None:
            logits = Joined(tile, name="joined", dtype="float32")([logits, image])
        super().__init__(image, logits, name=name)
        self.wrapped, self.classes, self.channels = network, classes, channels
        self.spatial_dims, self.head, self.tile = spatial_dims, head, tile

    def tasks(self, image, domain, training=False):
        """What games of several outputs ask for: the logits alone."""
        return [self(image, training=training)]

    def get_config(self):
        return {
            "network": _serialized(self.wrapped),
            "classes": self.classes,
            "channels": self.channels,
            "spatial_dims": self.spatial_dims,
            "head": self.head,
            "tile": self.tile and list(self.tile),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config):
        try:
            network = keras.saving.deserialize_keras_object(_at_hand(config["network"]))
        except TypeError as error:
            raise TypeError(
                f"Keras cannot make another {config['network']['class_name']}: import it, and "
                "decorate it with keras.saving.register_keras_serializable()."
            ) from error
        return cls(**{**config, "network": network})


@keras.saving.register_keras_serializable(package="keras_unigan")
class SplitGenerator(keras.Model):
    """A segmentor and a translator side by side, for games whose one generator does both.

    The generators of these games share an encoder between both tasks. Here nothing is shared: the
    tasks meet in the losses alone, where translations are segmented again.

    Args:
        segmentor: Network from image to logits, e.g. `WrappedSegmentor`.
        translator: Network from `[image, code]` to an image, with `translate` and `code`, e.g.
            `StarGANGenerator`.

    Input shape: `[(batch, *spatial, channels), (batch, code_size)]`.
    Output shape: `[(batch, *spatial, classes), (batch, *spatial, channels)]`, logits and image.

    Raises:
        ValueError: Where both are not of the same image.
    """

    def __init__(self, segmentor, translator, name="split_generator"):
        for what in ("channels", "spatial_dims"):
            found = [getattr(network, what) for network in (segmentor, translator)]
            if found[0] != found[1]:
                raise ValueError(f"Expected the same {what} of both networks, got {found}.")
        dims, channels = translator.spatial_dims, translator.channels
        image = keras.Input((*[None] * dims, channels), name="image")
        code = keras.Input((translator.code_size,), name="code")
        outputs = [segmentor(image), translator([image, code])]
        super().__init__([image, code], outputs, name=name)
        self.segmentor, self.translator = segmentor, translator
        self.channels, self.spatial_dims = channels, dims
        self.classes, self.domains = segmentor.classes, translator.domains
        self.code_size = translator.code_size

    def code(self, source, target):
        """Code that asks for `target`, as of the translator."""
        return self.translator.code(source, target)

    def translate(self, image, source, target, training=False):
        """Images in the modality `target`, float32."""
        return self.translator.translate(image, source, target, training=training)

    def segment(self, image, domain, training=False):
        """Logits, float32."""
        return segment_logits(self.segmentor, image, domain, training)

    def get_config(self):
        networks = {"segmentor": self.segmentor, "translator": self.translator}
        config = {key: _serialized(network) for key, network in networks.items()}
        return {**config, "name": self.name}

    @classmethod
    def from_config(cls, config):
        networks = {
            key: keras.saving.deserialize_keras_object(_at_hand(config[key]))
            for key in ("segmentor", "translator")
        }
        return cls(**{**config, **networks})


@keras.saving.register_keras_serializable(package="keras_unigan")
class OnGrid(keras.layers.Layer):
    """Maps on the grid of an image, by linear interpolation between the centres of their voxels.

    Call arguments: `[maps, image]`, `(batch, *coarse, channels)` and `(batch, *spatial, any)`.
    Output shape: `(batch, *spatial, channels)`, float32.
    """

    def call(self, inputs):
        maps, image = inputs
        result = tf.cast(maps, "float32")
        for axis in range(1, len(image.shape) - 1):
            result = _along(result, axis, image)
        return tf.ensure_shape(result, (None, *image.shape[1:-1], maps.shape[-1]))

    def compute_output_shape(self, input_shape):
        maps, image = input_shape
        return (*image[:-1], maps[-1])


@keras.saving.register_keras_serializable(package="keras_unigan")
class Tiles(keras.layers.Layer):
    """Images cut into tiles side by side, the last ones filled up with -1, the darkest value.

    Args:
        tile: Sides of a tile.

    Input shape: `(batch, *spatial, channels)`.
    Output shape: `(batch * tiles, *tile, channels)`.
    """

    def __init__(self, tile, **kwargs):
        super().__init__(**kwargs)
        self.tile = tuple(tile)

    def build(self, input_shape):
        # A graph that pads images of no known size forgets how many channels they have.
        self.channels = input_shape[-1]

    def call(self, image):
        dims, channels = len(self.tile), self.channels
        sides, counts = self.counts(image)
        missing = counts * self.tile - sides
        margins = tf.pad(tf.stack([tf.zeros_like(missing), missing], axis=1), [[1, 1], [0, 0]])
        padded = tf.pad(image, margins, constant_values=-1)
        split = tf.stack([counts, tf.constant(self.tile)], axis=1)
        cut = tf.reshape(padded, [-1, *tf.unstack(tf.reshape(split, [-1]), 2 * dims), channels])
        order = [0, *range(1, 2 * dims, 2), *range(2, 2 * dims + 1, 2), 2 * dims + 1]
        return tf.reshape(tf.transpose(cut, order), [-1, *self.tile, channels])

    def counts(self, image):
        """Sides of an image, and the number of tiles along each."""
        sides = tf.shape(image)[1:-1]
        return sides, -(-sides // tf.constant(self.tile))

    def compute_output_shape(self, input_shape):
        return (None, *self.tile, input_shape[-1])

    def get_config(self):
        return {**super().get_config(), "tile": list(self.tile)}


@keras.saving.register_keras_serializable(package="keras_unigan")
class Joined(Tiles):
    """What `Tiles` cut, put together again and cropped to the image.

    Call arguments: `[maps, image]`, `(batch * tiles, *tile, channels)` and the image.
    Output shape: `(batch, *spatial, channels)`.
    """

    def build(self, input_shape):
        self.channels = input_shape[0][-1]

    def call(self, inputs):
        maps, image = inputs
        dims, channels = len(self.tile), self.channels
        sides, counts = self.counts(image)
        cut = tf.reshape(maps, [-1, *tf.unstack(counts, dims), *self.tile, channels])
        pairs = [axis for n in range(1, dims + 1) for axis in (n, n + dims)]
        joined = tf.transpose(cut, [0, *pairs, 2 * dims + 1])
        whole = tf.unstack(counts * tf.constant(self.tile), dims)
        joined = tf.reshape(joined, [-1, *whole, channels])
        end = tf.concat([[-1], sides, [-1]], axis=0)
        joined = tf.slice(joined, tf.zeros(dims + 2, "int32"), end)
        return tf.ensure_shape(joined, (None, *image.shape[1:-1], channels))

    def compute_output_shape(self, input_shape):
        maps, image = input_shape
        return (*image[:-1], maps[-1])


def _along(x, axis, image):
    """Linear interpolation along one axis, to the size that an image has there."""
    before, after = x.shape[axis], image.shape[axis]
    if before is not None and before == after:
        return x
    known = before is not None and after is not None
    before = tf.shape(x)[axis] if before is None else before
    after = tf.shape(image)[axis] if after is None else after

    def interpolated():
        ratio = tf.cast(before, "float32") / tf.cast(after, "float32")
        place = (tf.range(after, dtype="float32") + 0.5) * ratio - 0.5
        place = tf.clip_by_value(place, 0.0, tf.cast(before - 1, "float32"))
        distance = tf.abs(place[:, None] - tf.range(before, dtype="float32")[None, :])
        result = tf.tensordot(x, tf.maximum(1.0 - distance, 0.0), [[axis], [1]])
        order = list(range(len(x.shape) - 1))
        return tf.transpose(result, [*order[:axis], len(order), *order[axis:]])

    return interpolated() if known else tf.cond(before == after, lambda: x, interpolated)


def _input_shape(network):
    """Shape of the one input of a network; `(None,)` where it does not say."""
    inputs = getattr(network, "inputs", None)
    if not inputs:
        return (None,)
    if len(inputs) > 1:
        raise ValueError(f"Expected a network of one input, the image, got {len(inputs)}.")
    return tuple(inputs[0].shape)


def _tile(shape, tile, spatial_dims):
    """Sides of the tiles for a network of such an input, or None where it takes any size."""
    sides = tuple(side for side in shape[1:-1] if side is not None)
    if shape != (None,) and len(shape) - 2 != spatial_dims:
        raise ValueError(f"Expected a network of {spatial_dims} spatial axes, got {shape}.")
    tile = sides or None if tile is None else tuple(tile)
    if tile is not None and len(tile) != spatial_dims:
        raise ValueError(f"Expected a tile of {spatial_dims} sides, got {tile}.")
    if sides and tile != sides:
        raise ValueError(f"Expected the tile that the network was built for, {sides}, got {tile}.")
    return tile


def _ends_in_probabilities(network):
    last = network.layers[-1] if getattr(network, "layers", None) else network
    functions = (keras.activations.softmax, keras.activations.sigmoid)
    return isinstance(last, keras.layers.Softmax) or getattr(last, "activation", 0) in functions


def _serialized(network):
    """A network as its config holds it; how it may have been compiled before is no part of that."""
    config = keras.saving.serialize_keras_object(network)
    config.pop("compile_config", None)
    return config


def _at_hand(config):
    """A network's config with the policy of the moment for every half-precision one in it.

    Layers keep the policy that they were built under in their config. A network that trained in
    half precision is predicted with, and exported, in full.
    """
    now = keras.config.dtype_policy().name
    if isinstance(config, list):
        return [_at_hand(entry) for entry in config]
    if not isinstance(config, dict):
        return config
    if config.get("class_name") == "DTypePolicy" and config["config"]["name"].startswith(HALF):
        return {**config, "config": {**config["config"], "name": now}}
    return {key: _at_hand(value) for key, value in config.items()}
