"""Measured facts of a study, and the plan made of them: pure functions of numbers (methods.md §7).

`measure` looks at one case, `merge` adds two sets of facts up exactly (the order makes no
difference), `fingerprint` closes them, `make_plan` decides. Each decision comes with its reason.
"""

from keras_unigan.planning.deciding import (
    FILTERS,
    MEMORY_GIB,
    activation_bytes,
    make_plan,
    strides_of,
)
from keras_unigan.planning.facts import CORE_DEPTH, Facts, core_of, fingerprint, measure, merge
from keras_unigan.planning.histogram import Histogram
from keras_unigan.planning.schemes import WINDOWS, scheme_of

__all__ = [
    "CORE_DEPTH",
    "FILTERS",
    "MEMORY_GIB",
    "WINDOWS",
    "Facts",
    "Histogram",
    "activation_bytes",
    "core_of",
    "fingerprint",
    "make_plan",
    "measure",
    "merge",
    "scheme_of",
    "strides_of",
]
