"""What every page of results is made of: tables, and where their numbers come from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Report = Mapping[str, Any]


def markdown(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table: names as they are, numbers with one digit."""
    cells = [[f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    rule = ["---", *("--:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *cells))


def origin(report: Report) -> str:
    """Where and when the numbers were measured, how to get them again, and what is to be said of them."""
    machine, versions = report["machine"], report["versions"]
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    command = f"`{report['command']}`, " if "command" in report else ""
    remark = f" {report['remark']}" if "remark" in report else ""
    return (
        f"Measured on {report['date']} on {machine['cores']} cores of {machine['processor']}: {command}{packages}, "
        f"commit {report['commit'][:10]}.{remark}"
    )
