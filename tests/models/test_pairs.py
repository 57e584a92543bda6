"""SynSeg and SIFA: the house checks, terms by hand, who moves, what a study must hold."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from checks import (
    batch,
    check_game,
    check_replicas,
    dataset,
    disk_batch,
    plan,
    same,
    tensors,
    values,
)

from keras_unigan.errors import CodedError
from keras_unigan.models import SIFA, CycleGAN, SynSeg
from keras_unigan.networks import (
    PatchDiscriminator,
    SIFADiscriminator,
    SIFANetwork,
    SynSegNetwork,
)

THREE = ("ct", "t1", "t2")
ALL = {"ema_decay": 0.9, "total_steps": 50, "name": "other_name"}
SYNSEG = {
    "adversarial_weight": 0.5,
    "cycle_weight": 3.0,
    "identity_weight": 1.0,
    "ce_weight": 0.5,
    "dice_weight": 2.0,
    "pool_size": 3,
}
SIFA_OPTIONS = {name: 0.5 + 0.1 * n for n, name in enumerate(SIFA.weights_of_terms)}


def synseg(a_plan=None, **options):
    a_plan = a_plan or plan(size=16)
    keras.utils.set_random_seed(5)
    asked = SynSeg.network_arguments(a_plan, **options)
    network = SynSegNetwork(filters=2, blocks=1, **asked["generator"])
    judges = [PatchDiscriminator(filters=2) for _ in range(2)]
    return SynSeg(network, *judges, a_plan, **options)


def sifa(a_plan=None, filters=2, dropout=0.0, **options):
    a_plan = a_plan or plan(size=16)
    keras.utils.set_random_seed(5)
    asked = SIFA.network_arguments(a_plan, **options)
    network = SIFANetwork(filters=filters, dropout=dropout, **asked.pop("segmentor"))
    judges = [SIFADiscriminator(filters=2, **a) for a in asked.values()]
    return SIFA(network, *judges, a_plan, **options)


EITHER = [synseg, pytest.param(sifa, marks=pytest.mark.slow)]


@pytest.mark.slow
def test_synseg_house_checks(tmp_path):
    make = lambda: synseg(plan(modalities=THREE), pair=("t1", "ct"), **SYNSEG, **ALL)  # noqa: E731
    check_game(make, batch(plan(modalities=THREE), size=6), tmp_path)


@pytest.mark.slow
def test_sifa_house_checks(tmp_path):
    make = lambda: sifa(  # noqa: E731
        plan(modalities=THREE), pair=("t1", "ct"), pool_size=3, **SIFA_OPTIONS, **ALL
    )
    check_game(make, batch(plan(modalities=THREE), size=6), tmp_path)


@pytest.mark.slow
def test_the_parts_of_sifa_move_apart():
    model = sifa()
    model.compile(run_eagerly=True)
    order, minimize = [], model.minimize

    def watched(moves):
        role = moves[0].role
        before = {r: values(model.role_variables(r)) for r in model.roles}
        found = minimize(moves)
        order.append(role)
        changed = [r for r in model.roles if not same(before[r], values(model.role_variables(r)))]
        assert changed == [role]
        return found

    model.minimize = watched
    model.train_step(tensors(batch(model.plan)))
    assert order == ["forth", "decoder", "segmentor", *model.roles[3:]]
    sizes = [len(model.role_variables(r)) for r in ("forth", "decoder", "segmentor")]
    assert sum(sizes) == len(model.segmentor.trainable_variables)


@pytest.mark.parametrize("make", EITHER)
def test_labels_of_the_second_modality_teach_nothing(make):
    found = []
    for change in (False, True):
        model = make(pool_size=0)
        model.compile(run_eagerly=True)
        data = batch(model.plan, unlabelled=False)
        if change:
            data["label_map"][data["domain"] == 1] = 2
        model.train_on_batch(data)
        found.append(values(getattr(model, model.roles[0]).weights))
    assert same(*found)


def test_synseg_learns_from_translated_images():
    model = synseg(ce_weight=2.0, dice_weight=3.0)
    data = tensors(batch(model.plan, unlabelled=False))
    sides = model.sides(data)
    fakes = model.fakes(model.generator, sides, training=False)
    loss, terms = model.lessons(model.generator, sides, fakes, training=False)
    own = data["domain"].numpy() == 0
    target, valid = model.target(data["label_map"].numpy()[own])
    logits = model.generator.segmentor(model.generator.forth(data["image"].numpy()[own]))
    ce_loss = model.average(*model.cross_entropy(target, logits, valid))
    dice_loss = model.average(*model.dice_loss(target, logits, valid))
    assert float(terms["ce_loss"]) == pytest.approx(float(ce_loss), rel=1e-4)
    assert float(loss) == pytest.approx(float(2 * ce_loss + 3 * dice_loss), rel=1e-4)
    # A batch without labelled images of the first modality says nothing in validation.
    alone = {**data, "domain": tf.ones_like(data["domain"])}
    terms, _ = model.score(alone)
    assert np.isnan(terms["ce_loss"])
    assert np.isfinite(terms["cycle"])


def test_sifa_losses_by_hand():
    weights = {n: w for n, w in SIFA_OPTIONS.items()}
    model = sifa(pool_size=0, **weights)
    data = tensors(batch(model.plan, unlabelled=False))
    sides = model.sides(data)
    net, made = model.segmentor, model.made(model.segmentor, sides, training=False)
    losses, terms = model.losses_of(sides, made)
    a, b = (side["image"] for side in sides)
    np.testing.assert_allclose(made["cycle_b"], net.forth(net.back(b)), atol=1e-5)
    np.testing.assert_allclose(made["cycle_a"], net.back(net.forth(a)), atol=1e-5)
    squared = lambda s: float(tf.reduce_mean((s - 1.0) ** 2))  # noqa: E731
    back = model.discriminator_a(net.back(b))
    cycle = sum(
        float(tf.reduce_mean(abs(made[f"cycle_{n}"] - s["real"])))
        for n, s in zip("ab", sides, strict=True)
    )
    decoder = weights["cycle_weight"] * cycle + squared(back[..., 0])
    assert float(losses["decoder"]) == pytest.approx(decoder, rel=1e-4)
    assert float(losses["forth"]) == pytest.approx(
        weights["cycle_weight"] * cycle + squared(model.discriminator_b(net.forth(a))), rel=1e-4
    )
    masks = [tf.nn.softmax(m) for m in net.labels(b)[:2]]
    expected = (
        weights["ce_weight"] * float(terms["ce_loss"])
        + weights["dice_weight"] * float(terms["dice_loss"])
        + weights["low_weight"] * float(terms["low_loss"])
        + weights["decoder_weight"] * decoder
        + weights["mask_weight"] * squared(model.discriminator_mask(masks[0]))
        + weights["low_mask_weight"] * squared(model.discriminator_low(masks[1]))
        + weights["aux_weight"] * squared(back[..., 1])
    )
    assert float(losses["segmentor"]) == pytest.approx(expected, rel=1e-4)
    # What the second score is for: there and back, or there alone.
    (real, fake, again) = model.seen(data, sides, made)["discriminator_a"]
    found, *_ = model.told_apart("discriminator_a", sides, real, fake, again)
    scores = [model.discriminator_a(x) for x in (real, fake, again)]
    half = squared(scores[0][..., 0]) + squared(1.0 + scores[1][..., 0])
    half += squared(scores[2][..., 1]) + squared(1.0 + scores[1][..., 1])
    assert float(found) == pytest.approx(half / 2, rel=1e-4)


@pytest.mark.parametrize("make", EITHER)
def test_images_of_the_first_modality_are_translated_before(make):
    model = make(plan(modalities=THREE), pair=("t1", "ct"))
    network = getattr(model, model.roles[0])
    image = batch(plan())["image"]
    found = network.segment(image, np.array([1, 0, -1, 2])).numpy()
    plain = network.segment(image, np.full(4, -1)).numpy()
    np.testing.assert_allclose(found[1:], plain[1:], atol=1e-5)
    moved = network.segment(network.forth(image), np.full(4, -1)).numpy()
    np.testing.assert_allclose(found[0], moved[0], atol=1e-6)
    assert not np.allclose(found[0], plain[0], atol=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("make", [synseg, sifa])
def test_two_replicas_equal_one(make):
    a_plan = plan()
    batches = [batch(a_plan, size=4, seed=s) for s in range(2)]
    rates, noise = dict.fromkeys(make().roles, 1e-3), 1e-5
    if make is sifa:
        # Thirty batch norms of eight values each: the same batch in another order, on one replica,
        # gives gradients that differ by 1e-3, and they are 46 for a weight of the first kernel.
        rates |= dict.fromkeys(("segmentor", *SIFA.parts), 1e-5)
        noise = 5e-2
    sgd = lambda: {r: keras.optimizers.SGD(rate) for r, rate in rates.items()}  # noqa: E731
    game = lambda: make(a_plan, pool_size=2)  # noqa: E731
    check_replicas(game, batches, sgd, 2e-5, validate=False, noise=noise)


@pytest.mark.slow
def test_synseg_learns_discs_of_the_modality_without_labels():
    model = synseg(plan(size=16, modalities=("t1", "ct")))
    model.compile({r: keras.optimizers.Adam(2e-3, 0.5) for r in model.roles})
    batches = [disk_batch(model.plan, seed=s) for s in range(20)]
    model.fit(dataset(batches), steps_per_epoch=150, verbose=0, shuffle=False)
    data = disk_batch(model.plan, size=16, seed=99)
    logits = model.network.segment(data["image"], data["domain"])
    found, truth = np.argmax(logits, -1) == 1, data["label_map"] == 1
    for own in (data["domain"] == 0, data["domain"] == 1):
        dice = 2 * (found & truth)[own].sum() / (found[own].sum() + truth[own].sum())
        assert dice > 0.5
    # Discs of the first modality are bright, and those of the second dark.
    first = data["domain"] == 0
    made = model.network.forth(data["image"][first]).numpy()[..., 0]
    assert made[truth[first]].mean() < -0.2
    assert made[~truth[first]].mean() > 0.1


def test_a_study_without_the_labels_is_refused():
    a_plan = plan(modalities=THREE)
    every, labelled = {"ct": 3, "t1": 2, "t2": 0}, {"ct": 0, "t1": 2, "t2": 0}
    SynSeg.check_cases(a_plan, every, labelled, pair=["t1", "ct"])
    for game in (SynSeg, SIFA):
        with pytest.raises(CodedError, match=r"KUG-D14 .*no label map of ct.*\[\"t1\",\"ct\"\]"):
            game.check_cases(a_plan, every, labelled)
    with pytest.raises(CodedError, match=r"KUG-D14 .*no label map of ct.*Fix: add label maps"):
        SynSeg.check_cases(a_plan, every, dict.fromkeys(THREE, 0))
    CycleGAN.check_cases(a_plan, every, dict.fromkeys(THREE, 0))
    for game in (SynSeg, CycleGAN):
        with pytest.raises(CodedError, match=r"KUG-D14 .*no case of t2"):
            game.check_cases(a_plan, every, labelled, pair=["t1", "t2"])


def test_options_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="Expected dice_weight of at least 0"):
        synseg(dice_weight=-1)
    with pytest.raises(ValueError, match=r"Expected a pair of two of \('ct', 't1'\)"):
        synseg(pair=("ct", "pet"))
    a_plan = plan(modalities=THREE)
    network = SIFANetwork(filters=2, classes=3, pair=(2, 0))
    asked = SIFA.network_arguments(a_plan, pair=("t2", "ct"))
    del asked["segmentor"]
    players = [network, *(SIFADiscriminator(filters=2, **a) for a in asked.values()), a_plan]
    with pytest.raises(ValueError, match="Expected a segmentor of the modalities"):
        SIFA(*players)
