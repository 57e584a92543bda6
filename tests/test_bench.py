"""The bench: which systems, rows that are not made twice, tables by hand, one real run."""

import csv
import dataclasses
import json
import subprocess
import types

import phantom_shards
import pytest
from commands import unigan

from keras_unigan import bench
from keras_unigan.bench import one, runs, tables
from keras_unigan.config import Study
from keras_unigan.errors import CodedError
from keras_unigan.systems import SYSTEMS

SCORES = {"dice": 0.5, "hd95": 4.0, "assd": 1.0}


def row_of(system, seed=0, macro=0.5, **changes):
    row = {"system": system, "seed": seed, "steps": 2, "parameters": 1000, "macs": 2_000_000_000}
    row |= {"step_seconds": 0.25, "train_seconds": 9.0, "inference_seconds": 0.5, "peak_gib": 1.0}
    row |= {"val_dice": 0.6, "macro_dice": macro, "undefined": 0, "failed": 0, "run": "nowhere"}
    return {**row, "modalities": {"ct": {**SCORES, "dice": macro}}, **changes}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Paths of a small study and its shards."""
    folder = tmp_path_factory.mktemp("bench")
    phantom_shards.write(
        folder,
        patch_size=(32, 32),
        filters=4,
        modalities=("ct", "t1"),
        subjects_per_modality=4,
        size=32,
        depth=6,
    )
    return folder / "study" / "study.json", folder / "shards"


def test_every_system_that_segments_is_in_the_bench():
    names = bench.segmenting()
    assert {"joint", "segan", "unigan", "uagan", "synseg", "sifa", "ummkd"} <= set(names)
    assert not {"gan", "stargan", "cyclegan"} & set(names)
    assert set(names) <= set(SYSTEMS)
    assert set(bench.segmenting(3)) < set(names)


def test_names_that_do_not_fit_are_refused():
    with pytest.raises(CodedError, match=r"KUG-T01 --systems: found 'jiont' \(did you mean 'joint"):
        runs.check_systems(["jiont"])
    with pytest.raises(CodedError, match="KUG-T02 --systems: found stargan, which makes no label"):
        runs.check_systems(["stargan"])


@pytest.mark.parametrize("change", [{"steps": 0}, {"augment": "much"}])
def test_settings_that_make_no_sense_are_refused(change):
    with pytest.raises(CodedError, match="KUG-T02"):
        bench.Settings(**change)


def test_a_bench_goes_on_where_it_was(study, tmp_path, monkeypatch):
    asked = []

    def made(study, shards, output, name, seed, settings):
        asked.append((name, seed))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return row_of(name, seed)

    monkeypatch.setattr(runs, "_one", made)
    arguments = (*study, tmp_path / "b", ["joint", "segan"], (0, 1), bench.Settings(2))
    with pytest.raises(KeyboardInterrupt):
        bench.run(*arguments, say=lambda text: None)
    rows = bench.run(*arguments, say=lambda text: None)
    assert asked == [("joint", 0), ("segan", 0), ("joint", 1), ("joint", 1), ("segan", 1)]
    assert [runs.key_of(row) for row in rows] == [*asked[:2], *asked[3:]]
    assert runs.read_rows(tmp_path / "b") == rows
    with pytest.raises(CodedError, match=r"KUG-T04 .*found a bench with other steps"):
        bench.run(*arguments[:-1], bench.Settings(3))


def test_a_study_without_cases_to_score_is_refused(study, tmp_path):
    whole = Study.load(study[0])
    kept = tuple(c for c in whole.cases if c.split != "test")
    dataclasses.replace(whole, cases=kept).save(tmp_path / "study.json")
    with pytest.raises(CodedError, match=r"KUG-D14 .*found no case of test"):
        bench.run(tmp_path / "study.json", study[1], tmp_path / "b")


def test_a_run_that_dies_leaves_no_row(study, tmp_path, monkeypatch):
    died = types.SimpleNamespace(returncode=-9)
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: died)
    with pytest.raises(CodedError, match=r"KUG-T05 joint: found a run that ended with -9"):
        bench.run(*study, tmp_path / "b", ["joint"], settings=bench.Settings(2))
    assert runs.read_rows(tmp_path / "b") == []


def test_all_systems_get_the_same_budget(study, tmp_path, monkeypatch):
    tasks = []

    def noted(command, **options):
        with open(command[-2]) as file:
            tasks.append(json.load(file))
        with open(command[-1], "w") as file:
            json.dump(row_of(tasks[-1]["experiment"]["model"]), file)
        return types.SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", noted)
    settings = bench.Settings(7, 3, 5, augment="standard")
    bench.run(*study, tmp_path / "b", ["joint", "nnunet_plain"], settings=settings)
    bench.run(*study, tmp_path / "c", ["synth_contrast"], settings=settings)
    # What is painted is what this one learns from.
    assert tasks.pop()["experiment"]["train"]["augment"] is None
    for task in tasks:
        experiment = task["experiment"]
        assert (experiment["steps"], experiment["network"]) == (7, {"filters": 5})
        train = experiment["train"]
        assert (train["batch_size"], train["augment"]) == (3, "standard")
        assert train["steps_per_epoch"] == 7
    assert [task["experiment"]["model"] for task in tasks] == ["joint", "nnunet_plain"]


def test_a_row_of_a_real_run(study, tmp_path):
    experiment = one.experiment_dict(
        shards=str(study[1]),
        output=str(tmp_path / "run"),
        model="joint",
        steps=2,
        train={"batch_size": 2, "steps_per_epoch": 1, "patch_size": (32, 32)},
        network={"strides": [[2, 2]]},
    )
    task = {"experiment": experiment, "study": str(study[0]), "split": "test"}
    (tmp_path / "task.json").write_text(json.dumps(task))
    one.main([str(tmp_path / "task.json"), str(tmp_path / "row.json")])
    row = json.loads((tmp_path / "row.json").read_text())
    assert (row["system"], row["seed"], row["steps"]) == ("joint", 0, 2)
    # Two levels of width 4 and 8, by their order of magnitude; the first convolution alone.
    assert row["parameters"] > 1000
    assert row["macs"] > 32 * 32 * 9 * 4
    assert set(row["modalities"]) == {"ct", "t1"}
    assert set(row["modalities"]["ct"]) == {"dice", "hd95", "assd"}
    for key in ("step_seconds", "inference_seconds", "peak_gib", "train_seconds"):
        assert row[key] > 0
    scores = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert row["macro_dice"] == pytest.approx(scores["macro_dice"])
    # A second call trains nothing.
    before = (tmp_path / "run" / "history.csv").read_bytes()
    again = one.row_of(task)
    assert (tmp_path / "run" / "history.csv").read_bytes() == before
    assert again["macro_dice"] == row["macro_dice"]


def test_a_system_that_the_study_does_not_allow_gets_its_reason(study, tmp_path):
    experiment = one.experiment_dict(
        shards=str(tmp_path / "none"), output=str(tmp_path / "run"), model="joint", steps=1
    )
    row = one.row_of({"experiment": experiment, "study": str(study[0]), "split": "test"})
    assert row["refused"].startswith("KUG-D01")


# Tables.


def test_lines_are_means_over_seeds(tmp_path):
    found = tables._line([row_of("joint", 0, 0.4), row_of("joint", 1, 0.6, step_seconds=0.75)])
    assert found["macro_dice"] == found["modalities"]["ct"]["dice"] == pytest.approx(0.5)
    assert (found["least_dice"], found["most_dice"], found["seeds"]) == (0.4, 0.6, 2)
    assert found["step_seconds"] == 0.5
    assert tables._spread(found) == "0.500 (0.400 to 0.600)"


def test_what_a_page_shows(tmp_path):
    rows = [row_of("segan", macro=0.4), row_of("joint", macro=0.6), row_of("unigan", macro=None)]
    rows.append({"system": "sifa", "seed": 0, "steps": 2, "refused": "KUG-T02 one modality"})
    (tmp_path / runs.ROWS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = bench.write(tmp_path, baseline="none")
    assert [line["system"] for line in result["systems"]] == ["joint", "segan", "unigan"]
    text = (tmp_path / "table.md").read_text()
    assert "| joint | 0.600 | 0.600 | 4.0 | 1.0 | 1,000 | 2.00 G | 0.25 | 0.50 | 1.00 |" in text
    assert "| unigan | – | – |" in text
    assert "- sifa: KUG-T02 one modality" in text
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_each_system_is_compared_with_the_baseline_of_its_seed(tmp_path):
    for name, dice in (("joint", 0.5), ("segan", 0.7)):
        folder = tmp_path / name
        folder.mkdir()
        scores = [
            {
                **{"case": f"s{n}_ct", "subject": f"s{n}", "modality": "ct", "name": "organ"},
                **{"split": "test", "dice": dice + n / 100, "status": "ok", "unit": "mm"},
                **{"n_true": 5, "n_pred": 5, "known_modality": True},
            }
            for n in range(8)
        ]
        content = {"rows": scores, "known_modality": True, "split": "test", "options": {}}
        (folder / "metrics.json").write_text(json.dumps(content))
    rows = [row_of(name, run=str(tmp_path / name)) for name in ("joint", "segan")]
    (tmp_path / runs.ROWS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (found,) = bench.write(tmp_path)["comparisons"]
    assert (found["system"], found["wins"], found["losses"]) == ("segan", 8, 0)
    assert (found["better"], found["worse"], found["tests"]) == (1, 0, 1)
    with (tmp_path / "comparison.csv").open(newline="") as file:
        (line,) = csv.DictReader(file)
    assert float(line["difference"]) == pytest.approx(0.2)
    assert "| segan | 0 | 8/0/0 | 1 | 0 | 1 |" in (tmp_path / "table.md").read_text()


# The command.


@pytest.mark.parametrize("arguments", [(), ("study.json",), ("study.json", "shards", "--phantoms")])
def test_what_is_to_be_benched_must_be_said_once(arguments, tmp_path, capsys):
    assert unigan("bench", *arguments, "-o", tmp_path) == 2
    assert "KUG-T02" in capsys.readouterr().err


def test_seeds_must_be_numbers(tmp_path, capsys):
    assert unigan("bench", "--phantoms", "-o", tmp_path, "--seeds", "a") == 2
    assert "KUG-T02 --seeds" in capsys.readouterr().err


@pytest.mark.slow
def test_the_bench_on_phantoms(tmp_path, capsys):
    command = ("bench", "--phantoms", "-o", tmp_path, "--systems", "joint,segan,unigan")
    assert unigan(*command, "--steps", "4", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert {line["system"] for line in result["systems"]} == {"joint", "segan", "unigan"}
    assert len(result["comparisons"]) == 2
