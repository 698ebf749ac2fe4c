"""Memory that calls hand on, and tables that threads hand on."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from piecewise_training.crf import _workspace
from piecewise_training.crf._workspace import Spare, Workspace, workspace


def test_arrays_do_not_overlap_and_begin_a_cache_line() -> None:
    space = Workspace(np.empty(10_000, np.uint8))
    arrays = [space.empty(shape, kind) for shape, kind in ((3, np.float32), ((5, 7), np.float64), (1, np.uint8))]
    for number, array in enumerate(arrays):
        assert array.ctypes.data % 64 == 0
        array[:] = number
    assert all((array == number).all() for number, array in enumerate(arrays))


def test_what_does_not_fit_comes_from_beyond_or_is_new() -> None:
    slab = np.zeros(1024, np.uint8)
    behind = Workspace(slab)
    space = Workspace(np.empty(256, np.uint8), behind)
    space.empty(32)[:] = 1
    assert not slab.any()
    space.empty(128)[:] = 1
    assert slab.any()
    assert len(space.empty(10_000)) == 10_000
    assert behind.wanted >= 4 * (128 + 10_000)


def test_a_call_finds_the_memory_of_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_workspace, "_kept", [])
    with workspace() as space:
        space.empty(1000)
    with workspace() as space:
        again = space.empty(1000)
        with workspace() as other:  # one beside it has its own
            assert not np.shares_memory(again, other.empty(1000))
    with workspace() as space:
        assert np.shares_memory(again, space.empty(1000))


class Slow(np.ndarray):
    """Memory whose length takes a while to tell, in which other threads go on."""

    def __len__(self) -> int:
        time.sleep(1e-3)
        return self.size


def test_threads_that_ask_at_once_get_memory_of_their_own() -> None:
    space = Workspace(np.empty(64 * 100, np.uint8).view(Slow))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: space.empty(16), range(80)))
    assert len({array.ctypes.data for array in found}) == 80


def test_a_table_serves_again_but_not_two_at_a_time() -> None:
    spare = Spare(10, Workspace(np.empty(0)))
    with spare() as first, spare() as second:
        assert not np.shares_memory(first, second)
    with spare() as third:
        assert np.shares_memory(third, first) or np.shares_memory(third, second)
