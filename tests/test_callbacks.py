import csv
import io
import json
import math
import re

import keras
import numpy as np
import pytest
import rich.console
import tensorflow as tf

from keras_unigan import callbacks
from keras_unigan.errors import CodedError


class Toy(keras.Model):
    """A game of one weight."""

    def __init__(self):
        super().__init__()
        self.network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        self.built = True

    def call(self, x):
        return self.network(x)


def fit(found, epochs=3, steps=4, validation=False, model=None, initial_epoch=0):
    """Fits a toy with some callbacks; returns it."""
    model = model or Toy()
    model.compile("sgd", "mse")
    data = tf.data.Dataset.from_tensors((np.ones((2, 1)), np.zeros((2, 1)))).repeat()
    model.fit(
        data,
        epochs=epochs,
        initial_epoch=initial_epoch,
        steps_per_epoch=steps,
        validation_data=data.take(1) if validation else None,
        callbacks=found,
        shuffle=False,
        verbose=0,
    )
    return model


def test_steps_end_exactly_within_an_epoch():
    budget = callbacks.Budget(steps=6)
    fit([budget], epochs=5, steps=4)
    assert (budget.state.epochs, budget.state.steps) == (2, 6)


def test_steps_count_those_of_earlier_sessions():
    budget = callbacks.Budget(steps=6, state=callbacks.State(epochs=1, steps=4, seconds=100.0))
    fit([budget], epochs=5, steps=4, initial_epoch=1)
    assert (budget.state.epochs, budget.state.steps) == (2, 6)
    assert 100 < budget.state.seconds < 160


def test_minutes_end_a_run():
    budget = callbacks.Budget(minutes=1.0, state=callbacks.State(seconds=60.0))
    fit([budget], epochs=5, steps=4)
    assert (budget.state.epochs, budget.state.steps) == (1, 1)


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_history_has_a_row_an_epoch_and_new_columns_may_come(tmp_path):
    history = callbacks.History(tmp_path / "history.csv")
    for epoch, logs in enumerate([{"loss": 1.0}, {"loss": 0.5, "val_dice": 0.25}]):
        history.state.steps += 4
        history.on_epoch_end(epoch, logs)
    rows = read(tmp_path / "history.csv")
    assert list(rows[0]) == ["epoch", "step", "seconds", "step_seconds", "loss", "val_dice"]
    assert [row["step"] for row in rows] == ["4", "8"]
    assert [row["val_dice"] for row in rows] == ["", "0.25"]


def test_a_resumed_history_drops_what_came_after_the_checkpoint(tmp_path):
    first = callbacks.History(tmp_path / "history.csv")
    for epoch in range(3):
        first.on_epoch_end(epoch, {"loss": float(epoch)})
    second = callbacks.History(tmp_path / "history.csv", callbacks.State(epochs=2))
    second.on_epoch_end(2, {"loss": 9.0})
    assert [row["loss"] for row in read(tmp_path / "history.csv")] == ["0", "1", "9"]


def saves(tmp_path, scores, patience=0):
    """Epochs (from 1) in which a network is saved, and the callback."""
    best = callbacks.BestNetwork(tmp_path / "network.keras", patience)
    best.set_model(Toy())
    found = []
    for epoch, score in enumerate(scores):
        (tmp_path / "network.keras").unlink(missing_ok=True)
        best.on_epoch_end(epoch, {} if score is None else {"val_dice": score})
        if (tmp_path / "network.keras").is_file():
            found.append(epoch + 1)
    return found, best


def test_the_best_network_is_saved(tmp_path):
    found, best = saves(tmp_path, [0.5, 0.4, None, 0.6, 0.6])
    assert found == [1, 4]
    assert (best.state.best, best.state.best_epoch, best.state.stale) == (0.6, 4, 1)
    assert list(tmp_path.iterdir()) == []


def test_the_saved_network_predicts_as_it_did(tmp_path):
    best = callbacks.BestNetwork(tmp_path / "network.keras")
    model = fit([best], epochs=1)
    network = keras.saving.load_model(tmp_path / "network.keras")
    np.testing.assert_array_equal(network(np.ones((1, 1))), model.network(np.ones((1, 1))))


def test_without_validation_the_last_network_is_saved(tmp_path):
    assert saves(tmp_path, [None, None])[0] == [1, 2]


def test_nothing_to_score_is_never_better(tmp_path):
    found, best = saves(tmp_path, [math.nan, math.nan, 0.2, math.nan])
    assert found == [1, 3]
    assert best.state.best == 0.2


def test_patience_ends_a_run(tmp_path):
    _, best = saves(tmp_path, [0.5, 0.6, 0.4], patience=2)
    assert best.state.stale == 1
    best.on_epoch_end(3, {"val_dice": 0.6})
    assert best.model.stop_training


