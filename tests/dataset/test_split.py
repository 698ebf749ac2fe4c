"""The names of a run's images: kept, found again, and told where something is gone or new."""

from __future__ import annotations

from pathlib import Path

import pytest

from piecewise_training.dataset import SPLIT_FILE, DataError, Split
from piecewise_training.dataset.pairing import Pair

SPLIT = Split(train=("b", "a", "b", "d"), val=("c", "\u00e4"))


def pairs(names: str) -> list[Pair]:
    return [Pair(name, Path(f"{name}.jpg"), Path(f"{name}.png")) for name in names]


def test_kept_and_found(tmp_path: Path) -> None:
    assert Split.load(tmp_path) is None
    SPLIT.save(tmp_path)
    assert Split.load(tmp_path) == SPLIT
    assert [path.name for path in tmp_path.iterdir()] == [SPLIT_FILE]


@pytest.mark.parametrize("content", ["", "[", "[]", "{}", '{"train": [], "val": 3}', "3"])
def test_a_damaged_file(tmp_path: Path, content: str) -> None:
    (tmp_path / SPLIT_FILE).write_text(content)
    with pytest.raises(DataError, match=r"split.json does not hold the names of a run's images .*Bring back the file"):
        Split.load(tmp_path)


def test_images_that_came_later_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    there = pairs("abcd\u00e4")
    assert [pair.name for pair in SPLIT.validation(there)] == ["c", "\u00e4"]
    assert [pair.name for pair in SPLIT.training(there)] == ["b", "a", "b", "d"]
    assert not caplog.records
    assert [pair.name for pair in SPLIT.validation([*there, *pairs("yx")])] == ["c", "\u00e4"]
    assert [pair.name for pair in SPLIT.training([*there, *pairs("yx")])] == ["b", "a", "b", "d"]
    assert caplog.messages == ["'x' (and 1 more) came after the run had begun and is left out"]


def test_images_that_are_gone(caplog: pytest.LogCaptureFixture) -> None:
    assert [pair.name for pair in SPLIT.training(pairs("acd\u00e4"))] == ["a", "d"]
    assert caplog.messages == ["training image 'b' is gone: the run goes on without it"]
    with pytest.raises(DataError, match=r"of the run's 2 validation images 'c' \(and 1 more\) is gone. Bring it back"):
        SPLIT.validation(pairs("abd"))
