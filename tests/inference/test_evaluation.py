"""Evaluation of a model on a set of images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from piecewise_training.inference import evaluate, evaluation
from piecewise_training.model import PiecewiseTrainedModel


def test_what_happens_once_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image goes through network and CRF before the first clock starts: kernels are compiled on the first."""
    events: list[str] = []

    class Clock(evaluation._Clock):
        def __init__(self, device: torch.device) -> None:
            events.append("clock")
            super().__init__(device)

    monkeypatch.setattr(evaluation, "_Clock", Clock)
    model = PiecewiseTrainedModel(3, unary=nn.Conv2d(3, 3, 1))
    hook: Any = lambda name: lambda *_: events.append(name)  # noqa: E731
    model.unary.register_forward_hook(hook("network"))
    assert model.crf is not None
    model.crf.register_forward_hook(hook("CRF"))
    batch = torch.randn(2, 3, 8, 10), torch.zeros(2, 8, 10, dtype=torch.long)
    evaluate(model, [batch, batch])
    assert events == ["network", "CRF", *["clock", "network", "clock", "CRF"] * 2]
