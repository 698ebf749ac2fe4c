from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from piecewise_training.cli.runs import run_config, with_whole_paths

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


def test_what_a_run_names_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = {"name": "folder", "root": "data", "val_list": "/lists/val.txt", "images": None}
    config = {**WHOLE, "data": data, "model": {"pretrained": "weights.pth", "start_from": None, "unary": "net"}}
    assert with_whole_paths(config) == {
        **WHOLE,
        "data": {**data, "root": str(tmp_path / "data")},
        "model": {"pretrained": str(tmp_path / "weights.pth"), "start_from": None, "unary": "net"},
    }
    assert config["data"] == data
    assert with_whole_paths({**WHOLE, "model": {"pretrained": True}})["model"] == {"pretrained": True}
