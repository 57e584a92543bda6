"""Which system plays where none is named: by the training cases, said, and kept."""

import dataclasses
import json
import re

import phantom_shards
import pytest
import rich.console
from commands import unigan

from keras_unigan import training
from keras_unigan.config import Experiment
from keras_unigan.data import catalogue, datasets
from keras_unigan.errors import CodedError
from keras_unigan.training import folds, forecasting, running

TWO = "model: unigan, as the training cases have 2 modalities (ct, t1)"
ONE = "model: joint, as the training cases have one modality (t1)"


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """Shards of one modality."""
    folder = tmp_path_factory.mktemp("single")
    sizes = {"subjects_per_modality": 3, "size": 32, "depth": 6}
    return phantom_shards.write(folder, patch_size=(32, 32), filters=4, modalities=("t1",), **sizes)


@pytest.fixture
def nameless(experiment, shards):
    """As `experiment`, with no system named."""

    def make(output, folder=shards, **changes):
        made = experiment(output, **{"model": None, "network": {}, **changes})
        return Experiment(**{**vars(made), "shards": str(folder)})

    return make


class Asked(Exception):
    """Raised in the place of something dear."""


def test_two_modalities_are_played_between(nameless, tmp_path):
    found, why = training.chosen(nameless(tmp_path))
    assert (found.model, why) == ("unigan", TWO)
    assert found == nameless(tmp_path, model="unigan")


def test_one_modality_has_nothing_to_translate_to(nameless, single, tmp_path, monkeypatch):
    # The manifest says so, and no record is read.
    monkeypatch.setattr(catalogue, "collect", lambda *given: pytest.fail("read"))
    found, why = training.chosen(nameless(tmp_path, single))
    assert (found.model, why) == ("joint", ONE)


def test_subjects_may_leave_one_modality(nameless, tmp_path, monkeypatch):
    collect = catalogue.collect

    def fewer(*given):
        cases = collect(*given)
        numbers = [n for n, domain in enumerate(cases["train"].domains) if domain == 1]
        return {**cases, "train": cases["train"].only(numbers)}

    monkeypatch.setattr(catalogue, "collect", fewer)
    found, why = training.chosen(nameless(tmp_path))
    assert (found.model, why) == ("joint", ONE)


def test_a_name_stays_and_nothing_is_read(nameless, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "plan_of", lambda shards: pytest.fail("read"))
    for name in ("segan", "unigan", "joint"):
        given = nameless(tmp_path, model=name)
        assert training.chosen(given, 3) == (given, None)


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ({"batch_size": 1}, r"\(KUG-T02 train\.batch_size: found 1, expected at least 2\)"),
        ({"augment": "paint"}, r"\(KUG-T02 train\.augment: found paint with a translating"),
    ],
)
def test_what_a_translating_game_refuses(nameless, tmp_path, train, words):
    found, why = training.chosen(nameless(tmp_path, train=train))
    assert found.model == "joint"
    assert re.match(f"model: joint, as unigan cannot train on these data {words}", why)


def test_a_batch_of_one_whose_targets_are_drawn(nameless, tmp_path):
    train = {"batch_size": 1, "targets": "uniform"}
    assert training.chosen(nameless(tmp_path, train=train))[0].model == "unigan"


def test_a_class_that_one_modality_lacks(nameless, tmp_path, monkeypatch):
    def check(cases, plan):
        raise CodedError("KUG-D15", "class lesion", "no case with it in t1", "some, as in ct")

    monkeypatch.setattr(catalogue, "check_classes", check)
    found, why = training.chosen(nameless(tmp_path))
    assert found.model == "joint"
    assert why.endswith(
        "(KUG-D15 class lesion: found no case with it in t1, expected some, as in ct)"
    )
    allowed = nameless(tmp_path, train={"allow_missing_classes": True})
    assert training.chosen(allowed)[0].model == "unigan"


