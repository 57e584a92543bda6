"""Label maps by several views and several runs, and what is written beside them."""

import dataclasses
import json
import warnings

import hypothesis
import hypothesis.strategies as st
import keras
import nibabel as nib
import numpy as np
import pytest
from commands import unigan
from stub_runs import AFFINE, SHAPE, Slope, make_plan, write_run

import keras_unigan
from keras_unigan import config, derivatives, inference, prediction, uncertainty, views
from keras_unigan.data import nifti, preprocessing
from keras_unigan.errors import CodedError
from keras_unigan.postprocessing import LARGEST, Postprocessing, Step


@keras.saving.register_keras_serializable(package="test_prediction")
class Turning(Slope):
    """The same, and a generator: in the second modality the image is darker, the first is kept."""

    def segment(self, image, domain, training=False):
        return self(image)

    def translate(self, image, source, target, training=False):
        shift = keras.ops.cast(keras.ops.equal(target, 1), "float32")
        return keras.ops.convert_to_tensor(image) - 3 * shift[:, None, None, None]


def scan(seed=0):
    """Volume with values of 0 to 200."""
    values = np.random.default_rng(seed).uniform(0, 200, SHAPE).astype(np.float32)
    return nifti.Volume(values, AFFINE)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def organ(ensemble, volume, modality="ct"):
    return ensemble.segment_volume(volume, modality).probabilities[..., 1]


@hypothesis.given(st.integers(2, 3), st.integers(0, 10))
def test_every_flip_is_turned_back(dims, seed):
    patches = np.random.default_rng(seed).normal(size=(2, 4, 6, 5)[: dims + 1])[..., None]
    asked = []

    def remember(found, modality, statistics):
        asked.append(found)
        return 2 * found

    made = views.mirrored(remember, dims)
    assert len(made) == 2**dims
    for view in made:
        np.testing.assert_array_equal(view(patches, "ct", None), 2 * patches)
    # All flips are different, and the first is none.
    np.testing.assert_array_equal(asked[0], patches)
    assert len({a.tobytes() for a in asked}) == 2**dims


def test_mirroring_averages_what_a_network_says_of_flips():
    class Left:
        """Organ on the left side of each window, whatever it shows."""

        plan, spatial_dims = make_plan(), 2

        def __call__(self, patches, modality, statistics):
            found = np.zeros((*patches.shape[:-1], 2), np.float32)
            found[:, :4, :, 1] = 1.0
            found[..., 0] = 1 - found[..., 1]
            return found

    volume = nifti.Volume(scan().array[:8, :8], AFFINE)
    assert set(np.unique(organ(prediction.Ensemble([Left()]), volume))) == {0.0, 1.0}
    ensemble = prediction.Ensemble([Left()], "mirror")
    found = ensemble.segment_volume(volume, "ct", uncertain=True)
    np.testing.assert_allclose(found.probabilities, 0.5, atol=1e-6)
    # Four views, each sure of its own: all of the doubt is disagreement.
    np.testing.assert_allclose(found.uncertainty, 1.0, atol=1e-5)
    np.testing.assert_allclose(found.disagreement, 1.0, atol=1e-5)


def test_a_run_of_more_views_counts_no_more():
    class Sure:
        def __init__(self, organ, dims):
            self.value, self.spatial_dims, self.plan = organ, dims, make_plan()
            flat = self.plan.configurations["2d"]
            deep = dataclasses.replace(flat, patch_size=(8, 8, 4), strides=((2, 2, 2),))
            both = {"2d": flat, "3d": deep}
            self.plan = dataclasses.replace(self.plan, configurations=both)

        def __call__(self, patches, modality, statistics):
            value = np.float32([1 - self.value, self.value])
            return np.broadcast_to(value, (*patches.shape[:-1], 2)).copy()

    ensemble = prediction.Ensemble([Sure(0.2, 2), Sure(0.8, 3)], "mirror")
    assert [len(ensemble.views(n, "ct")) for n in (0, 1)] == [4, 8]
    found = ensemble.segment_volume(scan(), "ct", uncertain=True)
    np.testing.assert_allclose(found.probabilities, 0.5, atol=1e-6)
    expected = 1 - uncertainty.entropy(np.array([0.2, 0.8]))
    np.testing.assert_allclose(found.disagreement, expected, atol=1e-5)


