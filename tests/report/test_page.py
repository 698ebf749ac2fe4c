"""The page: whole in itself, what it shows, several runs."""

from __future__ import annotations

import dataclasses
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piecewise_training.report import RunRecord, write_page
from piecewise_training.report.page import _names
from piecewise_training.writing import readable
from tests.report.conftest import result

EMPTY = {"meta", "link", "img", "br", "hr", "input", "path", "use"}


class Reader(HTMLParser):
    """Notes a page's text, what it refers to, its names, and whether its elements are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.references: list[str] = []
        self.names: list[str] = []
        self.titles: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.references += [v for k, v in attrs if k in ("src", "href", "xlink:href") and v]
        self.names += [values["id"]] if values.get("id") else []
        self.titles += [values["title"]] if values.get("title") else []
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in EMPTY:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data.strip())


def read(path: Path) -> tuple[Reader, str]:
    reader, page = Reader(), path.read_text(encoding="utf-8")
    reader.feed(page)
    assert not reader.open
    return reader, page


def test_needs_no_other_file(record: RunRecord, tmp_path: Path) -> None:
    write_page(tmp_path / "report.html", {tmp_path: record})
    reader, page = read(tmp_path / "report.html")
    assert all(reference.startswith(("data:", "#")) for reference in reader.references)
    assert sum(reference.startswith("data:image") for reference in reader.references) == 15
    assert not re.findall(r"(?:url\(|@import)\s*['\"]?http", page)
    assert len(set(reader.names)) == len(reader.names)
    assert len(page) < 5e6
    targets = {reference[1:] for reference in reader.references if reference.startswith("#")}
    targets |= set(re.findall(r"url\(#([^)]+)\)", page))
    assert targets <= set(reader.names)


def test_says_what_there_is(record: RunRecord, tmp_path: Path) -> None:
    write_page(tmp_path / "report.html", {tmp_path: record})
    reader, page = read(tmp_path / "report.html")
    text = "\n".join(reader.text)
    for expected in (
        tmp_path.name, "unary alone", "+ CRF", "unary CNN", "CRF, CNN fixed", "<b>sky</b>", "absent", "best: c, 75.0 %",
        "median: a", "worst: b", "pos_xy_std", "4.25", "px", "name: camvid", "torch 2.6", "1.5", "1.00", "1,007",
        "Costs of labels beside each other, kernel pos", "-0.25", "What a class gains beside itself", "1.75",
    ):  # fmt: skip
        assert expected in text, expected
    assert "<b>sky" not in page
    assert "1,007 of 1,009 pixels of car are called car" in reader.titles
    assert "prefers-color-scheme: dark" in page
    assert "var(--blue)" in page
    assert "#1f6feb" not in page.split("</style>")[1]


def test_of_an_evaluation(record: RunRecord, tmp_path: Path) -> None:
    """Nothing was trained: no curves and no parameters."""
    bare = dataclasses.replace(record, history={}, titles={}, parameters=(), configuration={}, surroundings={})
    write_page(tmp_path / "report.html", {tmp_path: bare})
    reader, _ = read(tmp_path / "report.html")
    assert not [name for name in reader.names if name.startswith(("curves", "parameters", "configuration", "made"))]


def test_several_runs(record: RunRecord, tmp_path: Path) -> None:
    other = dataclasses.replace(
        record, results={"unary alone": result(2)}, configuration={"data": {"name": "voc"}, "seed": 0}
    )
    write_page(tmp_path / "all.html", {tmp_path / "a" / "run & co": record, tmp_path / "b" / "run & co": other})
    reader, _ = read(tmp_path / "all.html")
    text = "\n".join(reader.text)
    assert "2 runs compared" in text
    assert len(set(reader.names)) == len(reader.names)
    assert "a/run & co" in text
    assert "b/run & co" in text
    assert "data.name" in text
    assert "seed" not in [line for line in reader.text if line == "seed"]
    for expected in ("stage2", "1.5, 1.00", "4.25 px", "The report of a/run & co"):
        assert expected in text, expected
    table = text[text.index("Step by step") : text.index("Training")]
    assert table.count(f"{100 * record.results['unary alone'].scores.miou:.2f}") == 1
    assert f"{100 * other.results['unary alone'].scores.miou:.2f}" in table
    assert not [reference for reference in reader.references if reference.startswith("data:image")]


PARTS = st.sampled_from(["a", "b", "a (1)", "1. a", os.fsdecode(b"x\xdf"), os.fsdecode(b"x\xfe"), "x\ufffd"])


@given(st.sets(st.lists(PARTS, min_size=1, max_size=3).map(lambda parts: Path("/", *parts)), min_size=2))
def test_runs_have_names_of_their_own(folders: set[Path]) -> None:
    names = _names(list(folders))
    assert len({*names}) == len(folders)
    for name, folder in zip(names, folders, strict=True):
        assert name.endswith(readable(folder.name))


def test_names_have_as_many_parents_as_they_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "a" / "x").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "a")
    folders = [Path(), Path("x"), Path("../b/x"), Path("../../there/b/x"), Path("y")]
    assert _names(folders) == ["a", "a/x", "here/b/x", "there/b/x", "y"]
    assert _names([Path("/x"), Path("/y/x")]) == ["/x", "y/x"]


def test_options_that_hold_bytes_that_are_no_text(record: RunRecord, tmp_path: Path) -> None:
    """As the path of a folder can."""
    run = dataclasses.replace(record, configuration={"data": {"root": os.fsdecode(b"stra\xdfe")}}, gallery=())
    write_page(tmp_path / "one.html", {tmp_path / "a": run})
    write_page(tmp_path / "all.html", {tmp_path / "a": run, tmp_path / "b": record})
    assert "stra\ufffde" in read(tmp_path / "all.html")[0].text


def test_options_of_any_script(record: RunRecord, tmp_path: Path) -> None:
    run = dataclasses.replace(record, configuration={"data": {"root": "/home/\u5f20/Stra\u00dfe"}}, gallery=())
    write_page(tmp_path / "one.html", {tmp_path / "a": run})
    assert "root: /home/\u5f20/Stra\u00dfe" in "".join(read(tmp_path / "one.html")[0].text)


def test_missing_picture(record: RunRecord, tmp_path: Path) -> None:
    (tmp_path / record.gallery[0].pictures["truth"]).unlink()
    with pytest.raises(FileNotFoundError, match="1_best_truth.png"):
        write_page(tmp_path / "report.html", {tmp_path: record})
    assert not (tmp_path / "report.html").exists()


def test_150_classes_stay_small(record: RunRecord, tmp_path: Path) -> None:
    import torch

    from piecewise_training.dataset import Classes
    from piecewise_training.inference import Result
    from piecewise_training.metrics import scores_from_confusion

    confusion = torch.full((150, 150), 12345)
    big: Any = Result(scores_from_confusion(confusion), confusion, result(1).borders, 0.1)
    costs = {name: torch.rand(150, 150).tolist() for name in ("pos", "bilateral", "bilateral2")}
    kind = {"classes": Classes.numbered(150), "results": {"unary alone": big}, "costs": costs}
    many = dataclasses.replace(record, gallery=(), **kind)
    write_page(tmp_path / "report.html", {tmp_path: many})
    assert (tmp_path / "report.html").stat().st_size < 5e6
