import csv
import dataclasses
import json
import math

import hypothesis
import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import keras
import numpy as np
import pytest

from keras_unigan import aggregation, alarm, config, evaluation, inference, metrics, prediction
from keras_unigan.cli import common, using
from keras_unigan.data import nifti
from keras_unigan.errors import CodedError

CLASSES = config.Labels(classes={"organ": (3, 4), "lesion": (9,)})
REGIONS = config.Labels(regions={"whole": (1, 2), "core": (2,)})
SHAPE, SPACING = (12, 10, 4), (1.0, 2.0, 3.0)


def make_plan(labels=CLASSES):
    # Raw 0..200 becomes -1..1 in both modalities.
    window = config.Normalization("ct", mean=100.0, sd=100.0, low=-1.0, high=1.0)
    configurations = {"2d": config.Configuration((8, 8), 2, ((2, 2),), 4)}
    return config.Plan(
        "study",
        ("ct", "t1"),
        labels,
        SPACING,
        None,
        {"ct": window, "t1": window},
        configurations,
    )


@keras.saving.register_keras_serializable(package="test_evaluation")
class Threshold(keras.Model):
    """First name above 50, second above 150 raw units (-0.5 and 0.5 normalised)."""

    spatial_dims, channels = 2, 1

    def __init__(self, outputs, name="threshold"):
        image = keras.Input((None, None, 1))
        super().__init__(image, keras.layers.Conv2D(outputs, 1)(image), name=name)
        self.outputs_wanted = outputs

    def get_config(self):
        return {"outputs": self.outputs_wanted, "name": self.name}


def threshold_network(labels=CLASSES):
    slopes = [(1.0, 0.5), (1.0, -0.5)] if labels.overlapping else [(0, 0), (1.0, 0.5), (2.0, 0.0)]
    network = Threshold(len(slopes))
    slope, offset = np.array(slopes, "float32").T
    network.set_weights([100 * slope.reshape(1, 1, 1, -1), 100 * offset])
    return network


def boxes(organ, lesion=None):
    """Intensities of an organ (100) with a lesion (200) in air (0)."""
    image = np.zeros(SHAPE, np.float32)
    image[organ] = 100
    if lesion is not None:
        image[lesion] = 200
    return image


ORGAN = (slice(2, 9), slice(2, 8), slice(0, 3))
LESION = (slice(3, 6), slice(4, 6), slice(1, 2))


def write_study(folder, labels=CLASSES, extra=()):
    """Five test cases whose scores are known; the prediction is always what the image shows."""
    truth = np.zeros(SHAPE, np.uint8)
    truth[ORGAN], truth[LESION] = 3, 9
    shifted = np.roll(truth, 1, axis=1)
    only_organ = np.where(truth == 9, 4, truth)
    unlabelled = truth.copy()
    unlabelled[7:9] = 255
    broken = boxes(ORGAN, LESION)
    broken[0, 0, 1] = np.nan
    made = {
        ("a", "ct"): (boxes(ORGAN, LESION), shifted),
        ("b", "ct"): (boxes(ORGAN), only_organ),
        ("c", "t1"): (boxes(ORGAN), truth),
        ("d", "t1"): (broken, truth),
        ("e", "t1"): (boxes((slice(2, 12), *ORGAN[1:]), LESION), unlabelled),
    }
    cases = []
    for (subject, modality), (image, label) in {**made, **dict(extra)}.items():
        affine = np.diag([*SPACING, 1.0])
        nifti.write(folder / f"{subject}.nii.gz", image, affine=affine)
        # Stored the other way round: the same world, other axes.
        flip = np.diag([-1.0, 1, 1, 1])
        flip[0, 3] = SHAPE[0] - 1
        flipped = np.ascontiguousarray(label[::-1].transpose(1, 0, 2))
        nifti.write(
            folder / f"{subject}_seg.nii.gz", flipped, affine=(affine @ flip)[:, [1, 0, 2, 3]]
        )
        cases.append(
            config.Case(subject, modality, f"{subject}.nii.gz", f"{subject}_seg.nii.gz", "test")
        )
    cases.append(config.Case("f", "ct", "f.nii.gz", None, "test"))
    study = config.Study("study", ("ct", "t1"), labels, tuple(cases), folder=str(folder))
    study.save(folder / "study.json")
    return study


