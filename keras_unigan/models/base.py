"""AdversarialModel: what every training game shares, so that a game reads like its paper."""

import contextlib

import keras
import tensorflow as tf

from keras_unigan.config import Plan
from keras_unigan.layers import segment_logits
from keras_unigan.metrics import Dice, harden
from keras_unigan.models.annotation import Annotation
from keras_unigan.models.means import FiniteDeviation, FiniteMean
from keras_unigan.models.stepping import Stepping, unpacked


class AdversarialModel(Stepping, Annotation, keras.Model):
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
    Where a label map shows some names only, `annotated` says which (`Annotation`).

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
    # Those of the roles that are layers of the main network; the main role is the rest of it.
    parts: tuple[str, ...] = ()
    terms: tuple[str, ...] = ("loss",)
    # Logged beside the terms, and allowed to be NaN where a batch has nothing to say about them.
    watched: tuple[str, ...] = ()
    # Whether the game makes images of other modalities, and so needs targets; and how many of them.
    translates = False
    least_modalities = 1
    # Share of the draws that labelled cases get, where others have no labels; None: as they come.
    labelled_fraction: float | None = None

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
        for role in self.given():
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

    @classmethod
    def given(cls):
        """Roles whose networks the constructor is given."""
        return [role for role in cls.roles if role not in cls.parts]

    @classmethod
    def check_cases(cls, plan, cases, labelled, **options):
        """Refuses training cases that the game cannot learn from.

        Args:
            plan: `config.Plan`.
            cases: Modality -> number of training cases.
            labelled: The same of those with a label map.
            **options: Constructor arguments of the game.

        Raises:
            CodedError: KUG-D14.
        """

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
    def kept(self):
        """File name -> averaged network that a run keeps beside the main one."""
        alone = self.translator in (None, self.network)
        return {} if alone else {"translator.keras": self.translator}

    @property
    def memory(self):
        """Variables beside those of the roles that the moves of a step change."""
        return []

    def role_variables(self, role):
        """Trainable variables that the moves of `role` may change."""
        return self._own(role, getattr(self, role).trainable_variables)

    def role_state(self, role):
        """All variables of a role."""
        return self._own(role, getattr(self, role).variables)

    def _own(self, role, variables):
        """Those that are not of `parts`, which belong to these alone."""
        others = self.parts if role == self.roles[0] else ()
        apart = {id(v) for part in others for v in getattr(self, part).variables}
        return [v for v in variables if id(v) not in apart]

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

    def test_step(self, data):
        batch = unpacked(data)
        terms, probabilities = self.score(batch)
        size = tf.cast(tf.shape(batch["image"])[0], "float32")
        if probabilities is None:
            return self.report(self._test_means, terms, size)
        annotated = batch.get("annotated")
        target, valid = self.target(batch["label_map"], annotated)
        prediction = harden(probabilities, self.plan.labels.overlapping)
        # Where nobody looked for a name, nothing that is found of it is wrong.
        prediction = self.shown(prediction, annotated)
        self._dice.update_state(target, prediction, valid, batch["domain"])
        return {**self.report(self._test_means, terms, size), **self._dice.result()}

    def predict_step(self, data):
        return self(unpacked(data))

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

    def report(self, means, terms, weight=1.0):
        """Adds each term to its mean; returns the means so far."""
        for name, value in terms.items():
            means[name].update_state(value, sample_weight=weight)
        return {name: mean.result() for name, mean in means.items()}

    # What games compute with.

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
        networks = {role: getattr(self, role) for role in self.given()}
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
        networks = {r: keras.saving.deserialize_keras_object(config[r]) for r in cls.given()}
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
