"""SegAN: the game checks, the properties of its loss, two replicas, and that it learns."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from checks import batch, check_game, check_replicas, phantom_slices, plan, same, tensors, values

from keras_unigan import config
from keras_unigan.data import phantoms
from keras_unigan.models import SegAN
from keras_unigan.networks import (
    SegANCritic,
    SegANISICCritic,
    SegANISICSegmentor,
    SegANSegmentor,
    UNet,
)

REGIONS = config.Labels(regions={"whole": (1, 2, 4), "core": (1, 4), "enhancing": (4,)})
PAPER = {
    "mask_mode": "multiply",
    "shift": False,
    "include_input": False,
    "constraint": "clip",
    "lambda_dice": 0.0,
}


def game(a_plan=None, segmentor=SegANSegmentor, spatial_dims=2, **options):
    keras.utils.set_random_seed(5)
    a_plan = a_plan or plan()
    arguments = SegAN.network_arguments(a_plan, **options)
    extra = {"levels": 1} if segmentor is UNet else {}
    return SegAN(
        segmentor(filters=2, spatial_dims=spatial_dims, **arguments["segmentor"], **extra),
        SegANCritic(filters=(3, 4), spatial_dims=spatial_dims, **arguments["critic"]),
        a_plan,
        spatial_dims,
        **options,
    )


@pytest.mark.parametrize(
    ("options", "labels", "spatial_dims"),
    [
        ({"lambda_dice": 0.5, "ema_decay": 0.9, "name": "other_name"}, None, 2),
        pytest.param(
            *({**PAPER, "weighting": "flat", "clip_value": 0.1}, REGIONS, 2), marks=pytest.mark.slow
        ),
        ({"include_input": False, "critic_mode": "per_class"}, None, 3),
        ({"critic_mode": "joint", "ce_weight": 1.0, "total_steps": 7}, REGIONS, 2),
    ],
    ids=["practical", "paper regions", "3d per class", "joint regions"],
)
def test_game(tmp_path, options, labels, spatial_dims):
    a_plan = plan(labels, spatial_dims=spatial_dims)
    make = lambda: game(a_plan, spatial_dims=spatial_dims, **options)  # noqa: E731
    check_game(make, batch(a_plan, size=2 if spatial_dims == 3 else 4), tmp_path)


def sgd():
    return {
        "segmentor": keras.optimizers.SGD(0.05, momentum=0.9, global_clipnorm=0.2),
        "critic": keras.optimizers.SGD(0.05),
    }


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        pytest.param({}, 1e-5, marks=pytest.mark.slow),
        ({**PAPER, "lambda_dice": 1.0, "critic_mode": "per_class"}, 1e-4),
    ],
    ids=["spectral norm", "batch norm"],
)
@pytest.mark.slow
def test_two_replicas_equal_one(options, tolerance):
    a_plan = plan()
    batches = [batch(a_plan, seed=s) for s in range(3)]
    # Only the second replica sees this; both have to leave the step out.
    batches[1]["image"][-1, 0] = np.nan
    make = lambda: game(a_plan, UNet, **options)  # noqa: E731
    check_replicas(make, batches, sgd, tolerance, validate=False)


def parts(model, seed=0, unlabelled=True):
    """Image, probabilities, target and mask of a random batch."""
    data = tensors(batch(model.plan, seed=seed, unlabelled=unlabelled))
    target, valid = model.target(data["label_map"])
    logits = np.random.default_rng(seed).normal(size=target.shape).astype("float32")
    return data["image"], model.activate(logits), target, valid


def gradient_of_gap(model, image, probabilities, target, valid):
    with tf.GradientTape() as tape:
        tape.watch(probabilities)
        gap = model.gap(image, probabilities, target, valid, training=False)
    return tape.gradient(gap, probabilities).numpy()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weighting": "flat"},
        {"mask_mode": "multiply"},
        PAPER,
        {"critic_mode": "joint"},
        {"critic_mode": "per_class", "mask_mode": "multiply"},
    ],
    ids=["concat", "flat", "multiply", "paper", "joint", "per class"],
)
@pytest.mark.parametrize("labels", [None, REGIONS], ids=["classes", "regions"])
def test_gap_is_zero_at_the_truth_and_only_there(options, labels):
    model = game(plan(labels), **options)
    image, probabilities, target, valid = parts(model)
    for training in (False, True):
        # A convolution may round equal rows of a batch in two ways.
        assert float(model.gap(image, target, target, valid, training)) < 1e-9
        assert float(model.gap(image, probabilities, target, valid, training)) > 0


@pytest.mark.parametrize("mode", ["shared", "joint", "per_class"])
def test_gap_by_hand_at_the_input_level(mode):
    # A critic of zeros leaves the input level: L_ms is a third of its mean absolute difference, in
    # concat over the two channels x p and p, for each of two foreground classes.
    model = game(critic_mode=mode)
    zero_critic(model)
    image, probabilities, target, valid = parts(model)
    x, p, y = image.numpy(), probabilities.numpy()[..., 1:], target.numpy()[..., 1:]
    difference = np.abs(p - y) * valid.numpy()[..., None]
    sample = np.mean((np.abs(x) * difference + difference) / 2, axis=(1, 2, 3)) / 3
    # Sample 1 is not annotated.
    expected = sample[[0, 2, 3]].mean()
    assert float(model.gap(image, probabilities, target, valid, False)) == pytest.approx(
        expected, rel=1e-5
    )


def test_one_critic_per_class_is_the_mean_of_two_shared_ones():
    # Each class's own critic, made the shared one of another game that knows this class only.
    model = game(critic_mode="per_class")
    image, probabilities, target, valid = parts(model)
    gaps = []
    for k in (1, 2):
        single = game()
        for level in range(2):
            own = model.critic.get_layer(f"spectral_{level}_{k - 1}").get_weights()
            single.critic.get_layer(f"spectral_{level}").set_weights(own)
        # The other class is put right, so that its distance is 0 and the mean half of this one's.
        only = tf.one_hot([k], 3) * probabilities + (1 - tf.one_hot([k], 3)) * target
        gaps.append(2 * float(single.gap(image, only, target, valid, False)))
    both = float(model.gap(image, probabilities, target, valid, False))
    assert both == pytest.approx(sum(gaps) / 2, rel=1e-5)
    assert gaps[0] != gaps[1]


def test_joint_critic_sees_all_classes_of_a_sample_at_once():
    model = game(critic_mode="joint")
    image, probabilities, target, valid = parts(model)
    seen = model.masked(image, probabilities, target, valid).numpy()
    assert seen.shape == (8, 16, 16, 4)
    shown = valid.numpy()
    for half, mask in ((seen[:4], probabilities.numpy()), (seen[4:], target.numpy())):
        for k in (1, 2):
            one = mask[..., k] * shown
            np.testing.assert_allclose(half[..., 2 * k - 1], one, atol=1e-6)
            np.testing.assert_allclose(half[..., 2 * k - 2], one * image.numpy()[..., 0], atol=1e-6)


@pytest.mark.parametrize("options", [{}, PAPER], ids=["spectral norm", "batch norm"])
def test_a_batch_without_annotation_changes_nothing(options):
    model = game(**options)
    model.compile()
    data = batch(model.plan)
    model.train_step(tensors(data))
    before, average = state_of_roles(model), values(model.network.weights)
    data["label_map"][:] = config.IGNORE
    logs = model.train_step(tensors(data))
    assert same(state_of_roles(model), before)
    assert not same(values(model.network.weights), average)  # it closes up to the same weights
    assert float(logs["skipped"]) == 0
    assert int(model.completed_steps) == 2
    # One annotated voxel is enough.
    data["label_map"][2, 3, 3] = 1
    model.train_step(tensors(data))
    after = state_of_roles(model)
    assert len(after) == len(before)
    assert not same(after, before)


def state_of_roles(model):
    """Weights and optimizers of both roles."""
    parts = [p for r in model.roles for p in (getattr(model, r), model.role_optimizer(r))]
    return values([v for part in parts for v in part.variables])


def test_samples_that_nobody_annotated_do_not_count():
    model = game()
    image, probabilities, target, valid = parts(model)
    rest = [tf.gather(t, [0, 2, 3]) for t in (image, probabilities, target, valid)]
    whole = model.gap(image, probabilities, target, valid, training=False)
    assert float(whole) == pytest.approx(float(model.gap(*rest, training=False)), rel=1e-5)


def zero_critic(model):
    model.critic.set_weights([np.zeros_like(w) for w in model.critic.get_weights()])


def test_critic_of_zeros_gives_no_gradient_without_the_input_level():
    model = game(include_input=False)
    zero_critic(model)
    assert (gradient_of_gap(model, *parts(model)) == 0).all()
    model = game(include_input=True)
    zero_critic(model)
    assert np.abs(gradient_of_gap(model, *parts(model))).max() > 0


@pytest.mark.parametrize(
    ("options", "reaches"),
    [
        ({"mask_mode": "concat"}, True),
        ({"mask_mode": "multiply", "shift": True}, True),
        ({"mask_mode": "multiply", "shift": False}, False),
    ],
)
def test_gradient_where_the_image_is_zero(options, reaches):
    model = game(include_input=False, **options)
    image, *rest = parts(model, unlabelled=False)
    image = image.numpy()
    image[:, 4:12, 4:12] = 0
    gradient = np.abs(gradient_of_gap(model, tf.constant(image), *rest)[..., 1:])
    assert (gradient[:, 4:12, 4:12].max() > 0) == reaches
    assert gradient[:, :4].max() > 0


def test_background_and_voxels_not_annotated_give_no_gradient():
    model = game()
    image, probabilities, target, valid = parts(model)
    gradient = np.abs(gradient_of_gap(model, image, probabilities, target, valid))
    assert (gradient[valid.numpy() == 0] == 0).all()
    assert (gradient[..., 0] == 0).all()
    assert (gradient[valid.numpy() == 1][:, 1:] > 0).mean() > 0.9


def test_shift_keeps_the_background_visible():
    image = tf.constant([-1.0, 0.0, 1.0])[None, :, None, None]
    ones = tf.ones((1, 3, 1))
    shifted = game(mask_mode="multiply").mask(image, ones).numpy().ravel()
    np.testing.assert_allclose(shifted, [0.1, 0.55, 1.0], atol=1e-6)
    plain = game(mask_mode="multiply", shift=False).mask(image, ones).numpy().ravel()
    np.testing.assert_allclose(plain, [-1, 0, 1])
    assert game().mask(image, ones).shape == (1, 3, 1, 2)


def test_clip_bounds_every_weight_of_the_critic():
    model = game(**PAPER)
    model.compile({"critic": keras.optimizers.SGD(10.0)})
    assert max(np.abs(w).max() for w in model.critic.trainable_variables) > 0.5
    model.train_step(tensors(batch(model.plan)))
    largest = [np.abs(w).max() for w in model.critic.trainable_variables]
    assert max(largest) <= 0.05
    assert max(largest) == np.float32(0.05)


@pytest.mark.parametrize(("role", "sign"), [("critic", 1), ("segmentor", -1)])
def test_the_critic_widens_the_gap_and_the_segmentor_narrows_it(role, sign):
    model = game(segmentor=UNet, lambda_dice=0.0, ema_decay=0.0)
    model.compile({r: keras.optimizers.SGD(0.05 if r == role else 0.0) for r in model.roles})
    data = tensors(batch(model.plan, unlabelled=False))
    for _ in range(20):
        model.critic(np.zeros((1, 16, 16, 2)), training=True)  # spectral norm settles
    before = model.score(data)[0]["multi_scale_l1"]
    for _ in range(3):
        model.train_step(data)
    assert sign * float(model.score(data)[0]["multi_scale_l1"] - before) > 0


class Recorder(SegANCritic):
    """Notes how it is called."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.calls = []

    def call(self, image, training=None, mask=None):
        self.calls.append((int(image.shape[0]), training))
        return super().call(image, training=training)


