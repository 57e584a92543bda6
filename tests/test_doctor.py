"""`unigan doctor` in environments that hold old packages or settings; distributions are faked."""

import importlib.metadata
import json

import pytest
from commands import unigan


@pytest.fixture
def advice(monkeypatch, tmp_path, capsys):
    """Function from versions of distributions, None for missing ones, to what `doctor` advises."""
    for name in ("KERAS_BACKEND", "TF_USE_LEGACY_KERAS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    real = importlib.metadata.version

    def run(**versions):
        given = {"tensorflow-addons": None, "keras-cv": None, "tf-keras": None, "keras": "3.15.1"}
        given |= {name.replace("_", "-"): number for name, number in versions.items()}

        def version(name):
            number = given[name] if name in given else real(name)
            if number is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return number

        monkeypatch.setattr(importlib.metadata, "version", version)
        assert unigan("doctor", "--json") == 0
        found = json.loads(capsys.readouterr().out)["advice"]
        return [line for line in found if "keras-unigan[" not in line]

    return run


def test_a_clean_environment_has_nothing_in_the_way(advice):
    assert advice() == []


@pytest.mark.parametrize("name", ["tensorflow-addons", "keras-cv", "tf-keras"])
def test_an_old_package_is_named_with_how_to_remove_it(advice, name):
    (line,) = advice(**{name.replace("-", "_"): "0.23.0"})
    assert line.startswith(f"{name} 0.23.0 is installed")
    assert line.endswith(f"pip uninstall {name}")
    assert name == "tf-keras" or "docs/migrating.md" in line


@pytest.mark.parametrize("number", ["2.15.0", "3.4.1", None])
def test_a_keras_that_is_too_old_or_missing(advice, number):
    assert advice(keras=number) == [f'keras is {number or "missing"}: pip install "keras>=3.12"']


@pytest.mark.parametrize(("value", "lines"), [("1", 1), ("True", 1), ("0", 0), ("", 0)])
def test_legacy_keras_that_is_asked_for(advice, monkeypatch, value, lines):
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", value)
    found = advice()
    assert len(found) == lines
    assert all(line.endswith("unset TF_USE_LEGACY_KERAS") for line in found)


def test_another_backend_by_the_environment(advice, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    (line,) = advice()
    assert line.startswith("Keras runs on torch (KERAS_BACKEND)")
    assert line.endswith("unset KERAS_BACKEND")
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    assert advice() == []


@pytest.mark.parametrize(
    ("text", "lines"),
    [('{"backend": "jax"}', 1), ('{"backend": "tensorflow"}', 0), ("{}", 0), ("[", 0), ("[]", 0)],
)
def test_another_backend_by_the_settings_of_keras(advice, monkeypatch, tmp_path, text, lines):
    (tmp_path / "keras.json").write_text(text)
    found = advice()
    assert len(found) == lines
    assert all("jax (keras.json)" in line and "KERAS_BACKEND=tensorflow" in line for line in found)
    # The environment is stronger than the file.
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    assert advice() == []
