"""`unigan doctor` and `unigan models`: what is installed and what there is."""

import os
import sys
from json import load

from keras_unigan.cli.common import Json, Printer, table

# What may say that Keras runs on another backend, and what to do about it.
BACKEND_FIXES = {
    "KERAS_BACKEND": "unset KERAS_BACKEND",
    "keras.json": 'write "backend": "tensorflow" there, or set KERAS_BACKEND=tensorflow',
}
# Packages that Keras 3 took the place of.
OLD = {
    "tensorflow-addons": "archived, and does not import with Keras 3; what replaces each of its "
    "names is in docs/migrating.md",
    "keras-cv": "superseded by KerasHub and Keras' own layers (docs/migrating.md)",
    "tf-keras": "Keras 2 under another name, which nothing here can use",
}


def doctor(json: Json = False):
    """Says what is installed, and what is in the way."""
    from importlib import metadata

    printer = Printer(json)
    packages: dict[str, str | None] = {}
    for name in (
        "keras-unigan", "tensorflow", "keras", "numpy", "nibabel", "scipy",
        "apache-beam", "tensorflow-serving-api", "grpcio", "starlette", "ipyniivue",
    ):  # fmt: skip
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = None
    advice = _in_the_way(packages["keras"])
    extras = {"apache-beam": "pipelines", "tensorflow-serving-api": "serving", "ipyniivue": "view"}
    for name, extra in extras.items():
        if not packages[name]:
            advice.append(f'{name} is missing: pip install "keras-unigan[{extra}]"')
    report = {
        "python": sys.version.split()[0],
        "packages": packages,
        "cpus": os.cpu_count(),
        "unigan_data": os.environ.get("UNIGAN_DATA"),
        "advice": advice,
    }
    printer.say(f"python {report['python']}, {report['cpus']} cores")
    printer.say(*[f"{name} {number or 'not installed'}" for name, number in packages.items()])
    printer.say(*(advice or ["Nothing is in the way."]))
    printer.result(report)


def _in_the_way(keras):
    """What of this environment keeps Keras 3 on TensorFlow from working, each with what to do.

    Args:
        keras: Installed version of Keras, or None.
    """
    from importlib import metadata

    advice = []
    numbers = [int(n) for n in (keras or "").split(".")[:2] if n.isdecimal()]
    if keras is None or numbers < [3, 12]:
        advice.append(f'keras is {keras or "missing"}: pip install "keras>=3.12"')
    if os.environ.get("TF_USE_LEGACY_KERAS", "0").lower() in ("1", "true"):
        advice.append(
            "TF_USE_LEGACY_KERAS is set, so that tf.keras is Keras 2: unset TF_USE_LEGACY_KERAS"
        )
    backend, where = _backend()
    if backend != "tensorflow":
        advice.append(
            f"Keras runs on {backend} ({where}), this package on TensorFlow: {BACKEND_FIXES[where]}"
        )
    for name, text in OLD.items():
        try:
            number = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        advice.append(f"{name} {number} is installed, {text}: pip uninstall {name}")
    return advice


def _backend():
    """Backend that Keras will take, and what says so; does not import Keras."""
    if os.environ.get("KERAS_BACKEND"):
        return os.environ["KERAS_BACKEND"], "KERAS_BACKEND"
    home = os.environ.get("KERAS_HOME") or os.path.join(os.path.expanduser("~"), ".keras")
    try:
        with open(os.path.join(home, "keras.json"), encoding="utf-8") as file:
            return load(file)["backend"], "keras.json"
    except (OSError, ValueError, KeyError, TypeError):
        return "tensorflow", "default"


def models(json: Json = False):
    """Lists the systems that `--model` takes."""
    from keras_unigan.systems import SYSTEMS

    printer = Printer(json)
    if not json:
        rows = []
        for name, system in SYSTEMS.items():
            axes = " ".join(f"{dims}-D" for dims in system["spatial_dims"])
            counts = [f"{system[key]:,}" for key in ("parameters", "total_parameters")]
            macs = f"{system['macs'] / 1e9:.2f} G"
            rows.append((name, system["summary"], system["year"], *counts, macs, axes))
        columns = ("name", "what", "year", "parameters", "of all", "multiply-adds", "axes")
        title = "Systems (parameters of the main network and of all that train; multiply-adds of "
        table(f"{title}the main network, of a slice of 128x128)", columns, rows)
        for name, system in SYSTEMS.items():
            networks = ", ".join(f"{role} {kind}" for role, (kind, _) in system["networks"].items())
            printer.say(
                f"{name}: {networks}; game {system['game'][0]}",
                f"  {system['paper']}",
                *[f"  needs {key}: {value}" for key, value in system["needs"].items()],
            )
    printer.result(SYSTEMS)
