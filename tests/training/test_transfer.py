"""`--init-from`: what is copied, what grows, what stays fresh."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf  # noqa: F401  (at the top: see conftest.pytest_collection_finish)
from checks import plan as make_plan

from keras_unigan import classification, training
from keras_unigan.callbacks import Checkpoint, State
from keras_unigan.config import Experiment, Labels
from keras_unigan.errors import CodedError
from keras_unigan.training import transfer

SMALL = {
    "joint": {"filters": 4, "strides": [[2, 2]]},
    "segan": {"filters": 4},
    "stargan": {"filters": 4, "blocks": 1},
    "uagan": {"filters": 4, "levels": 1},
    "unigan": {"filters": 4, "strides": [[2, 2]]},
}


def build(name, plan, seed, **game):
    return training.build_model(name, plan, seed=seed, network=SMALL[name], game=game)


def run_of(folder, name, plan, checkpoint=True, **game):
    """A run folder without its training, and the game in it."""
    model = build(name, plan, 1, **game)
    folder.mkdir()
    plan.save(folder / "plan.json")
    options = {"model": name, "network": SMALL[name], "game": game}
    Experiment("shards", str(folder), horizon=1000, **options).save(folder / "config.json")
    model.network.save(folder / "network.keras")
    if checkpoint:
        saving = Checkpoint(folder / "checkpoints", State())
        saving.set_model(model)
        saving.save()
    return model


def values(network):
    return {v.path: np.array(v.numpy()) for v in network.weights}


def two(size=32):
    return make_plan(modalities=("ct", "t1"), size=size)


@pytest.mark.parametrize("name", ["joint", "segan", "unigan"])
def test_the_same_data_copies_everything(tmp_path, name):
    source = run_of(tmp_path / "a", name, two())
    model = build(name, two(), 2)
    report = transfer.initialize(model, two(), tmp_path / "a")
    assert all(not d["extended"] and not d["fresh"] for d in report["roles"].values())
    for role in model.roles:
        for path, value in values(getattr(source, role)).items():
            np.testing.assert_array_equal(values(getattr(model, role))[path], value)
    for a, b in zip(model.network.get_weights(), source.network.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert "copied" in transfer.text(report)


def test_classes_go_to_their_place_by_name(tmp_path):
    source = run_of(tmp_path / "a", "joint", two())
    assert classification.load(tmp_path / "a") is None
    labels = Labels(classes={"vessel": (7,), "organ": (1,)})
    plan = dataclasses.replace(two(), labels=labels)
    model = build("joint", plan, 2)
    fresh = values(model.segmentor)
    report = transfer.initialize(model, plan, tmp_path / "a")
    assert report["classes"] == {"kept": ["background", "organ"], "new": ["vessel"]}
    before, after = values(source.segmentor), values(model.segmentor)
    for part in ("kernel", "bias"):
        old, new = before[f"logits/{part}"], after[f"logits/{part}"]
        np.testing.assert_array_equal(new[..., 0], old[..., 0])
        np.testing.assert_array_equal(new[..., 2], old[..., 1])  # organ
        np.testing.assert_array_equal(new[..., 1], fresh[f"logits/{part}"][..., 1])
    assert report["roles"]["segmentor"]["extended"] == ["logits/kernel", "logits/bias"]
    np.testing.assert_array_equal(after["centre_conv_0/kernel"], before["centre_conv_0/kernel"])
    np.testing.assert_array_equal(values(model.network)["logits/kernel"], after["logits/kernel"])


def test_an_added_modality_keeps_the_codes_of_the_old_ones(tmp_path):
    source = run_of(tmp_path / "a", "stargan", two())
    plan = make_plan(modalities=("flair", "t1", "ct"), size=32)
    model = build("stargan", plan, 2)
    fresh = values(model.generator)["first/kernel"]
    report = transfer.initialize(model, plan, tmp_path / "a")
    assert report["modalities"] == {"kept": ["t1", "ct"], "new": ["flair"]}
    old, new = (values(m.generator)["first/kernel"] for m in (source, model))
    np.testing.assert_array_equal(new[..., 0, :], old[..., 0, :])  # image
    np.testing.assert_array_equal(new[..., 1, :], fresh[..., 1, :])  # flair
    np.testing.assert_array_equal(new[..., 2, :], old[..., 2, :])  # t1
    np.testing.assert_array_equal(new[..., 3, :], old[..., 1, :])  # ct
    (head,) = report["roles"]["discriminator"]["extended"]
    old, new = (values(m.discriminator)[head] for m in (source, model))
    np.testing.assert_array_equal(new[..., 1:], old[..., ::-1])
    # The same head says of which modality an image is.
    found = values(classification.load(tmp_path / "a"))
    for path, value in values(source.discriminator).items():
        np.testing.assert_array_equal(found[path], value)


@pytest.mark.parametrize("conditioning", ["concat", "film+difference"])
def test_the_unknown_code_stays_last(tmp_path, conditioning):
    network = {**SMALL["unigan"], "conditioning": conditioning}
    plan = make_plan(modalities=("ct", "t1", "t2"), size=32)
    source, model = (
        training.build_model("unigan", p, seed=s, network=network, compile=False)
        for p, s in ((two(), 1), (plan, 2))
    )
    for variable in source.generator.weights:  # tables start as ones and zeros
        variable.assign(np.random.default_rng(0).normal(size=variable.shape))
    run_of(tmp_path / "a", "joint", two(), checkpoint=False)
    source.generator.save(tmp_path / "a" / "network.keras")
    report = transfer.initialize(model, plan, tmp_path / "a")
    assert report["roles"]["discriminator"]["fresh"] == ["all"]
    for path in report["roles"]["generator"]["extended"]:
        old, new = (values(m.generator)[path] for m in (source, model))
        if path.endswith("kernel"):
            planes = [0, 1, 2] + ([4] if conditioning == "concat" else [])
            np.testing.assert_array_equal(new[..., planes, :], old)
        else:
            np.testing.assert_array_equal(new[[0, 1, 3]], old)
    assert len(report["roles"]["generator"]["extended"]) == (1 if conditioning == "concat" else 9)


def test_planes_keep_their_place_behind_local_contrast(tmp_path):
    network = {**SMALL["unigan"], "local_contrast": True, "conditioning": "difference"}
    plan = make_plan(modalities=("ct", "t1", "t2"), size=32)
    source, model = (
        training.build_model("unigan", p, seed=s, network=network, compile=False)
        for p, s in ((two(), 1), (plan, 2))
    )
    run_of(tmp_path / "a", "joint", two(), checkpoint=False)
    source.generator.save(tmp_path / "a" / "network.keras")
    fresh = values(model.generator)["encoder_0_conv_0/kernel"]
    transfer.initialize(model, plan, tmp_path / "a")
    old, new = (values(m.generator)["encoder_0_conv_0/kernel"] for m in (source, model))
    np.testing.assert_array_equal(new[..., :4, :], old)  # image, its contrast, ct, t1
    np.testing.assert_array_equal(new[..., 4, :], fresh[..., 4, :])  # t2


def test_every_system_takes_another_study(tmp_path):
    plan = dataclasses.replace(
        make_plan(modalities=("t1", "t2", "ct"), size=32),
        labels=Labels(classes={"lesion": (2,), "organ": (1,), "vessel": (3,)}),
    )
    run_of(tmp_path / "a", "unigan", two(), critic_mode="joint")
    model = build("unigan", plan, 2, critic_mode="joint")
    roles = transfer.initialize(model, plan, tmp_path / "a")["roles"]
    assert not any(done["fresh"] for done in roles.values())
    # Of the generator: the logits, and scale and offset at two norms of the translation.
    assert [len(done["extended"]) for done in roles.values()] == [5, 1, 1]


def test_regions_have_no_part_in_classes(tmp_path):
    run_of(tmp_path / "a", "joint", two())
    plan = dataclasses.replace(two(), labels=Labels(regions={"organ": (1, 2), "lesion": (2,)}))
    report = transfer.initialize(build("joint", plan, 2), plan, tmp_path / "a")
    assert report["classes"]["kept"] == []
    assert report["roles"]["segmentor"]["fresh"] == ["logits/kernel", "logits/bias"]


def test_another_architecture_is_refused(tmp_path):
    run_of(tmp_path / "a", "joint", two(), checkpoint=False)
    with pytest.raises(CodedError, match=r"KUG-T04 .*found UNet, expected SegANSegmentor"):
        transfer.initialize(build("segan", two(), 2), two(), tmp_path / "a")
    run_of(tmp_path / "b", "stargan", two())
    with pytest.raises(CodedError, match=r"KUG-T04 .*found StarGANGenerator, expected UNet"):
        transfer.initialize(build("joint", two(), 2), two(), tmp_path / "b")
    wide = training.build_model("joint", two(), network={**SMALL["joint"], "filters": 5})
    with pytest.raises(CodedError, match=r"KUG-T04 .*found shape \(3, 3, 1, 4\) for encoder_0_con"):
        transfer.initialize(wide, two(), tmp_path / "a")
    with pytest.raises(CodedError, match=r"KUG-T04 .*found no network\.keras"):
        transfer.initialize(wide, two(), tmp_path / "nowhere")


def test_a_run_starts_from_another(experiment, tmp_path, capsys):
    training.run(experiment(tmp_path / "a", epochs=1), quiet=True)
    second = experiment(tmp_path / "b", {"steps_per_epoch": 1}, epochs=1)
    second = dataclasses.replace(second, init_from=str(tmp_path / "a"))
    assert training.describe(second)["init_from"]["roles"]["segmentor"]["copied"] > 0
    training.run(second)
    assert f"started from {tmp_path / 'a'}; segmentor: " in capsys.readouterr().out
    text = (tmp_path / "b" / "run.json").read_text()
    assert '"init_from"' in text
    assert '"copied"' in text
    a, b = (training.load_model(tmp_path / r).get_weights()[0] for r in "ab")
    assert 0 < np.abs(a - b).max() < 0.01


def test_a_checkpoint_that_is_replaced_while_it_is_read(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    run_of(folder, "joint", make_plan())
    state = Checkpoint.read(folder / "checkpoints")
    weights = folder / "checkpoints" / str(state.weights)
    newer = weights.with_name("step_00000009.weights.h5")
    read, states = Checkpoint.read, []

    def replaced(path):
        found = read(path)
        if not states:  # between the state and the weights that it names, the run saves again
            weights.rename(newer)
            Checkpoint(path, dataclasses.replace(found, weights=newer.name)).save_state()
        states.append(found)
        return found

    monkeypatch.setattr(Checkpoint, "read", staticmethod(replaced))
    assert transfer.checkpointed(folder)["segmentor"].built
    assert len(states) == 2
    newer.unlink()
    with pytest.raises(CodedError, match=r"KUG-T04 .*: found no such file, expected the weights"):
        transfer.checkpointed(folder)


def test_a_checkpoint_of_other_networks_is_refused(tmp_path):
    run_of(tmp_path / "run", "joint", make_plan())
    run_of(tmp_path / "other", "segan", make_plan())
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        path.unlink()
    for path in (tmp_path / "other" / "checkpoints").iterdir():
        path.rename(tmp_path / "run" / "checkpoints" / path.name)
    with pytest.raises(CodedError, match=r"KUG-T04 .*: found weights that do not load \("):
        transfer.checkpointed(tmp_path / "run")