@pytest.fixture
def study(tmp_path):
    return write_study(tmp_path)


def score(study, labels=CLASSES, **options):
    model = (threshold_network(labels), make_plan(labels))
    scored = list(evaluation.score_cases(model, study, **options))
    return {(s.case.subject, row["name"]): row for s in scored for row in s.rows}, scored


def test_rows_of_known_cases(study):
    rows, scored = score(study)
    assert [s.case.subject for s in scored] == list("abcde")  # f has no label map
    truth = np.zeros(SHAPE, bool)
    truth[LESION] = True
    shifted = np.roll(truth, 1, axis=1)
    lesion = rows["a", "lesion"]
    assert lesion["dice"] == pytest.approx(metrics.dice(shifted, truth)) == pytest.approx(0.5)
    assert lesion["hd95"] == pytest.approx(metrics.hd95(shifted, truth, SPACING))
    assert lesion["assd"] == pytest.approx(1.0)  # half of the voxels move by 2 mm
    assert (lesion["n_true"], lesion["n_pred"], lesion["status"]) == (6, 6, "ok")
    assert (lesion["case"], lesion["modality"], lesion["known_modality"]) == ("a_ct", "ct", True)
    # A merged class is one class, and a lesion that nobody has is not scored.
    assert rows["b", "organ"]["dice"] == 1.0
    assert rows["b", "lesion"]["status"] == "undefined"
    assert lesion["iou"] == pytest.approx(1 / 3)
    assert lesion["nsd"] == 1.0  # 2 mm off, and as much allowed
    assert (lesion["lesions_true"], lesion["lesions_pred"], lesion["lesions_found"]) == (1, 1, 1)
    assert (lesion["lesion_f1"], lesion["volume_similarity"]) == (1.0, 1.0)
    assert lesion["volume_true_ml"] == pytest.approx(6 * 6 / 1000)
    assert (lesion["volume_error_ml"], lesion["volume_error"]) == (0.0, 0.0)
    assert (rows["c", "lesion"]["volume_error"], rows["c", "lesion"]["false_positives"]) == (-1, 0)
    assert math.isnan(rows["b", "lesion"]["dice"])
    missed = rows["c", "lesion"]
    diagonal = float(np.linalg.norm(np.multiply(SHAPE, SPACING)))
    assert (missed["status"], missed["dice"], missed["hd95"]) == ("missed", 0.0, diagonal)
    # Not labelled from x = 7 to 8: what is predicted there is neither right nor wrong.
    organ = rows["e", "organ"]
    wrong, right = 3 * 6 * 3, 5 * 6 * 3 - 6
    assert (organ["n_true"], organ["n_pred"]) == (right, right + wrong)
    assert organ["dice"] == pytest.approx(2 * right / (2 * right + wrong))


def test_a_bad_case_becomes_rows_with_its_code(study):
    rows, scored = score(study)
    for name in ("organ", "lesion"):
        row = rows["d", name]
        assert row["status"] == "KUG-D06"
        assert row["message"].startswith("KUG-D06 d_t1: found 1 NaN")
        # Counts as if everything had been missed, whatever the model would have found.
        diagonal = float(np.linalg.norm(np.multiply(SHAPE, SPACING)))
        assert (row["dice"], row["nsd"], row["lesion_f1"]) == (0.0, 0.0, 0.0)
        assert (row["hd95"], row["assd"], row["unit"]) == (diagonal, diagonal, "mm")
        assert row["n_true"] == {"organ": 7 * 6 * 3 - 6, "lesion": 6}[name]
    assert scored[3].image is None


def test_missing_files_and_wrong_labels_are_rows_too(tmp_path):
    study = write_study(tmp_path)
    (tmp_path / "a.nii.gz").unlink()
    (tmp_path / "b_seg.nii.gz").write_bytes(b"garbage")
    affine = np.diag([*SPACING, 1.0])
    nifti.write(tmp_path / "c_seg.nii.gz", np.full(SHAPE, 77, np.uint8), affine=affine)
    nifti.write(tmp_path / "e_seg.nii.gz", np.zeros(SHAPE, np.uint8), affine=2 * affine)
    rows, _ = score(study)
    codes = [rows[s, "organ"]["status"] for s in "abcde"]
    assert codes == ["KUG-D01", "KUG-D07", "KUG-D05", "KUG-D06", "KUG-D04"]
    assert rows["a", "organ"]["message"].startswith("KUG-D01 a.nii.gz: found no such file")
    # Of a label map that nothing reads, nobody knows how far off a prediction may be.
    assert rows["b", "organ"]["hd95"] == math.inf
    assert rows["b", "organ"]["n_true"] is None
    summary = evaluation.summarize(list(rows.values()))
    assert summary["macro_hd95"] == math.inf
    assert summary["macro_dice"] == 0.0


