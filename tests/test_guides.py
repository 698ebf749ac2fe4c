"""Every block of the documentation is tried: Python runs, YAML and commands are understood; and no name is missing."""

from __future__ import annotations

import importlib
import pkgutil
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

import piecewise_training
from piecewise_training.cli import build_parser, main
from piecewise_training.dataset import SyntheticDataset
from piecewise_training.model import PiecewiseTrainedModel
from piecewise_training.trainer import PiecewiseTrainer

DOCS = Path(__file__).parents[1] / "docs"
README = DOCS.parent / "README.md"
CONFIGS = DOCS.parent / "configs"
sys.path.insert(0, str(DOCS))
import reference  # noqa: E402

PAGES = sorted([*DOCS.glob("*.md"), *DOCS.glob("guides/*.md")])
PYDENSECRF = {
    *("DenseCRF", "DenseCRF2D", "CONST_KERNEL", "DIAG_KERNEL", "FULL_KERNEL"),
    *("NO_NORMALIZATION", "NORMALIZE_BEFORE", "NORMALIZE_AFTER", "NORMALIZE_SYMMETRIC"),
}


def blocks(page: Path, language: str) -> list[str]:
    """The page's blocks of code in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def run(page: Path, names: dict[str, Any]) -> None:
    """Runs the Python blocks of a page, one after the other, among names that are already there."""
    code = "\n".join(blocks(page, "python"))
    if "import onnxruntime" in code:
        pytest.importorskip("onnxruntime")
    exec(compile(code, page.name, "exec"), names)


CODE = [
    # It exports a model, which takes half a minute.
    pytest.param(page, id=page.stem, marks=[pytest.mark.slow] if page.stem == "export" else [])
    for page in PAGES
    if blocks(page, "python")
]


@pytest.mark.parametrize("page", CODE)
def test_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(page, {"__name__": page.stem})


class MyNet(nn.Module):
    """A network of one's own, as the README calls it."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, num_classes, 3, 2, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layer(image)


def few_scenes() -> DataLoader[Any]:
    """Two small scenes of at most 5 classes."""
    return DataLoader([(image, label % 5) for image, label in SyntheticDataset(2, image_size=(32, 48))], batch_size=2)


def test_the_readmes_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Among what its text takes for granted: a run, an image, a network, loaders and score maps."""
    monkeypatch.chdir(tmp_path)
    # The README takes the default numbers of epochs, more than thirty in all.
    monkeypatch.setattr(PiecewiseTrainer.train_piecewise, "__defaults__", (1, 1, 1, None))
    model = PiecewiseTrainedModel(5, unary="mobilenetv3_small_050", pretrained=False)
    Path("runs/mine").mkdir(parents=True)
    model.save("runs/mine/piecewise_model_final.safetensors")
    names: dict[str, Any] = {
        "__name__": "readme",
        "pil_image": Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)),
        "MyNet": MyNet,
        "train_loader": few_scenes(),
        "val_loader": few_scenes(),
        "logits": torch.randn(2, 4, 24, 32),
        "image": torch.rand(2, 3, 24, 32) * 255,
    }
    run(README, names)
    assert names["prediction"].labels.shape == (48, 64)
    assert list(names["history"]) == ["stage1", "stage2", "stage3"]
    assert names["labels"].shape == (2, 24, 32)


def commands() -> list[str]:
    """The arguments of every piecewise command in a shell block, by that name or as a module under torchrun."""
    found = set()
    for page in [README, *DOCS.glob("**/*.md")]:
        for block in blocks(page, "(?:ba)?sh"):
            for line in re.split(r"\n|&&", block.replace("\\\n", " ")):
                if called := re.match(r"\s*(?:piecewise|torchrun .* -m piecewise_training) (.*)", line):
                    found.add(" ".join(called[1].split()))
    return sorted(found)


@pytest.mark.parametrize("command", commands())
def test_commands_are_understood(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/mine").mkdir(parents=True)
    for named in ("run.yaml", "runs/mine/config.yaml"):  # configurations that commands name
        Path(named).write_text("{}")
    Path("configs").symlink_to(CONFIGS)
    build_parser().parse_args(shlex.split(command, comments=True))


ELSEWHERE = {
    "demo": "a server; tests/demo runs it",
    "demo --model runs/mine": "a server; tests/demo runs it",
    "train": ".ci/run runs it",
    "train --config run.yaml --output /shared/runs/voc": "on several machines; tests/trainer/test_together.py",
    "train --config configs/voc2012_largefov_vgg16.yaml --data.root /data --devices 4 --output runs/voc": "on 4 GPUs",
}
QUICK = [
    *("--training.stage1_epochs", "1", "--training.stage2_epochs", "1", "--training.stage3_epochs", "1"),
    *("--model.unary", "mobilenetv3_small_050", "--model.pretrained", "false"),
    *("--data.batch_size", "4", "--data.workers", "0"),
]


@pytest.mark.slow
def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them in one folder, which has what they name; the training has one epoch of a small network a stage."""
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    Path("configs").symlink_to(CONFIGS)
    scenes = SyntheticDataset(10, image_size=(64, 80))
    data = ("my_data/images", "my_data/labels", "other_data/images", "other_data/labels")
    for folder in (*data, "photos", "scores", "masks", "truth"):
        Path(folder).mkdir(parents=True)
    for place in range(10):
        image, label = scenes.read(place)
        for root in ("my_data", "other_data"):
            Image.fromarray(image).save(f"{root}/images/{place}.png")
            Image.fromarray(label % 5).save(f"{root}/labels/{place}.png")
    for name in ("new", "old"):
        Image.fromarray(image).save(f"photos/{name}.png")
        Image.fromarray(label % 5).save(f"truth/{name}.png")
        np.save(f"scores/{name}.npy", np.random.default_rng(0).standard_normal((5, 64, 80)).astype(np.float32))
    Image.fromarray(label % 5).save("masks/new.png")
    waiting = [command for command in commands() if command not in ELSEWHERE]
    assert set(ELSEWHERE) < set(commands())
    for command in sorted(waiting, key=lambda command: not command.startswith("train")):  # the others need its run
        if "runs/other" in command:
            shutil.copytree("runs/mine", "runs/other")
        arguments = shlex.split(command, comments=True)
        assert main([*arguments, *(QUICK if arguments[0] == "train" else ())]) == 0, command
    for left in (
        "runs/mine/report.html",
        "comparison.html",
        "mine.onnx",
        "averaged/report.html",
        "elsewhere/report.html",
    ):
        assert Path(left).is_file()
    assert [*Path("predictions").iterdir()]
    assert [*Path("refined").iterdir()]
    assert [*Path("mended").iterdir()]
    assert [*Path("learned").iterdir()]


