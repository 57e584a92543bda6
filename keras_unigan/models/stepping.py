"""One training step: the moves of a game played, undone where they are not finite, and averaged."""

from typing import Any, NamedTuple

import keras
import tensorflow as tf


class Move(NamedTuple):
    """One move of a game: `role` changes its variables to lower `loss`.

    Attributes:
        loss: Scalar. Over replicas and micro-batches it is averaged.
        tape: `tf.GradientTape` that recorded it.
        role: Name in the game's `roles`.
        active: Whether the role moves at all, scalar bool; None is yes. Where no replica and no
            micro-batch says yes, the role and its optimizer stay as they were before the step.
    """

    loss: Any
    tape: Any
    role: str
    active: Any = None


def unpacked(data):
    """What Keras hands to a step: the element of a data set, or a tuple around it."""
    return keras.utils.unpack_x_y_sample_weight(data)[0]


class Stepping:
    """`train_step` of a game over its roles, moves and optimizers; part of `AdversarialModel`."""

    # Games hold no Python branch on a tensor, and a generator cannot be converted.
    @tf.autograph.experimental.do_not_convert
    def train_step(self, data):
        batch = unpacked(data)
        before = {role: self._snapshot(role) for role in self.roles}
        memory = [(variable, tf.identity(variable)) for variable in self.memory]
        terms, active = self._play_all(batch)
        good = self._finite_everywhere({n: v for n, v in terms.items() if n not in self.watched})
        for role, variables in before.items():
            keep = tf.logical_and(good, active[role])
            for variable, old in variables:
                variable.assign(tf.where(keep, variable, old))
        for variable, old in memory:
            variable.assign(tf.where(good, variable, old))
        self._average_weights(good)
        self.completed_steps.assign_add(tf.cast(good, "int64"))
        self.skipped_steps.assign_add(1 - tf.cast(good, "int64"))
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        terms = {name: tf.where(good, value, float("nan")) for name, value in terms.items()}
        terms["skipped"] = (1.0 - tf.cast(good, "float32")) / replicas
        # How steady the main role's gradient is from step to step.
        terms[f"{self.roles[0]}_gradient_sd"] = terms[f"{self.roles[0]}_gradient_norm"]
        return self.report(self._train_means, terms)

    def _snapshot(self, role):
        """Pairs of variable and value of all that a move of `role` may change."""
        optimizer = self.role_optimizer(role)
        # The loss scale is not put back: it has to fall after a step that overflowed.
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        variables = (*self.role_state(role), *inner.variables)
        return [(variable, tf.identity(variable)) for variable in variables]

    def _play_all(self, batch):
        """Plays the micro-batches of a batch side by side, and moves by their mean gradients.

        Returns:
            Mean of their terms; and role -> whether it moved, scalar bool.
        """
        parts = [batch]
        if self.accumulate > 1:
            split = {key: tf.split(value, self.accumulate) for key, value in batch.items()}
            parts = [{k: v[i] for k, v in split.items()} for i in range(self.accumulate)]
        games = [self.play(part) for part in parts]
        active, norm = {role: tf.constant(True) for role in self.roles}, None
        while True:
            moves, results = [], []
            for game in games:
                try:
                    moves.append(game.send(norm))
                except StopIteration as end:
                    results.append(end.value)
            if not moves:
                break
            role = moves[0].role
            norm = self.minimize(moves)
            if moves[0].active is not None:
                active[role] = self._anywhere(tf.reduce_any([move.active for move in moves]))
        return {name: self._mean_over_parts(name, results) for name in results[0]}, active

    def _mean_over_parts(self, name, results):
        """Mean of a term over micro-batches; of a watched one, over those that know it."""
        values = tf.stack([result[name] for result in results])
        if name not in self.watched:
            return tf.reduce_mean(values)
        said = tf.math.is_finite(values)
        # None of them: 0 / 0 is NaN.
        return tf.reduce_sum(tf.where(said, values, 0.0)) / tf.reduce_sum(tf.cast(said, "float32"))

    def minimize(self, moves):
        """Changes the variables of a role to lower the mean loss of its moves.

        Args:
            moves: List of `Move` of one role, one for each micro-batch.

        Returns:
            Global norm of the gradient before clipping, scalar.
        """
        role = moves[0].role
        optimizer, variables = self.role_optimizer(role), self.role_variables(role)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        scale = optimizer.scale_loss(tf.ones(()))
        # A network may hold variables that it does not use. TensorFlow's own zeros for them want
        # its variables, and not those of Keras.
        each = [
            [
                tf.zeros(variable.shape, variable.dtype) if gradient is None else gradient
                for gradient, variable in zip(
                    move.tape.gradient(move.loss, variables, output_gradients=scale),
                    variables,
                    strict=True,
                )
            ]
            for move in moves
        ]
        gradients = each[0]
        if len(each) > 1:
            gradients = [tf.add_n(parts) / len(each) for parts in zip(*each, strict=True)]
        if replicas > 1:
            context = tf.distribute.get_replica_context()
            gradients = context.all_reduce(tf.distribute.ReduceOp.MEAN, gradients)
        # Of the gradient without its scale: the squares of the scaled one would overflow first.
        norm = tf.linalg.global_norm([g / scale for g in gradients])
        if replicas > 1:
            limit = getattr(optimizer, "inner_optimizer", optimizer).global_clipnorm
            if limit is not None:
                factor = limit / tf.maximum(norm, limit)
                gradients = [g * factor for g in gradients]
            gradients = [g / replicas for g in gradients]
        optimizer.apply(gradients, variables)
        return norm

    def _finite_everywhere(self, terms):
        """Whether every term is finite on every replica, so that all agree on the step."""
        bad = tf.reduce_any([~tf.math.is_finite(value) for value in terms.values()])
        return ~self._anywhere(bad)

    def _anywhere(self, truth):
        """Whether a scalar bool is true on any replica."""
        if tf.distribute.get_strategy().num_replicas_in_sync == 1:
            return truth
        context = tf.distribute.get_replica_context()
        return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.cast(truth, "int32")) > 0

    def _average_weights(self, good):
        """Moves the averages towards their networks, unless the step was skipped."""
        step = tf.cast(self.completed_steps, "float32")
        decay = tf.minimum(self.ema_decay, (1.0 + step) / (10.0 + step))
        decay = tf.where(good, decay, 1.0)
        for role in self.averaged:
            pairs = zip(
                getattr(self, f"ema_{role}").weights, getattr(self, role).weights, strict=True
            )
            for average, variable in pairs:
                if tf.as_dtype(variable.dtype).is_floating:
                    average.assign(decay * average + (1.0 - decay) * variable)
