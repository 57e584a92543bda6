"""From a name and a plan to a compiled game; and networks back from files."""

import contextlib
import dataclasses
import inspect
from pathlib import Path

import keras

from keras_unigan import inference
from keras_unigan.config import Plan, TrainOptions, halvings
from keras_unigan.errors import CodedError, did_you_mean
from keras_unigan.models import MODELS
from keras_unigan.models.optimizers import OPTIMIZERS
from keras_unigan.networks import NETWORKS
from keras_unigan.systems import SYSTEMS
from keras_unigan.training import bringing


def build_model(
    name,
    plan,
    spatial_dims=2,
    seed=0,
    network=None,
    game=None,
    train=None,
    compile=True,
    total_steps=1000,
    segmentor=None,
    **options,
):
    """Builds the networks and the game of a system.

    Channels, classes, strides and width come from the plan where a constructor has them; the
    system's own settings stand over those, and the caller's over both.

    Args:
        name: Name in `systems.SYSTEMS`.
        plan: `config.Plan`, its JSON dictionary, or the path of a `plan.json`.
        spatial_dims: 2 or 3.
        seed: Seed of the weights. Sets the global seed of Python, NumPy and TensorFlow.
        network: Constructor arguments of the segmentor; `<role>.<argument>` reaches another one.
        game: Constructor arguments of the game.
        train: `config.TrainOptions`; None takes the defaults.
        total_steps: Steps that schedules and ramps are made for.
        compile: Whether the game is compiled, with its own optimizers at `train.learning_rate`.
        segmentor: A `keras.Model` of your own from image to logits, in the place of the system's
            (docs/bring_your_own.md); None takes the system's.
        **options: Any of the above by its bare name, e.g. `filters=16` or `lambda_dice=0.0`; or a
            network of your own under the name of its role, e.g. `critic=my_critic`.

    Returns:
        A game of `models.MODELS`, built.

    Raises:
        CodedError: KUG-T01 for an unknown name; KUG-T02 for an unknown option, or values that do
            not fit one another or the patch.
    """
    system = _system(name, spatial_dims)
    plan = Plan.from_dict(plan) if isinstance(plan, dict) else plan
    plan = plan if isinstance(plan, Plan) else Plan.load(plan)
    game_class, game_settings = MODELS[system["game"][0]], dict(system["game"][1])
    classes = {role: NETWORKS[kind] for role, (kind, _) in system["networks"].items()}
    if len(plan.modalities) < game_class.least_modalities:
        raise CodedError(
            "KUG-T02",
            f"model {name}",
            f"one modality ({', '.join(plan.modalities)})",
            "two or more",
            "This system translates between modalities.",
            "--model segan or --model joint",
        )
    given = bringing.brought(name, segmentor, options)
    groups = {
        "network": dict(network or {}),
        "game": dict(game or {}),
        "train": dataclasses.asdict(train or TrainOptions()),
    }
    known = _known_options(classes, game_class, given)
    for key, value in options.items():
        group = next((g for g, names in known.items() if key in names), None)
        if group is None:
            raise _unknown_option(name, key, [n for names in known.values() for n in names])
        groups[group][key] = value
    for group in ("network", "game"):
        for key in groups[group]:
            if key not in known[group]:
                raise _unknown_option(name, f"{group}.{key}", known[group], key)
    train = TrainOptions(**groups["train"])
    common = {"ema_decay": train.ema_decay, "total_steps": total_steps}
    game_settings = {**common, **game_settings, **groups["game"]}
    keras.utils.set_random_seed(seed)
    with _dtype_policy(train.mixed_precision), _refusals(name):
        demanded = game_class.network_arguments(
            plan, plan.inputs(spatial_dims), spatial_dims=spatial_dims, **game_settings
        )
        networks, width = {}, None
        for role, (_, settings) in system["networks"].items():
            chosen = {
                key.removeprefix(f"{role}."): value
                for key, value in groups["network"].items()
                if key.startswith(f"{role}.") or ("." not in key and role == game_class.roles[0])
            }
            arguments = _from_plan(classes[role], plan, spatial_dims, width)
            arguments.update(settings, **demanded[role])
            asked = inspect.signature(classes[role].__init__).parameters
            # Networks that exist in 2-D only do not ask.
            if "spatial_dims" in asked:
                arguments["spatial_dims"] = spatial_dims
            if "domains" in asked:
                arguments.setdefault("domains", len(plan.modalities))
            if role in given:
                width = width or _relative_width(classes[role], arguments)
                patch = plan.configuration(spatial_dims).patch_size
                networks[role] = bringing.fitted(
                    given[role], role, classes[role], demanded[role], patch, width
                )
                continue
            arguments.update(chosen)
            networks[role] = classes[role](**arguments)
            width = width or _relative_width(classes[role], arguments)
        _check_patch(networks[game_class.roles[0]], plan.configuration(spatial_dims).patch_size)
        model = game_class(plan=plan, spatial_dims=spatial_dims, **networks, **game_settings)
        if compile:
            rates = train.learning_rate, train.adversary_rate
            optimizers = model.default_optimizers(*rates)
            if train.optimizer is not None:
                main = OPTIMIZERS[train.optimizer](total_steps, train.learning_rate)
                optimizers[model.roles[0]] = main
            model.compile(optimizers, accumulate=train.accumulate, jit_compile=train.jit_compile)
    return model