def test_commands_of_torchrun_are_found() -> None:
    assert "train --config run.yaml --output /shared/runs/voc" in commands()


@pytest.mark.parametrize(
    "text", [pytest.param(text, id=page.stem) for page in [README, *PAGES] for text in blocks(page, "yaml")]
)
def test_configurations_are_understood(text: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    parser = build_parser()
    parser.instantiate(parser.parse_args(["train", "--config", str(file)]))


def test_no_public_name_is_forgotten() -> None:
    pages = {name: reference.module_page(name, title) for name, title in reference.PACKAGES.items()}
    inner = [found.name for found in pkgutil.iter_modules(piecewise_training.__path__) if found.name != "__main__"]
    for name in ("piecewise_training", *(f"piecewise_training.{one}" for one in inner)):
        module = importlib.import_module(name)
        if hasattr(module, "__all__"):
            short = name.removeprefix("piecewise_training").lstrip(".")
            page = pages[short] if short else reference.package_page()
            shown = set(re.findall(r"^(?:\.\. [\w:]+ [\w.]+\.|``)(\w+)", page, re.MULTILINE))
            assert set(module.__all__) <= shown, name
    for own, names in {"pydensecrf.densecrf": PYDENSECRF, "dataset.download": {"download"}}.items():
        assert all(f" piecewise_training.{own}.{name}\n" in pages[own] for name in names)


def test_links_of_names_lead_somewhere() -> None:
    pages = [reference.package_page(), *(reference.module_page(name, "") for name in reference.PACKAGES)]
    described = {name for page in pages for name in re.findall(r"^\.\. [\w:]+ ([\w.]+)$", page, re.MULTILINE)}
    links = {name for page in pages for name in re.findall(r":py:obj:`([\w.]+)`", page)}
    assert links
    assert links <= described


def test_relative_links_lead_to_files() -> None:
    """In the repository as it is checked out, where readers of its pages follow them; the reference is not in it."""
    links = [
        (page, link)
        for page in [README, *DOCS.glob("**/*.md")]
        if "reference" not in page.parts
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text())
        if "://" not in link and not link.startswith("reference/")
    ]
    assert len(links) > 50
    assert not [(page.name, link) for page, link in links if not (page.parent / link).exists()]
