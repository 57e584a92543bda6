import csv
import dataclasses
import json

import numpy as np
import phantom_shards
import pytest

from keras_unigan.config import Labels, TrainOptions
from keras_unigan.data import audit, datasets

OPTIONS = TrainOptions(patch_size=(32, 32), batch_size=4, steps_per_epoch=3, unknown_fraction=0.3)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return phantom_shards.write(
        tmp_path_factory.mktemp("audit"), subjects_per_modality=3, size=40, depth=4
    )


def train(shards, steps, start=0, augment="light"):
    """A `Seen` after some steps, the batches, and the plan."""
    seen, options = audit.Seen(), dataclasses.replace(OPTIONS, augment=augment)
    arguments = {"options": options, "start_step": start, "translating": True, "seen": seen}
    train, _, plan = datasets.load(shards, endless=True, **arguments)
    return seen, [{k: v.numpy() for k, v in b.items()} for b in train.take(steps)], plan


@pytest.fixture(scope="module")
def recorded(shards):
    """What the pipeline noted of nine steps with all that changes label maps."""
    return train(shards, 9, augment="contrast")


def seen_from(recorded, start=0):
    """A fresh `Seen` of the recorded steps from `start` on."""
    seen = audit.Seen()
    vars(seen).update(vars(recorded[0]))
    seen._steps = {step: note for step, note in recorded[0]._steps.items() if step >= start}
    return seen


def test_rows_are_what_the_batches_held(recorded):
    seen, (_, batches, plan) = seen_from(recorded), recorded
    rows, steps = seen.rows(0, 9)
    assert steps == 9
    data = {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}
    assert [r["case"] for r in rows] == [seen.cases[n][2] for n in np.unique(data["case"])]
    for row, number in zip(rows, np.unique(data["case"]), strict=True):
        mine = data["case"] == number
        labels = data["label_map"][mine]
        assert row["modality"] == plan.modalities[data["domain"][mine][0]]
        assert row["case"] == f"{row['subject']}_{row['modality']}"
        assert row["samples"] == mine.sum()
        assert row["unknown"] == (data["known"][mine] == 0).sum()
        for index, name in enumerate(plan.labels.names):
            assert row[f"voxels_{name}"] == (labels == index).sum()
            assert row[f"patches_{name}"] == (labels == index).any(axis=(1, 2)).sum()
        assert row["voxels_unlabelled"] == (labels == 255).sum()
        for index, name in enumerate(plan.modalities):
            assert row[f"to_{name}"] == (data["target"][mine] == index).sum()


def test_steps_are_counted_from_the_start_of_the_run(shards):
    seen, batches, _ = train(shards, 2, start=5)
    assert seen.rows(0, 5) == ([], 0)
    rows, steps = seen.rows(5, 7)
    assert steps == 2
    assert sum(r["samples"] for r in rows) == sum(len(b["case"]) for b in batches) == 8


def test_only_steps_that_were_made_count(recorded):
    seen = seen_from(recorded)
    first, steps = seen.rows(0, 4)
    assert steps == 4
    assert sum(r["samples"] for r in first) == 16
    # Taken once; what was prepared ahead of training stays for the next call.
    assert seen.rows(0, 4) == ([], 0)
    assert seen.rows(4, 9)[1] == 5


def test_regions_overlap():
    labels = Labels(regions={"whole": (1, 2), "core": (2,)})
    plan = type("Plan", (), {"modalities": ("ct",), "labels": labels})
    cases = type("Cases", (), {"domains": [0], "subjects": ["a"], "names": ["a_ct"]})
    seen = audit.Seen()
    seen.describe(cases, plan)
    zero = np.zeros(2, np.int32)
    seen.record(0, zero, zero, zero == 0, np.array([[5, 3, 2, 6], [9, 7, 0, 0]]))
    (row,), _ = seen.rows(0, 1)
    assert (row["voxels_whole"], row["voxels_core"], row["voxels_unlabelled"]) == (12, 2, 6)
    assert (row["patches_whole"], row["patches_core"]) == (2, 1)


def read(folder):
    """Both files of an audit."""
    with (folder / "audit.csv").open(newline="") as file:
        return list(csv.DictReader(file)), json.loads((folder / "audit.json").read_text())


def test_a_resumed_audit_is_that_of_an_uninterrupted_run(recorded, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
        (folder / "audit.csv").write_text("of an earlier run")
    _, batches, plan = recorded
    log = audit.Audit(whole, seen_from(recorded))
    for epoch in (1, 2, 3):
        log.advance(3 * epoch, epoch)
    # Killed in the third epoch, with a checkpoint at step 5 and half a line written.
    log = audit.Audit(killed, seen_from(recorded))
    for step, epoch in ((3, 1), (5, 2), (6, 2)):
        log.advance(step, epoch)
    with (killed / "audit.csv").open("a") as file:
        file.write("3,6,9,ct,su")
    log = audit.Audit(killed, seen_from(recorded, 5), start_step=5)
    for step, epoch in ((6, 2), (6, 2), (9, 3)):
        log.advance(step, epoch)
    (rows, summary), (again, same) = read(whole), read(killed)
    assert summary == same
    assert summary["steps"] == summary["steps_noted"] == 9
    sums = []
    for found in (rows, again):
        total = {}
        for row in found:
            key = (row["epoch"], row["case"])
            total[key] = total.get(key, 0) + int(row["samples"])
        sums.append(total)
    assert sums[0] == sums[1]
    assert {(r["from_step"], r["to_step"]) for r in again if r["epoch"] == "2"} == {
        ("3", "5"),
        ("5", "6"),
    }
    domain = np.concatenate([b["domain"] for b in batches])
    for index, modality in enumerate(plan.modalities):
        entry = summary["modalities"][modality]
        assert entry["samples"] == (domain == index).sum()
        assert entry["subjects"] == entry["cases"] == 1
        assert sum(entry[f"to_{m}"] for m in plan.modalities) == entry["samples"]


def test_steps_that_nobody_noted_are_told(recorded, tmp_path):
    log = audit.Audit(tmp_path, seen_from(recorded, 4), start_step=4)
    log.advance(6, 2)
    assert log.summary()["steps"] == 6
    assert log.summary()["steps_noted"] == 2
