"""Games of the comparison systems: the game checks, terms by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from checks import batch, check_game, plan, tensors

from keras_unigan.models import DistilledModel, MultiTaskModel
from keras_unigan.models.comparison import boundary
from keras_unigan.networks import comparison


def game(network, model, a_plan, **options):
    keras.utils.set_random_seed(3)
    asked = model.network_arguments(a_plan)["segmentor"]
    if network != "PADNet":
        asked["domains"] = len(a_plan.modalities)
    segmentor = getattr(comparison, network)(filters=2, levels=1, **asked)
    return model(segmentor, a_plan, **options)


@pytest.mark.parametrize(
    ("network", "model"),
    [
        ("PADNet", MultiTaskModel),
        pytest.param("SharedLatentUNet", MultiTaskModel, marks=pytest.mark.slow),
        ("DomainNormUNet", DistilledModel),
    ],
)
def test_game(tmp_path, network, model):
    a_plan = plan(size=8)
    own = {"task_weight": 0.5} if model is MultiTaskModel else {"distillation_weight": 0.25}
    check_game(
        lambda: game(
            network,
            model,
            a_plan,
            ce_weight=0.5,
            dice_weight=2.0,
            ema_decay=0.9,
            total_steps=50,
            name="other_name",
            **own,
        ),
        batch(a_plan),
        tmp_path,
    )


def test_loss_is_the_sum_of_its_terms():
    a_plan = plan(size=8)
    data = tensors(batch(a_plan))
    model = game("PADNet", MultiTaskModel, a_plan, task_weight=0.5)
    terms, logits = model.evaluated(model.segmentor, data, training=False)
    _, first, image, _ = model.segmentor.tasks(data["image"], None)
    assert float(terms["reconstruction"]) == pytest.approx(
        float(tf.reduce_mean(abs(image - data["image"]))), rel=1e-5
    )
    again = model.losses_of(first, data["label_map"])
    assert float(terms["intermediate"]) == pytest.approx(float(again["loss"]))
    further = terms["intermediate"] + terms["reconstruction"] + terms["boundary"]
    expected = terms["ce_loss"] + terms["dice_loss"] + 0.5 * further
    assert float(terms["loss"]) == pytest.approx(float(expected), rel=1e-5)
    assert logits.shape == (4, 8, 8, 3)


def test_images_without_labels_teach_the_reconstruction():
    a_plan = plan(size=8)
    data = batch(a_plan)
    data["label_map"][:] = 255
    model = game("SharedLatentUNet", MultiTaskModel, a_plan)
    model.compile()
    before = [np.array(w) for w in model.segmentor.trainable_variables]
    model.train_on_batch(data)
    assert any(
        np.abs(w - b).max() > 0
        for w, b in zip(model.segmentor.trainable_variables, before, strict=True)
    )


def test_boundary_by_hand():
    label_map = np.array([[[0, 0, 0, 0], [0, 1, 1, 255], [0, 1, 1, 0]]], "uint8")
    edge, valid = boundary(tf.constant(label_map))
    assert edge.shape == (1, 3, 4, 1)
    known = valid.numpy()[0].astype(bool)
    # Whoever touches the voxel that nobody labelled is left out, and that voxel itself.
    assert known.tolist() == [
        [True, True, True, False],
        [True, True, False, False],
        [True, True, True, False],
    ]
    assert edge.numpy()[0, ..., 0][known].tolist() == [0, 1, 1, 1, 1, 1, 1, 1]


def test_who_is_told_what():
    a_plan = plan(size=8)
    data = tensors(batch(a_plan))
    shared = game("DomainNormUNet", DistilledModel, a_plan)
    assert shared.told(data).numpy().tolist() == [0, -1, 0, 1]
    separate = game("IndividualUNets", DistilledModel, a_plan)
    assert separate.told(data).numpy().tolist() == [0, 1, 0, 1]


def test_a_network_without_further_tasks_is_refused():
    with pytest.raises(ValueError, match="further tasks"):
        game("YShapeUNet", MultiTaskModel, plan(size=8))
