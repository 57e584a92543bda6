"""A toy model with one signature for each thing that a server can get wrong."""

import pathlib
import shutil

import pytest


def read_x(examples):
    """Feature "x" plus feature "shift" of serialized tf.Examples."""
    import tensorflow as tf

    features = {"x": tf.io.FixedLenFeature([], tf.float32)}
    features["shift"] = tf.io.FixedLenFeature([], tf.float32, 0.0)
    parsed = tf.io.parse_example(examples, features)
    return parsed["x"] + parsed["shift"]


def save_toy(folder, scale):
    """SavedModel whose `serving_default` multiplies an image by `scale`."""
    import tensorflow as tf

    class Toy(tf.Module):
        def __init__(self):
            super().__init__()
            self.scale = tf.Variable(float(scale))
            known = tf.constant(["ct", "t1"])
            self.table = tf.lookup.StaticHashTable(
                tf.lookup.KeyValueTensorInitializer(known, tf.constant([0, 1])), -1
            )

        @tf.function(input_signature=[tf.TensorSpec([None, None, None, 1], tf.float32, "image")])
        def image(self, image):
            image = tf.ensure_shape(image, [None, None, None, 1])
            return {
                "probabilities": image * self.scale,
                "label_map": tf.cast(image[..., 0] > 0, tf.uint8),
            }

        @tf.function(
            input_signature=[
                tf.TensorSpec([None, 2], tf.float32, "a"),
                tf.TensorSpec([None], tf.int64, "b"),
            ]
        )
        def pair(self, a, b):
            return {"sum": tf.reduce_sum(a, 1) + tf.cast(b, tf.float32), "twice": b * 2}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")])
        def text(self, text):
            known = self.table.lookup(text) >= 0
            check = tf.debugging.Assert(tf.reduce_all(known), ["Unknown modality; known: ct, t1"])
            with tf.control_dependencies([check]):
                return {"raw_bytes": text + b"\x00", "text": tf.strings.upper(text)}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "record")])
        def leak(self, record):
            # The kernel's own message quotes the value that it cannot parse.
            return {"number": tf.strings.to_number(record)}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, "rounds")])
        def slow(self, rounds):
            state = tf.while_loop(
                lambda i, _: i < tf.reduce_max(rounds),
                lambda i, m: (i + 1, tf.linalg.matmul(m, m) * 0.0 + 1.0),
                (0, tf.ones([256, 256])),
            )[1]
            return {"done": tf.fill(tf.shape(rounds), state[0, 0])}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
        def scalar(self, x):
            return {"mean": tf.reduce_mean(x), "x": x}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
        def uneven(self, x):
            return {"all": x, "first": x[:1]}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "inputs")])
        def classify(self, inputs):
            x = read_x(inputs)
            classes = tf.tile([["low", "high"]], [tf.size(x), 1])
            return {"classes": classes, "scores": tf.stack([1.0 - x, x], 1)}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "inputs")])
        def regress(self, inputs):
            return {"outputs": read_x(inputs) * self.scale}

        @tf.function(
            input_signature=[
                tf.TensorSpec([None], tf.string, "nifti_bytes"),
                tf.TensorSpec([None], tf.string, "modality"),
            ]
        )
        def segment_nifti(self, nifti_bytes, modality):
            return {"label_map_nifti_bytes": tf.strings.join([modality, nifti_bytes], "|")}

    toy = Toy()
    names = ("image", "pair", "text", "leak", "slow", "scalar", "classify", "regress")
    names += ("segment_nifti", "uneven")
    signatures = {name: getattr(toy, name) for name in names}
    signatures["serving_default"] = signatures.pop("image")
    tf.saved_model.save(toy, str(folder), signatures=signatures)
    return pathlib.Path(folder)


@pytest.fixture(scope="session")
def toy_models(tmp_path_factory):
    """Two SavedModels: index 0 doubles images, index 1 triples them."""
    folder = tmp_path_factory.mktemp("toys")
    return [save_toy(folder / str(scale), scale) for scale in (2, 3)]


@pytest.fixture
def base(tmp_path, toy_models):
    """Model folder with version 1, which doubles."""
    shutil.copytree(toy_models[0], tmp_path / "toy" / "1")
    return tmp_path / "toy"


@pytest.fixture(scope="session")
def server(tmp_path_factory, toy_models):
    """Server of "toy" version 1 for tests that change nothing."""
    from keras_unigan.serving.server import Server

    folder = tmp_path_factory.mktemp("models") / "toy"
    shutil.copytree(toy_models[0], folder / "1")
    with Server(folder) as running:
        yield running


def make_plan():
    """Two classes (one merged), a CT and an MR modality, 2-D and 3-D."""
    from keras_unigan import config

    return config.Plan(
        "study",
        ("ct", "t1"),
        config.Labels(classes={"organ": (3, 7), "lesion": (5,)}),
        (1.0, 1.5, 3.0),
        None,
        {
            "ct": config.Normalization("ct", mean=100.0, sd=50.0, low=-2.0, high=2.0),
            "t1": config.Normalization("mr", mean=0.0, sd=1.0, low=-1.5, high=2.5),
        },
        {
            "2d": config.Configuration((16, 16), 2, ((2, 2), (2, 2)), 4),
            "3d": config.Configuration((8, 8, 4), 2, ((2, 2, 1),), 4),
        },
    )


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """(network, plan, model folder, result of `export_model`) of an untrained 2-D segmentor."""
    import keras

    from keras_unigan.networks import UNet
    from keras_unigan.serving import push

    keras.utils.set_random_seed(5)
    network, plan = UNet(classes=3, filters=4, levels=2), make_plan()
    folder = tmp_path_factory.mktemp("exported") / "unigan"
    return network, plan, folder, push.export_model(network, plan, folder)


@pytest.fixture(scope="session")
def unigan(exported):
    """Server of the exported segmentor as "unigan"."""
    from keras_unigan.serving.server import Server

    with Server(exported[2]) as running:
        yield running
