"""The memory of a stage: the most that it has needed, and freed memory that it keeps."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

# Of mallopt(3), with what glibc itself arrives at in a program that frees large blocks.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_USUAL = {_TRIM_THRESHOLD: 1 << 26, _MMAP_MAX: 1 << 16}
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@contextmanager
def kept_memory(device: torch.device) -> Iterator[None]:
    """Keeps freed memory in the process while a stage trains on the CPU, and gives it back after.

    Every step frees what it has needed and asks for as much again. By glibc's rules much of it goes back to the system
    in between, which fills it with zeros (benchmarks/cpu_step.py). Other C libraries are left alone.
    """
    libc = ctypes.CDLL(None) if device.type == "cpu" and sys.platform == "linux" else None
    if not hasattr(libc, "mallopt"):
        yield
        return
    assert libc is not None
    libc.mallopt(_MMAP_MAX, 0)
    libc.mallopt(_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        for option, value in _USUAL.items():
            libc.mallopt(option, value)
        libc.malloc_trim(0)


def reset_peak(device: torch.device) -> None:
    """Starts to measure anew; without Linux's /proc a process's peak is that of its whole life."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            _RESET.write_text("5")


def peak_bytes(device: torch.device) -> int:
    """The most bytes since `reset_peak`: of tensors on a GPU, of the whole process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _STATUS.is_file():
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource  # not on Windows, which has no such figure

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
