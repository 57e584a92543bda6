"""Pictures and X-rays: label maps of their kind and size, distances in pixels, six kinds."""

import csv
import dataclasses
import json
import math

import dicoms
import numpy as np
import pytest
from PIL import Image

from keras_unigan import cli, config, evaluation, inference, report
from keras_unigan.config import Case, Labels, Normalization, Plan, Study
from keras_unigan.data import nifti, phantoms, pictures, preprocessing, readers, volumes
from keras_unigan.errors import CodedError
from keras_unigan.pipelines import preprocess

LABELS = Labels(classes={"organ": (3,), "lesion": (9,)})
KINDS = ("mr", "ct", "pet", "spect", "xray", "microscopy")


def make_plan():
    sizes = config.Configuration((8, 8), 2, ((2, 2),), 4)
    known = Normalization("mr", mean=0.0, sd=1.0, low=-1.5, high=2.5)
    return Plan("s", ("ct", "xray"), LABELS, (1.0, 1.0, 1.0), None,
                {"ct": known, "xray": known}, {"2d": sizes})  # fmt: skip


def by_threshold(patches, modality, statistics):
    """Organ above 80, lesion above 160."""
    index = (patches[..., 0] > 80).astype(int) + (patches[..., 0] > 160)
    return np.eye(3, dtype=np.float32)[index]


def expected(pixels):
    return np.array([0, 3, 9], np.uint8)[(pixels > 80).astype(int) + (pixels > 160)]


@pytest.fixture
def pixels():
    """Rows and columns that no flip or turn leaves alike."""
    rows, columns = np.mgrid[:19, :26]
    return (rows * 6 + columns * 5 + (columns % 3)).clip(1, 250).astype(np.uint8)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg"])
def test_a_picture_gives_a_picture_of_its_size(name, pixels, tmp_path):
    source = tmp_path / name
    Image.fromarray(pixels).save(source)
    seen = pixels if name != "a.jpg" else np.asarray(Image.open(source))
    ((_, target),) = inference.outputs_for([source], tmp_path / "out", pictured=True)
    assert target.name == ("a_seg.tif" if name == "a.tif" else "a_seg.png")
    inference.segment(source, make_plan(), by_threshold, "xray", target)
    found = Image.open(target)
    assert (found.mode, found.size) == ("L", (26, 19))
    np.testing.assert_array_equal(np.asarray(found), expected(seen))
    # As NIfTI it has the same voxels in the grid that pictures are read with.
    inference.segment(source, make_plan(), by_threshold, "xray", tmp_path / "a.nii.gz")
    again = nifti.read(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(again.array[..., 0].T, expected(seen))


def test_an_xray_of_dicom_gives_nifti_or_what_was_asked_for(pixels, tmp_path):
    source = tmp_path / "x.dcm"
    dicoms.save(source, dicoms.dataset(pixels, "CR"))
    ((_, target),) = inference.outputs_for([source], tmp_path / "out", pictured=True)
    assert target.name == "x_seg.nii.gz"
    for output in (target, tmp_path / "x.png"):
        inference.segment(source, make_plan(), by_threshold, "xray", output)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "x.png")), expected(pixels))
    np.testing.assert_array_equal(nifti.read(target).array[..., 0].T, expected(pixels))


