"""Every notebook runs from top to bottom, on a finished run."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from evomerge.campaign.run import run_campaign

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_run(path, campaign_file, here, silent, monkeypatch):
    fitness = [
        {"name": "likely", "function": "fit.py"},
        {"name": "choice", "task": "choice.yaml", "metric": "acc"},
    ]
    run_campaign(campaign_file(fitness=fitness, budget__evaluations=8), observer=silent)
    monkeypatch.setenv("EVOMERGE_RUN", str(here / "runs" / "tiny"))
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)  # kept small in git
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(here)}}).execute()
    said = "".join(o.get("text", "") for c in notebook.cells for o in c.get("outputs", []))
    assert "M parameters" in said and "better on" in said
