"""The notebook runs from build to compare to push, and holds no output of an earlier run."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from fresh import environment
from loopback_hub import WRITE, LoopbackHub
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "tour.ipynb"


@pytest.mark.slow
def test_the_tour_runs(tmp_path: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUSH_TO", "org/no-red")
    monkeypatch.setenv("HF_TOKEN", WRITE)
    notebook: Any = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute(env=environment())
    printed = "".join(out.get("text", "") for cell in code for out in cell.outputs if out.get("name") == "stdout")
    assert "UnlearningAdapter(concept='shapeworld-red'" in printed
    assert "12 tensors were edited; after unfusing all are as they were: True" in printed
    assert "the same adapter came back: True" in printed
    assert any("image/png" in out.get("data", {}) for cell in code for out in cell.outputs)
    assert "org/no-red" in hub.repositories
