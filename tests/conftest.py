"""Settings shared by all tests."""

import os
import pathlib
import sys

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "Agg")

ROOT = pathlib.Path(__file__).resolve().parent.parent


# Groups that take minutes begin first, so that no process is left with one at the end.
LONGEST = (
    "exported",
    "tests/test_end_to_end.py",
    "tests/test_training.py",
    "tests/training/test_resume.py",
    "tests/training/test_transfer.py",
    "tests/data/test_datasets.py",
)
SLOW = frozenset((ROOT / "tests" / "slow.txt").read_text(encoding="utf-8").splitlines()[1:])


# Before pytest looks which tests are asked for, and before xdist looks for groups, which it does as
# a `tryfirst` of its own.
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Marks the tests of `slow.txt`; keeps a file's tests, and all with one model, in one process.

    A test of `slow.txt` that is not there any more is named, where its file was collected whole.
    """
    found = {item.nodeid for item in items}
    files = {name.split("::")[0] for name in found}
    gone = sorted(name for name in SLOW - found if name.split("::")[0] in files)
    if gone and not any("::" in argument for argument in config.args):
        raise pytest.UsageError(f"tests/slow.txt names tests that are not there: {gone}")
    # Each worker collects for itself, and the names of plugins are other ones there.
    parallel = hasattr(config, "workerinput")
    for item in items:
        if item.nodeid in SLOW:
            item.add_marker(pytest.mark.slow)
        if parallel:
            file = item.nodeid.split("::")[0]
            # Exporting a model and checking it is dear, and done once a process.
            group = "exported" if "exported" in item.fixturenames else file
            item.add_marker(pytest.mark.xdist_group(group))
    if parallel:
        items.sort(key=lambda item: item.get_closest_marker("xdist_group").args[0] not in LONGEST)
    return (yield)


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
