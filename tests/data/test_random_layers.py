import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_unigan
from keras_unigan.data import random_layers

# Class -> arguments that are not the defaults.
LAYERS = {
    "RandomFlip3D": {"axes": (0,), "share": 0.9},
    "Affine3D": {
        **{"rotation": 30.0, "scale": 0.1, "shift": 0.2, "spacing": (1.0, 2.0, 3.0)},
        **{"fill_value": 0.0, "share": 0.9},
    },
    "Elastic3D": {"sd": 2.0, "distance": 4.0, "fill_value": -2.0, "share": 0.9},
    "BiasField3D": {"sd": 0.5, "distance": 5.0, "share": 0.9},
    "Gamma3D": {"gamma": 0.5, "share": 0.9},
    "LowResolution3D": {"factor": 3.0, "share": 0.9},
    "Resize3D": {"size": (6, 12, 5), "antialias": True},
}
SPATIAL = (8, 10, 6)


def make(name, **arguments):
    """A layer by its public name."""
    arguments = {**LAYERS[name], **arguments}
    if name != "Resize3D":
        arguments.setdefault("seed", 3)
    return getattr(keras_unigan, name)(**arguments)


def batch_of(spatial=SPATIAL, count=4):
    rng = np.random.default_rng(0)
    return {
        "image": tf.constant(rng.uniform(-1, 1, (count, *spatial, 1)).astype(np.float32)),
        "label_map": tf.constant(rng.integers(0, 4, (count, *spatial)).astype(np.uint8)),
        "domain": tf.range(count),
    }


@pytest.mark.parametrize("name", LAYERS)
def test_eagerly_in_tf_data_and_of_an_image_alone(name):
    batch = batch_of()
    eager = make(name)(batch)
    layer = make(name)
    (graph,) = list(tf.data.Dataset.from_tensors(batch).map(layer))
    alone = make(name)(batch["image"])
    assert set(eager) == set(graph) == set(batch)
    for key, value in eager.items():
        np.testing.assert_allclose(graph[key], value, atol=1e-5)
    np.testing.assert_allclose(alone, eager["image"], atol=1e-6)
    assert eager["label_map"].dtype == tf.uint8
    assert set(np.unique(eager["label_map"])) <= {0, 1, 2, 3, 255}
    assert (eager["image"].shape != batch["image"].shape) == (name == "Resize3D")
    if name != "Resize3D":
        again = layer(batch)["image"]
        assert (np.abs(again - eager["image"]) > 1e-4).any(), "each call has its own numbers"
        still = layer(batch, training=False)
        for key, value in batch.items():
            np.testing.assert_array_equal(still[key], value)


@pytest.mark.parametrize("name", LAYERS)
def test_in_a_model_that_is_saved_in_bfloat16(name, tmp_path):
    inputs = {
        "image": keras.Input((*SPATIAL, 1), name="image"),
        "label_map": keras.Input(SPATIAL, dtype="uint8", name="label_map"),
    }
    found = make(name, dtype="mixed_bfloat16")(inputs)
    assert found["image"].dtype == "bfloat16"
    assert found["label_map"].dtype == "uint8"
    network = keras.Model(inputs, found)
    network.save(tmp_path / "network.keras")
    loaded = keras.saving.load_model(tmp_path / "network.keras")
    (layer,) = (la for la in loaded.layers if type(la).__name__ == name)
    assert layer.get_config() == network.layers[-1].get_config()
    for key, value in LAYERS[name].items():
        assert getattr(layer, key) == value
    batch = {k: v for k, v in batch_of().items() if k != "domain"}
    for training in (True, False):
        first, second = (n(batch, training=training) for n in (network, loaded))
        assert first["image"].dtype == tf.bfloat16
        for key in batch:
            np.testing.assert_array_equal(first[key], second[key])
    assert np.isfinite(tf.cast(first["image"], "float32")).all()


@pytest.mark.parametrize("name", LAYERS)
def test_two_dimensions_and_gradients(name):
    arguments = {"size": (5, 7)} if name == "Resize3D" else {}
    if "spacing" in LAYERS[name]:
        arguments["spacing"] = None
    if name == "RandomFlip3D":
        arguments["axes"] = None
    image = batch_of((8, 10))["image"]
    with tf.GradientTape() as tape:
        tape.watch(image)
        found = make(name, **arguments)(image)
        loss = tf.reduce_sum(found**2)
    assert found.shape == (4, *((5, 7) if name == "Resize3D" else (8, 10)), 1)
    assert np.isfinite(tape.gradient(loss, image)).all()


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [(5, 21), (16, 4)])
def test_resize_is_that_of_tensorflow_in_2d(size, antialias):
    batch = batch_of((8, 10))
    found = random_layers.Resize3D(size, antialias)(batch)
    expected = tf.image.resize(batch["image"], size, antialias=antialias)
    np.testing.assert_allclose(found["image"], expected, atol=1e-5)
    labels = tf.image.resize(batch["label_map"][..., None], size, "nearest")[..., 0]
    np.testing.assert_array_equal(found["label_map"], labels)


def test_resize_to_the_same_size_changes_nothing():
    batch = batch_of()
    found = random_layers.Resize3D(SPATIAL)(batch)
    np.testing.assert_allclose(found["image"], batch["image"], atol=1e-6)
    np.testing.assert_array_equal(found["label_map"], batch["label_map"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: make("Gamma3D")({"label_map": tf.zeros(1)}),
            r"Expected an image, .* got \['label_map'\]",
        ),
        (lambda: make("Gamma3D")(tf.zeros((2, 3, 1))), r"2 or 3 spatial axes, got \(2, 3, 1\)"),
        (
            lambda: make("Gamma3D")({**batch_of(), "label_map": tf.zeros((4, 8))}),
            r"Expected a label map of shape \(4, 8, 10, 6\), got \(4, 8\)",
        ),
        (lambda: make("Affine3D")(tf.zeros((2, 8, 8, 1))), "a spacing for each of 2 axes, got"),
        (lambda: make("Resize3D")(tf.zeros((2, 8, 8, 1))), "a size for each of 2 axes, got"),
        (lambda: make("Gamma3D", share=2), "Expected 0 <= share <= 1, got 2"),
        (lambda: make("LowResolution3D", factor=0.5), "Expected a factor of at least 1, got 0.5"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
