"""Whether a step fits into memory, told from its graph before it is run; and what would fit.

The estimate walks through the graph of one training step in the order in which it was traced, and
adds up what is alive: a tensor from the operation that makes it to the last one that reads it.
"""

import contextlib
import dataclasses
import math
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_unigan.data import datasets
from keras_unigan.errors import CodedError
from keras_unigan.training.building import build_model, own_options

# What the runtime takes for the first step, measured: code and thread pools, and the optimised
# graph at so much an operation.
_RUNTIME_BYTES, _OPERATION_BYTES = 200 * 2**20, 20 * 2**10

SPARE = 1.1
"""Factor on the estimate: operations run side by side, and freed blocks are not all used again."""

# A step holds less than this per voxel of its batch (measured: 3 to 20 KiB in 2-D, 10 to 20 KiB in
# 3-D, and up to 0.8 GiB whatever the batch). What fits by it is not looked at any closer.
_SAFE_BYTES_PER_VOXEL, _SAFE_BYTES = 2**16, 2**30

# Operations whose output is their input, and such as hold nothing that a step must allocate.
_SAME = {"Identity", "IdentityN", "Reshape", "ExpandDims", "Squeeze", "StopGradient", "Snapshot"}
_NOTHING = {"ReadVariableOp", "Const", "Placeholder", "Shape", "ShapeN"}


def graph_bytes(graph, share=0):
    """Most bytes that tensors of a graph hold at one time.

    Args:
        graph: `tf.Graph` of a traced function.
        share: What a first axis of unknown size counts. A game that takes some modalities out of a
            batch does not know how many samples it gets. Other unknown sizes count nothing.
    """
    operations = graph.get_operations()
    origin, size, last = {}, {}, {}
    for number, operation in enumerate(operations):
        for tensor in operation.inputs:
            last[origin.get(tensor.ref(), tensor.ref())] = number
        if operation.type in _SAME:
            for before, after in zip(operation.inputs, operation.outputs, strict=False):
                origin[after.ref()] = origin.get(before.ref(), before.ref())
        elif operation.type not in _NOTHING:
            for tensor in operation.outputs:
                size[tensor.ref()] = _bytes(tensor, share)
                last.setdefault(tensor.ref(), number)
    ending: dict = {}
    for tensor, number in last.items():
        ending.setdefault(number, []).append(tensor)
    alive = peak = 0
    for number, operation in enumerate(operations):
        alive += sum(size.get(tensor.ref(), 0) for tensor in operation.outputs)
        peak = max(peak, alive + _workspace(operation))
        alive -= sum(size.get(tensor, 0) for tensor in ending.get(number, ()))
    return peak


def _bytes(tensor, share):
    shape = tensor.shape
    if shape.rank and shape[0] is None:
        shape = tf.TensorShape([share, *shape[1:]])
    count = shape.num_elements() if shape.rank is not None else None
    return (count or 0) * (tensor.dtype.size or 0)


def _workspace(operation):
    """Bytes that the gradient of a 3-D convolution needs beside its tensors on a CPU.

    Its kernels unfold one image at a time, and those for the input and for the filter run at once.
    """
    if not operation.type.startswith("Conv3DBackprop") or tf.config.list_physical_devices("GPU"):
        return 0
    gradient = operation.inputs[2].shape
    filters = operation.inputs[1] if "Input" in operation.type else operation.outputs[0]
    kernel = filters.shape
    if not gradient.is_fully_defined() or not kernel.is_fully_defined():
        return 0
    return 2 * 4 * math.prod(gradient[1:-1]) * math.prod(kernel[:-1])


