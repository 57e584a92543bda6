"""House checks that every network and every game has to pass, and small data to play with."""

import functools
import inspect

import keras
import numpy as np
import tensorflow as tf

from keras_unigan import config
from keras_unigan.data import phantoms
from keras_unigan.layers import IntensityNormalization
from keras_unigan.training.running import strategy_for


def parameters(network):
    """Number of trainable parameters."""
    return sum(int(np.prod(v.shape)) for v in network.trainable_variables)


def random(shape, seed=0):
    """Normal float32 numbers."""
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def feed(network, shape, seed=0):
    """Random input of a network: an image, or `[image, code]` where it takes a code."""
    image = tf.constant(random(shape, seed))
    if len(network.inputs) == 1:
        return image
    return [image, tf.constant(random((shape[0], network.code_size), seed + 1))]


def maps(network, names, size):
    """Shapes, without the batch, behind named layers for images of a size; computes nothing."""
    model = keras.Model(network.inputs, [network.get_layer(name).output for name in names])
    specs = [
        keras.KerasTensor((1, *[size] * (len(i.shape) - 2), i.shape[-1])) for i in network.inputs
    ]
    found = model.compute_output_spec(specs if len(specs) > 1 else specs[0])
    return [tuple(f.shape[1:]) for f in keras.tree.flatten(found)]


def cheap_weights(monkeypatch):
    """Lets networks be built at full width without drawing their weights."""
    for cls in (keras.initializers.VarianceScaling, keras.initializers.RandomNormal):
        monkeypatch.setattr(cls, "__call__", lambda self, shape, dtype=None: tf.zeros(shape, dtype))