def test_a_modality_that_the_model_never_saw_is_a_row_unless_unknown(study):
    plan = make_plan()
    window = {"ct": plan.normalization["ct"]}
    plan = dataclasses.replace(plan, modalities=("ct",), normalization=window)
    model = (threshold_network(), plan)
    status = {
        known: [s.rows[0]["status"] for s in evaluation.score_cases(model, study, "test", known)]
        for known in (True, False)
    }
    assert status[True] == ["ok", "ok", "KUG-T03", "KUG-D06", "KUG-T03"]
    assert [s for s in status[False] if s.startswith("KUG")] == ["KUG-D06"]


def test_scores_follow_their_options(study):
    strict = evaluation.ScoreOptions(hd95="max", tolerance=1.0, lesion_overlap=0.4)
    loose, _ = score(study, limit=1)
    rows, _ = score(study, limit=1, options=strict)
    one, other = rows["a", "lesion"], loose["a", "lesion"]
    assert (one["nsd"], one["lesion_f1"]) == (0.5, 0.0)
    assert (other["nsd"], other["lesion_f1"]) == (1.0, 1.0)
    truth = np.zeros(SHAPE, bool)
    truth[LESION] = True
    worked = metrics.hd95(np.roll(truth, 1, axis=1), truth, SPACING, "max")
    assert one["hd95"] == worked
    wrong = {"hd95": "mean", "tolerance": -1.0, "lesion_overlap": 0.0}
    for name, value in wrong.items():
        with pytest.raises(CodedError, match=f"KUG-T02 {name}: found"):
            evaluation.ScoreOptions(**{name: value})


def test_regions_are_scored_one_by_one(tmp_path):
    image = boxes(ORGAN, LESION)
    label = np.where(image == 200, 2, np.where(image == 100, 1, 0)).astype(np.uint8)
    label[ORGAN[0], ORGAN[1], 2] = 0
    study = write_study(tmp_path, REGIONS, [(("a", "ct"), (image, label))])
    rows, _ = score(study, REGIONS, limit=1)
    assert rows["a", "core"]["dice"] == 1.0
    assert rows["a", "whole"]["dice"] == pytest.approx(2 * 84 / (84 + 126))
    assert (rows["a", "whole"]["n_true"], rows["a", "whole"]["n_pred"]) == (84, 126)


def test_unknown_modality_uses_the_volumes_own_range(tmp_path):
    # Twice the intensities: only the volume's own percentiles put them right.
    bright = 2 * boxes(ORGAN, LESION)
    truth = np.zeros(SHAPE, np.uint8)
    truth[ORGAN], truth[LESION] = 3, 9
    study = write_study(tmp_path, CLASSES, [(("a", "ct"), (bright + 1, truth))])
    known, _ = score(study, limit=1)
    unknown, _ = score(study, limit=1, known_modality=False)
    assert known["a", "organ"]["dice"] == 0.0
    assert unknown["a", "lesion"]["dice"] == 1.0
    assert unknown["a", "lesion"]["known_modality"] is False


