"""What a run says of its machine."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from piecewise_training.cli import machine


def test_names_versions_and_machine() -> None:
    told = machine.surroundings(torch.device("cpu"))
    assert told["torch"] == f"torch {torch.__version__}"
    assert f"Python {platform.python_version()}" == told["python"]
    assert "numba " in told["other packages"]
    assert told["memory"].endswith(" GiB")
    assert " cores of " in told["processor"]


@pytest.mark.parametrize(("threads", "told"), [(1, "1 CPU thread"), (2, "2 CPU threads")])
def test_counts_threads(threads: int, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert machine.surroundings(torch.device("cpu"))["device"] == told


def test_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
    assert machine.processor() == (platform.processor() or platform.machine())
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: A Processor: 3 GHz\n")
    assert machine.processor() == "A Processor: 3 GHz"
