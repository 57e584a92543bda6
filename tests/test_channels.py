"""Images of several channels, and stacks of slices, from shards to an exported model."""

import dataclasses
import json

import numpy as np
import phantom_shards
import pytest
import tensorflow as tf

from keras_unigan import evaluation, export, inference, prediction, training, translation
from keras_unigan.config import Configuration, Experiment, Plan, Study, TrainOptions
from keras_unigan.data import catalogue, datasets, nifti, pictures, preprocessing, records, sampling
from keras_unigan.data import volumes as volumes_of
from keras_unigan.data.windows import sliding_window
from keras_unigan.errors import CodedError
from keras_unigan.layers import IntensityNormalization
from keras_unigan.networks import UNet
from keras_unigan.pipelines import handlers, preprocess

STAINS = ("microscopy", "he")
PATCH = (16, 16)
PLAIN = TrainOptions(
    patch_size=PATCH, batch_size=4, steps_per_epoch=2, augment="none", unknown_fraction=0.0
)


@pytest.fixture(scope="module")
def stained(tmp_path_factory):
    """Study of coloured pictures and its shards, by Beam."""
    from keras_unigan.data import phantoms

    folder = tmp_path_factory.mktemp("stained")
    options = {"modalities": STAINS, "subjects_per_modality": 3, "size": 24}
    study = phantoms.write_study(folder / "study", **options)
    shards = folder / "shards"
    preprocess.run(["--study", str(folder / "study" / "study.json"), "--output", str(shards)])
    return study, shards


@pytest.fixture(scope="module")
def stacked(tmp_path_factory):
    """Study of volumes and its shards."""
    folder = tmp_path_factory.mktemp("stacked")
    options = {"modalities": ("ct", "t1"), "subjects_per_modality": 3, "size": 24, "depth": 5}
    return phantom_shards.write(folder, patch_size=PATCH, filters=4, **options)


def experiment(shards, output, model="joint", **train):
    options = {"patch_size": PATCH, "batch_size": 4, "steps_per_epoch": 2, "learning_rate": 1e-3}
    return Experiment(
        shards=str(shards),
        output=str(output),
        model=model,
        steps=2,
        train=TrainOptions(**{**options, **train}),
        network={"strides": [[2, 2]], "filters": 4},
    )


def signature(folder):
    """The signature `segment` of a SavedModel as a function of arrays."""
    loaded = tf.saved_model.load(str(folder))

    def ask(patches, modality, statistics):
        count = len(patches)
        rows = np.stack([statistics] * count)
        answer = loaded.signatures["segment"](
            image=tf.constant(patches),
            modality=tf.constant([modality or ""] * count),
            statistics=tf.constant(rows),
        )
        return answer["probabilities"].numpy()

    ask.loaded = loaded
    return ask


def test_shards_of_coloured_pictures(stained):
    study, shards = stained
    manifest = records.Manifest.load(shards)
    plan = Plan.from_dict(manifest.plan)
    assert (plan.channels, study.channels) == (3, 3)
    assert manifest.schema["statistics"]["shape"] == [3, 4]
    for modality in STAINS:
        for split in ("train", "val", "test"):
            for record in records.read_shards(manifest.files(split, modality), 3):
                name = record["case"].numpy().decode()
                case = next(c for c in study.cases if c.id == name)
                volume = volumes_of.read_image(study.path(case.image), 3)
                label = volumes_of.read(study.path(case.label))
                wanted = preprocessing.prepare(volume, plan, label)
                np.testing.assert_array_equal(record["image"], wanted.image)
                np.testing.assert_array_equal(record["statistics"], wanted.statistics)
    other = dataclasses.replace(plan, channels=1, normalization={
        m: dataclasses.replace(n, mean=0.0, sd=1.0, low=-1.0, high=1.0)
        for m, n in plan.normalization.items()
    })  # fmt: skip
    with pytest.raises(CodedError, match=r"KUG-D09 .*channels 3, expected channels 1"):
        records.Manifest.load(shards, plan=other)


