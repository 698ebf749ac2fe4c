"""Names and colours."""

from __future__ import annotations

import pytest

from piecewise_training.dataset import Classes
from piecewise_training.dataset.classes import voc_colours


def test_colours_are_distinct() -> None:
    assert len(set(voc_colours(255))) == 255


def test_bad_classes() -> None:
    with pytest.raises(ValueError, match="there must be 2 to 255 classes; got 1"):
        Classes.numbered(1)
    with pytest.raises(ValueError, match="2 classes need as many colours; got 1"):
        Classes(("a", "b"), ((0, 0, 0),))
