"""`unigan tune`: what validation cases teach, and that no other case does."""

import json

import nibabel as nib
import numpy as np
import pytest
from commands import unigan
from stub_runs import AFFINE, LABELS, SHAPE, write_run

from keras_unigan import config, evaluation, prediction, tuning
from keras_unigan.data import nifti
from keras_unigan.errors import CodedError
from keras_unigan.exporting import cards
from keras_unigan.postprocessing import LARGEST, Step

ORGAN = (slice(2, 7), slice(2, 6), slice(1, 3))


def write_study(folder, crumbs, seen=()):
    """One case a subject; in those of `crumbs` the image shows a crumb that is no organ.

    Args:
        folder: Made here.
        crumbs: Subject -> (split, whether there is a crumb).
        seen: Subjects whose organ is in two parts, so that taking out one of them would hurt.
    """
    cases = []
    for number, (subject, (split, crumb)) in enumerate(crumbs.items()):
        label = np.zeros(SHAPE, np.uint8)
        label[ORGAN] = 3
        if subject in seen:
            label[9:11, 7:9, 1] = 3
        image = np.where(label, 140, 60).astype(np.float32)
        image[0, 0, 0] = 59
        if crumb:
            image[10, 8, 3] = 140
        modality = ("ct", "t1")[number % 2]
        for name, array in ((f"{subject}_{modality}", image), (f"{subject}_seg", label)):
            nifti.write(folder / f"{name}.nii", array, affine=AFFINE)
        names = f"{subject}_{modality}.nii", f"{subject}_seg.nii"
        cases.append(config.Case(subject, modality, *names, split))
    study = config.Study("study", ("ct", "t1"), LABELS, tuple(cases), folder=str(folder))
    study.save(folder / "study.json")
    return folder / "study.json"


CASES = {
    "a": ("train", False), "b": ("train", False), "c": ("val", True),
    "d": ("val", True), "e": ("test", True), "f": ("test", False),
}  # fmt: skip


def test_validation_teaches_and_test_is_scored(tmp_path, capsys):
    # In test subject f a second part is true: had it been looked at, nothing would be taken out.
    study, run = write_study(tmp_path, CASES, seen="f"), write_run(tmp_path / "run", seen="ab")
    assert unigan("evaluate", run, study, "--quiet") == 0
    before = json.loads((run / "metrics.json").read_text())
    assert unigan("tune", run, study) == 0
    said = capsys.readouterr().out
    assert "kept: largest component of all foreground" in said
    assert "No alarm for scans unlike those of training: no discriminator" in said
    learned = json.loads((run / "postprocessing.json").read_text())
    assert learned["steps"] == [{"kind": LARGEST, "name": None, "larger_than": None}]
    assert learned["cases"] == ["c_ct", "d_t1"]
    assert (learned["subjects"], learned["failed"]) == (2, {})
    assert learned["dice_before"] == pytest.approx(80 / 81)
    assert learned["dice_after"] == 1.0
    assert learned["method"]["known_modality"] is True
    assert unigan("evaluate", run, study, "--overwrite") == 0
    assert "Post-processing learnt on validation: largest" in capsys.readouterr().out
    after = json.loads((run / "metrics.json").read_text())
    assert after["method"]["postprocessing"] == learned["steps"]
    assert before["method"]["postprocessing"] == []
    pairs = zip(before["rows"], after["rows"], strict=True)
    dice = {new["case"]: (old["dice"], new["dice"]) for old, new in pairs}
    assert dice["e_ct"] == (pytest.approx(80 / 81), 1.0)
    assert dice["f_t1"] == (1.0, pytest.approx(80 / 84))
    # An exported model does not do it, and its card says so.
    (scores,) = cards.facts_of_run(run)["metrics"].values()
    assert scores["not_in_model"] == ["post-processing"]
    more = {"runs": ["a", "b"], "tta": "mirror", "postprocessing": []}
    assert cards.beyond_model(more) == ["the mean of 2 runs", "the mean over views (mirror)"]
    assert cards.beyond_model(before["method"]) == []
    # The run's own record says what was done, so that it can be done again.
    entries = json.loads((run / "run.json").read_text())
    assert [e["settings"]["method"]["postprocessing"] for e in entries] == [[], learned["steps"]]
    assert unigan("tune", run, study) == 2
    assert "KUG-E02" in capsys.readouterr().err