def test_stacks_and_what_cannot_be_a_picture(pixels, tmp_path):
    stack = np.stack([pixels, pixels // 2, pixels // 3])
    Image.fromarray(stack[0]).save(
        tmp_path / "s.tif", save_all=True, append_images=[Image.fromarray(p) for p in stack[1:]]
    )
    inference.segment(tmp_path / "s.tif", make_plan(), by_threshold, None, tmp_path / "o.tif")
    np.testing.assert_array_equal(
        volumes.read(tmp_path / "o.tif").array, expected(stack).transpose(2, 1, 0)
    )
    with pytest.raises(CodedError, match=r"KUG-T02 --output: found a \.png picture for 3 slices"):
        inference.segment(tmp_path / "s.tif", make_plan(), by_threshold, None, tmp_path / "o.png")
    nifti.write(tmp_path / "v.nii.gz", pixels[..., None], affine=np.eye(4))
    with pytest.raises(CodedError, match=r"KUG-T02 --output: found a .png picture of a volume"):
        inference.segment(
            tmp_path / "v.nii.gz", make_plan(), by_threshold, None, tmp_path / "o.png"
        )
    with pytest.raises(CodedError, match=r"a .jpg picture for 1 slices.*Nothing .* may be lost"):
        pictures.write(tmp_path / "o.jpg", np.zeros((2, 2, 1), np.uint8))
    with pytest.raises(
        CodedError, match=r"KUG-T02 --output: .*\.nii, \.nii\.gz, \.png, \.tif or a f"
    ):
        inference.outputs_for([tmp_path / "s.tif"], tmp_path / "o.jpg", pictured=True)
    assert not (tmp_path / "o.png").exists()


class _Threshold:
    """Stands in for a network: all that `evaluation` asks of a `Predictor`."""

    spatial_dims, plan = 2, make_plan()

    def __call__(self, patches, modality, statistics):
        return by_threshold(patches, modality, statistics)


def test_distances_of_pictures_are_in_pixels_and_never_averaged_with_mm(
    pixels, tmp_path, monkeypatch
):
    truth = np.roll(expected(pixels), 2, axis=1)
    for name, array in (("p.png", pixels), ("p_seg.png", truth)):
        Image.fromarray(array).save(tmp_path / name)
    for name, array in (("v.nii.gz", pixels), ("v_seg.nii.gz", truth)):
        nifti.write(tmp_path / name, array.T[..., None], affine=np.diag([0.5, 0.5, 3.0, 1.0]))
    study = Study("s", ("ct", "xray"), LABELS, (
        Case("p", "xray", "p.png", "p_seg.png", "test"),
        Case("v", "ct", "v.nii.gz", "v_seg.nii.gz", "test"),
    ), str(tmp_path))  # fmt: skip
    monkeypatch.setattr(inference, "predictor_of", lambda model: _Threshold())
    monkeypatch.setattr(_Threshold, "plan", dataclasses.replace(make_plan(), spacing=(1, 1, 1)))
    summary = evaluation.evaluate_run(tmp_path, study)
    by_modality = summary["modalities"]
    assert (by_modality["xray"]["unit"], by_modality["ct"]["unit"]) == ("px", "mm")
    assert by_modality["xray"]["hd95"] > 0
    assert summary["unit"] == "mixed"
    assert math.isnan(summary["macro_hd95"])
    assert summary["macro_dice"] > 0.5
    with open(tmp_path / "metrics.csv", encoding="utf-8") as file:
        assert [row["unit"] for row in csv.DictReader(file)] == ["px", "px", "mm", "mm"]
    assert json.loads((tmp_path / "metrics.json").read_text())["macro_hd95"] is None
    page = report.write(tmp_path).read_text(encoding="utf-8")
    assert page.count("<td>px</td>") == 3
    assert page.count("<td>mm</td>") == 3
    assert "<td>mixed</td>" in page
    assert "px: pixels" in page
    only = dataclasses.replace(study, cases=study.cases[:1])
    assert evaluation.evaluate_run(tmp_path, only)["unit"] == "px"


@pytest.mark.parametrize("modality", ["pet", "spect", *phantoms.FLAT])
def test_phantoms_of_each_kind(modality):
    flat = modality in phantoms.FLAT
    for seed in range(4):
        image, labels = phantoms.volume(seed, modality, (64, 64, 1 if flat else 24))
        assert set(np.unique(labels)) == {0, 1, 2}
        assert image.min() >= 0
        if modality != "pet":
            assert (image == np.rint(image)).all()
        assert image.max() <= (255 if flat else 20 if modality == "pet" else 1000)
        background = 240 if modality in ("microscopy", "he") else 0
        assert preprocessing.background_value(image) == background
        # The best interval of intensities per class leaves much undone.
        for value in (1, 2):
            truth = labels == value
            low, high = np.percentile(image[truth], (2, 98), axis=0)
            found = (image >= low) & (image <= high)
            # Of colours, the voxels where all three fit.
            found = found.all(axis=-1) if found.ndim > labels.ndim else found
            assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) < 0.85


def test_six_kinds_in_one_study(tmp_path):
    study = phantoms.write_study(tmp_path / "study", KINDS, 2, size=48, depth=8, seed=1)
    kinds = {c.modality: volumes.ending(c.image) for c in study.cases}
    assert kinds == {**dict.fromkeys(KINDS[:4], ".nii.gz"), **dict.fromkeys(KINDS[4:], ".png")}
    for case in study.cases:
        image, label = (volumes.read(study.path(n)) for n in (case.image, case.label))
        assert image.shape == label.shape
        np.testing.assert_array_equal(image.affine, label.affine)
        assert image.spacing_known == (case.modality not in phantoms.FLAT)
        assert set(np.unique(label.array)) == {0, 1, 2}
    # `unigan init` finds all of them; a picture that names no modality is a preview.
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "study" / "overview.png")
    found = readers.read(study.folder)
    assert {(c.image, c.label) for c in found.cases} == {
        (study.path(c.image), study.path(c.label)) for c in study.cases
    }
    assert found.left == (str(tmp_path / "study" / "overview.png"),)
    shards = tmp_path / "shards"
    done = preprocess.run(["--study", str(tmp_path / "study/study.json"), "--output", str(shards)])
    assert (done["cases"], done["dead_letters"]) == (12, 0)
    plan = Plan.load(shards / "plan.json") if (shards / "plan.json").is_file() else None
    plan = plan or Plan.from_dict(json.loads((shards / "shards.json").read_text())["plan"])
    assert {m: plan.normalization[m].scheme for m in KINDS} == {
        "mr": "mr", "ct": "ct", "pet": "pet_suv", "spect": "spect_counts", "xray": "xray",
        "microscopy": "microscopy",
    }  # fmt: skip


@pytest.mark.slow
def test_demo_of_six_kinds(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["demo", "--modalities", ",".join(KINDS), "-o", str(tmp_path / "demo"),
                  "--steps", "40", "--json"])  # fmt: skip
    assert not stop.value.code
    result = json.loads(capsys.readouterr().out)
    assert set(result["scores"]["modalities"]) == set(KINDS)
    assert result["scores"]["failed"] == 0
    assert result["scores"]["unit"] == "mixed"
    assert result["macro_dice"] > 0.2
