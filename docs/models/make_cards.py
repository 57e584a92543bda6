"""Writes one card a system into this folder, from the registry, the docstrings and committed rows.

`make docs` runs it. What no code can know (when to use a system, what it is weak at, which test
shows an equation) is in `notes.json`; a test compares the committed cards with new ones.
"""

import importlib
import inspect
import json
import statistics
import types
from pathlib import Path

from keras_unigan.models import MODELS
from keras_unigan.networks import NETWORKS
from keras_unigan.systems import SYSTEMS

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
QUALITY, BENCH = ROOT / "benchmarks" / "quality.jsonl", ROOT / "benchmarks" / "bench"
NOTES = json.loads((FOLDER / "notes.json").read_text(encoding="utf-8"))

# Arguments of games and networks that are no settings, and those that the plan decides.
PLUMBING = {"self", "name", "plan", "spatial_dims", "total_steps", "ema_decay"}
PLANNED = {"channels", "classes", "domains", "strides", "levels", "patch_size", "pair"}
PLANNED |= {"planes", "scores"}


def code(dotted):
    """File of a dotted name, and the name within it.

    Raises:
        AttributeError: Where it names nothing.
    """
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for name in parts[cut:]:
            found = getattr(found, name)
        own = inspect.getmodule(found) or found
        return Path(own.__file__).relative_to(ROOT), ".".join(parts[cut:])
    raise AttributeError(dotted)


def settings(function, own, without=()):
    """Text of a constructor's defaults, with a system's own in their place."""
    found = {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is not inspect.Parameter.empty and name not in without
    }
    return ", ".join(f"`{name}={value!r}`" for name, value in {**found, **own}.items())


def optimizer_of(optimizer):
    """Text of an optimizer: its class and what matters of its configuration."""
    config, rate = optimizer.get_config(), optimizer.get_config()["learning_rate"]
    if isinstance(rate, dict):
        own = rate["config"]
        tops = ("warmup_target", "rate", "initial_learning_rate")
        top = next(own[key] for key in tops if own.get(key) is not None)
        rate = f"{top:g} ({rate['class_name']})"
    else:
        rate = f"{float(rate):g}"
    names = ("beta_1", "beta_2", "momentum", "amsgrad", "weight_decay", "global_clipnorm")
    rest = [f"{n} {config[n]:g}" for n in names if config.get(n)]
    return ", ".join([f"{type(optimizer).__name__} at {rate}", *rest])


def optimizers(game, own):
    """Lines of each role's optimizer, for a run of 1000 steps."""
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(game.__init__).parameters.items()
    }
    stub = types.SimpleNamespace(**{**defaults, **own, "total_steps": 1000, "roles": game.roles})
    stub.averaged = game.averaged.fget(stub)
    found = game.default_optimizers(stub)
    return [f"- `{role}`: {optimizer_of(found[role])}" for role in game.roles]


def measured():
    """All committed rows: system -> (data, setting, variant, steps) -> held-out Dice of each seed.

    Those of `benchmarks/quality.py`, and of `unigan bench` where its `rows.jsonl` was kept as
    `benchmarks/bench/DATA.jsonl`.
    """
    found: dict = {}
    for path in (QUALITY, *sorted(BENCH.glob("*.jsonl"))):
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        for row in map(json.loads, lines):
            system, _, variant = row["system"].partition(", ")
            dice = row.get("macro", row.get("macro_dice"))
            if dice is None:  # a system that refused the data
                continue
            data = "semi-real brains" if path == QUALITY else path.stem.replace("_", " ")
            variant = f"{variant}{row.get('tag', '')}".strip(" ,") or "default"
            key = data, row.get("setting", "full"), variant, row["steps"]
            found.setdefault(system, {}).setdefault(key, []).append(dice)
    return found


def bench(name):
    """Lines of the committed rows of a system."""
    groups = measured().get(name)
    if not groups:
        return ["Not measured yet."]
    table = [
        "Held-out Dice, mean over modalities:",
        "",
        "| data | setting | variant | steps | seeds | Dice |",
        "|---|---|---|---|---|---|",
    ]
    for key, dice in sorted(groups.items()):
        text = f"{statistics.mean(dice):.3f}"
        if len(dice) > 1:
            text += f" (sd {statistics.stdev(dice):.3f})"
        table.append(f"| {' | '.join(map(str, key))} | {len(dice)} | {text} |")
    return table


def card(name):
    """Text of the card of a system."""
    system, notes = SYSTEMS[name], NOTES["systems"][name]
    kind, own = system["game"]
    game = MODELS[kind]
    paragraphs = inspect.getdoc(game).split("\n\nArgs:")[0]
    axes = " and ".join(f"{dims}-D" for dims in system["spatial_dims"])
    lines = [
        f"# {name}",
        "",
        system["summary"],
        "",
        "| | |",
        "|---|---|",
        f"| paper | {system['paper']} |",
        f"| year | {system['year']} |",
        f"| axes | {axes} |",
        f"| parameters of the main network | {system['parameters']:,} |",
        f"| parameters of all networks that train | {system['total_parameters']:,} |",
        f"| multiply-adds of a slice of 128x128 | {system['macs'] / 1e9:.2f} G |",
        *[f"| needs: {key} | {value} |" for key, value in system["needs"].items()],
        "",
        f"`unigan train SHARDS --model {name} -o RUN`",
        "",
        "## Equation, code, test",
        "",
        "| equation | code | test |",
        "|---|---|---|",
    ]
    for key in notes["equations"]:
        equation, dotted, test = NOTES["equations"][key]
        path, inner = code(dotted)
        shown = equation.replace("|", "&#124;")
        lines.append(f"| {shown} | `{inner}` in {path.as_posix()} | {test} |")
    lines += ["", f"## Game: `{kind}`", "", paragraphs, "", "## Defaults", ""]
    lines.append(f"- game: {settings(game.__init__, own, PLUMBING | {*game.roles})}")
    for role, (network, arguments) in system["networks"].items():
        found = settings(NETWORKS[network].__init__, arguments, PLUMBING | PLANNED)
        lines.append(f"- `{role}`: `{network}`" + (f", {found}" if found else ""))
    if "train" in system:
        found = ", ".join(f"`{key}={value!r}`" for key, value in system["train"].items())
        lines.append(f"- training: {found}")
    lines += ["", "Optimizers:", "", *optimizers(game, own)]
    lines += ["", "## When to use", "", notes["use"]]
    lines += ["", "## Known weaknesses", "", notes["weak"]]
    lines += ["", "## Bench", "", *bench(name)]
    return "\n".join(lines).rstrip() + "\n"


def index():
    """Text of the list of all cards."""
    lines = ["# Systems", "", "Written by `make_cards.py`, which `make docs` runs.", ""]
    heads = ("name", "what", "year", "parameters", "of all networks", "multiply-adds")
    lines += [f"| {' | '.join(heads)} |", "|---|---|---|---|---|---|"]
    for name, system in SYSTEMS.items():
        counts = [f"{system[key]:,}" for key in ("parameters", "total_parameters")]
        cells = [f"[{name}]({name}.md)", system["summary"], str(system["year"]), *counts]
        cells.append(f"{system['macs'] / 1e9:.2f} G")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def cards():
    """File name -> text of everything in this folder that is written."""
    return {"README.md": index(), **{f"{name}.md": card(name) for name in SYSTEMS}}


if __name__ == "__main__":
    for name, text in cards().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
