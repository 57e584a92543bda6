"""The infra check and the quality gate."""

import json
import shutil
import subprocess
import sys

import grpc
import numpy as np
import pytest

from keras_unigan import config, evaluation, inference
from keras_unigan.data import nifti
from keras_unigan.errors import CodedError
from keras_unigan.exporting import operations
from keras_unigan.exporting.requests import phantom
from keras_unigan.serving import blessings, candidate, folders, gates, push, quality


@pytest.fixture
def ask(exported, unigan):
    """The infra check of the exported model against a server that runs already."""
    network, plan, base, _ = exported
    return lambda **options: gates.infra_check(
        base / "1", network, plan, address=unigan.grpc_addr, model="unigan", **options
    )


def test_a_server_elsewhere_can_be_asked(ask, unigan):
    report = ask()
    assert report["passed"]
    assert report["server"] == unigan.grpc_addr
    assert (report["load_seconds"], report["peak_gib"]) == (None, None)


def test_a_model_that_differs_is_noticed(ask, exported):
    network = exported[0]
    before = network.get_weights()
    bias = network.layers[-1].bias
    bias.assign(bias + np.array([0.0, 1e-3, 0.0], np.float32))
    try:
        with pytest.raises(CodedError, match=r"KUG-S05 unet: found serving_default 16x16: answers"):
            ask()
    finally:
        network.set_weights(before)


def test_a_model_that_refuses_nothing_is_noticed(ask, monkeypatch):
    real = gates.Target.send

    def lenient(self, request):
        try:
            return real(self, request)
        except grpc.RpcError:
            return {}

    monkeypatch.setattr(gates.Target, "send", lenient)
    with pytest.raises(CodedError, match="KUG-S05 unet: found wrong rank: an answer") as caught:
        ask()
    assert caught.value.exit_code == 4


def test_labels_that_differ_are_noticed_only_where_one_is_sure(ask, monkeypatch):
    real = gates.Target.send

    def wrong(self, request):
        answer = real(self, request)
        if "label_map" in answer and "probabilities" not in answer:
            answer["label_map"] = answer["label_map"] ^ 1
        return answer

    monkeypatch.setattr(gates.Target, "send", wrong)
    with pytest.raises(CodedError, match=r"segment_volume 16x16: [0-9]+ voxels with another label"):
        ask()


def test_ceilings_hold(ask):
    with pytest.raises(CodedError, match=r"KUG-S05 unet: found patch_seconds: .* at most 0\."):
        ask(ceilings=gates.Ceilings(request_seconds=0))


def test_ops_that_servers_may_not_know_are_refused(ask, monkeypatch):
    monkeypatch.setattr(operations, "KNOWN", operations.KNOWN - {"Svd", "Conv2D"})
    with pytest.raises(CodedError, match=r"KUG-S05 unet: found ops: Conv2D, Svd, expected ops"):
        ask()


def test_a_server_that_is_not_there_is_not_waited_for_for_ever(exported, monkeypatch):
    network, plan, base, _ = exported
    real = gates.Target
    monkeypatch.setattr(gates, "Target", lambda *a: real(*a, timeout=0.5))
    with pytest.raises(CodedError, match="KUG-S05 unet: found load: no available version"):
        gates.infra_check(base / "1", network, plan, address="127.0.0.1:1", model="unigan")


@pytest.mark.slow
def test_an_export_that_does_not_load_gets_its_verdict(exported, tmp_path):
    network, plan, base, _ = exported
    shutil.copytree(base / "1", tmp_path / "m")
    shutil.rmtree(tmp_path / "m" / "variables")
    (tmp_path / "m" / folders.MANIFEST).unlink()
    with pytest.raises(CodedError, match=r"KUG-S05 unet: found load: .*no variables file"):
        gates.judge_infra(tmp_path / "m", network, plan)
    found = blessings.read(tmp_path / "m")
    assert not found["infra"]["passed"]
    assert "no variables file" in found["infra"]["reason"]
    with pytest.raises(CodedError, match=r"KUG-S07 .*INFRA_NOT_BLESSED"):
        push.push(tmp_path / "m", tmp_path / "base", force=True)


def test_a_process_that_dies_is_no_model(tmp_path, monkeypatch):
    monkeypatch.setattr(candidate.sys, "executable", "/bin/false")
    with candidate.running(tmp_path) as (process, said):
        assert said == {"error": "the process ended with code 1"}
        assert process.poll() == 1


