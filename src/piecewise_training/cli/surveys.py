"""What `piecewise data check` found, as tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from piecewise_training.dataset.survey import Survey


def print_summary(console: Console, folder: str, surveys: Sequence[Survey]) -> None:
    """Prints a row for each split."""
    table = Table("split", "pairs", "height x width", "classes", "void, %", "faults", title=folder)
    for found in surveys:
        sizes = [f"{h} x {w}" for (h, w), _ in found.sizes.most_common(2)]
        if len(found.sizes) > 2:
            sizes.append(f"and {len(found.sizes) - 2} more")
        table.add_row(
            found.name,
            str(found.pairs),
            ", ".join(sizes) or "-",
            _ranges(found.classes) or "-",
            f"{100 * found.void_share:.2f}",
            str(len(found.faults)),
        )
    console.print(table)


def print_frequencies(console: Console, surveys: Sequence[Survey]) -> None:
    """Prints the share of each class in each split, also of those that should be there and never occur."""
    classes = sorted({k for found in surveys for k in (*found.classes, *found.absent)})
    table = Table("class", *(f"{found.name}, %" for found in surveys))
    for k in classes:
        table.add_row(str(k), *(f"{100 * found.frequency(k):.3f}" for found in surveys))
    if classes:
        console.print(table)


def print_remarks(console: Console, surveys: Sequence[Survey]) -> None:
    """Prints which classes never occur, and what else may be wrong."""
    for found in surveys:
        never = [f"no pixel of split {found.name!r} is of class {_ranges(found.absent)}"] if found.absent else []
        for remark in (*never, *found.remarks):
            console.print(f"warning: {remark}", style="bold yellow", highlight=False, markup=False, soft_wrap=True)


def _ranges(numbers: list[int]) -> str:
    """Numbers as ranges: 0-3, 5."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