def translates(name):
    """Whether the game of a system makes images of other modalities.

    Raises:
        CodedError: KUG-T01 for an unknown name.
    """
    return MODELS[_system(name)["game"][0]].translates


def check_cases(name, game, plan, cases, labelled):
    """Refuses training cases that a system cannot learn from.

    Args:
        name: Name of the system.
        game: Constructor arguments that override the system's for its game.
        plan: `config.Plan`.
        cases: Modality -> number of training cases.
        labelled: The same of those with a label map.

    Raises:
        CodedError: KUG-D14; KUG-T02 for settings that do not fit the plan.
    """
    kind, own = _system(name)["game"]
    with _refusals(name):
        MODELS[kind].check_cases(plan, cases, labelled, **{**own, **game})


def own_options(name, options, plan=None):
    """The options of a run, with what its system says where they say nothing.

    Args:
        name: Name of the system.
        options: `config.TrainOptions`.
        plan: `config.Plan` of the data, or None where it is not known.

    Raises:
        CodedError: KUG-T01 for an unknown name.
    """
    own = dict(_system(name).get("train", {}))
    own["labelled_fraction"] = MODELS[SYSTEMS[name]["game"][0]].labelled_fraction
    each = own.pop("batch_of_modality", None)
    if plan is not None and each is not None:
        own["batch_size"] = each * len(plan.modalities)
    if plan is None or plan.channels > 1:
        # Colours are channels already.
        own.pop("slices", None)
    missing = {key: value for key, value in own.items() if getattr(options, key) is None}
    return dataclasses.replace(options, **missing)


def _system(name, spatial_dims=None):
    if name not in SYSTEMS:
        raise CodedError(
            "KUG-T01",
            "model",
            f"{name!r}{did_you_mean(name, SYSTEMS)}",
            f"one of {sorted(SYSTEMS)}",
            fix="unigan models",
        )
    if spatial_dims not in (None, *SYSTEMS[name]["spatial_dims"]):
        raise CodedError(
            "KUG-T02", "spatial_dims", f"{spatial_dims}", f"{SYSTEMS[name]['spatial_dims']}"
        )
    return SYSTEMS[name]


def _arguments(cls, without=()):
    """Names of a constructor's arguments that a user may set."""
    names = list(inspect.signature(cls.__init__).parameters)[1:]
    return [n for n in names if n not in ("name", "spatial_dims", *without)]


def _known_options(classes, game_class, given=()):
    """Group -> names of the options that a caller may give; none for networks that are `given`."""
    main, made = game_class.roles[0], {r: c for r, c in classes.items() if r not in given}
    names = [(f"{r}." if r != main else "") + a for r, c in made.items() for a in _arguments(c)]
    return {
        "network": names,
        "game": _arguments(game_class, without=("plan", *classes)),
        "train": [field.name for field in dataclasses.fields(TrainOptions)],
    }