def test_a_run_that_saw_validation_cases_is_refused(tmp_path, capsys):
    study, run = write_study(tmp_path, CASES), write_run(tmp_path / "run", seen="abd")
    assert unigan("tune", run, study) == 3
    error = capsys.readouterr().err
    assert error.startswith("KUG-D13 split val: found 1 cases that the run was trained on, e.g. d_")
    assert not (run / "postprocessing.json").exists()


def test_folds_are_predicted_by_those_that_did_not_see_them(tmp_path, monkeypatch, capsys):
    crumbs = {**CASES, "a": ("train", True), "b": ("train", True)}
    study = write_study(tmp_path, crumbs)
    runs = [write_run(tmp_path / n, s, seen=t) for n, s, t in (("x", 8.0, "acd"), ("y", 6.0, "b"))]
    asked = {}
    segment = prediction.Ensemble.segment_volume

    def note(self, volume, modality=None, **options):
        asked[options["where"]] = self.names
        return segment(self, volume, modality, **options)

    with monkeypatch.context() as patched:
        patched.setattr(prediction.Ensemble, "segment_volume", note)
        assert unigan("tune", *runs, study, "-o", tmp_path / "mean") == 0
    # Of the validation cases only y is a stranger; of the training ones x, or y; no test case.
    assert asked == {"a_ct": ["y"], "b_t1": ["x"], "c_ct": ["y"], "d_t1": ["y"]}
    learned = json.loads((tmp_path / "mean" / "postprocessing.json").read_text())
    assert learned["cases"] == ["c_ct", "d_t1", "a_ct", "b_t1"]
    assert learned["method"]["runs"] == ["x", "y"]
    # The folder stands for the mean of both, with what was learnt for it.
    assert unigan("evaluate", tmp_path / "mean", study) == 0
    assert "Mean of 2 runs: x, y" in capsys.readouterr().out
    scores = json.loads((tmp_path / "mean" / "metrics.json").read_text())
    assert scores["method"] == {
        "runs": ["x", "y"],
        "tta": "none",
        "postprocessing": learned["steps"],
    }
    assert scores["macro_dice"] == 1.0
    assert not (runs[0] / "metrics.json").exists()
    found = prediction.predict(tmp_path / "mean", nib.load(tmp_path / "e_ct.nii"), "ct")
    np.testing.assert_array_equal(found.dataobj, nib.load(tmp_path / "e_seg.nii").dataobj)


def test_runs_without_an_audit_are_taken_to_have_seen_all_training_cases(tmp_path):
    study = config.Study.load(write_study(tmp_path, CASES))
    for seen, numbers in (([None], [0]), ([None, {"b"}], [0, 1])):
        found = tuning.validation_cases(study, seen)
        assert [(c.id, n) for c, n in found[:2]] == [("c_ct", numbers), ("d_t1", numbers)]
        assert [(c.id, n) for c, n in found[2:]] == [("a_ct", [1])] * (len(seen) > 1)
    with pytest.raises(CodedError, match="KUG-D14 study: found no labelled validation case"):
        tuning.validation_cases(study, [set("abcd"), set("abcd")])


def test_a_case_that_cannot_be_used_is_told(tmp_path, capsys):
    study, run = write_study(tmp_path, CASES), write_run(tmp_path / "run", seen="ab")
    (tmp_path / "d_t1.nii").write_bytes(b"no scan")
    assert unigan("tune", run, study, "--json") == 3
    result = json.loads(capsys.readouterr().out)
    assert list(result["failed"]) == ["d_t1"]
    assert result["failed"]["d_t1"].startswith("KUG-D07 d_t1.nii")
    assert result["cases"] == ["c_ct"]


@pytest.mark.parametrize("arguments", [["x", "-o", "y"], ["x", "x"]])
def test_only_several_runs_have_a_folder_of_their_own(arguments, capsys):
    assert unigan("tune", *arguments, "study.json") == 2
    assert "KUG-T02 --output" in capsys.readouterr().err


def test_scores_of_several_runs_need_a_folder(tmp_path, capsys):
    study, run = write_study(tmp_path, CASES), write_run(tmp_path / "run")
    assert unigan("evaluate", run, run, study) == 2
    assert "KUG-T02 --output: found none for 2 runs" in capsys.readouterr().err
    with pytest.raises(CodedError, match="KUG-T02 output"):
        evaluation.evaluate_run([run, run], study)
    steps = prediction.Postprocessing((Step(LARGEST),))
    found = evaluation.evaluate_run([run], study, postprocessing=steps, output=tmp_path / "out")
    assert found["method"]["postprocessing"] == steps.described
    assert found["macro_dice"] == 1.0
