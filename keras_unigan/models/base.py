"""AdversarialModel: what every training game shares, so that a game reads like its paper."""

import contextlib
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_unigan.config import IGNORE, Plan
from keras_unigan.layers import segment_logits
from keras_unigan.metrics import Dice, harden


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


class FiniteMean(keras.metrics.Mean):
    """Mean of the finite values; NaN, and not Keras' 0, where there were none."""

    def update_state(self, value, sample_weight=1.0):
        finite = tf.math.is_finite(value)
        weight = tf.where(finite, tf.cast(sample_weight, self.dtype), tf.zeros((), self.dtype))
        value = tf.where(finite, value, tf.zeros((), value.dtype))
        return super().update_state(value, sample_weight=weight)

    def result(self):
        return tf.where(self.count > 0, super().result(), tf.cast(float("nan"), self.dtype))


class FiniteDeviation(keras.metrics.Metric):
    """Standard deviation of the finite values; NaN where there were none."""

    def __init__(self, name="deviation", dtype=None):
        super().__init__(name=name, dtype=dtype)
        # float32 would lose a small deviation of large values.
        self.mean, self.square = (FiniteMean(name=n, dtype="float64") for n in ("mean", "square"))

    def update_state(self, value, sample_weight=1.0):
        value = tf.cast(value, "float64")
        self.mean.update_state(value, sample_weight)
        self.square.update_state(value**2, sample_weight)

    def result(self):
        variance = tf.maximum(self.square.result() - self.mean.result() ** 2, 0.0)
        return tf.cast(tf.sqrt(variance), self.dtype)


def _batch(data):
    """What Keras hands to a step: the element of a data set, or a tuple around it."""
    return keras.utils.unpack_x_y_sample_weight(data)[0]


