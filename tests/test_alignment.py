"""What the bottleneck of a run tells of the modality."""

import json

import hypothesis
import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import keras
import numpy as np
import pytest
from commands import unigan

from keras_unigan import alignment, config, inference
from keras_unigan.data import nifti
from keras_unigan.errors import CodedError
from keras_unigan.networks import NETWORKS, UAGANGenerator, UNet, UnifiedGenerator

LABELS = config.Labels(classes={"organ": (1,), "lesion": (2,)})


def make_plan():
    windows = {m: config.Normalization("ct", 100.0, 100.0, -1.0, 1.0) for m in ("ct", "t1")}
    configurations = {"2d": config.Configuration((8, 8), 2, ((2, 2),) * 2, 4)}
    spacing = (1.0, 1.0, 2.0)
    return config.Plan("study", ("ct", "t1"), LABELS, spacing, None, windows, configurations)


def network(kind):
    common = {"classes": 3, "filters": 2}
    if kind == "joint":
        return UNet(strides=((2, 2),) * 2, **common)
    if kind == "uagan":
        return UAGANGenerator(domains=2, levels=2, **common)
    return UnifiedGenerator(domains=2, strides=((2, 2),) * 2, conditioning="decoder", se_levels=0, **common)  # fmt: skip  # noqa: E501


@pytest.mark.parametrize("kind", ["joint", "uagan", "unigan"])
def test_the_bottleneck_is_the_deepest_map_of_the_segmentation(kind):
    made, plan = network(kind), make_plan()
    found = alignment.Bottleneck(inference.Predictor(made, plan))
    patches = np.random.default_rng(0).uniform(0, 200, (3, 8, 8, 1)).astype(np.float32)
    statistics = np.array([100, 50, 0, 200], np.float32)
    maps = found(patches, "ct", statistics)
    assert maps.shape == (3, 2, 2, 8)
    # The logits have to hang on it: what it sends on is all that the decoder gets from so deep.
    assert np.abs(maps - found(patches[:, ::-1], "ct", statistics)).max() > 1e-4
    assert not found.layer.startswith("translation")
    # What the other task is told makes no difference to the features of the image.
    np.testing.assert_allclose(maps, found(patches, "t1", statistics), atol=1e-5)


def test_a_network_without_a_shared_bottleneck_is_refused():
    other = NETWORKS["IndividualUNets"](classes=3, domains=2, filters=2, strides=((2, 2),) * 2)
    with pytest.raises(CodedError, match="KUG-T04 alignment: found a IndividualUNets"):
        alignment.Bottleneck(inference.Predictor(other, make_plan()))


def clouds(apart, count=40, size=6, seed=0):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(2 * count, size))
    features[count:, 0] += apart
    modality = np.repeat(["ct", "t1"], count)
    subject = np.array([f"{m}{n % 4}" for n, m in enumerate(modality)])
    return features, modality, subject


def test_a_probe_finds_what_is_there_and_no_more():
    near = alignment.probe_accuracy(*clouds(0.0))
    assert (near["chance"], near["folds"]) == (0.5, 4)
    assert 0.25 < near["balanced_accuracy"] < 0.7
    assert alignment.probe_accuracy(*clouds(6.0))["balanced_accuracy"] > 0.97
    # Of one subject nothing can be held out.
    features, modality, _ = clouds(6.0)
    alone = alignment.probe_accuracy(features, modality, modality)
    assert alone["folds"] == 0
    assert np.isnan(alone["balanced_accuracy"])


def test_a_probe_cannot_learn_subjects_by_heart():
    """Windows of a subject are alike; a probe that had seen some of them would know the rest."""
    rng = np.random.default_rng(0)
    own = rng.normal(size=(12, 30)) * 10
    features = np.concatenate([s + rng.normal(size=(10, 30)) * 0.1 for s in own])
    subject = np.repeat([f"s{n:02d}" for n in range(12)], 10)
    modality = np.repeat(rng.permutation(["ct", "t1"] * 6), 10)
    assert alignment.probe_accuracy(features, modality, subject)["balanced_accuracy"] < 0.8


def test_the_probe_is_at_its_least():
    features, modality, _ = clouds(1.0)
    targets = (modality == "t1").astype(int)
    weights = alignment.fit_probe(features, targets, 2)

    def loss(w):
        logits = features @ w[:-1] + w[-1]
        log = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        return -log[np.arange(len(targets)), targets].sum() + (w[:-1] ** 2).sum() / 2

    rng = np.random.default_rng(1)
    assert all(
        loss(weights + 0.01 * rng.normal(size=weights.shape)) > loss(weights) for _ in range(20)
    )


def test_mmd_worked_by_hand():
    first, second = np.array([[0.0], [1.0]]), np.array([[1.0], [3.0]])
    # Distances² 1 (within the first), 4 (the second), 1, 9, 0, 4 across; their median is 2.5.
    k = lambda d: np.exp(-d / 5.0)  # noqa: E731
    expected = k(1) + k(4) - (k(1) + k(9) + k(0) + k(4)) / 2
    assert alignment.mmd2(first, second) == pytest.approx(expected)
    assert np.isnan(alignment.mmd2(first[:1], second))
    features, modality, _ = clouds(0.0, count=200)
    assert abs(alignment.mmd2(features[modality == "ct"], features[modality == "t1"])) < 0.01
    features, modality, _ = clouds(4.0, count=200)
    assert alignment.mmd2(features[modality == "ct"], features[modality == "t1"]) > 0.2


