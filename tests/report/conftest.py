"""A small record of a run, made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from piecewise_training.dataset import Classes
from piecewise_training.inference import Prediction, Result
from piecewise_training.metrics import scores_from_confusion
from piecewise_training.report import Parameter, RunRecord, write_gallery

CLASSES = Classes.named(("road", "car", "<b>sky</b>"))
BORDERS = {"boundary_iou": 0.25, "trimap_1": 0.2, "trimap_2": 0.3, "trimap_4": 0.5, "trimap_8": 0.6, "trimap_16": 0.7}


def result(hits: int) -> Result:
    """A result whose third class occurs nowhere."""
    confusion = torch.tensor([[hits, 1, 0], [2, 1007, 0], [0, 0, 0]])
    return Result(scores_from_confusion(confusion), confusion, dict(BORDERS), 0.125, (0.5, 0.25, 0.75))


def history(epochs: int) -> dict[str, list[float]]:
    """What a stage leaves."""
    values = {name: [0.5] * epochs for name in ("train_loss", "val_loss", "val_miou", "val_accuracy", "lr")}
    return values | {"seconds": [30.0] * epochs, "peak_bytes": [2.0**30] * epochs}


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    """A record whose pictures are in the test's folder."""
    image = np.random.default_rng(0).integers(0, 256, (600, 800, 3), dtype=np.uint8)
    truth = np.zeros((600, 800), np.uint8)
    before = truth.copy()
    before[:300] = 1

    def read(place: int) -> tuple[np.ndarray, np.ndarray]:
        return image, truth

    def predict(picture: np.ndarray) -> Prediction:
        return Prediction(truth, before, np.zeros((3, 600, 800), np.float32))

    scores = (0.5, 0.25, 0.75)
    gallery = write_gallery(tmp_path, ["a", "b", "c"], scores, scores, read, predict, CLASSES)
    return RunRecord(
        name="run & co",
        classes=CLASSES,
        results={"unary alone": result(5), "+ CRF": result(9)},
        history={"stage1": history(3), "stage2": history(1)},
        titles={"stage1": "unary CNN", "stage2": "CRF, CNN fixed"},
        parameters=[Parameter("pos_xy_std", "px", 3.0, 4.25)],
        costs={"pos": [[0.0, 1.5, 1.0], [1.0, -0.25, 1.0], [1.0, 1.0, 0.0]], "bilateral": [1.0, 1.75, 1.0]},
        configuration={"data": {"name": "camvid"}, "seed": 0},
        surroundings={"torch": "torch 2.6"},
        gallery=gallery,
    )
