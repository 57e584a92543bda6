"""Settings shared by all tests."""

import os
import pathlib
import sys

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "Agg")

ROOT = pathlib.Path(__file__).resolve().parent.parent


def pytest_collection_finish(session):
    """Two logical CPU devices, so that MirroredStrategy has two replicas to test with.

    TensorFlow takes this only before its first operation; test modules that need it import it at
    their top, so that it is loaded, and unused, here.
    """
    if "tensorflow" in sys.modules:
        import tensorflow as tf

        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * 2
        )


@pytest.fixture(scope="session")
def root():
    """Root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def unigan_data():
    """Folder of real volumes: `$UNIGAN_DATA`, else `../shared/data`; skips where there is none."""
    folder = pathlib.Path(os.environ.get("UNIGAN_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "manifest.csv").is_file():
        pytest.skip(f"no real volumes: UNIGAN_DATA={folder} has no manifest.csv")
    return folder
