"""Every shipped configuration is read as it stands, and trains: one epoch of each stage on a few tiny images."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from torch import nn

from piecewise_training import networks
from piecewise_training.cli import build_parser, main

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
NAMES = [f"{letter}{number}" for letter in "ab" for number in range(2)]
VGG_OF_A_TENTH = {"widths": [32, 8], "scales": [1.0, 0.5]}  # fc6 alone has 100 million weights in each of three blocks


class NarrowFCN8s(networks.FCN8s):
    """With 16 channels instead of 4096: a checkpoint of all has a gigabyte, and a run leaves several."""

    def __init__(self, num_classes: int, pretrained: Any = None) -> None:
        super().__init__(num_classes, pretrained)
        self.fc6, self.fc7 = nn.Conv2d(512, 16, 7, padding=3), nn.Conv2d(16, 16, 1)
        self.score = nn.Conv2d(16, num_classes, 1)


def write(path: Path, values: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if palette:
        image.putpalette(np.random.default_rng(1).integers(0, 256, 768, np.uint8).tobytes())
    image.save(path)


def make_data(name: str, root: Path) -> None:
    """Four training images and one for validation in the layout of a data set, with a corner of void."""
    rng = np.random.default_rng(0)
    for split, names in (("train", NAMES), ("val", ["v0"])):
        for own in names:
            image = rng.integers(0, 256, (48, 64, 3), np.uint8)
            label = rng.integers(0, 3, (6, 8)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
            if name == "cityscapes":
                label[label == 2] = 4  # 7 and 8 are classes, 9 and 10 are not
                label = label + 7
                label[:5, :9] = 0
                write(root / "leftImg8bit" / split / own / f"{own}_0_leftImg8bit.png", image)
                write(root / "gtFine" / split / own / f"{own}_0_gtFine_labelIds.png", label)
            else:
                label[:5, :9] = 255
                write(root / "JPEGImages" / f"{own}.jpg", image)
                write(root / "SegmentationClass" / f"{own}.png", label, palette=True)
                write(root / "SegmentationClassAug" / f"{own}.png", label)
        for listed in (split, split.replace("train", "trainaug")) if name != "cityscapes" else ():
            lists = root / "ImageSets" / "Segmentation"
            lists.mkdir(parents=True, exist_ok=True)
            (lists / f"{listed}.txt").write_text("\n".join(names) + "\n")


def shrunk(config: dict[str, Any], root: Path) -> dict[str, Any]:
    """The configuration for images of 48 x 64, with random weights and as few epochs as each stage can do with."""
    config["data"] |= {"root": str(root), "crop": [40, 48], "batch_size": 2, "workers": 0}
    config["data"].pop("image_size", None)
    config["model"] |= {"pretrained": False, "crf_iterations": 1, "crf_train_iterations": 1}
    if config["model"]["unary"] == "vgg16":
        config["model"]["featmap"] |= VGG_OF_A_TENTH
    first = 2 if config["training"].get("crf_scores_at") else 1
    config["training"] |= {"stage1_epochs": first, "stage2_epochs": 1, "stage3_epochs": 1, "precision": "32"}
    config["training"]["context_epochs"] = 1
    return config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_is_read_as_it_stands(path: Path) -> None:
    parser = build_parser()
    settings = parser.instantiate(parser.parse_args(["train", "--config", str(path)])).train
    written = yaml.safe_load(path.read_text())
    assert settings.data.crop == tuple(written["data"]["crop"])
    assert settings.model.unary == written["model"]["unary"]
    assert settings.training.stage1_epochs == written["training"]["stage1_epochs"]
    assert settings.output == written["output"]


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_trains(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "FCN8s", NarrowFCN8s)
    config = yaml.safe_load(path.read_text())
    make_data(config["data"]["name"].removesuffix("_aug"), tmp_path / "data")
    config = shrunk(config, tmp_path / "data")
    config["output"] = str(tmp_path / "run")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["train", "--config", str(tmp_path / "config.yaml"), "--device", "cpu"]) == 0
    with (tmp_path / "run" / "metrics_summary.csv").open() as file:
        rows = {row["model"]: float(row["mIoU"]) for row in csv.DictReader(file)}
    assert ("+ context" in rows) == ("context" in config["model"])
    assert all(0 <= value <= 100 for value in rows.values())
    assert len(rows) == 5 + 2 * ("context" in config["model"])
    earlier = tmp_path / "run" / "checkpoints" / "stage1" / "earlier.ckpt"
    assert earlier.exists() == ("crf_scores_at" in config["training"])
