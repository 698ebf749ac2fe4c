"""How the Numba kernels are compiled: once on a machine, announced, and kept for later processes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from numba import njit
from numba.core import event

logger = logging.getLogger(__name__)

_OPTIONS = {"nogil": True, "boundscheck": False, "error_model": "numpy", "fastmath": {"contract"}}
_when = "once on this machine"


def kernel(function: Callable[..., Any]) -> Any:
    """Compiles a function for the types it is called with, without the GIL, and keeps the machine code on disk.

    Numba keeps it beside the source or, from a read-only installation, in the user's cache folder. Where it can write
    to neither, nothing is kept: a shared temporary folder could hold other people's code.
    """
    global _when
    try:
        return njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # no folder can be written to
        _when = "in every process, because no folder to keep them can be written to; set NUMBA_CACHE_DIR to one"
        return njit(**_OPTIONS)(function)


class _Announcement(event.Listener):  # type: ignore[misc]
    """Says once in a process that kernels are being compiled, which takes seconds in which nothing else happens."""

    made = False

    def on_start(self, event: Any) -> None:
        """Numba begins to compile a function that it has not found on disk."""
        ours = event.data["dispatcher"].py_func.__module__.startswith(__package__)
        if ours and not _Announcement.made:
            _Announcement.made = True
            logger.info("compiling the CRF's kernels, which takes some seconds, %s", _when)

    def on_end(self, event: Any) -> None:
        """Nothing is said at the end."""


event.register("numba:compile", _Announcement())
