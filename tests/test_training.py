import dataclasses
import json
import shutil

import checks
import keras
import numpy as np
import phantom_shards
import pytest
import rich.console
import tensorflow as tf  # noqa: F401  (at the top: see conftest.pytest_collection_finish)

from keras_unigan import training
from keras_unigan.config import Experiment, Labels, Plan, TrainOptions
from keras_unigan.data import datasets, records
from keras_unigan.errors import CodedError
from keras_unigan.systems import SYSTEMS

FAST = TrainOptions(
    patch_size=(32, 32), batch_size=4, steps_per_epoch=3, learning_rate=1e-3, ema_decay=0.9
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return phantom_shards.write(
        tmp_path_factory.mktemp("training"),
        patch_size=(32, 32),
        filters=4,
        modalities=("ct", "t1"),
        subjects_per_modality=3,
        size=32,
        depth=6,
    )


@pytest.fixture(scope="module")
def plan(shards):
    return Plan.load(shards / "plan.json")


def experiment(shards, output, **changes):
    # One level: most of the time of such a run goes into building the graph.
    network = {"strides": [[2, 2]]}
    settings = {"model": "joint", "epochs": 2, "train": FAST, "network": network, **changes}
    return Experiment(shards=str(shards), output=str(output), **settings)


class Interrupting:
    """A console at which somebody presses Ctrl-C after the first epoch."""

    is_terminal = False

    def print(self, text):
        raise KeyboardInterrupt


def history(folder):
    """Rows without the seconds."""
    lines = (folder / "history.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines]
    kept = [place for place, name in enumerate(rows[0]) if "seconds" not in name]
    return [[row[place] for place in kept] for row in rows]


# build_model


# Their networks are one family, of which a few are built here.
FAMILY = ("individual", "joint_cond", "early_fusion", "late_fusion", "dual_stream", "y_shape")


@pytest.mark.parametrize(
    ("name", "dims"),
    [
        pytest.param(n, d, marks=pytest.mark.slow if n in FAMILY else [])
        for n, s in SYSTEMS.items()
        for d in s["spatial_dims"]
    ],
)
def test_every_system_is_built_from_the_plan(plan, name, dims):
    if dims == 3:
        # Few thick slices: all networks go by the strides of the plan.
        plan = datasets.configure(plan, 3, TrainOptions(patch_size=(32, 32, 6)))
        thin = dataclasses.replace(plan.configuration(3), strides=((2, 2, 1), (2, 2, 2)))
        plan = dataclasses.replace(plan, configurations={"3d": thin})
    elif name == "segan_isic":
        plan = datasets.configure(plan, 2, TrainOptions(patch_size=(128, 128)))
    options = {"ema_decay": 0.5, "learning_rate": 0.25}
    model = training.build_model(name, plan, dims, filters=4, total_steps=77, **options)
    main = getattr(model, model.roles[0])
    assert (main.filters, model.network.spatial_dims) == (4, dims)
    assert (model.ema_decay, model.total_steps) == (0.5, 77)
    assert model.compiled
    assert [int(model.role_optimizer(role).iterations) for role in model.roles] == [0] * len(
        model.roles
    )
    if hasattr(main, "strides") and not getattr(main, "planned", False):
        assert [tuple(s) for s in main.strides] == list(plan.configuration(dims).strides)


def test_the_plan_and_the_system_decide_the_width(plan):
    assert training.build_model("joint", plan).segmentor.filters == plan.configuration(2).filters
    model = training.build_model("segan_paper", plan)
    assert model.segmentor.filters == 64
    assert model.critic.filters == (64, 128, 256)
    options = (model.critic.constraint, model.mask_mode, model.lambda_dice)
    assert options == ("clip", "multiply", 0.0)
    assert model.critic.input_shape[-1] == 1
    assert model.network.output_shape == (None, None, None, 3)
    assert model.predict(np.zeros((1, 32, 32, 1), np.float32), verbose=0).shape == (1, 32, 32, 3)


def test_regions_give_one_output_each(plan):
    labels = Labels(regions={"whole": (1, 2), "core": (2,)})
    model = training.build_model("segan", dataclasses.replace(plan, labels=labels))
    assert model.network.output_shape[-1] == 2


def test_plan_may_be_a_path_or_json(shards, plan):
    for given in (shards / "plan.json", plan.to_dict()):
        assert training.build_model("joint", given, compile=False).plan == plan


def test_settings_reach_their_place(plan):
    model = training.build_model(
        "segan",
        plan,
        network={"filters": 8, "critic.filters": (2, 3)},
        game={"constraint": "clip"},
        train=TrainOptions(learning_rate=0.125),
        lambda_dice=0.5,
        ema_decay=0.25,
    )
    assert (model.segmentor.filters, model.critic.filters) == (8, (2, 3))
    # Left alone, the critic keeps its proportion to the segmentor, whose paper width is 64.
    assert training.build_model("segan", plan, filters=8).critic.filters == (8, 16, 32)
    assert (model.constraint, model.critic.constraint) == ("clip", "clip")
    assert (model.lambda_dice, model.ema_decay) == (0.5, 0.25)
    assert float(model.optimizer.learning_rate) == 0.125
    assert training.build_model("joint", plan, filters=2).segmentor.filters == 2
    assert not training.build_model("joint", plan, compile=False).compiled


def test_the_seed_decides_the_weights(plan):
    first, same, other = (
        training.build_model("joint", plan, seed=seed, compile=False).segmentor.get_weights()[0]
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()


def test_mixed_precision_ends_with_the_model(plan):
    model = training.build_model("segan", plan, mixed_precision="mixed_bfloat16", compile=False)
    assert model.segmentor.compute_dtype == "bfloat16"
    assert model.network.output.dtype == "float32"
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "segann"}, r"KUG-T01 model: found 'segann' \(did you mean 'segan'\?\), expected"),
        (
            {"lambda_dise": 0.1},
            r"KUG-T02 model segan: found unknown option 'lambda_dise' .*'lambda_dice'\?\)",
        ),
        ({"network": {"filter": 4}}, r"unknown option 'network.filter' .*mean 'filters'\?\)"),
        ({"game": {"mask": "concat"}}, r"unknown option 'game.mask' .*mean 'mask_mode'\?\)"),
        ({"mask_mode": "add"}, r"KUG-T02 model segan: .*Expected mask_mode in .*, got 'add'"),
        ({"filters": "many"}, "KUG-T02 model segan: found settings refused"),
        ({"spatial_dims": 4}, r"KUG-T02 spatial_dims: found 4, expected \(2, 3\)"),
        ({"ema_decay": 1.5}, r"KUG-T02 .*Expected 0 <= ema_decay < 1, got 1.5"),
        ({"patience": -1}, r"KUG-T02 train\.patience: found -1"),
    ],
)
def test_wrong_settings_are_named(plan, arguments, message):
    with pytest.raises(CodedError, match=message):
        training.build_model(**{"name": "segan", "plan": plan, **arguments})