def test_a_checkpoint_holds_weights_optimizer_and_counts(tmp_path):
    state = callbacks.State()
    model = fit([callbacks.Budget(state=state), callbacks.Checkpoint(tmp_path, state)], epochs=2)
    names = ["state.json", "step_00000008.npz", "step_00000008.weights.h5"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    found = callbacks.Checkpoint.read(tmp_path)
    assert found == state
    assert (found.epochs, found.steps, found.weights) == (2, 8, names[2])
    other = Toy()
    other.compile("sgd", "mse")
    other.optimizer.build(other.trainable_variables)
    other.load_weights(tmp_path / found.weights)
    assert int(other.optimizer.iterations) == 8
    for first, second in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(first, second)


def test_a_run_killed_while_saving_finds_the_pair_before(tmp_path, monkeypatch):
    state = callbacks.State()
    found = [callbacks.Budget(state=state), callbacks.Checkpoint(tmp_path, state)]

    def killed(path, data):
        if data.epochs == 2:
            raise KeyboardInterrupt
        write(path, data)

    write = callbacks.checkpoints.write_json
    monkeypatch.setattr(callbacks.checkpoints, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        fit(found, epochs=3)
    found = callbacks.Checkpoint.read(tmp_path)
    assert found.epochs == 1
    assert (tmp_path / found.weights).is_file()


class Noisy(keras.Model):
    """A toy whose steps depend on random numbers and on those before."""

    def __init__(self):
        keras.utils.set_random_seed(1)
        super().__init__()
        self.built = True
        self.network = keras.Sequential(
            [keras.Input((4,)), keras.layers.Dropout(0.5), keras.layers.Dense(1)]
        )
        self.compile(keras.optimizers.Adam(0.1), "mse")
        self.optimizer.build(self.trainable_variables)

    def call(self, x, training=False):
        return self.network(x, training=training)


class Killed(keras.callbacks.Callback):
    """Ends the process, as it were, after a step."""

    def __init__(self, state, step):
        super().__init__()
        self.state, self.step = state, step

    def on_train_batch_end(self, batch, logs=None):
        if self.state.steps == self.step:
            raise KeyboardInterrupt


def noisy_run(folder, killed_at=None, every=1, steps=7, resume=False):
    """Seven steps in epochs of three; returns the model and the rows of the history."""
    state = callbacks.Checkpoint.read(folder / "checkpoints") if resume else callbacks.State()
    model = Noisy()
    checkpoint = callbacks.Checkpoint(folder / "checkpoints", state, steps=every)
    if resume:
        checkpoint.restore(model)
    history = callbacks.History(folder / "history.csv", state)
    found = [callbacks.Budget(steps, state=state), callbacks.StopOnNonFinite(state), history]
    found += [checkpoint, *([Killed(state, killed_at)] if killed_at else [])]
    inputs = np.random.default_rng(0).normal(size=(100, 2, 4))
    data = tf.data.Dataset.from_tensor_slices((inputs, inputs[..., :1])).skip(state.steps)
    model.fit(
        data,
        epochs=3,
        initial_epoch=state.epochs,
        steps_per_epoch=3,
        callbacks=found,
        shuffle=False,
        verbose=0,
    )
    return model, [{k: v for k, v in row.items() if "seconds" not in k} for row in history.rows]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    model, rows = noisy_run(folder)
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, 3), (2, 6), (3, 7)]
    return model, read(folder / "history.csv")


@pytest.mark.parametrize(("step", "every"), [(1, 1), (5, 1), (5, 2), (6, None), (7, 1)])
def test_a_run_killed_at_any_step_ends_as_if_nothing_had_been(tmp_path, unbroken, step, every):
    with pytest.raises(KeyboardInterrupt):
        noisy_run(tmp_path, step, every)
    kept = callbacks.Checkpoint.read(tmp_path / "checkpoints")
    assert kept.steps == {(6, None): 3, (5, 2): 5, (7, 1): 6}.get((step, every), step)
    assert kept.epoch_steps == kept.steps % 3
    model, _ = noisy_run(tmp_path, resume=True)
    rows = read(tmp_path / "history.csv")
    for row, expected in zip(rows, unbroken[1], strict=True):
        clocks = {"seconds": "", "step_seconds": ""}
        assert {**row, **clocks} == {**expected, **clocks}
    for variable, expected in zip(
        [*model.variables, *model.optimizer.variables],
        [*unbroken[0].variables, *unbroken[0].optimizer.variables],
        strict=True,
    ):
        one, other = map(keras.ops.convert_to_numpy, (variable, expected))
        np.testing.assert_array_equal(one, other, err_msg=variable.path)


def test_seconds_bring_a_checkpoint_within_an_epoch(tmp_path):
    state = callbacks.State()
    found = [callbacks.Budget(state=state), callbacks.Checkpoint(tmp_path, state, seconds=0.0)]
    with pytest.raises(KeyboardInterrupt):
        fit([*found, Killed(state, 2)])
    assert callbacks.Checkpoint.read(tmp_path).epoch_steps == 2


