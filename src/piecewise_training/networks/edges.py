"""Which nodes of a feature map are coupled: the two relations of the contextual CRF, as lists of directed edges."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from piecewise_training import checks
from piecewise_training.compiling import uncompiled

RelationName = Literal["surrounding", "above_below"]


@uncompiled
def relation_edges(
    relation: RelationName,
    height: int,
    width: int,
    *,
    box: float = 0.4,
    samples: int | None = 5,
    device: torch.device | str = "cpu",
) -> Int[Tensor, "2 e"]:
    """The edges of a relation over the nodes of a map, one node for each place, in row-major order.

    An edge goes from a node to another in its box, whose half side is half of `box` times the map's shorter edge, but
    at least 1. Around a node lies the box of "surrounding". The box of "above_below" has the same width and height and
    lies on top of the node, so that an edge goes from the lower to the upper node; the paper (Lin et al., CVPR 2016)
    says that it is shifted up, and how far is our choice. Edges that would leave the map are left out.

    Args:
        relation: "surrounding" or "above_below".
        height: rows of the map.
        width: columns of the map.
        box: side of the box relative to the shorter edge of the map, above 0.
        samples: places along a side of the box that are taken, spread evenly, at least 2; None takes all.
        device: where they are wanted.

    Returns:
        The number of the node from which each edge goes, and of the one to which. It is kept for the next call: do not
        write to it.

    Raises:
        ValueError: the relation is unknown, or a number is out of its range.

    Example:
        >>> relation_edges("above_below", 2, 2)
        tensor([[3, 2, 3, 2],
                [0, 0, 1, 1]])
    """
    check_relation(relation, box, samples)
    if height < 1 or width < 1:
        raise ValueError(f"`height` and `width` must be at least 1; got {height} and {width}.")
    return _edges(relation, height, width, box, samples, torch.device(device))


def check_relation(relation: str, box: float, samples: int | None, called: str = "relation") -> None:
    """Raises a ValueError where a relation has no such box; `called` is the name of its name where it came in."""
    if relation not in get_args(RelationName):
        raise ValueError(f"`{called}` must be surrounding or above_below; got {checks.describe(relation)}.")
    if not box > 0:
        raise ValueError(f"`box` must be above 0; got {box}.")
    if samples is not None and samples < 2:
        raise ValueError(f"`samples` must be at least 2 or None; got {samples}.")


@lru_cache(maxsize=64)
def _edges(
    relation: RelationName, height: int, width: int, box: float, samples: int | None, device: torch.device
) -> Tensor:
    half = max(1, int(box * min(height, width) / 2))
    down = _steps(-half, half, samples) if relation == "surrounding" else _steps(-2 * half - 1, -1, samples)
    edges = [
        _shifted(height, width, dy, dx) for dy in down for dx in _steps(-half, half, samples) if (dy, dx) != (0, 0)
    ]
    numbers = np.concatenate(edges, 1)
    # In a thread of its own, where PyTorch is in no mode, of inference or tracing, that alone could use what is kept.
    with ThreadPoolExecutor(1) as alone:
        return alone.submit(lambda: torch.from_numpy(numbers).to(device)).result()


def _steps(first: int, last: int, samples: int | None) -> list[int]:
    """Whole numbers from the first to the last: all of them, or so many spread evenly."""
    count = last - first + 1
    if samples is None or samples >= count:
        return list(range(first, last + 1))
    return [first + round(i * (count - 1) / (samples - 1)) for i in range(samples)]


def _shifted(height: int, width: int, dy: int, dx: int) -> np.ndarray:
    """The edges of all nodes to the one at an offset."""
    place = np.arange(height * width).reshape(height, width)
    rows = slice(max(0, -dy), max(0, height - max(0, dy)))
    columns = slice(max(0, -dx), max(0, width - max(0, dx)))
    start = place[rows, columns].reshape(-1)
    return np.stack([start, start + dy * width + dx])
