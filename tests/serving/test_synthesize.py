"""The signature `synthesize`: pairs of a seed, as the networks themselves make them."""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from checks import plan as make_plan

from keras_unigan import export
from keras_unigan.config import Labels
from keras_unigan.errors import CodedError
from keras_unigan.exporting import operations, requests
from keras_unigan.networks import ImageRenderer, MaskGenerator, UNet
from keras_unigan.serving import gates

PLAN = make_plan(size=16)
STRIDES = [(2, 2)]


def networks(labels=PLAN.labels):
    keras.utils.set_random_seed(2)
    planes = len(labels.names) + 1
    return (
        MaskGenerator(planes, (16, 16), labels.overlapping, 4, 4, STRIDES),
        ImageRenderer(planes, 1, 2, 4, 4, STRIDES),
    )


@pytest.fixture(scope="module")
def synthesizer():
    return networks()


@pytest.fixture(scope="module")
def served(synthesizer, tmp_path_factory):
    """Model card, and the signature of a SavedModel that was loaded again."""
    folder = tmp_path_factory.mktemp("model") / "1"
    card = export.export(UNet(1, 3, 2, 2), PLAN, folder, synthesizer=synthesizer)
    assert operations.unknown(folder) == []
    loaded = tf.saved_model.load(str(folder))
    return card, loaded.signatures["synthesize"], loaded


def ask(served, seed, *modalities):
    found = served[1](seed=tf.constant(seed, tf.int64), modality=tf.constant(modalities))
    return {name: value.numpy() for name, value in found.items()}


def test_served_pairs_are_those_of_the_networks(served, synthesizer):
    assert "synthesize" in served[0]["signatures"]
    found = ask(served, [[1, 2], [3, 4]], "ct", "t1")
    assert found["image"].shape == (2, 16, 16, 1)
    assert (found["image"].dtype, found["label_map"].dtype) == (np.float32, np.uint8)
    direct = export.synthesizing_function(synthesizer, PLAN)(tf.constant([[1, 2], [3, 4]]), [0, 1])
    assert np.mean(found["label_map"] != direct["label_map"]) < 0.01
    scale = np.ptp(direct["image"])
    assert np.quantile(np.abs(found["image"] - direct["image"]) / scale, 0.95) < 1e-5


def test_a_pair_depends_on_its_own_seed(served):
    both, alone = ask(served, [[1, 2], [3, 4]], "ct", "t1"), ask(served, [[3, 4]], "t1")
    np.testing.assert_allclose(both["image"][1:], alone["image"], rtol=1e-4, atol=1e-3)
    assert np.abs(ask(served, [[5, 4]], "t1")["image"] - alone["image"]).max() > 1e-3


def test_outside_of_the_body_is_the_background_of_the_modality():
    _, renderer = networks()

    class Half:
        """The left half is body, all of it organ."""

        def sample(self, seed):
            planes = np.zeros((len(seed), 16, 16, 4), np.float32)
            planes[:, :8, :, 1] = planes[:, :8, :, 3] = 1
            planes[:, 8:, :, 0] = 1
            return tf.constant(planes)

    found = export.synthesizing_function((Half(), renderer), PLAN)(tf.constant([[1, 2]]), [0])
    np.testing.assert_array_equal(found["label_map"][0, :8], 1)
    np.testing.assert_array_equal(found["label_map"][0, 8:], 0)
    np.testing.assert_array_equal(found["image"][0, 8:], -1000)  # air in Hounsfield units
    assert (found["image"][0, :8].numpy() > -1000).all()


@pytest.mark.parametrize(
    ("seed", "modalities", "message"),
    [
        ([[1, 2]], ("pet",), "Unknown modality"),
        ([[1, 2]], ("",), "Unknown modality"),
        ([[1, 2]], ("ct", "t1"), "modality differs from the rest in batch size"),
        (np.zeros((0, 2)), (), "seed is empty"),
    ],
)
def test_requests_that_do_not_fit_are_refused(served, seed, modalities, message):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        served[1](
            seed=tf.constant(seed, tf.int64), modality=tf.constant(list(modalities), tf.string)
        )


def test_example_request():
    found = requests.example_inputs(PLAN, ["synthesize"], 2)["synthesize"]
    assert found["seed"].shape == (1, 2)
    assert found["modality"].tolist() == [b"ct"]


def test_regions():
    labels = Labels(regions={"whole": (1, 2), "core": (2,)})
    plan = make_plan(labels=labels)
    found = export.synthesizing_function(networks(labels), plan)(tf.constant([[1, 2]]), [1])
    assert set(np.unique(found["label_map"])) <= {0, 1, 2}


# The gate compares with the run's own networks, or refuses.


def checks_of(answer, synthesizer=(), classifier=None):
    """`gates._Checks` around a server that gives one answer."""
    checks = object.__new__(gates._Checks)
    checks.plan, checks.found, checks.synthesizer = PLAN, {}, tuple(synthesizer)
    checks.classifier, checks.network = classifier, types.SimpleNamespace(name="unet")
    checks.target = types.SimpleNamespace(predict=lambda signature, inputs: answer)
    return checks


REQUEST = requests.example_inputs(PLAN, ["synthesize"], 2)["synthesize"]


def test_a_model_with_a_synthesiser_is_compared_with_one():
    with pytest.raises(CodedError, match=r"KUG-S05 .*no synthesiser to compare with"):
        checks_of({})._synthesis(REQUEST)
    with pytest.raises(CodedError, match=r"KUG-S05 .*no domain head to compare with"):
        checks_of({})._classification({})


def test_a_synthesiser_that_answers_otherwise_is_noticed(synthesizer):
    run = export.synthesizing_function(synthesizer, PLAN)
    right = {k: v.numpy() for k, v in run(tf.constant(REQUEST["seed"]), [0]).items()}
    checks = checks_of(right, synthesizer)
    checks._synthesis(REQUEST)
    assert checks.found["synthesize"] == 0
    wrong = {**right, "label_map": (right["label_map"] + 1) % 3}
    with pytest.raises(CodedError, match=r"KUG-S05 .*100.0% other labels"):
        checks_of(wrong, synthesizer)._synthesis(REQUEST)
    wrong = {**right, "image": right["image"] + np.float32(0.1 * np.ptp(right["image"]))}
    with pytest.raises(CodedError, match=r"KUG-S05 .*answers that differ by 0.1"):
        checks_of(wrong, synthesizer)._synthesis(REQUEST)