def test_a_checkpoint_of_another_model_is_named(tmp_path):
    state = callbacks.State()
    checkpoint = callbacks.Checkpoint(tmp_path, state)
    fit([callbacks.Budget(state=state), checkpoint], epochs=1)
    with pytest.raises(CodedError, match=r"KUG-T04 .*step_00000004\.weights\.h5: found weights"):
        checkpoint.restore(Noisy())


def test_no_checkpoint_to_read(tmp_path):
    with pytest.raises(CodedError, match=r"KUG-T04 .*found no checkpoint"):
        callbacks.Checkpoint.read(tmp_path)


@pytest.mark.parametrize(
    "logs", [{"loss": math.nan}, {"loss": math.inf}, {"loss": 1.0, "skipped": 4.0}]
)
def test_an_epoch_without_a_usable_step_ends_the_run(logs):
    stop = callbacks.StopOnNonFinite()
    stop.on_epoch_begin(1)
    for batch in range(4):
        stop.on_train_batch_end(batch)
    with pytest.raises(CodedError, match=r"KUG-T05 epoch 2: found no step .* in 4.*learning_rate"):
        stop.on_epoch_end(1, logs)


def test_single_skipped_steps_do_not_end_the_run():
    fit([callbacks.StopOnNonFinite()], epochs=1)
    stop = callbacks.StopOnNonFinite()
    stop.on_epoch_begin(0)
    stop.on_train_batch_end(0)
    stop.on_train_batch_end(1)
    stop.on_epoch_end(0, {"loss": 1.0, "skipped": 1.0})


def test_event_files_hold_every_scalar_at_its_step(tmp_path):
    state = callbacks.State()
    fit([callbacks.Budget(state=state), callbacks.EventLog(tmp_path, state)], validation=True)
    for part in ("train", "validation"):
        (file,) = (tmp_path / part).iterdir()
        events = [tf.compat.v1.Event.FromString(e.numpy()) for e in tf.data.TFRecordDataset(file)]
        values = [
            (e.step, v.tag, tf.make_ndarray(v.tensor)) for e in events for v in e.summary.value
        ]
        assert [(step, tag) for step, tag, _ in values] == [(s, "epoch_loss") for s in (4, 8, 12)]
        assert all(np.isfinite(value) for _, _, value in values)


def test_curves_are_drawn(tmp_path):
    history = callbacks.History(tmp_path / "history.csv")
    curves = callbacks.Curves(tmp_path / "progress.png", history, every=1000.0)
    history.on_epoch_end(0, {"loss": 1.0, "val_dice": 0.5, "val_dice_ct": 0.5})
    curves.on_epoch_end(0)
    first = (tmp_path / "progress.png").read_bytes()
    assert first.startswith(b"\x89PNG")
    history.on_epoch_end(1, {"loss": 0.1, "val_dice": 0.9, "val_dice_ct": 0.9})
    curves.on_epoch_end(1)
    assert (tmp_path / "progress.png").read_bytes() == first
    curves.draw()
    assert (tmp_path / "progress.png").read_bytes() != first


def test_the_summary_names_losses_and_dice():
    logs = {"loss": 0.5, "segmentor_gradient_norm": 3.0, "skipped": 0.0, "val_loss": 0.6}
    logs |= {"val_dice": 0.7, "val_dice_ct": 0.8, "val_dice_t1": 0.6, "val_dice_loss": 0.2}
    assert callbacks.summary_line(logs) == "loss 0.5  Dice 0.700 (ct 0.80, t1 0.60)"
    assert callbacks.summary_line({**logs, "skipped": 2.0}).startswith("loss 0.5  skipped 2  ")


def console(terminal):
    file = io.StringIO()
    return rich.console.Console(
        file=file, force_terminal=terminal, width=160, highlight=False, soft_wrap=True
    )


def test_elsewhere_than_on_a_terminal_an_epoch_is_a_line():
    output = console(terminal=False)
    budget = callbacks.Budget(steps=8)
    fit([budget, callbacks.Progress(budget, 8, output)], epochs=2)
    lines = output.file.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("epoch 1  step 4/8  ")
    assert "it/s  eta 0:00:0" in lines[0]
    assert re.search(r"loss \d", lines[0])
    assert lines[1].startswith("epoch 2  step 8/8  ")


def test_a_terminal_shows_a_bar_and_gets_its_cursor_back():
    output = console(terminal=True)
    budget = callbacks.Budget(minutes=5.0)
    progress = callbacks.Progress(budget, None, output)
    fit([budget, progress], epochs=2)
    progress.close()
    text = output.file.getvalue()
    assert "━" in text
    assert "eta 0:0" in text
    assert text.count("\x1b[?25h") == 1


def test_state_survives_json(tmp_path):
    state = callbacks.State(3, 13, 1, 4.5, 0.5, 2, 1, "step_00000013.weights.h5", True)
    checkpoint = callbacks.Checkpoint(tmp_path, state)
    checkpoint.save_state()
    assert callbacks.Checkpoint.read(tmp_path) == state
    assert json.loads((tmp_path / "state.json").read_text())["best_epoch"] == 2