def test_what_was_not_annotated_has_no_score(study):
    # Label maps as they are: of `a` the lesion is not to count, of the broken `d` the organ.
    marked = {"a": ("organ",), "d": ("lesion",)}
    cases = [dataclasses.replace(c, annotated=marked.get(c.subject)) for c in study.cases]
    partly = dataclasses.replace(study, cases=tuple(cases))
    whole, _ = score(study)
    rows, scored = score(partly)
    hidden = {("a", "lesion"), ("d", "organ")}
    for key, found in rows.items():
        assert set(found) == set(whole[key])
        if key in hidden:
            assert found["status"] == "unannotated"
            assert all(math.isnan(found[s]) for s in evaluation.SCORES)
            assert (found["n_true"], found["case"]) == (None, whole[key]["case"])
        elif key != ("a", "organ"):
            np.testing.assert_equal({**found, "seconds": 0}, {**whole[key], "seconds": 0})
    assert rows["d", "organ"]["message"] == rows["d", "lesion"]["message"] != ""
    summary = evaluation.summarize([row for s in scored for row in s.rows])
    assert (summary["cases"], summary["failed"], summary["unannotated"]) == (5, 1, 2)
    ct_lesion, t1_organ = (
        next(r for r in summary["table"] if (r["modality"], r["name"]) == key)
        for key in (("ct", "lesion"), ("t1", "organ"))
    )
    assert (ct_lesion["n"], ct_lesion["undefined"], ct_lesion["unannotated"]) == (0, 1, 1)
    # The broken case counts as the worst for what it should have shown, and for nothing else.
    assert (t1_organ["n"], t1_organ["failed"], t1_organ["unannotated"]) == (2, 0, 1)
    assert summary["modalities"]["t1"]["failed"] == 1


def test_studies_that_do_not_fit_are_refused(study):
    with pytest.raises(CodedError, match=r"KUG-T02 split: found 'tests'"):
        score(study, split="tests")
    with pytest.raises(CodedError, match=r"KUG-D14 study: found no labelled case in split 'val'"):
        score(study, split="val")
    with pytest.raises(CodedError, match=r"KUG-T04 labels: .*'core': \[2\].*'organ': \[3, 4\]"):
        list(evaluation.score_cases((threshold_network(REGIONS), make_plan(REGIONS)), study))


def row(modality, name, dice, status="ok", seconds=1.0):
    scores = {"dice": dice, "hd95": 10 * dice, "assd": dice, "unit": "mm"}
    scores |= dict.fromkeys(set(evaluation.SCORES) - set(scores), dice)
    head = {"case": f"{modality} {status}", "modality": modality, "name": name}
    return {**head, **scores, "status": status, "seconds": seconds}


def test_summary_means_over_cases_then_names_then_modalities():
    nan = float("nan")
    rows = [
        *(row("ct", "organ", 0.8), row("ct", "lesion", 0.4)),
        *(row("ct", "organ", 0.6), row("ct", "lesion", nan, "undefined")),
        *(row("t1", "organ", 1.0), row("t1", "lesion", 0.0, "missed")),
        *(row("t1", "organ", 0.0, "KUG-D06", nan), row("t1", "lesion", 0.0, "KUG-D06", nan)),
    ]
    for failing in rows[-2:]:
        failing |= {"hd95": 60.0, "assd": 60.0}
    summary = evaluation.summarize(rows)
    assert (summary["cases"], summary["failed"]) == (4, 1)
    ct, t1 = (summary["modalities"][m] for m in ("ct", "t1"))
    # The case that could not be used counts as 0.
    assert (ct["dice"], t1["dice"]) == pytest.approx(((0.7 + 0.4) / 2, 0.25))
    assert summary["macro_dice"] == pytest.approx((0.55 + 0.25) / 2)
    assert summary["macro_hd95"] == pytest.approx((5.5 + (10 + 60 + 0 + 60) / 4) / 2)
    assert (summary["undefined"], ct["undefined"], t1["undefined"]) == (1, 1, 0)
    organ, lesion, _, t1_lesion = summary["table"]
    assert (organ["n"], organ["dice_mean"]) == (2, pytest.approx(0.7))
    assert organ["dice_sd"] == pytest.approx(math.sqrt(0.02))
    assert (lesion["n"], lesion["undefined"], lesion["failed"]) == (1, 1, 0)
    assert math.isnan(lesion["dice_sd"])
    assert (t1_lesion["n"], t1_lesion["missed"], t1_lesion["failed"]) == (2, 1, 1)
    # Every mean says of how many; biases have no value where a case failed.
    assert (t1_lesion["dice_n"], lesion["dice_n"], t1_lesion["false_positives_n"]) == (2, 1, 0)
    # Rows of another time, without numbers for a failed case, count as the worst too.
    for failing in rows[-2:]:
        failing |= dict.fromkeys(("dice", "hd95", "assd"), None)
    again = evaluation.summarize(rows)
    assert (again["macro_dice"], again["macro_hd95"]) == (summary["macro_dice"], math.inf)
    assert math.isnan(again["table"][2]["hd95_sd"])


