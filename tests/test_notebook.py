"""The notebook of docs/ runs from top to bottom, in an empty folder."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "docs" / "pretrain_in_python.ipynb"


def read() -> nbformat.NotebookNode:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    return notebook


def test_it_holds_no_outputs():
    assert all(not cell.outputs and cell.execution_count is None for cell in read().cells if cell.cell_type == "code")


@pytest.mark.slow
def test_it_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = read()
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    texts = ["".join(output.get("data", {}).get("text/plain", "") for output in cell.outputs) for cell in code]
    assert texts[1] == "False"
    assert texts[2].startswith("(True, 'runs/notebook', 'runs/notebook/export'")
    assert "loss" in texts[3]
    assert any("image/png" in output.get("data", {}) for output in code[4].outputs)
    assert texts[5].startswith("torch.Size([16,")
    assert (tmp_path / "runs" / "notebook" / "export" / "config.json").is_file()
