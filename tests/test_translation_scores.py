import csv
import json
import math

import keras
import numpy as np
import pytest

from keras_unigan import cli, config, inference, networks, translation_scores
from keras_unigan.data import nifti
from keras_unigan.errors import CodedError
from keras_unigan.translation_scores import COPY, SCORES, SOURCE_SCORES

SHAPE = (24, 20, 4)
LABELS = config.Labels(classes={"organ": (1,), "lesion": (2,)})
WINDOWS = {
    "ct": config.Normalization("ct", mean=100.0, sd=100.0, low=-1.0, high=1.0),  # 0..200
    "hct": config.Normalization("ct", mean=1000.0, sd=100.0, low=-1.0, high=1.0),  # 900..1100
}


def make_plan():
    configurations = {"2d": config.Configuration((16, 16), 2, ((2, 2),), 4)}
    spacing = (1.0, 1.0, 2.0)
    return config.Plan("study", tuple(WINDOWS), LABELS, spacing, None, WINDOWS, configurations)


def anatomy(seed):
    label_map = np.zeros(SHAPE, np.uint8)
    label_map[4:20, 3:16] = 1
    label_map[8:12, 6 + seed : 10 + seed, 1:3] = 2
    return label_map


def image_of(label_map, modality):
    """Body -0.6, organ 0, lesion 0.8 in normalised units of both modalities, with noise."""
    normalised = np.choose(label_map, (-0.6, 0.0, 0.8))
    normalised = normalised + np.random.default_rng(0).normal(0, 0.02, SHAPE)
    low = {"ct": 0, "hct": 900}[modality]
    image = low + 100 * (normalised + 1)
    image[:2], image[-2:] = -1000, -1000
    return image.astype(np.float32)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    cases = []
    for seed, subject in enumerate("ab"):
        label_map = anatomy(seed)
        nifti.write(folder / f"{subject}_seg.nii", label_map, affine=np.diag([1.0, 1, 2, 1]))
        for modality in ("ct", "hct") if subject == "a" else ("hct",):
            name = f"{subject}_{modality}.nii"
            nifti.write(
                folder / name, image_of(label_map, modality), affine=np.diag([1.0, 1, 2, 1])
            )
            cases.append(config.Case(subject, modality, name, f"{subject}_seg.nii", "test"))
    study = config.Study("study", tuple(WINDOWS), LABELS, tuple(cases), folder=str(folder))
    study.save(folder / "study.json")
    return study


def segmentor():
    """Organ above -0.3 and lesion above 0.4, normalised."""
    image = keras.Input((None, None, 1))
    conv = keras.layers.Conv2D(3, 1)
    network = keras.Model(image, conv(image))
    network.spatial_dims = 2
    slope, offset = np.array([(0, 0), (1.0, 0.3), (2.0, -0.1)], "float32").T
    conv.set_weights([100 * slope.reshape(1, 1, 1, -1), 100 * offset])
    return inference.Predictor(network, make_plan())


def inventing(plan):
    """A translator that paints lesion where the left side of the organ was."""
    copy = translation_scores.copy_input(plan)

    def translate(patches, source, target, statistics):
        images = np.array(copy(patches, source, target, statistics))
        images[:, :8][images[:, :8] > -0.3] = 0.8
        return images

    return translate


def rows_of(study, translators, **options):
    plan = make_plan()
    rows = translation_scores.translation_rows(translators, plan, study, **options)
    return {(r["case"], r["target"], r["method"]): r for r in rows}


