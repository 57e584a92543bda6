"""StarGAN, UAGAN, Unified GAN, UniGAN and StarGAN beside SegAN: moves, losses, replicas."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from checks import (
    batch,
    check_game,
    check_replicas,
    phantom_slices,
    plan,
    same,
    tensors,
    values,
)

from keras_unigan import config
from keras_unigan.data import phantoms
from keras_unigan.models import UAGAN, StarGAN, StarGANSegAN, UnifiedGAN, UniGAN
from keras_unigan.networks import (
    SegANCritic,
    StarGANDiscriminator,
    StarGANGenerator,
    UAGANGenerator,
    UNet,
    UnifiedGenerator,
)
from keras_unigan.training import build_model

REGIONS = config.Labels(regions={"whole": (1, 2, 4), "core": (1, 4), "enhancing": (4,)})
SMALL = {
    ("stargan", "generator"): (StarGANGenerator, {"filters": 2, "blocks": 1}),
    ("uagan", "generator"): (UAGANGenerator, {"filters": 2, "levels": 1, "dropout": 0.0}),
    ("unified", "generator"): (UnifiedGenerator, {"filters": 2}),
    ("any", "segmentor"): (UNet, {"filters": 2, "levels": 1}),
    ("any", "discriminator"): (StarGANDiscriminator, {"filters": 2, "layers": 2}),
    ("any", "critic"): (SegANCritic, {"filters": (3,)}),
}
GENERATORS = {StarGAN: "stargan", StarGANSegAN: "stargan", UAGAN: "uagan"}


def game(kind, a_plan=None, spatial_dims=2, head="classify", conditioning="decoder", **options):
    """A small game; its networks are built as `build_model` builds them."""
    keras.utils.set_random_seed(5)
    a_plan = a_plan or plan()
    demanded = kind.network_arguments(a_plan, spatial_dims=spatial_dims, **options)
    networks = {}
    for role in kind.roles:
        family = GENERATORS.get(kind, "unified") if role == "generator" else "any"
        cls, arguments = SMALL[family, role]
        arguments = {**arguments, **demanded[role]}
        if cls is UnifiedGenerator:
            arguments.update(conditioning=conditioning, strides=[(2,) * spatial_dims])
        if cls is not UAGANGenerator:
            arguments["spatial_dims"] = spatial_dims
        if role == "discriminator":
            arguments["head"] = head
        networks[role] = cls(**arguments)
    return kind(plan=a_plan, spatial_dims=spatial_dims, **networks, **options)


GAMES = {
    "stargan": (StarGAN, {"n_critic": 2, "identity_weight": 1.0, "name": "other_name"}),
    "stargan multi": (StarGAN, {"head": "multi", "n_critic": 1, "adversarial": "hinge"}),
    "uagan": (UAGAN, {"background_weight": 0.1, "shape_ramp": 0.0}),
    "unified": (UnifiedGAN, {"distillation_weight": 0.5, "shape_ramp": 0.0, "total_steps": 9}),
    "unigan": (UniGAN, {"shape_weight": 3.0, "ema_decay": 0.9}),
    "stargan+segan": (StarGANSegAN, {"shape_ramp": 0.0, "lambda_dice": 0.5}),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if n == "stargan multi" else []) for n in GAMES],
)
def test_game(tmp_path, name):
    kind, options = GAMES[name]
    a_plan = plan(REGIONS if name == "unified" else None)
    check_game(lambda: game(kind, a_plan, **options), batch(a_plan), tmp_path)


@pytest.mark.slow
def test_three_dimensions():
    a_plan = plan(spatial_dims=3, size=8)
    model = game(UniGAN, a_plan, 3, adversarial="wgan_gp", shape_ramp=0.0)
    model.compile()
    before = [values(model.role_variables(role)) for role in model.roles]
    logs = model.train_on_batch(batch(a_plan, size=2), return_dict=True)
    assert all(np.isfinite(v) for v in logs.values())
    for role, old in zip(model.roles, before, strict=True):
        assert not same(old, values(model.role_variables(role)))


def sgd(kind):
    return {role: keras.optimizers.SGD(0.01, global_clipnorm=0.5) for role in kind.roles}


@pytest.mark.parametrize(
    "name",
    [
        "unigan",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("stargan", "uagan", "stargan+segan")),
    ],
)
def test_two_replicas_equal_one(name):
    kind, options = GAMES[name]
    options = {k: v for k, v in options.items() if k != "distillation_weight"}
    a_plan = plan()
    batches = [batch(a_plan, seed=s) for s in range(2)]
    make = lambda: game(kind, a_plan, **options)  # noqa: E731
    check_replicas(make, batches, lambda: sgd(kind), 1e-5, validate=False)


def without(model, **weights):
    for name, value in weights.items():
        setattr(model, name, value)
    return model


@pytest.mark.parametrize("name", ["stargan", pytest.param("uagan", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_micro_batches_move_as_the_whole_batch_does(name):
    kind, options = GAMES[name]
    data = batch(plan(), unlabelled=False)
    games, logs = [], []
    for accumulate in (1, 2, 4):
        model = game(kind, **options)
        model.compile(sgd(kind), accumulate=accumulate)
        start = values(model.generator.weights)
        logs.append(model.train_on_batch(data, return_dict=True))
        games.append(values(model.weights))
        assert not same(start, values(model.generator.weights))
    for found, log in zip(games[1:], logs[1:], strict=True):
        assert same(found, games[0], atol=1e-4)
        # Of parts without another modality to go to, there is no ratio.
        assert log["copy_ratio"] == pytest.approx(logs[0]["copy_ratio"], rel=0.5)
        assert log["real_score"] == pytest.approx(logs[0]["real_score"], abs=1e-5)
    # One image alone is no collapse.
    assert logs[1]["diversity"] > 0
    assert np.isnan(logs[2]["diversity"])


# The discriminator's side.


def pieces(model, seed=0):
    data = tensors(batch(model.plan, seed=seed))
    fake = tf.constant(np.random.default_rng(9).normal(size=data["image"].shape), "float32")
    return data, fake


def test_the_domain_head_learns_nothing_from_translations():
    # All but the domain loss away, the gradient must not depend on the translation.
    model = without(game(StarGAN), penalty_weight=0.0)
    found = []
    for scale in (1.0, -3.0):
        data, fake = pieces(model)
        with tf.GradientTape() as tape:
            terms, _ = model.discriminate(data["real"], scale * fake, data)
        head = model.discriminator.get_layer("domain").trainable_variables
        found.append(tape.gradient(terms["domain_loss"], head))
    assert same(*found)
    assert np.abs(found[0][0]).max() > 0


def test_the_discriminator_sees_each_image_as_its_own_modality_shows_it():
    model = without(game(UniGAN), penalty_weight=0.0)
    data, fake = pieces(model)
    terms, watched = model.discriminate(data["real"], fake, data)
    scores, logits = model.discriminator(data["real"])
    assert float(watched["real_score"]) == pytest.approx(np.mean(scores), abs=1e-5)
    picked = -tf.nn.log_softmax(logits).numpy()[np.arange(4), data["domain"].numpy()]
    assert float(terms["domain_loss"]) == pytest.approx(picked.mean(), rel=1e-5)
    made = model.discriminator(fake)[0]
    hinge = np.maximum(0, 1 - scores).mean() + np.maximum(0, 1 + made).mean()
    assert float(terms["discriminator_loss"]) == pytest.approx(hinge + picked.mean(), rel=1e-5)


def test_the_multi_head_scores_the_known_modality_only():
    model = game(StarGAN, head="multi")
    data, _ = pieces(model)
    scores, logits = model.judge(data["image"], data["domain"])
    assert logits is None
    (maps,) = keras.tree.flatten(model.discriminator(data["image"]))
    own = np.stack([m[..., [d]] for m, d in zip(maps.numpy(), data["domain"].numpy(), strict=True)])
    np.testing.assert_allclose(scores, own, atol=1e-6)


@pytest.mark.parametrize(("adversarial", "expected"), [("wgan_gp", "gp"), ("hinge", "r1")])
def test_penalties_of_a_linear_score(adversarial, expected):
    # A score of w x per voxel: its gradient has norm |w| times the root of the number of voxels.
    model = game(StarGAN, adversarial=adversarial)
    data, fake = pieces(model)
    model.judge = lambda image, domain: (0.5 * tf.reduce_sum(image, [1, 2, 3]), None)
    terms, _ = model.discriminate(data["real"], fake, data)
    norm = 0.5 * 16
    wanted = (norm - 1) ** 2 if expected == "gp" else 0.5 * norm**2
    assert float(terms["penalty"]) == pytest.approx(wanted, rel=1e-4)


def test_each_move_of_n_critic_takes_another_target():
    model = game(StarGAN, plan(modalities=("ct", "t1", "t2")), n_critic=3)
    model.compile()
    seen = []
    discriminate = model.discriminate

    def watched(real, fake, data):
        seen.append((data["target"].numpy(), data["noise"].numpy()))
        return discriminate(real, fake, data)

    model.discriminate = watched
    data = tensors(batch(model.plan))
    model.train_step(data)
    targets = [t for t, _ in seen]
    assert len(targets) == 3
    np.testing.assert_array_equal(targets[-1], data["target"])
    for a, b in itertools.pairwise(targets):
        np.testing.assert_array_equal((a - b) % 3, 1)
    assert all((noise >= 0).all() and (noise < 1).all() for _, noise in seen)


# The generator's side.


@pytest.mark.parametrize("conditioning", ["concat", "film", "decoder"])
def test_the_code_of_the_unknown_modality_is_trained(conditioning):
    model = game(UnifiedGAN, conditioning=conditioning, adversarial_weight=0.0, domain_weight=0.0)
    data = tensors({**batch(model.plan), "target": np.array([1, 1, 1, 0], "int32")})
    # The second sample is of unknown modality, and asked to become what it is.
    codes = []
    model.make = lambda generator, image, source, target, training: (
        codes.append(target.numpy())
        or type(model).make(model, generator, image, source, target, training)
    )
    for move in model.play(data):
        assert move.role == "generator"
        break
    np.testing.assert_array_equal(codes[0], [1, -1, 1, 0])
    np.testing.assert_array_equal(codes[1], data["domain"])


class Identity:
    """A generator that copies."""

    head = None

    def translate(self, image, source, target, training=False):
        return image


def test_copies_and_collapses_are_measured():
    model = game(StarGAN)
    data, fake = pieces(model)
    image, source = data["image"], data["domain"]
    copy = model.persuade(image, source, image, image, data)[2]
    assert float(copy["copy_ratio"]) == 0
    flat = model.persuade(image, source, tf.zeros_like(image), image, data)[2]
    assert float(flat["diversity"]) == 0
    assert float(flat["copy_ratio"]) > 0.5
    nothing = {**data, "target": source}
    assert np.isnan(model.persuade(image, source, fake, image, nothing)[2]["copy_ratio"])


def test_losses_of_a_copy_by_hand():
    model = game(StarGAN, cycle_weight=7.0, domain_weight=0.0, adversarial_weight=0.0)
    data = tensors(batch(model.plan))
    model.discriminator = None  # nothing it says counts, so nobody asks it
    loss, terms, _ = model.generator_losses(
        Identity(), data["image"], data["domain"], data["image"], data, training=False
    )
    # The way back leads to the image as its own modality shows it.
    expected = np.abs(data["image"] - data["real"]).mean()
    assert float(terms["cycle"]) == pytest.approx(expected, rel=1e-5)
    assert float(loss) == pytest.approx(7.0 * expected, rel=1e-5)


def test_both_gaps_of_stargan_and_segan_by_hand():
    weights = {"adversarial_weight": 0.0, "domain_weight": 0.0, "cycle_weight": 0.0}
    options = {"shape_weight": 4.0, "shape_ramp": 0.5, "lambda_dice": 3.0, "total_steps": 100}
    model = game(StarGANSegAN, **weights, **options)
    model.completed_steps.assign(25)
    data = tensors(batch(model.plan, unlabelled=False))
    truth, valid = model.target(data["label_map"])
    image, fake = data["image"], data["real"][::-1]
    each = [model.segmentor(x) for x in (image, fake)]
    loss, terms, _ = model.losses_of(
        *(model.generator, model.segmentor, data, each[0], fake, truth, valid), training=False
    )
    gaps, dices = [], []
    for x, logits in zip((image, fake), each, strict=True):
        probabilities = tf.nn.softmax(logits)
        # Of each foreground class: the masked image and its mask, then the critic's map of both.
        levels = []
        for k in (1, 2):
            u, v = (
                tf.concat([x * m[..., k : k + 1], m[..., k : k + 1]], -1)
                for m in (probabilities, truth)
            )
            pairs = zip(model.critic(u), model.critic(v), strict=True)
            levels.append([np.abs(a - b).mean() for a, b in pairs])
        gaps.append(np.mean(levels))
        dices.append(float(model.average(*model.dice_loss(truth, logits, valid))))
    assert float(terms["multi_scale_l1"]) == pytest.approx(gaps[0], rel=1e-4)
    assert float(terms["shape_l1"]) == pytest.approx(gaps[1], rel=1e-4)
    # Half of its ramp is done.
    expected = gaps[0] + 3 * dices[0] + 4 * 0.5 * (gaps[1] + 3 * dices[1])
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_shape_term_grows_over_its_ramp():
    model = game(UnifiedGAN, total_steps=100, shape_ramp=0.5, shape_weight=8.0)
    data = tensors(batch(model.plan))
    truth, valid = model.target(data["label_map"])
    fake = data["real"]
    logits = model.generator.segment(data["image"], data["domain"])
    losses = []
    for step in (0, 25, 50, 99):
        model.completed_steps.assign(step)
        found = model.generator_losses(
            model.generator, data, logits, fake, truth, valid, training=False
        )
        losses.append(float(found[0]))
    shape = float(found[1]["shape_loss"])
    np.testing.assert_allclose(np.diff(losses), [4 * shape, 4 * shape, 0], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", [UnifiedGAN, UAGAN])
def test_an_unlabelled_batch_still_trains_translation(kind):
    model = game(kind)
    model.compile()
    data = batch(model.plan)
    data["label_map"] = np.full_like(data["label_map"], config.IGNORE)
    logs = model.train_on_batch(data, return_dict=True)
    assert logs["segmentation_loss"] == logs["shape_loss"] == 0
    assert logs["generator_gradient_norm"] > 0
    assert logs["discriminator_gradient_norm"] > 0


def test_an_unlabelled_batch_leaves_the_critic_alone():
    model = game(UniGAN)
    model.compile()
    data = batch(model.plan)
    model.train_on_batch(data)
    optimizer = model.role_optimizer("critic").variables
    before = values([*model.critic.variables, *optimizer])
    others = [values(model.role_variables(r)) for r in ("generator", "discriminator")]
    data["label_map"] = np.full_like(data["label_map"], config.IGNORE)
    logs = model.train_on_batch(data, return_dict=True)
    assert logs["skipped"] == 0
    assert same(before, values([*model.critic.variables, *optimizer]))
    for role, old in zip(("generator", "discriminator"), others, strict=True):
        assert not same(old, values(model.role_variables(role)))


def test_what_the_teacher_is_sure_of_teaches_unlabelled_images():
    model = game(UniGAN, confidence=0.0, shape_ramp=0.0)
    data = {k: tf.constant(v) for k, v in batch(model.plan).items()}
    valid = tf.ones_like(data["image"])[..., 0]
    logits = model.network.segment(data["image"], data["domain"])
    # Labels everywhere: nothing to teach.
    assert model.consistency(data["real"], logits, valid) == 0
    # The first sample has none; by hand, its classes are those that the average gives.
    valid = valid * tf.constant([0.0, 1.0, 1.0, 1.0])[:, None, None]
    taught = model.activate(model.network.segment(data["real"], -tf.ones_like(data["domain"])))
    best = tf.one_hot(tf.argmax(taught, -1), taught.shape[-1])
    expected = model.segmentation_loss(best[:1], logits[:1], tf.ones_like(valid)[:1])
    found = model.consistency(data["real"], logits, valid)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # Where it is not sure, it says nothing.
    model.confidence = 0.999999
    assert model.consistency(data["real"], logits, valid) == 0
    # Its own weights get no gradient.
    model.confidence = 0.0
    with tf.GradientTape() as tape:
        loss = model.consistency(data["real"], logits, valid)
    assert all(g is None for g in tape.gradient(loss, model.network.trainable_variables))


def test_without_an_adversary_the_discriminator_rests():
    model = game(UniGAN, adversarial_weight=0.0, domain_weight=0.0, multi_scale_weight=0.0)
    model.compile()
    before = [values(model.role_variables(r)) for r in model.roles]
    model.train_on_batch(batch(model.plan))
    after = [values(model.role_variables(r)) for r in model.roles]
    assert [same(a, b) for a, b in zip(before, after, strict=True)] == [False, True, True]


def test_difference_needs_no_modality_at_prediction():
    model = game(UnifiedGAN, conditioning="difference")
    image = batch(model.plan)["image"]
    found = [model({"image": image, "domain": np.full(4, d, "int32")}) for d in (-1, 0, 1)]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_uagan_weighs_the_background_down():
    model = game(UAGAN, background_weight=0.02)
    data = tensors(batch(model.plan, unlabelled=False))
    truth, valid = model.target(data["label_map"])
    logits = tf.random.stateless_normal(truth.shape, (1, 2))
    weight = np.where(truth.numpy()[..., 0] == 1, 0.02, 0.98)
    voxels = -np.sum(truth * tf.nn.log_softmax(logits), -1)
    expected = float(model.segmentation_loss(truth, logits, valid))
    assert expected == pytest.approx((weight * voxels).sum() / weight.sum(), rel=1e-4)


def test_two_networks_are_averaged_beside_one_another():
    model = game(StarGANSegAN, ema_decay=0.0)
    model.compile()
    model.train_on_batch(batch(model.plan))
    assert same(values(model.translator.weights), values(model.generator.weights))
    assert same(values(model.network.weights), values(model.segmentor.weights))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (StarGAN, {"adversarial": "best"}, r"Expected adversarial in .*got 'best'"),
        (StarGAN, {"n_critic": 0}, "Expected n_critic >= 1, a whole number, got 0"),
        (UniGAN, {"shape_ramp": "abc"}, "Expected shape_ramp of at least 0, got 'abc'"),
        (UAGAN, {"cycle_weight": -1}, "Expected cycle_weight of at least 0, got -1"),
        (UAGAN, {"background_weight": 1.0}, r"Expected 0 < background_weight < 1, got 1\.0"),
        (UniGAN, {"mask_mode": "add"}, "Expected mask_mode in .*got 'add'"),
        (UniGAN, {"total_steps": 0}, "Expected total_steps >= 1, got 0"),
    ],
)
def test_options_that_do_not_fit_are_named(kind, options, message):
    with pytest.raises(ValueError, match=message):
        game(kind, **options)


def test_networks_of_other_modalities_are_refused():
    two, three = plan(), plan(modalities=("ct", "t1", "t2"))
    discriminator = StarGANDiscriminator(1, 3, (16, 16), 2, 2)
    with pytest.raises(ValueError, match=r"discriminator of 2 modalities .*got 3"):
        StarGAN(StarGANGenerator(1, 2, 2, 1), discriminator, two)
    assert StarGAN(StarGANGenerator(1, 3, 2, 1), discriminator, three).translates


@pytest.mark.parametrize(
    ("steps", "goal"),
    [pytest.param(*case, marks=pytest.mark.slow) for case in ((40, 0.4), (300, 0.85))],
)
def test_unigan_learns_two_inverted_contrasts(steps, goal):
    a_plan, options = plan(phantoms.LABELS, size=48), {"critic_mode": "joint"}
    options.update(filters=8, ema_decay=0.95, total_steps=steps)
    model = build_model("unigan", a_plan, **options)
    train = tf.data.Dataset.from_tensor_slices(phantom_slices(range(10)))
    train = train.shuffle(200, seed=0).repeat().batch(8)
    model.fit(train, steps_per_epoch=steps, verbose=0, shuffle=False)
    unseen = tf.data.Dataset.from_tensor_slices(phantom_slices(range(100, 104))).batch(12)
    logs = model.evaluate(unseen, verbose=0, return_dict=True)
    assert logs["dice"] > goal, logs
    assert min(logs["dice_ct"], logs["dice_t1"]) > goal - 0.1, logs
