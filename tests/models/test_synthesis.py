"""SynthesisGAN: house checks, order of moves, what each loss is made of, replicas."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from checks import batch, check_game, check_moves, check_replicas, plan, tensors

from keras_unigan.config import IGNORE, Labels
from keras_unigan.models import SynthesisGAN
from keras_unigan.networks import (
    ImageRenderer,
    MaskCritic,
    MaskGenerator,
    StarGANDiscriminator,
    UNet,
)

REGIONS = Labels(regions={"whole": (1, 2), "core": (2,)})


def game(a_plan=None, **options):
    keras.utils.set_random_seed(5)
    a_plan = a_plan or plan()
    demanded = SynthesisGAN.network_arguments(a_plan, **options)
    strides = [(2, 2)]
    networks = {
        "segmentor": UNet(filters=2, strides=strides, **demanded["segmentor"]),
        "renderer": ImageRenderer(filters=2, latent=3, strides=strides, **demanded["renderer"]),
        "mask_generator": MaskGenerator(
            filters=2, latent=4, strides=strides, **demanded["mask_generator"]
        ),
        "discriminator": StarGANDiscriminator(filters=2, **demanded["discriminator"]),
        "mask_critic": MaskCritic(filters=2, layers=2, **demanded["mask_critic"]),
    }
    return SynthesisGAN(**networks, plan=a_plan, **options)


@pytest.mark.parametrize(
    ("labels", "modalities", "options"),
    [
        (None, ("ct", "t1"), {"own_weight": 2.0, "anatomy_weight": 0.5, "mean_weight": 3.0}),
        (REGIONS, ("t1",), {"adversarial": "wgan_gp", "mask_penalty_weight": 5.0}),
    ],
)
def test_house_checks(labels, modalities, options, tmp_path):
    a_plan = plan(labels=labels, modalities=modalities)
    check_game(lambda: game(a_plan, **options), batch(a_plan), tmp_path)


def test_order_of_the_moves():
    model = game()
    model.compile()
    moves = check_moves(model, batch(model.plan))
    assert moves == ["discriminator", "mask_critic", "segmentor", "renderer", "mask_generator"]


def test_renderings_do_not_teach_the_segmentor():
    model = game(anatomy_weight=0.0)
    other = game(anatomy_weight=9.0, adversarial_weight=3.0)
    for either in (model, other):
        either.compile()
        either.train_step(tensors(batch(either.plan)))
    for a, b in zip(model.segmentor.weights, other.segmentor.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(
        np.abs(np.array(a) - np.array(b)).max() > 0
        for a, b in zip(model.renderer.weights, other.renderer.weights, strict=True)
    )


def test_label_maps_with_gaps_are_no_example_for_the_mask_critic():
    model = game(mask_penalty_weight=0.0)
    data = batch(model.plan, size=4)  # the first partly, the second not at all annotated
    truth, valid = model.target(data["label_map"])
    known = model.known(valid, None)
    np.testing.assert_array_equal(known, [0, 0, 1, 1])
    np.testing.assert_array_equal(
        model.known(valid, tf.constant([[1, 1], [1, 1], [1, 0], [1, 1.0]])), [0, 0, 0, 1]
    )
    planes, shown = model.anatomy(tf.constant(data["real"]), truth, valid)
    np.testing.assert_array_equal(model.known(shown, None), [0, 0, 1, 1])
    made = model.mask_generator.sample(model.seeds(tensors(data), 1))
    found = model.critic_losses(planes, made, known, tensors(data))
    score = lambda x: tf.reduce_mean(model.mask_critic(x), [1, 2, 3])  # noqa: E731
    expected = tf.reduce_mean(score(made)) - tf.reduce_mean(score(planes)[2:])
    assert float(found["mask_critic_loss"]) == pytest.approx(float(expected), abs=1e-5)


def test_what_fills_up_a_patch_is_outside_and_background():
    model = game()
    data = batch(model.plan, size=2, unlabelled=False)
    data["label_map"][:, :4], data["real"][:, :4] = IGNORE, -1
    data["label_map"][1, 8, 8] = IGNORE  # this one is not dark, so nobody looked
    data["real"][1, 8, 8] = 0.5
    truth, valid = model.target(data["label_map"])
    planes, shown = model.anatomy(tf.constant(data["real"]), truth, valid)
    assert (planes.numpy()[:, :4, :, 0] == 1).all()
    assert (planes.numpy()[:, :4, :, 1:] == 0).all()
    np.testing.assert_array_equal(model.known(shown, None), [1, 0])


def test_loss_of_the_renderer_by_hand():
    weights = {"adversarial_weight": 2.0, "domain_weight": 3.0, "own_weight": 5.0}
    model = game(anatomy_weight=7.0, **weights)
    data = tensors(batch(model.plan))
    truth, valid = model.target(data["label_map"])
    planes = model.renderer.anatomy(data["real"], truth)
    fake = model.renderer.render(planes, data["target"], model.seeds(data, 0))
    loss, terms = model.renderer_losses(
        model.renderer, model.segmentor, data, fake, planes, truth, valid, training=False
    )
    painted = model.renderer.render(planes, data["domain"], model.seeds(data, 0))
    assert float(terms["own"]) == pytest.approx(np.abs(painted - data["real"]).mean(), abs=1e-5)
    scores, logits = model.discriminator(fake)
    assert float(terms["adversarial"]) == pytest.approx(-np.mean(scores), abs=1e-5)
    chosen = tf.nn.sparse_softmax_cross_entropy_with_logits(data["target"], logits)
    assert float(terms["target_loss"]) == pytest.approx(np.mean(chosen), abs=1e-5)
    found = model.segmentor(fake)
    anatomy = model.average(*model.cross_entropy(truth, found, valid))
    anatomy += model.average(*model.dice_loss(truth, found, valid))
    assert float(terms["anatomy"]) == pytest.approx(float(anatomy), abs=1e-5)
    sums = 2 * terms["adversarial"] + 3 * terms["target_loss"] + 5 * terms["own"]
    assert float(loss) == pytest.approx(float(sums + 7 * anatomy), rel=1e-5)


def test_means_of_made_anatomies_are_drawn_to_those_of_known_ones():
    model = game(mean_weight=4.0)
    random = np.random.default_rng(0)
    planes, made = (random.uniform(size=(3, 16, 16, 4)).astype("float32") for _ in range(2))
    loss, terms = model.mask_losses(
        tf.constant(made), tf.constant(planes), tf.constant([1.0, 0, 1])
    )
    expected = np.abs(planes[[0, 2]].mean(0) - made.mean(0)).mean()
    assert float(terms["mask_mean"]) == pytest.approx(expected, rel=1e-5)
    adversarial = -np.mean(model.mask_critic(made))
    assert float(loss) == pytest.approx(adversarial + 4 * expected, rel=1e-5)
    nothing, _ = model.mask_losses(tf.constant(made), tf.constant(planes), tf.zeros(3))
    assert float(nothing) == pytest.approx(adversarial, rel=1e-5)


def test_a_batch_without_labels_leaves_the_segmentor_alone():
    model = game()
    model.compile()
    data = batch(model.plan)
    data["label_map"][:] = IGNORE
    before = [np.array(v) for v in model.segmentor.variables]
    model.train_step(tensors(data))
    for a, b in zip(before, model.segmentor.variables, strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_a_run_keeps():
    model = game()
    assert set(model.kept) == {"renderer.keras", "mask_generator.keras"}
    assert model.kept["renderer.keras"] is model.ema_renderer
    assert model.network is model.ema_segmentor


@pytest.mark.slow
def test_two_replicas_equal_one():
    a_plan = plan()
    batches = [batch(a_plan, size=4, seed=s) for s in range(2)]
    sgd = lambda: {r: keras.optimizers.SGD(1e-3) for r in SynthesisGAN.roles}  # noqa: E731
    check_replicas(lambda: game(a_plan, mean_weight=0.0), batches, sgd, 1e-5)