def step_bytes(model, batch):
    """Bytes that a training step of a game takes beside what is held between steps.

    Args:
        model: Game, compiled.
        batch: Specs of its batch (`train.element_spec`).
    """
    step = tf.function(model.train_step, autograph=False, jit_compile=False)
    graph = step.get_concrete_function(batch).graph
    runtime = _RUNTIME_BYTES + _OPERATION_BYTES * len(graph.get_operations())
    # Batches are balanced over modalities.
    share = -(-batch["image"].shape[0] // len(model.plan.modalities))
    return runtime + SPARE * graph_bytes(graph, share)


def variable_bytes(model):
    """Bytes of all that a checkpoint of a game holds: weights, averages, optimizers."""
    optimizers = [model.role_optimizer(role).variables for role in model.roles]
    found = {id(v): v for v in [*model.variables, *(v for group in optimizers for v in group)]}
    return sum(_size(variable) for variable in found.values())


def _size(variable):
    return math.prod(variable.shape) * tf.as_dtype(variable.dtype).size


def held_bytes():
    """Bytes of memory that this process holds now, 0 where the system does not say."""
    return _status("VmRSS")


def peak_bytes():
    """Most bytes of memory that this process has held, 0 where the system does not say."""
    return _status("VmHWM")


def _status(key):
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return next((1024 * int(li.split()[1]) for li in text.splitlines() if li.startswith(key)), 0)


def available_bytes():
    """Bytes of main memory that are free, in this container where there is one; None: not known."""
    found = []
    with contextlib.suppress(OSError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [1024 * int(li.split()[1]) for li in lines if li.startswith("MemAvailable")]
    for group in _GROUPS:
        with contextlib.suppress(OSError):
            limit, used, facts = (Path("/sys/fs/cgroup", name).read_text() for name in group)
            # "max" where there is no limit.
            if limit.strip().isdigit():
                values = dict(line.split()[:2] for line in facts.splitlines())
                # Files that were read stay in memory only until something else needs it.
                cached = values.get("total_inactive_file", values.get("inactive_file", 0))
                found.append(max(0, int(limit) - int(used) + int(cached)))
    return min(found, default=None)


# Limit, use and details of a container's memory, as the two versions of control groups name them.
_GROUPS = (
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)


@dataclasses.dataclass(frozen=True)
class Cheaper:
    """Settings of a run that takes less.

    Attributes:
        settings: What to add to the command, as `--set` takes it.
        bytes: What the run then takes.
    """

    settings: tuple[str, ...]
    bytes: int

    def __str__(self):
        options = " ".join(f"--set {setting}" for setting in self.settings)
        return f"{options} ({gib(self.bytes)})"


def gib(count):
    """Text of a number of bytes."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**28 else f"{count / 2**20:.0f} MiB"


def _halved(value, floor, multiple=1):
    """Half of a size, down to a multiple; None below the floor."""
    half = value // 2 // multiple * multiple
    return half if half >= floor else None


def _fewer(experiment, plan, model, half):
    """`train.batch_size` after some halvings, or None."""
    size = plan.configuration(experiment.spatial_dims).batch_size
    floor = experiment.replicas * experiment.train.accumulate
    for _ in range(half):
        size = size and _halved(size, max(floor, 2 if model.translates else 1), floor)
    return f"train.batch_size={size}" if size else None


def _smaller(experiment, plan, model, half):
    """`train.patch_size` after some halvings of its longest side, or None."""
    chosen = plan.configuration(experiment.spatial_dims)
    patch = list(chosen.patch_size)
    for _ in range(half):
        axis = int(np.argmax(patch))
        step = max(16, chosen.divisor[axis])
        side = _halved(patch[axis], step, step)
        if side is None:
            return None
        patch[axis] = side
    return f"train.patch_size={patch}".replace(" ", "")


def _narrower(experiment, plan, model, half):
    """`network.filters` after some halvings, or None where the main network has no one width."""
    width = getattr(getattr(model, model.roles[0]), "filters", None)
    if not isinstance(width, int):
        return None
    for _ in range(half):
        width = width and _halved(width, 4)
    return f"network.filters={width}" if width else None


# What is tried in turn; the first three that fit are offered.
_CUTS = ((_fewer,), (_smaller,), (_narrower,), (_fewer, _smaller), (_smaller, _narrower))


def cheaper(experiment, plan, model, batch, limit, held, memory=True):
    """Up to three settings with which a run fits.

    Args:
        experiment: `config.Experiment` that does not.
        plan: `config.Plan` with its patch and batch.
        model: Its game.
        batch: Specs of its batch.
        limit: Bytes that the run may take.
        held: Bytes that it takes beside the step.
        memory: Whether `limit` is of memory; else it is of the disk.

    Returns:
        List of `Cheaper`.
    """
    found: list[Cheaper] = []
    if held >= limit:
        return found
    for cuts in _CUTS if memory else [(_narrower,)] * 3:
        # On a disk only the width counts: each offer is the next narrower one.
        start = 1 if memory else 1 + len(found)
        for half in range(start, 8):
            settings = [cut(experiment, plan, model, half) for cut in cuts]
            if None in settings:
                break
            other = experiment.override(settings)
            need = held + step_of(other, plan, batch) if memory else disk_of(other, plan)
            if need <= limit:
                found.append(Cheaper(tuple(settings), int(need)))
                break
        if len(found) == 3:
            break
    return found


def built(experiment, plan):
    """Game and plan of an experiment."""
    options = own_options(experiment.model, experiment.train, plan)
    plan = datasets.configure(plan, experiment.spatial_dims, options)
    model = build_model(
        experiment.model,
        plan,
        experiment.spatial_dims,
        experiment.seed,
        experiment.network,
        experiment.game,
        experiment.train,
        total_steps=experiment.horizon or 1,
    )
    return model, plan


def step_of(experiment, plan, batch):
    """`step_bytes` of an experiment, whose batch has the specs of another patch and size."""
    model, plan = built(experiment, plan)
    chosen = plan.configuration(experiment.spatial_dims)

    def resized(key, spec):
        spatial = chosen.patch_size if key in ("image", "real", "label_map") else ()
        rest = spec.shape[1 + len(spatial) :]
        return tf.TensorSpec((chosen.batch_size, *spatial, *rest), spec.dtype)

    return step_bytes(model, {key: resized(key, spec) for key, spec in batch.items()})


def disk_of(experiment, plan):
    """Bytes of the run folder of an experiment, but for pictures and tables."""
    return folder_bytes(built(experiment, plan)[0])


def folder_bytes(model):
    """Bytes of the weights that a run folder holds: two checkpoints while one replaces the other.

    Args:
        model: Game, compiled.
    """
    averages = [getattr(model, f"ema_{role}").variables for role in model.averaged]
    best = sum(_size(variable) for variables in averages for variable in variables)
    # The best network is replaced through a second file too.
    return 2 * variable_bytes(model) + 2 * best


def refuse(experiment, plan, kind, need, limit, offers):
    """Returns KUG-T06: what a run takes, what there is, and settings that fit.

    Args:
        experiment: `config.Experiment`.
        plan: `config.Plan` with its patch and batch.
        kind: "memory" or "disk".
        need: Bytes that it takes.
        limit: Bytes that there are.
        offers: What `cheaper` has found.
    """
    chosen = plan.configuration(experiment.spatial_dims)
    patch = " x ".join(str(n) for n in chosen.patch_size)
    fix = "; or ".join(str(offer) for offer in offers)
    return CodedError(
        "KUG-T06",
        kind,
        f"about {gib(need)} for {experiment.model} at patch {patch}, batch {chosen.batch_size}",
        f"at most {gib(limit)}",
        "The run would end on its way.",
        fix or f"a machine with more {kind}: no smaller setting was found that fits",
    )


def check_memory(experiment, plan, model, batch, limit=None):
    """Refuses a run whose step will not fit into memory.

    The graph is traced only where the batch is so large that it might not fit. A GPU refuses what
    it cannot hold by itself, and nothing else ends with it: there only a given limit counts.

    Args:
        experiment: `config.Experiment` of one replica.
        plan: `config.Plan` with the patch and batch in use.
        model: Its game, compiled.
        batch: Specs of a batch.
        limit: Bytes that the run may take in all; None takes what is free now.

    Returns:
        Bytes that the run takes, or None where it was not looked at.

    Raises:
        CodedError: KUG-T06.
    """
    gpu = bool(tf.config.list_physical_devices("GPU"))
    held = variable_bytes(model) if gpu else held_bytes()
    if limit is None:
        free = None if gpu else available_bytes()
        if free is None:
            return None
        limit = held + free
        chosen = plan.configuration(experiment.spatial_dims)
        voxels = chosen.batch_size * math.prod(chosen.patch_size)
        if voxels * _SAFE_BYTES_PER_VOXEL + _SAFE_BYTES < free:
            return None
    need = held + step_bytes(model, batch)
    if need > limit:
        offers = cheaper(experiment, plan, model, batch, limit, held)
        raise refuse(experiment, plan, "memory", need, limit, offers)
    return need
