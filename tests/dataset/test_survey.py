"""What is counted in a part of a data set."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from piecewise_training.dataset import Pair
from piecewise_training.dataset.survey import Part, Survey, survey


def test_shares_of_classes_and_void(tmp_path: Path) -> None:
    """Of a class among what is not void, of void among all."""
    pairs = []
    for name, label in (("a", [[0, 0, 0, 255]]), ("b", [[2, 2, 0, 255], [0, 0, 255, 255]])):
        values = np.array(label, np.uint8)
        Image.fromarray(values).save(tmp_path / f"{name}.png")
        Image.new("RGB", values.shape[::-1]).save(tmp_path / f"{name}.jpg")
        pairs.append(Pair(name, tmp_path / f"{name}.jpg", tmp_path / f"{name}.png"))
    found = survey(Part("all", pairs), num_classes=3)
    assert found.faults == []
    assert found.classes == [0, 2]
    assert [found.frequency(k) for k in range(3)] == [6 / 8, 0, 2 / 8]
    assert found.void_share == pytest.approx(4 / 12)
    assert found.sizes == Counter({(1, 4): 1, (2, 4): 1})


def test_shares_of_nothing() -> None:
    empty = Survey("none", 0)
    assert (empty.frequency(0), empty.void_share, empty.classes) == (0, 0, [])