def test_runs_of_other_grids_are_averaged_on_the_scans_own():
    fine, coarse = (1.0, 2.0, 3.0), (2.0, 2.5, 3.0)
    members = [
        inference.Predictor(Slope(slope), make_plan(spacing=spacing))
        for slope, spacing in ((1.0, fine), (-3.0, coarse), (2.0, fine))
    ]
    volume = scan()
    single = [
        inference.segment_volume(volume, m.plan, m, "ct", 2)[1][..., 1].astype(np.float64)
        for m in members
    ]
    ensemble = prediction.Ensemble(members)
    found = ensemble.segment_volume(volume, "ct", uncertain=True)
    expected = np.mean(single, axis=0)
    np.testing.assert_allclose(found.probabilities[..., 1], expected, atol=1e-5)
    np.testing.assert_array_equal(found.masks[0], expected > 0.5)
    np.testing.assert_array_equal(found.label_map, np.where(expected > 0.5, 3, 0))
    both = np.stack([1 - expected, expected], axis=-1)
    np.testing.assert_allclose(found.uncertainty, uncertainty.entropy(both), atol=1e-5)
    own = np.mean([uncertainty.entropy(np.stack([1 - p, p], -1)) for p in single], axis=0)
    np.testing.assert_allclose(found.disagreement, found.uncertainty - own, atol=1e-5)
    assert found.disagreement.max() > 0.05
    one = prediction.Ensemble(members[:1]).segment_volume(volume, "ct", uncertain=True)
    np.testing.assert_allclose(one.probabilities[..., 1], single[0], atol=1e-6)
    assert one.disagreement is None
    assert ensemble.of([1]).predictors == members[1:2]


def test_translations_are_segmented_too():
    volume, plan = scan(), make_plan(modalities=("ct", "t1", "t2"))
    predictor = inference.Predictor(Turning(2.0), plan)
    ensemble = prediction.Ensemble([predictor], "translate")
    normal = np.clip(volume.array / 100 - 1, -1, 1)
    # Of "t2": as "ct", which keeps the image, and as "t1", which makes it black.
    kept, dark = sigmoid(2.0 * normal), sigmoid(-2.0)
    np.testing.assert_allclose(organ(ensemble, volume, "t2"), (2 * kept + dark) / 3, atol=1e-5)
    np.testing.assert_allclose(organ(ensemble, volume, "t1"), kept, atol=1e-5)
    # An unknown scan has its own percentiles, and all modalities as targets.
    low, high = preprocessing.statistics(volume.array)[2:]
    own = sigmoid(2.0 * np.clip(2 * (volume.array - low) / (high - low) - 1, -1, 1))
    np.testing.assert_allclose(organ(ensemble, volume, None), (3 * own + dark) / 4, atol=1e-4)
    found = ensemble.segment_volume(volume, "t1", uncertain=True)
    np.testing.assert_allclose(found.disagreement, 0.0, atol=1e-5)
    assert ensemble.segment_volume(volume, "t2", uncertain=True).disagreement.max() > 0.1
    with pytest.raises(CodedError, match=r"KUG-T04 .*only segments"):
        prediction.Ensemble([inference.Predictor(Slope(), make_plan())], "translate")


@pytest.mark.parametrize(
    ("plan", "what"),
    [
        (make_plan(config.Labels(classes={"organ": (4,)})), r"labels .*\[4\].*\[3\]"),
        (make_plan(modalities=("ct", "flair")), "modalities .*flair.*t1"),
    ],
)
def test_runs_of_other_questions_are_refused(plan, what):
    with pytest.raises(CodedError, match=f"KUG-T08 run 2: found {what}"):
        prediction.load([(Slope(), make_plan()), (Slope(), plan)])
    with pytest.raises(CodedError, match=r"KUG-T02 tta: found 'miror' .*'mirror'"):
        prediction.load((Slope(), plan), "miror")


@pytest.fixture
def runs(tmp_path):
    """Two run folders that disagree, and a scan with an organ and a crumb."""
    for name, slope in (("a", 8.0), ("b", 2.0)):
        write_run(tmp_path / name, slope)
    image = np.full(SHAPE, 60, np.float32)
    image[2:7, 2:6, 1:3] = 140
    image[10, 8, 0] = 140
    # A corner like no other, so that nothing is background.
    image[0, 0, 0] = 59
    affine = AFFINE @ np.array([[0, -1, 0, 9], [1, 0, 0, 4], [0, 0, 1, 2], [0, 0, 0, 1.0]])
    nifti.write(tmp_path / "scan.nii.gz", image, affine=affine)
    return tmp_path


