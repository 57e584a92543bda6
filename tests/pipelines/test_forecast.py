"""What a preparation takes before it is run."""

import dataclasses
import json
import pathlib
import shutil

import pytest

from keras_unigan import cli
from keras_unigan.config import Plan
from keras_unigan.data import phantoms
from keras_unigan.errors import CodedError
from keras_unigan.pipelines import fingerprint, forecast, preprocess, sources


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Path of a study of twelve cases."""
    folder = tmp_path_factory.mktemp("study")
    phantoms.write_study(folder, ("ct", "t1"), 6, size=32, depth=8, seed=2)
    return folder / "study.json"


@pytest.fixture(scope="module")
def planned(study):
    """Study and plan."""
    loaded = sources.load_study(study)
    return loaded, forecast.make_plan(loaded, "shards", sources.pipeline_options([]))[0]


def test_dry_run_says_plan_and_forecast_and_writes_nothing(study, tmp_path, capsys):
    output = tmp_path / "shards"
    with pytest.raises(SystemExit) as stop:
        cli.main(["prepare", str(study), "-o", str(output), "--dry-run", "--json"])
    assert not stop.value.code
    said = json.loads(capsys.readouterr().out)
    assert not output.exists()
    assert {p.name for p in study.parent.iterdir() if "part" in p.name} == set()
    plan, found = Plan.from_dict(said["plan"]), said["forecast"]
    assert plan.reasons["normalization.ct"].startswith("the name 'ct'; Hounsfield units")
    assert (found["cases"], found["probed"]) == (12, 8)
    summary = preprocess.run(["--study", str(study), "--output", str(output)])
    assert Plan.load(output / "plan.json") == plan
    written = summary["counters"]["bytes_written"]
    assert found["disk_bytes"] == pytest.approx(written, rel=0.25)
    assert "seconds" in found
    assert found["memory_bytes"] > 2**26

    with pytest.raises(SystemExit):
        cli.main(["prepare", str(study), "-o", str(output), "--dry-run", "--limit", "4"])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("2d.patch_size = [32, 32]: median volume") for line in lines)
    assert f"Would prepare 4 cases into {output}" in lines
    assert any(line.startswith("disk: about ") for line in lines)


def test_shards_that_the_disk_cannot_hold(planned, tmp_path):
    study, plan = planned
    output = str(tmp_path / "shards")
    need = forecast.forecast(study, plan, output)["disk_bytes"]
    with pytest.raises(CodedError, match=r"KUG-T06 disk: found about .* of shards") as caught:
        forecast.forecast(study, plan, output, free=need // 2)
    fewer, coarser, flatter, other = caught.value.fix.split("; or ")
    assert other == "another disk with -o"
    # By its own size, each of them fits.
    assert fewer == f"--limit {int(12 / 2.2)}"
    for offer in (coarser, flatter):
        spacing = json.loads(offer.partition(": ")[2].removesuffix(" in the plan"))
        voxels = 1.0
        for old, new in zip(plan.spacing, spacing, strict=True):
            voxels *= old / new
        assert voxels * need <= need / 2
    assert not pathlib.Path(output).exists()


def test_prepare_refuses_what_will_not_fit(study, tmp_path, monkeypatch, capsys):
    usage = shutil.disk_usage(tmp_path)._replace(free=20_000)
    monkeypatch.setattr(forecast.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(SystemExit) as stop:
        cli.main(["prepare", str(study), "-o", str(tmp_path / "shards")])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("KUG-T06 disk: found about ")
    assert not (tmp_path / "shards").exists()


def test_facts_of_cases_that_share_an_element_are_the_same(planned, monkeypatch):
    loaded, plan = planned
    monkeypatch.setattr(fingerprint, "PIECES", 3)
    options = sources.pipeline_options([])
    again, dead, _ = forecast.make_plan(loaded, "shards", options)
    assert (again, dead) == (plan, 0)
    named = dataclasses.replace(loaded, normalization={"t1": "ultrasound"})
    again = forecast.make_plan(named, "shards", options, window="core")[0]
    assert again.normalization["t1"].scheme == "ultrasound"
    assert "away from its border" in again.reasons["normalization.ct"]


def test_cases_count_by_the_size_of_their_files(planned):
    study, _ = planned
    sizes = [forecast.input_bytes(case) for case in study.cases]
    assert min(sizes) > 0
    share, largest = forecast._shares(study.cases, study.cases[:4])
    assert share == pytest.approx(sum(sizes) / sum(sizes[:4]))
    assert largest == pytest.approx(max(sizes) / max(sizes[:4]))
    assert not forecast.crowded(study, ".")
