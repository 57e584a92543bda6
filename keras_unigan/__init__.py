"""Unpaired multi-modal medical image segmentation with adversarial games, in Keras 3.

Public names are loaded on first use (PEP 562), so that `import keras_unigan` does not import
TensorFlow. Outputs are for research: this is not a medical device.
"""

import importlib

__version__ = "0.1.0"

# public name -> module that holds it; None: the name is the module itself.
_PUBLIC = {
    "build_model": "keras_unigan.training",
    "load_model": "keras_unigan.training",
    "predict": "keras_unigan.prediction",
    "translate": "keras_unigan.translation",
    "CodedError": "keras_unigan.errors",
    "Experiment": "keras_unigan.config",
    "Plan": "keras_unigan.config",
    "Study": "keras_unigan.config",
    "RandomFlip3D": "keras_unigan.data.random_layers",
    "Affine3D": "keras_unigan.data.random_layers",
    "Elastic3D": "keras_unigan.data.random_layers",
    "BiasField3D": "keras_unigan.data.random_layers",
    "Gamma3D": "keras_unigan.data.random_layers",
    "LowResolution3D": "keras_unigan.data.random_layers",
    "Resize3D": "keras_unigan.data.random_layers",
    "ssim3d": "keras_unigan.data.similarity",
    "callbacks": None,
    "config": None,
    "data": None,
    "evaluation": None,
    "health": None,
    "inference": None,
    "layers": None,
    "losses": None,
    "metrics": None,
    "models": None,
    "networks": None,
    "planning": None,
    "prediction": None,
    "systems": None,
    "training": None,
    "translation": None,
}

__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _PUBLIC[name]
    if module is None:
        return importlib.import_module(f"{__name__}.{name}")
    return getattr(importlib.import_module(module), name)


def __dir__():
    return sorted(__all__)