def test_scores_of_known_translators(study):
    plan = make_plan()
    translators = {"inventing": inventing(plan), COPY: translation_scores.copy_input(plan)}
    rows = rows_of(study, translators, segmentor=segmentor(), limit=2)
    assert list(rows) == [
        (case, target, method)
        for case, target in (("a_ct", "hct"), ("a_hct", "ct"))
        for method in ("inventing", COPY)
    ]
    # Both modalities show the same normalised image, so a copy is perfect here.
    copy = rows["a_ct", "hct", COPY]
    assert copy["paired"]
    assert copy["mae"] == pytest.approx(0, abs=1e-4)
    assert copy["psnr"] > 80
    assert copy["ssim"] == pytest.approx(1, abs=1e-4)
    assert copy["nmi"] > 1.8
    assert (copy["anatomy_dice"], copy["label_dice"], copy["hallucination"]) == (1.0, 1.0, 0.0)
    made = rows["a_ct", "hct", "inventing"]
    assert made["mae"] > 0.05
    assert made["ssim"] < 0.99
    assert made["psnr"] < 30
    lesion, organ = made["names"]["lesion"], made["names"]["organ"]
    assert lesion["hallucination"] > 0.5
    assert organ["hallucination"] == 0.0
    assert lesion["anatomy_dice"] == lesion["label_dice"] < 0.5 < organ["anatomy_dice"]
    assert made["hallucination"] == pytest.approx(lesion["hallucination"] / 2)
    assert (made["status"], made["message"], made["source"]) == ("ok", "", "ct")


def test_what_cannot_be_measured_is_nan(study):
    copy = {COPY: translation_scores.copy_input(make_plan())}
    row = rows_of(study, copy, known_modality=False)["b_hct", "ct", COPY]
    assert not row["paired"]
    measured = dict.fromkeys(SCORES, True) | dict.fromkeys(SOURCE_SCORES, False)
    assert {score: math.isnan(row[score]) for score in SCORES} == measured
    assert row["names"] == {}
    assert row["known_modality"] is False


def test_what_one_translator_does_not_serve_is_left_out_for_all(study):
    class OneWay:
        __call__ = staticmethod(translation_scores.copy_input(make_plan()))

        def serves(self, source, target):
            return (source, target) == ("hct", "ct")

    copy = translation_scores.copy_input(make_plan())
    rows = rows_of(study, {"one way": OneWay(), COPY: copy})
    cases = {c.id for c in study.cases if c.modality == "hct"}
    assert set(rows) == {(case, "ct", m) for case in cases for m in ("one way", COPY)}


def test_a_bad_case_and_a_bad_reference_are_told(study, tmp_path):
    folder = tmp_path / "private"
    affine = np.diag([1.0, 1, 2, 1])
    nifti.write(folder / "a_ct.nii", image_of(anatomy(0), "ct"), affine=affine)
    nifti.write(folder / "a_hct.nii", image_of(anatomy(0), "hct"), affine=2 * affine)
    cases = [config.Case("a", m, f"a_{m}.nii", None, "test") for m in WINDOWS]
    cases.append(config.Case("c", "ct", "none.nii", None, "test"))
    bad = config.Study("study", tuple(WINDOWS), LABELS, tuple(cases), folder=str(folder))
    copy = {COPY: translation_scores.copy_input(make_plan())}
    rows = rows_of(bad, copy)
    assert rows["a_ct", "hct", COPY]["message"] == "a_hct lies on another grid"
    assert rows["a_ct", "hct", COPY]["status"] == "ok"
    failed = rows["c_ct", "hct", COPY]
    assert failed["status"] == "KUG-D01"
    assert str(tmp_path) not in failed["message"]
    summary = translation_scores.summarize(list(rows.values()))
    assert (summary["cases"], summary["failed"]) == (3, 1)
    with pytest.raises(CodedError, match="KUG-D14 study: found no case in split 'val'"):
        rows_of(bad, copy, split="val")
    with pytest.raises(CodedError, match="KUG-T02 split: found 'tests'"):
        rows_of(bad, copy, split="tests")