class AdversarialModel(keras.Model):
    """Networks that play a game, one optimizer each, and an averaged copy of the main one.

    A subclass names its `roles` (attributes that hold its networks, the main one first) and its
    `terms`, and writes `play` (the numbered moves of one step) and `score` (the same losses without
    a move). `play` is a generator: it yields a `Move` and gets the norm of that move's gradient
    back. This class hides what is easy to get wrong:

    - gradients for one role's variables only, averaged over replicas, since optimizers sum them;
    - clipping by `optimizer.global_clipnorm` of that average, not of each replica's part;
    - loss scaling under mixed_float16;
    - a step with a loss or gradient that is not finite on any replica changes nothing (weights,
      moving statistics, spectral norm, optimizers, EMA) and is counted in `skipped_steps`;
    - several micro-batches a step (`compile(accumulate=...)`), whose gradients are averaged before
      each move;
    - an exponential moving average of the weights and moving statistics of the `averaged` roles,
      which validates, predicts and is exported. Its decay is `min(ema_decay, (1 + t) / (10 + t))`
      after `t` steps, so that the average forgets the random start of a short run.

    Batches are dicts: `image` float32 `(batch, *patch, channels)` normalised to [-1, 1],
    `label_map` uint8 `(batch, *patch)` of label indices, 255 = not annotated, `domain` int32
    `(batch,)`; games that translate also take `known`, `target` and `noise` (`data.datasets`).

    Args:
        networks: Role -> network.
        plan: `config.Plan`, or its JSON dictionary.
        spatial_dims: 2 or 3.
        ema_decay: Decay of the weight average; 0 makes it follow the weights.
        total_steps: Steps that the run is meant to have: what schedules and ramps are made for.
        name: Name of the model.

    Raises:
        ValueError: Where networks, plan and `spatial_dims` do not fit one another.
    """

    roles: tuple[str, ...] = ("segmentor",)
    terms: tuple[str, ...] = ("loss",)
    # Logged beside the terms, and allowed to be NaN where a batch has nothing to say about them.
    watched: tuple[str, ...] = ()
    # Whether the game makes images of other modalities, and so needs two of them and targets.
    translates = False

    def __init__(
        self, networks, plan, spatial_dims=2, ema_decay=0.999, total_steps=1000, name=None
    ):
        super().__init__(name=name)
        self.plan = Plan.from_dict(plan) if isinstance(plan, dict) else plan
        if not 0 <= ema_decay < 1:
            raise ValueError(f"Expected 0 <= ema_decay < 1, got {ema_decay}.")
        if total_steps < 1:
            raise ValueError(f"Expected total_steps >= 1, got {total_steps}.")
        self.spatial_dims, self.ema_decay = spatial_dims, ema_decay
        self.total_steps, self.accumulate = total_steps, 1
        outputs = len(self.plan.labels.names)
        for role in self.roles:
            network = networks[role]
            if network.spatial_dims != spatial_dims:
                raise ValueError(
                    f"Expected a {role} with {spatial_dims} spatial axes (spatial_dims), got one "
                    f"with {network.spatial_dims}."
                )
            if getattr(network, "classes", outputs) != outputs:
                raise ValueError(
                    f"Expected a {role} of {outputs} classes {self.plan.labels.names}, got "
                    f"{network.classes}."
                )
            domains = len(self.plan.modalities)
            if getattr(network, "domains", domains) != domains:
                raise ValueError(
                    f"Expected a {role} of {domains} modalities {self.plan.modalities}, got "
                    f"{network.domains}."
                )
            setattr(self, role, network)
        for role in self.averaged:
            average = type(networks[role]).from_config(networks[role].get_config())
            average.set_weights(networks[role].get_weights())
            setattr(self, f"ema_{role}", average)
        self.completed_steps = self.add_weight(
            (), "zeros", "int64", trainable=False, name="completed_steps"
        )
        self.skipped_steps = self.add_weight(
            (), "zeros", "int64", trainable=False, name="skipped_steps"
        )
        names = (*self.terms, *self.watched, *self._norms)
        self._train_means = {n: FiniteMean(name=n) for n in names}
        self._train_means["skipped"] = keras.metrics.Sum(name="skipped")
        deviation = f"{self.roles[0]}_gradient_sd"
        self._train_means[deviation] = FiniteDeviation(name=deviation)
        self._test_means = {n: FiniteMean(name=n) for n in (*self.terms, *self.watched)}
        self._dice = Dice.from_plan(self.plan)
        self._testing = False
        self.built = True

    @classmethod
    def network_arguments(cls, plan, channels=1, **options):
        """Constructor arguments that the game's options and the plan demand of each network.

        Args:
            plan: `config.Plan`.
            channels: Channels of an image.
            **options: Constructor arguments of the game.

        Returns:
            Role -> arguments.
        """
        raise NotImplementedError

    def default_optimizers(self, learning_rate=None, adversary_rate=None):
        """Role -> optimizer that `compile()` takes for "auto".

        Args:
            learning_rate: Highest rate of what segments or translates; None is the game's own.
            adversary_rate: The same of discriminators and critics.
        """
        raise NotImplementedError

    def play(self, batch):
        """Yields the moves of one step; returns `terms`, `watched` and each gradient norm."""
        raise NotImplementedError

    def score(self, batch):
        """Returns the terms of a batch for the averaged networks, and its probabilities.

        The probabilities are None in a game without a segmentor.
        """
        raise NotImplementedError

    # Networks and optimizers.

    @property
    def averaged(self):
        """Roles whose weights are averaged, the main one first."""
        return self.roles[:1]

    @property
    def network(self):
        """The averaged main network: what predicts, validates and is exported."""
        return getattr(self, f"ema_{self.roles[0]}")

    @property
    def translator(self):
        """The averaged network that translates, or None."""
        networks = [getattr(self, f"ema_{role}") for role in self.averaged]
        return next((n for n in networks if hasattr(n, "translate")), None)

    @property
    def memory(self):
        """Variables beside those of the roles that the moves of a step change."""
        return []

    def role_variables(self, role):
        """Trainable variables that the moves of `role` may change."""
        return getattr(self, role).trainable_variables

    def role_optimizer(self, role):
        """Optimizer of `role`; that of the main role is `self.optimizer`."""
        return self.optimizer if role == self.roles[0] else getattr(self, f"{role}_optimizer")

    @property
    def _norms(self):
        """Names under which the gradient norms are reported."""
        return [f"{role}_gradient_norm" for role in self.roles]

    def compile(
        self, optimizer="auto", accumulate=1, jit_compile=False, run_eagerly=False, **options
    ):
        """Sets and builds one optimizer per role.

        Args:
            optimizer: "auto" for the game's defaults; a dictionary role -> Keras optimizer or its
                name, where roles left out get their default; or, in a game of one role, one
                optimizer.
            accumulate: Micro-batches that a batch is cut into. They are played side by side, and
                each move takes the mean of their gradients; batch statistics are those of each
                micro-batch, and each counts the same, however much of it is annotated.
            jit_compile: Whether steps are compiled by XLA.
            run_eagerly: Whether steps run without a graph.
            **options: `steps_per_execution`.

        Raises:
            ValueError: For a role that the game does not have, or `accumulate` below 1.
        """
        if accumulate < 1:
            raise ValueError(f"Expected accumulate >= 1, got {accumulate}.")
        self.accumulate = accumulate
        if optimizer == "auto":
            optimizer = {}
        if not isinstance(optimizer, dict) and len(self.roles) == 1:
            optimizer = {self.roles[0]: optimizer}
        if not isinstance(optimizer, dict) or set(optimizer) - set(self.roles):
            raise ValueError(
                f'Expected optimizer "auto" or a dictionary of roles {self.roles}, got '
                f"{optimizer!r}."
            )
        chosen = {r: keras.optimizers.get(o) for r, o in optimizer.items()}
        chosen = {**self.default_optimizers(), **chosen}
        for role in self.roles:
            scaled = isinstance(chosen[role], keras.optimizers.LossScaleOptimizer)
            if getattr(self, role).compute_dtype == "float16" and not scaled:
                chosen[role] = keras.optimizers.LossScaleOptimizer(chosen[role])
            # Before the first step: neither a strategy nor a loaded file can build them later.
            chosen[role].build(self.role_variables(role))
            if role != self.roles[0]:
                setattr(self, f"{role}_optimizer", chosen[role])
        super().compile(
            optimizer=chosen[self.roles[0]],
            jit_compile=jit_compile,
            run_eagerly=run_eagerly,
            auto_scale_loss=False,
            **options,
        )

    # One step.

    # Games hold no Python branch on a tensor, and a generator cannot be converted.
    @tf.autograph.experimental.do_not_convert
    def train_step(self, data):
        batch = _batch(data)
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
        variables = (*getattr(self, role).variables, *inner.variables)
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

    def test_step(self, data):
        batch = _batch(data)
        terms, probabilities = self.score(batch)
        size = tf.cast(tf.shape(batch["image"])[0], "float32")
        if probabilities is None:
            return self.report(self._test_means, terms, size)
        target, valid = self.target(batch["label_map"])
        prediction = harden(probabilities, self.plan.labels.overlapping)
        self._dice.update_state(target, prediction, valid, batch["domain"])
        return {**self.report(self._test_means, terms, size), **self._dice.result()}

    def predict_step(self, data):
        return self(_batch(data))

    def call(self, inputs):
        """Probabilities of the averaged network.

        Args:
            inputs: Image `(batch, *spatial, channels)`, of an unknown modality; or a dict with
                `image` and `domain` (batch,).

        Returns:
            float32 `(batch, *spatial, outputs)`.
        """
        if isinstance(inputs, dict):
            image, domain = inputs["image"], inputs["domain"]
        else:
            image, domain = inputs, tf.fill([tf.shape(inputs)[0]], -1)
        return self.activate(segment_logits(self.network, image, domain))

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
        each = [
            move.tape.gradient(
                move.loss, variables, output_gradients=scale, unconnected_gradients="zero"
            )
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

    def report(self, means, terms, weight=1.0):
        """Adds each term to its mean; returns the means so far."""
        for name, value in terms.items():
            means[name].update_state(value, sample_weight=weight)
        return {name: mean.result() for name, mean in means.items()}

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

    # What games compute with.

    def target(self, label_map):
        """Truth of every output, and where it is known.

        Args:
            label_map: `(batch, *spatial)` label indices, 255 where not annotated.

        Returns:
            Target `(batch, *spatial, outputs)` and mask `(batch, *spatial)`, float32; the target is
            0 where not annotated.
        """
        valid = label_map != IGNORE
        table = tf.constant(self.plan.labels.membership, "float32")
        index = tf.where(valid, tf.cast(label_map, "int32"), 0)
        valid = tf.cast(valid, "float32")
        return tf.gather(table, index) * valid[..., None], valid

    def activate(self, logits):
        """Probabilities of logits: sigmoid for regions, softmax for classes; float32."""
        logits = tf.cast(logits, "float32")
        return tf.sigmoid(logits) if self.plan.labels.overlapping else tf.nn.softmax(logits)

    def average(self, values, weights):
        """Mean over the samples of weight 1 in the batch of all replicas.

        The sum is local and the count global, times the number of replicas: averaging the results
        (or their gradients) over replicas gives the mean of the whole batch, however it was split.
        """
        total, count = tf.reduce_sum(values * weights), tf.reduce_sum(weights)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        if replicas > 1:
            context = tf.distribute.get_replica_context()
            count = context.all_reduce(tf.distribute.ReduceOp.SUM, count)
        return replicas * total / tf.maximum(count, 1.0)

    # Keras: metrics, saving.

    @property
    def metrics(self):
        """Metrics of what runs now: losses in training; losses and Dice in validation.

        Keras reads epoch results from them (and so sums over replicas) where their names are those
        of the logs of a step.
        """
        means = self._test_means if self._testing else self._train_means
        return [*means.values(), *([self._dice] if self._testing else [])]

    @contextlib.contextmanager
    def testing(self):
        """While it lasts, `metrics` are those of validation."""
        self._testing = True
        try:
            yield
        finally:
            self._testing = False

    def evaluate(self, *args, **kwargs):
        """As `keras.Model.evaluate`."""
        with self.testing():
            return super().evaluate(*args, **kwargs)

    def get_config(self):
        networks = {role: getattr(self, role) for role in self.roles}
        return {
            **{r: keras.saving.serialize_keras_object(n) for r, n in networks.items()},
            "plan": self.plan.to_dict(),
            "spatial_dims": self.spatial_dims,
            "ema_decay": self.ema_decay,
            "total_steps": self.total_steps,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config):
        networks = {r: keras.saving.deserialize_keras_object(config[r]) for r in cls.roles}
        return cls(**{**config, **networks})

    def get_compile_config(self):
        if not self.compiled:
            return None
        optimizers = {r: self.role_optimizer(r) for r in self.roles}
        return {
            "optimizer": {
                r: keras.optimizers.serialize(optimizer) for r, optimizer in optimizers.items()
            },
            "accumulate": self.accumulate,
            "jit_compile": self.jit_compile,
            "run_eagerly": self.run_eagerly,
            "steps_per_execution": self.steps_per_execution,
        }

    def compile_from_config(self, config):
        self.compile(**config)
