"""Writing files so that a crash leaves the old one or the new one, never a half."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LONGEST = 40  # letters of a name in its temporary one, which file systems hold to 255 bytes


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Gives a temporary name beside the target and renames it to the target when the block ends without an error.

    The temporary name keeps the suffix, by which some writers choose a format.

    Example:
        >>> folder = Path(tempfile.mkdtemp())
        >>> with atomic_write(folder / "report.txt") as temporary:
        ...     _ = temporary.write_text("done")
        >>> [path.name for path in folder.iterdir()]
        ['report.txt']
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem[:_LONGEST]}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def readable(name: str) -> str:
    r"""A file's name as text: bytes that are none in UTF-8 become question marks.

    Example:
        >>> readable("a.png"), readable(os.fsdecode(b"stra\xdfe.png")) == "stra\ufffde.png"
        ('a.png', True)
    """
    return os.fsencode(name).decode("utf-8", "replace")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
