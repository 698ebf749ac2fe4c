"""Names and colours."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from piecewise_training.dataset import Classes
from piecewise_training.dataset.classes import voc_colours


def test_stored() -> None:
    classes = Classes(("a", "b"), ((1, 2, 3), (4, 5, 6)))
    assert Classes.stored(json.loads(json.dumps(asdict(classes)))) == classes


def test_colours_are_distinct() -> None:
    assert len(set(voc_colours(255))) == 255


def test_bad_classes() -> None:
    with pytest.raises(ValueError, match="there must be 2 to 255 classes; got 1"):
        Classes.numbered(1)
    with pytest.raises(ValueError, match="2 classes need as many colours; got 1"):
        Classes(("a", "b"), ((0, 0, 0),))


def test_bad_names() -> None:
    with pytest.raises(ValueError, match="`names` must each be another; got 'sky' 2 times"):
        Classes.named(["sky", "sea", "sky"])
    for empty in ("", "  "):
        with pytest.raises(ValueError, match=r"`names` must be words; got \('sky', ' *'\)"):
            Classes.named(["sky", empty])
    for make in (Classes.named, lambda names: Classes(names, ((0, 0, 0),) * 3)):
        with pytest.raises(ValueError, match="`names` must be several names, as a list; got 'sky' alone"):
            make("sky")


def test_colours_are_bytes() -> None:
    for wrong in ((0, 0, 256), (-1, 0, 0)):
        with pytest.raises(ValueError, match="`colours` must be red, green and blue from 0 to 255; got"):
            Classes(("a", "b"), ((0, 0, 0), wrong))