def test_a_run_that_starts_from_another_plays_the_same(nameless, tmp_path):
    nameless(tmp_path, model="uagan").save(tmp_path / "a" / "config.json")
    found, why = training.chosen(nameless(tmp_path / "b", init_from=str(tmp_path / "a")))
    assert (found.model, why) == ("uagan", f"model: uagan, as in {tmp_path / 'a'}")
    with pytest.raises(CodedError, match=r"KUG-T04 .*nowhere: found no run, expected a run folder"):
        training.chosen(nameless(tmp_path / "b", init_from="nowhere"))


def test_all_folds_play_the_same(nameless, tmp_path, monkeypatch):
    asked, said, parts, collect = [], [], [], catalogue.collect

    def run(experiment, **options):
        asked.append((experiment.model, experiment.train.fold))
        return {"best_dice": 0.5}

    def counted(*given):
        parts.append(given[-2:])
        return collect(*given)

    monkeypatch.setattr(folds, "run", run)
    monkeypatch.setattr(catalogue, "collect", counted)
    training.run_folds(nameless(tmp_path), 2, say=said.append)
    assert (asked, said[0]) == ([("unigan", 0), ("unigan", 1)], TWO)
    assert parts == [(2, 0), (2, 1)]


def test_the_probe_is_of_what_would_run(nameless, single, tmp_path, monkeypatch):
    def ask(experiment, memory):
        raise Asked(experiment.model)

    monkeypatch.setattr(forecasting, "_ask", ask)
    for folder, name in ((None, "unigan"), (single, "joint")):
        asked = nameless(tmp_path / "run", *[folder] * bool(folder))
        with pytest.raises(Asked, match=name):
            training.forecast(asked)


def test_a_dry_run_says_which_and_why(shards, tmp_path, monkeypatch, capsys):
    asked = []

    def forecast(experiment, memory):
        asked.append(experiment.model)
        return {}

    monkeypatch.setattr(training, "describe", lambda e: {"model": e.model})
    monkeypatch.setattr(training, "forecast", forecast)
    monkeypatch.setattr(training, "sentences", lambda found: [])
    command = ["train", shards, "-o", tmp_path / "run", "--dry-run"]
    assert unigan(*command) == 0
    assert TWO in capsys.readouterr().out.splitlines()
    assert unigan(*command, "--model", "segan", "--json") == 0
    assert json.loads(capsys.readouterr().out)["model"] == "segan"
    assert asked == ["unigan", "segan"]


def test_a_run_says_it_keeps_it_and_goes_on(nameless, single, tmp_path, monkeypatch):
    settings = {"network": {"strides": [[2, 2]]}, "train": {"steps_per_epoch": 1}}
    console = rich.console.Console(record=True, width=200, soft_wrap=True, highlight=False)
    given = nameless(tmp_path / "run", single, epochs=1, **settings)
    assert training.run(given, console=console)["model"] == "joint"
    assert ONE in console.export_text().splitlines()
    kept = Experiment.load(tmp_path / "run" / "config.json")
    (entry,) = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (kept.model, entry["config"]["model"]) == ("joint", "joint")
    # Neither the API, which names none again, nor the command line, which reads it, chooses anew.
    longer = nameless(tmp_path / "run", single, epochs=2, **settings)
    assert running._resumed(tmp_path / "run", longer)[0].model == "joint"
    asked = []
    monkeypatch.setattr(training, "run", lambda e, **how: asked.append(e) or {"best_dice": 0.5})
    again = ["train", single, "-o", tmp_path / "run", "--resume", "--epochs", 3]
    assert unigan(*again) == 0
    assert asked == [dataclasses.replace(kept, epochs=3)]
    other = nameless(tmp_path / "run", single, model="unigan", epochs=4, **settings)
    with pytest.raises(CodedError, match=r"KUG-T04 .*found model unigan, expected the run's own"):
        running._resumed(tmp_path / "run", other)
