"""The nodes of a contextual CRF on a feature map: how many there are, and what they have of its places."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from piecewise_training.compiling import uncompiled


@uncompiled
def node_grid(image: Sequence[int], places: Sequence[int], stride: int) -> tuple[int, int]:
    """Rows and columns of nodes that lie about so many pixels apart, but no closer together than the map's places.

    Args:
        image: height and width, in pixels.
        places: rows and columns of the feature map.
        stride: pixels from node to node.

    Example:
        >>> node_grid((360, 480), (90, 120), 16)
        (23, 30)
    """
    apart = max(pixels / own for pixels, own in zip(image, places, strict=True))
    # Sides of maps are rounded, and the ratio with them: it is cut beside 1.5 and 2.5, which networks may have.
    together = max(1, math.floor(stride / apart + 0.4))
    rows, columns = (math.ceil(own / together) for own in places)
    return rows, columns


@uncompiled
def area_means(values: Float[Tensor, "b c h w"], size: tuple[int, int]) -> Float[Tensor, "b c y x"]:
    """Means over equal cells of a map, of whose places those at a cell's border count for the part that is within.

    In two products of matrices, unlike PyTorch's adaptive means: they work on every device, and deterministically.

    Example:
        >>> area_means(torch.tensor([[[[0.0, 3.0, 6.0]]]]), (1, 2))
        tensor([[[[1., 5.]]]])
    """
    if tuple(values.shape[2:]) == size:
        return values
    down, across = (_shares(own, wanted).to(values) for own, wanted in zip(values.shape[2:], size, strict=True))
    with torch.autocast(values.device.type, enabled=False):
        return down @ values @ across.mT


def _shares(places: int, cells: int) -> Tensor:
    """By how much each place (columns) counts for the mean of each cell (rows)."""
    cell = torch.arange(cells, dtype=torch.float64)[:, None] * places
    place = torch.arange(places, dtype=torch.float64) * cells
    common = torch.minimum(cell + places, place + cells) - torch.maximum(cell, place)
    return common.clamp(min=0) / places
