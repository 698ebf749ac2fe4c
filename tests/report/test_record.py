"""What a run leaves comes back as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from piecewise_training.report import RECORD_FILE, RunRecord


def test_comes_back(record: RunRecord, tmp_path: Path) -> None:
    record.save(tmp_path)
    loaded = RunRecord.load(tmp_path)
    for name in ("name", "classes", "history", "titles", "parameters", "configuration", "surroundings", "gallery"):
        assert getattr(loaded, name) == getattr(record, name), name
    assert list(loaded.results) == list(record.results)
    for own, other in zip(loaded.results.values(), record.results.values(), strict=True):
        assert torch.equal(own.confusion, other.confusion)
        assert (own.borders, own.seconds, own.images) == (other.borders, other.seconds, other.images)
        assert own.scores.miou == other.scores.miou


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match="there is no results.json in .*: give the folder of a finished `piecew"
    ):
        RunRecord.load(tmp_path)
    (tmp_path / RECORD_FILE).write_text("{")
    with pytest.raises(ValueError, match="results.json is no JSON"):
        RunRecord.load(tmp_path)
    (tmp_path / RECORD_FILE).write_text('{"format": "something else"}')
    with pytest.raises(ValueError, match="was not written by piecewise train or evaluate of this version"):
        RunRecord.load(tmp_path)
