import dataclasses
import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_unigan import config, export, inference
from keras_unigan.classification import classifying_function
from keras_unigan.data import nifti
from keras_unigan.errors import CodedError
from keras_unigan.exporting import cards, operations
from keras_unigan.exporting.requests import phantom
from keras_unigan.layers import IntensityNormalization
from keras_unigan.networks import SegANSegmentor, StarGANDiscriminator, StarGANGenerator, UNet
from keras_unigan.translation import intensity_range

REGIONS = config.Labels(regions={"whole": (1, 2), "core": (2,)})


def region_plan():
    return config.Plan(
        "study",
        ("ct", "t1"),
        REGIONS,
        (1.0, 1.0, 3.0),
        None,
        {
            "ct": config.Normalization("ct", mean=100.0, sd=50.0, low=-2.0, high=2.0),
            "t1": config.Normalization("mr", mean=0.0, sd=1.0, low=-1.5, high=2.5),
        },
        {
            "2d": config.Configuration((16, 24), 2, ((2, 2), (2, 2)), 4),
            "3d": config.Configuration((8, 8, 4), 2, ((2, 2, 1), (2, 2, 2)), 4),
        },
    )


def noise(shape, seed=0):
    return np.random.default_rng(seed).uniform(-200, 900, shape).astype(np.float32)


def load(folder):
    """Signatures of a SavedModel as plain functions of arrays."""
    loaded = tf.saved_model.load(str(folder))

    def call(name, **inputs):
        result = loaded.signatures[name](**{k: tf.constant(v) for k, v in inputs.items()})
        return {k: v.numpy() for k, v in result.items()}

    call.signatures = loaded.signatures  # the model lives as long as its signatures are held
    call.loaded = loaded
    return call


def expected(network, plan, image, domain, statistics, multiples=(4, 4)):
    """Probabilities by NumPy padding around the network: what the graph has to do."""
    normal = IntensityNormalization.from_plan(plan)(image, np.array(domain), statistics)
    sides = image.shape[1:-1]
    margins = [(0, 0), *((0, -s % m) for s, m in zip(sides, multiples, strict=True)), (0, 0)]
    logits = network(np.pad(normal, margins, constant_values=-1.0), training=False)
    logits = np.asarray(logits, np.float64)[(slice(None), *(slice(s) for s in sides))]
    if plan.labels.overlapping:
        return 1 / (1 + np.exp(-logits))
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@pytest.fixture(scope="module")
def network(exported):
    return exported[0]


@pytest.fixture(scope="module")
def plan(exported):
    return exported[1]


@pytest.fixture(scope="module")
def folder(exported):
    return exported[2] / "1"


@pytest.fixture(scope="module")
def model(folder):
    return load(folder)


def test_signatures_have_names_types_and_free_sizes(model):
    def spec(tensors):
        return {k: (v.dtype.name, v.shape.as_list()) for k, v in tensors.items()}

    free = [None, None, None]
    answer = {"probabilities": ("float32", [*free, 3]), "label_map": ("uint8", free)}
    image = {"image": ("float32", [*free, 1])}
    found = {
        name: (spec(s.structured_input_signature[1]), spec(s.structured_outputs))
        for name, s in model.signatures.items()
    }
    rows = {"modality": ("string", [None]), "statistics": ("float32", [None, 4])}
    volume = {"volume": ("float32", [None] * 4), "spacing": ("float32", [None, 3])}
    modality = {"modality": ("string", [None])}
    volumes = {
        "probabilities": ("float32", [None, None, None, None, 3]),
        "label_map": ("uint8", [None] * 4),
    }
    assert found == {
        "serving_default": (image, answer),
        "segment": ({**image, **rows}, answer),
        "describe": ({"request": ("int64", [None])}, {"model_card": ("string", [None])}),
        "segment_volume": ({**volume, **modality}, {"label_map": ("uint8", [None] * 4)}),
        "segment_nifti": (
            {"nifti_bytes": ("string", [None]), **modality},
            {"label_map_nifti_bytes": ("string", [None])},
        ),
        "serve_examples": ({"examples": ("string", [None])}, volumes),
    }


