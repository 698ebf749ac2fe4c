"""The most memory that a stage has needed, and what it keeps."""

from __future__ import annotations

import ctypes
import os
import subprocess
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


TAKEN_AND_FREED = """
import os, resource
from pathlib import Path
import torch
from piecewise_training.trainer.memory import kept_memory

def new_pages():
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])

usual = new_pages()
with kept_memory(torch.device("cpu")):
    kept, held = new_pages(), resident()
print(usual, kept, held - resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="is of Linux's C library")
def test_freed_memory_is_kept_and_then_given_back() -> None:
    """In a process of its own: what the C library does hangs on what was freed before."""
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("is of glibc")
    done = subprocess.run([sys.executable, "-c", TAKEN_AND_FREED], stdout=subprocess.PIPE, text=True, check=True)
    usual, kept, given_back = map(int, done.stdout.split())
    pages = 64 * MEBIBYTE // os.sysconf("SC_PAGE_SIZE")
    assert usual >= pages
    assert kept < 64
    assert given_back > 0.9 * pages


class Library:
    """A C library that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, ...]] = []

    def mallopt(self, option: int, value: int) -> None:
        self.told.append((option, value))

    def malloc_trim(self, left: int) -> None:
        self.told.append((left,))


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    """In place of this system's, which is Linux's."""
    own = Library()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: own)
    monkeypatch.setattr(sys, "platform", "linux")
    return own


def test_the_rules_are_as_they_were_after_an_error(library: Library) -> None:
    with pytest.raises(ZeroDivisionError), memory.kept_memory(CPU):
        raise ZeroDivisionError
    assert library.told == [(-4, 0), (-1, -1), (-1, 1 << 26), (-4, 1 << 16), (0,)]


def test_the_cpus_memory_is_not_kept_for_a_gpu(library: Library) -> None:
    with memory.kept_memory(torch.device("cuda")):
        pass
    assert not library.told


def test_other_systems_are_left_alone(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with memory.kept_memory(CPU):
        pass
    assert not library.told


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    with memory.kept_memory(CPU):
        pass
