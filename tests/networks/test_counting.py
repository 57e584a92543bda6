"""Multiply-adds by hand."""

import keras
import tensorflow as tf

from keras_unigan.networks import SynSegNetwork, UNet
from keras_unigan.networks.counting import macs, network_macs


def of(layer, *shape):
    return macs(layer, tf.TensorSpec(shape, "float32"))


def test_layers():
    assert of(keras.layers.Conv2D(5, 3, padding="same"), 2, 8, 6, 3) == 2 * 8 * 6 * 5 * 9 * 3
    assert of(keras.layers.Conv2D(4, 3, 2, padding="same"), 1, 8, 6, 3) == 4 * 3 * 4 * 9 * 3
    assert of(keras.layers.Conv3D(2, 3, padding="same"), 1, 4, 4, 2, 3) == 32 * 2 * 27 * 3
    assert of(keras.layers.Conv2DTranspose(5, 2, 2), 1, 4, 6, 3) == 24 * 3 * 4 * 5
    assert of(keras.layers.Conv3DTranspose(5, 2, 2), 1, 2, 2, 2, 3) == 8 * 3 * 8 * 5
    assert of(keras.layers.Dense(7), 2, 5) == 2 * 5 * 7
    assert of(keras.layers.ReLU(), 2, 5) == 0


def test_only_what_an_output_depends_on_counts():
    one, other = keras.layers.Dense(3), keras.layers.Dense(30)

    def function(x):
        other(x)
        return one(x)

    assert of(function, 2, 5) == 2 * 5 * 3


def test_a_unet():
    network = UNet(filters=2, levels=1)
    fine, coarse = 8 * 8, 4 * 4
    first = fine * 9 * (1 * 2 + 2 * 2)
    centre = coarse * 9 * (2 * 4 + 4 * 4)
    up = coarse * 4 * 4 * 2
    last = fine * (9 * (4 * 2 + 2 * 2) + 2 * 2)
    assert network_macs(network, (8, 8)) == first + centre + up + last
    # Of several parts that which an image goes through.
    parts = SynSegNetwork(filters=2, blocks=1)
    assert network_macs(parts, (8, 8)) == of(parts.segmentor, 1, 8, 8, 1)
