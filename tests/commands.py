"""The command line, run inside a test."""

import pytest

from keras_unigan import cli


def unigan(*arguments):
    """Runs a command in this process; returns its exit code."""
    with pytest.raises(SystemExit) as stop:
        cli.main([str(a) for a in arguments])
    return stop.value.code or 0
