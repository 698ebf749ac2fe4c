"""The notebook runs whole, here on a few small scenes; the committed one holds the outputs of a real run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest
from PIL import Image

from piecewise_training.dataset import SyntheticDataset

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


def run_with(changes: dict[str, str], folder: Path) -> Any:
    """The notebook after it has run in a folder, with some of its code changed."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for old, new in changes.items():
        holders = [cell for cell in notebook.cells if cell.cell_type == "code" and old in cell.source]
        assert len(holders) == 1, old
        holders[0].source = holders[0].source.replace(old, new)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


@pytest.mark.slow
def test_runs_on_own_data(tmp_path: Path) -> None:
    """After the three lines that it names have been changed, and that of the new images."""
    scenes = SyntheticDataset(10, image_size=(64, 80))
    for folder in ("images", "labels", "photos"):
        (tmp_path / folder).mkdir()
    for place in range(10):
        for folder, array in zip(("images", "labels"), scenes.read(place), strict=True):
            Image.fromarray(array).save(tmp_path / folder / f"{place}.png")
    Image.fromarray(scenes.read(0)[0]).save(tmp_path / "photos" / "new.png")
    own = {
        'image_dir = None  # such as "my_data/images"': 'image_dir = "images"',
        'label_dir = None  # such as "my_data/labels"': 'label_dir = "labels"',
        "num_classes = None  # such as 5": "num_classes = 7",
        'photos = None  # such as "photos"': 'photos = "photos"',
        "crop=(384, 384)": "crop=(64, 64), batch_size=4, workers=0",
        "else (25, 2, 3)": "else (1, 1, 1)",
        '"tf_efficientnet_lite0"': '"mobilenetv3_small_050"',
        "pretrained=False if small else None": "pretrained=False",
    }
    notebook = run_with(own, tmp_path)
    assert "8 training and 2 validation images of 7 classes" in outputs(notebook)
    assert pictures(notebook) == 6


@pytest.mark.slow
def test_runs_whole(tmp_path: Path) -> None:
    notebook = run_with(TINY, tmp_path)
    text = outputs(notebook)
    assert "8 training and 4 validation images of 7 classes" in text
    for line in ("the network alone: mIoU", "under the learned CRF:", "trained together:", "MiB with weights"):
        assert line in text
    assert pictures(notebook) == 6
    assert (tmp_path / "piecewise_model.safetensors").is_file()


def test_committed_with_the_outputs_of_one_run() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert "mIoU" in outputs(notebook)
    assert pictures(notebook) == 6
    assert not [cell for cell in code if cell.source.lstrip().startswith(("def ", "class "))]