def test_critic_sees_both_masks_in_one_call_and_trains_in_its_own_move_only():
    critic = Recorder(channels=2, filters=(3, 4))
    model = SegAN(SegANSegmentor(1, 3, 2), critic, plan())
    model.compile()
    critic.calls.clear()
    u = []
    minimize = model.minimize

    def watched(moves):
        u.append(np.array(critic.get_layer("spectral_0").vector_u))
        return minimize(moves)

    model.minimize = watched
    before = np.array(critic.get_layer("spectral_0").vector_u)
    model.train_step(tensors(batch(model.plan)))
    # Two classes, predicted and true, of four samples.
    assert critic.calls == [(16, True), (16, False)]
    assert not np.array_equal(before, u[0])
    np.testing.assert_array_equal(u[0], u[1])


def test_settings_that_do_not_fit_are_named():
    networks = (SegANSegmentor(1, 3, 2), SegANCritic(1, (3, 4)))
    with pytest.raises(
        ValueError, match="2 channels for mask_mode 'concat' and critic_mode 'shared', got 1"
    ):
        SegAN(*networks, plan())
    with pytest.raises(ValueError, match=r"4 channels .* critic_mode 'joint', got 1"):
        SegAN(*networks, plan(), critic_mode="joint")
    with pytest.raises(ValueError, match="2 groups for critic_mode 'per_class', got 1"):
        SegAN(networks[0], SegANCritic(4, (3, 4)), plan(), critic_mode="per_class")
    with pytest.raises(ValueError, match=r"critic_mode in .*, got 'each'"):
        SegAN(*networks, plan(), critic_mode="each")
    with pytest.raises(ValueError, match=r"constraint in \('spectral',\), got 'clip'"):
        SegAN(*networks, plan(), mask_mode="multiply", constraint="clip")
    with pytest.raises(ValueError, match=r"mask_mode in .*, got 'add'"):
        SegAN(*networks, plan(), mask_mode="add")
    with pytest.raises(ValueError, match=r"weighting in .*, got 'equal'"):
        SegAN(*networks, plan(), weighting="equal", mask_mode="multiply")


