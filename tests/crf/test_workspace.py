"""Memory that calls hand on, and tables that threads hand on."""

import threading

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


def test_threads_that_ask_at_once_get_memory_of_their_own() -> None:
    space = Workspace(np.empty(64 * 4000, np.uint8))
    found: list[np.ndarray] = []

    def ask() -> None:
        found.extend([space.empty(16) for _ in range(500)])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({array.ctypes.data for array in found}) == 4000


def test_a_table_serves_again_but_not_two_at_a_time() -> None:
    spare = Spare(10, Workspace(np.empty(0)))
    with spare() as first, spare() as second:
        assert not np.shares_memory(first, second)
    with spare() as third:
        assert np.shares_memory(third, first) or np.shares_memory(third, second)
