"""piecewise report."""

from __future__ import annotations

from pathlib import Path

import pytest

from piecewise_training.cli import main
from piecewise_training.report import RunRecord
from tests.report.conftest import record  # noqa: F401


def test_of_one_run(record: RunRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    record.save(tmp_path)
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "report.html")]
    assert "run &amp; co" in (tmp_path / "report.html").read_text()


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


def test_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        ([str(tmp_path)], "there is no results.json"),
        ([str(tmp_path / "missing")], "missing: name that of a finished run"),
        ([str(tmp_path), str(tmp_path)], "`runs` names a folder twice"),
        ([str(tmp_path), "--output", "page.pdf"], "`output` must be the name of an .html file; got page.pdf"),
    ):
        assert main(["report", *arguments]) == 1
        assert message in capsys.readouterr().err