# No size is the patch of the plan, and only the first can be divided by the poolings.
@pytest.mark.parametrize("sides", [(8, 12), (13, 22), (5, 41), (1, 1)])
def test_answers_are_the_network_s_at_any_size(model, network, plan, sides):
    image = noise((3, *sides, 1))
    zeros = np.zeros((3, 4), np.float32)
    found = model("serving_default", image=image)
    wanted = expected(network, plan, image, [-1, -1, -1], zeros)
    np.testing.assert_allclose(found["probabilities"], wanted, atol=1e-5)
    np.testing.assert_array_equal(found["label_map"], wanted.argmax(-1))

    statistics = np.array([[100, 80, -150, 700], [300, 50, 10, 600], [0, 0, 0, 0]], np.float32)
    found = model("segment", image=image, modality=["ct", " T1 ", ""], statistics=statistics)
    wanted = expected(network, plan, image, [0, 1, -1], statistics)
    np.testing.assert_allclose(found["probabilities"], wanted, atol=1e-5)


def test_zero_statistics_are_taken_from_each_image(model):
    images = np.concatenate([noise((1, 9, 9, 1)), 5 * noise((1, 9, 9, 1), 1)])
    together = model("serving_default", image=images)["probabilities"]
    alone = model("serving_default", image=images[1:])["probabilities"]
    np.testing.assert_allclose(together[1:], alone, atol=1e-5)


def regions_network():
    """A 3-D segmentor of two regions with half precision, and the same one without."""
    arguments = {"classes": 2, "filters": 2, "strides": ((2, 2, 1),), "spatial_dims": 3}
    keras.utils.set_random_seed(3)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        network = UNet(**arguments)
    finally:
        keras.config.set_dtype_policy(before)
    assert network.layers[1].compute_dtype == "bfloat16"
    same = UNet(**arguments)
    same.set_weights(network.get_weights())
    return network, same


def check_regions(found, network):
    image = noise((2, 7, 9, 3, 1))
    found = {name: np.asarray(value) for name, value in found(image).items()}
    zeros = np.zeros((2, 4), np.float32)
    wanted = expected(network, region_plan(), image, [-1, -1], zeros, (2, 2, 1))
    assert found["probabilities"].dtype == np.float32
    np.testing.assert_allclose(found["probabilities"], wanted, atol=1e-5)
    whole, core = np.moveaxis(found["probabilities"] > 0.5, -1, 0)
    for some in (core & whole, core & ~whole, whole & ~core, ~core & ~whole):
        assert some.any()
    np.testing.assert_array_equal(found["label_map"], np.where(core, 2, np.where(whole, 1, 0)))


def test_regions_of_volumes_under_mixed_precision():
    network, same = regions_network()
    run = export.serving_function(export.full_precision(network), region_plan(), (2, 2, 1))
    assert network.layers[1].compute_dtype == "bfloat16"
    check_regions(lambda image: run(image, tf.constant([-1, -1]), tf.zeros([2, 4])), same)


@pytest.mark.slow
def test_an_exported_volume_network_segments_regions_in_files(tmp_path):
    network, same = regions_network()
    plan = region_plan()
    export.export(network, plan, tmp_path / "m")
    served = load(tmp_path / "m")
    check_regions(lambda image: served("serving_default", image=image), same)
    array = phantom((13, 11, 9))
    volume = nifti.Volume(array, np.diag([-1.3, 0.8, 4.0, 1.0]))
    labels, _ = inference.segment_volume(
        volume, plan, inference.Predictor(same, plan), "t1", spatial_dims=3
    )
    assert set(np.unique(labels)) > {0}
    data = tf.constant([nifti.encode(array.astype(np.uint16), affine=volume.affine)])
    answer = served("segment_nifti", nifti_bytes=data, modality=["t1"])
    found = nifti.read_bytes(answer["label_map_nifti_bytes"][0], "answer")
    np.testing.assert_array_equal(found.array, labels)


