"""The alarm for scans unlike those of training."""

import dataclasses
import json

import hypothesis
import hypothesis.strategies as st
import keras
import numpy as np
import phantom_shards
import pytest
import tensorflow as tf
from checks import plan as make_plan
from commands import unigan

from keras_unigan import alarm, training
from keras_unigan.config import Experiment, Study, TrainOptions
from keras_unigan.data import nifti, phantoms, preprocessing, volumes
from keras_unigan.layers import IntensityNormalization
from keras_unigan.networks import StarGANDiscriminator

MODALITIES = ("ct", "t1")
PLAN8 = make_plan(modalities=MODALITIES, size=8)


def inverted(array, rng):
    """Bright becomes dark inside the body."""
    inside = preprocessing.nonbackground(array)
    low, high = np.percentile(array[inside], (0.5, 99.5))
    return np.where(inside, low + high - array, array)


def noisy(array, rng):
    """As much noise as there is contrast."""
    inside = preprocessing.nonbackground(array)
    noise = rng.normal(0, array[inside].std(), array.shape)
    return np.where(inside, array + noise, array)


STRANGE = {"inverted": inverted, "noisy": noisy}


def test_distance_is_that_of_mahalanobis():
    rng = np.random.default_rng(0)
    domains = np.array([0, 0, 0, 1, 1, 1, 1])
    vectors = rng.normal(size=(7, 5)) * [1, 2, 3, 4, 5] + 10 * domains[:, None]
    level = alarm.Level._of(vectors, domains, 2)
    residuals = vectors - np.stack([vectors[:3].mean(0), vectors[3:].mean(0)])[domains]
    covariance = residuals.T @ residuals / 5
    covariance += alarm.SHRINKAGE * np.trace(covariance) / 5 * np.eye(5)
    for domain, rows in ((0, vectors[:3]), (1, vectors[3:])):
        point = rng.normal(size=5)
        apart = point - rows.mean(axis=0)
        expected = apart @ np.linalg.inv(covariance) @ apart / 5
        assert level.distance(point, domain) == pytest.approx(expected)
    # In units of what a training volume has from the others.
    fitted = alarm.Level.fit(vectors, domains, 2)
    others = [np.arange(7) != n for n in range(7)]
    apart = [
        alarm.Level._of(vectors[o], domains[o], 2).distance(vectors[n], domains[n])
        for n, o in enumerate(others)
    ]
    assert fitted.typical == pytest.approx(np.median(apart))
    assert fitted.distance(point, 1) == pytest.approx(level.distance(point, 1) / np.median(apart))


def test_threshold_worked_by_hand():
    assert alarm.conformal_threshold([3.0, 1.0, 2.0]) == (3.0, 0.25)
    scores = list(range(1, 40))
    assert alarm.conformal_threshold(scores) == (38, pytest.approx(0.05))
    assert alarm.conformal_threshold(scores, 0.5) == (20, pytest.approx(0.5))
    assert alarm.auroc([1, 2], [2, 3]) == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    assert np.isnan(alarm.auroc([], [1]))


@hypothesis.given(st.integers(2, 60), st.floats(0.02, 0.9))
def test_a_threshold_keeps_its_promise(count, rate):
    """Of exchangeable scores each rank is as likely as any other for the new one."""
    scores = np.arange(count + 1)
    rest = [[s for s in scores if s != new] for new in scores]
    exceeded = np.mean([n > alarm.conformal_threshold(r, rate)[0] for n, r in enumerate(rest)])
    promised = alarm.conformal_threshold(rest[0], rate)[1]
    assert exceeded == pytest.approx(promised)
    assert promised <= max(rate, 1 / (count + 1)) + 1e-9


