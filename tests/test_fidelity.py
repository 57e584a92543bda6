"""Distances of sets of images, and generators that cheat."""

import math

import keras
import numpy as np
import pytest

from keras_unigan import config, fidelity, inference, translation_scores
from keras_unigan.data import nifti
from keras_unigan.networks import UNet
from keras_unigan.translation_scores import COPY

SHAPE, AFFINE = (24, 24, 4), np.diag([1.0, 1.0, 2.0, 1.0])
LABELS = config.Labels(classes={"organ": (1,), "lesion": (2,)})
MODALITIES = ("ct", "hct")


def make_plan():
    window = config.Normalization("ct", mean=100.0, sd=100.0, low=-1.0, high=1.0)
    configurations = {"2d": config.Configuration((24, 24), 2, ((2, 2),), 4)}
    windows = dict.fromkeys(MODALITIES, window)
    spacing = (1.0, 1.0, 2.0)
    return config.Plan("study", MODALITIES, LABELS, spacing, None, windows, configurations)


def with_moments(mean, covariance, count=50, seed=0):
    """Rows of exactly this mean and covariance."""
    rows = np.random.default_rng(seed).normal(size=(count, len(mean)))
    rows -= rows.mean(axis=0)
    rows = np.linalg.solve(np.linalg.cholesky(np.cov(rows, rowvar=False)), rows.T).T
    return rows @ np.linalg.cholesky(np.asarray(covariance, float)).T + mean


def test_frechet_of_known_gaussians():
    first = with_moments([0, 0], np.diag([1.0, 4.0]))
    second = with_moments([3, 4], np.diag([9.0, 1.0]), seed=1)
    expected = 25 + (1 - 3) ** 2 + (2 - 1) ** 2
    assert fidelity.frechet_distance(first, second) == pytest.approx(expected)
    assert fidelity.frechet_distance(first, first) == pytest.approx(0, abs=1e-9)
    # Covariances that do not commute: the trace of their product's root from its eigenvalues.
    a, b = np.array([[2.0, 1.0], [1.0, 2.0]]), np.diag([1.0, 5.0])
    root = np.sqrt(np.linalg.eigvals(a @ b)).sum()
    pair = with_moments([0, 0], a), with_moments([0, 0], b, seed=2)
    assert fidelity.frechet_distance(*pair) == pytest.approx(4 + 6 - 2 * root)
    assert math.isnan(fidelity.frechet_distance(first[:1], second))


def test_kernel_distance_by_every_pair():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4, 3)), rng.normal(size=(5, 3)) + 1
    kernel = lambda a, b: (a @ b / 3 + 1) ** 3  # noqa: E731
    within = [
        np.mean([kernel(a, b) for i, a in enumerate(s) for j, b in enumerate(s) if i != j])
        for s in (x, y)
    ]
    across = np.mean([kernel(a, b) for a in x for b in y])
    assert fidelity.kernel_distance(x, y) == pytest.approx(sum(within) - 2 * across)
    assert math.isnan(fidelity.kernel_distance(x[:1], y))


def test_intervals_know_how_few_cases_there_are():
    rng = np.random.default_rng(0)

    def cases(count, offset):
        return [rng.normal(size=(6, 5)) + rng.normal(size=5) + offset for _ in range(count)]

    same = fidelity.distances(cases(12, 0.0), cases(12, 0.0))
    far = fidelity.distances(cases(12, 0.0), cases(12, 3.0))
    for name in ("frechet", "kernel"):
        assert same[f"{name}_low"] <= same[name] <= same[f"{name}_high"]
        assert far[f"{name}_low"] > same[f"{name}_high"]
    assert (far["real_cases"], far["made_windows"]) == (12, 72)
    few = fidelity.distances(cases(3, 0.0), cases(3, 3.0))
    width = lambda found: found["frechet_high"] - found["frechet_low"]  # noqa: E731
    assert width(few) > width(far)
    alone = fidelity.distances(cases(1, 0.0), cases(4, 0.0))
    assert math.isfinite(alone["frechet"])
    assert math.isnan(alone["frechet_low"])


def test_a_judge_without_a_bottleneck_is_said(monkeypatch):
    assert fidelity.collector(None) == (None, "no segmentor to take features of")
    network = UNet(classes=3, filters=2, strides=((2, 2),))
    found, reason = fidelity.collector(inference.Predictor(network, make_plan()))
    assert reason == ""
    assert found.bottleneck.plan.modalities == MODALITIES


# --- Generators that cheat -----------------------------------------------------------------------
#
# The lesion shows in "hct" only: in "ct" it looks like the organ around it. Half of the subjects
# have none. Nobody can know of it from "ct".


def anatomy(seed, lesion):
    label = np.zeros(SHAPE, np.uint8)
    label[3 + seed % 3 : 19 + seed % 3, 4:20] = 1
    label[5:8, 12:15] = 0
    if lesion:
        label[9:13, 7:11, 1:3] = 2
    return label


def shown(label, modality, seed):
    """Body -0.6, organ 0, lesion 0.8, in "ct" 0 like the organ; 0..200 become -1..1."""
    grey = (-0.6, 0.0, 0.8 if modality == "hct" else 0.0)
    image = np.choose(label, grey) + np.random.default_rng(seed).normal(0, 0.03, SHAPE)
    image = 100 * (image + 1)
    image[:2], image[-2:] = -1000, -1000
    return image.astype(np.float32)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder, cases = tmp_path_factory.mktemp("study"), []
    for number in range(8):
        split = "train" if number < 4 else "test"
        modality = MODALITIES[number % 2] if split == "train" else "ct"
        label = anatomy(number, lesion=number % 4 < 2)
        names = f"s{number}_{modality}.nii", f"s{number}_seg.nii"
        nifti.write(folder / names[0], shown(label, modality, number), affine=AFFINE)
        nifti.write(folder / names[1], label, affine=AFFINE)
        cases.append(config.Case(f"s{number}", modality, *names, split))
    return config.Study("study", MODALITIES, LABELS, tuple(cases), folder=str(folder))


