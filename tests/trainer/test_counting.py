"""The pixels of each class."""

from __future__ import annotations

import pytest
import torch

from piecewise_training.trainer.counting import count_classes


def test_count_classes() -> None:
    label = torch.tensor([[[0, 1, 1, 255]], [[0, 0, 255, 255]]])
    pixels, around = count_classes([label, label], 3)
    assert pixels.tolist() == [6, 4, 0]
    assert around.tolist() == [10, 6, 0]


def test_a_label_that_is_no_class() -> None:
    with pytest.raises(ValueError, match=r"`target` must hold classes 0 to 2 or 255 \(void\); it also holds \[7\]"):
        count_classes([torch.tensor([[[0, 7]]])], 3)
