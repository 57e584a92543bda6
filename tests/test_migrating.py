"""Every name that docs/migrating.md gives in place of another one is there."""

import importlib
import importlib.util
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "migrating.md").read_text(encoding="utf-8")


def rows():
    """Rows of all tables: the old names, the new one or None, and what to do."""
    for line in TEXT.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            there, here, how = cells
            yield re.findall(r"`([^`]+)`", there), None if here == "none" else here.strip("`"), how


ROWS = list(rows())
HERE = sorted({here for _, here, _ in ROWS if here})


def resolve(name):
    """The object of a dotted name."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        module = ".".join(parts[:end])
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            # Not a module of its own: an attribute of the one before.
            if error.name is None or not module.startswith(error.name):
                raise
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("name", HERE)
def test_what_is_named_is_there(name):
    if name.startswith("keras_hub") and importlib.util.find_spec("keras_hub") is None:
        pytest.skip('keras-hub is not installed: pip install "keras-unigan[hub]"')
    assert resolve(name) is not None


@pytest.mark.parametrize("name", ["keras.layers.InstanceNormalization", "keras.no.Such", "nosuch"])
def test_a_name_that_is_not_there_is_found_out(name):
    with pytest.raises((AttributeError, ModuleNotFoundError)):
        resolve(name)


def test_each_old_name_has_one_row_and_nothing_without_advice():
    old = [name for names, _, _ in ROWS for name in names]
    assert len(old) == len(set(old))
    assert [names for names, here, how in ROWS if not here and not how] == []


def test_names_that_the_advice_mentions_are_there_too():
    pattern = r"`((?:keras|keras_unigan|scipy)\.[\w.]+)`"
    mentioned = {name for _, _, how in ROWS for name in re.findall(pattern, how)}
    assert len(mentioned) > 20
    for name in mentioned:
        resolve(name)


@pytest.mark.parametrize(
    "name",
    [
        *("InstanceNormalization", "GroupNormalization", "SpectralNormalization"),
        *("WeightNormalization", "AdaptiveAveragePooling2D", "SigmoidFocalCrossEntropy"),
        *("TverskyLoss", "GIoULoss", "AdamW", "LAMB", "RectifiedAdam", "Lookahead"),
        *("MovingAverage", "SWA", "CyclicalLearningRate", "F1Score", "CohenKappa"),
        *("MeanMetricWrapper", "text", "seq2seq", "RandAugment", "DeepLabV3Plus", "SegFormer"),
        *("Mosaic", "CutMix", "Rescaling", "Resizing"),
    ],
)
def test_what_people_look_for_is_in_a_row(name):
    assert any(old.split(".")[-1] == name for names, _, _ in ROWS for old in names)
