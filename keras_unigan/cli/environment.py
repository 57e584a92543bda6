"""`unigan doctor` and `unigan models`: what is installed and what there is."""

import os
import sys

from keras_unigan.cli.common import Json, Printer, table


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
    advice = []
    if packages["keras"] and int(packages["keras"].split(".")[0]) < 3:
        advice.append('Keras 2 is installed: pip install "keras>=3.12"')
    if os.environ.get("TF_USE_LEGACY_KERAS") in ("1", "true", "True"):
        advice.append("TF_USE_LEGACY_KERAS is set: unset it, this package needs Keras 3")
    for old in ("tensorflow-addons", "keras-cv"):
        try:
            metadata.version(old)
            advice.append(f"{old} is installed and not needed: pip uninstall {old}")
        except metadata.PackageNotFoundError:
            pass
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


def models(json: Json = False):
    """Lists the systems that `--model` takes."""
    from keras_unigan.systems import SYSTEMS

    printer = Printer(json)
    if not json:
        rows = []
        for name, system in SYSTEMS.items():
            axes = " ".join(f"{dims}-D" for dims in system["spatial_dims"])
            count, macs = f"{system['parameters']:,}", f"{system['macs'] / 1e9:.2f} G"
            rows.append((name, system["summary"], system["year"], count, macs, axes))
        columns = ("name", "what", "year", "parameters", "multiply-adds", "axes")
        table("Systems (main network; a slice of 128x128)", columns, rows)
        for name, system in SYSTEMS.items():
            networks = ", ".join(f"{role} {kind}" for role, (kind, _) in system["networks"].items())
            printer.say(
                f"{name}: {networks}; game {system['game'][0]}",
                f"  {system['paper']}",
                *[f"  needs {key}: {value}" for key, value in system["needs"].items()],
            )
    printer.result(SYSTEMS)