def test_a_patch_that_the_network_cannot_halve(plan):
    flat = dataclasses.replace(plan.configuration(2), patch_size=(36, 36), strides=((2, 2),))
    odd = dataclasses.replace(plan, configurations={"2d": flat})
    # A network of a depth of its own, whatever the plan's.
    with pytest.raises(CodedError, match=r"KUG-T02 .*\(36, 36\), .*CompactDilatedNet.*\[48,48\]"):
        training.build_model("ummkd", odd)
    for system in ("joint", "segan"):
        assert training.build_model(system, odd, compile=False).segmentor.strides == ((2, 2),)


# run


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory):
    """A run of two epochs in one go: its folder, summary and printed lines."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    console = rich.console.Console(record=True, width=200, soft_wrap=True, highlight=False)
    return folder, training.run(experiment(shards, folder), console=console), console.export_text()


def test_a_run_folder_is_complete(whole, shards, plan):
    folder, summary, _ = whole
    names = {p.name for p in folder.iterdir()}
    assert names == {
        *("config.json", "plan.json", "network.keras", "run.json", "history.csv", "progress.png"),
        *("health.json", "audit.csv", "audit.json", "checkpoints", "tb"),
    }
    assert (summary["epochs"], summary["steps"], summary["skipped_steps"]) == (2, 6, 0)
    assert 0 <= summary["best_dice"] <= 1
    assert Experiment.load(folder / "config.json") == experiment(shards, folder, horizon=6)
    assert Plan.load(folder / "plan.json").configuration(2).batch_size == 4
    rows = history(folder)
    assert [row[:2] for row in rows[1:]] == [["1", "3"], ["2", "6"]]
    assert {"loss", "val_dice", "val_dice_ct", "val_dice_t1"} <= set(rows[0])
    (entry,) = json.loads((folder / "run.json").read_text())
    assert (entry["command"], entry["status"], entry["seed"]) == ("train", "finished", 0)
    assert entry["versions"]["keras"] == keras.__version__
    digest = records.sha256(shards / "shards.json")
    assert entry["inputs"] == {"shards": str(shards), "shards_sha256": digest}


def test_progress_is_told(whole):
    lines = whole[2].splitlines()
    assert lines[0].startswith("epoch 1  step 3/6  ")
    assert "Dice 0." in lines[1]
    assert "(ct 0." in lines[1]


def test_the_network_of_a_run_comes_back(whole):
    network, plan = training.load_run(whole[0])
    assert plan.configuration(2).patch_size == (32, 32)
    for path in (whole[0], whole[0] / "network.keras"):
        again = training.load_model(path)
        image = np.ones((1, 32, 32, 1), np.float32)
        np.testing.assert_array_equal(again(image), network(image))


# A killed process that goes on, in training/test_resume.py, always runs.
@pytest.mark.slow
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(whole, shards, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        training.run(experiment(shards, folder), console=Interrupting())
    # As if it had been killed between the row of the second epoch and its checkpoint.
    with (folder / "history.csv").open("a") as file:
        file.write("2" + "," * (len(history(whole[0])[0])) + "\n")
    summary = training.run(experiment(shards, folder), resume=True, quiet=True)
    assert (summary["epochs"], summary["steps"]) == (2, 6)
    assert history(folder) == history(whole[0])
    first, second = (training.load_model(f).get_weights() for f in (folder, whole[0]))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)
    statuses = [entry["status"] for entry in json.loads((folder / "run.json").read_text())]
    assert statuses == ["interrupted", "finished"]


@pytest.mark.slow
def test_more_budget_does_not_bend_the_schedules(whole, shards, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)
    longer = experiment(shards, folder, epochs=None, steps=7)
    assert training.run(longer, resume=True, quiet=True)["steps"] == 7
    assert Experiment.load(folder / "config.json").horizon == 6
    with pytest.raises(CodedError, match=r"KUG-T04 .*found horizon 9, expected the run's own 6"):
        training.run(dataclasses.replace(longer, steps=8, horizon=9), resume=True)


def test_micro_batches_have_one_size(shards, tmp_path):
    odd = dataclasses.replace(FAST, accumulate=3)
    message = r"KUG-T02 train\.batch_size: found 4 over 1 replicas, each in 3 micro-batches, expec"
    with pytest.raises(CodedError, match=message):
        training.run(experiment(shards, tmp_path / "run", train=odd))
    assert not (tmp_path / "run").exists()


def test_a_compiled_step_computes_the_same(plan):
    losses = []
    for jit_compile in (False, True):
        options = TrainOptions(jit_compile=jit_compile)
        small = {"strides": [[2, 2]], "filters": 4}
        model = training.build_model("joint", plan, seed=1, network=small, train=options)
        batch = checks.batch(plan, 2)
        data = checks.dataset([batch])
        history = model.fit(data, steps_per_epoch=2, shuffle=False, verbose=0).history
        losses.append(history["loss"])
    np.testing.assert_allclose(*losses, rtol=1e-3)


@pytest.mark.slow
def test_two_replicas_train_as_one_does(whole, shards, tmp_path):
    folder = tmp_path / "run"
    training.run(experiment(shards, folder, replicas=2), quiet=True)
    two, one = history(folder), history(whole[0])
    assert two[0] == one[0]
    for name in ("loss", "val_loss", "val_dice"):
        column = one[0].index(name)
        found, expected = ([float(row[column]) for row in rows[1:]] for rows in (two, one))
        np.testing.assert_allclose(found, expected, rtol=0.01)


def test_without_validation_over_an_old_run(tmp_path):
    """Steps end within an epoch; what is not of a run stays in the folder."""
    options = {"modalities": ("ct",), "subjects_per_modality": 2, "size": 32, "depth": 3}
    shards = phantom_shards.write(
        tmp_path, patch_size=(32, 32), filters=2, fractions=(1.0, 0.0, 0.0), **options
    )
    (tmp_path / "tb").mkdir()
    for name in ("notes.txt", "report.html", "network.keras"):
        (tmp_path / name).write_text("old")
    running = experiment(shards, tmp_path, epochs=None, steps=2)
    summary = training.run(running, overwrite=True, quiet=True)
    assert (summary["epochs"], summary["steps"]) == (1, 2)
    assert np.isnan(summary["best_dice"])
    assert training.load_run(tmp_path)[0].filters == 2
    assert (tmp_path / "notes.txt").read_text() == "old"
    assert not (tmp_path / "report.html").exists()


def test_a_run_that_cannot_learn_says_so(shards, tmp_path):
    folder = tmp_path / "run"
    broken = experiment(shards, folder, game={"ce_weight": 3e38})  # squares of gradients overflow
    with pytest.raises(CodedError, match=r"KUG-T05 epoch 1: found no step .* in 3 .*learning_rate"):
        training.run(broken, quiet=True)
    assert json.loads((folder / "run.json").read_text())[0]["status"] == "failed"


def test_nothing_is_overwritten_unasked(shards, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CodedError, match=r"KUG-E02 .*found files in it, .*--resume or --overwrite"):
        training.run(experiment(shards, tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_a_bad_start_leaves_no_folder(shards, tmp_path):
    with pytest.raises(CodedError, match="KUG-T01"):
        training.run(experiment(shards, tmp_path / "run", model="unknown", network={}))
    with pytest.raises(CodedError, match=r"KUG-D01 .*shards\.json"):
        training.run(experiment(tmp_path / "nowhere", tmp_path / "run"))
    with pytest.raises(CodedError, match=r"KUG-T02 replicas: found 9 replicas and 2 CPU devices"):
        training.run(experiment(shards, tmp_path / "run", replicas=9))
    odd = dataclasses.replace(FAST, batch_size=3)
    with pytest.raises(CodedError, match=r"KUG-T02 train\.batch_size: found 3 over 2 replicas"):
        training.run(experiment(shards, tmp_path / "run", replicas=2, train=odd))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"KUG-T02 .*found a finished run \(6 steps, .*expected budget that is left"),
        ({"seed": 1, "epochs": 3}, r"KUG-T04 .*found seed 1, expected the run's own 0"),
        (
            {"model": "segan", "network": {}},
            r"KUG-T04 .*found model segan, expected the run's own joint",
        ),
    ],
)
def test_what_cannot_be_resumed(whole, shards, changes, message):
    before = (whole[0] / "config.json").read_text()
    with pytest.raises(CodedError, match=message):
        training.run(experiment(shards, whole[0], **changes), resume=True)
    assert (whole[0] / "config.json").read_text() == before


def test_nothing_to_resume(shards, tmp_path):
    with pytest.raises(CodedError, match=r"KUG-T04 .*found no run, .*without --resume"):
        training.run(experiment(shards, tmp_path), resume=True)
    experiment(shards, tmp_path).save(tmp_path / "config.json")
    with pytest.raises(CodedError, match=r"KUG-T04 .*found no checkpoint"):
        training.run(experiment(shards, tmp_path), resume=True)


def test_files_that_are_no_model(tmp_path):
    with pytest.raises(CodedError, match=r"KUG-T04 .*found no such file"):
        training.load_model(tmp_path / "missing.keras")
    (tmp_path / "network.keras").write_bytes(b"text")
    with pytest.raises(CodedError, match=r"KUG-T04 .*found a file that Keras cannot load"):
        training.load_model(tmp_path / "network.keras")
    with pytest.raises(CodedError, match=r"KUG-T04 .*found no "):
        training.load_run(tmp_path)


def test_describe_writes_nothing(shards, tmp_path):
    found = training.describe(
        experiment(shards, tmp_path / "run", model="segan", epochs=None, network={"filters": 4})
    )
    assert found["steps"] == training.DEFAULT_STEPS
    assert found["patch_size"] == [32, 32]
    assert set(found["parameters"]) == {"segmentor", "critic"}
    assert found["validation_batches"] > 0
    assert json.dumps(found)
    assert not (tmp_path / "run").exists()


def test_a_study_that_cannot_teach_a_system_is_refused(tmp_path):
    shards = phantom_shards.write(
        tmp_path,
        patch_size=(32, 32),
        filters=4,
        unlabelled=(0, 2, 4),
        modalities=("ct", "t1"),
        subjects_per_modality=3,
        size=32,
        depth=6,
    )
    for model in ("synseg", "sifa"):
        with pytest.raises(CodedError, match=r'KUG-D14 .*no label map of ct.*\["t1","ct"\]'):
            training.describe(experiment(shards, tmp_path / "run", model=model, network={}))
    wrong = {"game": {"pair": ["ct", "pet"]}, "network": {}}
    with pytest.raises(CodedError, match=r"KUG-T02 model synseg: .*Expected a pair of two of"):
        training.describe(experiment(shards, tmp_path / "run", model="synseg", **wrong))


def test_what_a_run_leaves_open_is_the_systems_own(shards, tmp_path):
    own = experiment(shards, tmp_path / "run", model="ummkd", network={"filters": 2})
    own = dataclasses.replace(own, train=dataclasses.replace(own.train, batch_size=None))
    found = training.describe(own)
    assert found["batch_size"] == 16
    augments = [training.own_options(n, TrainOptions()).augment for n in SYSTEMS]
    assert dict(zip(SYSTEMS, augments, strict=True)) | {"joint": "own"} == {
        **dict.fromkeys(SYSTEMS),
        **{"joint": "own", "nnunet_plain": "standard", "synth_contrast": "paint"},
    }
