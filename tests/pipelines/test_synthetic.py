"""Synthetic images keep their mark in the shards, and so stay out of folds that would validate."""

import dataclasses

import pytest
import tensorflow as tf

from keras_unigan.config import Case, TrainOptions
from keras_unigan.data import datasets, nifti, phantoms, records
from keras_unigan.errors import CodedError
from keras_unigan.pipelines import preprocess, shards
from keras_unigan.translation import MARK


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Shards with two such images: the study says it of one, the header alone of the other."""
    folder = tmp_path_factory.mktemp("synthetic")
    study = phantoms.write_study(folder, ("ct", "t1"), 4, size=24, depth=6, fractions=(0.5, 0.5, 0))
    said, marked = (
        next(c for c in study.cases if (c.modality, c.split) == (modality, "train"))
        for modality in ("ct", "t1")
    )
    scan = nifti.read(study.path(marked.image))
    nifti.write(study.path(marked.image), scan.array, affine=scan.affine, description=MARK)
    cases = tuple(dataclasses.replace(c, synthetic=c.id == said.id) for c in study.cases)
    dataclasses.replace(study, cases=cases).save(folder / "study.json")
    preprocess.run(["--study", str(folder / "study.json"), "--output", str(folder / "shards")])
    return folder / "shards", {said.id, marked.id}


def test_records_say_which_images_no_scanner_made(prepared):
    folder, made = prepared
    manifest, found = records.Manifest.load(folder), set()
    assert manifest.schema["synthetic"] == {"type": "int64", "shape": []}
    for shard in manifest.shards:
        for serialized in tf.data.TFRecordDataset(str(folder / shard.file), "GZIP"):
            features = tf.train.Example.FromString(serialized.numpy()).features.feature
            # Records of scans are what they were before there were others.
            if "synthetic" in features:
                assert list(features["synthetic"].int64_list.value) == [1]
                found.add(features["case"].bytes_list.value[0].decode())
    assert found == made


def test_folds_refuse_them_and_the_split_takes_them(prepared):
    folder, made = prepared
    options = TrainOptions(patch_size=(16, 16), batch_size=2)
    train, *_ = datasets.load(folder, options=options)
    assert next(iter(train))["image"].shape == (2, 16, 16, 1)
    with pytest.raises(CodedError, match=rf"KUG-D37 ({'|'.join(made)}): found a synthetic image "):
        datasets.load(folder, options=dataclasses.replace(options, folds=2))


def test_a_case_that_is_marked_later_makes_its_shard_again(prepared):
    folder, _ = prepared
    writer = shards.WriteShard(datasets.plan_of(folder), "output", "work", resume=True)
    writer.setup()
    case = Case("s", "ct", "a.nii", split="train")
    marked = dataclasses.replace(case, synthetic=True)
    assert writer.settings({"cases": [case]}) != writer.settings({"cases": [marked]})
