"""PlannedModel: the house checks, deep supervision by hand, learning."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from checks import (
    batch,
    check_game,
    check_learns,
    check_replicas,
    dataset,
    phantom_slices,
    plan,
    tensors,
)

from keras_unigan.models import PlannedModel
from keras_unigan.models.planned import level_weights, shrunk
from keras_unigan.networks import PlannedUNet


def game(a_plan=None, filters=2, **options):
    a_plan = a_plan or plan(size=8)
    keras.utils.set_random_seed(3)
    asked = PlannedModel.network_arguments(a_plan)["segmentor"]
    return PlannedModel(
        PlannedUNet(filters=filters, strides=((2, 2),) * 2, **asked), a_plan, **options
    )


def test_game(tmp_path):
    a_plan = plan(size=8)
    make = lambda: game(  # noqa: E731
        a_plan,
        ce_weight=0.5,
        dice_weight=2.0,
        ema_decay=0.9,
        total_steps=50,
        name="other_name",
    )
    check_game(make, batch(a_plan), tmp_path)


@pytest.mark.slow
def test_two_replicas_equal_one():
    a_plan = plan(size=8)
    batches = [batch(a_plan, seed=s) for s in range(3)]
    sgd = lambda: {"segmentor": keras.optimizers.SGD(0.05)}  # noqa: E731
    check_replicas(lambda: game(a_plan), batches, sgd, 1e-5)


def test_weights_of_levels():
    assert level_weights(1) == [1.0]
    assert level_weights(2) == [1.0, 0.0]
    assert level_weights(4) == pytest.approx([4 / 7, 2 / 7, 1 / 7, 0])


def test_a_coarse_level_sees_the_nearest_voxels():
    label_map = tf.reshape(tf.range(32), (1, 8, 4))
    found = shrunk(label_map, (1, 2, 4, 3)).numpy()
    np.testing.assert_array_equal(found[0], [[8, 9, 10, 11], [24, 25, 26, 27]])
    assert shrunk(label_map, (1, 8, 4, 1)) is label_map


def test_the_loss_is_the_weighted_sum_of_levels():
    model = game()
    data = tensors(batch(model.plan))
    terms, logits = model.evaluated(model.segmentor, data, training=False)
    fine, coarse = model.segmentor.tasks(data["image"], None)
    np.testing.assert_allclose(logits, fine, atol=1e-6)
    # Of two levels the coarse one weighs nothing; of three it would be 2/3 and 1/3.
    alone = model.losses_of(fine, data["label_map"])
    assert float(terms["loss"]) == pytest.approx(float(alone["loss"]))
    three = PlannedModel(PlannedUNet(filters=2, classes=3, strides=((2, 2),) * 3), plan(size=8))
    terms, _ = three.evaluated(three.segmentor, data, training=False)
    levels = three.segmentor.tasks(data["image"], None)
    each = [float(three.losses_of(x, shrunk(data["label_map"], x.shape))["loss"]) for x in levels]
    assert float(terms["loss"]) == pytest.approx(2 / 3 * each[0] + 1 / 3 * each[1], rel=1e-5)
    assert float(terms["ce_loss"] + terms["dice_loss"]) == pytest.approx(each[0], rel=1e-5)
    assert coarse.shape == (4, 4, 4, 3)


def test_the_optimizer_is_the_authors():
    model = game(total_steps=100)
    found = model.default_optimizers()["segmentor"]
    assert isinstance(found, keras.optimizers.SGD)
    assert (found.momentum, found.nesterov, found.global_clipnorm) == (0.99, True, 12.0)
    assert found.weight_decay == pytest.approx(3e-3)
    rate = found._learning_rate
    assert [float(rate(s)) for s in (0, 50, 100)] == pytest.approx([0.01, 0.01 * 0.5**0.9, 0])


@pytest.mark.slow
def test_it_learns_discs():
    model = game(plan(size=16), filters=4)
    check_learns(model, {"segmentor": keras.optimizers.SGD(0.05, 0.9)}, 30, "ce_loss", 0.5)


@pytest.mark.slow
def test_it_learns_two_inverted_contrasts():
    a_plan = plan(size=48)
    model = game(a_plan, filters=8, total_steps=60)
    # The authors' rate is for runs of 250,000 steps.
    model.compile({"segmentor": model.default_optimizers(0.05)["segmentor"]})
    whole, random = phantom_slices(range(6)), np.random.default_rng(0)
    picks = [random.permutation(len(whole["image"]))[:8] for _ in range(60)]
    batches = [{k: v[pick] for k, v in whole.items()} for pick in picks]
    held_out = dataset([phantom_slices([50, 51])])
    before = model.evaluate(held_out, steps=1, verbose=0, return_dict=True)["dice"]
    model.fit(dataset(batches), steps_per_epoch=60, verbose=0, shuffle=False)
    found = model.evaluate(held_out, steps=1, verbose=0, return_dict=True)
    assert found["dice"] > 0.3 > before