def test_what_is_described_of_an_image():
    network = StarGANDiscriminator(patch_size=(8, 8), filters=2, domains=2, layers=1)
    descriptor = alarm.Descriptor(network, PLAN8)
    values = np.random.default_rng(0).uniform(0, 100, (8, 8, 2)).astype(np.float32)
    prepared = preprocessing.prepare(nifti.Volume(values, np.diag([1, 1, 2.0, 1])), PLAN8)
    found = descriptor(prepared, "ct")
    assert descriptor.levels == ("image", "level 0", "domain logits")
    normalize = IntensityNormalization.from_plan(PLAN8)
    slices = np.moveaxis(prepared.image, 2, 0)[..., None]
    normal = np.asarray(normalize(slices, np.zeros(2, int), prepared.statistics[None]))
    histogram = np.histogram(normal, np.linspace(-1 - 1 / 16, 1 + 1 / 16, alarm.BINS + 1))[0]
    assert found[0][: alarm.BINS].sum() == pytest.approx(1, abs=1e-5)
    # Bins are soft: neighbours share what lies between them.
    assert np.corrcoef(found[0][: alarm.BINS], histogram)[0, 1] > 0.8
    rough = np.abs(np.diff(normal, axis=1)).mean() + np.abs(np.diff(normal, axis=2)).mean()
    assert found[0][-1] == pytest.approx(rough, rel=1e-4)
    maps = np.asarray(keras.Model(network.inputs[0], network.get_layer("act_0").output)(normal))
    np.testing.assert_allclose(found[1][:2], maps.mean(axis=(0, 1, 2)), atol=1e-6)
    spread = maps.std(axis=(1, 2)).mean(axis=0)
    np.testing.assert_allclose(found[1][2:4], spread, atol=1e-6)
    logits = network(normal)[1]
    np.testing.assert_allclose(found[2], np.mean(logits, axis=0), atol=1e-6)


@pytest.fixture(scope="module")
def head():
    """A domain head that was taught phantoms for a moment, and its plan."""
    plan = make_plan(modalities=MODALITIES, size=32)
    keras.utils.set_random_seed(0)
    network = StarGANDiscriminator(patch_size=(32, 32), filters=8, domains=2)
    normalize = IntensityNormalization.from_plan(plan)
    images, domains = [], []
    for domain, modality in enumerate(MODALITIES):
        for seed in range(6):
            prepared = prepare(seed, modality, plan)
            slices = np.moveaxis(prepared.image, 2, 0)[:, :32, :32, None]
            shape = len(slices), 32 - slices.shape[1], 32 - slices.shape[2]
            slices = np.pad(slices, [(0, 0), (0, shape[1]), (0, shape[2]), (0, 0)])
            rows = np.repeat(prepared.statistics[None], len(slices), 0)
            images.append(normalize(slices, np.full(len(slices), domain), rows))
            domains += [domain] * len(slices)
    images, domains = tf.concat(images, 0), tf.constant(domains)
    optimizer = keras.optimizers.Adam(1e-3)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            logits = network(images, training=True)[1]
            loss = tf.nn.sparse_softmax_cross_entropy_with_logits(domains, logits)
            loss = tf.reduce_mean(loss)
        variables = [v for v in network.trainable_variables if "source" not in v.path]
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    losses = [float(step()) for _ in range(60)]
    assert losses[-1] < 0.3 < losses[0]
    return network, plan


def prepare(seed, modality, plan, change=None):
    array, _ = phantoms.volume(seed, modality, (32, 32, 6))
    if change is not None:
        array = STRANGE[change](array, np.random.default_rng(seed))
    volume = nifti.Volume(array.astype(np.float32), np.diag([1.0, 1.0, 2.0, 1.0]))
    return preprocessing.prepare(volume, plan)


@pytest.fixture(scope="module")
def learnt(head, tmp_path_factory):
    """An alarm fitted to phantoms, saved and loaded again."""
    descriptor = alarm.Descriptor(*head)
    every = [(seed, d, m) for d, m in enumerate(MODALITIES) for seed in range(100, 108)]
    vectors = [descriptor(prepare(seed, m, head[1]), m) for seed, _, m in every]
    domains = [domain for _, domain, _ in every]
    levels = [alarm.Level.fit(level, domains, 2) for level in zip(*vectors, strict=True)]
    made = alarm.Alarm(descriptor, levels)
    folder = tmp_path_factory.mktemp("run")
    scores = scores_of(made, None, True)
    made.threshold, _ = alarm.conformal_threshold(scores)
    head[1].save(folder / "plan.json")
    made.save(folder, {"note": 1})
    loaded = alarm.Alarm.load(folder)
    np.testing.assert_allclose(scores_of(loaded, None, True), scores, rtol=1e-3)
    assert json.loads((folder / "alarm.json").read_text()) == {
        "threshold": made.threshold,
        "note": 1,
    }
    assert alarm.Alarm.load(folder / "none") is None
    return loaded