def test_one_run_with_what_validation_taught(runs, capsys):
    Postprocessing((Step(LARGEST),)).save(runs / "a")
    image = nib.load(runs / "scan.nii.gz")
    whole = np.where(np.asarray(image.dataobj) > 100, 3, 0)
    largest = np.where(np.arange(12)[:, None, None] < 8, whole, 0)
    for told, expected in ((True, largest), (False, whole)):
        found = keras_unigan.predict(runs / "a", image, "ct", postprocessing=told)
        np.testing.assert_array_equal(np.asarray(found.dataobj), expected)
    output = runs / "seg.nii.gz"
    asked = ["predict", runs / "a", runs / "scan.nii.gz", "--modality", "ct", "-o", output]
    assert unigan(*asked) == 0
    said = capsys.readouterr().out
    assert "Post-processing learnt on validation: largest component of all foreground" in said
    np.testing.assert_array_equal(np.asarray(nib.load(output).dataobj), largest)
    assert unigan(*asked, "--no-postprocessing", "--overwrite") == 0
    assert "Post-processing" not in capsys.readouterr().out
    np.testing.assert_array_equal(np.asarray(nib.load(output).dataobj), whole)
    # Derivatives and the mean of one are the same road.
    bids = ["predict", runs / "a", runs / "scan.nii.gz", "--modality", "ct", "--bids", "-o"]
    assert unigan(*bids, runs / "bids") == 0
    (label_map,) = (runs / "bids").rglob("*_dseg.nii.gz")
    np.testing.assert_array_equal(np.asarray(nib.load(label_map).dataobj), largest)


def test_the_mean_of_runs_with_maps_beside_it(runs, capsys):
    # An image whose values the two runs are sure of to another degree.
    output, source = runs / "out" / "seg.nii.gz", runs / "scan.nii.gz"
    asked = ["predict", runs / "a", runs / "b", source, "--modality", "ct", "-o", output]
    assert unigan(*asked, "--uncertainty", "--tta", "mirror") == 0
    said = capsys.readouterr().out
    assert "Mean of 2 runs: a, b" in said
    assert f"Wrote {runs / 'out' / 'seg_uncertainty.nii.gz'}" in said
    image = nib.load(source)
    inside, outside = np.asarray(image.dataobj) > 100, np.asarray(image.dataobj) == 60
    p = [(sigmoid(8 * 0.4), sigmoid(2 * 0.4)), (sigmoid(-8 * 0.4), sigmoid(-2 * 0.4))]
    for name in ("uncertainty", "disagreement"):
        found = nib.load(runs / "out" / f"seg_{name}.nii.gz")
        np.testing.assert_allclose(found.affine, image.affine, atol=1e-5)
        assert found.get_data_dtype() == np.float32
        assert name in str(found.header["descrip"])
        for mask, members in ((inside, p[0]), (outside, p[1])):
            both = np.stack([1 - np.array(members), members], -1)
            whole = uncertainty.entropy(both.mean(0))
            part = whole - uncertainty.entropy(both).mean()
            expected = whole if name == "uncertainty" else part
            np.testing.assert_allclose(found.get_fdata()[mask], expected, atol=1e-4)
    # One run has no disagreement, and that of the two does not stay beside its answer.
    alone = ["predict", runs / "a", source, "--modality", "ct", "-o", output, "--uncertainty"]
    assert unigan(*alone, "--json", "--overwrite") == 0
    (one,) = json.loads(capsys.readouterr().out)["scans"]
    uncertain = runs / "out" / "seg_uncertainty.nii.gz"
    assert one["files"] == [str(output), str(uncertain)]
    assert (one["scan"], one["output"], one["warnings"]) == (str(source), str(output), [])
    assert sorted(output.parent.iterdir()) == [output, uncertain]
    # Nothing is written over unasked, and results are not taken for scans.
    assert unigan(*asked, "--uncertainty") == 2
    assert "KUG-E02" in capsys.readouterr().err
    (runs / "out" / "again.nii.gz").write_bytes(source.read_bytes())
    pairs = inference.outputs_for([runs / "out"], runs / "other")
    assert [s.name for s, _ in pairs] == ["again.nii.gz"]


