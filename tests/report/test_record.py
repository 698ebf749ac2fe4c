"""What a run leaves comes back as it was."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def test_what_is_no_number(record: RunRecord, tmp_path: Path) -> None:
    """As of an image that is all void, of a set without borders, and of a loss that went astray."""
    found = record.results["+ CRF"]
    empty = dataclasses.replace(found, borders=dict.fromkeys(found.borders, math.nan), images=(0.5, math.nan))
    history = {"stage1": {**record.history["stage1"], "val_loss": [math.inf, 0.5, math.nan]}}
    moved, costs = [dataclasses.replace(record.parameters[0], after=math.nan)], {"pos": [1.0, math.nan, 1.0]}
    options = {"data": {"root": None}}
    kind = {"results": {"+ CRF": empty}, "history": history, "parameters": moved, "costs": costs}
    odd = dataclasses.replace(record, configuration=options, **kind)  # type: ignore[arg-type]
    odd.save(tmp_path)
    text = (tmp_path / RECORD_FILE).read_text()
    content = json.loads(text, parse_constant=pytest.fail)  # which would not be JSON
    assert content["results"]["+ CRF"]["images"] == [0.5, None]
    (tmp_path / RECORD_FILE).write_text(text.replace("null", "NaN", 1))  # as it was written before
    loaded = RunRecord.load(tmp_path)
    assert repr(loaded.results["+ CRF"].borders) == repr(empty.borders)
    assert repr(loaded.results["+ CRF"].images) == repr(empty.images)
    assert repr(loaded.history["stage1"]["val_loss"]) == "[nan, 0.5, nan]"
    assert repr(loaded.parameters) == repr(moved)
    assert repr(loaded.costs) == repr(costs)
    assert loaded.configuration == options
    assert loaded.gallery == odd.gallery


def test_gallery_that_compares_nothing_comes_back(record: RunRecord, tmp_path: Path) -> None:
    odd = dataclasses.replace(record, gallery=[dataclasses.replace(record.gallery[0], before=None)])
    odd.save(tmp_path)
    assert RunRecord.load(tmp_path).gallery == odd.gallery


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content.pop("history"),
        lambda content: content["gallery"][0].pop("rank"),
        lambda content: content["parameters"][0].update(more=1),
        lambda content: content["results"]["+ CRF"].pop("borders"),
        lambda content: content["results"].update(other=[]),
        lambda content: content["results"]["+ CRF"].update(confusion=[1, 2]),
        lambda content: content["classes"].update(names=["one"]),
        lambda content: content.update(results=[]),
    ],
)
def test_a_damaged_file_is_named(spoil: Callable[[Any], Any], record: RunRecord, tmp_path: Path) -> None:
    record.save(tmp_path)
    content = json.loads((tmp_path / RECORD_FILE).read_text())
    spoil(content)
    (tmp_path / RECORD_FILE).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"results.json is damaged, or of another version \(\w+: .*\). Write it again"):
        RunRecord.load(tmp_path)


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match="there is no results.json in .*: give the folder of a finished `piecew"
    ):
        RunRecord.load(tmp_path)
    for content in (b"{", b"\xff"):
        (tmp_path / RECORD_FILE).write_bytes(content)
        with pytest.raises(ValueError, match="results.json is no JSON"):
            RunRecord.load(tmp_path)
    (tmp_path / RECORD_FILE).write_text('{"format": "something else"}')
    with pytest.raises(ValueError, match="was not written by piecewise train or evaluate of this version"):
        RunRecord.load(tmp_path)