@hypothesis.given(
    arrays.arrays(np.float64, (5, 3), elements=st.floats(-9, 9)),
    arrays.arrays(np.float64, (4, 3), elements=st.floats(-9, 9)),
)
def test_distances_do_not_care_which_comes_first(first, second):
    for distance in (alignment.mmd2, alignment.centroid_distance):
        np.testing.assert_allclose(distance(first, second), distance(second, first), atol=1e-9)


def test_centroids_worked_by_hand():
    first = np.array([[0.0, 0.0], [2.0, 0.0], [np.nan, np.nan]])
    second = np.array([[4.0, 3.0], [4.0, 5.0]])
    # Means (1, 0) and (4, 4); total variances 2 and 2.
    assert alignment.centroid_distance(first, second) == pytest.approx(5 / np.sqrt(2))
    assert np.isnan(alignment.centroid_distance(first[:1], second))


@keras.saving.register_keras_serializable(package="test_alignment")
class Mean(keras.Model):
    """The bottleneck is the image, averaged over 4 x 4 voxels."""

    spatial_dims, channels = 2, 1

    def __init__(self, name="mean"):
        image = keras.Input((None, None, 1))
        x = keras.layers.AveragePooling2D(4)(image)
        x = keras.layers.UpSampling2D(4)(x)
        super().__init__(image, keras.layers.Conv2D(3, 1)(x), name=name)

    def get_config(self):
        return {"name": self.name}


def write_study(folder):
    """Two subjects of each modality: CT has 100 in the organ, T1 140; the lesion is like it."""
    label = np.zeros((8, 8, 3), np.uint8)
    label[:, :4] = 1
    label[:2, :2] = 2
    cases = []
    for number, subject in enumerate("abcd"):
        modality, level = (("ct", 100), ("t1", 140))[number // 2]
        image = np.where(label, level + 4 * number, 20).astype(np.float32)
        image[7, 7] = 21
        for name, array in ((f"{subject}_{modality}", image), (f"{subject}_seg", label)):
            nifti.write(folder / f"{name}.nii", array, affine=np.diag([1.0, 1, 2, 1]))
        names = f"{subject}_{modality}.nii", f"{subject}_seg.nii"
        cases.append(config.Case(subject, modality, *names, "test"))
    study = config.Study("study", ("ct", "t1"), LABELS, tuple(cases), folder=str(folder))
    study.save(folder / "study.json")
    return study


def test_vectors_of_a_class_are_averaged_over_it(tmp_path):
    study = write_study(tmp_path)
    predictor = inference.Predictor(Mean(), make_plan())
    found = alignment.read_vectors(predictor, study, study.cases)
    assert found.features.shape == (12, 1)
    assert list(found.subject) == list(np.repeat(list("abcd"), 3))
    organ = np.array([100, 104, 148, 152]) / 100 - 1
    right = (2 * np.array([20, 20, 20, 20]) / 100 - 2 + 1 / 1600) / 2
    np.testing.assert_allclose(found.features[::3, 0], (organ + right) / 2, atol=1e-4)
    np.testing.assert_allclose(found.classes["organ"][::3, 0], organ, atol=1e-4)
    # The lesion fills a quarter of one cell.
    np.testing.assert_allclose(found.classes["lesion"][::3, 0], organ, atol=1e-4)
    (tmp_path / "b_ct.nii").write_bytes(b"no scan")
    failed = {}
    again = alignment.read_vectors(predictor, study, study.cases, failed=failed)
    assert list(failed) == ["b_ct"]
    assert len(again.features) == 9


def test_evaluate_writes_numbers_and_picture(tmp_path, capsys):
    study, run = write_study(tmp_path), tmp_path / "run"
    run.mkdir()
    Mean().save(run / "network.keras")
    make_plan().save(run / "plan.json")
    asked = ["evaluate", run, tmp_path / "study.json", "--alignment"]
    assert unigan(*asked) == 0
    said = capsys.readouterr().out
    assert "balanced accuracy 1.00 (chance 0.50; 2 folds of subjects)" in said
    found = json.loads((run / "alignment.json").read_text())
    assert found["windows"] == {"ct": 6, "t1": 6}
    assert found["subjects"] == {"ct": 2, "t1": 2}
    assert found["centroids"][0]["name"] == "organ"
    # Means 102 and 150 with a variance of 4.8 each: the windows of a subject are the same.
    assert found["centroids"][0]["distance"] == pytest.approx(48 / np.sqrt(4.8), rel=1e-3)
    assert len(found["pca"]["points"]) == len(found["pca"]["case"]) == 12
    assert (run / "alignment.png").read_bytes().startswith(b"\x89PNG")
    assert unigan(*asked, "--overwrite", "--split", "val") == 3
    assert "KUG-D14" in capsys.readouterr().err
    one = config.Study("study", study.modalities, LABELS, study.cases[:2], folder=study.folder)
    with pytest.raises(CodedError, match=r"KUG-D14 study: found cases of \['ct'\] only"):
        alignment.evaluate_run(run, one)
    assert unigan("evaluate", run, run, tmp_path / "study.json", "-o", run, "--alignment") == 2
