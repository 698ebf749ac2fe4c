"""What tests of training share."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from piecewise_training.crf import layer


@pytest.fixture
def updates(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many updates of mean field each call of a `DenseCRF` makes, as they are made."""
    counts: list[int] = []
    mean_field = layer.mean_field

    def counted(scores: Tensor, terms: Any, iterations: int) -> Tensor:
        counts.append(iterations)
        return mean_field(scores, terms, iterations)

    monkeypatch.setattr(layer, "mean_field", counted)
    return counts
