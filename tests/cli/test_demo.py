"""piecewise demo, as far as it goes without a page."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from piecewise_training.cli import main


def test_without_gradio(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")  # which the command sets for good
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo"]) == 1
    assert 'piecewise demo needs Gradio: pip install ".[demo]" in the checkout.' in capsys.readouterr().err


def test_a_port_that_is_taken(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def taken(**options: Any) -> None:
        assert (options["server_name"], options["server_port"], options["share"]) == ("127.0.0.1", 7777, False)
        raise OSError("Cannot find empty port")

    # Gradio takes seconds to import, and is an extra that need not be there.
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    monkeypatch.setitem(sys.modules, "gradio", SimpleNamespace())
    page = SimpleNamespace(LARGEST_FILE=1, build_page=lambda _: SimpleNamespace(launch=taken))
    monkeypatch.setitem(sys.modules, "piecewise_training.demo.page", page)
    monkeypatch.setitem(sys.modules, "piecewise_training.demo.parts", SimpleNamespace(STYLE="", theme=lambda: None))
    assert main(["demo", "--port", "7777"]) == 1
    message = "`port` 7777 of 127.0.0.1 cannot be had, something else may answer there: Cannot find empty port."
    assert message in capsys.readouterr().err