def test_a_folder_may_stand_for_runs(runs):
    both = runs / "deep" / "both"
    prediction.save_ensemble(both, [runs / "a", runs / "b"])
    assert json.loads((both / "ensemble.json").read_text()) == {"runs": ["../../a", "../../b"]}
    ensemble = prediction.load(both)
    assert ensemble.method == {"runs": ["a", "b"], "tta": "none", "postprocessing": []}
    listed = prediction.load([str(runs / "a"), str(runs / "b")])
    volume = scan()
    np.testing.assert_array_equal(organ(ensemble, volume), organ(listed, volume))
    (both / "ensemble.json").write_text('{"runs": []}')
    with pytest.raises(CodedError, match="KUG-D08"):
        prediction.load(both)


def test_arrays_come_back_with_their_maps(runs):
    values = scan().array
    found, maps = prediction.predict(
        [runs / "a", runs / "b"], values, "ct", spacing=(1.0, 2.0, 3.0), uncertain=True
    )
    assert {name: m.shape for name, m in maps.items()} == dict.fromkeys(inference.MAPS, SHAPE)
    assert found.dtype == np.uint8
    # Where it is least sure, both sides of one half are near.
    p = (sigmoid(8 * (values / 100 - 1)) + sigmoid(2 * (values / 100 - 1))) / 2
    np.testing.assert_allclose(
        maps["uncertainty"], uncertainty.entropy(np.stack([1 - p, p], -1)), atol=1e-4
    )
    _, alone = prediction.predict(runs / "a", values[..., 0], "ct", uncertain=True)
    assert {name: m.shape for name, m in alone.items()} == {"uncertainty": SHAPE[:2]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "b", "-o", "x"], "KUG-T02 inputs: found run folders only"),
        (["a", "b", "study.json", "-o", "x"], "KUG-T02 several runs: found a study"),
        (["a", "study.json", "--tta", "mirror", "-o", "x"], "KUG-T02 --tta: found a study"),
        (["a", "scan.nii.gz", "--bids", "--uncertainty", "-o", "x"], "KUG-T02 --uncertainty"),
        (["a", "scan.nii.gz", "--tta", "translate", "-o", "x.nii"], "KUG-T04 model: found a Slope"),
    ],
)
def test_what_does_not_go_together_is_refused(runs, arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(runs)
    assert unigan("predict", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (runs / "x").exists()


def test_a_scan_that_raises_the_alarm_is_told_and_segmented_all_the_same(runs, capsys, monkeypatch):
    class Alarm:
        plan = make_plan()

        def read(self, prepared, modality):
            assert prepared.image.shape == (10, 12, 4)
            return keras_unigan.alarm.Reading(9.0, self.threshold, "ct", "image")

    alarm = Alarm()
    ensemble = prediction.Ensemble([inference.Predictor(Slope(), make_plan())], alarm=alarm)
    for threshold in (8.0, 9.0):
        alarm.threshold = threshold
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = prediction.predict(ensemble, runs / "scan.nii.gz", "T1")
        assert found.shape == SHAPE
        assert len(caught) == (threshold < 9)
    alarm.threshold = 8.0
    with pytest.warns(
        keras_unigan.alarm.UnlikeTraining, match=r"KUG-D38 .*scores 9 as t1.*most like ct"
    ):
        prediction.predict(ensemble, runs / "scan.nii.gz", "T1")
    bids = derivatives.scan_of(runs / "scan.nii.gz", "t1")
    with pytest.warns(keras_unigan.alarm.UnlikeTraining, match="KUG-D38"):
        written = derivatives.segment(ensemble, bids, runs / "bids")
    assert all(path.is_file() for path in written)
    # The command says it to people and to programs.
    monkeypatch.setattr(prediction, "load", lambda *_, **__: ensemble)
    asked = ["predict", runs / "a", runs / "scan.nii.gz", "--modality", "t1", "--json", "-o"]
    with pytest.warns(keras_unigan.alarm.UnlikeTraining):
        assert unigan(*asked, runs / "strange.nii.gz") == 0
    (one,) = json.loads(capsys.readouterr().out)["scans"]
    (text,) = one["warnings"]
    assert text.startswith(f"KUG-D38 {runs / 'scan.nii.gz'}: found a scan that scores 9 as t1")
