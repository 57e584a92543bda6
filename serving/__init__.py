"""A TensorFlow Serving compatible server, its client, and what puts models before it.

`Server` answers the protocols of `tensorflow_model_server` from a plain Python process; `Client`
asks it or the real one. Both are loaded on first use, so a client never waits for TensorFlow.
"""

import importlib

_PUBLIC = {
    "Client": "keras_unigan.serving.client",
    "Options": "keras_unigan.serving.settings",
    "Server": "keras_unigan.serving.server",
    "Tls": "keras_unigan.serving.channel",
}

__all__ = [*_PUBLIC]


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
