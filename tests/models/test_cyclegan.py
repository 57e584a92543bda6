"""CycleGAN: order of the moves, losses and image pool by hand, batches without a side, replicas."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from checks import (
    batch,
    check_game,
    check_moves,
    check_replicas,
    plan,
    same,
    tensors,
    two_replicas,
    values,
)

from keras_unigan.models import CycleGAN
from keras_unigan.models.pairs import ImagePool
from keras_unigan.networks import PairTranslator, PatchDiscriminator

THREE = ("ct", "t1", "t2")


def game(a_plan=None, blocks=1, **options):
    keras.utils.set_random_seed(5)
    a_plan = a_plan or plan()
    demanded = CycleGAN.network_arguments(a_plan, **options)
    networks = [PairTranslator(filters=2, blocks=blocks, **demanded["generator"])]
    for role in CycleGAN.roles[1:]:
        networks.append(PatchDiscriminator(filters=2, name=role, **demanded[role]))
    return CycleGAN(*networks, a_plan, **options)


def test_house_checks(tmp_path):
    a_plan = plan(modalities=THREE)
    options = {"identity_weight": 5.0, "pair": ["t2", "ct"], "pool_size": 3}
    check_game(lambda: game(a_plan, **options), batch(a_plan, size=6), tmp_path)


def test_translators_move_first_then_each_discriminator():
    model = game()
    model.compile()
    assert check_moves(model, batch(model.plan)) == list(CycleGAN.roles)


# The image pool.


def numbered(*numbers):
    """Images that hold one number each."""
    return np.array(numbers, "float32")[:, None, None, None]


def exchanged(pool, images, noise, present=None):
    present = np.ones(len(images), bool) if present is None else np.array(present)
    found = pool.exchange(tf.constant(images), present, tf.constant(noise, "float32"))
    return found.numpy().ravel().tolist()


def test_the_first_images_pass_and_fill_the_pool():
    pool = ImagePool(4, (1, 1, 1))
    assert exchanged(pool, numbered(1, 2, 3), [0.9, 0.9, 0.9]) == [1, 2, 3]
    assert int(pool.filled) == 3
    # The fourth fills it; then 0.5 to 0.625 is the first of four places, and below 0.5 none.
    assert exchanged(pool, numbered(4, 5, 6), [0.9, 0.5, 0.49]) == [4, 1, 6]
    assert pool.images.numpy().ravel().tolist() == [5, 2, 3, 4]
    # One batch may put an image in and take it out again.
    assert exchanged(pool, numbered(7, 8), [0.99, 0.99]) == [4, 7]
    assert pool.images.numpy().ravel().tolist() == [5, 2, 3, 8]
    assert int(pool.filled) == 4


def test_samples_of_other_modalities_are_no_part_of_the_pool():
    pool = ImagePool(2, (1, 1, 1))
    exchanged(pool, numbered(1, 2, 3), [0.9] * 3, [True, False, True])
    assert pool.images.numpy().ravel().tolist() == [1, 3]
    assert exchanged(pool, numbered(4, 5), [0.5, 0.9], [False, True]) == [4, 3]
    assert pool.images.numpy().ravel().tolist() == [1, 5]


def test_half_of_many_images_are_earlier_ones():
    pool = ImagePool(50, (1, 1, 1))
    noise = np.random.default_rng(0).uniform(size=450).astype("float32")
    found = exchanged(pool, numbered(*range(450)), noise)
    assert found[:50] == list(range(50))
    earlier = np.array(found[50:]) != np.arange(50, 450)
    assert np.array_equal(earlier, noise[50:] >= 0.5)
    assert 0.45 < earlier.mean() < 0.55
    assert all(f <= i for i, f in enumerate(found))


# One side and the other.


def test_losses_by_hand():
    model = game(cycle_weight=3.0, identity_weight=2.0, adversarial_weight=0.5, pool_size=0)
    data = tensors(batch(model.plan, size=6))
    sides = model.sides(data)
    for side, domain in zip(sides, (0, 1), strict=True):
        own = np.flatnonzero(data["domain"].numpy() == domain)
        np.testing.assert_array_equal(side["index"], own)
        np.testing.assert_array_equal(side["real"], data["real"].numpy()[own])
    fakes = model.fakes(model.generator, sides, training=False)
    forth, back = model.generator.forth, model.generator.back
    np.testing.assert_allclose(fakes[0], forth(sides[0]["image"]), atol=1e-6)
    np.testing.assert_allclose(fakes[1], back(sides[1]["image"]), atol=1e-6)
    loss, terms, variety = model.generator_losses(model.generator, sides, fakes, False)
    ones = (model.discriminator_b(fakes[0]) - 1) ** 2, (model.discriminator_a(fakes[1]) - 1) ** 2
    expected = {
        "adversarial": sum(np.mean(o) for o in ones),
        "cycle": np.abs(back(fakes[0]) - sides[0]["real"]).mean()
        + np.abs(forth(fakes[1]) - sides[1]["real"]).mean(),
        "identity": np.abs(back(sides[0]["image"]) - sides[0]["real"]).mean()
        + np.abs(forth(sides[1]["image"]) - sides[1]["real"]).mean(),
    }
    for name, value in expected.items():
        assert float(terms[name]) == pytest.approx(value, rel=1e-4)
    weighted = 0.5 * expected["adversarial"] + 3 * expected["cycle"] + 2 * expected["identity"]
    assert float(loss) == pytest.approx(weighted, rel=1e-4)
    assert float(variety["copy_ratio"]) > 0
    found, real, fake = model.discriminate("discriminator_a", *sides, fakes[1])
    scores = model.discriminator_a(sides[0]["real"]).numpy(), model.discriminator_a(fakes[1])
    half = 0.5 * (((scores[0] - 1) ** 2).mean() + np.mean(scores[1] ** 2))
    assert float(found) == pytest.approx(half, rel=1e-4)
    assert (float(real), float(fake)) == pytest.approx([np.mean(s) for s in scores], abs=1e-5)


@pytest.mark.parametrize(
    ("domains", "moving"),
    [([2, 2, 2, 2], []), ([0, 2, 0, 2], ["generator"]), ([1, 0, 2, 2], list(CycleGAN.roles))],
)
def test_a_batch_without_a_side_is_safe(domains, moving):
    model = game(plan(modalities=THREE), pool_size=2)
    model.compile(run_eagerly=True)
    data = batch(model.plan)
    data["domain"] = np.array(domains, "int32")
    before = {role: values(model.role_variables(role)) for role in model.roles}
    logs = model.train_on_batch(data, return_dict=True)
    assert logs["skipped"] == 0
    assert all(np.isfinite(v) for k, v in logs.items() if k not in model.watched)
    changed = [r for r in model.roles if not same(before[r], values(model.role_variables(r)))]
    assert changed == moving
    assert [int(p.filled) for p in model.pools] == [domains.count(1), domains.count(0)]
    terms, probabilities = model.score(tensors(data))
    assert probabilities is None
    assert np.isnan(terms["loss"]) == (not moving)


def test_one_side_stands_for_both_in_validation():
    model = game(pool_size=0)
    data = batch(model.plan, size=2)
    ones = []
    for domain in (0, 1):
        alone = {**data, "domain": np.full(2, domain, "int32")}
        ones.append(model.score(tensors(alone))[0])
    image = {k: np.concatenate([data[k]] * 2) for k in data}
    image["domain"] = np.array([0, 0, 1, 1], "int32")
    both = model.score(tensors(image))[0]
    for name in (*model.terms, "real_score", "fake_score"):
        mean = np.mean([one[name] for one in ones])
        assert float(both[name]) == pytest.approx(mean, rel=1e-4, abs=1e-6)


def test_a_skipped_step_leaves_the_pool_alone():
    model = game(pool_size=3)
    model.compile(run_eagerly=True)
    data = batch(model.plan)
    data["image"][-1, 0, 0, 0] = np.nan
    model.train_on_batch(data)
    assert int(model.skipped_steps) == 1
    assert [int(p.filled) for p in model.pools] == [0, 0]


def test_discriminators_see_what_the_pool_hands_on(monkeypatch):
    model = game(pool_size=2)
    model.compile(run_eagerly=True)
    seen = []
    discriminate = model.discriminate
    monkeypatch.setattr(
        model, "discriminate", lambda r, a, b, f: seen.append((r, f)) or discriminate(r, a, b, f)
    )
    for pool in model.pools:
        pool.filled.assign(2)
        pool.images.assign(tf.fill(pool.images.shape, 0.25))
    data = batch(model.plan)
    data["noise"] = np.array([0.9, 0.1, 0.2, 0.8], "float32")
    model.train_step(tensors(data))
    assert [role for role, _ in seen] == list(model.roles[1:])
    # The first modality is 0 and 2; its translations go to the second discriminator.
    to_a, to_b = (fake.numpy().std(axis=(1, 2, 3)) for _, fake in seen)
    assert [to_a[0] > 0, to_a[1], to_b[0], to_b[1] > 0] == [True, 0, 0, True]


def test_micro_batches_go_through_the_pool_one_after_the_other():
    found = []
    for accumulate in (1, 2):
        model = game(pool_size=2)
        model.compile(run_eagerly=True, accumulate=accumulate)
        # Three of each side for two places.
        data = batch(model.plan, size=6)
        data["domain"] = np.array([0, 1, 0, 0, 1, 1], "int32")
        data["noise"] = np.full(6, 0.8, "float32")
        model.train_on_batch(data)
        found.append(values(model.memory))
    assert same(*found, atol=1e-5)
    assert [int(p.filled) for p in model.pools] == [2, 2]


def test_replicas_share_one_pool():
    images, noise = numbered(*range(1, 7)), np.array([0, 0, 0, 0.9, 0.6, 0.2], "float32")
    present = np.array([True, False, True, True, True, True])
    single = ImagePool(2, (1, 1, 1))
    expected = exchanged(single, images, noise, present)
    strategy = two_replicas()
    with strategy.scope():
        pool = ImagePool(2, (1, 1, 1))
    parts = [
        strategy.experimental_distribute_values_from_function(
            lambda context, whole=whole: tf.constant(
                np.split(whole, 2)[context.replica_id_in_sync_group]
            )
        )
        for whole in (images, present, noise)
    ]
    handed = tf.function(lambda *given: strategy.run(pool.exchange, given))(*parts)
    handed = np.concatenate([part.numpy().ravel() for part in handed.values])
    assert handed.tolist() == expected == [1, 2, 3, 3, 1, 6]
    for a, b in zip(pool.weights, single.weights, strict=True):
        for copy in a.value.values:
            np.testing.assert_array_equal(copy, b)


@pytest.mark.slow
def test_two_replicas_equal_one():
    a_plan = plan()
    # The pool is full after the first step.
    batches = [batch(a_plan, size=4, seed=s) for s in range(2)]
    sgd = lambda: {r: keras.optimizers.SGD(1e-3) for r in CycleGAN.roles}  # noqa: E731
    make = lambda: game(a_plan, blocks=0, pool_size=2)  # noqa: E731
    check_replicas(make, batches, sgd, 1e-5, validate=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pair": ("ct", "pet")}, r"Expected a pair of two of \('ct', 't1'\), got \('ct', 'pet'\)"),
        ({"pair": ("ct", "ct")}, "Expected a pair of two of"),
        ({"pair": "ct"}, "Expected a pair of two of"),
        ({"pool_size": -1}, "Expected pool_size >= 0, a whole number, got -1"),
        ({"cycle_weight": -1}, "Expected cycle_weight of at least 0, got -1"),
    ],
)
def test_options_that_do_not_fit_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        game(**options)


def test_a_generator_of_another_pair_is_refused():
    three = plan(modalities=THREE)
    networks = [PairTranslator(filters=2, blocks=1), *(PatchDiscriminator(filters=2),) * 2]
    with pytest.raises(ValueError, match=r"Expected a generator of the modalities \(2, 0\)"):
        CycleGAN(*networks, three, pair=("t2", "ct"))
