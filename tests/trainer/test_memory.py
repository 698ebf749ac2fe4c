"""The most memory that a stage has needed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from piecewise_training.trainer import memory

CPU = torch.device("cpu")
MEBIBYTE = 1 << 20


def in_bounds(found: int) -> bool:
    """Whether a process that holds PyTorch may need so many bytes on this machine."""
    return 30 * MEBIBYTE < found < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_a_peak_is_over_when_it_is_measured_anew() -> None:
    if not os.access(memory._RESET, os.W_OK):
        pytest.skip("a peak cannot be reset here")
    memory.reset_peak(CPU)
    before = memory.peak_bytes(CPU)
    assert in_bounds(before)
    held = np.ones(128 * MEBIBYTE, np.uint8)
    assert 100 * MEBIBYTE < memory.peak_bytes(CPU) - before < 200 * MEBIBYTE
    del held
    assert memory.peak_bytes(CPU) - before > 100 * MEBIBYTE
    memory.reset_peak(CPU)
    assert memory.peak_bytes(CPU) - before < 50 * MEBIBYTE


def test_without_linuxs_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "none")
    assert in_bounds(memory.peak_bytes(CPU))