def check_network(cls, arguments, inputs, outputs, folder, at_default=(), cancelled=()):
    """Checks shapes, both round trips and that every variable has a gradient.

    Args:
        cls: Network class.
        arguments: Every constructor argument but `name`, each with a value that is not its default.
        at_default: Arguments that may be left at their default, being tried by another call.
        inputs: Two or more shapes of images of different sizes, batch first.
        outputs: Function from the shape of an image to the shapes of all outputs.
        folder: Where the `.keras` file may be written.
        cancelled: Parts of variable paths of biases that a normalisation takes out again.
    """
    signature = inspect.signature(cls.__init__).parameters
    for name, parameter in signature.items():
        if name not in ("self", "name", *at_default):
            assert name in arguments, f"{name} is not tried"
            assert arguments[name] != parameter.default, f"{name} is tried at its default only"
    keras.utils.set_random_seed(1)
    network = cls(**arguments, name="other_name")
    # Only a network that is built for one size may be tried with one.
    fixed = None not in network.inputs[0].shape[1:]
    assert fixed or len({shape[1:-1] for shape in inputs}) > 1
    x = feed(network, inputs[0], seed=1)
    for shape in inputs:
        found = keras.tree.flatten(network(feed(network, shape)))
        assert [tuple(f.shape) for f in found] == outputs(shape)

    # A served network meets sizes that its graph was not traced for.
    free = [tf.TensorSpec(i.shape, "float32") for i in network.inputs]
    free = free if len(free) > 1 else free[0]
    traced = tf.function(lambda x: network(x, training=False), input_signature=[free])
    for a, b in zip(*(keras.tree.flatten(f(x)) for f in (network, traced)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)

    data = network.get_config()
    assert set(data) == set(signature) - {"self"}
    assert cls.from_config(data).get_config() == data
    path = str(folder / "network.keras")
    network.save(path)
    loaded = keras.saving.load_model(path)
    assert type(loaded) is cls
    assert loaded.get_config() == data
    for a, b in zip(*(keras.tree.flatten(n(x)) for n in (network, loaded)), strict=True):
        np.testing.assert_array_equal(a, b)

    with tf.GradientTape() as tape:
        found = keras.tree.flatten(network(x, training=True))
        loss = sum(tf.reduce_sum(f * random(f.shape, i)) for i, f in enumerate(found))
    gradients = tape.gradient(loss, network.trainable_variables)
    for variable, gradient in zip(network.trainable_variables, gradients, strict=True):
        assert gradient is not None, f"{variable.path} is not used"
        if not any(part in variable.path for part in cancelled):
            assert np.abs(gradient).max() > 0, f"{variable.path} has no gradient"


def golden(network, shape):
    """Three values of each output, for weights and an input that no seed of Keras changes."""
    weights = [random(w.shape, i) / np.sqrt(w.size) for i, w in enumerate(network.get_weights())]
    network.set_weights([abs(w) + 0.1 if w.ndim == 1 else w for w in weights])
    found = keras.tree.flatten(network(feed(network, shape, seed=7)))
    found = [np.asarray(f) for f in found]
    return [f.ravel()[[0, f.shape[-1] * 5 % f.size, -1]].tolist() for f in found]


def plan(labels=None, modalities=("ct", "t1"), spatial_dims=2, size=16):
    """A plan for small patches; labels default to two classes."""
    labels = labels or config.Labels(classes={"organ": (1,), "lesion": (2, 3)})
    strides = ((2,) * spatial_dims,) * 2
    return config.Plan(
        study="checks",
        modalities=tuple(modalities),
        labels=labels,
        spacing=(1.0, 1.0, 2.0),
        nearest_axis=None,
        normalization={
            m: config.Normalization("ct" if m == "ct" else "mr", 50.0, 20.0, -1.5, 2.5)
            for m in modalities
        },
        configurations={
            f"{spatial_dims}d": config.Configuration((size,) * spatial_dims, 4, strides, 8)
        },
    )


def batch(a_plan, size=4, seed=0, unlabelled=True):
    """A random batch; its first sample is partly, its second not at all annotated.

    The second sample is of unknown modality. Targets are the domains in another order.
    """
    generator = np.random.default_rng(seed)
    patch = next(iter(a_plan.configurations.values())).patch_size
    label_map = generator.integers(0, len(a_plan.labels.values), (size, *patch), dtype="uint8")
    if unlabelled:
        label_map[0, : patch[0] // 2] = config.IGNORE
        label_map[1] = config.IGNORE
    domain = (np.arange(size) % len(a_plan.modalities)).astype("int32")
    image = generator.uniform(-1, 1, (size, *patch, 1)).astype("float32")
    real = image.copy()
    real[1] = generator.uniform(-1, 1, real[1].shape)
    return {
        "image": image,
        "real": real,
        "label_map": label_map,
        "domain": domain,
        "statistics": np.ones((size, 4), "float32"),
        "known": (np.arange(size) != 1).astype("int32"),
        "target": generator.permutation(domain),
        "noise": generator.uniform(size=size).astype("float32"),
        "case": np.arange(size, dtype="int32"),
    }


def phantom_slices(seeds):
    """Normalised slices of phantoms of two modalities, through organ and lesion, for any game."""
    images, label_maps, domains = [], [], []
    for seed in seeds:
        for domain, modality in enumerate(("ct", "t1")):
            image, label_map = phantoms.volume(seed, modality, (48, 48, 12))
            domains += [domain] * 6
            images.append(np.moveaxis(image, 2, 0)[3:9])
            label_maps.append(np.moveaxis(label_map, 2, 0)[3:9])
    image = np.concatenate(images)[..., None]
    parameters = {
        "ct": {"scheme": "ct", "mean": 50.0, "sd": 50.0, "low": -3.0, "high": 2.0},
        "t1": {"scheme": "mr", "mean": 0.0, "sd": 1.0, "low": -2.5, "high": 2.5},
    }
    normalize = IntensityNormalization(["ct", "t1"], parameters)
    domain = np.array(domains, "int32")
    # Statistics of the slices themselves will do here.
    image = normalize(image, domain, np.zeros((len(image), 4), "float32")).numpy()
    random = np.random.default_rng(0)
    return {
        "image": image,
        "real": image,
        "label_map": np.concatenate(label_maps),
        "domain": domain,
        "known": np.ones(len(image), "int32"),
        "target": random.integers(0, 2, len(image)).astype("int32"),
        "noise": random.uniform(size=len(image)).astype("float32"),
    }


def disk_batch(a_plan, size=8, seed=0):
    """Batch of noisy discs of class 1, bright in every other modality and dark in the rest."""
    generator = np.random.default_rng(seed)
    patch = next(iter(a_plan.configurations.values())).patch_size
    domain = (np.arange(size) % len(a_plan.modalities)).astype("int32")
    place = np.stack(np.meshgrid(*[np.arange(n) for n in patch], indexing="ij"), -1)
    centre = generator.uniform(0.35, 0.65, (size, *[1] * len(patch), len(patch))) * patch
    disc = (((place - centre) ** 2).sum(-1) < (0.25 * patch[0]) ** 2).astype("uint8")
    sign = np.where(domain % 2, -1.0, 1.0).reshape(-1, *[1] * len(patch))
    image = np.where(disc, 0.6 * sign, -0.3 * sign) + generator.normal(0, 0.1, disc.shape)
    image = np.clip(image, -1, 1).astype("float32")[..., None]
    return {
        "image": image,
        "real": image,
        "label_map": disc,
        "domain": domain,
        "known": np.ones(size, "int32"),
        "target": np.roll(domain, 1),
        "noise": generator.uniform(size=size).astype("float32"),
    }


def check_learns(game, rates, steps, term, share):
    """A term of the loss falls to a share of what it was, when one batch of discs is played.

    Args:
        game: Not compiled.
        rates: Role -> optimizer.
        steps: Number of steps.
        term: Its name.
        share: Largest share that may be left of it.
    """
    game.compile(rates)
    data = disk_batch(game.plan)
    before, after = (
        game.fit(dataset([data]), steps_per_epoch=n, verbose=0, shuffle=False).history[term][0]
        for n in (1, steps)
    )
    last = game.train_on_batch(data, return_dict=True)[term]
    assert last < share * before, (before, after, last)


def dataset(batches):
    """`tf.data.Dataset` of a list of batches, endless."""
    whole = {key: np.stack([b[key] for b in batches]) for key in batches[0]}
    return tf.data.Dataset.from_tensor_slices(whole).repeat()


def tensors(data):
    """A batch as a step gets it."""
    return {key: tf.constant(value) for key, value in data.items()}


def values(variables):
    """Copies of variables as arrays."""
    return [np.array(v) for v in variables]


def same(first, second, **tolerance):
    """Whether two lists of arrays are equal (to a tolerance)."""
    close = np.allclose if tolerance else np.array_equal
    return all(close(a, b, **tolerance) for a, b in zip(first, second, strict=True))


def state(game):
    """All that a game remembers: weights, averages, counters and every optimizer."""
    optimizers = [v for role in game.roles for v in game.role_optimizer(role).variables]
    return values([*game.weights, *optimizers])


def check_moves(game, data):
    """Each move changes trainable variables of its own role, and of no other."""
    moved = []
    minimize = game.minimize

    def watched(moves):
        role = moves[0].role
        before = {r: values(game.role_variables(r)) for r in game.roles}
        result = minimize(moves)
        for other in game.roles:
            changed = not same(before[other], values(game.role_variables(other)))
            assert changed == (other == role), f"move of {role}: {other} changed: {changed}"
        moved.append(role)
        return result

    game.minimize = watched
    try:
        game.train_step(tensors(data))
    finally:
        game.minimize = minimize
    assert set(moved) == set(game.roles)
    return moved


def check_game(make, data, folder):
    """Checks moves, five finite steps, config, and a checkpoint of the whole game.

    Args:
        make: Function that builds the game, not compiled.
        data: One batch.
        folder: Where the `.keras` file may be written.
    """
    game = make()
    signature = set(inspect.signature(type(game).__init__).parameters) - {"self"}
    assert set(game.get_config()) == signature
    game.compile()
    moves = check_moves(game, data)

    logs = game.fit(dataset([data]), steps_per_epoch=5, verbose=0, shuffle=False).history
    bad = {k: v for k, v in logs.items() if not np.isfinite(v).all() and k not in game.watched}
    assert not bad
    assert logs["skipped"] == [0.0]
    assert int(game.completed_steps) == 6  # one in `check_moves`, five in `fit`

    path = str(folder / "game.keras")
    game.save(path)
    loaded = keras.saving.load_model(path)
    assert type(loaded) is type(game)
    assert loaded.get_config() == game.get_config()
    assert same(state(loaded), state(game))
    for role in game.roles:
        optimizer = loaded.role_optimizer(role)
        assert int(optimizer.iterations) == 6 * moves.count(role)
        assert optimizer.get_config() == game.role_optimizer(role).get_config()
    np.testing.assert_array_equal(*(g(tensors(data)) for g in (game, loaded)))
    for either in (game, loaded):
        either.train_step(tensors(data))
    assert same(state(loaded), state(game))


@functools.cache
def two_replicas():
    """The one strategy of the whole process: a second one would use its collective keys again."""
    return strategy_for(2)


def check_replicas(make, batches, optimizers, tolerance, validate=True, noise=1e-5):
    """Two replicas end where one does that sees the same batches.

    Args:
        make: Function that builds the game, not compiled.
        batches: List of batches of even size.
        optimizers: Function to the argument `optimizer` of `compile`.
        tolerance: Largest difference of any variable.
        validate: Whether validation logs are compared too.
        noise: Largest relative difference of any log beyond that: norms of gradients are sums over
            all weights, in another order.
    """
    single = make()
    single.compile(optimizers())
    with two_replicas().scope():
        double = make()
        double.set_weights(single.get_weights())
        double.compile(optimizers())
    start = values(single.network.weights)
    logs = []
    for game in (single, double):
        history = game.fit(
            dataset(batches),
            validation_data=dataset(batches) if validate else None,
            validation_steps=len(batches) if validate else None,
            steps_per_epoch=len(batches),
            verbose=0,
            shuffle=False,
        )
        logs.append({k: v[0] for k, v in history.history.items()})
    assert not same(start, values(single.network.weights))
    poisoned = sum(not np.isfinite(b["image"]).all() for b in batches)
    assert logs[0]["skipped"] == poisoned
    for a, b in zip(single.weights, double.weights, strict=True):
        np.testing.assert_allclose(b, a, atol=tolerance, err_msg=a.path)
    assert logs[0].keys() == logs[1].keys()
    for name in logs[0]:
        np.testing.assert_allclose(
            logs[1][name], logs[0][name], atol=tolerance, rtol=noise, err_msg=name
        )
