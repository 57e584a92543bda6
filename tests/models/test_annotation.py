"""Label maps that do not show all classes: what games then learn from them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from checks import batch, check_replicas, plan, random, tensors

from keras_unigan import config
from keras_unigan.models.comparison import boundary
from keras_unigan.training import build_model

REGIONS = config.Labels(regions={"whole": (1, 2, 4), "core": (1, 4)})
PARTLY = np.array([[1, 0], [1, 1], [0, 1], [1, 1]], "float32")
"""Of classes or regions: one shown, none labelled (`batch`), the other one shown, both shown."""

GAN = {"discriminator.layers": 2}
SYSTEMS = {
    "joint": ("joint", {}),
    "padnet": ("padnet", {}),
    "ds_norm": ("ds_norm", {}),
    "segan": ("segan", {"ce_weight": 1.0}),
    "segan joint": ("segan", {"critic_mode": "joint", "weighting": "flat"}),
    "segan per class": ("segan", {"critic_mode": "per_class", "mask_mode": "multiply"}),
    "segan_paper": ("segan_paper", {}),
    "segan_scalar": ("segan_scalar", {"ce_weight": 1.0}),
    "stargan+segan": ("stargan+segan", {"shape_ramp": 0.0}, {**GAN, "generator.blocks": 1}),
    "uagan": ("uagan", {"shape_ramp": 0.0}, {**GAN, "levels": 1}),
    "unified_gan": ("unified_gan", {"shape_ramp": 0.0, "distillation_weight": 0.5}, GAN),
    "unigan": ("unigan", {"shape_ramp": 0.0}, GAN),
}
# The dearer ones, and games that differ from another in what is not tested here.
QUICK = ("segan joint classes", "segan_scalar regions", "ds_norm regions", "unigan classes")


def every(names):
    """Games by name, each of classes and of regions."""
    return [
        pytest.param(
            name, labels, id=f"{name} {kind}",
            marks=() if f"{name} {kind}" in QUICK else pytest.mark.slow,
        )
        for name in names
        for kind, labels in (("classes", None), ("regions", REGIONS))
    ]  # fmt: skip


def game(name, labels=None, **more):
    system, options, *networks = SYSTEMS[name]
    settings = {"filters": 2, **dict(*networks)}
    return build_model(system, plan(labels), network=settings, game=options | more, compile=False)


def relabelled(data, model):
    """The batch with other contents of what was not annotated, where it is labelled."""
    label_map = data["label_map"].copy()
    if model.plan.labels.overlapping:
        # whole alone: 1, 2 and 4 are all in it; core alone: 2 is not in it and so like 0.
        label_map[0][label_map[0] == 2] = 1
        label_map[2][label_map[2] == 2] = 0
    else:
        label_map[0][::2][label_map[0][::2] == 2] = 0
        label_map[2][label_map[2] == 0] = 1
    assert (label_map != data["label_map"]).any(axis=(1, 2)).tolist() == [True, False, True, False]
    return {**data, "label_map": label_map}


def moves(model, data):
    """Role, loss and gradients of each move of one step in which nothing moves, and all terms."""
    before = [v.numpy() for v in model.variables]
    play, norm, found, terms = model.play(tensors(data)), None, [], None
    while terms is None:
        try:
            move = play.send(norm)
        except StopIteration as end:
            terms = end.value
            continue
        variables = model.role_variables(move.role)
        gradients = move.tape.gradient(move.loss, variables, unconnected_gradients="zero")
        norm = tf.linalg.global_norm(gradients)
        found.append((move.role, move.loss.numpy(), [g.numpy() for g in gradients]))
    # Spectral norm and batch norm go on at each step.
    for variable, value in zip(model.variables, before, strict=True):
        variable.assign(value)
    return found, {k: v.numpy() for k, v in terms.items()}


@pytest.mark.parametrize(("name", "labels"), every(SYSTEMS))
def test_what_was_not_annotated_has_no_influence(name, labels):
    model = game(name, labels)
    data = batch(model.plan)
    partly = {**data, "annotated": PARTLY}
    first, terms = moves(model, partly)
    second, _ = moves(model, relabelled(partly, model))
    for (role, loss, gradients), (_, other, others) in zip(first, second, strict=True):
        assert loss == other, role
        assert all(np.array_equal(a, b) for a, b in zip(gradients, others, strict=True)), role
    assert all(np.isfinite(v) for k, v in terms.items() if k not in model.watched)
    # That of what was annotated has one, on all but what judges images alone.
    data["label_map"] = np.where(data["label_map"] == 1, 0, data["label_map"]).astype("uint8")
    third, _ = moves(model, {**data, "annotated": PARTLY})
    changed = {a[0] for a, b in zip(first, third, strict=True) if a[1] != b[1]}
    assert changed == set(model.roles) - {"discriminator"}


@pytest.mark.parametrize(("name", "labels"), every(["segan joint"]))
def test_where_all_is_annotated_nothing_changes(name, labels):
    model = game(name, labels)
    data = batch(model.plan)
    plain, terms = moves(model, data)
    same, others = moves(model, {**data, "annotated": np.ones_like(PARTLY)})
    for (_, loss, gradients), (_, other, rest) in zip(plain, same, strict=True):
        assert loss == pytest.approx(other, rel=1e-6)
        for a, b in zip(gradients, rest, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert terms.keys() == others.keys()


@pytest.mark.slow
def test_two_replicas_equal_one():
    labels = [batch(plan(), seed=seed) for seed in range(2)]
    batches = [{**data, "annotated": PARTLY} for data in labels]
    sgd = lambda: {r: keras.optimizers.SGD(0.05) for r in ("segmentor", "critic")}  # noqa: E731
    check_replicas(lambda: game("segan joint"), batches, sgd, 1e-5)


def test_targets_and_masks():
    model = game("joint")
    label_map = np.array([[[0, 1, 2, 255]]] * 3, "uint8")
    annotated = tf.constant([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    target, valid = model.target(label_map, annotated)
    np.testing.assert_array_equal(valid[:, 0], [[1, 1, 1, 0]] * 3)
    background, organ, lesion, nothing = *np.eye(3), np.zeros(3)
    expected = [
        [background, organ, background, nothing],
        [background, background, lesion, nothing],
        [background, organ, lesion, nothing],
    ]
    np.testing.assert_array_equal(target[:, 0], expected)
    # A background that may be something else is no certain one.
    certain = model.certain(target, annotated).numpy()[:, 0]
    np.testing.assert_array_equal(certain[0], [nothing, organ, nothing, nothing])
    np.testing.assert_array_equal(certain[2], expected[2])
    regions = game("joint", REGIONS)
    target, _ = regions.target(label_map, annotated)
    whole, core = regions.target(label_map)[0].numpy().transpose(3, 0, 1, 2)
    np.testing.assert_array_equal(target[0, ..., 0], whole[0])
    np.testing.assert_array_equal(target[1, ..., 1], core[1])
    assert not target[0, ..., 1].numpy().any()
    assert not target[1, ..., 0].numpy().any()


@pytest.mark.parametrize("mode", ["shared", "joint", "per_class"])
def test_the_gap_is_the_mean_over_annotated_classes(mode):
    model = game("segan", critic_mode=mode)
    for variable in model.critic.trainable_variables:
        variable.assign(tf.zeros_like(variable))
    data = tensors(batch(model.plan, unlabelled=False))
    annotated = tf.constant(PARTLY)
    logits = tf.constant(random((4, 16, 16, 3)))
    target, valid = model.target(data["label_map"], annotated)
    found = model.activate(logits, annotated)
    gap = model.gap(data["image"], found, target, valid, False, annotated)
    # A critic of zeros leaves the input level: mean over x p and p of each class.
    x, p, y = data["image"].numpy(), found.numpy()[..., 1:], target.numpy()[..., 1:]
    each = np.mean((np.abs(x) + 1) / 2 * np.abs(p - y), axis=(1, 2))
    levels = len(model.critic.outputs)
    expected = np.mean(np.sum(PARTLY * each, -1) / np.sum(PARTLY, -1)) / levels
    assert float(gap) == pytest.approx(expected, rel=1e-5)


def test_validation_counts_no_class_that_nobody_looked_for():
    model = game("joint")
    data = batch(model.plan, unlabelled=False)
    data["label_map"][:] = 0
    data["annotated"] = np.array([[1, 0]] * 4, "float32")
    # Everything is found to be the second class.
    head = model.network.layers[-1]
    kernel, bias = head.get_weights()
    head.set_weights([0 * kernel, np.array([0, 0, 9.0], "float32")])
    assert bias.shape == (3,)
    with model.testing():
        model.reset_metrics()
        model.test_step(tensors(data))
        assert not model._dice.counts.numpy()[:, 2].any()
        assert np.isnan(float(model._dice.result()["dice"]))
        del data["annotated"]
        model.test_step(tensors(data))
        assert float(model._dice.result()["dice"]) == 0


def test_boundaries_that_can_be_known():
    model = game("padnet")
    label_map = np.zeros((2, 16, 16), "uint8")
    label_map[:, 4:12, 4:12] = 1
    label_map[:, 7, 7] = 2
    edge, valid = model.boundary(label_map, tf.constant([[1.0, 0.0], [1.0, 1.0]]))
    np.testing.assert_array_equal(edge[1], boundary(label_map)[0][1])
    np.testing.assert_array_equal(valid[1], 1)
    # Of the first, the hole of the other class is background, which is a boundary of what is seen.
    known = np.zeros((16, 16))
    known[3:13, 4:12] = known[4:12, 3:13] = 1
    np.testing.assert_array_equal(valid[0], known)
    assert (edge[0, 7, 7, 0], edge[0, 5, 5, 0]) == (1, 0)
    _, valid = game("padnet", REGIONS).boundary(label_map, tf.constant([[1.0, 0.0], [1.0, 1.0]]))
    assert valid.numpy().reshape(2, -1).mean(axis=1).tolist() == [0, 1]
