"""Nodes of about one distance, whatever the feature map's, and exact means over its places."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from piecewise_training.networks.nodes import area_means, node_grid


@pytest.mark.parametrize(
    ("image", "places", "stride", "expected"),
    [
        ((360, 480), (90, 120), 16, (23, 30)),  # a light decoder's: four places each way
        ((368, 480), (92, 120), 16, (23, 30)),
        ((321, 321), (41, 41), 16, (21, 21)),  # LargeFOV's: two
        ((360, 480), (27, 36), 16, (27, 36)),  # a FeatMap-Net's of scale 1.2
        ((384, 512), (36, 48), 16, (36, 48)),  # of scale 1.5
        ((365, 500), (35, 47), 16, (35, 47)),
        ((64, 64), (2, 2), 16, (2, 2)),  # coarser than asked for
        ((1, 50), (1, 13), 16, (1, 4)),
        ((8, 8), (8, 8), 100, (1, 1)),
        ((24, 24), (24, 24), 1, (24, 24)),
    ],
)
def test_grid(image: tuple[int, int], places: tuple[int, int], stride: int, expected: tuple[int, int]) -> None:
    assert node_grid(image, places, stride) == expected


def literal_means(values: np.ndarray, cells: int) -> np.ndarray:
    """Along the last axis, of every place cut into as many pieces as there are cells."""
    return values.repeat(cells, -1).reshape(*values.shape[:-1], cells, values.shape[-1]).mean(-1)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31))
def test_means_are_those_of_pieces(height: int, width: int, rows: int, columns: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    values = torch.randn(2, 3, height, width, dtype=torch.float64, generator=g)
    expected = literal_means(np.swapaxes(literal_means(values.numpy(), columns), 2, 3), rows)
    found = area_means(values, (rows, columns))
    np.testing.assert_allclose(found.numpy(), np.swapaxes(expected, 2, 3), atol=1e-12)


def test_means_keep_their_dtype_and_the_gradient() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16):
            assert area_means(torch.ones(1, 2, 5, 7, dtype=dtype), (2, 3)).dtype == dtype
    values = torch.randn(1, 2, 5, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: area_means(v, (2, 3)), (values,))
    assert area_means(values, (5, 7)) is values
