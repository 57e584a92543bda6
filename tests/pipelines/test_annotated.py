"""Cases whose label maps do not show all classes, from the study to a step of training."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf

from keras_unigan.config import Study, TrainOptions
from keras_unigan.data import audit, datasets, phantoms, records
from keras_unigan.pipelines import preprocess
from keras_unigan.training import build_model

OPTIONS = TrainOptions(patch_size=(16, 16), batch_size=4, steps_per_epoch=4, augment="none")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """CT shows the organ alone; one scan of T1 has no label map."""
    folder = tmp_path_factory.mktemp("study")
    study = phantoms.write_study(folder, ("ct", "t1"), 4, size=24, depth=6, fractions=(0.5, 0.5, 0))
    assert study.labels.foreground == ("organ", "lesion")
    bare = next(c.id for c in study.cases if (c.modality, c.split) == ("t1", "train"))
    cases = [
        dataclasses.replace(c, label=None)
        if c.id == bare
        else dataclasses.replace(c, annotated=("organ",) if c.modality == "ct" else None)
        for c in study.cases
    ]
    study = dataclasses.replace(study, cases=tuple(cases))
    study.save(folder / "study.json")
    assert Study.load(folder / "study.json") == study
    return study


@pytest.fixture(scope="module")
def shards(study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("annotated") / "shards"
    preprocess.run(["--study", study.path("study.json"), "--output", str(folder)])
    return folder


def opened(shards, steps, **options):
    """Some batches as NumPy, the validation data and the plan."""
    train, val, plan = datasets.load(shards, options=OPTIONS, endless=True, **options)
    return [{k: v.numpy() for k, v in batch.items()} for batch in train.take(steps)], val, plan


def test_records_say_what_was_annotated(shards):
    manifest = records.Manifest.load(shards)
    assert manifest.schema["annotated"] == {"type": "string", "shape": [-1]}
    found = {}
    for shard in manifest.shards:
        for record in records.read_shards([shards / shard.file]):
            names = [n.decode() for n in record["annotated"].numpy()]
            held = set(np.unique(record["label_map"]).tolist())
            assert {0, 1} <= held or held == {255}
            found.setdefault(shard.modality, []).append((names, 2 in held))
    # Of what nobody looked for the label map says nothing, whatever the file has.
    assert set(map(str, found["ct"])) == {"(['organ'], False)"}
    assert set(map(str, found["t1"])) == {"([], True)", "([], False)"}


def test_a_change_of_what_was_annotated_makes_its_shard_again(study, shards, tmp_path):
    entry = json.loads((shards / "done/train/ct-00000-of-00001.json").read_text())
    cases = [dataclasses.replace(c, annotated=None) for c in study.cases]
    other = tmp_path / "study.json"
    moved = [
        dataclasses.replace(c, image=study.path(c.image), label=study.path(c.label)) for c in cases
    ]
    dataclasses.replace(study, cases=tuple(moved)).save(other)
    argv = ["--study", str(other), "--output", str(tmp_path / "shards")]
    preprocess.run([*argv, "--plan", str(shards / "plan.json")])
    again = json.loads((tmp_path / "shards/done/train/ct-00000-of-00001.json").read_text())
    assert again["inputs"] == entry["inputs"]
    assert again["settings"] != entry["settings"]
    # And without any such case, nothing of it is anywhere.
    assert "annotated" not in records.Manifest.load(tmp_path / "shards").schema


def check(batches, ct):
    """A CT shows the organ alone; a T1 both, also one that has no label map."""
    for batch in batches:
        expected = np.where(batch["domain"][:, None] == ct, [1, 0], [1, 1])
        assert batch["annotated"].dtype == np.float32
        np.testing.assert_array_equal(batch["annotated"], expected)


@pytest.mark.slow
def test_batches_from_the_middle_and_without_a_cache(shards):
    batches, _, plan = opened(shards, 3)
    for options in ({}, {"cache_gib": 0.0}):
        later, _, _ = opened(shards, 1, start_step=2, **options)
        check(later, plan.modalities.index("ct"))
        if not options:
            np.testing.assert_array_equal(later[0]["annotated"], batches[2]["annotated"])


def test_batches_carry_it_to_a_game(shards):
    seen = audit.Seen()
    batches, val, plan = opened(shards, 3, seen=seen)
    ct, t1 = (plan.modalities.index(m) for m in ("ct", "t1"))
    check(batches, ct)
    rows, _ = seen.rows(0, 3)
    assert {row["voxels_lesion"] for row in rows if row["modality"] == "ct"} == {0}

    model = build_model("segan", plan, network={"filters": 2})
    model.train_step({k: tf.constant(v) for k, v in batches[0].items()})
    assert int(model.completed_steps) == 1
    with model.testing():
        model.reset_metrics()
        for batch in val:
            model.test_step(batch)
    counts = model._dice.counts.numpy()
    assert not counts[ct, 2].any()
    assert counts[t1, 2].any()
