from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from piecewise_training.cli.runs import run_config

WHOLE = {"data": {"name": "camvid"}, "model": {}, "training": {}, "seed": 3}


def test_a_run(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(WHOLE))
    assert run_config(tmp_path) == WHOLE


@pytest.mark.parametrize("part", [*WHOLE])
def test_what_lacks_a_part_is_none(part: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**WHOLE, part: None}))
    assert bool(run_config(tmp_path)) == (part == "seed")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({k: v for k, v in WHOLE.items() if k != part}))
    assert run_config(tmp_path) == {}


@pytest.mark.parametrize("content", [b"", b"[1, 2]", b"a: [", b"\xff", b"3"])
def test_other_files(content: bytes, tmp_path: Path) -> None:
    assert run_config(tmp_path) == {}
    (tmp_path / "config.yaml").write_bytes(content)
    assert run_config(tmp_path) == {}
