"""Config files: round trips, and strict readers that name the bad key."""

import dataclasses
import json

import pytest

import keras_unigan.data
from keras_unigan import config
from keras_unigan.config import (
    Case,
    Configuration,
    Experiment,
    Fingerprint,
    Labels,
    ModalityFingerprint,
    Normalization,
    Plan,
    Study,
    TrainOptions,
)
from keras_unigan.errors import CODES, CodedError, did_you_mean

CLASSES = Labels(classes={"organ": (1, 4), "lesion": (2,)})
REGIONS = Labels(regions={"whole": (1, 2, 3, 4), "core": (1, 3, 4), "enhancing": (4,)})


def make_study(labels=CLASSES):
    cases = (
        Case("a", "t1", "a.nii", "a_seg.nii", "train", site="x"),
        Case("b", "ct", "/data/b.nii", None, "test", visit="2"),
    )
    return Study("study", ("ct", "t1"), labels, cases)


def make_plan(**changes):
    values = {
        "study": "study",
        "modalities": ("ct", "t1"),
        "labels": CLASSES,
        "spacing": (1.0, 1.0, 3.0),
        "nearest_axis": 2,
        "normalization": {
            "ct": Normalization("ct", 40.0, 20.0, -2.0, 3.0),
            "t1": Normalization("mr", 100.0, 50.0, -2.0, 2.5),
        },
        "configurations": {
            "2d": Configuration((32, 48), 4, ((2, 2), (2, 2)), 32),
            "3d": Configuration((32, 48, 5), 2, ((2, 2, 1),), 32),
        },
        "reasons": {"spacing": "median"},
    }
    return Plan(**{**values, **changes})


def test_classes():
    assert CLASSES.names == ("background", "organ", "lesion")
    assert CLASSES.foreground == ("organ", "lesion")
    assert CLASSES.values == ((0,), (1, 4), (2,))
    assert CLASSES.membership == ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    assert CLASSES.output_values == (0, 1, 2)
    assert CLASSES.file_values("organ") == (1, 4)
    assert not CLASSES.overlapping


def test_regions():
    assert REGIONS.names == REGIONS.foreground == ("whole", "core", "enhancing")
    assert REGIONS.values == ((0,), (1,), (2,), (3,), (4,))
    assert REGIONS.membership == ((0, 0, 0), (1, 1, 0), (1, 0, 0), (1, 1, 0), (1, 1, 1))
    # 2 alone is not core; 1 is core but not enhancing.
    assert REGIONS.output_values == (2, 1, 4)
    assert REGIONS.overlapping


def test_what_a_label_map_does_not_show():
    assert CLASSES.annotated(None) == CLASSES.annotated(("lesion", "organ")) == (1, 1)
    assert CLASSES.annotated(("lesion",)) == (0, 1)
    assert CLASSES.unannotated_indices(("lesion",)) == (1,)
    assert CLASSES.unannotated_indices(None) == REGIONS.unannotated_indices(None) == ()
    # 4 is in the core too, which was annotated; 2 is in nothing that was.
    assert REGIONS.unannotated_indices(("core",)) == (2,)
    assert REGIONS.unannotated_indices(("whole",)) == ()


def test_annotated_names_round_trip(tmp_path):
    study = make_study()
    first = dataclasses.replace(study.cases[0], annotated=("lesion",))
    study = dataclasses.replace(study, cases=(first, *study.cases[1:]))
    study.save(tmp_path / "study.json")
    assert Study.load(tmp_path / "study.json").cases == study.cases
    data = json.loads((tmp_path / "study.json").read_text())["cases"]
    assert data[0]["annotated"] == ["lesion"]
    assert all("annotated" not in case for case in data[1:])


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ({}, "both or neither"),
        ({"classes": {"a": (1,)}, "regions": {"b": (1,)}}, "both or neither"),
        ({"classes": {"a": ()}}, r"labels.a: found no value"),
        ({"classes": {"a": (0,)}}, r"labels.a: found value 0, expected 1 to 254"),
        ({"regions": {"a": (255,)}}, r"labels.a: found value 255"),
        ({"classes": {"a": (1,), "b": (1,)}}, r"labels.b: found value 1 also in 'a'"),
    ],
)
def test_bad_labels(labels, text):
    with pytest.raises(CodedError, match=f"KUG-D08 .*{text}|KUG-D08 {text}"):
        Labels(**labels)


