"""Every network in half precision: float32 variables and outputs, finite gradients.

Full precision is what `checks.check_network` runs in.
"""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from checks import feed, random

from keras_unigan.networks import NETWORKS, UNet

TINY = {
    "UNet": {"filters": 4, "levels": 2},
    "SegANSegmentor": {"filters": 4},
    "SegANCritic": {"channels": 2, "filters": (4, 8), "groups": 2},
    "SegANScalarCritic": {"filters": (4, 8), "constraint": "clip"},
    "SegANISICSegmentor": {"filters": 2},
    "SegANISICCritic": {"filters": 2, "constraint": "spectral"},
    "StarGANGenerator": {"filters": 4, "blocks": 1},
    "StarGANDiscriminator": {"filters": 4, "layers": 2, "patch_size": (16, 16)},
    "UAGANGenerator": {"filters": 4, "levels": 2},
    "UnifiedGenerator": {"filters": 4, "strides": ((2, 2),) * 2, "conditioning": "film+difference"},
    "ResNetTranslator": {"filters": 4, "blocks": 1},
    "PatchDiscriminator": {"filters": 4},
    "PairTranslator": {"filters": 4, "blocks": 1},
    "PlannedUNet": {"filters": 4, "strides": ((2, 2),) * 2},
    "SynSegNetwork": {"filters": 4, "blocks": 1},
    "SIFANetwork": {"filters": 2},
    "SIFADiscriminator": {"filters": 4, "scores": 2},
    "CompactDilatedNet": {"filters": 2},
    "PairGenerator": {"filters": 4, "patch_size": (16, 16), "strides": ((2, 2),) * 2},
    "PairDiscriminator": {"filters": 4, "patch_size": (16, 16), "strides": ((2, 2),) * 2},
    "ImageRenderer": {"filters": 4, "strides": ((2, 2),)},
    "MaskGenerator": {"filters": 4, "patch_size": (16, 16), "strides": ((2, 2),)},
    "MaskCritic": {"filters": 4, "layers": 2},
}
# Put together from the same parts, so that half precision of one is that of all.
FAMILY = (
    "IndividualUNets",
    "ConditionalUNet",
    "EarlyFusionUNet",
    "LateFusionUNet",
    "YShapeUNet",
    "DualStreamUNet",
    "SharedLatentUNet",
)
FURTHER = ("DomainNormUNet", "CrossModalityUNet", "PADNet", "ExcitedUNet")
TINY |= {name: {"filters": 4, "levels": 2} for name in FURTHER}
SOLID = {
    "UNet": {"filters": 4, "levels": 2},
    "SegANSegmentor": {"filters": 4},
    "SegANCritic": {"filters": (4, 8), "constraint": "clip"},
    "SegANScalarCritic": {"filters": (4, 8)},
    "StarGANGenerator": {"filters": 4, "blocks": 1},
    "StarGANDiscriminator": {"filters": 4, "layers": 2, "patch_size": (16,) * 3},
    "UnifiedGenerator": {"filters": 4, "strides": ((2, 2, 1), (2, 2, 2))},
    "PlannedUNet": {"filters": 4, "strides": ((2, 2, 1), (2, 2, 2))},
    "PairGenerator": {"filters": 4, "patch_size": (16,) * 3, "strides": ((2, 2, 1),)},
    "PairDiscriminator": {"filters": 4, "patch_size": (16,) * 3, "strides": ((2, 2, 1),)},
    "ImageRenderer": {"filters": 4, "strides": ((2, 2, 1),)},
    "MaskGenerator": {"filters": 4, "patch_size": (16,) * 3, "strides": ((2, 2, 1),)},
    "MaskCritic": {"filters": 4, "layers": 2},
}
FEATURES = ("SegANCritic", "SegANISICCritic")  # their outputs are maps within, not results


@pytest.fixture(params=["mixed_bfloat16", "mixed_float16"])
def policy(request):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy(before)


def test_every_network_is_tried():
    assert {*TINY, *FAMILY} == set(NETWORKS)
    solid = {n for n, c in NETWORKS.items() if "spatial_dims" in inspect.signature(c).parameters}
    assert {*SOLID, *FAMILY, *FURTHER} == solid


@pytest.mark.parametrize(
    ("name", "spatial_dims"), [*((name, 2) for name in TINY), *((name, 3) for name in SOLID)]
)
def test_forward_and_backward(policy, name, spatial_dims):
    keras.utils.set_random_seed(1)
    arguments = TINY[name] if spatial_dims == 2 else {**SOLID[name], "spatial_dims": 3}
    network = NETWORKS[name](**arguments)
    side = 40 if "ISIC" in name else 16
    sides = [side] * (len(network.inputs[0].shape) - 2)
    inputs = feed(network, (2, *sides, network.inputs[0].shape[-1]))
    with tf.GradientTape() as tape:
        found = keras.tree.flatten(network(inputs, training=True))
        loss = sum(tf.reduce_mean(tf.cast(f, "float32") ** 2) for f in found)
    gradients = tape.gradient(loss, network.trainable_variables)
    assert {v.dtype for v in network.trainable_variables} == {"float32"}
    assert all(np.isfinite(g).all() for g in gradients)
    compute = policy.removeprefix("mixed_")
    assert compute in {layer.compute_dtype for layer in network.layers}
    kept = found if name not in FEATURES else []
    assert {f.dtype for f in kept} <= {tf.float32}
    if name in FEATURES:
        assert found[-1].dtype == compute


def test_half_precision_unet_in_3d_saves_and_takes_any_size(policy, tmp_path):
    # TensorFlow has no float16 kernel of 3-D max pooling for CPUs.
    network = UNet(filters=2, levels=1, spatial_dims=3)
    network.save(tmp_path / "network.keras")
    loaded = keras.saving.load_model(tmp_path / "network.keras")
    free = tf.TensorSpec((None, None, None, None, 1), "float32")
    traced = tf.function(lambda image: loaded(image), input_signature=[free])
    for shape in ((1, 4, 6, 8, 1), (2, 2, 4, 2, 1)):
        image = random(shape)
        np.testing.assert_allclose(traced(image), network(image), atol=2e-2)
