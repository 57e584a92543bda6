"""Synthetic pairs: how they are made, gate, audit, folder, and where they may not go."""

import dataclasses
import json
import types

import nibabel
import numpy as np
import phantom_shards
import pytest
import tensorflow as tf
from commands import unigan

from keras_unigan import inference, synthesis
from keras_unigan.config import Case, Experiment, Labels, Plan, Study
from keras_unigan.data import nifti, preprocessing, splits
from keras_unigan.data.checks import passes
from keras_unigan.errors import CodedError
from keras_unigan.pipelines import sources as job_sources
from keras_unigan.synthesis import judging, making, memorisation
from keras_unigan.synthesis.sources import Sources
from keras_unigan.training import building

MARK = "SYNTHETIC (keras_unigan)"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthesis")
    phantom_shards.write(
        folder,
        patch_size=(32, 32),
        filters=4,
        modalities=("ct", "t1"),
        subjects_per_modality=3,
        size=32,
        depth=6,
    )
    return folder / "shards"


def run_of(shards, folder, system, **options):
    """A run folder of networks that nobody trained."""
    plan = Plan.from_dict(json.loads((shards / "shards.json").read_text())["plan"])
    model = building.build_model(system, plan, compile=False, filters=4, **options)
    folder.mkdir()
    plan.save(folder / "plan.json")
    experiment = Experiment(str(shards), str(folder), system)
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(experiment)))
    for name, network in {"network.keras": model.network, **model.kept}.items():
        network.save(folder / name)
    return folder


@pytest.fixture(scope="module")
def run(shards, tmp_path_factory):
    """Run of the system that makes pairs from noise."""
    strides = {
        "strides": [[2, 2]],
        "renderer.strides": [[2, 2]],
        "mask_generator.strides": [[2, 2]],
    }
    return run_of(
        shards, tmp_path_factory.mktemp("runs") / "synthesis", "synthesis", network=strides
    )


@pytest.fixture(scope="module")
def translating(shards, tmp_path_factory):
    """Run of a system that translates."""
    return run_of(shards, tmp_path_factory.mktemp("runs") / "unigan", "unigan")


# Pairs.