@pytest.mark.parametrize("labels", [CLASSES, REGIONS])
def test_study_round_trip(labels, tmp_path):
    study = make_study(labels)
    study.save(tmp_path / "study.json")
    again = Study.load(tmp_path / "study.json")
    assert again == dataclasses.replace(study, folder=str(tmp_path))
    data = json.loads((tmp_path / "study.json").read_text())
    assert list(data)[:3] == ["name", "modalities", "regions" if labels is REGIONS else "labels"]
    assert "folder" not in data
    assert data["cases"][0] == {
        **{"subject": "a", "modality": "t1", "image": "a.nii", "label": "a_seg.nii"},
        **{"split": "train", "site": "x"},
    }


def test_single_label_values_need_no_list():
    data = make_study().to_dict()
    data["labels"] = {"organ": 1, "lesion": [2]}
    assert Study.from_dict(data).labels.classes == {"organ": (1,), "lesion": (2,)}


def test_paths_of_a_study():
    study = dataclasses.replace(make_study(), folder="/studies")
    assert study.path("a.nii") == "/studies/a.nii"
    assert study.path("/data/b.nii") == "/data/b.nii"
    assert study.path("gs://b/c.nii") == "gs://b/c.nii"
    assert study.path(None) is None
    assert dataclasses.replace(study, folder="gs://b/s").path("a.nii") == "gs://b/s/a.nii"
    assert [c.id for c in study.cases] == ["a_t1", "b_2_ct"]


def edited(**changes):
    return {**make_study().to_dict(), **changes}


def edited_case(**changes):
    data = make_study().to_dict()
    data["cases"][0] |= changes
    return data


OTHER = {"modality": "ct", "split": "test"}


@pytest.mark.parametrize(
    ("data", "code", "text"),
    [
        ([], "KUG-D08", "found list, expected an object"),
        (edited(label={}), "KUG-D08", r"s.label: .*unknown key 'label' \(did you mean 'labels'"),
        (edited_case(modalty="t1"), "KUG-D08", r"cases\[0\].modalty: .*did you mean 'modality'"),
        (
            edited_case(image=3),
            "KUG-D08",
            r"cases\[0\].image: found 3, expected a value of type str",
        ),
        (edited_case(split="trian"), "KUG-D08", "split 'trian'"),
        (edited_case(modality="T1"), "KUG-D08", "modality 'T1', expected lower case"),
        (edited_case(modality="tt1"), "KUG-D08", r"modality 'tt1' \(did you mean 't1'"),
        (edited(modalities=["t1", "t1"]), "KUG-D08", "expected distinct names"),
        (edited(modalities="t1"), "KUG-D08", "modalities: found str, expected a list"),
        (edited(labels=[1]), "KUG-D08", "s.labels: found list, expected an object"),
        (edited(labels={"a": ["1"]}), "KUG-D08", "expected a value of type int"),
        (edited(cases=[{"subject": "a"}]), "KUG-D08", r"cases\[0\]: found no key 'modality'"),
        (
            edited_case(annotated=["orgam"]),
            "KUG-D08",
            r"a_t1: found annotated 'orgam' \(did you mean 'organ'",
        ),
        (edited_case(annotated=[]), "KUG-D08", "a_t1: found annotated without a name"),
        (edited_case(annotated="organ"), "KUG-D08", "annotated: found str, expected a list"),
        (
            edited_case(annotated=["organ"], label=None),
            "KUG-D08",
            "a_t1: found annotated without a label map",
        ),
        (edited(cases=[edited()["cases"][0]] * 2), "KUG-D13", "a_t1: found the case twice"),
        (
            edited(cases=[edited()["cases"][0], edited_case(**OTHER)["cases"][0]]),
            "KUG-D13",
            "a: found splits 'train' and 'test'",
        ),
    ],
)
def test_strict_study(data, code, text):
    with pytest.raises(CodedError, match=f"{code} .*{text}|{code} {text}"):
        Study.from_dict(data, where="s")


def test_missing_key_of_a_study():
    data = make_study().to_dict()
    del data["cases"]
    with pytest.raises(CodedError, match=r"KUG-D08 study: found no key 'cases'"):
        Study.from_dict(data)


def test_files_that_are_no_json(tmp_path):
    with pytest.raises(CodedError, match=r"KUG-D01 .*none.json: found no such file"):
        Study.load(tmp_path / "none.json")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(CodedError, match=r"KUG-D08 .*a.json: found text that is not JSON"):
        Plan.load(tmp_path / "a.json")


def test_write_json_leaves_no_half_file(tmp_path):
    config.write_json(tmp_path / "deep" / "a.json", {"a": (1, 2)})
    with pytest.raises(TypeError):
        config.write_json(tmp_path / "deep" / "a.json", {"a": object()})
    assert json.loads((tmp_path / "deep" / "a.json").read_text()) == {"a": [1, 2]}
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.json"]


