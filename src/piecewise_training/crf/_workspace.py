"""Memory that a call finds as the last one left it: to get fresh pages from the system takes longer than the work."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

LIMIT = 512 << 20  # bytes kept between calls, for one or several at a time
_LINE = 64

_kept: list[np.ndarray] = []


class Workspace:
    """Hands out arrays, uninitialised and on a cache line's start, from one piece of memory.

    The piece may be an array of any kind that is written later, such as a result. Where it is used up, arrays come from
    the workspace `beyond`, or are new ones if there is none.
    """

    def __init__(self, slab: np.ndarray, beyond: Workspace | None = None) -> None:
        slab = slab.reshape(-1).view(np.uint8)
        self._slab, self._beyond = slab, beyond
        self._lock = threading.Lock()
        self._used = -slab.ctypes.data % _LINE
        self.wanted = self._used

    def empty(self, shape: int | tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
        """An array for the length of a call."""
        size = math.prod(np.atleast_1d(shape).tolist()) * np.dtype(dtype).itemsize
        with self._lock:
            source, start = self._slab, self._used
            self.wanted += -(-size // _LINE) * _LINE
            fits = start + size <= len(source)
            self._used += -(-size // _LINE) * _LINE if fits else 0
        if not fits:
            if self._beyond is not None:
                return self._beyond.empty(shape, dtype)
            source = np.empty(size + _LINE, np.uint8)
            start = -source.ctypes.data % _LINE
        return source[start : start + size].view(dtype).reshape(shape)


class Spare:
    """Tables for the work on a part: one for each thread that works at the same time, which stays in its cache.

    Args:
        length: numbers that the largest part needs.
        space: memory for the tables.
    """

    def __init__(self, length: int, space: Workspace) -> None:
        self._length, self._space = length, space
        self._tables: list[np.ndarray] = []

    @contextmanager
    def __call__(self) -> Iterator[np.ndarray]:
        """A table that nobody else is using."""
        try:
            table = self._tables.pop()
        except IndexError:
            table = self._space.empty(self._length)
        yield table
        self._tables.append(table)


@contextmanager
def workspace() -> Iterator[Workspace]:
    """A workspace for one call; calls at the same time each have their own."""
    try:
        slab = _kept.pop()
    except IndexError:  # the first call, or one beside another
        slab = np.empty(0, np.uint8)
    space = Workspace(slab)
    yield space
    if space.wanted > len(slab):
        slab = np.empty(space.wanted + _LINE, np.uint8)
    if len(slab) + sum(map(len, _kept)) <= LIMIT:
        _kept.append(slab)
