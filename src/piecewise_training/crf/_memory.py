"""How much memory there is: where it does not suffice, the system would end the process without a word."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

_LITTLE = 1 << 28  # bytes that are there as a rule: to look takes as long as to refine a small image
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def available() -> int | None:
    """Bytes that can still be had, by the system and by the limit of a container; None where nothing tells."""
    found = [value for value in (_of_system(), _of_container()) if value is not None]
    return min(found) if found else None


def of_refinement(images: int, pixels: int, classes: int, features: Sequence[int], number: int = 4) -> int:
    """Bytes that the CPU's kernels need: for all images of a batch their lattices, and for one its work.

    Args:
        images: of the batch.
        pixels: of an image.
        classes: K.
        features: how many each kernel has.
        number: bytes of one.
    """
    vertices = sum(d + 1 for d in features)  # around a pixel, in the lattices of all kernels
    lasting = 4 * (max(features, default=0) + vertices + classes)
    working = 8 * vertices + 40 + 6 * 8 * -(-classes // 8)  # with a margin for lattices that have many vertices
    return pixels * (images * lasting + working) * number // 4


def require(needed: float, what: str) -> None:
    """Raises a MemoryError that names what needs more memory than there is."""
    if needed < _LITTLE:
        return
    free = available()
    if free is not None and needed > free:
        raise MemoryError(
            f"{what} needs about {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free. "
            "Take overlapping tiles, or a smaller size."
        )


def _of_system() -> int | None:
    try:
        lines = dict(line.split(":") for line in _MEMINFO.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # not Linux: what there is in all is better than nothing
        names = getattr(os, "sysconf_names", {})
        if "SC_PHYS_PAGES" not in names:
            return None
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _of_container() -> int | None:
    try:
        limit, used = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return None if limit == "max" else int(limit) - int(used) + _kept_files()
    except (OSError, ValueError):  # there is no container, or an older kind that does not tell here
        return None


def _kept_files() -> int:
    """Bytes that count as used and are given back when asked for: pages of files that were read."""
    try:
        lines = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        return sum(int(lines.get(name, 0)) for name in ("active_file", "inactive_file", "slab_reclaimable"))
    except OSError:
        return 0
