"""SegANScalar: the game checks, its losses by hand, two replicas."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from checks import batch, check_game, check_replicas, plan, tensors

from keras_unigan import config
from keras_unigan.models import SegANScalar
from keras_unigan.networks import SegANScalarCritic, SegANSegmentor, UNet

REGIONS = config.Labels(regions={"whole": (1, 2, 4), "core": (1, 4), "enhancing": (4,)})


def game(a_plan=None, segmentor=SegANSegmentor, spatial_dims=2, **options):
    keras.utils.set_random_seed(5)
    a_plan = a_plan or plan()
    arguments = SegANScalar.network_arguments(a_plan, **options)
    extra = {"levels": 1} if segmentor is UNet else {}
    return SegANScalar(
        segmentor(filters=2, spatial_dims=spatial_dims, **arguments["segmentor"], **extra),
        SegANScalarCritic(filters=(3, 4), spatial_dims=spatial_dims, **arguments["critic"]),
        a_plan,
        spatial_dims,
        **options,
    )


@pytest.mark.parametrize(
    ("options", "labels", "spatial_dims"),
    [
        ({"lambda_dice": 0.5, "ce_weight": 1.0, "ema_decay": 0.9, "name": "other_name"}, None, 2),
        ({"mask_mode": "multiply", "shift": False, "total_steps": 7}, REGIONS, 2),
        ({}, None, 3),
    ],
    ids=["classes", "regions", "3d"],
)
def test_game(tmp_path, options, labels, spatial_dims):
    a_plan = plan(labels, spatial_dims=spatial_dims, size=16 if spatial_dims == 2 else 8)
    segmentor = SegANSegmentor if spatial_dims == 2 else UNet
    make = lambda: game(a_plan, segmentor, spatial_dims, **options)  # noqa: E731
    check_game(make, batch(a_plan), tmp_path)


def sgd():
    return {
        "segmentor": keras.optimizers.SGD(0.05, momentum=0.9, global_clipnorm=0.2),
        "critic": keras.optimizers.SGD(0.05),
    }


def test_two_replicas_equal_one():
    a_plan = plan()
    batches = [batch(a_plan, seed=s) for s in range(3)]
    check_replicas(lambda: game(a_plan, UNet), batches, sgd, 1e-5)


def test_losses_by_hand():
    model = game(lambda_dice=0.0)
    # Two foreground classes; sample 1 is not annotated and counts nowhere.
    real, fake = np.array([[2.0, 0.0], [9, 9], [1, -1]]), np.array([[0.0, -1.0], [-9, 9], [3, 0]])
    valid = np.ones((3, 2, 2), "float32")
    valid[1] = 0
    probability = 1 / (1 + np.exp(-np.stack([real, fake])[:, [0, 2]]))
    critic = -np.log(probability[0]).mean() - np.log(1 - probability[1]).mean()
    target = tf.zeros((3, 2, 2, 3))
    real, fake = tf.constant(real, "float32"), tf.constant(fake, "float32")

    def scores(*arguments, **options):
        return fake, real

    model.scores = scores
    data = {"image": np.zeros((3, 16, 16, 1)), "label_map": np.zeros((3, 16, 16), "uint8")}
    data["label_map"][1] = config.IGNORE
    terms, _ = model.score(data)
    assert float(terms["critic_loss"]) == pytest.approx(critic, rel=1e-5)
    terms = model.losses_of(fake, target, target, valid)
    adversarial = -np.log(probability[1]).mean()
    assert float(terms["adversarial_loss"]) == pytest.approx(adversarial, rel=1e-5)
    assert float(terms["loss"]) == pytest.approx(adversarial, rel=1e-5)


def test_scores_are_those_of_each_class_and_sample():
    model = game()
    data = tensors(batch(model.plan))
    target, valid = model.target(data["label_map"])
    probabilities = tf.random.stateless_uniform(target.shape, (1, 2))
    fake, real = model.scores(data["image"], probabilities, target, valid, training=False)
    assert fake.shape == real.shape == (4, 2)
    for sample, k in ((0, 1), (3, 2)):
        for found, mask in ((fake, probabilities), (real, target)):
            seen = model.mask(data["image"], mask[..., k] * valid)[sample : sample + 1]
            alone = float(model.critic(seen)[0, 0])
            assert float(found[sample, k - 1]) == pytest.approx(alone, abs=1e-6)


@pytest.mark.parametrize("role", ["critic", "segmentor"])
def test_each_move_lowers_its_own_loss(role):
    model = game(segmentor=UNet, lambda_dice=0.0, ema_decay=0.0)
    model.compile({r: keras.optimizers.SGD(0.05 if r == role else 0.0) for r in model.roles})
    data = tensors(batch(model.plan, unlabelled=False))
    for _ in range(20):
        model.critic(np.zeros((1, 16, 16, 2)), training=True)  # spectral norm settles
    term = "critic_loss" if role == "critic" else "adversarial_loss"
    before = float(model.score(data)[0][term])
    for _ in range(3):
        model.train_step(data)
    assert float(model.score(data)[0][term]) < before


def test_a_batch_without_annotation_leaves_the_critic_alone():
    model = game()
    model.compile()
    data = batch(model.plan)
    data["label_map"][:] = config.IGNORE
    watched = [*model.critic.variables, *model.critic_optimizer.variables]
    before = [np.array(v) for v in watched]
    logs = model.train_step(tensors(data))
    assert float(logs["skipped"]) == 0
    for variable, value in zip(watched, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_networks_that_do_not_fit_are_named():
    segmentor = SegANSegmentor(1, 3, 2)
    with pytest.raises(ValueError, match="critic of 2 channels for mask_mode 'concat'"):
        SegANScalar(segmentor, SegANScalarCritic(1, (3, 4)), plan())
    with pytest.raises(ValueError, match=r"constraint in \('clip',\), got 'spectral'"):
        SegANScalar(segmentor, SegANScalarCritic(2, (3, 4), "clip"), plan())
