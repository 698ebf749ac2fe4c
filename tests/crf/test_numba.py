"""The Numba kernels against their plain-torch twin."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from piecewise_training.crf import _numba, _reference

# Batch, features, points, channels.
SHAPES = [(1, 1, 1, 1), (1, 2, 7, 3), (2, 5, 60, 16), (3, 3, 33, 17), (1, 8, 40, 40)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("transpose", [False, True])
def test_filters_as_the_reference(shape: tuple[int, ...], dtype: torch.dtype, transpose: bool) -> None:
    batch, dims, points, channels = shape
    features = torch.randn(batch, dims, points, dtype=dtype) * 2
    values = torch.randn(batch, channels, points, dtype=dtype)
    expected = _reference.splat_blur_slice(_reference.build(features), values, transpose)
    ours = _numba.splat_blur_slice(_numba.build(features), values, transpose)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_moments_as_the_reference(shape: tuple[int, ...]) -> None:
    batch, dims, points, channels = shape
    features = torch.randn(batch, dims, points, dtype=torch.float64)
    values, against = torch.randn(2, batch, channels, points, dtype=torch.float64)
    expected = _reference.moments(_reference.build(features), features, values, against, True)
    torch.testing.assert_close(_numba.moments(_numba.build(features), features, values, against, True), expected)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("matrix", [False, True])
@pytest.mark.parametrize(
    ("grid", "classes", "dims"),
    [((1, 1), 2, (2, 5)), ((1, 70), 1, (1,)), ((9, 13), 3, (2, 5)), ((70, 65), 8, (5, 2)), ((130, 66), 21, (3, 2, 4))],
)
def test_infers_as_the_reference(
    grid: tuple[int, int], classes: int, dims: tuple[int, ...], matrix: bool, batch: int
) -> None:
    """Any number of terms of any dimension, one lattice for all images or one for each, several tiles."""
    pixels = grid[0] * grid[1]
    features = [2 * torch.rand(batch if d > 2 else 1, d, pixels) for d in dims]
    mixtures = [torch.randn(classes, classes) if matrix and i != 1 else torch.tensor(0.3 + i) for i in range(len(dims))]
    logits = 3 * torch.randn(batch, classes, pixels)
    terms = []
    for backend in (_numba, _reference):
        lattices = [backend.build(f) for f in features]
        terms.append([[(s, v, w / 20, n) for s, v, w, n in own] for own in lattices])
    ours = _numba.mean_field(terms[0], mixtures, logits, 3, grid)
    expected = _reference.mean_field(terms[1], mixtures, logits, 3, grid)
    torch.testing.assert_close(ours.exp(), expected.exp(), rtol=1e-4, atol=1e-5)
    likely = expected > -20
    torch.testing.assert_close(ours[likely], expected[likely], rtol=1e-4, atol=1e-3)


def test_probabilities_near_zero_keep_their_logarithm() -> None:
    logits = torch.tensor([[[0.0], [-300.0]]])
    lattices = [(s, v, 0 * w, n) for s, v, w, n in _numba.build(torch.zeros(1, 2, 1))]
    torch.testing.assert_close(_numba.mean_field([lattices], [torch.tensor(1.0)], logits, 2, (1, 1)), logits)


def test_infers_the_same_bits_for_any_number_of_threads() -> None:
    """Several parts, whose sums are taken in their order."""
    features, logits = 9 * torch.rand(1, 3, 300 * 200), torch.randn(1, 3, 300 * 200)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            lattices = [(s, v, w / 100, n) for s, v, w, n in _numba.build(features)]
            results.append(_numba.mean_field([lattices], [torch.tensor(1.0)], logits, 3, (300, 200)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@settings(max_examples=40, deadline=None)
@given(
    dims=st.integers(1, 6),
    points=st.integers(1, 60),
    scale=st.sampled_from([1e-3, 0.1, 1.0, 30.0, 1000.0]),
    seed=st.integers(0, 2**31),
)
def test_builds_the_reference_lattice(dims: int, points: int, scale: float, seed: int) -> None:
    features = scale * torch.randn(1, dims, points, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    simplices, vertices, weights, neighbours = _numba.build(features)[0]
    expected_simplices, expected_vertices, expected_weights, expected_neighbours = _reference.build(features)[0]
    assert len(vertices) == len(expected_vertices)
    vertices, expected_vertices = vertices[simplices], expected_vertices[expected_simplices]
    torch.testing.assert_close(weights, expected_weights, rtol=1e-7, atol=1e-7)
    assert neighbours.shape == expected_neighbours.shape
    # Vertices may be numbered differently: the same ones must be shared by the same points.
    renumber = dict(zip(vertices.flatten().tolist(), expected_vertices.flatten().tolist(), strict=True))
    assert [renumber[v] for v in vertices.flatten().tolist()] == expected_vertices.flatten().tolist()
    assert len(set(renumber.values())) == len(renumber)


def test_neighbouring_pixels_of_one_simplex_share_vertices() -> None:
    features = torch.zeros(1, 2, 5)
    simplices, vertices, _, _ = _numba.build(features)[0]
    assert simplices.tolist() == [0] * 5
    assert vertices.shape == (1, 3)


def test_same_bits_for_any_number_of_threads() -> None:
    features, values = torch.randn(2, 3, 500), torch.randn(2, 70, 500)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(_numba.splat_blur_slice(_numba.build(features), values))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_called_from_many_threads_at_once() -> None:
    features, values = torch.randn(1, 3, 300), torch.randn(1, 20, 300)
    expected = _numba.splat_blur_slice(_numba.build(features), values)
    results: list[torch.Tensor] = []
    workers = [
        threading.Thread(target=lambda: results.append(_numba.splat_blur_slice(_numba.build(features), values)))
        for _ in range(8)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 8
    assert all(torch.equal(result, expected) for result in results)


def test_non_contiguous_arguments() -> None:
    features, values = torch.randn(1, 200, 3).transpose(1, 2), torch.randn(1, 200, 5).transpose(1, 2)
    ours = _numba.splat_blur_slice(_numba.build(features), values)
    expected = _numba.splat_blur_slice(_numba.build(features.contiguous()), values.contiguous())
    assert torch.equal(ours, expected)
