"""How the Numba kernels are compiled: once on a machine, announced, and kept for later processes."""

from __future__ import annotations

import getpass
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import config, njit
from numba.core import event

logger = logging.getLogger(__name__)

_OPTIONS = {"nogil": True, "boundscheck": False, "error_model": "numpy", "fastmath": {"contract"}}


def kernel(function: Callable[..., Any]) -> Any:
    """Compiles a function for the types it is called with, without the GIL, and keeps the machine code on disk.

    Numba keeps it beside the source or in the user's cache folder; where it can write to neither, in the temporary one.
    """
    try:
        return njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # no folder can be written to
        configured = config.CACHE_DIR
        config.CACHE_DIR = str(Path(tempfile.gettempdir()) / f"piecewise-training-{getpass.getuser()}")
        try:
            return njit(cache=True, **_OPTIONS)(function)
        finally:
            config.CACHE_DIR = configured


class _Announcement(event.Listener):  # type: ignore[misc]
    """Says once in a process that kernels are being compiled, which takes seconds in which nothing else happens."""

    made = False

    def on_start(self, event: Any) -> None:
        """Numba begins to compile a function that it has not found on disk."""
        ours = event.data["dispatcher"].py_func.__module__.startswith(__package__)
        if ours and not _Announcement.made:
            _Announcement.made = True
            logger.info("compiling the CRF's kernels, a few seconds, once on this machine")

    def on_end(self, event: Any) -> None:
        """Nothing is said at the end."""


event.register("numba:compile", _Announcement())
