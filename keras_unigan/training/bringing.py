"""Networks that the caller of `build_model` brings along, made to fit their roles."""

import inspect

import keras
import tensorflow as tf

from keras_unigan.errors import CodedError
from keras_unigan.networks import SplitGenerator, StarGANGenerator, WrappedSegmentor
from keras_unigan.systems import SYSTEMS

# Main networks whose place another segmentor can take without the system becoming another one.
PLAIN = ("UNet", "PlannedUNet", "SegANSegmentor", "SegANISICSegmentor")
# Generators that segment and translate; a segmentor takes half of their place.
BOTH = ("UnifiedGenerator", "UAGANGenerator")


def place_of_segmentor(name):
    """Role that a segmentor of one's own plays in a system, or None where it has no place."""
    role, (kind, _) = next(iter(SYSTEMS[name]["networks"].items()))
    return role if kind in (*PLAIN, *BOTH) else None


def brought(name, segmentor, options):
    """Takes the networks out of the options of `build_model`.

    Args:
        name: Name of the system.
        segmentor: Network from image to logits, or None.
        options: Options by name; those that are networks are removed.

    Returns:
        Role -> network.

    Raises:
        CodedError: KUG-T02 for a segmentor in a system that has no place for it.
    """
    roles = [r for r in SYSTEMS[name]["networks"] if isinstance(options.get(r), keras.layers.Layer)]
    found = {role: options.pop(role) for role in roles}
    if segmentor is None:
        return found
    role = place_of_segmentor(name)
    if role is None:
        raise CodedError(
            "KUG-T02",
            f"model {name}",
            "a segmentor of your own",
            f"one of {[other for other in SYSTEMS if place_of_segmentor(other)]}",
            "What this system is lies in its own network.",
            "docs/bring_your_own.md",
        )
    return {**found, role: segmentor}


def fitted(network, role, cls, demanded, patch, width):
    """A network of the caller's own with all that its role asks for.

    Args:
        network: `keras.Model`.
        role: Role in the game.
        cls: Class that the system has in that role.
        demanded: Constructor arguments that the game demands of it.
        patch: Sides of the patches of the plan.
        width: Relative width of the system's networks, for a translator beside it.

    Raises:
        ValueError: Where it does not fit, or was built under another dtype policy.
    """
    spatial_dims, now = len(patch), keras.config.dtype_policy().name
    if network.dtype_policy.name != now:
        raise ValueError(
            f"Expected a {role} built under the policy {now} (train.mixed_precision), got "
            f"{network.dtype_policy.name}: keras.config.set_dtype_policy before you build it"
        )
    whole = cls.__name__ in BOTH and hasattr(network, "translate")
    if whole or cls.__name__ not in (*PLAIN, *BOTH):
        if not hasattr(network, "spatial_dims"):
            raise ValueError(f"Expected a {role} with what networks.{cls.__name__} offers.")
        return network
    if not all(hasattr(network, what) for what in ("channels", "classes", "spatial_dims")):
        classes, channels = demanded["classes"], demanded["channels"]
        network = WrappedSegmentor(network, classes, channels, spatial_dims)
        if network.tile is None and not _takes_any_size(network):
            own = network.wrapped
            network = WrappedSegmentor(own, classes, channels, spatial_dims, tile=patch)
    if cls.__name__ in PLAIN:
        return network
    default = inspect.signature(StarGANGenerator.__init__).parameters["filters"].default
    filters = max(1, round(default * width))
    translator = {"domains": demanded["domains"], "filters": filters, "spatial_dims": spatial_dims}
    return SplitGenerator(network, StarGANGenerator(demanded["channels"], **translator))


def _takes_any_size(network):
    """Whether a graph of a network can be traced for images of no known size.

    Keras 3.13 and later cannot resize to a size that is not known (keras-team/keras#22079), which
    DeepLabV3 of KerasHub does.
    """
    spec = tf.TensorSpec((None, *network.inputs[0].shape[1:]))
    try:
        tf.function(lambda x: network(x, training=False)).get_concrete_function(spec)
    except (TypeError, ValueError):
        return False
    return True