@pytest.mark.slow
def test_a_generator_translates_and_a_stack_of_slices_segments(tmp_path):
    plan = region_plan()
    flat = dataclasses.replace(plan.configuration(2), slices=3)
    plan = dataclasses.replace(plan, configurations={"2d": flat})
    network = UNet(channels=3, classes=2, filters=2, levels=2)
    translator = StarGANGenerator(channels=3, filters=2, blocks=1)
    head = StarGANDiscriminator(channels=3, patch_size=(8, 16), filters=2)
    head.set_weights([10 * w for w in head.get_weights()])
    export.export(network, plan, tmp_path / "m", translator, classifier=head)
    served = load(tmp_path / "m")
    image = noise((2, 9, 14, 3))
    found = served("classify_modality", image=image)
    scores = classifying_function(head, plan)(image).numpy()
    np.testing.assert_allclose(found["scores"], scores, atol=1e-5)
    np.testing.assert_allclose(scores.sum(1), 1.0, rtol=1e-5)
    likeliest = [plan.modalities[i].encode() for i in scores.argmax(1)]
    assert found["modality"].tolist() == likeliest
    found = served("translate", image=image, modality=["ct", ""], target=["t1", "ct"])["translated"]
    normalization = IntensityNormalization.from_plan(plan)
    normal = normalization(image, np.array([0, -1]), np.zeros((2, 4), np.float32))
    padded = np.pad(normal, [(0, 0), (0, 3), (0, 2), (0, 0)], constant_values=-1.0)
    made = translator.translate(padded, np.array([0, -1]), np.array([1, 0]))
    made = np.clip(np.asarray(made)[:, :9, :14], -1, 1)
    for row, target in enumerate(("t1", "ct")):
        low, high = intensity_range(plan.normalization[target])
        wanted = low + (made[row] + 1) / 2 * (high - low)
        np.testing.assert_allclose(found[row], wanted, atol=1e-4 * (high - low))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"Unknown target\. Known: ct, t1"):
        served("translate", image=image, modality=["ct", ""], target=["t1", ""])
    array = phantom((20, 30, 5))
    volume = nifti.Volume(array, np.diag([1.2, 1.0, 3.0, 1.0]))
    predictor = inference.Predictor(network, plan)
    _, local = inference.segment_volume(volume, plan, predictor, "ct", spatial_dims=2)
    spacing = np.float32([volume.spacing])
    label_map = served("segment_volume", volume=array[None], spacing=spacing, modality=["ct"])
    core, whole = local[..., 1] > 0.5, local[..., 0] > 0.5
    sure = (np.abs(local - 0.5) > 1e-5).all(-1)
    wanted = np.where(core, 2, np.where(whole, 1, 0))
    np.testing.assert_array_equal(label_map["label_map"][0][sure], wanted[sure])


@pytest.mark.parametrize(
    ("network", "multiples"),
    [
        (lambda: UNet(filters=2, levels=3), (8, 8)),
        (lambda: UNet(filters=2, strides=((2, 1, 4), (2, 1, 2)), spatial_dims=3), (4, 1, 8)),
        (lambda: SegANSegmentor(filters=2), (16, 16)),
    ],
)
def test_side_multiples(network, multiples):
    assert export.side_multiples(network()) == multiples


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"modality": ["ct", "smith"]}, "Unknown modality. Known: ct, t1; empty where"),
        ({"modality": ["ct"]}, "modality differs from the rest in batch size"),
        ({"statistics": np.zeros((1, 4), np.float32)}, "statistics differ from the rest in batch"),
        ({"statistics": np.full((2, 4), np.nan, np.float32)}, "statistics hold NaN or infinite"),
        ({"image": np.full((2, 8, 8, 1), np.inf, np.float32)}, "image holds NaN or infinite"),
        ({"image": np.zeros((2, 0, 8, 1), np.float32)}, "image has an axis of size 0"),
    ],
)
def test_bad_requests_are_refused_in_words_without_values(model, change, text):
    good = {
        "image": noise((2, 8, 8, 1)),
        "modality": ["ct", "t1"],
        "statistics": np.zeros((2, 4), np.float32),
    }
    with pytest.raises(tf.errors.InvalidArgumentError, match=text) as caught:
        model("segment", **{**good, **change})
    assert "smith" not in caught.value.message


