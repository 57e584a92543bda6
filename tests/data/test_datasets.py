import collections
import dataclasses
import shutil
import warnings

import numpy as np
import phantom_shards
import pytest
import tensorflow as tf

from keras_unigan.config import Plan, TrainOptions
from keras_unigan.data import augmentation, catalogue, datasets, phantoms, records, sampling
from keras_unigan.errors import CodedError
from keras_unigan.layers import IntensityNormalization, equalize

MODALITIES = ("ct", "t1", "flair")
OPTIONS = TrainOptions(patch_size=(32, 32), batch_size=4, steps_per_epoch=6)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Three modalities with two or three training subjects each; one validation case unlabelled."""
    return phantom_shards.write(
        tmp_path_factory.mktemp("datasets"), subjects_per_modality=4, size=40, depth=6
    )


def load(shards, steps=12, options=OPTIONS, **arguments):
    """The first batches, as NumPy."""
    arguments = {"translating": False, **arguments}
    train, _, _ = datasets.load(shards, options=options, endless=True, **arguments)
    return [{k: v.numpy() for k, v in batch.items()} for batch in train.take(steps)]


def stacked(batches, key):
    return np.concatenate([batch[key] for batch in batches])


def equal(first, second):
    """Whether two lists of batches are the same."""
    return len(first) == len(second) and all(
        np.array_equal(a[key], b[key]) for a, b in zip(first, second, strict=True) for key in a
    )


@pytest.fixture(scope="module")
def sequence(shards):
    return load(shards, 12)


@pytest.fixture(scope="module")
def streamed(shards):
    return load(shards, 12, cache_gib=0.0)


@pytest.fixture(scope="module")
def plain(shards):
    """The same draws, neither augmented nor normalised as of unknown modality."""
    options = dataclasses.replace(OPTIONS, augment="none", unknown_fraction=0.0)
    return load(shards, 12, options)


def test_batches_are_what_games_expect(shards, sequence):
    train, val, plan = datasets.load(shards, options=OPTIONS, translating=False)
    for dataset in (train, val):
        spec = {k: (tuple(v.shape), v.dtype.name) for k, v in dataset.element_spec.items()}
        assert spec == {
            "image": ((4, 32, 32, 1), "float32"),
            "label_map": ((4, 32, 32), "uint8"),
            "domain": ((4,), "int32"),
            "statistics": ((4, 4), "float32"),
            "known": ((4,), "int32"),
            "target": ((4,), "int32"),
            "noise": ((4,), "float32"),
            "case": ((4,), "int32"),
        }
        assert dataset.options().autotune.enabled is False
        assert dataset.options().deterministic is True
    assert plan.configuration(2).patch_size == (32, 32)
    assert plan.configuration(2).batch_size == 4
    image = stacked(sequence, "image")
    assert image.min() == -1
    assert 0.5 < image.max() <= 1
    assert set(np.unique(stacked(sequence, "label_map"))) <= {0, 1, 2, 255}
    assert (stacked(sequence, "label_map") == 2).any()


@pytest.mark.parametrize("which", ["sequence", "streamed"])
def test_modalities_and_subjects_are_balanced(request, which):
    batches = request.getfixturevalue(which)
    assert np.bincount(stacked(batches, "domain")).tolist() == [16, 16, 16]
    # A subject is known by its statistics. Streams open a few volumes after one another.
    subjects = np.unique(stacked(batches, "statistics"), axis=0, return_counts=True)[1]
    assert len(subjects) == 6
    assert subjects.max() - subjects.min() <= (0 if which == "sequence" else 8)


@pytest.mark.parametrize(("cache", "fraction"), [(1.0, 0.5), (0.0, 1.0)])
def test_foreground_has_its_share(shards, cache, fraction):
    options = dataclasses.replace(OPTIONS, patch_size=(16, 16), foreground_fraction=fraction)
    labels = stacked(load(shards, 12, options, cache_gib=cache), "label_map")
    assert (labels > 0).any(axis=(1, 2)).mean() >= fraction
    lesion = (labels == 2).any(axis=(1, 2)).mean()
    assert lesion > fraction / 3


@pytest.mark.parametrize(("which", "cache"), [("sequence", 1.0), ("streamed", 0.0)])
def test_a_sequence_starts_anywhere_and_is_the_same_whatever_the_parallelism(
    request, monkeypatch, shards, which, cache
):
    monkeypatch.setattr(datasets, "WORKERS", 1)
    # 7 steps of 4 draws end within a block of three modalities.
    found = load(shards, 5, cache_gib=cache, start_step=7)
    assert equal(found, request.getfixturevalue(which)[7:])


def test_another_seed_gives_another_sequence(shards, sequence):
    assert not equal(load(shards, 12, seed=1), sequence)


@pytest.mark.slow
def test_streams_go_on_over_many_volumes(monkeypatch, shards):
    monkeypatch.setattr(datasets, "STREAM_VOLUMES", 2)
    monkeypatch.setattr(datasets, "STREAM_PATCHES", 3)
    batches = load(shards, 18, cache_gib=0.0)
    assert equal(load(shards, 5, cache_gib=0.0, start_step=13), batches[13:])
    assert np.bincount(stacked(batches, "domain")).tolist() == [24, 24, 24]
    counts = np.unique(stacked(batches, "statistics"), axis=0, return_counts=True)[1]
    assert counts.tolist() == [12] * 6


def test_passes_go_on_where_the_last_one_stopped(shards, sequence):
    train, _, _ = datasets.load(shards, options=OPTIONS, translating=False)
    assert int(train.cardinality()) == 6
    found = [{k: v.numpy() for k, v in b.items()} for _ in range(2) for b in train]
    assert equal(found, sequence)


def test_each_case_keeps_its_number(sequence, streamed):
    for batches in (sequence, streamed):
        keys = [stacked(batches, key) for key in ("case", "domain")]
        facts = {}
        for case, domain, row in zip(*keys, stacked(batches, "statistics"), strict=True):
            assert facts.setdefault(case, (domain, row.tobytes())) == (domain, row.tobytes())
        assert sorted(facts) == list(range(6))


@pytest.mark.parametrize("how", ["permute", "uniform"])
def test_targets_of_translating_games(shards, how):
    options = dataclasses.replace(OPTIONS, targets=how, augment="none")
    train, val, _ = datasets.load(shards, options=options, endless=True, translating=True)
    batches = [{k: v.numpy() for k, v in b.items()} for b in train.take(12)]
    for step, batch in enumerate(batches):
        domain = tf.constant(batch["domain"])
        expected = sampling.targets(0, step, domain, how, tf.range(3))
        np.testing.assert_array_equal(batch["target"], expected)
        np.testing.assert_array_equal(batch["noise"], sampling.noise(0, step, 4))
    assert (stacked(batches, "target") != stacked(batches, "domain")).any()
    for batch in val:
        np.testing.assert_array_equal(batch["target"], (batch["domain"] + 1) % 3)


def test_validation_translates_to_what_is_trained():
    assert datasets._following({0, 1, 2}, 3) == [1, 2, 0]
    assert datasets._following({0, 2}, 4) == [2, 2, 0, 0]


def test_other_games_have_their_own_modality_as_target(shards, sequence):
    np.testing.assert_array_equal(stacked(sequence, "target"), stacked(sequence, "domain"))
    _, val, _ = datasets.load(shards, options=OPTIONS, translating=False)
    cases = set()
    for batch in val:
        np.testing.assert_array_equal(batch["target"], batch["domain"])
        assert batch["known"].numpy().all()
        assert (batch["noise"].numpy() == 0.5).all()
        cases |= set(batch["case"].numpy())
    assert cases - {-1} == {0, 1, 2}


def test_batches_too_small_to_permute(shards):
    with pytest.raises(CodedError, match=r"KUG-T02 train.batch_size: found 1, .*targets=uniform"):
        datasets.load(shards, batch_size=1, options=OPTIONS, translating=True)
    plan = Plan.load(shards / "plan.json")
    cases = catalogue.Cases(domains=[0, 1, 2])
    with pytest.warns(UserWarning, match="batch of 2 never holds all of 3 modalities"):
        datasets._check_translation(cases, plan, 2, "permute")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        datasets._check_translation(cases, plan, 3, "permute")
        datasets._check_translation(cases, plan, 1, "uniform")


def test_a_class_that_one_modality_lacks_is_named(shards):
    plan = Plan.load(shards / "plan.json")
    both, first = {1, 2}, {1}
    everything = [(), (), (), ()]
    indices = [both, first, both, None]
    cases = catalogue.Cases(domains=[0, 1, 1, 2], indices=indices, annotated=everything)
    catalogue.check_classes(cases, plan)  # an unlabelled modality lacks nothing
    cases.indices[2] = first
    lesion = plan.labels.names[2]
    message = rf"KUG-D15 class {lesion}: found no training case with it in t1, .*in ct\."
    with pytest.raises(CodedError, match=message):
        catalogue.check_classes(cases, plan)
    # Nor one in which nobody looked for the class.
    cases.annotated[1:3] = [(plan.labels.names[1],)] * 2
    catalogue.check_classes(cases, plan)
    cases.annotated[2] = plan.labels.foreground
    with pytest.raises(CodedError, match=message):
        catalogue.check_classes(cases, plan)


def test_what_is_translated_by_itself(shards):
    train, _, _ = datasets.load(shards, options=OPTIONS)
    assert "real" in train.element_spec
    train, _, _ = datasets.load(shards, options=OPTIONS, batch_size=1)
    assert "real" not in train.element_spec


def test_one_modality_cannot_be_translated(shards, tmp_path):
    folder = shutil.copytree(shards, tmp_path / "shards")
    manifest = records.Manifest.load(folder)
    kept = tuple(s for s in manifest.shards if s.modality == "ct")
    dataclasses.replace(manifest, shards=kept).save(folder)
    with pytest.raises(CodedError, match=r"KUG-D14 split train: found cases of \['ct'\] only"):
        datasets.load(folder, options=OPTIONS, translating=True)


@pytest.mark.slow
def test_real_images_are_those_of_the_modality_itself(shards):
    options = dataclasses.replace(OPTIONS, augment="contrast", unknown_fraction=0.3)
    found = load(shards, 12, options, translating=True)
    assert found[0]["real"].shape == (4, 32, 32, 1)
    known = stacked(found, "known") == 1
    change = np.abs(stacked(found, "image") - stacked(found, "real")).max(axis=(1, 2, 3))
    np.testing.assert_allclose(change[known], 0, atol=1e-5)
    # An MR image looks much the same when normalised by its own percentiles; a contrast does not.
    assert (change[~known] > 1e-3).mean() > 0.9
    assert (change[~known] > 0.5).mean() > 0.5
    options = dataclasses.replace(options, augment="none", unknown_fraction=0.0)
    for batch in load(shards, 3, options, translating=True):
        np.testing.assert_array_equal(batch["real"], batch["image"])


def test_samples_of_random_contrast_are_of_unknown_modality(shards, plain):
    options = dataclasses.replace(OPTIONS, augment="contrast", unknown_fraction=0.0)
    found = load(shards, 12, options)
    for step, batch in enumerate(found):
        changed = augmentation.contrasted(sampling.augmentation_seed(0, step), 4, 0.5)
        np.testing.assert_array_equal(batch["known"], ~changed.numpy())
    assert 0.25 < stacked(found, "known").mean() < 0.75
    np.testing.assert_array_equal(stacked(found, "domain"), stacked(plain, "domain"))
    assert stacked(plain, "known").all()
    assert np.abs(stacked(found, "image")).max() <= 1 + 1e-6


def share_subject(shards, folder):
    """Copies shards; the first training subject of t1 is now also that of ct."""
    folder = shutil.copytree(shards, folder)
    manifest, changed = records.Manifest.load(folder), []
    subjects = {}
    for shard in manifest.shards:
        path = folder / shard.file
        if shard.split == "train" and shard.modality in ("ct", "t1"):
            dataset = tf.data.TFRecordDataset(str(path), "GZIP")
            examples = [tf.train.Example.FromString(r.numpy()) for r in dataset]
            feature = examples[0].features.feature["subject"].bytes_list
            feature.value[0] = subjects.setdefault("first", feature.value[0])
            records.write_shard(path, [e.SerializeToString() for e in examples])
            digest, size = records.sha256(path), path.stat().st_size
            shard = dataclasses.replace(shard, sha256=digest, bytes=size)
        changed.append(shard)
    dataclasses.replace(manifest, shards=tuple(changed)).save(folder)
    return folder, subjects["first"].decode()


def test_no_subject_is_seen_in_two_modalities_unless_asked(shards, tmp_path):
    folder, subject = share_subject(shards, tmp_path / "shards")
    plan = Plan.load(folder / "plan.json")
    for paired, modalities in ((False, 1), (True, 2)):
        options = dataclasses.replace(OPTIONS, pair_subjects=paired)
        manifest = records.Manifest.load(folder)
        cases = catalogue.collect(manifest, plan, 2**30, 0, paired)["train"]
        assert cases.subjects.count(subject) == modalities
        assert len(cases.names) == len(cases.volumes["shape"]) == 4 + modalities
        seen = collections.defaultdict(set)
        for batch in load(folder, 12, options):
            for case, domain in zip(batch["case"], batch["domain"], strict=True):
                seen[cases.subjects[case]].add(int(domain))
                assert cases.domains[case] == domain
        assert len(seen[subject]) == modalities
        assert all(len(found) == 1 for name, found in seen.items() if name != subject)


def test_unpaired_cases_are_balanced_and_follow_the_seed():
    plan = collections.namedtuple("Modalities", "modalities")(("ct", "t1", "flair"))
    cases = catalogue.Cases(subjects=list("aabbccddeef"), domains=[0, 1] * 5 + [2])
    chosen = [catalogue.unpaired(cases, plan, seed) for seed in (0, 0, 1, 2, 3)]
    assert chosen[0] == chosen[1]
    assert len({tuple(c) for c in chosen}) > 2
    for numbers in chosen:
        assert sorted(cases.subjects[n] for n in numbers) == list("abcdef")
        counts = np.bincount([cases.domains[n] for n in numbers])
        assert sorted(counts[:2]) == [2, 3]
    lonely = catalogue.Cases(subjects=["a", "a"], domains=[0, 1])
    with pytest.raises(
        CodedError, match=r"KUG-D14 t1: found 1 training .*train.pair_subjects=true"
    ):
        catalogue.unpaired(lonely, plan, 0)


def test_augmentation_can_be_left_out(plain, sequence):
    assert not equal(plain, sequence)
    for before, after in zip(plain, sequence, strict=True):
        labels = (before["label_map"], after["label_map"])
        first, second = (np.sort(m.reshape(4, -1), axis=1) for m in labels)
        np.testing.assert_array_equal(first, second)
        np.testing.assert_array_equal(before["domain"], after["domain"])


def test_a_share_of_samples_is_normalised_as_of_unknown_modality(shards, plain, tmp_path):
    shutil.copytree(shards, tmp_path / "shards")
    plan = Plan.load(shards / "plan.json")
    dataclasses.replace(plan, unknown="percentiles").save(tmp_path / "shards" / "plan.json")
    options = dataclasses.replace(OPTIONS, augment="none", unknown_fraction=0.3)
    some, known = load(tmp_path / "shards", 12, options), stacked(plain, "image")
    image, statistics = stacked(some, "image"), stacked(some, "statistics")
    as_known = (known == image).all(axis=(1, 2, 3))
    assert 0.2 < 1 - as_known.mean() < 0.4
    # The domain stays the true one; an unknown CT has its own 0.5 percentile as -1.
    np.testing.assert_array_equal(stacked(some, "domain"), stacked(plain, "domain"))
    ct = ~as_known & (stacked(some, "domain") == 0)
    assert ct.any()
    low, high = (end[..., None, None] for end in np.split(statistics[ct, 2:], 2, axis=1))
    raw = low + (image[ct] + 1) / 2 * (high - low)
    layer = IntensityNormalization.from_plan(plan)
    again = layer(raw, np.zeros(len(raw), np.int32), statistics[ct]).numpy()
    inside = (np.abs(image[ct]) < 1) & (np.abs(again) < 1)
    assert inside.any()
    np.testing.assert_allclose(again[inside], known[ct][inside], atol=1e-4)
    # The planner asks for ranks of the same.
    assert plan.unknown == "equalized"
    flat = stacked(load(shards, 12, options), "image")
    np.testing.assert_array_equal(flat[as_known], image[as_known])
    np.testing.assert_allclose(flat[~as_known], equalize(image[~as_known]), atol=1e-5)


# 16 is less than the volumes (about 33 x 27 x 6) and no divisor of theirs, 64 is more.
@pytest.mark.parametrize(
    ("patch", "cache"),
    [
        ((16, 16), 1.0),
        ((16, 16, 4), 1.0),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (((16, 16), 0.0), ((64, 64), 1.0))
        ),
    ],
)
def test_validation_covers_every_voxel_once(shards, patch, cache):
    options, dims = dataclasses.replace(OPTIONS, patch_size=patch, batch_size=5), len(patch)
    _, val, _ = datasets.load(shards, dims, options=options, cache_gib=cache)
    batches = [{k: v.numpy() for k, v in b.items()} for b in val]
    assert len(batches) == int(val.cardinality())
    assert batches[-1]["image"].shape == (5, *patch, 1)
    labels, domain = stacked(batches, "label_map"), stacked(batches, "domain")
    for index, modality in enumerate(MODALITIES):
        truth = np.zeros(256, int)
        for record in records.read_shards([shards / f"val/{modality}-00000-of-00001.tfrecord.gz"]):
            truth += np.bincount(record["label_map"].numpy().ravel(), minlength=256)
        found = np.bincount(labels[domain == index].ravel(), minlength=256)
        np.testing.assert_array_equal(found[:255], truth[:255])


def test_a_patch_larger_than_the_volume_is_padded(shards):
    options = dataclasses.replace(
        OPTIONS, patch_size=(64, 64), augment="none", unknown_fraction=0.0, foreground_fraction=0.0
    )
    for batch in load(shards, 3, options):
        outside = batch["label_map"] == 255
        assert outside[:, 0].all()
        assert outside[:, :, -1].all()
        assert not outside[:, 32, 32].any()
        for image, mask in zip(batch["image"][..., 0], outside, strict=True):
            assert (image[mask] == image.min()).all()


def test_three_dimensions(shards):
    train, _, plan = datasets.load(shards, 3, batch_size=2, endless=True)
    batch = next(iter(train))
    assert batch["image"].shape == (2, *plan.configuration(3).patch_size, 1)
    assert batch["label_map"].shape == batch["image"].shape[:-1]


@pytest.mark.parametrize("cache", [1.0, pytest.param(0.0, marks=pytest.mark.slow)])
def test_stacks_show_the_slices_beside(shards, plain, cache):
    """2.5-D: the middle channel is the 2-D patch, the others its neighbours, of the same shards."""
    options = dataclasses.replace(OPTIONS, augment="none", unknown_fraction=0.0)
    found = load(shards, 3, options, slices=3, cache_gib=cache)
    for stack, flat in zip(found, plain, strict=False):
        assert stack["image"].shape == (4, 32, 32, 3)
        np.testing.assert_array_equal(stack["image"][..., 1:2], flat["image"])
        np.testing.assert_array_equal(stack["label_map"], flat["label_map"])
    options = dataclasses.replace(OPTIONS, patch_size=(64, 64))
    _, val, _ = datasets.load(shards, options=options, slices=5, cache_gib=cache)
    batches = [{k: v.numpy() for k, v in b.items()} for b in val]
    images, cases = stacked(batches, "image"), stacked(batches, "case")
    for case in set(cases.tolist()) - {-1}:
        # One tile a slice, in order; beyond the ends lies the volume's minimum.
        volume = images[cases == case]
        middle, ends = volume[..., 2], np.full_like(volume[:2, ..., 2], volume[..., 2].min())
        padded = np.concatenate([ends, middle, ends])
        for channel in range(5):
            shown = padded[channel : channel + len(middle)]
            np.testing.assert_array_equal(volume[..., channel], shown)


@pytest.mark.parametrize(("dims", "slices"), [(2, 2), (2, 0), (3, 3)])
def test_slices_that_cannot_be(shards, dims, slices):
    with pytest.raises(CodedError, match=f"KUG-T02 slices: found {slices} in {dims}-D"):
        datasets.load(shards, dims, slices=slices)


def test_cases_without_labels(tmp_path):
    options = {"modalities": ("ct", "t1"), "subjects_per_modality": 3, "size": 24, "depth": 4}
    shards = phantom_shards.write(tmp_path, unlabelled=range(6), **options)
    train, val, _ = datasets.load(shards, options=dataclasses.replace(OPTIONS, patch_size=(16, 16)))
    assert val is None
    assert all((batch["label_map"].numpy() == 255).all() for batch in train)


@pytest.fixture(scope="module")
def half_labelled(tmp_path_factory):
    """Two modalities; the training cases of one of them have no labels."""
    folder = tmp_path_factory.mktemp("half")
    options = {"modalities": ("ct", "t1"), "subjects_per_modality": 3, "size": 24, "depth": 4}
    whole = phantoms.write_study(folder / "whole", **options)
    unlabelled = [n for n, case in enumerate(whole.cases) if case.modality == "t1"]
    return phantom_shards.write(folder, unlabelled=unlabelled, **options)


@pytest.mark.parametrize(
    ("fraction", "count", "cache"),
    [
        (0.75, 30, 0.0),
        (1.0, 40, 1.0),
        pytest.param(None, 20, 1.0, marks=pytest.mark.slow),
        pytest.param(0.75, 30, 1.0, marks=pytest.mark.slow),
        pytest.param(0.0, 0, 0.0, marks=pytest.mark.slow),
    ],
)
def test_cases_with_labels_get_their_share(half_labelled, fraction, count, cache):
    options = dataclasses.replace(OPTIONS, patch_size=(16, 16), labelled_fraction=fraction)
    batches = load(half_labelled, 10, options, cache_gib=cache)
    assert (stacked(batches, "domain") == 0).sum() == count
    labelled = (stacked(batches, "label_map") != 255).any(axis=(1, 2))
    assert labelled.sum() == count
    assert equal(load(half_labelled, 3, options, cache_gib=cache, start_step=7), batches[7:])


def test_the_plan_beside_the_shards_may_change_sizes(shards, tmp_path):
    folder = shutil.copytree(shards, tmp_path / "shards")
    plan = Plan.load(folder / "plan.json")
    chosen = dataclasses.replace(plan.configuration(2), batch_size=3, patch_size=(16, 16))
    dataclasses.replace(plan, configurations={"2d": chosen}).save(folder / "plan.json")
    train, _, plan = datasets.load(folder)
    assert train.element_spec["image"].shape == (3, 16, 16, 1)
    assert datasets.configure(plan, 2, OPTIONS).configuration(2).batch_size == 4
    assert datasets.configure(plan, 2, OPTIONS, batch_size=2).configuration(2).batch_size == 2
    dataclasses.replace(plan, spacing=(9.0, 9.0, 9.0)).save(folder / "plan.json")
    with pytest.raises(CodedError, match=r"KUG-D09 .*found shards of spacing"):
        datasets.load(folder)


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ((36, 30), r"KUG-T02 patch_size: found \(36, 30\), expected sizes divisible by"),
        ((32, 32, 16), r"KUG-T02 train.patch_size: found \(32, 32, 16\) of 3 axes, expected 2"),
    ],
)
def test_impossible_patches(shards, patch, message):
    with pytest.raises(CodedError, match=message):
        datasets.load(shards, options=dataclasses.replace(OPTIONS, patch_size=patch))


def test_bad_folders(shards, tmp_path):
    with pytest.raises(CodedError, match=r"KUG-D01 .*shards\.json: found no such file"):
        datasets.load(tmp_path)
    folder = shutil.copytree(shards, tmp_path / "shards")
    file = next(folder.glob("train/t1-*"))
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(CodedError, match=r"KUG-D09 .*t1-.*found sha256"):
        datasets.load(folder)


def test_no_training_case(shards, tmp_path):
    folder = shutil.copytree(shards, tmp_path / "shards")
    manifest = records.Manifest.load(folder)
    kept = tuple(s for s in manifest.shards if s.split != "train")
    dataclasses.replace(manifest, shards=kept).save(folder)
    with pytest.raises(CodedError, match=r"KUG-D14 .*found no case of the split train"):
        datasets.load(folder)


def test_painted_images_are_of_labelled_single_slices(shards):
    options = dataclasses.replace(OPTIONS, augment="paint", labelled_fraction=1.0)
    (first, *_) = load(shards, 2, options)
    (plain, *_) = load(shards, 2, dataclasses.replace(options, augment="none"))
    # Nobody can tell a painted image's modality.
    assert not first["known"].any()
    assert plain["known"].any()
    assert np.abs(first["image"] - plain["image"]).mean() > 0.1
    with pytest.raises(CodedError, match=r"KUG-T02 train.augment: found paint with a translating"):
        load(shards, 1, options, translating=True)
    with pytest.raises(CodedError, match=r"KUG-T02 train.augment: found paint with train.slices 3"):
        load(shards, 1, options, slices=3)
