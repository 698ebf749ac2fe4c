"""Files appear whole or not at all."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from piecewise_training.writing import atomic_write


def test_replaces_when_done(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.txt"
    with atomic_write(target) as temporary:
        temporary.write_text("one")
        assert not target.exists()
        assert temporary.suffix == ".txt"
    assert target.read_text() == "one"
    with atomic_write(target) as temporary:
        temporary.write_text("two")
    assert target.read_text() == "two"


def test_keeps_the_old_file_on_an_error(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def write_half() -> None:
        with atomic_write(target) as temporary:
            temporary.write_text("ne")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write_half()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_is_readable_by_others_as_usual(tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("x")
    with atomic_write(tmp_path / "atomic.txt") as temporary:
        temporary.write_text("x")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain.txt", "atomic.txt")}
    assert len(modes) == 1
