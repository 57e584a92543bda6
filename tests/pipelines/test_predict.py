"""The prediction job: label maps as local inference makes them, whoever works; bad scans aside."""

import dataclasses
import gzip
import json
import pathlib
import shutil
import subprocess
import sys

import keras
import nibabel
import numpy as np
import pytest
from commands import unigan

from keras_unigan import alarm, config, export, inference, prediction
from keras_unigan.data import nifti, phantoms
from keras_unigan.errors import CodedError
from keras_unigan.networks import UNet
from keras_unigan.pipelines import handlers, predict, sources
from keras_unigan.serving.server import Server

PLAN = config.Plan(
    "study",
    ("ct", "t1"),
    phantoms.LABELS,
    (2.0, 2.0, 3.0),
    None,
    {
        "ct": config.Normalization("ct", mean=100.0, sd=50.0, low=-2.0, high=2.0),
        "t1": config.Normalization("mr", mean=0.0, sd=1.0, low=-1.5, high=2.5),
    },
    {
        "2d": config.Configuration((16, 16), 2, ((2, 2), (2, 2)), 4),
        "3d": config.Configuration((8, 8, 4), 2, ((2, 2, 1),), 4),
    },
)


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A study, a run folder `run`, and its model exported to `models/toy/1`."""
    folder = tmp_path_factory.mktemp("house")
    phantoms.write_study(folder / "scans", ("ct", "t1"), 3, size=32, depth=6, seed=4)
    keras.utils.set_random_seed(3)
    network = UNet(classes=3, filters=4, levels=2)
    (folder / "run").mkdir()
    network.save(folder / "run" / "network.keras")
    PLAN.save(folder / "run" / "plan.json")
    export.export(network, PLAN, folder / "models" / "toy" / "1")
    return folder


@pytest.fixture(scope="module")
def predicted(house):
    """Folder of the label maps of the whole study, and the summary of the job."""
    return house / "predicted", predict.run(arguments(house, house / "predicted"))


def arguments(house, output, *more, model="models/toy"):
    study = ["--study", str(house / "scans" / "study.json")]
    return ["--model", str(house / model), *study, "--output", str(output), *more]


def label_maps(folder):
    return {p.name: p.read_bytes() for p in sorted(pathlib.Path(folder).glob("*.nii.gz"))}


def load_study(house):
    return config.Study.load(house / "scans" / "study.json")


def test_label_maps_are_those_of_local_inference(house, predicted, tmp_path):
    folder, _ = predicted
    study, predictor = load_study(house), inference.load(house / "run")
    assert set(label_maps(folder)) == {f"{c.id}_seg.nii.gz" for c in study.cases}
    found = set()
    for case in study.cases:
        written, source = (
            nibabel.load(p) for p in (folder / f"{case.id}_seg.nii.gz", study.path(case.image))
        )
        assert written.shape == source.shape
        np.testing.assert_array_equal(written.affine, source.affine)
        for code in ("qform_code", "sform_code"):
            assert int(written.header[code]) == int(source.header[code])
        local = tmp_path / f"{case.id}.nii.gz"
        prediction.predict(predictor, study.path(case.image), case.modality, local)
        local = np.asarray(nibabel.load(local).dataobj)
        # The same arithmetic in another graph: ties may break otherwise.
        assert np.mean(local != np.asarray(written.dataobj)) < 1e-3
        found |= set(np.unique(local))
    assert len(found) > 1


def test_summary_and_record(house, predicted):
    folder, summary = predicted
    study = load_study(house)
    assert summary["volumes"] == {"ct": 3, "t1": 3}
    assert (summary["cases"], summary["dead_letters"], summary["dead_letter_file"]) == (6, 0, None)
    arrays = [nifti.read(study.path(c.image)).array for c in study.cases]
    assert summary["bytes_in"] == sum(a.nbytes for a in arrays)
    assert summary["bytes_out"] == sum(len(data) for data in label_maps(folder).values())
    assert set(summary["stage_seconds"]) == {"read", "predict", "write"}
    names = {p.name for p in folder.iterdir()}
    assert names == {*label_maps(folder), "run.json"}
    (entry,) = json.loads((folder / "run.json").read_text())
    assert entry["command"] == "predict"
    assert entry["inputs"]["recipe"] == PLAN.recipe
    assert entry["inputs"]["model"]["where"] == str(house / "models" / "toy" / "1")
    assert entry["outputs"]["volumes"] == summary["volumes"]


def test_two_threads_write_the_same_bytes(house, predicted, tmp_path):
    beam = ("--direct_num_workers=2", "--direct_running_mode=multi_threading")
    predict.run(arguments(house, tmp_path / "out", *beam))
    assert label_maps(tmp_path / "out") == label_maps(predicted[0])


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(house, predicted, tmp_path):
    beam = ("--direct_num_workers=2", "--direct_running_mode=multi_processing")
    predict.run(arguments(house, tmp_path / "out", *beam))
    assert label_maps(tmp_path / "out") == label_maps(predicted[0])


DASK = """
import sys
from dask.distributed import LocalCluster
from keras_unigan.pipelines import predict

