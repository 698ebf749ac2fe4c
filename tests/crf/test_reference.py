"""The plain-torch lattice: its geometry, and its known error against the exact sum."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from piecewise_training.crf import _reference
from tests.crf import oracle
from tests.crf.oracle import unit


def test_weights_are_barycentric() -> None:
    features = torch.randn(1, 4, 50, dtype=torch.float64) * 3
    simplices, vertices, weights, neighbours = _reference.build(*unit(features))[0]
    assert vertices[simplices].shape == weights.shape == (50, 5)
    assert len(torch.unique(vertices, dim=0)) == len(vertices)
    assert neighbours.shape[:2] == (5, 2)
    assert float(weights.min()) >= -1e-12
    torch.testing.assert_close(weights.sum(1), torch.ones(50, dtype=torch.float64))


def test_vertices_surround_their_point() -> None:
    """Interpolating the vertices' own positions with the weights gives back the point."""
    features = torch.randn(60, 3, dtype=torch.float64) * 2
    coordinates, weights = _reference._enclosing_simplex(features)
    full = torch.cat([coordinates, -coordinates.sum(2, keepdim=True)], 2).double()
    position = (weights[:, :, None] * full).sum(1)
    torch.testing.assert_close(position, features @ _reference.elevation(3))


def test_neighbours_are_mutual() -> None:
    *_, neighbours = _reference.build(*unit(torch.rand(1, 2, 200) * 5))[0]
    size = neighbours.shape[2]
    for before, after in neighbours:
        for v in range(size):
            if after[v] < size:
                assert before[after[v]] == v


@pytest.mark.parametrize("dims", [1, 2, 3, 5, 8])
def test_numbering_tells_rows_apart(dims: int) -> None:
    rows = torch.randint(-3, 4, (500, dims))
    numbers = _reference._number(rows)
    _, expected = torch.unique(rows, dim=0, return_inverse=True)
    assert len(torch.unique(numbers)) == len(torch.unique(expected))
    torch.testing.assert_close(numbers, expected)


def test_numbering_survives_spans_beyond_63_bits() -> None:
    rows = torch.randint(-(2**40), 2**40, (100, 4)).repeat(2, 1)
    numbers = _reference._number(rows)
    assert len(torch.unique(numbers)) == 100
    torch.testing.assert_close(numbers[:100], numbers[100:])


def test_exact_sum_is_the_double_loop() -> None:
    features, values = torch.randn(3, 17, dtype=torch.float64), torch.randn(2, 17, dtype=torch.float64)
    expected = values.numpy() @ oracle.gaussian(features.numpy()).T
    for chunk in (1, 100, 1 << 24):
        np.testing.assert_allclose(_reference.exact_sum(features, values, chunk).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize(("kind", "bound"), [("spatial", 0.03), ("bilateral", 0.08)])
def test_lattice_errs_by_a_few_per_cent(kind: str, bound: float) -> None:
    """The lattice's own error on a smooth picture, the same as pydensecrf's: a few per cent of the filtered value."""
    y, x = np.mgrid[:24, :32]
    image = np.stack([4 * x, 5 * y, 60 + 40 * np.sin(x / 4)]).astype(float)
    spatial, bilateral = oracle.image_features(image, 3.0, 40.0, 13.0)
    features = torch.from_numpy(spatial if kind == "spatial" else bilateral)
    values = torch.rand(4, features.shape[1], dtype=torch.float64)
    ours = _reference.splat_blur_slice(_reference.build(*unit(features[None])), values[None])[0]
    exact = _reference.exact_sum(features, values)
    # The kernels are normalised in use, so a constant factor does not matter.
    ours = ours * (exact.sum() / ours.sum())
    assert float((ours - exact).norm() / exact.norm()) < bound


def test_transpose_is_the_transpose() -> None:
    features = torch.rand(1, 3, 40, dtype=torch.float64) * 6
    tables = _reference.build(*unit(features))
    identity = torch.eye(40, dtype=torch.float64)[None]
    forward = _reference.splat_blur_slice(tables, identity)[0]
    backward = _reference.splat_blur_slice(tables, identity, transpose=True)[0]
    torch.testing.assert_close(forward, backward.T)
    assert not torch.allclose(forward, forward.T)  # a sparse lattice is not symmetric: the two do differ


def test_moments_are_filtered_products() -> None:
    features, values, against = torch.rand(2, 3, 30), torch.rand(2, 4, 30), torch.rand(2, 4, 30)
    tables = _reference.build(*unit(features))
    ours = _reference.moments(tables, features, values, against, transpose=True)
    for d in range(3):
        filtered = _reference.splat_blur_slice(tables, features[:, d : d + 1] * values, transpose=True)
        torch.testing.assert_close(ours[:, d], (filtered * against).sum(1))


@pytest.mark.parametrize("symmetric", [True, False])
def test_gradients_of_the_normalizer(symmetric: bool) -> None:
    """With the exact sum for a filter they are those that autograd finds through it."""
    features = torch.rand(2, 3, 20, dtype=torch.float64, requires_grad=True)
    bandwidths = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    gradient = torch.randn(2, 1, 20, dtype=torch.float64)

    def filtered(values: torch.Tensor, transpose: bool) -> torch.Tensor:
        del transpose
        scaled = features / bandwidths[:, None]
        return torch.stack([_reference.exact_sum(f, v) for f, v in zip(scaled, values, strict=True)])

    sums = filtered(torch.ones(2, 1, 20, dtype=torch.float64), False)
    scale = sums.rsqrt() if symmetric else sums.reciprocal()
    expected = torch.autograd.grad(scale, (features, bandwidths), gradient, retain_graph=True)
    ours = _reference.through_normalizer(filtered, features, bandwidths, scale, gradient, symmetric, True)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other)