def test_summary_means_over_cases_then_pairs():
    nan = float("nan")
    keys = ("source", "target", "method", "mae", "status", "case", "message")
    found = [
        ("ct", "t1", "m", 0.2, "ok", "a", "b lies on another grid"),
        ("ct", "t1", "m", 0.4, "ok", "b", ""),
        ("t1", "ct", "m", 0.9, "ok", "c", ""),
        ("t1", "ct", "m", nan, "KUG-D01", "d", "gone"),
        ("t1", "ct", COPY, 0.5, "ok", "c", ""),
    ]
    rest = {**dict.fromkeys(SCORES, nan), "paired": True}
    rows = [{**rest, **dict(zip(keys, row, strict=True))} for row in found]
    summary = translation_scores.summarize(rows)
    counts = [(t["n"], t["failed"], t["paired"], t["mae_n"]) for t in summary["table"]]
    assert counts == [(2, 0, 2, 2), (1, 1, 1, 1), (1, 0, 1, 1)]
    assert [t["ssim_n"] for t in summary["table"]] == [0, 0, 0]
    assert summary["problems"] == {"d": "gone"}
    assert summary["macro"]["m"]["mae"] == pytest.approx((0.3 + 0.9) / 2)
    assert summary["macro"][COPY]["mae"] == 0.5
    assert math.isnan(summary["macro"]["m"]["ssim"])
    assert (summary["cases"], summary["failed"]) == (4, 1)


def test_evaluate_command_adds_translations_to_a_run(study, tmp_path, capsys):
    keras.utils.set_random_seed(0)
    run = tmp_path / "run"
    make_plan().save(run / "plan.json")
    generator = networks.NETWORKS["UnifiedGenerator"](
        classes=3, domains=2, filters=2, strides=((2, 2),), se_levels=1
    )
    generator.save(run / "network.keras")
    command = ["evaluate", str(run), f"{study.folder}/study.json"]
    with pytest.raises(SystemExit) as end:
        cli.main([*command, "--limit", "1"])
    text = capsys.readouterr().out
    assert end.value.code == 0, text
    assert "translations, test split" in text
    saved = json.loads((run / "translation.json").read_text(), parse_constant=pytest.fail)
    assert [t["method"] for t in saved["table"]] == ["UnifiedGenerator", COPY]
    assert (saved["segmentor"], saved["split"], saved["cases"]) == ("run", "test", 1)
    with (run / "translation.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert tuple(lines[0]) == translation_scores.COLUMNS
    assert float(lines[0]["mae"]) == pytest.approx(saved["rows"][0]["mae"])
    assert (run / "metrics.json").exists()
    # The other way to predict has files of its own, so that nothing need be overwritten.
    with pytest.raises(SystemExit) as end:
        cli.main([*command, "--limit", "1", "--unknown-modality", "--quiet"])
    assert end.value.code == 0
    assert json.loads((run / "translation_unknown.json").read_text())["known_modality"] is False
    assert json.loads((run / "translation.json").read_text()) == saved

    # A run that only translates has no scores of its own, but another run may judge it.
    only = tmp_path / "only"
    make_plan().save(only / "plan.json")
    networks.NETWORKS["StarGANGenerator"](domains=2, filters=2, blocks=1).save(
        only / "network.keras"
    )
    summary = translation_scores.evaluate_run(only, study, segmentor=run, limit=1)
    assert not math.isnan(summary["macro"][COPY]["anatomy_dice"])
    with pytest.raises(SystemExit) as end:
        cli.main(["evaluate", str(only), command[2], "--limit", "1", "--json", "--overwrite"])
    assert end.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert found["translation"]["segmentor"] is None
    assert found["translation"]["macro"][COPY]["anatomy_dice"] is None
    assert "macro_dice" not in found
    assert not (only / "metrics.json").exists()


def test_one_grey_is_an_image_without_anatomy(study):
    def grey(patches, source, target, statistics):
        return np.full(patches.shape, -1.0, np.float32)

    row = rows_of(study, {"grey": grey}, segmentor=segmentor(), limit=1)["a_ct", "hct", "grey"]
    assert row["anatomy_dice"] == 0.0
    assert math.isnan(row["hallucination"])
