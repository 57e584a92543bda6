"""Every notebook runs from top to bottom, with short training, and is stored without outputs."""

import pathlib

import nbformat
import pytest

NOTEBOOKS = sorted((pathlib.Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))
# Slow ones: tests/serving takes the same road in the default run.
DEAR = ("08_savedmodel_and_grpc",)
PROOF = {
    "00_tour": "differ from the local answer",
    "08_savedmodel_and_grpc": "file: 0 voxels differ from the local answer",
}


@pytest.mark.notebook
@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=[pytest.mark.slow] * (p.stem in DEAR)) for p in NOTEBOOKS],
    ids=lambda p: p.stem,
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_notebook_runs(path, tmp_path, monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("KERAS_MAX_EPOCHS", "1")
    monkeypatch.setenv("KERAS_MAX_STEPS_PER_EPOCH", "4")
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    said = [o.get("text", "") for c in notebook.cells for o in c.get("outputs", [])]
    assert any(PROOF.get(path.stem, "") in text for text in [*said, ""])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_stored_without_outputs(path):
    cells = nbformat.read(path, as_version=4).cells
    assert all(not c.get("outputs") and c.get("execution_count") is None for c in cells)
