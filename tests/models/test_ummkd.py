"""UMMKD: the house checks, terms by hand, its data, learning."""

import keras
import numpy as np
import pytest
from checks import batch, check_game, check_learns, check_replicas, plan, tensors

from keras_unigan import training
from keras_unigan.config import TrainOptions
from keras_unigan.losses import class_cross_entropy, soft_dice
from keras_unigan.models import UMMKD
from keras_unigan.networks import CompactDilatedNet


def game(a_plan=None, filters=2, **options):
    a_plan = a_plan or plan(size=16)
    keras.utils.set_random_seed(3)
    asked = UMMKD.network_arguments(a_plan)["segmentor"]
    network = CompactDilatedNet(
        domains=len(a_plan.modalities), filters=filters, dropout=0.0, **asked
    )
    return UMMKD(network, a_plan, **options)


@pytest.mark.slow
def test_game(tmp_path):
    a_plan = plan(size=16)
    weights = {"ce_weight": 0.5, "dice_weight": 2.0, "distillation_weight": 0.25}
    others = {"kernel_weight": 1e-3, "ema_decay": 0.9, "total_steps": 50, "name": "other_name"}
    check_game(lambda: game(a_plan, **weights, **others), batch(a_plan), tmp_path)


@pytest.mark.slow
def test_two_replicas_equal_one():
    # Prototypes are a statistic of the batch, so they are left out here.
    a_plan = plan(size=16)
    batches = [batch(a_plan, seed=s) for s in range(2)]
    sgd = lambda: {"segmentor": keras.optimizers.SGD(0.01)}  # noqa: E731
    make = lambda: game(a_plan, distillation_weight=0.0)  # noqa: E731
    check_replicas(make, batches, sgd, 1e-4, validate=False)


def test_terms_by_hand():
    model = game(kernel_weight=1e-3)
    data = tensors(batch(model.plan))
    terms, logits = model.evaluated(model.segmentor, data, training=False)
    target, valid = model.target(data["label_map"])
    counts = (target.numpy() * valid.numpy()[..., None]).sum((0, 1, 2))
    weights = 1 - counts / counts.sum()
    ce_loss = model.average(*class_cross_entropy(target, logits, valid, weights))
    dice_loss = model.average(*soft_dice(target, model.activate(logits), valid, 2))
    squares = sum(
        0.5 * float(np.sum(np.square(v)))
        for v in model.segmentor.trainable_variables
        if len(v.shape) == 4
    )
    assert float(terms["ce_loss"]) == pytest.approx(float(ce_loss), rel=1e-5)
    assert float(terms["dice_loss"]) == pytest.approx(float(dice_loss), rel=1e-5)
    assert float(terms["kernel_loss"]) == pytest.approx(squares, rel=1e-4)
    expected = ce_loss + dice_loss + 0.5 * terms["distillation"] + 1e-3 * squares
    assert float(terms["loss"]) == pytest.approx(float(expected), rel=1e-5)


def test_the_rate_falls_in_stairs():
    rate = game().default_optimizers()["segmentor"]._learning_rate
    found = [float(rate(step)) for step in (0, 999, 1000, 2500)]
    assert found == pytest.approx([1e-3, 1e-3, 0.95e-3, 0.95**2 * 1e-3])


def test_its_data_are_stacks_and_eight_of_each_modality():
    a_plan = plan(modalities=("ct", "t1", "t2"))
    found = training.own_options("ummkd", TrainOptions(), a_plan)
    assert (found.slices, found.batch_size, found.labelled_fraction) == (3, 24, 1.0)
    asked = TrainOptions(slices=1, batch_size=4)
    assert training.own_options("ummkd", asked, a_plan).slices == 1
    assert training.own_options("ummkd", asked, a_plan).batch_size == 4
    assert training.own_options("joint", TrainOptions(), a_plan).slices is None


@pytest.mark.slow
def test_it_learns_discs():
    model = game(plan(size=16), filters=4)
    check_learns(model, {"segmentor": keras.optimizers.Adam(3e-3)}, 40, "ce_loss", 0.6)
