"""The notebooks run from top to bottom on a finished pipeline, and are stored without what they printed."""

import json

import nbformat
import pytest
from nbclient import NotebookClient

from tests.pipeline import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_stored_without_outputs(path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert not [cell for cell in cells if cell["outputs"] or cell["execution_count"]]
    assert not [cell for cell in cells for line in cell["source"] if line.lstrip().startswith(("def ", "class "))]


def test_the_tour_has_ten_cells():
    cells = json.loads((ROOT / "notebooks/00_tour.ipynb").read_text())["cells"]
    assert sum(cell["cell_type"] == "code" for cell in cells) == 10


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the machinery around the kernel; warnings inside it are its own
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_runs_from_top_to_bottom(finished, path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = nbformat.read(path, as_version=4)
    folder = {"metadata": {"path": str(finished.folder / "notebooks")}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=folder).execute()
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