@pytest.mark.parametrize(
    ("options", "kind", "rate"),
    [
        ({}, keras.optimizers.Adam, 1e-3),
        (PAPER, keras.optimizers.RMSprop, 2e-5),
        ({"constraint": "clip", "weighting": "flat"}, keras.optimizers.Adam, 1e-4),
    ],
    ids=["practical", "paper", "skin"],
)
def test_default_optimizers(options, kind, rate):
    model = game(**options)
    for given in (None, 0.25):
        for optimizer in model.default_optimizers(given, given).values():
            assert type(optimizer) is kind
            assert float(optimizer.learning_rate) == pytest.approx(given or rate)


@pytest.mark.parametrize("options", [{}, PAPER], ids=["adam", "rmsprop"])
def test_rates_are_halved_where_asked(options):
    model = game(**options, halve_every=10)
    assert model.get_config()["halve_every"] == 10
    for optimizer in model.default_optimizers(0.5, 0.25).values():
        rate = optimizer._learning_rate
        assert [float(rate(s)) / float(rate(0)) for s in (9, 10, 20)] == [1.0, 0.5, 0.25]
        assert float(rate(10_000)) == pytest.approx(1e-8)
    with pytest.raises(ValueError, match="halve_every >= 1 or None, got 0"):
        game(**options, halve_every=0)