if __name__ == "__main__":
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        address = f"--dask_client_address={cluster.scheduler_address}"
        predict.run([*sys.argv[1:], "--runner=DaskRunner", address])
"""


@pytest.mark.slow
def test_two_dask_workers_write_the_same_bytes(house, predicted, tmp_path):
    pytest.importorskip("distributed")
    script = tmp_path / "on_dask.py"
    script.write_text(DASK)
    command = [sys.executable, str(script), *arguments(house, tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert label_maps(tmp_path / "out") == label_maps(predicted[0])


def test_a_runner_that_loses_scans_is_told_on(house, tmp_path, monkeypatch):
    take = predict.sources.take
    monkeypatch.setattr(predict.sources, "take", lambda path: take(path)[1:])
    with pytest.raises(CodedError, match=r"KUG-E05 .*: found results of 1 of 2 scans"):
        predict.run(arguments(house, tmp_path / "out", "--limit", "2"))


def test_run_folder_and_served_model_answer_alike(house, predicted, tmp_path):
    predict.run(arguments(house, tmp_path / "run", "--limit", "2", model="run"))
    with Server(model_base_path=house / "models" / "toy") as server:
        argv = arguments(house, tmp_path / "served", "--limit", "2")
        argv[1] = f"{server.grpc_addr}/toy/1"
        predict.run(argv)
    kept = list(label_maps(predicted[0]))[:2]
    for kind in ("run", "served"):
        assert list(label_maps(tmp_path / kind)) == kept
        for name in kept:
            paths = (tmp_path / kind / name, predicted[0] / name)
            first, second = (np.asarray(nibabel.load(p).dataobj) for p in paths)
            assert np.mean(first != second) < 1e-3


def test_bad_scans_become_dead_letters(house, predicted, tmp_path):
    shutil.copytree(house / "scans", tmp_path / "scans")
    study = config.Study.load(tmp_path / "scans" / "study.json")
    cut, nans, gone = (pathlib.Path(study.path(c.image)) for c in study.cases[:3])
    cut.write_bytes(cut.read_bytes()[:-50])
    volume = nifti.read(nans)
    array = volume.array.astype(np.float32)
    array[1, 2, 3] = np.nan
    nifti.write(nans, array, volume)
    gone.unlink()
    summary = predict.run(arguments(tmp_path, tmp_path / "out", model=house / "models" / "toy"))
    assert (summary["dead_letters"], sum(summary["volumes"].values())) == (3, 3)
    lines = (tmp_path / "out" / "dead_letters.jsonl").read_text().splitlines()
    letters = {letter["case"]: letter for letter in map(json.loads, lines)}
    codes = [letters[c.id]["code"] for c in study.cases[:3]]
    assert codes == ["KUG-D07", "KUG-D06", "KUG-D01"]
    assert str(tmp_path) not in "".join(lines)
    rest = label_maps(tmp_path / "out")
    assert rest == {name: label_maps(predicted[0])[name] for name in rest}
    assert len(rest) == 3
    # Once the scans are whole again, nothing tells of the dead any more.
    shutil.rmtree(tmp_path / "scans")
    shutil.copytree(house / "scans", tmp_path / "scans")
    again = arguments(tmp_path, tmp_path / "out", "--overwrite", model=house / "models" / "toy")
    assert predict.run(again)["dead_letters"] == 0
    assert not (tmp_path / "out" / "dead_letters.jsonl").exists()
    assert len(json.loads((tmp_path / "out" / "run.json").read_text())) == 2


def test_files_of_all_kinds(house, tmp_path):
    """NIfTI in one and two files, NRRD and PNG in a folder; modality of all and unknown."""
    image = pytest.importorskip("PIL.Image")
    nrrd = pytest.importorskip("nrrd")
    (tmp_path / "in").mkdir()
    case = load_study(house).cases[0]
    volume = nifti.read(load_study(house).path(case.image))
    flat = np.random.default_rng(0).integers(0, 255, (24, 20), np.uint8)
    nibabel.save(nibabel.Nifti1Pair(volume.array, volume.affine), tmp_path / "in" / "pair.img")
    nibabel.save(nibabel.Nifti2Image(volume.array, volume.affine), tmp_path / "in" / "two.nii")
    nrrd.write(str(tmp_path / "in" / "other.nrrd"), volume.array.astype(np.int16))
    image.fromarray(flat).save(tmp_path / "in" / "flat.png")
    (tmp_path / "in" / "two_seg.nii").write_bytes(b"a label map beside scans is no input")
    argv = ["--model", str(house / "models" / "toy" / "1"), "--inputs", str(tmp_path / "in")]
    summary = predict.run([*argv, "--output", str(tmp_path / "ct"), "--modality", "CT"])
    assert (summary["volumes"], summary["dead_letters"]) == ({"ct": 4}, 0)
    written = {p.name: nibabel.load(p) for p in (tmp_path / "ct").glob("*.nii.gz")}
    assert set(written) == {f"{n}_seg.nii.gz" for n in ("pair", "two", "other")}
    assert isinstance(written["two_seg.nii.gz"], nibabel.Nifti2Image)
    np.testing.assert_array_equal(written["pair_seg.nii.gz"].affine, volume.affine)
    pair, two = (np.asarray(written[f"{n}_seg.nii.gz"].dataobj) for n in ("pair", "two"))
    np.testing.assert_array_equal(pair, two)
    picture = np.asarray(image.open(tmp_path / "ct" / "flat_seg.png"))  # in the input's kind
    assert picture.shape == flat.shape
    assert set(np.unique(picture)) <= {0, 1, 2}
    summary = predict.run([*argv, "--output", str(tmp_path / "unknown"), "--limit", "1"])
    assert summary["volumes"] == {"unknown": 1}


def test_scans_unlike_those_of_training_are_listed(house, tmp_path, monkeypatch, capsys):
    class Heard:
        plan, threshold = PLAN, 3.0

        def read(self, prepared, modality):
            return alarm.Reading(9.0 if modality == "t1" else 3.0, self.threshold, "ct", "image")

    study, output = house / "scans" / "study.json", tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(prediction.Alarm, "load", lambda _: Heard())
        assert unigan("predict", house / "run", study, "-o", output, "--json") == 0
    said = capsys.readouterr()
    summary = json.loads(said.out)
    strange = sorted(c.id for c in load_study(house).cases if c.modality == "t1")
    # Their label maps are there all the same.
    assert (summary["alarms"], summary["volumes"]) == (len(strange), {"ct": 3, "t1": 3})
    told = "KUG-D38 3 of 6 scans are unlike those that the run was trained on"
    assert f"{told}; which: {output / 'alarms.jsonl'}" in said.err
    lines = [json.loads(line) for line in (output / "alarms.jsonl").read_text().splitlines()]
    assert [line["case"] for line in lines] == strange
    assert {line["code"] for line in lines} == {"KUG-D38"}
    assert (lines[0]["score"], lines[0]["threshold"], lines[0]["nearest"]) == (9.0, 3.0, "ct")
    assert "check --modality" in lines[0]["message"]
    # A run without an alarm takes the list away.
    predict.run(arguments(house, output, "--overwrite", "--limit", "1", model="run"))
    assert not (output / "alarms.jsonl").exists()


def test_nothing_is_overwritten_unless_asked(house, predicted, tmp_path):
    with pytest.raises(CodedError, match=r"KUG-E02 .*_seg.nii.gz: found a file that is there"):
        predict.run(arguments(house, predicted[0]))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shutil.copy(load_study(house).path(load_study(house).cases[0].image), tmp_path / name)
    argv = ["--model", str(house / "models" / "toy"), "--output", str(tmp_path / "out")]
    with pytest.raises(CodedError, match=r"KUG-E02 .*two scans of that name"):
        predict.run([*argv, "--inputs", str(tmp_path / "a"), str(tmp_path / "b")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--inputs", "a.nii"), "KUG-T02 --study, --inputs: found both or neither"),
        (("--modality", "ct"), "KUG-T02 --modality: found ct without --inputs"),
        (("--batch_size", "0"), "KUG-T02 --batch_size: found 0"),
        (("--output", "out.nii.gz"), "KUG-T02 --output: found the file out.nii.gz"),
        (("--model", "nowhere"), "KUG-T04 nowhere: found no saved_model.pb"),
        (("--model", "127.0.0.1:1/toy"), "KUG-S01 127.0.0.1:1 toy: found no answer"),
    ],
)
def test_arguments_that_do_not_fit(house, tmp_path, more, message):
    with pytest.raises(CodedError, match=message):
        predict.run(arguments(house, tmp_path / "out", *more))
    assert not (tmp_path / "out").exists()


def test_studies_and_inputs_that_do_not_fit(house, tmp_path):
    study = load_study(house)
    cases = [dataclasses.replace(c, image=study.path(c.image), label=None) for c in study.cases]
    bare = tuple(dataclasses.replace(c, split=None) for c in cases)
    dataclasses.replace(study, cases=bare).save(tmp_path / "study.json")
    model = house / "models" / "toy"
    argv = ["--model", str(model), "--output", str(tmp_path / "out")]
    with pytest.raises(CodedError, match=r"KUG-D14 .*no case of the split test"):
        predict.run([*argv, "--study", str(tmp_path / "study.json"), "--split", "test"])
    other = tuple(dataclasses.replace(c, modality="flair") for c in bare if c.modality == "t1")
    flair = dataclasses.replace(study, modalities=("ct", "flair"), cases=other)
    flair.save(tmp_path / "study.json")
    with pytest.raises(CodedError, match=r"KUG-T03 modality: found 'flair'"):
        predict.run([*argv, "--study", str(tmp_path / "study.json")])
    # What the model is not told, it need not know.
    unknown = ["--study", str(tmp_path / "study.json"), "--unknown_modality", "--limit", "1"]
    assert predict.run([*argv, *unknown])["volumes"] == {"unknown": 1}
    with pytest.raises(CodedError, match="KUG-T02 --split: found test without --study"):
        predict.run([*argv, "--inputs", str(tmp_path), "--split", "test"])
    with pytest.raises(CodedError, match=r"KUG-D01 .*no scan"):
        predict.run([*argv, "--inputs", str(tmp_path / "*.mha")])


def test_the_newest_version_counts(house, tmp_path):
    shutil.copytree(house / "models", tmp_path / "models")
    shutil.copytree(house / "models" / "toy" / "1", tmp_path / "models" / "toy" / "12")
    shutil.copytree(house / "models" / "toy" / "1", tmp_path / "models" / "toy" / ".push-1")
    model = handlers.Model.find(tmp_path / "models" / "toy")
    assert model == handlers.Model("exported", str(tmp_path / "models" / "toy" / "12"))
    assert model.plan() == PLAN
    found = handlers.Model.find("model.example.org:8500/toy/3")
    assert found == handlers.Model("served", "model.example.org:8500", "toy", 3)
    assert handlers.Model.find("[::1]:8500/toy").version is None


def test_a_worker_reports_errors_of_the_model_by_failing(house):
    handler = handlers.SegmentVolumes(handlers.Model("served", "127.0.0.1:1", "toy"))
    scan = predict.Scan("case", "image.nii", "target.nii")
    volume = nifti.Volume(np.arange(64.0).reshape(4, 4, 4), np.eye(4))
    with pytest.raises(CodedError, match="KUG-S01"):
        list(handler.run_inference([handlers.Loaded(scan, volume, 0.1)], handler.load_model()))


def test_command_line(house, predicted, tmp_path, capsys):
    study = house / "scans" / "study.json"
    told = ["predict", house / "models" / "toy", study, "-o", tmp_path / "out", "--split", "test"]
    assert unigan(*told, "--", "--direct_num_workers=1") == 0
    assert f"Wrote 1 ct, 1 t1 to {tmp_path / 'out'}" in capsys.readouterr().out
    found = label_maps(tmp_path / "out")
    assert found == {name: label_maps(predicted[0])[name] for name in found}
    assert unigan(*told) == 2
    assert "KUG-E02" in capsys.readouterr().err
    scan = load_study(house).path(load_study(house).cases[0].image)
    assert unigan("predict", house / "run", scan, study, "-o", tmp_path / "x") == 2
    assert "beside others" in capsys.readouterr().err
    # A run folder and scans need no job.
    assert unigan("predict", house / "run", scan, "-o", tmp_path / "a.nii.gz", "--quiet") == 0
    assert unigan("predict", house / "run", scan, "-o", tmp_path / "x", "--split", "val") == 2
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(gzip.compress(b"no scan"))
    told = ["predict", house / "models" / "toy", broken, scan, "-o", tmp_path / "bad"]
    assert unigan(*told, "--modality", "ct") == 3
    assert "1 of 2 volumes could not be used (1 KUG-D07)" in capsys.readouterr().err


def test_help_loads_no_tensorflow(root):
    code = (
        "import sys, runpy; sys.argv = ['predict', '--help']\n"
        "try: runpy.run_path(sys.path.pop(), run_name='__main__')\n"
        "except SystemExit: assert 'tensorflow' not in sys.modules"
    )
    script = str(root / "pipelines" / "predict.py")
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.append({script!r})\n{code}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "--model" in done.stdout


def test_main(house, tmp_path, monkeypatch, capsys):
    argv = arguments(house, tmp_path / "out", "--limit", "1")
    monkeypatch.setattr(sys, "argv", ["predict", *argv])
    assert sources.main(predict.run) == 0
    assert json.loads(capsys.readouterr().out)["cases"] == 1
