"""Records: exact round trip, repeatable bytes, and a manifest that notices every change."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf
from grids import oblique_affine

from keras_unigan.config import Case, Configuration, Labels, Normalization, Plan
from keras_unigan.data import preprocessing, records
from keras_unigan.errors import CodedError

CASE = Case("sub", "t1", "a.nii", visit="2", split="val")


def make_prepared(image, label_map=None):
    image = np.asarray(image, np.float32)
    return preprocessing.Prepared(
        image=image,
        label_map=label_map,
        statistics=np.array([1.5, 0.1, -7.25, 1e9], np.float32),
        affine=oblique_affine(),
        box=tuple(slice(0, n) for n in image.shape),
        ras_shape=image.shape,
    )


def random_image(dtype, shape=(5, 6, 7)):
    rng = np.random.default_rng(0)
    if dtype == "float32":
        return rng.normal(size=shape).astype(np.float32)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, endpoint=True).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "uint16", "int32"])
def test_round_trip_is_exact_and_compact(dtype):
    image = random_image(dtype).astype(np.float32)
    label_map = np.random.default_rng(1).choice(np.array([0, 1, 3, 255], np.uint8), image.shape)
    data = records.to_example(CASE, make_prepared(image, label_map))
    stored = tf.train.Example.FromString(data).features.feature["image_dtype"]
    kept = dtype if dtype in records.IMAGE_DTYPES else "float32"
    assert stored.bytes_list.value[0].decode() == kept
    got = {k: v.numpy() for k, v in records.parse(tf.constant(data)).items()}
    np.testing.assert_array_equal(got["image"], image)
    np.testing.assert_array_equal(got["label_map"], label_map)
    assert (got["image"].dtype, got["label_map"].dtype) == (np.float32, np.uint8)
    np.testing.assert_array_equal(got["affine"], oblique_affine())
    np.testing.assert_array_equal(got["statistics"], np.array([1.5, 0.1, -7.25, 1e9], np.float32))
    np.testing.assert_allclose(got["spacing"], (0.8, 1.5, 3.0), rtol=1e-6)
    assert got["labelled"]
    texts = [got[k].decode() for k in ("case", "subject", "modality", "split")]
    assert texts == ["sub_2_t1", "sub", "t1", "val"]


def test_unlabelled_cases_inside_tf_data():
    first = records.to_example(CASE, make_prepared(random_image("int16")))
    other = records.to_example(
        CASE, make_prepared(random_image("float32", (3, 2, 1)), np.ones((3, 2, 1), np.uint8))
    )
    got = list(tf.data.Dataset.from_tensor_slices([first, other]).map(records.parse))
    np.testing.assert_array_equal(got[0]["image"], random_image("int16"))
    assert not got[0]["labelled"]
    np.testing.assert_array_equal(got[0]["label_map"], np.full((5, 6, 7), 255))
    assert got[0]["foreground"].shape == (0, 3)
    assert got[1]["labelled"]
    np.testing.assert_array_equal(got[1]["label_map"], 1)
    assert got[1]["foreground"].shape == (6, 3)


def test_same_case_same_bytes():
    label_map = (random_image("float32", (20, 20, 20)) > 0).astype(np.uint8)
    prepared = make_prepared(random_image("float32", (20, 20, 20)), label_map)
    assert records.to_example(CASE, prepared) == records.to_example(CASE, prepared)


def test_foreground_is_shared_between_the_classes():
    label_map = np.zeros((40, 40, 40), np.uint8)
    label_map[:20] = 1
    label_map[30:32, :4, :4] = 2
    label_map[35:] = 255
    voxels = records.foreground_voxels(label_map, "a")
    assert voxels.dtype == np.int32
    found = label_map[tuple(voxels.T)]
    assert (found == 2).sum() == 32
    assert (found == 1).sum() == records.FOREGROUND_LIMIT // 2
    assert set(found) == {1, 2}
    assert len({tuple(v) for v in voxels}) == len(voxels)
    np.testing.assert_array_equal(voxels, records.foreground_voxels(label_map, "a"))
    assert not np.array_equal(voxels, records.foreground_voxels(label_map, "b"))
    assert records.foreground_voxels(np.full((2, 2, 2), 255, np.uint8), "a").shape == (0, 3)


def test_schema_is_json():
    schema = json.loads(json.dumps(records.schema()))
    assert set(schema) == set(records.FEATURES)
    assert schema["statistics"] == {"type": "float32", "shape": [4]}


def make_plan():
    return Plan(
        study="test",
        modalities=("t1",),
        labels=Labels(classes={"organ": (1,)}),
        spacing=(1.0, 1.0, 1.0),
        nearest_axis=None,
        normalization={"t1": Normalization("mr", 0.0, 1.0, -1.0, 1.0)},
        configurations={"2d": Configuration((16, 16), 2, ((2, 2),), 8)},
    )


@pytest.fixture
def shards(tmp_path):
    """A folder with one shard of two cases and its manifest."""
    examples = [
        records.to_example(dataclasses.replace(CASE, subject=s), make_prepared(random_image(d)))
        for s, d in (("a", "int16"), ("b", "float32"))
    ]
    (tmp_path / "val").mkdir()
    path = tmp_path / "val" / "t1-00000-of-00001.tfrecord.gz"
    assert records.write_shard(path, examples) == 2
    shard = records.Shard(
        file="val/t1-00000-of-00001.tfrecord.gz",
        split="val",
        modality="t1",
        cases=("a_2_t1", "b_2_t1"),
        sha256=records.sha256(path),
        bytes=path.stat().st_size,
    )
    plan = make_plan()
    records.Manifest(
        recipe=plan.recipe,
        plan=plan.to_dict(),
        schema=records.schema(),
        splits={"val": {"t1": 2}},
        shards=(shard,),
    ).save(tmp_path)
    return tmp_path


def test_manifest_and_shards(shards):
    manifest = records.Manifest.load(shards, plan=make_plan())
    assert manifest.files("val", "t1") == [str(shards / manifest.shards[0].file)]
    assert manifest.files("train", "t1") == []
    cases = [r["case"].numpy().decode() for r in records.read_shards(manifest.files("val", "t1"))]
    assert tuple(cases) == manifest.shards[0].cases
    assert json.loads(json.dumps(manifest.to_dict())) == json.loads(
        (shards / "shards.json").read_text()
    )


def test_shard_bytes_hold_no_time(shards):
    data = (shards / "val" / "t1-00000-of-00001.tfrecord.gz").read_bytes()
    assert data[:2] == b"\x1f\x8b"
    assert data[4:8] == b"\0\0\0\0"


def test_shards_are_packed_as_suits_their_images(tmp_path):
    """Interpolated values do not repeat: no time is lost on repeats. Others shrink by them."""
    rng = np.random.default_rng(0)
    smooth = rng.normal(size=(16, 16, 16))
    repeated = np.tile(rng.normal(size=(1, 16, 16)), (16, 1, 1))
    sizes = {}
    for name, image in (("smooth", smooth), ("repeated", repeated)):
        data = records.to_example(CASE, make_prepared(image))
        assert records.write_shard(tmp_path / name, [data, data]) == 2
        got = [r["image"].numpy() for r in records.read_shards([tmp_path / name])]
        np.testing.assert_array_equal(got, np.float32([image, image]))
        sizes[name] = (tmp_path / name).stat().st_size / (2 * len(data))
    assert sizes["repeated"] < 0.2
    assert 0.8 < sizes["smooth"] < 1
    assert records.write_shard(tmp_path / "none", []) == 0
    assert len(list(records.read_shards([tmp_path / "none"]))) == 0


def edit(folder, **changes):
    data = json.loads((folder / "shards.json").read_text())
    (folder / "shards.json").write_text(json.dumps({**data, **changes}))


def test_manifest_refuses_what_changed(shards):
    load = records.Manifest.load
    other = dataclasses.replace(make_plan(), spacing=(2.0, 1.0, 1.0))
    with pytest.raises(CodedError, match=r"KUG-D09 .*spacing \[1.0, 1.0, 1.0\], expected spacing"):
        load(shards, plan=other)
    # What does not decide the records may differ.
    assert load(shards, plan=dataclasses.replace(make_plan(), overlap=0.25))
    path = shards / "val" / "t1-00000-of-00001.tfrecord.gz"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CodedError, match=r"KUG-D09 .*tfrecord.gz: found sha256 [0-9a-f]{12}"):
        load(shards)
    assert load(shards, verify=False)
    path.unlink()
    with pytest.raises(CodedError, match=r"KUG-D09 .*found no such shard"):
        load(shards)


def test_manifest_refuses_what_is_no_manifest(shards, tmp_path_factory):
    load = records.Manifest.load
    with pytest.raises(CodedError, match=r"KUG-D01 .*shards.json: found no such file.*prepare"):
        load(tmp_path_factory.mktemp("empty"))
    edit(shards, plan={**make_plan().to_dict(), "spacing": [9.0, 9.0, 9.0]})
    with pytest.raises(CodedError, match=r"KUG-D09 .*a plan that was edited after"):
        load(shards)
    edit(shards, shard=[])
    with pytest.raises(CodedError, match=r"KUG-D08 .*unknown key 'shard' \(did you mean 'shards'"):
        load(shards)
    edit(shards, version=99)
    with pytest.raises(CodedError, match=r"KUG-D09 .*found version 99, expected version 1"):
        load(shards)
    (shards / "shards.json").write_text("{")
    with pytest.raises(CodedError, match=r"KUG-D08 .*not JSON"):
        load(shards)


def test_a_volume_that_no_record_can_hold(monkeypatch):
    image = random_image("int16", (10, 10, 10))
    label_map = np.zeros(image.shape, np.uint8)
    monkeypatch.setattr(records, "RECORD_LIMIT", 3000)
    assert records.to_example(CASE, make_prepared(image, label_map))
    monkeypatch.setattr(records, "RECORD_LIMIT", 2999)
    with pytest.raises(CodedError, match=r"KUG-D35 sub_2_t1: found 10 x 10 x 10 voxels of int16"):
        records.to_example(CASE, make_prepared(image, label_map))


def test_the_documented_schema_is_that_of_the_records(root):
    rows = (root / "docs" / "shards.md").read_text().split("## Record")[1].split("## ")[0]
    documented = {}
    for line in rows.splitlines():
        if line.startswith("| `"):
            key, kind, shape = (cell.strip(" `") for cell in line.strip("|").split("|")[:3])
            documented[key] = kind, [int(shape)] if shape.isdigit() else []
    names = {"string": "bytes", "int64": "int64", "float32": "float"}
    schema = {k: (names[f["type"]], f["shape"]) for k, f in records.schema().items()}
    assert documented == schema
