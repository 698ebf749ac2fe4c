"""piecewise report."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from piecewise_training.cli import main
from piecewise_training.report import RunRecord
from tests.report.conftest import record  # noqa: F401


def test_of_one_run(record: RunRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    """Which has the name of its folder, also where that was another one when the run was written."""
    record.save(tmp_path)
    folder = tmp_path.rename(tmp_path.with_name("that & this"))
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "report.html")
    page = (folder / "report.html").read_text()
    assert "that &amp; this" in page
    assert record.name not in page


def test_of_several(record: RunRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        record.save(folder)
    monkeypatch.chdir(tmp_path)
    assert main(["report", *map(str, folders)]) == 0
    assert "2 runs compared" in (tmp_path / "report.html").read_text()
    assert main(["report", *map(str, folders), "--output", "sub/both.html"]) == 0
    assert (tmp_path / "sub" / "both.html").is_file()


def test_a_runs_own_page_is_not_replaced(
    record: RunRecord,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
        dataclasses.replace(record, gallery=()).save(folder)
        (folder / "report.html").write_text(folder.name)
    monkeypatch.chdir(tmp_path / "a")
    for arguments in ([".", "../b"], ["../b", "../c"], [".", "../b", "--output", "../b/report.html"], ["../b"]):
        own = [] if arguments[1:] else ["--output", "report.html"]
        assert main(["report", *arguments, *own]) == 1
        assert "is the page of the run in " in capsys.readouterr().err
    assert [(folder / "report.html").read_text() for folder in folders] == [*"abc"]
    assert main(["report", ".", "../b", "--output", "comparison.html"]) == 0
    assert main(["report", "../a", "--output", "report.html"]) == 0
    assert "<main>" in (tmp_path / "a" / "report.html").read_text()


def test_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        ([str(tmp_path)], "there is no results.json"),
        ([str(tmp_path / "missing")], "missing: name that of a finished run"),
        ([str(tmp_path), str(tmp_path)], "`runs` names a folder twice"),
        ([str(tmp_path), str(tmp_path / ".." / tmp_path.name)], "`runs` names a folder twice"),
        ([str(tmp_path), "--output", "page.pdf"], "`output` must be the name of an .html file; got page.pdf"),
    ):
        assert main(["report", *arguments]) == 1
        assert message in capsys.readouterr().err
