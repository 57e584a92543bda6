"""Start of a run from the networks of another one: other data, other classes, more modalities.

Tensors are copied by the path of their variable. Along an axis that counts classes or modalities,
slices go to their place by name, and what the earlier run did not know keeps its fresh start.
Which axes those are is not written down for each network: a network that is built for one more
class, or modality, shows them by what grows.
"""

import dataclasses
from pathlib import Path

import keras
import numpy as np

from keras_unigan import inference
from keras_unigan.callbacks import Checkpoint
from keras_unigan.callbacks.checkpoints import load_weights
from keras_unigan.config import Experiment, Labels, Plan
from keras_unigan.errors import CodedError
from keras_unigan.training.building import build_model


@dataclasses.dataclass(frozen=True)
class _Names:
    """Names that an axis counts, in the earlier and in the new run.

    Attributes:
        before: Names of the earlier run.
        after: Names of the new run.
        step: By how much one more name makes the axis grow.
        together: Whether the entries of a name lie side by side, and not in one block each.
    """

    before: tuple[str, ...]
    after: tuple[str, ...]
    step: int
    together: bool

    def places(self, size, first):
        """Where entries come from.

        Args:
            size: Size of the axis in the new network.
            first: Entries before the named ones, if there are other entries.

        Returns:
            Indices in the new axis, those in the earlier axis, and the earlier axis' size.
        """
        new, old, step = len(self.after), len(self.before), self.step
        other = size - step * new
        first = min(first, other)
        pairs = [(i, i) for i in range(first)]
        for name in self.after:
            if name in self.before:
                i, k = self.after.index(name), self.before.index(name)
                for s in range(step):
                    place = (
                        (i * step + s, k * step + s)
                        if self.together
                        else (s * new + i, s * old + k)
                    )
                    pairs.append((first + place[0], first + place[1]))
        pairs += [(first + step * new + i, first + step * old + i) for i in range(other - first)]
        return *([p[side] for p in pairs] for side in (0, 1)), other + step * old


def initialize(model, plan, run):
    """Copies the networks of a run folder into a game.

    The main network is the run's best (`network.keras`); the others are those of its checkpoint,
    averaged where the game averages them, and stay fresh where there is none.

    Args:
        model: Game, built.
        plan: Its `config.Plan`.
        run: Run folder.

    Returns:
        Dict of what was done: `run`, `classes` and `modalities` (each with `kept` and `new`), and
        `roles`: role -> `copied` (number of tensors), `extended` and `fresh` (paths).

    Raises:
        CodedError: KUG-T04 when there is no such run, or its main network is of another
            architecture.
    """
    sources, before = _sources(model, Path(run))
    alike = before.labels.overlapping == plan.labels.overlapping
    names = {
        "classes": (before.labels.names if alike else (), plan.labels.names),
        "modalities": (before.modalities, plan.modalities),
    }
    report: dict = {"run": str(run)}
    for kind, (old, new) in names.items():
        report[kind] = {
            "kept": [n for n in new if n in old],
            "new": [n for n in new if n not in old],
        }
    report["roles"] = {}
    for role in model.given():
        main = role == model.roles[0]
        network, source = getattr(model, role), sources.get(role)
        axes = {} if source is None else _axes(model, role, before, plan)
        if source is None or type(source) is not type(network) or axes is None:
            if main:
                # A run of another game may have no such role.
                found = next(iter(sources.values())) if source is None else source
                raise _other(run, type(found).__name__, type(network).__name__)
            report["roles"][role] = {"copied": 0, "extended": [], "fresh": ["all"]}
            continue
        done = _copy(network, source, axes, run if main else None)
        report["roles"][role] = done
    for role in model.averaged:
        average = getattr(model, f"ema_{role}")
        for variable, value in zip(average.weights, getattr(model, role).weights, strict=True):
            variable.assign(value)
    return report


def text(report):
    """What `initialize` did, in one paragraph for people."""
    lines = [f"started from {report['run']}"]
    for kind in ("classes", "modalities"):
        if report[kind]["new"]:
            lines.append(f"new {kind}: {', '.join(report[kind]['new'])}")
    for role, done in report["roles"].items():
        counts = {"copied": done["copied"], "extended": len(done["extended"])}
        fresh = "all" if done["fresh"] == ["all"] else len(done["fresh"])
        counts = [f"{n} {what}" for what, n in {**counts, "fresh": fresh}.items() if n]
        lines.append(f"{role}: {', '.join(counts)}")
    return "; ".join(lines)


def _sources(model, run):
    """Networks of a run by role, and its plan."""
    network = inference.load_network(run)
    sources = checkpointed(run)
    main = model.roles[0] if sources is None else next(iter(sources))
    return {**(sources or {}), main: network}, Plan.load(run / "plan.json")


def checkpointed(run):
    """Networks of a run's checkpoint, averaged where the game averages them.

    Args:
        run: Run folder, a `Path`.

    Returns:
        Role -> network, the main one first; None where there is no checkpoint.
    """
    if not ((run / "checkpoints").is_dir() and (run / "config.json").is_file()):
        return None
    past = Experiment.load(run / "config.json")
    game = build_model(
        past.model,
        Plan.load(run / "plan.json"),
        past.spatial_dims,
        past.seed,
        past.network,
        past.game,
        past.train,
        compile=False,
        total_steps=past.horizon,
    )
    _load(game, run / "checkpoints")
    return {
        role: getattr(game, f"ema_{role}" if role in game.averaged else role)
        for role in game.given()
    }


