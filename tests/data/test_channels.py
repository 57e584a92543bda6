"""Images of several channels: read, counted, checked, recorded, measured, planned, normalised."""

import dataclasses
import hashlib
import json

import nibabel as nib
import numpy as np
import pytest
import tensorflow as tf
import tifffile
from commands import unigan
from grids import oblique_affine
from PIL import Image

from keras_unigan import planning
from keras_unigan.cli import foreseeing
from keras_unigan.config import (
    ALL_CHANNELS,
    Case,
    Configuration,
    Labels,
    Normalization,
    Plan,
    Study,
    from_dict,
)
from keras_unigan.data import (
    augmentation,
    cases,
    channels,
    nifti,
    phantoms,
    preprocessing,
    records,
    writers,
)
from keras_unigan.data import volumes as volumes_of
from keras_unigan.data.augmentation import contrast
from keras_unigan.data.checks import passes
from keras_unigan.errors import CodedError
from keras_unigan.layers import IntensityNormalization

LABELS = Labels(classes={"nucleus": (1,)})


def pixels(seed=0, shape=(12, 10, 3)):
    """Rows, columns and colours."""
    return np.random.default_rng(seed).integers(0, 250, shape).astype(np.uint8)


def plan_of(scheme="microscopy", count=3, **changes):
    numbers = ((10.0, 20.0, 30.0), (2.0, 4.0, 5.0), (-1.0, -2.0, -3.0), (1.0, 2.0, 3.0))
    options = {
        "study": "stains",
        "modalities": ("he",),
        "labels": LABELS,
        "spacing": (1.0, 1.0, 1.0),
        "nearest_axis": None,
        "normalization": {"he": Normalization(scheme, *(n[:count] for n in numbers))},
        "configurations": {"2d": Configuration((8, 8), 2, ((2, 2),), 4)},
        "channels": count,
    }
    return Plan(**{**options, **changes})


def write_nifti(path, array, dtype=None):
    nib.save(nib.Nifti1Image(array, oblique_affine(), dtype=dtype), path)
    return path


def test_readers_keep_all_channels(tmp_path):
    rgb = pixels()
    Image.fromarray(rgb).save(tmp_path / "a.png")
    Image.fromarray(np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])).save(
        tmp_path / "opaque.png"
    )
    tifffile.imwrite(tmp_path / "a.tif", rgb, photometric="rgb")
    planes = np.moveaxis(rgb, -1, 0)
    options = {"photometric": "minisblack", "metadata": {"axes": "CYX"}}
    tifffile.imwrite(tmp_path / "planes.tif", planes, **options)
    for name in ("a.png", "opaque.png", "a.tif", "planes.tif"):
        volume = volumes_of.read(tmp_path / name, ALL_CHANNELS)
        assert (volume.shape, volume.channels) == ((10, 12, 1), 3)
        np.testing.assert_array_equal(volume.array[:, :, 0], rgb.swapaxes(0, 1))
    tifffile.imwrite(tmp_path / "stack.tif", np.stack([rgb, rgb[::-1]]), photometric="rgb")
    stack = volumes_of.read(tmp_path / "stack.tif", ALL_CHANNELS)
    np.testing.assert_array_equal(stack.array[:, :, 1], rgb[::-1].swapaxes(0, 1))
    half = np.dstack([rgb, rgb[..., :1]])  # an opacity that says something is a channel
    Image.fromarray(half).save(tmp_path / "half.png")
    assert volumes_of.read(tmp_path / "half.png", ALL_CHANNELS).channels == 4
    Image.fromarray(rgb[..., 0]).save(tmp_path / "grey.png")
    assert volumes_of.read(tmp_path / "grey.png", ALL_CHANNELS).channels == 1


