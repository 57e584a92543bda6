"""Phantoms: repeatable, unpaired, on awkward grids, not solved by a threshold."""

import collections
import pathlib

import nibabel as nib
import numpy as np
import pytest

from keras_unigan.config import Study
from keras_unigan.data import cases, nifti, phantoms, preprocessing


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return phantoms.write_study(tmp_path_factory.mktemp("phantoms"), size=48, depth=12, seed=4)


def test_volume_is_repeatable_and_varies():
    first, labels = phantoms.volume(3, "t1", (32, 32, 8))
    again, again_labels = phantoms.volume(3, "t1", (32, 32, 8))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(labels, again_labels)
    assert (first.dtype, labels.dtype) == (np.float32, np.uint8)
    assert not np.array_equal(first, phantoms.volume(4, "t1", (32, 32, 8))[0])
    assert set(np.unique(labels)) == {0, 1, 2}


@pytest.mark.parametrize("modality", ["ct", "t1", "flair", "t2", "us"])
def test_classes_differ_in_contrast_but_share_it_with_decoys(modality):
    image, labels = phantoms.volume(0, modality)
    background = -1000 if modality == "ct" else 0
    assert preprocessing.background_value(image) == background
    body = (labels == 0) & (image != background)
    levels = [np.median(image[mask]) for mask in (body, labels == 1, labels == 2)]
    assert np.ptp(levels) > 0.3 * np.ptp(preprocessing.statistics(image)[2:])
    # The best interval of intensities per class leaves much undone.
    for value in (1, 2):
        truth = labels == value
        low, high = np.percentile(image[truth], (2, 98))
        found = (image >= low) & (image <= high)
        dice = 2 * (found & truth).sum() / (found.sum() + truth.sum())
        assert dice < 0.8


def test_contrast_differs_between_modalities():
    orders = set()
    for modality in ("ct", "t1", "flair"):
        image, labels = phantoms.volume(0, modality)
        background = preprocessing.background_value(image)
        masks = ((labels == 0) & (image != background), labels == 1, labels == 2)
        orders.add(tuple(np.argsort([np.median(image[m]) for m in masks])))
    assert len(orders) > 1


def test_each_subject_has_one_modality_in_a_balanced_split(study):
    assert len({c.subject for c in study.cases}) == len(study.cases) == 18
    counts = collections.Counter((c.split, c.modality) for c in study.cases)
    for modality in ("ct", "t1", "flair"):
        shares = [counts[s, modality] for s in ("train", "val", "test")]
        assert shares == [4, 1, 1]


def test_files_fit_and_lie_awkwardly(study):
    codes, spacings = set(), set()
    for case in study.cases:
        image, label = (nifti.read(study.path(p)) for p in (case.image, case.label))
        assert image.shape == label.shape
        np.testing.assert_array_equal(image.affine, label.affine)
        codes.add("".join(nib.aff2axcodes(image.affine)))
        ras = nifti.to_ras(image)
        spacings.add(tuple(np.round(ras.spacing, 2)))
        # Oblique: no axis runs along the world's.
        assert np.abs(ras.affine[:3, :3] / ras.spacing).max() < 0.9999
        assert image.array.dtype == (np.int16 if case.modality == "ct" else np.float32)
    assert len(codes) > 8
    assert len(spacings) == 3


def test_study_file_and_plain_layout(study):
    again = Study.load(study.path("study.json"))
    assert again.to_dict() == study.to_dict()
    found = cases.init_study(study.folder)
    assert {(c.subject, c.modality) for c in found.cases} == {
        (c.subject, c.modality) for c in study.cases
    }
    assert set(found.labels.classes.values()) == {(1,), (2,)}


def test_same_seed_same_bytes(study, tmp_path):
    phantoms.write_study(tmp_path, size=48, depth=12, seed=4)
    for case in study.cases[:4]:
        original = pathlib.Path(study.path(case.image))
        assert (tmp_path / case.image).read_bytes() == original.read_bytes()