def scores_of(made, change, told, seeds=range(200, 206)):
    return [
        made.read(prepare(seed, m, made.plan, change), m if told else None).score
        for m in MODALITIES
        for seed in seeds
    ]


@pytest.mark.parametrize("change", STRANGE)
def test_strange_phantoms_are_told_from_ordinary_ones(learnt, change):
    seeds = range(300, 306)
    for told in (True, False):
        normal, strange = (scores_of(learnt, c, told, seeds) for c in (None, change))
        assert alarm.auroc(normal, strange) >= 0.95
        assert np.mean(np.array(normal) > learnt.threshold) <= 0.25


def test_a_scan_of_the_wrong_name_is_told(learnt):
    reading = learnt.read(prepare(300, "t1", learnt.plan), "ct")
    assert reading.raised is True
    # What a loaded alarm says goes into files.
    assert json.loads(json.dumps(dataclasses.asdict(reading)))["nearest"] == "t1"
    message = str(reading.warning("scan.nii.gz", "ct"))
    assert message.startswith("KUG-D38 scan.nii.gz: found a scan that scores ")
    assert message.endswith("Fix: it is most like t1: check --modality")
    assert not learnt.read(prepare(300, "t1", learnt.plan), "t1").raised
    unknown = learnt.read(prepare(300, "t1", learnt.plan), None)
    assert (unknown.nearest, unknown.raised) == ("t1", False)
    assert "as any modality" in str(unknown.warning("scan", None))


@pytest.mark.slow
def test_a_trained_run_learns_its_alarm(tmp_path):
    """The whole road: a run of unigan, `unigan tune`, and phantoms that it never saw."""
    shards = phantom_shards.write(
        tmp_path, patch_size=(32, 32), batch_size=8, filters=8, modalities=MODALITIES,
        subjects_per_modality=14, size=32, depth=8, fractions=(0.5, 0.25, 0.25),
    )  # fmt: skip
    run, study = tmp_path / "run", tmp_path / "study" / "study.json"
    experiment = Experiment(
        shards=str(shards), output=str(run), model="unigan", steps=40,
        train=TrainOptions(learning_rate=2e-3, ema_decay=0.9, steps_per_epoch=20),
        network={"filters": 8, "strides": [[2, 2]] * 2},
    )  # fmt: skip
    training.run(experiment, quiet=True)
    assert unigan("tune", run, study) == 0
    found = json.loads((run / "alarm.json").read_text())
    cases = Study.load(study)
    count = {split: sum(c.split == split for c in cases.cases) for split in ("train", "val")}
    assert sum(found["training"].values()) == count["train"]
    assert len(found["validation"]) == count["val"]
    assert found["false_alarms"] == pytest.approx(1 / (count["val"] + 1))
    assert found["threshold"] == max(row["score"] for row in found["validation"])
    learnt, scores = alarm.Alarm.load(run), {change: [] for change in (None, *STRANGE)}
    for case in cases.cases:
        if case.split == "test":
            volume = volumes.read(cases.path(case.image))
            for change in scores:
                array = volume.array.astype(np.float32)
                if change is not None:
                    array = STRANGE[change](array, np.random.default_rng(0))
                strange = nifti.Volume(array, volume.affine, volume.header)
                prepared = preprocessing.prepare(strange, learnt.plan)
                scores[change].append(learnt.read(prepared, case.modality).score)
    for change in STRANGE:
        assert alarm.auroc(scores[None], scores[change]) >= 0.95
