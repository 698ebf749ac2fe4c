"""What every page of results is made of: tables, and where their numbers come from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

Report = Mapping[str, Any]
BANDS = (1, 2, 4, 8, 16)
MEASURES = ("mIoU", "accuracy", "boundary IoU", *(f"trimap {band} px" for band in BANDS))


def percent(row: Mapping[str, Any]) -> list[float]:
    """mIoU, accuracy, boundary IoU and the trimap's mIoU within each band: `MEASURES`."""
    borders = row["borders"]
    shares = [row["miou"], row["accuracy"], borders["boundary_iou"], *(borders[f"trimap_{band}"] for band in BANDS)]
    return [100 * share for share in shares]


def data_name(report: Report) -> str:
    """The name of the data set of a run."""
    return {"camvid": "CamVid", "synthetic": "drawn scenes"}[yaml.safe_load(report["run"])["data"]["name"]]


def markdown(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table: names as they are, numbers with one digit."""
    cells = [[f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    rule = ["---", *("--:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *cells))


def origin(report: Report) -> str:
    """Where and when the numbers were measured, how to get them again, and what is to be said of them."""
    machine, versions = report["machine"], report["versions"]
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    processor = f"{machine['processor']} ({machine['capability']})" if "capability" in machine else machine["processor"]
    command = f"`{report['command']}`, " if "command" in report else ""
    remark = f" {report['remark']}" if "remark" in report else ""
    return (
        f"Measured on {report['date']} on {machine['cores']} cores of {processor}: {command}{packages}, "
        f"commit {report['commit'][:10]}.{_earlier(report)}{remark}"
    )


def _earlier(report: Report) -> str:
    """Which rows an earlier call has left."""
    rows = report.get("rows", {})
    others: dict[str, list[str]] = {}
    for name, row in rows.items() if isinstance(rows, Mapping) else ((row.get("name"), row) for row in rows):
        commit = row.get("commit", report["commit"])
        if commit != report["commit"]:
            others.setdefault(f"commit {commit[:10]} of {row['date']}", []).append(name)
    return "".join(f" Of {where}: {', '.join(names)}." for where, names in others.items())