@pytest.mark.slow
def test_saved_model_cli_shows_and_runs_the_export(exported, tmp_path):
    command = [sys.executable, "-m", "tensorflow.python.tools.saved_model_cli"]
    common = ["--dir", str(exported[2] / "1"), "--tag_set", "serve", "--signature_def"]
    shown = subprocess.run(
        [*command, "show", *common, "segment_volume"], capture_output=True, text=True, check=True
    )
    assert "shape: (-1, -1, -1, -1)" in shown.stdout
    image = np.random.default_rng(0).uniform(0, 900, (2, 9, 13, 1)).astype(np.float32)
    np.save(tmp_path / "image.npy", image)
    subprocess.run(
        [
            *[*command, "run", *common, "serving_default"],
            *["--inputs", f"image={tmp_path / 'image.npy'}", "--outdir", str(tmp_path)],
        ],
        capture_output=True,
        check=True,
    )
    found = np.load(tmp_path / "probabilities.npy")
    predictor = quality.SavedPredictor(exported[2] / "1")
    zeros = np.zeros(4, np.float32)
    np.testing.assert_allclose(found, predictor(image, None, zeros), atol=1e-5)
    predictor.close()


@pytest.fixture(scope="module")
def study(exported, tmp_path_factory):
    """Two labelled cases of each modality, and one that cannot be read."""
    folder, plan, cases = tmp_path_factory.mktemp("study"), exported[1], []
    affine = np.diag([*plan.spacing, 1.0])
    for number in range(4):
        shape = (18, 17, 3 + number)
        nifti.write(folder / f"i{number}.nii", phantom(shape), affine=affine)
        label = np.random.default_rng(number).choice(np.uint8([0, 3, 5]), shape)
        nifti.write(folder / f"l{number}.nii", label, affine=affine)
        modality = plan.modalities[number % 2]
        case = config.Case(f"s{number}", modality, f"i{number}.nii", f"l{number}.nii", "val")
        cases.append(case)
    return config.Study("named", plan.modalities, plan.labels, tuple(cases), str(folder))


@pytest.fixture(scope="module")
def dice(exported, study):
    """Mean Dice of the exported model on the study, as local inference has it."""
    network, plan, _, _ = exported
    found = evaluation.score_cases(inference.Predictor(network, plan), study, "val")
    rows = [row for case in found for row in case.rows]
    means = {m: np.mean([r["dice"] for r in rows if r["modality"] == m]) for m in plan.modalities}
    return {"all": np.mean(list(means.values())), **means}


def test_the_quality_gate_compares_with_thresholds_and_with_what_is_served(
    exported, study, dice, monkeypatch
):
    folder = exported[2] / "1"
    scores = quality.scores(folder, study)
    assert scores == pytest.approx(dice, abs=1e-6)
    monkeypatch.setattr(quality, "scores", lambda path, *_: scores if path == folder else better)
    better = {**scores, "t1": scores["t1"] + 0.05}
    lowest = min(scores.values())

    def judge(baseline="served", **thresholds):
        limits = quality.Thresholds(**thresholds)
        return quality.quality_gate(folder, study, limits, baseline)

    report = judge()
    assert (report["passed"], report["reason"]) == (False, "no threshold was given")
    assert judge(minimum=lowest - 1e-6)["passed"]
    report = judge(minimum=lowest + 1e-4)
    assert not report["passed"]
    assert "below" in report["reason"]
    report = judge(most_drop=0.04)
    assert not report["passed"]
    assert report["slices"]["ct"]["passed"]
    assert report["reason"].startswith("t1: Dice ")
    assert judge(most_drop=0.06)["passed"]
    # Nothing served yet: only values count.
    assert judge(None, most_drop=0.0)["passed"]
    assert not judge(None, most_drop=0.0, minimum=1.0)["passed"]
    assert (report["study"], report["split"], report["baseline"]) == ("named", "val", "served")
    monkeypatch.setattr(quality, "scores", lambda *_: {"all": 0.5, "ct": float("nan")})
    assert judge(None, minimum=0.1)["reason"] == "ct: nothing could be measured"


@pytest.mark.slow
def test_a_verdict_on_quality_goes_with_the_push(exported, study, dice, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(exported[2] / "1", folder)
    limits = quality.Thresholds(minimum=min(dice.values()) - 1e-3, most_drop=0.0)
    path, report = quality.judge(folder, study, limits, quality.served(exported[2]))
    assert path.name == "BLESSED"
    assert (
        json.loads(path.read_text())["slices"]["all"]["candidate"]
        == report["slices"]["all"]["baseline"]
    )
    assert push.push(folder, tmp_path / "base")["blessings"] == ["infra", "quality"]
    assert quality.served(tmp_path / "none") is None


def test_thresholds_and_models_that_make_no_sense_are_refused(tmp_path):
    with pytest.raises(CodedError, match=r"KUG-T02 most_drop: found -0\.1, expected 0 to 1"):
        quality.Thresholds(most_drop=-0.1)
    with pytest.raises(CodedError, match=r"KUG-S06 .*no saved_model\.pb"):
        quality.SavedPredictor(tmp_path)
