"""How many multiplications a network needs, counted in the graph of one pass."""

import math

import tensorflow as tf

from keras_unigan.layers import segment_logits

# Operation -> multiply-adds, of the shapes of its inputs and its output.
_MACS = {
    "Conv2D": lambda i, o: math.prod(o) * math.prod(i[1][:-1]),
    "Conv3D": lambda i, o: math.prod(o) * math.prod(i[1][:-1]),
    "DepthwiseConv2dNative": lambda i, o: math.prod(o) * math.prod(i[1][:2]),
    # Transposed: every value of the input meets the whole kernel.
    "Conv2DBackpropInput": lambda i, o: math.prod(i[2]) * math.prod(i[1][:-1]),
    "Conv3DBackpropInputV2": lambda i, o: math.prod(i[2]) * math.prod(i[1][:-1]),
    "MatMul": lambda i, o: math.prod(o) * (math.prod(i[0]) // o[0]),
    "BatchMatMulV2": lambda i, o: math.prod(o) * i[0][-1],
}


def macs(function, *specs):
    """Multiply-adds of all convolutions and matrix products that the outputs depend on.

    Args:
        function: Function of tensors without branches that depend on their values.
        *specs: `tf.TensorSpec` of each argument, of known shape.

    Returns:
        Whole number; what is added to, normalised or resized does not count.
    """
    traced = tf.function(function, autograph=False).get_concrete_function(*specs)
    waiting, seen, total = [t.op for t in tf.nest.flatten(traced.outputs)], set(), 0
    while waiting:
        operation = waiting.pop()
        if operation.name in seen:
            continue
        seen.add(operation.name)
        waiting += [tensor.op for tensor in operation.inputs]
        if operation.type in _MACS:
            shapes = [tensor.shape.as_list() for tensor in operation.inputs]
            total += _MACS[operation.type](shapes, operation.outputs[0].shape.as_list())
    return total


def network_macs(network, patch):
    """Multiply-adds of what one patch takes in prediction; of a generator, of what one image takes.

    A network of several parts is counted by the one that an image goes through which is of the
    modality that it serves (`main_layer`).

    Args:
        network: One of `NETWORKS`.
        patch: Sides of the patch.
    """
    image = tf.TensorSpec((1, *patch, network.channels), "float32")
    if hasattr(network, "main_layer"):
        layer = network.get_layer(network.main_layer)
        return macs(lambda x: tf.nest.flatten(layer(x, training=False))[0], image)
    if hasattr(network, "sample"):
        noise = [tf.TensorSpec((1, *i.shape[1:]), "float32") for i in network.inputs]
        return macs(lambda *inputs: network(list(inputs), training=False), *noise)
    domain = tf.zeros((1,), tf.int32)
    if hasattr(network, "translate") and not hasattr(network, "segment"):
        return macs(lambda x: network.translate(x, domain, domain), image)
    return macs(lambda x: segment_logits(network, x, domain), image)