def test_nifti_keeps_all_channels(tmp_path):
    array = np.random.default_rng(0).normal(size=(4, 5, 3, 2)).astype(np.float32)
    volume = volumes_of.read(write_nifti(tmp_path / "a.nii.gz", array), ALL_CHANNELS)
    np.testing.assert_array_equal(volume.array, array)
    assert volume.header.get_data_shape() == volume.shape == (4, 5, 3)
    vector = write_nifti(tmp_path / "vector.nii", array[:, :, :, None])
    np.testing.assert_array_equal(volumes_of.read(vector, ALL_CHANNELS).array, array)
    colours = np.zeros((4, 5, 3), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    colours["G"] = np.arange(60).reshape(4, 5, 3)
    coloured = volumes_of.read(write_nifti(tmp_path / "rgb.nii", colours), ALL_CHANNELS)
    np.testing.assert_array_equal(coloured.array[..., 1], colours["G"])
    assert coloured.channels == 3
    with pytest.raises(CodedError, match=r"KUG-D10.*RGB"):
        volumes_of.read(tmp_path / "rgb.nii")
    # Written and turned, channels stay with their voxel.
    whole = nib.Nifti1Image.from_bytes(nifti.encode(volume.array, volume))
    np.testing.assert_array_equal(whole.get_fdata(dtype=np.float32), array)
    ras = nifti.to_ras(volume)
    for channel in range(2):
        alone = nifti.to_ras(dataclasses.replace(volume, array=array[..., channel]))
        np.testing.assert_array_equal(ras.array[..., channel], alone.array)
    np.testing.assert_array_equal(nifti.from_ras(ras.array, volume), array)


def test_other_numbers_of_channels_are_refused(tmp_path):
    Image.fromarray(pixels()).save(tmp_path / "a.png")
    Image.fromarray(pixels()[..., 0]).save(tmp_path / "grey.png")
    assert volumes_of.read_image(tmp_path / "a.png", 3).channels == 3
    assert volumes_of.read_image(tmp_path / "a.png", 1, 2).channels == 1
    with pytest.raises(CodedError, match=r"KUG-D36 .*grey.png: found 1 channel, expected 3"):
        volumes_of.read_image(tmp_path / "grey.png", 3)
    with pytest.raises(CodedError, match="KUG-D10"):
        volumes_of.read_image(tmp_path / "a.png", 1)
    case = Case("a", "he", "a.png", channel=0)
    with pytest.raises(CodedError, match="KUG-D36 a_he: found channel 0 alone, expected 3"):
        Study("s", ("he",), LABELS, (case,), channels=3)
    with pytest.raises(CodedError, match=r"KUG-D08 study.channels: found 0"):
        Study("s", ("he",), LABELS, (), channels=0)


def study_in(folder, **names):
    listed = [Case(name, "he", f"{name}.png", f"{name}_seg.png", "train") for name in names]
    for name, image in names.items():
        Image.fromarray(image).save(folder / f"{name}.png")
        mask = np.zeros(image.shape[:2], np.uint8)
        mask[3:8, 2:7] = 1
        Image.fromarray(mask).save(folder / f"{name}_seg.png")
    return Study("stains", ("he",), LABELS, tuple(listed), str(folder), channels=3)


def test_a_study_is_counted(tmp_path):
    study = study_in(tmp_path, a=pixels(1), b=pixels(2))
    channels.check(study)
    one = dataclasses.replace(study, channels=1)
    assert channels.coloured(one, {"he"})
    assert not channels.coloured(one, {"xray"})
    assert Study.from_dict(study.to_dict(), str(tmp_path)) == study
    assert "channels" not in one.to_dict()
    grey = study_in(tmp_path, a=np.dstack([pixels()[..., 0]] * 3))
    assert not channels.coloured(dataclasses.replace(grey, channels=1), {"he"})
    mixed = study_in(tmp_path, a=pixels(1), b=pixels(2)[..., 0], c=pixels(3))
    expected = r"KUG-D36 stains: found channels: 1 in 1 \(b_he\), expected 3 in all 3 images"
    with pytest.raises(CodedError, match=expected):
        channels.check(mixed)


def test_init_counts_channels(tmp_path, capsys):
    """Colours of a stain are kept, unless told otherwise, and no study has both kinds."""
    scans, study = tmp_path / "scans", tmp_path / "study.json"
    scans.mkdir()
    for number in range(4):
        study_in(scans, **{f"s{number}": pixels(number)})
        (scans / f"s{number}.png").rename(scans / f"s{number}_he.png")
    asked = ("init", scans, "-o", study, "--overwrite", "--json")
    assert unigan(*asked) == 0
    assert json.loads(capsys.readouterr().out)["channels"] == Study.load(study).channels == 3
    assert unigan(*asked, "--channels", 1) == 0
    assert Study.load(study).channels == 1
    capsys.readouterr()
    Image.fromarray(pixels(3)[..., 0]).save(scans / "s3_he.png")
    assert unigan(*asked) == 3
    assert "KUG-D36 scans: found channels: 1 in 1 (s3_he), expected 3" in capsys.readouterr().err


def test_conversion_keeps_channels(tmp_path):
    array = np.random.default_rng(0).normal(size=(4, 5, 3, 2)).astype(np.float32)
    image = write_nifti(tmp_path / "a_t1.nii.gz", array)
    label = write_nifti(tmp_path / "a_seg.nii.gz", np.ones((4, 5, 3), np.uint8))
    case = Case("a", "t1", str(image), str(label), "train")
    study = Study("s", ("t1",), LABELS, (case,), channels=2)
    writers.convert(study, "nnunet", tmp_path / "nnunet")
    again = cases.read_study(tmp_path / "nnunet")
    assert (again.channels, again.cases[0].id, again.cases[0].channel) == (2, "a_t1", None)
    np.testing.assert_array_equal(volumes_of.read_image(again.cases[0].image, 2).array, array)
    with pytest.raises(CodedError, match="KUG-T02 --to: found msd of images of 2 channels"):
        writers.convert(study, "msd", tmp_path / "msd")
    with pytest.raises(CodedError, match=r"KUG-D36 .*: found channel 1 asked for, expected all 2"):
        volumes_of.read_image(image, 2, 1)


def test_channels_of_one_file_become_one_image():
    files = [Case("s", m, "a.nii.gz", channel=i) for i, m in enumerate(("flair", "t1", "t2"))]
    (whole,) = channels.merged(files, 3)
    assert (whole.modality, whole.channel, whole.id) == ("flair+t1+t2", None, "s_flair+t1+t2")
    assert channels.merged([whole], 3) == (whole,)
    with pytest.raises(CodedError, match="KUG-D36 s_flair: found channels 0, 1, 2 of its file"):
        channels.merged(files, 2)


def test_check_finds_other_numbers(tmp_path):
    study_in(tmp_path, a=pixels(1), b=pixels(2)).save(tmp_path / "study.json")
    report, _ = passes.check(tmp_path / "study.json")
    assert not [f for f in report.findings if f.level == "error"]
    study = study_in(tmp_path, a=pixels(1), b=pixels(2)[..., 0], c=pixels(3))
    data = study.to_dict()
    data["cases"][2]["channel"] = 1
    (tmp_path / "study.json").write_text(json.dumps(data))
    report, _ = passes.check(tmp_path / "study.json")
    errors = [(f.code, f.number) for f in report.findings if f.level == "error"]
    assert errors == [("KUG-D36", 1), ("KUG-D36", 2)]


def hand_made():
    """Two channels with a background of 0 around six voxels, one of which is 0 in the second."""
    array = np.zeros((4, 5, 1, 2), np.float32)
    array[1:3, 1:4, 0, 0] = [[10, 20, 30], [40, 50, 60]]
    array[1:3, 1:4, 0, 1] = [[0, 2, 2], [2, 2, 4]]
    return nifti.Volume(array, np.eye(4))


def test_statistics_are_those_of_each_channel():
    found = preprocessing.statistics(hand_made().array)
    # 10..60: mean 35, variance 1750 / 6; the other has 2, 2, 2, 2 and 4 beside its background.
    np.testing.assert_allclose(found[0], [35, np.sqrt(1750 / 6), 10.25, 59.75], rtol=1e-6)
    np.testing.assert_allclose(found[1], [2.4, 0.8, 2, 3.96], rtol=1e-6)
    assert preprocessing.crop_box(hand_made().array)[:2] == (slice(1, 3), slice(1, 4))
    assert preprocessing.nonbackground(hand_made().array).sum() == 6


def test_records_of_several_channels():
    plan = plan_of(count=2, labels=LABELS)
    label = nifti.Volume((hand_made().array[..., 0] > 25).astype(np.uint8), np.eye(4))
    prepared = preprocessing.prepare(hand_made(), plan, label)
    data = records.to_example(Case("s", "he", "a.png", split="train"), prepared)
    feature = tf.train.Example.FromString(data).features.feature
    assert set(feature) == set(records.FEATURES) | {"channels"}
    assert feature["image"].bytes_list.value == [
        # Channels run fastest.
        bytes([10, 0, 20, 2, 30, 2, 40, 2, 50, 2, 60, 4])
    ]
    assert list(feature["shape"].int64_list.value) == [2, 3, 1]
    got = {k: v.numpy() for k, v in records.parse(tf.constant(data), 2).items()}
    np.testing.assert_array_equal(got["image"][:, :, 0, 0], [[10, 20, 30], [40, 50, 60]])
    np.testing.assert_array_equal(got["label_map"][..., 0], [[0, 0, 1], [1, 1, 1]])
    assert got["statistics"].shape == (2, 4)
    np.testing.assert_array_equal(got["statistics"], prepared.statistics)
    schema = json.loads(json.dumps(records.schema(2)))
    assert schema["statistics"] == {"type": "float32", "shape": [2, 4]}
    assert set(schema) == set(feature)
    with pytest.raises(tf.errors.InvalidArgumentError):
        records.parse(tf.constant(data), 3)
    with pytest.raises(tf.errors.InvalidArgumentError):
        records.parse(tf.constant(data))


def test_one_channel_is_as_before():
    """Nothing of a study of one channel says that there could be more."""
    numbers = {"mean": 1.0, "sd": 1.0, "low": -1.0, "high": 1.0}
    plan = plan_of(count=1, normalization={"he": Normalization("microscopy", **numbers)})
    assert not {"channels", "slices"} & set(plan.to_dict())
    assert "slices" not in plan.to_dict()["configurations"]["2d"]
    keys = ("modalities", "labels", "spacing", "nearest_axis", "version")
    text = json.dumps({k: plan.to_dict()[k] for k in keys}, sort_keys=True)
    assert plan.recipe == hashlib.sha256(text.encode()).hexdigest() != plan_of(count=3).recipe
    assert "channels" not in records.schema()
    assert (plan.inputs(2), plan.statistics_shape) == (1, (4,))


def test_plans_of_several_channels():
    plan = plan_of()
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert (plan.inputs(2), plan.statistics_shape) == (3, (3, 4))
    with pytest.raises(CodedError, match=r"KUG-D08 plan.normalization.he: found numbers for 3"):
        plan_of(channels=2)
    with pytest.raises(CodedError, match=r"KUG-D08 plan.normalization: found mean"):
        Normalization("ct", (1.0, 2.0), (1.0, 1.0), (0.0, 0.0), (1.0,))
    with pytest.raises(CodedError, match=r"KUG-D08 plan.normalization: found mean"):
        Normalization("ct", (1.0, 2.0), (1.0, 0.0), (0.0, 0.0), (1.0, 1.0))
    stack = dataclasses.replace(plan.configuration(2), slices=3)
    with pytest.raises(CodedError, match="KUG-T02 slices: found 3 of images of 3 channels"):
        dataclasses.replace(plan, configurations={"2d": stack})


def test_each_channel_is_normalised_by_its_own():
    image = np.array([[[[10.0, 0.0, 25.0], [12.0, 20.0, 30.0]]]], np.float32)
    statistics = np.array([[[0, 0, 10, 14], [0, 0, 0, 40], [0, 0, 20, 30]]], np.float32)
    layer = IntensityNormalization.from_plan(plan_of())
    found = np.asarray(layer(image, np.array([0]), statistics))
    np.testing.assert_allclose(found[0, 0], [[-1, -1, 0], [0, 0, 1]], atol=1e-6)
    # Windows: 10 ± 2, 20 ± 8 and 30 ± 15.
    found = IntensityNormalization.from_plan(plan_of("ct"))(image, np.array([0]), statistics)
    np.testing.assert_allclose(np.asarray(found)[0, 0], [[0, -1, -1 / 3], [1, 0, 0]], atol=1e-6)
    # Zeros: statistics of the image itself, a channel by a channel.
    own = layer(image, np.array([-1]), np.zeros((1, 3, 4), np.float32))
    assert np.asarray(own).shape == image.shape
    again = IntensityNormalization.from_config(json.loads(json.dumps(layer.get_config())))
    first = layer(image, np.array([0]), statistics)
    np.testing.assert_array_equal(again(image, np.array([0]), statistics), first)


def test_fingerprint_and_plan_of_each_channel(tmp_path):
    measured = []
    for number in range(2):
        array = hand_made().array * (1 + number)
        label = nifti.Volume((array[..., 0] > 0).astype(np.uint8), np.eye(4))
        volume = nifti.Volume(array, np.eye(4))
        measured.append(planning.measure(volume, label, LABELS, f"case{number}"))
    facts = planning.merge(*measured)
    again = planning.merge(*measured[::-1])
    assert (facts.total, facts.others[0].total) == (again.total, again.others[0].total)
    study = Study("stains", ("he",), LABELS, (), channels=2)
    found = planning.fingerprint(study, {"he": facts})
    own = found.modalities["he"]
    # 10..60 and 20..120; 0, 2, 2, 2, 2, 4 and twice these.
    assert own.mean == (52.5, 3.0)
    np.testing.assert_allclose(own.sd[1], np.sqrt((4 * 4 + 16 + 4 * 16 + 64) / 12 - 3.0**2))
    assert from_dict(type(found), json.loads(json.dumps(dataclasses.asdict(found))), "f") == found
    plan = planning.make_plan(study, found)
    assert (plan.channels, plan.normalization["he"].mean) == (2, (52.5, 3.0))
    assert plan.normalization["he"].scheme == "microscopy"
    assert "each of 2 channels" in plan.reasons["normalization.he"]
    shown = foreseeing.plan_lines(plan)
    assert next(line for line in shown if "mean 52.5/3, sd" in line)
    with pytest.raises(CodedError, match="KUG-D36 stains: found a fingerprint of 2 channels"):
        planning.make_plan(dataclasses.replace(study, channels=3), found)


@pytest.mark.parametrize("level", ["light", "standard"])
def test_augmentation_keeps_channels_together(monkeypatch, level):
    """Three times the same channel stays that; noise alone is each channel's own."""
    names = tuple(n for n in augmentation.LEVELS[level] if n != "noise")
    monkeypatch.setitem(augmentation.LEVELS, level, names)
    grey = np.random.default_rng(0).uniform(-1, 1, (4, 16, 12, 1)).astype(np.float32)
    batch = {"image": tf.constant(np.repeat(grey, 3, axis=-1))}
    batch["label_map"] = tf.zeros((4, 16, 12), tf.uint8)
    found = augmentation.augment(batch, [1, 2], level)["image"].numpy()
    assert np.abs(found - batch["image"].numpy()).max() > 0.01
    for channel in (1, 2):
        np.testing.assert_allclose(found[..., channel], found[..., 0], atol=1e-6)
    alone = augmentation.augment({**batch, "image": tf.constant(grey)}, [1, 2], level)
    np.testing.assert_allclose(alone["image"].numpy(), found[..., :1], atol=1e-5)


def test_stacks_are_not_painted():
    """The label map of a stack is of its middle slice: what lies beside has other classes."""
    image = tf.constant(np.random.default_rng(0).uniform(-1, 1, (8, 8, 8, 3)).astype(np.float32))
    batch = {"image": image, "label_map": tf.ones((8, 8, 8), tf.uint8)}
    changed = tf.ones(8, bool)
    curved = contrast.apply_curves(image, contrast.random_curves([3, 4], 8))
    found = contrast.random_contrast(batch, [3, 4], changed, painted=0.0)["image"]
    np.testing.assert_array_equal(found, curved)
    assert np.any(contrast.random_contrast(batch, [3, 4], changed)["image"] != curved)


def test_coloured_phantoms(tmp_path):
    options = {"subjects_per_modality": 1, "size": 24}
    study = phantoms.write_study(tmp_path / "rgb", ("microscopy", "he"), **options)
    assert study.channels == Study.load(tmp_path / "rgb" / "study.json").channels == 3
    for case in study.cases:
        array = volumes_of.read_image(study.path(case.image), 3).array
        assert (array[..., 0] != array[..., 2]).any()
    other = phantoms.write_study(tmp_path / "grey", ("microscopy", "xray"), **options)
    assert other.channels == 1
    assert all(volumes_of.read(other.path(c.image)).channels == 1 for c in other.cases)