def test_skin_lesion_form_plays():
    a_plan = plan(size=64)
    options = {"mask_mode": "multiply", "weighting": "flat", "constraint": "clip"}
    arguments = SegAN.network_arguments(a_plan, **options)
    model = SegAN(
        SegANISICSegmentor(filters=1, **arguments["segmentor"]),
        SegANISICCritic(filters=2, **arguments["critic"]),
        a_plan,
        **options,
    )
    model.compile()
    before = {role: values(model.role_variables(role)) for role in model.roles}
    logs = model.train_step(tensors(batch(a_plan, size=3)))
    assert all(np.isfinite(value) for value in logs.values())
    assert float(logs["multi_scale_l1"]) > 0
    for role in model.roles:
        assert not same(values(model.role_variables(role)), before[role])


@pytest.mark.parametrize(
    ("steps", "goal"), [(60, 0.8), pytest.param(400, 0.93, marks=pytest.mark.slow)]
)
def test_learns_a_phantom_of_two_contrasts(steps, goal):
    keras.utils.set_random_seed(0)
    a_plan = plan(phantoms.LABELS, size=48)
    arguments = SegAN.network_arguments(a_plan)
    model = SegAN(
        SegANSegmentor(filters=12, **arguments["segmentor"]),
        SegANCritic(filters=(12, 24, 48), **arguments["critic"]),
        a_plan,
        ema_decay=0.95,
    )
    model.compile()
    train = tf.data.Dataset.from_tensor_slices(phantom_slices(range(10)))
    train = train.shuffle(200, seed=0).repeat().batch(8)
    model.fit(train, steps_per_epoch=steps, verbose=0, shuffle=False)
    unseen = tf.data.Dataset.from_tensor_slices(phantom_slices(range(100, 104))).batch(12)
    logs = model.evaluate(unseen, verbose=0, return_dict=True)
    assert logs["dice"] > goal, logs
    assert min(logs["dice_ct"], logs["dice_t1"]) > goal - 0.1, logs
