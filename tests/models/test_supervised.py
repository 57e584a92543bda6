"""SupervisedModel: the game checks, its loss, and two replicas."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from checks import batch, check_game, check_replicas, plan, same, tensors, values

from keras_unigan import config
from keras_unigan.models import SupervisedModel
from keras_unigan.networks import UNet

REGIONS = config.Labels(regions={"whole": (1, 2, 4), "core": (1, 4), "enhancing": (4,)})


def game(a_plan, spatial_dims=2, **options):
    keras.utils.set_random_seed(3)
    arguments = SupervisedModel.network_arguments(a_plan)["segmentor"]
    segmentor = UNet(filters=2, levels=1, spatial_dims=spatial_dims, **arguments)
    return SupervisedModel(segmentor, a_plan, spatial_dims, **options)


@pytest.mark.parametrize(
    ("labels", "spatial_dims"),
    [(None, 2), (REGIONS, 2), (None, 3)],
    ids=["classes", "regions", "3d"],
)
def test_game(tmp_path, labels, spatial_dims):
    a_plan = plan(labels, spatial_dims=spatial_dims, size=8)
    check_game(
        lambda: game(
            a_plan,
            spatial_dims=spatial_dims,
            ce_weight=0.5,
            dice_weight=2.0,
            ema_decay=0.9,
            total_steps=50,
            name="other_name",
        ),
        batch(a_plan),
        tmp_path,
    )


def sgd():
    return keras.optimizers.SGD(0.1, momentum=0.9, global_clipnorm=0.2)


def test_two_replicas_equal_one():
    # The first replica gets the sample that nobody annotated and one annotated in part, so it has
    # fewer samples to average over. Clipping is on: both clip the gradient of the whole batch.
    a_plan = plan()
    batches = [batch(a_plan, seed=s) for s in range(3)]
    check_replicas(lambda: game(a_plan), batches, sgd, 1e-5)


def test_terms_by_hand():
    a_plan = plan(size=8)
    model = game(a_plan, ce_weight=0.25, dice_weight=3.0)
    label_map = np.zeros((2, 8, 8), "uint8")
    label_map[1] = config.IGNORE
    # Two logits are far below: background has probability 1, up to rounding.
    logits = tf.constant(np.tile([20.0, 0.0, 0.0], (2, 8, 8, 1)), "float32")
    terms = {k: float(v) for k, v in model.losses_of(logits, label_map).items()}
    assert terms == pytest.approx({"loss": 0, "ce_loss": 0, "dice_loss": 0}, abs=1e-5)
    label_map[0, :, :4] = 1
    terms = {k: float(v) for k, v in model.losses_of(logits, label_map).items()}
    # Half of the voxels cost 20; Dice is 2/3 for the background and 0 for class 1.
    expected = {"ce_loss": 10.0, "dice_loss": 1 - 1 / 3}
    expected["loss"] = 0.25 * expected["ce_loss"] + 3 * expected["dice_loss"]
    assert terms == pytest.approx(expected, abs=1e-4)


def test_voxels_that_are_not_annotated_give_no_gradient():
    a_plan = plan(size=8)
    model = game(a_plan)
    label_map = batch(a_plan)["label_map"]
    logits = tf.constant(np.random.default_rng(0).normal(size=(4, 8, 8, 3)), "float32")
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = model.losses_of(logits, label_map)["loss"]
    gradient = np.abs(tape.gradient(loss, logits)).max(-1)
    assert (gradient[label_map == config.IGNORE] == 0).all()
    assert (gradient[label_map != config.IGNORE] > 0).all()


def test_a_batch_without_annotation_changes_nothing():
    a_plan = plan(size=8)
    model = game(a_plan)
    model.compile()
    data = batch(a_plan)
    data["label_map"][:] = config.IGNORE
    before = values([*model.segmentor.weights, *model.optimizer.variables])
    logs = model.train_step(tensors(data))
    assert same(values([*model.segmentor.weights, *model.optimizer.variables]), before)
    assert float(logs["loss"]) == float(logs["segmentor_gradient_norm"]) == 0
    assert float(logs["skipped"]) == 0


def test_the_rate_warms_up_and_falls_over_the_run():
    model = game(plan(size=8), total_steps=200)
    for given, highest in ((None, 2e-2), (0.01, 0.01)):
        schedule = model.default_optimizers(given)["segmentor"].get_config()["learning_rate"]
        schedule = keras.optimizers.schedules.deserialize(schedule)
        rates = [float(schedule(step)) for step in (0, 10, 200)]
        assert rates == pytest.approx([highest / 11, highest, 1e-6], rel=1e-3)


def test_target_of_regions():
    model = game(plan(REGIONS, size=8))
    target, valid = model.target(np.array([[[0, 1, 2, 3, 255]]], "uint8"))
    # Indices stand for the file values 0, 1, 2, 4.
    expected = [[0, 0, 0], [1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]]
    assert target.numpy()[0, 0].tolist() == expected
    assert valid.numpy()[0, 0].tolist() == [1, 1, 1, 1, 0]


def test_probabilities_of_classes_sum_to_one_and_regions_do_not():
    image = batch(plan(size=8))["image"]
    np.testing.assert_allclose(tf.reduce_sum(game(plan(size=8))(image), -1), 1, atol=1e-6)
    regions = game(plan(REGIONS, size=8))(image).numpy()
    assert regions.min() > 0
    assert regions.max() < 1
    assert np.abs(regions.sum(-1) - 1).max() > 0.01
