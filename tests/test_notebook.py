"""The notebook runs on a checkpoint and on the runs of a study."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from study_store import StudyStore

from clap.study.factors import load_study

NOTEBOOK = Path(__file__).resolve().parents[1] / "experiments" / "experiments.ipynb"


@pytest.fixture
def checkpoint(tiny_config, tiny_clap, tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    dataset = tiny_config("dataset.num_test=12", "dataset.max_duration=4.0")["dataset"]
    tiny_clap().save(folder, {"dataset": dataset})
    return folder


@pytest.mark.slow  # starts a kernel, which imports everything again
def test_notebook_runs(checkpoint: Path, empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    study, store = load_study("encoder_ablation"), StudyStore(tmp_path / "store", empty_store)
    store.add_run(store.add_sweep(study), study.cells()[0], "0")
    for name, value in {"CHECKPOINT": checkpoint, "STORE": store.uri, "STUDY": study.name}.items():
        monkeypatch.setenv(f"CLAP_{name}", str(value))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = "\n".join(output.get("text", "") + str(output.get("data", "")) for output in outputs)
    table = "text-to-audio recall@1"
    for part in ("12 test clips of synthetic", "image/png", "audio/wav", "of the captions find", table):
        assert part in shown, f"{part} is not in the output of the notebook"


def test_notebook_is_stored_without_outputs():
    """Embedded audio takes megabytes."""
    assert not any(cell.get("outputs") for cell in nbformat.read(NOTEBOOK, as_version=4).cells)
