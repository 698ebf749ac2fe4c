"""What watches a stage."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from piecewise_training.model import PiecewiseTrainedModel
from piecewise_training.trainer import PiecewiseTrainer
from tests.trainer.test_memory import in_bounds


class Slow(DataLoader[Any]):
    """A loader that takes its time."""

    def __iter__(self) -> Any:
        time.sleep(0.1)
        return super().__iter__()


def test_an_epochs_time_and_memory_include_its_validation() -> None:
    images = TensorDataset(torch.randn(4, 3, 8, 8), torch.randint(0, 3, (4, 8, 8)))
    model = PiecewiseTrainedModel(3, use_crf=False, unary=nn.Conv2d(3, 3, 1))
    begin = time.perf_counter()
    history = PiecewiseTrainer(model, "cpu", 3, progress=False).train_unary(DataLoader(images), 2, Slow(images))
    whole = time.perf_counter() - begin
    assert all(seconds > 0.1 for seconds in history["seconds"])
    assert sum(history["seconds"]) < whole
    assert all(map(in_bounds, map(int, history["peak_bytes"])))
