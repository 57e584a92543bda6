"""One offline HTML page about a run: scores, overlays, curves, settings with reasons, environment.

It reads only files of the run folder (and of its shards and study, where they are still there), and
says which ones it did not find. Pictures and tables are embedded; the page loads nothing.
"""

from keras_unigan.report.page import NOTICE, write

__all__ = ["NOTICE", "write"]