class Judge:
    """Finds organ above -0.3 and lesion above 0.4, normalised."""

    plan, spatial_dims = make_plan(), 2

    def __call__(self, patches, modality, statistics):
        normal = patches[..., 0] / 100 - 1
        return np.eye(3, dtype=np.float32)[(normal > -0.3).astype(int) + (normal > 0.4)]


def translators():
    """Method -> translator; `honest` shows the organ brighter and no lesion that it cannot see."""
    copy = translation_scores.copy_input(make_plan())

    def honest(patches, *told):
        images = np.array(copy(patches, *told))
        return np.where(images > -0.3, images + 0.2, images - 0.2)

    def inventing(patches, *told):
        """Paints the lesion where most have it, so that the image looks like one of its kind."""
        images = honest(patches, *told)
        images[:, 9:13, 7:11] = 0.8
        return images

    def moving(patches, *told):
        return np.roll(honest(patches, *told), 3, axis=2)

    return {"honest": honest, "inventing": inventing, "moving": moving, COPY: copy}


def test_generators_that_cheat_are_found_out(study, monkeypatch):
    monkeypatch.setattr(inference, "predictor_of", lambda model: model)
    rows = list(
        translation_scores.translation_rows(translators(), make_plan(), study, segmentor=Judge())
    )
    assert len(rows) == 4 * 4
    by = {m: [r for r in rows if r["method"] == m] for m in translators()}
    mean = {m: translation_scores.summarize(rows)["macro"][m] for m in by}
    healthy = {m: [r for r in own if r["case"] in ("s6_ct", "s7_ct")] for m, own in by.items()}

    # 1. What is not in the source is invented, and told for each name.
    for row in healthy["inventing"]:
        assert row["names"]["lesion"]["hallucination"] == 1.0
        assert row["names"]["lesion"]["label_dice"] == 0.0
    for row in healthy["honest"]:
        assert math.isnan(row["names"]["lesion"]["hallucination"])
        assert row["names"]["organ"]["hallucination"] == 0.0
    assert mean["inventing"]["hallucination"] > 0.2
    assert mean["honest"]["hallucination"] == 0.0
    # 2. Anatomy that moves is measured in mm; anatomy that stays is not blamed.
    assert mean["moving"]["shift_mm"] == pytest.approx(3.0, abs=0.5)
    assert mean["honest"]["shift_mm"] < 0.3
    assert mean["moving"]["edge_nmi"] < mean["honest"]["edge_nmi"] - 0.1
    assert mean["moving"]["anatomy_dice"] < 0.9 < mean["honest"]["anatomy_dice"]
    # 3. A copy has perfect anatomy, and is told by its copies.
    assert mean[COPY]["copy_ratio"] == 1.0
    assert mean[COPY]["edge_nmi"] == pytest.approx(2.0)
    assert mean[COPY]["shift_mm"] == 0.0
    assert mean["honest"]["copy_ratio"] < 0.1


def test_a_generator_that_knows_its_training_scans_by_heart_is_found_out(study):
    observer = fidelity.Observer(make_plan(), study, None)
    learnt = next(c for c in study.cases if c.split == "train" and c.modality == "hct")
    remembered = nifti.read(study.path(learnt.image)).array / 100 - 1
    remembered = remembered.clip(-1, 1)
    fresh = shown(anatomy(5, lesion=True), "hct", 99) / 100 - 1
    for case in [c for c in study.cases if c.split == "test"]:
        observer(case, "hct", "recalling", remembered, None)
        observer(case, "hct", "painting", fresh.clip(-1, 1), None)
    found = {row["method"]: row for row in observer.summary()["memorisation"]}
    assert (found["recalling"]["copies"], found["recalling"]["cases"]) == (4, 4)
    assert found["recalling"]["distance"] == pytest.approx(0, abs=1e-3)
    assert {row["case"] for row in found["recalling"]["nearest"]} == {learnt.id}
    assert found["painting"]["copies"] == 0
    assert found["painting"]["distance"] > 0.5 * found["painting"]["usual"]
    assert observer.summary()["distances"] == []
    assert observer.summary()["reason"] == "no segmentor to take features of"


def test_sets_of_translations_are_compared_in_the_judges_features(study):
    keras.utils.set_random_seed(0)
    network = UNet(classes=3, filters=8, strides=((2, 2),))
    judge = inference.Predictor(network, make_plan())
    both = [config.Case(c.subject, "hct", c.image, c.label, "test") for c in study.cases[:4]]
    mixed = config.Study(
        "study", MODALITIES, LABELS, (*study.cases[4:], *both), folder=study.folder
    )
    observer = fidelity.Observer(make_plan(), mixed, judge)
    copy = {COPY: translators()[COPY], "honest": translators()["honest"]}
    list(translation_scores.translation_rows(copy, make_plan(), mixed, observe=observer))
    found = observer.summary()
    assert "in-house" in found["features"]
    rows = {(row["target"], row["method"]): row for row in found["distances"]}
    assert set(rows) == {(m, method) for m in MODALITIES for method in copy}
    for row in rows.values():
        assert (row["real_cases"], row["made_cases"]) == (4, 4)
        assert row["frechet"] >= 0
        assert row["kernel_low"] <= row["kernel_high"]
    # Changing all intensities takes an image further from scans than leaving them.
    assert rows["hct", "honest"]["frechet"] > rows["hct", COPY]["frechet"]