def _load(game, folder):
    """Puts the weights of a checkpoint folder into a game, also while a run replaces them."""
    for last in (False, True):
        path = folder / str(Checkpoint.read(folder).weights)
        try:
            load_weights(game, path)
            return
        except (ValueError, KeyError) as error:
            found = f"weights that do not load ({str(error).splitlines()[0]})"
            raise CodedError(
                "KUG-T04", path, found, "weights that this version of the package wrote"
            ) from error
        except FileNotFoundError as error:
            # The state names a newer file once the one that it named is gone.
            if last:
                raise CodedError(
                    "KUG-T04", path, "no such file", "the weights that state.json names"
                ) from error


def _other(run, found, expected):
    return CodedError(
        "KUG-T04",
        run,
        found,
        expected,
        "Only a network of the same build can hand over its weights.",
        "train with the model, width and depth of that run, or without --init-from",
    )


def _shapes(network):
    return {variable.path: tuple(variable.shape) for variable in network.variables}


def _axes(model, role, before, plan):
    """Axes of a role's variables that count names.

    Returns:
        Path -> list with one `_Names` or None an axis; only variables that have some. None where
        whole layers belong to a class, and their order has changed.
    """
    overlapping = before.labels.overlapping == plan.labels.overlapping
    result = {}
    for kind in ("classes", "modalities"):
        network = getattr(model, role)
        grown = _grown(model, role, plan, kind)
        if grown is None:
            continue
        shapes, larger = _shapes(network), _shapes(grown)
        if set(shapes) != set(larger):
            old, new = before.labels.foreground, plan.labels.foreground
            if old[: len(new)] != new[: len(old)] or not overlapping:
                return None
            continue
        for path, shape in shapes.items():
            steps = [b - a for a, b in zip(shape, larger[path], strict=True)]
            for axis, step in enumerate(steps):
                if step:
                    found = result.setdefault(path, [None] * len(shape))
                    if kind == "modalities":
                        old, new = before.modalities, plan.modalities
                    elif step * len(plan.labels.names) <= shape[axis]:
                        old, new = before.labels.names, plan.labels.names
                    else:
                        old, new = before.labels.foreground, plan.labels.foreground
                    if kind == "classes" and not overlapping:
                        old = tuple(f"another kind of {name}" for name in old)
                    found[axis] = _Names(old, new, step, kind == "classes")
    return result


def _grown(model, role, plan, kind):
    """The network of a role for one more class or modality; None where it makes no difference."""
    if kind == "modalities":
        extra = {**plan.normalization, "\0": next(iter(plan.normalization.values()))}
        larger = dataclasses.replace(plan, modalities=(*plan.modalities, "\0"), normalization=extra)
    else:
        labels, used = plan.labels, {v for values in plan.labels.values for v in values}
        free = next(v for v in range(1, 255) if v not in used)
        larger = dataclasses.replace(
            plan,
            labels=Labels(regions={**labels.regions, "\0": (free,)})
            if labels.overlapping
            else Labels(classes={**labels.classes, "\0": (free,)}),
        )
    options = {k: v for k, v in model.get_config().items() if k not in (*model.roles, "plan")}
    inputs = plan.inputs(model.network.spatial_dims)
    own, more = (type(model).network_arguments(p, inputs, **options)[role] for p in (plan, larger))
    network, changed = getattr(model, role), {k: v for k, v in more.items() if v != own[k]}
    if not changed:
        return None
    return type(network).from_config({**network.get_config(), **changed})


def _copy(network, source, axes, run):
    """Copies what fits; where `run` is given, what does not fit is an error that names it."""
    values = {variable.path: keras.ops.convert_to_numpy(variable) for variable in source.variables}
    done = {"copied": 0, "extended": [], "fresh": []}
    saved = {id(variable) for variable in network.weights}
    first = network.input_shape
    first = (first[0] if isinstance(first, list) else first)[-1]
    # `layers.LocalContrast` puts as many channels again between the image and the planes.
    first *= 2 if getattr(network, "local_contrast", False) else 1
    for variable in network.variables:
        if id(variable) not in saved:
            continue  # the state of a random generator
        path, shape = variable.path, tuple(variable.shape)
        value = values.get(path)
        places = None
        if value is not None and value.ndim == len(shape):
            counted = axes.get(path, [None] * len(shape))
            places = _places(shape, value.shape, counted, first if path.endswith("kernel") else 0)
        if places is None:
            if run is not None:
                found = "no such layer" if value is None else f"shape {value.shape}"
                raise _other(run, f"{found} for {path}", f"shape {shape}")
            done["fresh"].append(path)
            continue
        new, old = zip(*places, strict=True) if places else ((), ())
        result = np.array(keras.ops.convert_to_numpy(variable))
        result[np.ix_(*new)] = value[np.ix_(*old)]
        whole = all(len(n) == size for n, size in zip(new, shape, strict=True))
        some = all(len(n) for n in new)
        variable.assign(result)
        if whole:
            done["copied"] += 1
        else:
            done["extended" if some else "fresh"].append(path)
    return done


def _places(shape, before, names, first):
    """Indices in the new and the earlier tensor, a pair an axis; None where they do not fit."""
    result = []
    for axis, (size, old_size) in enumerate(zip(shape, before, strict=True)):
        if names[axis] is None:
            if size != old_size:
                return None
            result.append((list(range(size)), list(range(size))))
            continue
        # Of the inputs of a kernel, image channels come first, then the planes of a code.
        new, old, expected = names[axis].places(size, first if axis == len(shape) - 2 else 0)
        if expected != old_size:
            return None
        result.append((new, old))
    return result
