"""The most memory that a stage has needed, and what it keeps."""

from __future__ import annotations

import ctypes
import os
import sys
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


GLIBC = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt")


def new_pages(size: int = 64 * MEBIBYTE) -> int:
    """How many pages the system has had to give for a block of that size, as often taken, filled and freed before."""
    import resource

    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(size // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(not GLIBC, reason="needs glibc")
def test_freed_memory_is_kept_and_then_given_back() -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    assert new_pages() >= 64 * MEBIBYTE // page
    with memory.kept_memory(CPU):
        assert new_pages() < 64
        held = resident()
    assert held - resident() > 50 * MEBIBYTE
    assert new_pages() >= 64 * MEBIBYTE // page


@pytest.mark.skipif(not GLIBC, reason="needs glibc")
def test_memory_is_given_back_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), memory.kept_memory(CPU):
        raise ZeroDivisionError
    assert new_pages() >= 64 * MEBIBYTE // os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not GLIBC, reason="needs glibc")
def test_the_cpus_memory_is_not_kept_for_a_gpu() -> None:
    with memory.kept_memory(torch.device("cuda")):
        assert new_pages() >= 64 * MEBIBYTE // os.sysconf("SC_PAGE_SIZE")


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    with memory.kept_memory(CPU):
        pass


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
