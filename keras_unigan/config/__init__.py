"""Study, Fingerprint, Plan and Experiment: frozen dataclasses to and from JSON.

Standard library only, so that the command line and the Beam workers import it at once. Every reader
is strict: an unknown or missing key is named, with the nearest known one.
"""

from keras_unigan.config.experiments import (
    AUGMENT_LEVELS,
    OPTIMIZERS,
    TARGETS,
    Experiment,
    TrainOptions,
)
from keras_unigan.config.files import (
    ALL_CHANNELS,
    IGNORE,
    MOST_CHANNELS,
    SCHEMES,
    SPLITS,
    UNKNOWN,
    check_scheme,
    finite,
    from_dict,
    read_json,
    write_json,
)
from keras_unigan.config.plans import (
    PLAN_VERSION,
    Configuration,
    Fingerprint,
    ModalityFingerprint,
    Normalization,
    Plan,
    halvings,
)
from keras_unigan.config.studies import (
    Case,
    Labels,
    Study,
    Values,
    prelabelled_error,
    synthetic_error,
)

__all__ = [
    "ALL_CHANNELS",
    "AUGMENT_LEVELS",
    "IGNORE",
    "MOST_CHANNELS",
    "OPTIMIZERS",
    "PLAN_VERSION",
    "SCHEMES",
    "SPLITS",
    "TARGETS",
    "UNKNOWN",
    "Case",
    "Configuration",
    "Experiment",
    "Fingerprint",
    "Labels",
    "ModalityFingerprint",
    "Normalization",
    "Plan",
    "Study",
    "TrainOptions",
    "Values",
    "check_scheme",
    "finite",
    "from_dict",
    "halvings",
    "prelabelled_error",
    "read_json",
    "synthetic_error",
    "write_json",
]
