"""`fit` and `evaluate` over several replicas, where those of Keras fail.

Before the first step Keras 3 averages a whole batch over the replicas, which bools do not survive,
nor dictionaries over the workers of a cluster; there it also takes the mean of scalar logs along an
axis (keras-team/keras issue 20585). Nothing of a step is repeated here: it is
`strategy.run(train_step)`, with the game's own metrics and Keras' callbacks.
"""

import keras
import tensorflow as tf


def _on_replicas(model, step):
    """A step of a game as a function of a distributed batch; returns the logs of one replica."""
    strategy = model.distribute_strategy

    @tf.autograph.experimental.do_not_convert
    def run(batch):
        logs = strategy.run(step, args=(batch,))
        return {name: strategy.experimental_local_results(v)[0] for name, v in logs.items()}

    if model.run_eagerly:
        return run
    return tf.function(run, reduce_retracing=True, jit_compile=model.jit_compile)


def _results(model, logs):
    """Metrics over all replicas of what the steps have logged, as numbers."""
    found = model.get_metrics_result()
    return {name: float(found[name]) for name in logs}


def fit(
    model,
    data,
    steps_per_epoch,
    epochs=1,
    initial_epoch=0,
    validation_data=None,
    validation_freq=1,
    callbacks=None,
):
    """Trains a game as `keras.Model.fit` does, which means the same by these arguments."""
    callbacks = keras.callbacks.CallbackList(
        callbacks, model=model, epochs=epochs, steps=steps_per_epoch
    )
    step, test = (_on_replicas(model, s) for s in (model.train_step, model.test_step))
    batches = iter(model.distribute_strategy.experimental_distribute_dataset(data))
    model.stop_training, logs = False, {}
    callbacks.on_train_begin()
    for epoch in range(initial_epoch, epochs):
        model.reset_metrics()
        callbacks.on_epoch_begin(epoch)
        for number in range(steps_per_epoch):
            callbacks.on_train_batch_begin(number)
            logs = step(next(batches))
            callbacks.on_train_batch_end(number, logs)
            if model.stop_training:
                break
        logs = _results(model, logs)
        if validation_data is not None and not (epoch + 1) % validation_freq:
            scores = evaluate(model, validation_data, test)
            logs |= {f"val_{name}": value for name, value in scores.items()}
        callbacks.on_epoch_end(epoch, logs)
        if model.stop_training:
            break
    callbacks.on_train_end(logs)


def evaluate(model, data, step=None):
    """Losses and scores of a game on a data set, as `keras.Model.evaluate` returns them."""
    step = step or _on_replicas(model, model.test_step)
    with model.testing():
        model.reset_metrics()
        logs = {}
        for batch in model.distribute_strategy.experimental_distribute_dataset(data):
            logs = step(batch)
        return _results(model, logs)
