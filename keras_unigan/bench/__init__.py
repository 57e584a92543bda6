"""Every system on the same data, with the same budget: one table, one figure, paired statistics.

`runs` trains and scores what has no row yet, one process a run; `tables` makes pages of the rows.
"""

from keras_unigan.bench.runs import PHANTOMS, Settings, phantom_study, run, segmenting
from keras_unigan.bench.tables import write

__all__ = ["PHANTOMS", "Settings", "phantom_study", "run", "segmenting", "write"]