def test_batches_of_coloured_pictures(stained):
    """The patch of a record, normalised by its own statistics."""
    shards = stained[1]
    train, val, plan = datasets.load(shards, options=PLAIN)
    assert train.element_spec["image"].shape == (4, *PATCH, 3)
    assert train.element_spec["statistics"].shape == (4, 3, 4)
    layer = IntensityNormalization.from_plan(plan)
    files = [f for m in plan.modalities for f in records.Manifest.load(shards).files("val", m)]
    found = [{k: v.numpy() for k, v in batch.items()} for batch in val]
    found = {k: np.concatenate([b[k] for b in found]) for k in found[0]}
    for number, record in enumerate(records.read_shards(files, 3)):
        domain = plan.modalities.index(record["modality"].numpy().decode())
        raw = record["image"].numpy()[None, :, :, 0]
        missing = [max(0, p - n) for p, n in zip(PATCH, raw.shape[1:3], strict=True)]
        around = [(0, 0), *((m // 2, m - m // 2) for m in missing), (0, 0)]
        raw = np.pad(raw, around, constant_values=raw.min())
        whole = np.asarray(layer(raw, np.array([domain]), record["statistics"].numpy()[None]))
        first = found["image"][found["case"] == number][0]
        np.testing.assert_array_equal(first, whole[0, : PATCH[0], : PATCH[1]])


@pytest.mark.slow
def test_streamed_colours_are_the_cached_ones(stained):
    train, _, _ = datasets.load(stained[1], options=PLAIN)
    streamed, _, _ = datasets.load(stained[1], options=PLAIN, cache_gib=0.0)
    for batch, other in zip(train.take(2), streamed.take(2), strict=True):
        for key in ("image", "label_map", "statistics", "case"):
            np.testing.assert_array_equal(batch[key], other[key])


@pytest.mark.slow
@pytest.mark.parametrize("model", ["segan", "unigan"])
def test_games_on_colours(stained, model):
    """Networks take and make three channels, and every term is finite."""
    train, _, plan = datasets.load(stained[1], options=PLAIN, translating=model == "unigan")
    options = {"strides": [[2, 2]]} if model == "unigan" else {}
    game = training.build_model(model, plan, filters=4, **options)
    assert game.network.channels == 3
    logs = game.train_on_batch(next(iter(train)), return_dict=True)
    losses = {name: value for name, value in logs.items() if name.endswith("loss")}
    assert len(losses) > 2
    assert np.isfinite(list(losses.values())).all(), losses
    if model == "unigan":
        assert game.translator.output_shape[1][-1] == 3


@pytest.mark.parametrize("kind", ["colours", "slices"])
def test_what_a_server_runs_is_local_prediction(stained, stacked, kind):
    """The function inside an exported model, window by window, against the local one."""
    plan = Plan.load((stained[1] if kind == "colours" else stacked) / "plan.json")
    options = TrainOptions(patch_size=PATCH, slices=1 if kind == "colours" else 3)
    plan = datasets.configure(plan, 2, options)
    study = Study.load((stained[1] if kind == "colours" else stacked).parent / "study/study.json")
    case = study.cases[0]
    volume = volumes_of.read_image(study.path(case.image), study.channels)
    network = UNet(channels=plan.inputs(2), classes=3, filters=2, strides=((2, 2),))
    run = tf.function(export.serving_function(network, plan, (2, 2)), reduce_retracing=True)

    def ask(patches, modality, statistics):
        count, index = len(patches), plan.modalities.index(modality)
        rows = np.stack([statistics] * count)
        return run(tf.constant(patches), tf.fill([count], index), rows)["probabilities"].numpy()

    predictor = inference.Predictor(network, plan)
    label_map, local = inference.segment_volume(volume, plan, predictor, case.modality)
    _, remote = inference.segment_volume(volume, plan, ask, case.modality)
    assert label_map.shape == volume.shape
    np.testing.assert_allclose(remote, local, atol=1e-5)
    if kind == "slices":
        # The neighbours count: without them the answer is another one.
        alone = lambda p, *rest: predictor(np.repeat(p[..., 1:2], 3, -1), *rest)  # noqa: E731
        _, other = inference.segment_volume(volume, plan, alone, case.modality)
        assert np.abs(other - local).max() > 1e-4
        return
    array = nifti.to_ras(volume).array
    shown = prediction.predict(predictor, array, case.modality, spacing=(1.0, 1.0, 1.0))
    turned = nifti.to_ras(dataclasses.replace(volume, array=label_map)).array
    np.testing.assert_array_equal(shown, turned)
    grey = dataclasses.replace(volume, array=volume.array[..., 0])
    with pytest.raises(CodedError, match="KUG-D36 grey: found 1 channel, expected 3"):
        inference.segment_volume(grey, plan, predictor, where="grey")
    with pytest.raises(CodedError, match=r"KUG-T04 .* found a network of 1 channels"):
        inference.Predictor(UNet(channels=1, filters=2, strides=((2, 2),)), plan)


@pytest.mark.slow
def test_from_colours_to_an_exported_model(stained, tmp_path):
    study, shards = stained
    run, exported = tmp_path / "run", tmp_path / "model"
    training.run(experiment(shards, run), quiet=True)
    scores = evaluation.evaluate_run(run, study, limit=1)
    assert (scores["cases"], scores["failed"]) == (1, 0)
    network, plan = training.load_run(run)
    export.export(network, plan, exported)
    predictor, ask = inference.Predictor(network, plan), signature(exported)
    case = next(c for c in study.cases if c.split == "test")
    volume = volumes_of.read_image(study.path(case.image), 3)
    common = {"modality": case.modality, "spatial_dims": 2}
    label_map, local = inference.segment_volume(volume, plan, predictor, **common)
    served, remote = inference.segment_volume(volume, plan, ask, **common)
    np.testing.assert_allclose(remote, local, atol=1e-5)
    # The same from the file and a batch job; as a picture like the scan.
    output = tmp_path / "seg.png"
    prediction.predict(run, study.path(case.image), case.modality, output)
    np.testing.assert_array_equal(pictures.read(output, "seg").array, label_map)
    job = handlers.Model.find(str(exported)).open()
    np.testing.assert_array_equal(job(volume, case.modality, "case"), served)


def test_colours_are_translated(stained, tmp_path):
    """A function that only swaps intensities ends in them, channel by channel."""
    study, shards = stained
    plan = Plan.load(shards / "plan.json")
    case = next(c for c in study.cases if c.modality == "he")
    volume = volumes_of.read_image(study.path(case.image), 3)
    prepared = preprocessing.prepare(volume, plan)
    inside = preprocessing.nonbackground(nifti.to_ras(volume).array)
    made = translation.translate_prepared(
        prepared, inside, plan, lambda p, *_: p * 0 + np.float32([-1, 0, 1]), "he", "microscopy"
    )
    raw = translation.to_intensities(made, inside, plan.normalization["microscopy"])
    low, high = translation.intensity_range(plan.normalization["microscopy"])
    ends = np.array([low[0], (low[1] + high[1]) / 2, high[2]])
    np.testing.assert_allclose(raw[inside], np.tile(ends, (inside.sum(), 1)), rtol=1e-5)
    data = json.loads(json.dumps(low.tolist()))
    assert len(data) == 3


def test_windows_see_the_stacks_of_training(stacked):
    """Prediction cuts of a volume what training draws from it, also at its ends and beyond."""
    manifest = records.Manifest.load(stacked)
    file, patch = manifest.files("val", "ct")[0], (32, 32)
    (serialized,) = tf.data.TFRecordDataset(file, "GZIP").take(1)
    volume = catalogue.arrange(serialized)
    seen: list = []

    def predict(patches):
        seen.extend(patches)
        return patches[..., 2:3]

    image = np.transpose(volume["image"].numpy(), (1, 2, 0))
    assert max(image.shape[:2]) < 32
    # A window that holds the volume is one a slice, as a tile is.
    middle = sliding_window(image, predict, patch, 0.5, 4, 5)
    np.testing.assert_allclose(middle[..., 0], image, rtol=1e-5)
    assert len(seen) == image.shape[2]
    for z, stack in enumerate(seen):
        start, _ = sampling.tile(volume["shape"], (*patch, 1), tf.constant(z))
        drawn = sampling.example(sampling.hold(volume), start, (*patch, 1), 5)
        np.testing.assert_array_equal(drawn["image"], stack)
        assert (stack[..., : max(0, 2 - z)] == image.min()).all()
    with pytest.raises(ValueError, match="Expected slices to be odd"):
        sliding_window(image, predict, PATCH, slices=2)
    with pytest.raises(ValueError, match="Expected slices to be odd"):
        sliding_window(image, predict, (8, 8, 4), slices=3)


@pytest.mark.slow
def test_from_stacks_to_an_exported_model(stacked, tmp_path):
    run, exported = tmp_path / "run", tmp_path / "model"
    training.run(experiment(stacked, run, slices=3), quiet=True)
    network, plan = training.load_run(run)
    assert (network.channels, plan.configuration(2).slices) == (3, 3)
    export.export(network, plan, exported)
    ask = signature(exported)
    study = Study.load(stacked.parent / "study" / "study.json")
    case = next(c for c in study.cases if c.split == "test")
    volume = volumes_of.read_image(study.path(case.image))
    predictor = inference.Predictor(network, plan)
    label_map, local = inference.segment_volume(volume, plan, predictor, case.modality)
    _, remote = inference.segment_volume(volume, plan, ask, case.modality)
    assert label_map.shape == volume.shape
    np.testing.assert_allclose(remote, local, atol=1e-5)


def test_stacks_that_cannot_be(stained, stacked):
    with pytest.raises(CodedError, match="KUG-T02 slices: found 3 of images of 3 channels"):
        datasets.load(stained[1], options=dataclasses.replace(PLAIN, slices=3))
    with pytest.raises(CodedError, match=r"KUG-T02 train.slices: found 2"):
        TrainOptions(slices=2)
    with pytest.raises(CodedError, match="KUG-T02 slices: found 3 in 3-D"):
        Configuration((8, 8, 8), 2, ((2, 2, 2),), 4, slices=3)
    flat = dataclasses.replace(Plan.load(stacked / "plan.json").configuration(2), slices=3)
    plan = dataclasses.replace(Plan.load(stacked / "plan.json"), configurations={"2d": flat})
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    # An edited plan counts, and the option over it.
    assert datasets.configure(plan, 2, TrainOptions(patch_size=PATCH)).inputs(2) == 3
    assert datasets.configure(plan, 2, TrainOptions(patch_size=PATCH, slices=1)).inputs(2) == 1