WORSE = {score: -sign for score, (_, sign) in aggregation.SCORES.items()}
cohorts = arrays.arrays(bool, (2, 4, 2, 4, 3, 2))  # truth and prediction, cases, names, voxels
places = (st.integers(0, 3), st.integers(0, 1))


def rows_of(truth, prediction):
    """Rows of four cases: two modalities of two cases each, two names."""
    common = {"known_modality": True, "seconds": 0.0, "message": ""}
    return [
        {**common, "modality": ("ct", "t1")[i % 2], "case": str(i), **line}
        for i, pair in enumerate(zip(truth, prediction, strict=True))
        for line in evaluation.score_masks(*pair, ("organ", "lesion"), (1.0, 1.0, 2.0))
    ]


def assert_never_better(before, after):
    """No mean of `after` is better than that of `before`, and none vanished."""
    pairs = [(before, after, "macro_{}")]
    pairs += [(before["modalities"][m], after["modalities"][m], "{}") for m in ("ct", "t1")]
    pairs += [(*lines, "{}_mean") for lines in zip(before["table"], after["table"], strict=True)]
    for old, new, key in pairs:
        for score, sign in WORSE.items():
            one, other = old[key.format(score)], new[key.format(score)]
            if not math.isnan(one):
                assert sign * other >= sign * one - 1e-9, (score, old, new)


@hypothesis.given(cohorts, *places)
@hypothesis.settings(max_examples=30, deadline=None)
def test_deleting_the_prediction_of_something_present_never_helps(masks, case, name):
    truth, prediction = masks
    hypothesis.assume(truth[case, name].any())
    emptied = prediction.copy()
    emptied[case, name] = False
    before, after = (evaluation.summarize(rows_of(truth, p)) for p in (prediction, emptied))
    assert_never_better(before, after)
    assert [line["n"] for line in after["table"]] == [line["n"] for line in before["table"]]


@hypothesis.given(cohorts, st.lists(st.integers(0, 3), min_size=1))
@hypothesis.settings(max_examples=30, deadline=None)
def test_a_case_that_cannot_be_used_never_helps(masks, dropped):
    rows = rows_of(*masks)
    before = evaluation.summarize(rows)
    for known in (True, False):
        failing = [dict(row) for row in rows]
        for row in failing:
            if int(row["case"]) in dropped:
                diagonal = metrics.diagonal((4, 3, 2), (1.0, 1.0, 2.0))
                distances = dict.fromkeys(aggregation.DISTANCES, diagonal)
                scores = {**dict.fromkeys(aggregation.SCORES, 0.0), **distances}
                unknown = dict.fromkeys(aggregation.SCORES)
                row |= {"status": "KUG-D06", **(scores if known else unknown)}
        after = evaluation.summarize(failing)
        assert_never_better(before, after)
        assert after["failed"] == len(set(dropped))
        # Each line says how many cases its means are of.
        for line, old in zip(after["table"], before["table"], strict=True):
            assert line["n"] + line["undefined"] == old["n"] + old["undefined"] == 2
            assert line["dice_n"] == line["n"]


