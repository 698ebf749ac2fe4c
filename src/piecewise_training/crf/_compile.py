"""How the Numba kernels are compiled: once on a machine, announced, and kept for later processes."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit
from numba.core import event

logger = logging.getLogger(__name__)

_OPTIONS = {"nogil": True, "boundscheck": False, "error_model": "numpy", "fastmath": {"contract"}}
_when = "once on this machine"


def kernel(function: Callable[..., Any]) -> Any:
    """Compiles a function for the types it is called with, without the GIL, and keeps the machine code on disk.

    Numba keeps it beside the source or, from a read-only installation, in the user's cache folder. Where it can write
    to neither, nothing is kept: a shared temporary folder could hold other people's code. It looks at the function's
    own file alone to see whether that is still the code, and keeps all variants of a function under its name; so the
    name is completed by what else the code is made of.
    """
    global _when
    function.__qualname__ += f"_{_fingerprint(function)}"
    try:
        return njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # no folder can be written to
        _when = "in every process, because no folder to keep them can be written to; set NUMBA_CACHE_DIR to one"
        return njit(**_OPTIONS)(function)


def _fingerprint(function: Callable[..., Any]) -> str:
    """Of all kernels' sources, and of the numbers for which a variant is made."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    numbers = [(name, cell.cell_contents) for name, cell in cells if isinstance(cell.cell_contents, int)]
    return hashlib.sha256(f"{_sources()} {numbers}".encode()).hexdigest()[:12]


@cache
def _sources() -> str:
    found = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("_*.py")):
        found.update(file.read_bytes())
    return found.hexdigest()


class _Announcement(event.Listener):  # type: ignore[misc]
    """Says once in a process that kernels are being compiled, which takes seconds in which nothing else happens."""

    made = False

    def on_start(self, event: Any) -> None:
        """Numba begins to compile a function that it has not found on disk."""
        if _Announcement.made:
            return
        if (event.data["dispatcher"].py_func.__module__ or "").startswith(__package__):
            _Announcement.made = True
            logger.info("compiling the CRF's kernels, which takes some seconds, %s", _when)

    def on_end(self, event: Any) -> None:
        """Nothing is said at the end."""


event.register("numba:compile", _Announcement())
