"""What every game shares: averages, skipped steps, loss scaling, clipping, metrics, callbacks."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from checks import batch, dataset, plan, same, state, tensors, values

from keras_unigan.models import MODELS, SegAN, SupervisedModel, means
from keras_unigan.networks import SegANCritic, SegANSegmentor, UNet


def supervised(**options):
    keras.utils.set_random_seed(1)
    return SupervisedModel(UNet(1, 3, 2, levels=1), plan(size=8), **options)


def segan(**options):
    keras.utils.set_random_seed(1)
    a_plan = plan()
    arguments = SegAN.network_arguments(a_plan, **options)
    return SegAN(
        SegANSegmentor(filters=2, **arguments["segmentor"]),
        SegANCritic(filters=(3, 4), **arguments["critic"]),
        a_plan,
        **options,
    )


def small_segan():
    keras.utils.set_random_seed(1)
    networks = UNet(1, 3, 2, levels=1), SegANCritic(2, (3,))
    return SegAN(*networks, plan(size=8))


def data_of(model, **options):
    return batch(model.plan, **options)


def poisoned(model):
    data = data_of(model)
    data["image"] = data["image"].copy()
    data["image"][-1, 0, 0, 0] = np.nan
    return data


# The weight average.


def test_average_is_a_copy_at_first():
    model = segan()
    assert model.network is model.ema_segmentor is not model.segmentor
    assert same(values(model.network.weights), values(model.segmentor.weights))


def test_average_equals_the_weights_at_decay_zero():
    model = segan(ema_decay=0.0)
    model.compile()
    before = values(model.segmentor.weights)
    for seed in range(2):
        model.train_step(tensors(data_of(model, seed=seed)))
    after = values(model.segmentor.weights)
    # Moving statistics of batch norm are among them.
    assert all(not np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert same(values(model.network.weights), after)


def test_average_forgets_its_start_quickly():
    model = supervised(ema_decay=0.15)
    model.compile()
    expected = values(model.segmentor.weights)
    # Decay (1 + t) / (10 + t) while that is less: 1/10, then .15 instead of 2/11.
    for seed, decay in enumerate((0.1, 0.15)):
        model.train_step(tensors(data_of(model, seed=seed)))
        weights = values(model.segmentor.weights)
        expected = [decay * e + (1 - decay) * w for e, w in zip(expected, weights, strict=True)]
        assert same(values(model.network.weights), expected, atol=1e-6)


def test_prediction_and_validation_use_the_average():
    model = supervised()
    model.compile(run_eagerly=True)
    data = data_of(model)
    model.segmentor.set_weights([np.zeros_like(w) for w in model.segmentor.get_weights()])
    expected = model.activate(model.network(data["image"]))
    np.testing.assert_array_equal(model(data["image"]), expected)
    for given in (data["image"], data):
        np.testing.assert_allclose(model.predict(given, verbose=0), expected, atol=1e-6)
    logs = model.evaluate(dataset([data]), steps=1, verbose=0, return_dict=True)
    losses = model.losses_of(model.network(data["image"]), data["label_map"])
    assert logs["loss"] == pytest.approx(float(losses["loss"]), rel=1e-5)


# Steps that are not finite.


def steps_around_poison(model, call):
    call(data_of(model, seed=1))
    before = state(model)
    call(poisoned(model))
    after = state(model)
    changed = [not np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
    skipped = [w.path for w in model.weights].index(model.skipped_steps.path)
    assert changed.pop(skipped)
    assert not any(changed)
    assert int(model.skipped_steps) == 1
    assert int(model.completed_steps) == 1
    call(data_of(model, seed=2))
    assert int(model.completed_steps) == 2
    assert all(np.isfinite(v).all() for v in state(model))
    assert not same(after, state(model))


@pytest.mark.parametrize(
    "make",
    [
        supervised,
        segan,
        lambda: segan(constraint="clip", mask_mode="multiply"),
    ],
    ids=["supervised", "spectral", "clip"],
)
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(make):
    # Weights, moving statistics, spectral vectors, optimizer slots and iterations, averages.
    model = make()
    model.compile({role: "adam" for role in model.roles})
    steps_around_poison(model, lambda data: model.train_step(tensors(data)))


def test_skipped_steps_are_left_out_of_the_logs():
    model = supervised()
    model.compile()
    batches = [data_of(model), poisoned(model), data_of(model, seed=1)]
    logs = model.fit(dataset(batches), steps_per_epoch=3, verbose=0, shuffle=False).history
    assert logs["skipped"] == [1.0]
    assert np.isfinite(logs["loss"]).all()
    assert int(model.completed_steps) == 2
    logs = model.fit(dataset(batches[1:2]), steps_per_epoch=2, verbose=0, shuffle=False).history
    assert logs["skipped"] == [2.0]
    assert np.isnan(logs["loss"]).all()


# Optimizers.


def test_every_role_has_its_default_optimizer_built():
    model = segan()
    model.compile()
    assert model.optimizer is model.role_optimizer("segmentor")
    assert model.optimizer.global_clipnorm == 5.0
    assert model.critic_optimizer is model.role_optimizer("critic")
    for role in model.roles:
        optimizer = model.role_optimizer(role)
        assert optimizer.built
        assert len(optimizer.variables) == 2 + 2 * len(model.role_variables(role))


def test_the_paper_form_uses_rmsprop():
    model = segan(constraint="clip", mask_mode="multiply")
    model.compile()
    for role in model.roles:
        assert isinstance(model.role_optimizer(role), keras.optimizers.RMSprop)
        assert float(model.role_optimizer(role).learning_rate) == pytest.approx(2e-5)


@pytest.mark.parametrize("game", [supervised, segan])
def test_the_learning_rate_of_the_defaults_can_be_chosen(game):
    model = game()
    model.compile(model.default_optimizers(0.0125, 0.0125))
    for role in model.roles:
        optimizer, rates = model.role_optimizer(role), []
        for step in range(0, model.total_steps, 10):
            optimizer.iterations.assign(step)
            rates.append(float(optimizer.learning_rate))
        assert max(rates) == pytest.approx(0.0125)  # a schedule's highest


def test_optimizers_by_role_by_name_and_alone():
    model = segan()
    sgd = keras.optimizers.SGD(0.5)
    model.compile({"critic": sgd})
    assert model.critic_optimizer is sgd
    assert isinstance(model.optimizer, keras.optimizers.Adam)
    model = supervised()
    model.compile("rmsprop")
    assert isinstance(model.optimizer, keras.optimizers.RMSprop)


@pytest.mark.parametrize("wrong", [{"discriminator": "adam"}, "adam"])
def test_optimizers_of_roles_that_are_not_there(wrong):
    with pytest.raises(ValueError, match=r"dictionary of roles \('segmentor', 'critic'\), got"):
        segan().compile(wrong)


def test_compile_settings_survive_saving(tmp_path):
    model = segan()
    model.compile({"critic": keras.optimizers.SGD(0.25, momentum=0.5)}, run_eagerly=True)
    model.save(tmp_path / "game.keras")
    loaded = keras.saving.load_model(tmp_path / "game.keras")
    assert loaded.run_eagerly
    assert not loaded.jit_compile
    assert isinstance(loaded.critic_optimizer, keras.optimizers.SGD)
    assert float(loaded.critic_optimizer.momentum) == 0.5


def test_a_game_that_was_not_compiled_is_saved_and_loaded(tmp_path):
    model = supervised()
    model.save(tmp_path / "game.keras")
    loaded = keras.saving.load_model(tmp_path / "game.keras")
    assert not loaded.compiled
    assert same(values(loaded.weights), values(model.weights))


def test_gradient_norm_is_reported_before_clipping():
    model = supervised()
    model.compile(keras.optimizers.SGD(1.0, global_clipnorm=1e-3))
    before = values(model.role_variables("segmentor"))
    data = tensors(data_of(model))
    with tf.GradientTape() as tape:
        logits = model.segmentor(data["image"], training=True)
        loss = model.losses_of(logits, data["label_map"])["loss"]
    expected = tf.linalg.global_norm(tape.gradient(loss, model.role_variables("segmentor")))
    logs = model.train_step(data)
    assert float(logs["segmentor_gradient_norm"]) == pytest.approx(float(expected), rel=1e-4)
    moved = [b - a for a, b in zip(before, values(model.role_variables("segmentor")), strict=True)]
    assert float(tf.linalg.global_norm(moved)) == pytest.approx(1e-3, rel=1e-3)


def test_a_small_deviation_of_large_norms_is_found():
    metric = means.FiniteDeviation()
    for value in (1e4, 1e4 + 0.5, float("nan"), 1e4 - 0.5):
        metric.update_state(tf.constant(value))
    assert float(metric.result()) == pytest.approx(np.std([0, 0.5, -0.5]), rel=1e-3)
    assert metric.result().dtype == tf.float32
    metric.reset_state()
    assert np.isnan(metric.result())


# Mixed precision.


@pytest.fixture(params=["mixed_bfloat16", "mixed_float16"])
def policy(request):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy(before)


@pytest.mark.parametrize("make", [supervised, segan])
def test_five_steps_stay_finite_in_half_precision(policy, make, tmp_path):
    model = make()
    model.compile()
    scaled = policy == "mixed_float16"
    for role in model.roles:
        optimizer = model.role_optimizer(role)
        assert isinstance(optimizer, keras.optimizers.LossScaleOptimizer) == scaled
    before = values(model.role_variables(model.roles[0]))
    for seed in range(5):
        logs = model.train_step(tensors(data_of(model, seed=seed)))
    assert int(model.completed_steps) == 5
    assert all(np.isfinite(v).all() for v in [*state(model), *map(np.asarray, logs.values())])
    assert not same(before, values(model.role_variables(model.roles[0])))
    assert model(data_of(model)["image"]).dtype == tf.float32
    model.save(tmp_path / "game.keras")
    loaded = keras.saving.load_model(tmp_path / "game.keras")
    assert same(state(loaded), state(model))


def test_loss_scaling_does_not_change_the_step():
    moved = []
    for scale in (False, True):
        model = supervised()
        optimizer = keras.optimizers.SGD(0.1, global_clipnorm=0.5)
        scaled = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=1024.0)
        model.compile(scaled if scale else optimizer)
        logs = model.train_step(tensors(data_of(model)))
        moved.append([*values(model.segmentor.weights), logs["segmentor_gradient_norm"].numpy()])
    assert same(*moved, atol=1e-6)


def test_the_loss_scale_falls_after_an_overflow_while_all_else_is_put_back():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = supervised()
    finally:
        keras.config.set_dtype_policy(before)
    model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(), initial_scale=1e12))
    weights = values(model.weights)
    model.train_step(tensors(data_of(model)))
    assert int(model.skipped_steps) == 1
    assert float(model.optimizer.dynamic_scale) == pytest.approx(5e11)
    assert int(model.optimizer.iterations) == 0
    kept = [i for i, w in enumerate(model.weights) if w is not model.skipped_steps]
    after = values(model.weights)
    assert same([weights[i] for i in kept], [after[i] for i in kept])


# Metrics.


def test_validation_dice_counts_over_all_batches():
    model = supervised()
    model.compile(run_eagerly=True)
    batches = [data_of(model, seed=s, unlabelled=s == 0) for s in range(3)]
    logs = model.evaluate(dataset(batches), steps=3, verbose=0, return_dict=True)
    found = {"ct": [], "t1": []}
    for domain, modality in enumerate(found):
        for label in (1, 2):
            truth, prediction = [], []
            for data in batches:
                hard = model(data["image"]).numpy().argmax(-1)
                for i in np.flatnonzero(data["domain"] == domain):
                    known = data["label_map"][i] != 255
                    truth.append(data["label_map"][i][known] == label)
                    prediction.append(hard[i][known] == label)
            truth, prediction = np.concatenate(truth), np.concatenate(prediction)
            found[modality].append(
                2 * (truth & prediction).sum() / (truth.sum() + prediction.sum())
            )
        assert logs[f"dice_{modality}"] == pytest.approx(np.mean(found[modality]), abs=1e-5)
    assert logs["dice"] == pytest.approx(np.mean(list(found.values())), abs=1e-5)
    assert set(logs) == {"loss", "ce_loss", "dice_loss", "dice", "dice_ct", "dice_t1"}


def test_validation_losses_weigh_batches_by_their_size():
    model = supervised()
    model.compile(run_eagerly=True)
    whole = data_of(model, unlabelled=False)
    pieces = tf.data.Dataset.from_tensor_slices(whole).batch(3)
    logs = model.evaluate(pieces, verbose=0, return_dict=True)
    expected = model.evaluate(dataset([whole]), steps=1, verbose=0, return_dict=True)
    assert logs == pytest.approx(expected, abs=1e-5)


# Keras callbacks.


def test_standard_callbacks(tmp_path):
    model = small_segan()
    model.compile()
    data = dataset([data_of(model)])
    path = tmp_path / "best.keras"
    callbacks = [
        keras.callbacks.ModelCheckpoint(path, monitor="val_dice", mode="max", save_best_only=True),
        keras.callbacks.BackupAndRestore(tmp_path / "backup", delete_checkpoint=False),
        keras.callbacks.EarlyStopping(monitor="val_loss", patience=0, min_delta=1e9),
        keras.callbacks.TerminateOnNaN(),
        keras.callbacks.ReduceLROnPlateau(
            monitor="val_loss", factor=0.5, patience=0, min_delta=1e9, min_lr=0
        ),
        keras.callbacks.CSVLogger(tmp_path / "history.csv"),
    ]
    rate = float(model.optimizer.learning_rate)
    history = model.fit(
        data,
        validation_data=data,
        validation_steps=1,
        steps_per_epoch=1,
        epochs=4,
        callbacks=callbacks,
        verbose=0,
        shuffle=False,
    ).history
    # No loss falls by a thousand million: the second epoch halves the rate and is the last.
    assert len(history["loss"]) == 2
    assert float(model.optimizer.learning_rate) == pytest.approx(rate / 2)
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 3
    best = keras.saving.load_model(path)
    assert isinstance(best, SegAN)
    assert int(best.completed_steps) == 1 + int(np.argmax(history["val_dice"]))

    other = small_segan()
    other.compile()
    restore = keras.callbacks.BackupAndRestore(tmp_path / "backup", delete_checkpoint=False)
    restore.set_model(other)
    restore.on_train_begin()
    assert int(other.completed_steps) == 2
    # ReduceLROnPlateau came after the backup of its epoch.
    assert same(state(other)[: len(other.weights)], state(model)[: len(model.weights)])
    for role in model.roles:
        iterations = [int(m.role_optimizer(role).iterations) for m in (model, other)]
        assert iterations == [2, 2]


def test_terminate_on_nan_stops_only_when_nothing_was_finite():
    model = supervised()
    model.compile()
    stop = [keras.callbacks.TerminateOnNaN()]
    mixed = dataset([data_of(model), poisoned(model), data_of(model)])
    model.fit(mixed, steps_per_epoch=3, callbacks=stop, verbose=0, shuffle=False)
    assert int(model.completed_steps) == 2
    only = dataset([poisoned(model)])
    model.fit(only, steps_per_epoch=3, callbacks=stop, verbose=0, shuffle=False)
    assert int(model.completed_steps) == 2
    assert int(model.skipped_steps) == 2


# Arguments.


def test_arguments_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"Expected 0 <= ema_decay < 1, got 1\.5"):
        supervised(ema_decay=1.5)
    with pytest.raises(ValueError, match=r"segmentor with 3 spatial axes .*got one with 2"):
        supervised(spatial_dims=3)
    with pytest.raises(ValueError, match=r"segmentor of 3 classes \('background', .*, got 2"):
        SupervisedModel(UNet(1, 2, 2, levels=1), plan())


def test_the_plan_may_be_given_as_its_dictionary():
    a_plan = plan(size=8)
    model = SupervisedModel(UNet(1, 3, 2, levels=1), a_plan.to_dict())
    assert model.plan == a_plan


def test_network_arguments_follow_plan_and_options():
    a_plan = plan()
    assert SupervisedModel.network_arguments(a_plan, channels=2) == {
        "segmentor": {"channels": 2, "classes": 3}
    }
    assert SegAN.network_arguments(a_plan)["critic"] == {"channels": 2, "constraint": "spectral"}
    options = {"mask_mode": "multiply", "constraint": "clip"}
    assert SegAN.network_arguments(a_plan, 3, **options) == {
        "segmentor": {"channels": 3, "classes": 3},
        "critic": {"channels": 3, "constraint": "clip"},
    }


def test_the_table_names_each_class():
    assert all(cls.__name__ == name for name, cls in MODELS.items())
