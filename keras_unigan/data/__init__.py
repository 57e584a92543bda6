"""Data: files to volumes, cases, splits, geometry, records and training streams.

`load` comes from `keras_unigan.data.datasets` on first use, so that the modules that need no
TensorFlow stay quick to import.
"""

import importlib

_LAZY = {"load": "keras_unigan.data.datasets"}


def __getattr__(name):
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_LAZY])
