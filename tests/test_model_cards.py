"""The cards of `docs/models`: committed as they would be written, and true to code and tests."""

import ast
import importlib.util
import json

import pytest
import tensorflow as tf  # noqa: F401  (at the top: see conftest.pytest_collection_finish)
from conftest import ROOT

from keras_unigan.systems import SYSTEMS


@pytest.fixture(scope="module")
def maker():
    path = ROOT / "docs" / "models" / "make_cards.py"
    spec = importlib.util.spec_from_file_location("make_cards", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_committed_cards_are_what_would_be_written(maker):
    cards = maker.cards()
    folder = ROOT / "docs" / "models"
    assert {path.name for path in folder.glob("*.md")} == set(cards)
    stale = [n for n, text in cards.items() if (folder / n).read_text(encoding="utf-8") != text]
    assert not stale, f"{stale} are stale: python docs/models/make_cards.py"


def test_every_test_that_a_card_names_is_there(maker):
    assert set(maker.NOTES["systems"]) == set(SYSTEMS)
    used = {key for notes in maker.NOTES["systems"].values() for key in notes["equations"]}
    assert used == set(maker.NOTES["equations"])
    for _, _, test in maker.NOTES["equations"].values():
        path, _, name = test.partition("::")
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert name in names, test


def test_rows_are_found(maker, tmp_path, monkeypatch):
    monkeypatch.setattr(maker, "QUALITY", tmp_path / "quality.jsonl")
    monkeypatch.setattr(maker, "BENCH", tmp_path / "bench")
    assert maker.bench("joint") == ["Not measured yet."]
    rows = [
        {"system": s, "setting": "few", "steps": 9, "tag": "", "macro": d}
        for s, d in (("joint", 0.5), ("joint", 0.7), ("joint, adam", 0.6), ("joint_cond", 0.1))
    ]
    refused = {"system": "joint", "seed": 1, "steps": 7, "refused": "KUG-D14 ..."}
    others = [{"system": "joint", "seed": 0, "steps": 7, "macro_dice": 0.25}, refused]
    (tmp_path / "bench").mkdir()
    for name, lines in (("quality", rows), ("bench/brain_tumours", others)):
        text = "\n".join(map(json.dumps, lines))
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    assert maker.bench("joint")[-3:] == [
        "| brain tumours | full | default | 7 | 1 | 0.250 |",
        "| semi-real brains | few | adam | 9 | 1 | 0.600 |",
        "| semi-real brains | few | default | 9 | 2 | 0.600 (sd 0.141) |",
    ]
