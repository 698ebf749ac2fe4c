"""The notebook runs whole, here on a few small scenes; the committed one holds the outputs of a real run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

NOTEBOOK = Path(__file__).parents[1] / "piecewise_training_pipeline.ipynb"
TINY = {
    'download("voc2012", Path("data"), "torchvision")': 'raise DataError("no download in a test")',
    'DataConfig(name="synthetic", workers=0)': (
        'DataConfig(name="synthetic", workers=0, train_scenes=8, val_scenes=4, image_size=(48, 64), batch_size=4)'
    ),
    "epochs = (16, 1, 4) if small": "epochs = (1, 1, 1) if small",
}


def outputs(notebook: Any) -> str:
    """All text that the cells printed or returned."""
    parts = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            assert output.output_type != "error", output.get("evalue")
            parts.append(output.get("text") or output.get("data", {}).get("text/plain", ""))
    return "\n".join(parts)


def pictures(notebook: Any) -> int:
    """How many pictures the cells show."""
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return sum("image/png" in output.get("data", {}) for output in shown)


@pytest.mark.slow
def test_runs_whole(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for old, new in TINY.items():
        holders = [cell for cell in notebook.cells if cell.cell_type == "code" and old in cell.source]
        assert len(holders) == 1, old
        holders[0].source = holders[0].source.replace(old, new)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    text = outputs(notebook)
    assert "8 training and 4 validation images of 7 classes" in text
    for line in ("the network alone: mIoU", "under the learned CRF:", "trained together:", "MiB with weights"):
        assert line in text
    assert pictures(notebook) == 5
    assert (tmp_path / "piecewise_model.safetensors").is_file()


def test_committed_with_the_outputs_of_one_run() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert "mIoU" in outputs(notebook)
    assert pictures(notebook) == 5
    assert not [cell for cell in code if cell.source.lstrip().startswith(("def ", "class "))]