def test_plan_round_trip(tmp_path):
    plan = make_plan()
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert Plan.from_dict(plan.to_dict()) == plan
    flat = plan.configuration(2)
    assert (flat.divisor, flat.levels, flat.spatial_dims) == ((4, 4), 2, 2)
    assert plan.configuration(3).divisor == (2, 2, 1)


def test_recipe_depends_on_what_decides_the_records():
    recipe = make_plan().recipe
    assert recipe == make_plan(overlap=0.25, reasons={}).recipe
    configurations = {"2d": Configuration((64, 64), 4, ((2, 2),), 8)}
    assert recipe == make_plan(configurations=configurations).recipe
    for changes in ({"spacing": (1.0, 1.0, 2.0)}, {"nearest_axis": None}, {"labels": REGIONS}):
        assert make_plan(**changes).recipe != recipe


@pytest.mark.parametrize(
    ("changes", "code", "text"),
    [
        ({"version": 99}, "KUG-D09", "plan.version: found 99, expected 1"),
        ({"spacing": (1.0, 0.0, 1.0)}, "KUG-D08", "plan.spacing"),
        ({"normalization": {}}, "KUG-D08", "plan.normalization"),
        ({"overlap": 1.0}, "KUG-D08", "plan.overlap"),
        ({"spacing": (1.0, float("nan"), 1.0)}, "KUG-D08", "plan.spacing"),
        ({"nearest_axis": 3}, "KUG-D08", "plan.nearest_axis: found 3"),
        ({"configurations": {}}, "KUG-D08", "plan.configurations: found none"),
        (
            {"configurations": {"3d": Configuration((32, 32), 2, (), 8)}},
            "KUG-D08",
            "plan.configurations.3d",
        ),
    ],
)
def test_bad_plan(changes, code, text):
    with pytest.raises(CodedError, match=f"{code} {text}"):
        make_plan(**changes)


def test_bad_parts_of_a_plan():
    with pytest.raises(CodedError, match=r"KUG-T02 spatial_dims: found 3, expected .*\['2d'\]"):
        make_plan(configurations={"2d": Configuration((32, 32), 2, (), 8)}).configuration(3)
    with pytest.raises(CodedError, match=r"KUG-T02 patch_size: .*divisible by \(4, 4\)"):
        Configuration((32, 30), 2, ((2, 2), (2, 2)), 8)
    with pytest.raises(CodedError, match="KUG-T02 batch_size: found 0"):
        Configuration((32, 32), 0, (), 8)
    with pytest.raises(CodedError, match=r"KUG-D08 plan.normalization: found mean 0.0, sd 0"):
        Normalization("mr", 0.0, 0.0, -1.0, 1.0)
    with pytest.raises(CodedError, match=r"KUG-D08 plan.normalization: .*high nan"):
        Normalization("mr", 0.0, 1.0, -1.0, float("nan"))
    with pytest.raises(CodedError, match=r"plan.normalization.scheme: .*did you mean 'pet_suv'"):
        Normalization("pet_suw", 0.0, 1.0, -1.0, 1.0)
    for wrong in ({"strides": ((2, 2, 2),)}, {"strides": ((0, 2),)}, {"filters": 0}):
        values = {"patch_size": (32, 32), "batch_size": 2, "strides": (), "filters": 8, **wrong}
        with pytest.raises(CodedError, match=r"KUG-D08 plan.configurations: found patch_size"):
            Configuration(**values)
    with pytest.raises(CodedError, match=r"KUG-D08 study.normalization: found modality 'tt'"):
        dataclasses.replace(make_study(), normalization={"tt": "mr"})
    with pytest.raises(CodedError, match=r"study.normalization.ct: found 'hu', expected one of"):
        dataclasses.replace(make_study(), normalization={"ct": "hu"})
    named = dataclasses.replace(make_study(), normalization={"ct": "xray"})
    assert Study.from_dict(named.to_dict(), named.folder) == named
    data = make_plan().to_dict()
    data["normalization"]["ct"]["men"] = 1.0
    with pytest.raises(CodedError, match=r"plan.normalization.ct.men: .*did you mean 'mean'"):
        Plan.from_dict(data)


def test_fingerprint_round_trip(tmp_path):
    facts = ModalityFingerprint(
        cases=1,
        shapes=((3, 4, 5),),
        spacings=((1.0, 1.0, 2.5),),
        mean=1.0,
        sd=2.0,
        low=-1.0,
        high=7.0,
        scaled_low=-1.5,
        scaled_high=2.5,
        voxels={"organ": 3},
    )
    fingerprint = Fingerprint({"t1": facts})
    fingerprint.save(tmp_path / "f.json")
    assert Fingerprint.load(tmp_path / "f.json") == fingerprint
    data = json.loads((tmp_path / "f.json").read_text())
    data["modalities"]["t1"]["shapes"] = [[3, 4]]
    (tmp_path / "f.json").write_text(json.dumps(data))
    with pytest.raises(CodedError, match=r"t1.shapes\[0\]: found 2 values, expected 3"):
        Fingerprint.load(tmp_path / "f.json")