def _unknown_option(model, key, known, name=None):
    return CodedError(
        "KUG-T02",
        f"model {model}",
        f"unknown option {key!r}{did_you_mean(name or key, known)}",
        f"one of {sorted(known)}",
    )


@contextlib.contextmanager
def _dtype_policy(policy):
    """Builds under a dtype policy, then puts the old one back."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


@contextlib.contextmanager
def _refusals(name):
    """Turns a constructor's complaint about its arguments into a coded error."""
    try:
        yield
    except CodedError:
        raise
    except (TypeError, ValueError) as error:
        text = str(error).splitlines()[0]
        raise CodedError(
            "KUG-T02", f"model {name}", f"settings refused ({text})", "settings that fit"
        ) from error


def _from_plan(cls, plan, spatial_dims, width):
    """Constructor arguments that the plan decides.

    Args:
        cls: Network class. One that is `planned` halves the patch as often as it can.
        plan: `config.Plan`.
        spatial_dims: 2 or 3.
        width: For networks after the main one: its width relative to its class's own. They keep
            their proportion to it.
    """
    defaults = {n: p.default for n, p in inspect.signature(cls.__init__).parameters.items()}
    result, configuration = {}, plan.configuration(spatial_dims)
    if getattr(cls, "planned", False):
        patch = configuration.patch_size
        result["strides"] = halvings(patch, plan.spacing[:spatial_dims])
    elif "strides" in defaults:
        result["strides"] = configuration.strides
    if "filters" in defaults and width is None:
        result["filters"] = configuration.filters
    elif "filters" in defaults:
        own = defaults["filters"]
        scaled = [max(1, round(width * f)) for f in (own if isinstance(own, tuple) else (own,))]
        result["filters"] = tuple(scaled) if isinstance(own, tuple) else scaled[0]
    return result


def _relative_width(cls, arguments):
    """Base width of a network of such arguments, as a share of its class's default."""
    return arguments["filters"] / inspect.signature(cls.__init__).parameters["filters"].default


def _check_patch(network, patch):
    """Refuses a patch that the network cannot halve as often as it wants to."""
    if hasattr(network, "sample"):
        # It takes noise, and was built for this patch.
        return
    try:
        inputs = keras.KerasTensor((1, *patch, network.channels))
        if hasattr(network, "code_size"):
            inputs = [inputs, keras.KerasTensor((1, network.code_size))]
        # Further outputs may be of coarser levels.
        first = keras.tree.flatten(network.compute_output_spec(inputs))[0]
        fits = first.shape[1:-1] == tuple(patch)
    except ValueError:
        fits = False
    if not fits:
        larger = ",".join(str(16 * -(-size // 16)) for size in patch)
        raise CodedError(
            "KUG-T02",
            "train.patch_size",
            f"{tuple(patch)}",
            f"sizes that {type(network).__name__} can halve, e.g. multiples of 16",
            fix=f"--set train.patch_size=[{larger}]",
        )


def load_model(path):
    """Loads a network or game from a `.keras` file, or the network of a run folder.

    Imports the classes of this package first, which `keras.saving.load_model` cannot know of.

    Raises:
        CodedError: KUG-T04 when there is none, or Keras cannot load it.
    """
    path = Path(path)
    if path.is_dir():
        return load_run(path)[0]
    if not path.is_file():
        raise CodedError("KUG-T04", path, "no such file", "a run folder or a .keras file")
    try:
        return keras.saving.load_model(path, safe_mode=True)
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise CodedError(
            "KUG-T04",
            path,
            f"a file that Keras cannot load ({type(error).__name__})",
            "a model of this package and version",
        ) from error


def load_run(folder):
    """Loads the averaged main network and the `config.Plan` of a run folder.

    Raises:
        CodedError: KUG-T04 when the folder holds no run.
    """
    return inference.load_network(folder), Plan.load(Path(folder) / "plan.json")