@pytest.mark.parametrize("method", ["deform", "noise"])
def test_made_pairs_depend_on_the_seed_alone(run, method):
    maker = synthesis.Maker(run, method)
    first, again, other = (maker.make("t1", np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.label_map, again.label_map)
    assert np.abs(first.image[..., :1] - other.image[: len(first.image), :, :1]).max() > 0
    assert first.image.shape == first.label_map.shape == first.inside.shape
    assert first.image.min() >= -1
    assert first.image.max() <= 1
    assert (first.image[~first.inside] == -1).all()
    assert set(np.unique(first.label_map)) <= {0, 1, 2}
    assert (first.source is None) == (method == "noise")
    spacing = np.linalg.norm(first.affine[:3, :3], axis=0)
    np.testing.assert_allclose(spacing, maker.plan.spacing, rtol=0.1)


def test_pairs_of_the_founding_game_are_judged_by_another_run(shards, run, tmp_path, capsys):
    made = run_of(shards, tmp_path / "gan", "gan")
    maker = synthesis.Maker(made)
    assert maker.method == "noise"
    first, again, other = (maker.make("t1", np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.label_map, again.label_map)
    assert np.abs(first.image - other.image).max() > 0
    assert first.image.shape == first.label_map.shape == first.inside.shape == (32, 32, 1)
    assert (first.image[~first.inside] == -1).all()
    assert first.inside[first.label_map > 0].all()
    with pytest.raises(CodedError, match=r"KUG-T02 --method: found deform, .* \['noise'\]"):
        synthesis.Maker(made, "deform")
    arguments = ("synthesize", made, "-n", "1", "--least-dice", "0", "-o", tmp_path / "pairs")
    assert unigan(*arguments) == 2
    assert "KUG-T04" in capsys.readouterr().err
    assert unigan(*arguments, "--judge", run, "--overwrite") == 0
    (case,) = Study.load(tmp_path / "pairs" / "study.json").cases
    assert case.synthetic
    assert nifti.read(tmp_path / "pairs" / case.image).shape == (32, 32, 1)


def test_a_translation_keeps_the_label_map_of_its_source(translating):
    maker = synthesis.Maker(translating)
    assert maker.method == "translate"
    assert maker.targets() == ["ct", "t1"]
    pair = maker.make("t1", np.random.default_rng(0))
    assert pair.source_modality == "ct"
    place = [name for name, *_ in maker.sources.places].index(pair.source)
    source = maker.sources.read(place)
    np.testing.assert_array_equal(pair.label_map, source.label_map)
    np.testing.assert_array_equal(pair.affine, source.affine)
    np.testing.assert_array_equal(pair.inside, preprocessing.nonbackground(source.image))


def test_only_labelled_training_cases_are_sources(shards):
    plan = Plan.from_dict(json.loads((shards / "shards.json").read_text())["plan"])
    found = Sources(shards, plan)
    manifest = json.loads((shards / "shards.json").read_text())
    expected = [c for s in manifest["shards"] if s["split"] == "train" for c in s["cases"]]
    assert sorted(name for name, *_ in found.places) == sorted(expected)
    assert [found.read(n).case for n in range(len(found))] == [p[0] for p in found.places]
    blank = types.SimpleNamespace(label_map=np.zeros((2, 2, 2), np.uint8))
    found.read = lambda number: blank
    with pytest.raises(CodedError, match=r"KUG-D14 .*no case of train with anything labelled"):
        next(found.labelled([0, 1]))


def test_bending_moves_anatomy_and_keeps_its_kind():
    planes = np.zeros((32, 32, 1, 2), np.float32)
    planes[8:24, 8:24, 0, 0] = 1
    planes[..., 1] = 1 - planes[..., 0]
    found = making.bent(planes, np.random.default_rng(3))
    assert found.shape == planes.shape
    assert 0.5 < found[..., 0].sum() / planes[..., 0].sum() < 2
    assert np.abs(found - planes).max() > 0.5
    assert found[16, 16, 0, 0] == pytest.approx(1)
    assert found.min() >= 0
    assert found.max() <= 1


def test_indices_of_regions_are_the_nearest_rows():
    table = np.array(Labels(regions={"whole": (1, 2), "core": (2,)}).membership, np.float32)
    soft = np.array([[0.1, 0.2], [0.9, 0.1], [0.8, 0.7]])
    assert making.indices(soft, table).tolist() == [0, 1, 2]


def test_methods_that_a_run_cannot(run, translating):
    with pytest.raises(CodedError, match=r"KUG-T02 --method: found noise, .* \['translate'\]"):
        synthesis.Maker(translating, "noise")
    with pytest.raises(CodedError, match=r"KUG-T02 .*found translate, .* \['deform', 'noise'\]"):
        synthesis.Maker(run, "translate")
    with pytest.raises(CodedError, match="KUG-T03 modality: found 'pet'"):
        synthesis.Maker(run).targets("pet")


# The gate.


def gate_of(run, probabilities, likely=None, **options):
    """A gate whose segmentor finds `probabilities`, and whose domain head is sure by `likely`."""
    plan = Plan.load(run / "plan.json")
    gate = judging.Judge(run, plan, **options)

    def predictor(patches, modality, row):
        return np.broadcast_to(probabilities, (*patches.shape[:-1], len(probabilities)))

    predictor.spatial_dims = 2
    gate.predictor = predictor
    if likely is not None:
        gate._probability = lambda *_: likely
    return gate


def pair_of(label, target="t1"):
    image = np.random.default_rng(0).uniform(-1, 1, (32, 32, 1)).astype("float32")
    label_map = np.full(image.shape, label, np.uint8)
    return making.Pair(image, np.ones(image.shape, bool), label_map, target, np.eye(4))


def test_the_gate_asks_for_the_anatomy(run):
    organ = gate_of(run, [0.1, 0.9, 0.0])
    assert organ(pair_of(1)) == judging.Verdict(True, "", 1.0, None)
    verdict = organ(pair_of(2))
    assert (verdict.accepted, verdict.reason, verdict.dice) == (False, "Dice below 0.7", 0.0)
    assert organ(pair_of(0)).reason == "nothing labelled"


def test_the_gate_asks_for_the_modality(run):
    assert gate_of(run, [0.1, 0.9, 0.0], likely=0.5)(pair_of(1)).accepted
    verdict = gate_of(run, [0.1, 0.9, 0.0], likely=0.49)(pair_of(1))
    assert verdict.reason == "probability of t1 below 0.5"
    assert gate_of(run, [0.1, 0.9, 0.0], likely=0.49, least_probability=0.4)(pair_of(1)).accepted


def test_the_gate_refuses_images_without_anything(run):
    flat = dataclasses.replace(pair_of(1), image=np.zeros((32, 32, 1), "float32"))
    outside = dataclasses.replace(pair_of(1), inside=np.zeros((32, 32, 1), bool))
    gate = gate_of(run, [0.1, 0.9, 0.0])
    assert gate(flat).reason == gate(outside).reason == "an empty image"


def test_the_domain_head_says_how_likely_the_modality_is(run):
    gate = gate_of(run, [0.1, 0.9, 0.0])

    class Head:
        spatial_dims, channels, patch_size = 2, 1, (32, 32)

        def __call__(self, image, training):
            assert image.shape == (1, 32, 32, 1)
            return None, tf.constant([[0.0, np.log(3.0)]])

    gate.classifier = Head()
    assert gate(pair_of(1)).probability == pytest.approx(0.75)
    assert gate(pair_of(1, "ct")).reason == "probability of ct below 0.5"


def test_a_judge_of_other_data_is_refused(run, tmp_path):
    plan = Plan.load(run / "plan.json")
    dataclasses.replace(plan, spacing=(9.0, 9.0, 9.0)).save(tmp_path / "plan.json")
    with pytest.raises(CodedError, match=r"KUG-T04 .*run of other modalities, labels or spacing"):
        judging.Judge(run, plan, tmp_path)


# Memorisation.


def test_a_copy_is_found_and_strangers_are_none():
    random = np.random.default_rng(0)
    cases = [(f"case{n}", random.normal(size=(40, 40, 3))) for n in range(4)]
    audit = memorisation.Audit(lambda modality: cases)
    copied = audit(cases[2][1][:, :, 1:2] * 0.5 + 0.1, "t1")
    assert (copied["case"], copied["copy"]) == ("case2", True)
    assert copied["distance"] == pytest.approx(0, abs=1e-3)
    stranger = audit(random.normal(size=(40, 40, 1)), "t1")
    assert stranger["copy"] is False
    assert stranger["distance"] > 0.8 * stranger["usual"]


def test_one_training_case_says_nothing_about_what_is_usual():
    audit = memorisation.Audit(lambda modality: [("only", np.arange(48.0).reshape(4, 4, 3))])
    found = audit(np.ones((4, 4, 1)).cumsum(0), "t1")
    assert (found["usual"], found["copy"]) == (None, None)
    nothing = memorisation.Audit(lambda modality: [])
    assert nothing(np.ones((4, 4, 1)).cumsum(0), "t1")["distance"] is None


def test_nearest_by_hand():
    rows, others = np.array([[0.0, 0.0], [3.0, 4.0]]), np.array([[9.0, 9.0], [3.0, 3.0]])
    assert memorisation.nearest(rows, others) == (pytest.approx(np.sqrt(0.5)), 1)


# The folder.


def test_what_a_folder_of_pairs_holds(run, shards, tmp_path):
    real = shards.parent / "study" / "study.json"
    arguments = ("synthesize", run, "-n", "2", "--least-dice", "0", "--least-probability", "0")
    out = tmp_path / "pairs"
    assert unigan(*arguments, "--method", "deform", "-o", out, "--study", real) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["accepted"] == 2
    assert summary["modalities"] == {"ct": 1, "t1": 1}
    lines = [json.loads(line) for line in (out / "provenance.jsonl").read_text().splitlines()]
    assert len(lines) == summary["made"]
    study, before = Study.load(out / "study.json"), Study.load(real)
    made = [case for case in study.cases if case.synthetic]
    assert [case.split for case in made] == ["train", "train"]
    assert len(study.cases) == len(before.cases) + 2
    for case in made:
        assert "SYNTHETIC" in case.image
        image, label = (nifti.read(study.path(n)) for n in (case.image, case.label))
        assert image.synthetic
        assert label.synthetic
        assert image.shape == label.shape
        np.testing.assert_array_equal(image.affine, label.affine)
        beside = json.loads((out / case.image.replace(".nii.gz", ".json")).read_text())
        assert beside["Synthetic"] is True
        assert beside["Source"] in {
            c for c, *_ in Sources(shards, Plan.load(run / "plan.json")).places
        }
    for case in study.cases:
        assert nibabel.load(study.path(case.image)).shape
    # The same seed makes the same files.
    again = tmp_path / "again"
    assert unigan(*arguments, "--method", "deform", "-o", again) == 0
    for name in ("SYNTHETIC_00001_ct.nii.gz", "SYNTHETIC_00002_t1.nii.gz"):
        a, b = (nifti.read(folder / "images" / name).array for folder in (out, again))
        np.testing.assert_array_equal(a, b)


def test_nothing_passes(run, tmp_path, capsys):
    code = unigan("synthesize", run, "-n", "1", "-o", tmp_path / "none", "--least-dice", "1")
    assert code == 3
    assert "KUG-T09" in capsys.readouterr().err
    assert json.loads((tmp_path / "none" / "summary.json").read_text())["accepted"] == 0


def test_a_folder_is_not_overwritten(run, tmp_path, capsys):
    (tmp_path / "study.json").write_text("{}")
    assert unigan("synthesize", run, "-n", "1", "-o", tmp_path) == 2
    assert "KUG-E02" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"least_dice": 1.5}, "KUG-T02 --least-dice: found 1.5, expected 0 to 1"),
        ({"count": 0}, "KUG-T02 --count: found 0, expected 1 or more"),
        ({"to": "pet"}, "KUG-T03"),
    ],
)
def test_settings_that_do_not_fit(run, tmp_path, options, message):
    with pytest.raises(CodedError, match=message):
        synthesis.synthesize(run, tmp_path, **{"count": 1, **options})