def test_run_folder_gets_json_csv_and_slices(tmp_path):
    run = tmp_path / "run"
    make_plan().save(run / "plan.json")
    threshold_network().save(run / "network.keras")
    truth = np.zeros(SHAPE, np.uint8)
    truth[ORGAN] = 3
    extra = {(s, "ct"): (boxes(ORGAN), np.roll(truth, i, 0)) for i, s in enumerate("xyz")}
    write_study(tmp_path / "study", extra=extra.items())
    said = []
    summary = evaluation.evaluate_run(run, tmp_path / "study" / "study.json", say=said.append)
    assert summary["outputs"] == [str(run / "metrics.json"), str(run / "metrics.csv")]
    assert said[3].startswith("d_t1: KUG-D06")

    saved = json.loads((run / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert saved["macro_dice"] == pytest.approx(summary["macro_dice"])
    assert (saved["split"], saved["known_modality"], saved["failed"]) == ("test", True, 1)
    own = [r["dice"] for r in saved["rows"] if r["case"] == "a_ct"]
    assert said[0] == f"a_ct: Dice {np.mean(own):.3f}"
    assert (saved["labelled"], saved["options"]["hd95"]) == (8, "pooled")
    entry = json.loads((run / "run.json").read_text())[-1]
    assert (entry["command"], entry["settings"]["split"]) == ("evaluate", "test")
    assert entry["macro_dice"] == saved["macro_dice"]
    assert len(entry["inputs"]["study_sha256"]) == 64
    with (run / "metrics.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(saved["rows"]) == 16
    assert lines[3]["dice"] == ""  # undefined
    assert float(lines[0]["dice"]) == pytest.approx(saved["rows"][0]["dice"])

    ranks = {(o["modality"], o["rank"]): o for o in saved["overlays"]}
    places = [("ct", "best"), ("ct", "median"), ("ct", "worst"), ("t1", "best"), ("t1", "worst")]
    assert sorted(ranks) == places
    assert ranks["ct", "best"]["dice"] == 1.0
    assert sorted(p.name for p in (run / "samples").iterdir()) == sorted(
        o["file"].removeprefix("samples/") for o in saved["overlays"]
    )
    overlay = np.load(run / ranks["t1", "best"]["file"])
    assert list(overlay["names"]) == ["organ", "lesion"]
    assert overlay["image"].shape == (len(overlay["slices"]), *SHAPE[:2])
    assert overlay["truth"].shape == (len(overlay["slices"]), 2, *SHAPE[:2])
    assert overlay["middle"] in overlay["slices"]

    again = evaluation.evaluate_run(run, tmp_path / "study" / "study.json", known_modality=False)
    assert again["outputs"][0].endswith("metrics_unknown.json")
    assert (run / "samples" / "unknown-0000.npz").exists()
    assert (run / ranks["ct", "best"]["file"]).exists()


def test_a_case_that_raises_the_alarm_is_told_and_counts(tmp_path, capsys):
    class Heard:
        plan, threshold = make_plan(), 3.0

        def read(self, prepared, modality):
            return alarm.Reading(9.0 if modality == "t1" else 3.0, self.threshold, "ct", "image")

    study = write_study(tmp_path / "study")
    network = inference.Predictor(threshold_network(), make_plan())
    (tmp_path / "run").mkdir()
    heard = prediction.Ensemble([network], alarm=Heard())
    with_alarm = evaluation.evaluate_run(heard, study, output=tmp_path / "run")
    raised = [c.id for c in study.cases if c.modality == "t1" and c.label and c.id != "d_t1"]
    assert with_alarm["alarm"] == {"threshold": 3.0, "raised": raised}
    assert list(with_alarm["problems"]) == ["d_t1"]
    rows = json.loads((tmp_path / "run" / "metrics.json").read_text())["rows"]
    found = {row["case"]: (row["alarm"], row["alarm_raised"]) for row in rows}
    assert found == {
        "d_t1": (None, None),
        **{c.id: (9.0, True) if c.id in raised else (3.0, False) for c in study.cases
           if c.label and c.id != "d_t1"},
    }  # fmt: skip
    using.show_scores(common.Printer(), with_alarm)
    said = " ".join(capsys.readouterr().out.split())
    assert "d_t1: KUG-D06 d_t1: found" in said
    count = f"{len(raised)} of {with_alarm['cases']} cases are unlike those of training"
    assert f"{count} (KUG-D38, above 3), and count like the others: {', '.join(raised)}" in said
    # No score is another for it.
    without = evaluation.evaluate_run((network.network, make_plan()), study, output=tmp_path)
    assert without["alarm"] is None
    assert without["table"] == pytest.approx(with_alarm["table"], nan_ok=True)


@pytest.mark.parametrize(
    ("count", "ranks"),
    [(1, ["only"]), (2, ["best", "worst"]), (3, ["best", "median", "worst"])],
)
def test_ranks_of_few_cases(count, ranks):
    candidates = [{"modality": "ct", "dice": 0.1 * i} for i in range(count)]
    candidates.append({"modality": "ct", "dice": float("nan")})
    chosen = evaluation.best_median_worst(candidates)
    assert [c["rank"] for c in chosen] == ranks
    assert chosen[0]["dice"] == pytest.approx(0.1 * (count - 1))
