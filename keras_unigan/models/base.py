"""AdversarialModel: what every training game shares, so that a game reads like its paper."""

import keras
import tensorflow as tf

from keras_unigan.config import IGNORE, Plan
from keras_unigan.metrics import Dice, harden


class FiniteMean(keras.metrics.Mean):
    """Mean of the finite values; NaN, and not Keras' 0, where there were none."""

    def update_state(self, value, sample_weight=1.0):
        finite = tf.math.is_finite(value)
        weight = tf.where(finite, tf.cast(sample_weight, self.dtype), 0.0)
        return super().update_state(tf.where(finite, value, 0.0), sample_weight=weight)

    def result(self):
        return tf.where(self.count > 0, super().result(), float("nan"))


def _batch(data):
    """What Keras hands to a step: the element of a data set, or a tuple around it."""
    return keras.utils.unpack_x_y_sample_weight(data)[0]


class AdversarialModel(keras.Model):
    """Networks that play a game, one optimizer each, and an averaged copy of the main one.

    A subclass names its `roles` (attributes that hold its networks, the main one first) and its
    `terms`, and writes `play` (the numbered moves of one step) and `score` (the same losses without
    a move). This class hides what is easy to get wrong:

    - gradients for one role's variables only, averaged over replicas, since optimizers sum them;
    - clipping by `optimizer.global_clipnorm` of that average, not of each replica's part;
    - loss scaling under mixed_float16;
    - a step with a loss or gradient that is not finite on any replica changes nothing (weights,
      moving statistics, spectral norm, optimizers, EMA) and is counted in `skipped_steps`;
    - an exponential moving average of the main network's weights and moving statistics, which
      validates, predicts and is exported. Its decay is `min(ema_decay, (1 + t) / (10 + t))` after
      `t` steps, so that the average forgets the random start of a short run.

    Batches are dicts: `image` float32 `(batch, *patch, channels)` normalised to [-1, 1],
    `label_map` uint8 `(batch, *patch)` of label indices, 255 = not annotated, `domain` int32
    `(batch,)`.

    Args:
        networks: Role -> network.
        plan: `config.Plan`, or its JSON dictionary.
        spatial_dims: 2 or 3.
        ema_decay: Decay of the weight average; 0 makes it follow the weights.
        name: Name of the model.

    Raises:
        ValueError: Where networks, plan and `spatial_dims` do not fit one another.
    """

    roles: tuple[str, ...] = ("segmentor",)
    terms: tuple[str, ...] = ("loss",)

    def __init__(self, networks, plan, spatial_dims=2, ema_decay=0.999, name=None):
        super().__init__(name=name)
        self.plan = Plan.from_dict(plan) if isinstance(plan, dict) else plan
        if not 0 <= ema_decay < 1:
            raise ValueError(f"Expected 0 <= ema_decay < 1, got {ema_decay}.")
        self.spatial_dims, self.ema_decay = spatial_dims, ema_decay
        for role in self.roles:
            network = networks[role]
            if len(network.input_shape) != spatial_dims + 2:
                raise ValueError(
                    f"Expected a {role} with {spatial_dims} spatial axes (spatial_dims), got input "
                    f"shape {network.input_shape}."
                )
            outputs = len(self.plan.labels.names)
            if role == "segmentor" and network.output_shape[-1] != outputs:
                raise ValueError(
                    f"Expected a segmentor of {outputs} classes {self.plan.labels.names}, got "
                    f"{network.output_shape[-1]}."
                )
            setattr(self, role, network)
        main = networks[self.roles[0]]
        average = type(main).from_config(main.get_config())
        average.set_weights(main.get_weights())
        setattr(self, f"ema_{self.roles[0]}", average)
        self.completed_steps = self.add_weight(
            (), "zeros", "int64", trainable=False, name="completed_steps"
        )
        self.skipped_steps = self.add_weight(
            (), "zeros", "int64", trainable=False, name="skipped_steps"
        )
        self._train_means = {n: FiniteMean(name=n) for n in (*self.terms, *self._norms)}
        self._train_means["skipped"] = keras.metrics.Sum(name="skipped")
        self._test_means = {n: FiniteMean(name=n) for n in self.terms}
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

    def default_optimizers(self, learning_rate=None):
        """Role -> optimizer that `compile()` takes for "auto"; None is the game's own rate."""
        raise NotImplementedError

    def play(self, batch):
        """Makes the moves of one step; returns each of `terms` and each norm of `minimize`."""
        raise NotImplementedError

    def score(self, batch):
        """Returns the terms of a batch for the averaged network, and its probabilities."""
        raise NotImplementedError

    # Networks and optimizers.

    @property
    def network(self):
        """The averaged main network: what predicts, validates and is exported."""
        return getattr(self, f"ema_{self.roles[0]}")

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

    def compile(self, optimizer="auto", jit_compile=False, run_eagerly=False, **options):
        """Sets and builds one optimizer per role.

        Args:
            optimizer: "auto" for the game's defaults; a dictionary role -> Keras optimizer or its
                name, where roles left out get their default; or, in a game of one role, one
                optimizer.
            jit_compile: Whether steps are compiled by XLA.
            run_eagerly: Whether steps run without a graph.
            **options: `steps_per_execution`.

        Raises:
            ValueError: For a role that the game does not have.
        """
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

    def train_step(self, data):
        batch = _batch(data)
        optimizers = [self.role_optimizer(role) for role in self.roles]
        state = {}
        for role, optimizer in zip(self.roles, optimizers, strict=True):
            # The loss scale is not put back: it has to fall after a step that overflowed.
            inner = getattr(optimizer, "inner_optimizer", optimizer)
            for variable in (*getattr(self, role).variables, *inner.variables):
                state[id(variable)] = (variable, tf.identity(variable))
        terms = self.play(batch)
        good = self._finite_everywhere(terms)
        for variable, before in state.values():
            variable.assign(tf.where(good, variable, before))
        self._average_weights(good)
        self.completed_steps.assign_add(tf.cast(good, "int64"))
        self.skipped_steps.assign_add(1 - tf.cast(good, "int64"))
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        terms = {name: tf.where(good, value, float("nan")) for name, value in terms.items()}
        terms["skipped"] = (1.0 - tf.cast(good, "float32")) / replicas
        return self.report(self._train_means, terms)

    def test_step(self, data):
        batch = _batch(data)
        terms, probabilities = self.score(batch)
        target, valid = self.target(batch["label_map"])
        prediction = harden(probabilities, self.plan.labels.overlapping)
        self._dice.update_state(target, prediction, valid, batch["domain"])
        size = tf.cast(tf.shape(probabilities)[0], "float32")
        return {**self.report(self._test_means, terms, size), **self._dice.result()}

    def predict_step(self, data):
        batch = _batch(data)
        return self(batch["image"] if isinstance(batch, dict) else batch)

    def call(self, image):
        """Probabilities `(batch, *spatial, outputs)` of the averaged network."""
        return self.activate(self.network(image, training=False))

    def minimize(self, loss, tape, role):
        """Changes the variables of `role` to lower `loss`.

        Args:
            loss: Scalar, computed under `tape`. Over replicas it is averaged.
            tape: `tf.GradientTape` that recorded the loss.
            role: Name in `roles`.

        Returns:
            Global norm of the gradient before clipping, scalar.
        """
        optimizer, variables = self.role_optimizer(role), self.role_variables(role)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        scale = optimizer.scale_loss(tf.ones_like(loss))
        gradients = tape.gradient(
            loss, variables, output_gradients=scale, unconnected_gradients="zero"
        )
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
        good = tf.reduce_all([tf.math.is_finite(value) for value in terms.values()])
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        if replicas > 1:
            context = tf.distribute.get_replica_context()
            votes = context.all_reduce(tf.distribute.ReduceOp.SUM, tf.cast(good, "int32"))
            good = votes == replicas
        return good

    def _average_weights(self, good):
        """Moves the averaged network towards the main one, unless the step was skipped."""
        step = tf.cast(self.completed_steps, "float32")
        decay = tf.minimum(self.ema_decay, (1.0 + step) / (10.0 + step))
        decay = tf.where(good, decay, 1.0)
        main = getattr(self, self.roles[0])
        for average, variable in zip(self.network.weights, main.weights, strict=True):
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

    def evaluate(self, *args, **kwargs):
        """As `keras.Model.evaluate`."""
        self._testing = True
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self._testing = False

    def get_config(self):
        networks = {role: getattr(self, role) for role in self.roles}
        return {
            **{r: keras.saving.serialize_keras_object(n) for r, n in networks.items()},
            "plan": self.plan.to_dict(),
            "spatial_dims": self.spatial_dims,
            "ema_decay": self.ema_decay,
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
            "jit_compile": self.jit_compile,
            "run_eagerly": self.run_eagerly,
            "steps_per_execution": self.steps_per_execution,
        }

    def compile_from_config(self, config):
        self.compile(**config)