def test_no_images_are_refused(model):
    with pytest.raises(tf.errors.InvalidArgumentError, match="axis of size 0"):
        model("serving_default", image=np.zeros((0, 8, 8, 1), np.float32))


# Stock TensorFlow Serving compares nothing with the signature, and a convolution that gets the
# wrong rank ends the process. So the shapes of the placeholders are wiped here, and the guard has
# to refuse, not a kernel that happens to come before the first convolution.
HOSTILE = """
import sys, numpy as np, tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
model = saved_model_pb2.SavedModel.FromString(open(sys.argv[1] + "/saved_model.pb", "rb").read())
meta = model.meta_graphs[0]
for node in meta.graph_def.node:
    if node.op == "Placeholder":
        node.attr["shape"].shape.unknown_rank = True
        del node.attr["shape"].shape.dim[:]
        node.attr.pop("_output_shapes", None)
with tf.Graph().as_default() as graph, tf.compat.v1.Session() as session:
    tf.import_graph_def(meta.graph_def, name="")
    saver = meta.saver_def
    prefix = sys.argv[1] + "/variables/variables"
    session.run(saver.restore_op_name, {saver.filename_tensor_name: prefix})
    def ask(name, **inputs):
        signature = meta.signature_def[name]
        feeds = {signature.inputs[k].name: v for k, v in inputs.items()}
        return session.run([t.name for t in signature.outputs.values()], feeds)
    image, rows = np.ones((1, 8, 8, 1), np.float32), np.ones((1, 4), np.float32)
    for bad in (image[0], image[0, 0], image[None], image[0, 0, 0, 0], np.ones((1, 8, 8, 3), "f4")):
        for name, inputs in (
            ("serving_default", {}),
            ("segment", {"modality": np.array([b""], object), "statistics": rows}),
        ):
            try:
                ask(name, image=bad, **inputs)
            except tf.errors.OpError as error:
                print("guarded" if "compatible with expected shape" in error.message else error)
    spacing, names = np.ones((1, 3), np.float32), np.array([b""], object)
    for name, inputs in (
        ("segment_volume", {"volume": image, "spacing": spacing[0], "modality": names}),
        ("segment_volume", {"volume": image[0], "spacing": spacing, "modality": names}),
        ("segment_nifti", {"nifti_bytes": np.array(b"", object), "modality": names}),
        ("serve_examples", {"examples": np.array([[b""]], object)}),
        ("describe", {"request": np.zeros((1, 1), np.int64)}),
    ):
        try:
            ask(name, **inputs)
        except tf.errors.OpError as error:
            print("guarded" if "compatible with expected shape" in error.message else error)
    for change in ({"statistics": rows[0]}, {"modality": np.array(b"", object)}):
        good = {"image": image, "modality": np.array([b""], object), "statistics": rows}
        try:
            ask("segment", **{**good, **change})
        except tf.errors.OpError as error:
            print("guarded" if "compatible with expected shape" in error.message else error)
    assert ask("serving_default", image=image)
    print("alive")
"""


def test_a_wrong_rank_does_not_end_the_process(folder):
    found = subprocess.run(
        [sys.executable, "-c", HOSTILE, str(folder)], capture_output=True, text=True, check=False
    )
    assert found.stdout.split() == ["guarded"] * 17 + ["alive"], found.stderr[-2000:]