def test_a_study_of_other_labels_is_refused(run, tmp_path):
    study = Study("other", ("ct", "t1"), Labels(classes={"bone": (1,)}), ())
    study.save(tmp_path / "study.json")
    with pytest.raises(CodedError, match=r"KUG-D08 .* found modalities .*\['background', 'bone'\]"):
        synthesis.synthesize(run, tmp_path / "o", 1, study=tmp_path / "study.json")


# Where synthetic images may not go.


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_synthetic_case_is_for_training_alone(split):
    with pytest.raises(CodedError, match=f"KUG-D37 s_t1: found a synthetic image in {split}"):
        Case("s", "t1", "a.nii", "b.nii", split, synthetic=True)
    assert Case("s", "t1", "a.nii", "b.nii", "train", synthetic=True).synthetic


def test_the_mark_in_the_header_is_seen_where_the_study_does_not_say_it(tmp_path):
    image = np.random.default_rng(0).integers(1, 99, (12, 12, 4)).astype("int16")
    label = np.zeros((12, 12, 4), "uint8")
    label[4:8, 4:8] = 1
    nifti.write(tmp_path / "a.nii.gz", image, affine=np.eye(4), description=MARK)
    nifti.write(tmp_path / "l.nii.gz", label, affine=np.eye(4))
    labels = Labels(classes={"organ": (1,)})
    for split, refused in (("train", False), ("test", True)):
        case = Case("s", "t1", str(tmp_path / "a.nii.gz"), str(tmp_path / "l.nii.gz"), split)
        study = Study("s", ("t1",), labels, (case,), str(tmp_path))
        study.save(tmp_path / "study.json")
        report, _ = passes.check(tmp_path / "study.json")
        assert ("KUG-D37" in {f.code for f in report.findings}) == refused
        if refused:
            with pytest.raises(CodedError, match="KUG-D37 s_t1: found a synthetic image in test"):
                job_sources.read_case(case)
        else:
            assert job_sources.read_case(case)[0].synthetic


def test_a_study_with_synthetic_images_is_not_split_again():
    case = Case("s", "t1", "a.nii", "b.nii", "train", synthetic=True)
    study = Study("s", ("t1",), Labels(classes={"organ": (1,)}), (case,))
    with pytest.raises(CodedError, match="KUG-D37 s_t1: found a synthetic image in a study that"):
        splits.split(study)


def test_studies_without_synthetic_images_are_written_as_before(tmp_path):
    case = Case("s", "t1", "a.nii", "b.nii", "train")
    study = Study("s", ("t1",), Labels(classes={"organ": (1,)}), (case,))
    assert "synthetic" not in study.to_dict()["cases"][0]
    marked = dataclasses.replace(study, cases=(dataclasses.replace(case, synthetic=True),))
    marked.save(tmp_path / "study.json")
    assert Study.load(tmp_path / "study.json").cases == marked.cases


def test_the_maker_of_a_run_without_networks_for_it(shards, tmp_path):
    folder = run_of(shards, tmp_path / "joint", "joint")
    with pytest.raises(CodedError, match="KUG-T02 --method: found translate, expected a run that"):
        synthesis.Maker(folder)
    assert inference.load_network(folder)
