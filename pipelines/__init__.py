"""Beam jobs; the same code runs on a laptop and on Dataflow.

Installed as `keras_unigan.pipelines`; needs the extra `[pipelines]`.
"""

import logging

from keras_unigan.errors import CodedError

# Beam's import logs that optional cloud clients are missing, which says nothing to a local user,
# and thereby installs a root handler that would double every later log line.
_disabled = logging.root.manager.disable
logging.disable(logging.WARNING)
try:
    import apache_beam  # noqa: F401
except ModuleNotFoundError as error:
    raise CodedError(
        "KUG-E01",
        "apache_beam",
        f"no package {error.name!r}",
        "the extra [pipelines]",
        fix='pip install "keras-unigan[pipelines]"',
    ) from error
finally:
    logging.disable(_disabled)