def test_describe_says_all_that_a_client_needs(model, folder, plan):
    cards = model("describe", request=np.zeros(2, np.int64))["model_card"]
    assert len(cards) == 2
    card = json.loads(cards[1])
    written = json.loads((folder / export.CARD_FILE).read_text())
    later = ("graph_def", "verified_servers")
    assert {k: v for k, v in card.items() if k not in later} == {
        k: v for k, v in written.items() if k not in later
    }
    assert config.Plan.from_dict(card["plan"]) == plan
    assert card["labels"] == {
        "names": ["background", "organ", "lesion"],
        "overlapping": False,
        "output_values": [0, 3, 5],
    }
    assert (card["spatial_dims"], card["patch_size"]) == (2, [16, 16])
    assert (card["modalities"], card["spacing"]) == (["ct", "t1"], [1.0, 1.5, 3.0])
    assert card["signatures"] == {name: export.SIGNATURES[name][0] for name in model.signatures}
    assert card["notice"] == "For research use only: not a medical device."


def test_the_card_names_ops_and_servers_and_can_be_read(folder):
    card = cards.read(folder)
    assert set(card["graph_def"]["ops"]) <= operations.KNOWN
    assert {"Conv2D", "Svd", "DecodeCompressed"} <= set(card["graph_def"]["ops"])
    assert card["graph_def"]["producer"] > 2000
    assert card["graph_def"]["min_consumer"] <= 12
    assert card["verified_servers"] == [
        f"keras_unigan {card['versions']['keras_unigan']} on TensorFlow {tf.__version__}"
    ]
    page = (folder / cards.PAGE_FILE).read_text()
    for text in ("not a medical device", "3 = organ", "`segment_nifti`", "none were measured"):
        assert text in page


def test_facts_of_a_run_are_on_the_card(network, plan, tmp_path):
    scores = {"dice": 0.5, "hd95": 2.0, "assd": float("nan"), "cases": 3}
    summary = {"split": "test", "cases": 3, "modalities": {"ct": scores}, "rows": ["private"]}
    config.write_json(tmp_path / "metrics_unknown.json", config.finite(summary))
    config.write_json(tmp_path / "config.json", {"model": "segan", "seed": 7})
    facts = cards.facts_of_run(tmp_path, "CC-BY-4.0")
    card = export.model_card(network, plan, (4, 4), facts=facts)
    assert "private" not in json.dumps(card)
    page = cards.page(card)
    for text in ("system segan, seed 7", "CC-BY-4.0", "modality withheld (3 cases)"):
        assert text in page
    assert "| ct | 3 | 0.500 | 2.000 | – |" in page


@pytest.mark.parametrize("sides", [None, (6, 10)])
def test_example_inputs_are_answered(model, network, plan, sides):
    requests = export.example_inputs(network, plan, sides)
    assert set(requests) == set(export.SIGNATURES) - {
        "translate",
        "classify_modality",
        "synthesize",
    }
    for name, inputs in requests.items():
        found = model(
            name, **{k: v.tolist() if v.dtype == object else v for k, v in inputs.items()}
        )
        assert all(len(array) == 1 for array in found.values())
    assert requests["segment"]["image"].shape == (1, *(sides or (16, 16)), 1)


def test_a_network_of_other_labels_is_refused(tmp_path, plan):
    network = UNet(classes=2, filters=2, levels=1)
    with pytest.raises(CodedError, match="KUG-T04 unet: found 2 outputs, expected 3"):
        export.export(network, plan, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_network_that_only_translates_is_refused(tmp_path):
    with pytest.raises(CodedError, match=r"KUG-T04 .*a StarGANGenerator, which only translates"):
        export.export(StarGANGenerator(filters=2, blocks=1), None, tmp_path / "model")