def test_experiment_round_trip_and_overrides(tmp_path):
    experiment = Experiment("shards", "run", steps=5, train=TrainOptions(batch_size=3))
    experiment.save(tmp_path / "config.json")
    assert Experiment.load(tmp_path / "config.json") == experiment
    changed = experiment.override(
        [
            *("train.batch_size=8", "train.patch_size=[32, 32]", "game.lambda_dice=0.5"),
            *("network.filters=16", "model=joint", "train.learning_rate=1", "steps=null"),
        ]
    )
    assert changed.train.batch_size == 8
    assert changed.train.patch_size == (32, 32)
    assert (changed.game, changed.network) == ({"lambda_dice": 0.5}, {"filters": 16})
    assert (changed.model, changed.train.learning_rate, changed.steps) == ("joint", 1.0, None)
    assert experiment.train.batch_size == 3


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("train.batchsize=4", r"--set: found 'train.batchsize' \(did you mean 'train.batch_size'"),
        ("batch_size=4", "--set: found 'batch_size'"),
        ("train=4", "--set: found 'train'"),
        ("train.batch_size", "--set: found 'train.batch_size', expected key=value"),
        ("train.batch_size=many", "--set.train.batch_size: found 'many', expected .* type int"),
        ("train.batch_size=0", "train.batch_size: found 0"),
        ("train.mixed_precision=half", "train.mixed_precision: found half"),
        ("train.augment=contrats", r"train.augment: found 'contrats' \(did you mean 'contrast'"),
        ("train.augment=true", 'train.augment: found True, .* Fix: write "light" for true'),
        ("train.augment=false", 'train.augment: found False, .* Fix: write "none" for false'),
        ("train.augment=[1]", r"train.augment: found \[1\], expected one of"),
        ("train.contrast_fraction=2", "train.contrast_fraction: found 2"),
        ("train.targets=all", "train.targets: found 'all', expected one of .*'permute', 'uniform'"),
    ],
)
def test_bad_overrides(setting, text):
    with pytest.raises(CodedError, match=f"KUG-T02 {text}"):
        Experiment("shards", "run").override([setting])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"steps": 1, "minutes": 1.0}, "budget: found minutes and steps"),
        ({"epochs": 0}, "epochs: found 0, expected more than 0"),
        ({"spatial_dims": 4}, "spatial_dims: found 4, expected 2 or 3"),
        ({"replicas": 0}, "replicas: found 0"),
    ],
)
def test_bad_experiment(changes, text):
    with pytest.raises(CodedError, match=f"KUG-T02 {text}"):
        Experiment("shards", "run", **changes)


def test_an_old_file_with_a_boolean_says_what_to_write(tmp_path):
    experiment = Experiment("shards", "run", train=TrainOptions(augment="light"))
    assert (TrainOptions().augment, TrainOptions().targets) == (None, "permute")
    experiment.save(tmp_path / "config.json")
    text = (tmp_path / "config.json").read_text().replace('"augment": "light"', '"augment": true')
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CodedError, match=r'KUG-T02 train.augment: .* write "light" for true'):
        Experiment.load(tmp_path / "config.json")


def test_coded_error_says_everything():
    error = CodedError("KUG-D03", "case7", "2", "3", "It matters.", "do it")
    assert str(error) == "KUG-D03 case7: found 2, expected 3. It matters. Fix: do it"
    assert str(CodedError("KUG-S01", "host", "a", "b")) == "KUG-S01 host: found a, expected b."
    assert (error.exit_code, CodedError("KUG-T01", "a", "b", "c").exit_code) == (3, 2)
    assert isinstance(error, ValueError)
    with pytest.raises(KeyError):
        CodedError("KUG-X99", "a", "b", "c")


def test_codes_have_a_letter_and_an_exit_code():
    for code, (title, exit_code) in CODES.items():
        prefix, letter = code.split("-")
        assert prefix == "KUG"
        assert letter[0] in "DTSE"
        assert letter[1:].isdigit()
        assert len(letter) == 3
        assert title
        assert exit_code in (2, 3, 4)


def test_did_you_mean():
    assert did_you_mean("flare", ["flair", "t1"]) == " (did you mean 'flair'?)"
    assert did_you_mean("zzz", ["flair", "t1"]) == ""


def test_data_package_is_lazy():
    assert "load" in dir(keras_unigan.data)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = keras_unigan.data.lod
