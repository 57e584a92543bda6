"""GAN: the house checks, the equation by hand, pairs that come nearer to real ones."""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from checks import batch, check_game, check_replicas, dataset, disk_batch, plan, tensors

from keras_unigan import callbacks, inference
from keras_unigan.errors import CodedError
from keras_unigan.models import GAN
from keras_unigan.networks import PairDiscriminator, PairGenerator


def game(a_plan=None, filters=4, **options):
    a_plan = a_plan or plan(size=8)
    keras.utils.set_random_seed(3)
    asked = GAN.network_arguments(a_plan)
    own = {"filters": filters, "strides": ((2, 2),) * 2}
    networks = [PairGenerator(latent=8, **own, **asked["generator"])]
    return GAN(*networks, PairDiscriminator(**own, **asked["discriminator"]), a_plan, **options)


def test_game(tmp_path):
    a_plan = plan(size=8)
    options = {"adversarial": "minimax_saturating", "penalty_weight": 0.5}
    others = {"ema_decay": 0.9, "total_steps": 50, "name": "other_name"}
    check_game(lambda: game(a_plan, **options, **others), batch(a_plan), tmp_path)


@pytest.mark.slow
def test_two_replicas_equal_one():
    a_plan = plan(size=8)
    batches = [batch(a_plan, seed=s) for s in range(2)]
    sgd = lambda: {r: keras.optimizers.SGD(0.01) for r in GAN.roles}  # noqa: E731
    check_replicas(lambda: game(a_plan), batches, sgd, 1e-5, validate=False)


def test_the_equation_by_hand():
    data = tensors(batch(plan(size=8), unlabelled=False))
    for family in ("minimax", "minimax_saturating"):
        model = game(adversarial=family)
        real, seen, code = model.real(data)
        fake = model.made(model.generator, data, seen, 0, training=False)
        assert real.shape == fake.shape == (4, 8, 8, 1 + 3)
        np.testing.assert_allclose(tf.reduce_sum(fake[..., 1:], -1), 1, atol=1e-5)
        found, _ = model.told_apart(real, fake, code)
        d = [tf.sigmoid(model.discriminator([x, code])).numpy() for x in (real, fake)]
        value = np.mean(np.log(d[0])) + np.mean(np.log(1 - d[1]))
        assert float(found["discriminator_loss"]) == pytest.approx(-value, rel=1e-4)
        expected = -np.log(d[1]) if family == "minimax" else np.log(1 - d[1])
        assert float(model.deceived(fake, code)) == pytest.approx(np.mean(expected), rel=1e-4)


def test_masks_are_hidden_where_nobody_looked():
    model = game()
    data = tensors(batch(model.plan))
    real, seen, _ = model.real(data)
    fake = model.made(model.generator, data, seen, 0, training=False)
    hidden = data["label_map"].numpy() == 255
    assert hidden.any()
    for pairs in (real, fake):
        assert (pairs.numpy()[hidden][:, 1:] == 0).all()
        assert (pairs.numpy()[~hidden][:, 1:].sum(-1) > 0.99).all()


def test_pictures_of_pairs_are_drawn_and_scans_refused(tmp_path):
    model = game()
    grid = callbacks.PairGrid(tmp_path, model.plan, every=2)
    grid.set_model(model)
    for epoch in range(3):
        grid.on_epoch_end(epoch)
    grid.on_train_end()
    found = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert found == ["pairs_00002.png", "pairs_00003.png"]
    assert (tmp_path / "pairs.png").read_bytes() == (
        tmp_path / "samples" / "pairs_00003.png"
    ).read_bytes()
    with pytest.raises(CodedError, match=r"KUG-T04 .*PairGenerator, which makes pairs from noise"):
        inference.Predictor(model.network, model.plan)
    other = callbacks.PairGrid(tmp_path / "other", model.plan)
    other.set_model(types.SimpleNamespace(network=None))
    other.on_epoch_end(0)
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_masks_come_nearer_to_real_ones():
    a_plan = plan(size=16)
    model = game(a_plan, penalty_weight=1.0)
    model.compile({r: keras.optimizers.Adam(2e-3, 0.5) for r in GAN.roles})
    batches = [disk_batch(a_plan, size=8, seed=s) for s in range(10)]
    shares = model.real(tensors(batches[0]))[0].numpy()[..., 1:].mean((0, 1, 2))

    def distance():
        made = model(tensors(batches[1])).numpy()[..., 1:].mean((0, 1, 2))
        return np.abs(made - shares).sum()

    before = distance()
    model.fit(dataset(batches), steps_per_epoch=60, verbose=0, shuffle=False)
    # Untrained, all classes have as many voxels.
    assert distance() < 0.4 * before


def test_options_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="Expected adversarial in"):
        game(adversarial="hinge")
    with pytest.raises(ValueError, match="Expected penalty_weight of at least 0"):
        game(penalty_weight=-1)
