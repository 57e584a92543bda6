"""The phantoms of benchmarks/hard_regions.py get harder, and only where they say so."""

import importlib

import numpy as np
import pytest

from keras_unigan.data import phantoms


@pytest.fixture
def hard_regions(root, monkeypatch):
    monkeypatch.syspath_prepend(root / "benchmarks")
    return importlib.import_module("hard_regions")


def test_every_way_of_spoiling_is_gradual(hard_regions):
    for modality in ("ct", "t1"):
        image, labels = phantoms.volume(1, modality, (48, 48, 12))
        for way in hard_regions.DEGRADATIONS:
            steps = [
                hard_regions.degraded(way, image, labels, s, seed=3)
                for s in hard_regions.SEVERITIES
            ]
            np.testing.assert_allclose(steps[0], image, atol=1e-3)
            # The same seed spoils the same places, each time more of them or more strongly.
            changes = [np.abs(step - image).mean() for step in steps]
            assert all(np.diff(changes) >= 0), way
            assert changes[-1] > changes[1] > 0, way
            assert np.isfinite(steps[-1]).all()


def test_spoilt_phantoms_lose_what_tells_their_organ(hard_regions):
    image, labels = phantoms.volume(2, "t1", (48, 48, 12))
    organ = labels > 0
    for way, left in {"boundary erased": 0.6, "foreground contrast": 0.2, "noise": 0.4}.items():
        sharp = [
            hard_regions.boundary_contrast(
                hard_regions.degraded(way, image, labels, severity, seed=3), organ
            )
            for severity in (0.0, 1.0)
        ]
        assert sharp[1] < left * sharp[0], way
    decoys = hard_regions.degraded("confusing background", image, labels, 1.0, seed=3)
    np.testing.assert_array_equal(decoys[organ], image[organ].astype(np.float32))
    lost = hard_regions.degraded("missing slices", image, labels, 1.0, seed=3)
    slices = organ.any((0, 1))
    gone = (lost == lost.min()).all((0, 1))
    assert np.count_nonzero(gone & slices) == round(0.5 * np.count_nonzero(slices))
    assert np.isnan(hard_regions.boundary_contrast(image, organ & ~organ))
