"""The differentiable filter: values, gradients, batches, errors."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from piecewise_training.crf import GaussianKernel, gaussian_filter
from tests.crf import oracle

BACKENDS = ["exact", "reference", "numba"]


def test_exact_filter_is_the_double_loop() -> None:
    features, values = torch.randn(2, 25, dtype=torch.float64), torch.randn(3, 25, dtype=torch.float64)
    expected = values.numpy() @ oracle.gaussian(features.numpy()).T
    np.testing.assert_allclose(gaussian_filter(features, values, backend="exact").numpy(), expected)


def test_normalised_kernel_is_the_literal_one() -> None:
    features, values = torch.randn(1, 2, 25, dtype=torch.float64), torch.randn(1, 3, 25, dtype=torch.float64)
    expected = values[0].numpy() @ oracle.normalised(oracle.gaussian(features[0].numpy())).T
    kernel = GaussianKernel(features, backend="exact", normalization="symmetric")
    np.testing.assert_allclose(kernel(values)[0].numpy(), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@given(points=st.integers(1, 40), seed=st.integers(0, 2**31))
@settings(max_examples=15)
def test_linear_and_blind_to_the_order_of_points(backend: str, points: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    features = 2 * torch.randn(3, points, dtype=torch.float64, generator=g)
    a, b = torch.randn(2, 4, points, dtype=torch.float64, generator=g)
    both = gaussian_filter(features, 2 * a - 3 * b, backend=backend)
    apart = 2 * gaussian_filter(features, a, backend=backend) - 3 * gaussian_filter(features, b, backend=backend)
    torch.testing.assert_close(both, apart)
    order = torch.randperm(points, generator=g)
    shuffled = gaussian_filter(features[:, order], a[:, order], backend=backend)
    torch.testing.assert_close(shuffled, gaussian_filter(features, a, backend=backend)[:, order])


@pytest.mark.parametrize("backend", BACKENDS)
@given(points=st.integers(1, 40), spread=st.sampled_from([0.01, 1.0, 20.0]), seed=st.integers(0, 2**31))
@settings(max_examples=15)
def test_averages_leave_constants_and_symmetric_ones_are_symmetric(
    backend: str, points: int, spread: float, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    features = spread * torch.randn(1, 3, points, dtype=torch.float64, generator=g)
    ones = torch.ones(1, 1, points, dtype=torch.float64)
    average = GaussianKernel(features, backend=backend, normalization="after")
    torch.testing.assert_close(average(ones), ones)
    spreading = GaussianKernel(features, backend=backend, normalization="before")
    if backend == "exact":  # the lattice's own blur is symmetric only where no neighbour is missing
        torch.testing.assert_close(spreading(ones).sum(), ones.sum())
        kernel = GaussianKernel(features, backend=backend, normalization="symmetric")
        matrix = kernel(torch.eye(points, dtype=torch.float64)[None])[0]
        torch.testing.assert_close(matrix, matrix.T)


def test_gradients_of_the_exact_filter() -> None:
    features = torch.randn(2, 2, 9, dtype=torch.float64, requires_grad=True)
    values = torch.randn(2, 3, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f, v: GaussianKernel(f, backend="exact")(v), (features, values))
    assert torch.autograd.gradcheck(
        lambda f, v: GaussianKernel(f, backend="exact", normalization="symmetric")(v), (features, values)
    )


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_gradient_to_values_is_exactly_the_transposed_filter(backend: str) -> None:
    features = 3 * torch.randn(1, 3, 30, dtype=torch.float64)
    values = torch.randn(1, 2, 30, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(GaussianKernel(features, backend=backend), (values,))


def test_numba_gradients_are_the_references() -> None:
    results = []
    for backend in ("reference", "numba"):
        torch.manual_seed(3)
        features = (2 * torch.randn(2, 3, 80, dtype=torch.float64)).requires_grad_()
        values = torch.randn(2, 20, 80, dtype=torch.float64, requires_grad=True)
        (
            GaussianKernel(features, backend=backend, normalization="symmetric")(values)
            * torch.randn(2, 20, 80, dtype=torch.float64)
        ).sum().backward()
        results.append((features.grad, values.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-9)


def test_gradient_to_features_is_near_the_exact_one() -> None:
    """Through the lattice's kernel, which errs by a few per cent, so does the gradient."""
    torch.manual_seed(1)
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(24.0), indexing="ij")
    weight = torch.rand(1, 4, 480, dtype=torch.float64)
    values = torch.rand(1, 4, 480, dtype=torch.float64)
    slopes = []
    for backend in ("exact", "reference"):
        bandwidth = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
        features = torch.stack([x, y]).reshape(1, 2, 480).double() / bandwidth
        (GaussianKernel(features, backend=backend, normalization="symmetric")(values) * weight).sum().backward()
        slopes.append(float(bandwidth.grad))
    assert slopes[1] == pytest.approx(slopes[0], rel=0.1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_lattice_serves_a_batch(backend: str) -> None:
    features = torch.rand(1, 2, 30, requires_grad=True)
    values = torch.rand(3, 4, 30)
    shared = GaussianKernel(features, backend=backend)(values)
    apart = torch.cat([GaussianKernel(features, backend=backend)(v[None]) for v in values])
    torch.testing.assert_close(shared, apart)
    (gradient,) = torch.autograd.grad(shared.sum(), features)
    (expected,) = torch.autograd.grad(apart.sum(), features)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)


def test_unbatched_and_batched_agree() -> None:
    features, values = torch.rand(2, 3, 20), torch.rand(2, 4, 20)
    batched = gaussian_filter(features, values)
    torch.testing.assert_close(batched[1], gaussian_filter(features[1], values[1]))


@pytest.mark.parametrize(
    ("features", "values"),
    [
        (torch.zeros(2, 5), torch.zeros(3, 6)),
        (torch.zeros(2, 5), torch.zeros(1, 3, 5)),
        (torch.zeros(2, 2, 5), torch.zeros(1, 3, 5)),
        (torch.zeros(5), torch.zeros(5)),
    ],
)
def test_shapes_that_do_not_fit(features: torch.Tensor, values: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"must be \(d, N\) and \(C, N\), or \(B, d, N\) and \(B, C, N\); got"):
        gaussian_filter(features, values)


def test_dtypes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="must share dtype and device; got torch.float32 on cpu and torch.float64"):
        gaussian_filter(torch.zeros(2, 5), torch.zeros(3, 5, dtype=torch.float64))


@pytest.mark.parametrize(
    ("images", "values", "expected"),
    [
        (1, torch.ones(1, 1, 3000), "(B, C, 10)"),
        (1, torch.ones(1, 2, 4), "(B, C, 10)"),
        (1, torch.ones(2, 10), "(B, C, 10)"),
        (1, torch.ones(1, 0, 10), "(B, C, 10)"),
        (1, torch.ones(1, 2, 10).double(), "(B, C, 10)"),
        (2, torch.ones(1, 2, 10), "(2, C, 10)"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "reference", "exact"])
def test_values_that_do_not_fit_the_kernel(images: int, values: torch.Tensor, expected: str, backend: Any) -> None:
    kernel = GaussianKernel(torch.rand(images, 2, 10), backend=backend)
    with pytest.raises(
        ValueError, match=re.escape(f"`values` must be {expected} of torch.float32, as the features are")
    ):
        kernel(values)


def test_values_that_are_not_finite() -> None:
    with pytest.raises(ValueError, match="`values` must be finite; 5 of 5"):
        gaussian_filter(torch.zeros(2, 5), torch.full((1, 5), torch.inf))


@pytest.mark.parametrize("backend", ["reference", "exact"])
def test_a_kernel_is_no_coarser_under_autocast(backend: Any) -> None:
    g = torch.Generator().manual_seed(0)
    features, values = (torch.randn(1, size, 40, generator=g).requires_grad_() for size in (3, 2))
    bandwidths = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            own = GaussianKernel(features, bandwidths, backend, "symmetric")(values)
            found.append([own, *torch.autograd.grad(own[:, 0].mean(), (features, bandwidths, values))])
    assert all(torch.equal(own, expected) for own, expected in zip(*found, strict=True))


@pytest.mark.parametrize("backend", ["auto", "exact"])
def test_bandwidths_of_another_precision(backend: Any) -> None:
    features, values = torch.rand(1, 2, 9), torch.rand(1, 3, 9)
    found = []
    for dtype in (torch.float32, torch.float64):
        bandwidths = torch.ones(2, dtype=dtype, requires_grad=True)
        GaussianKernel(features, bandwidths, backend)(values).sum().backward()
        assert bandwidths.grad is not None
        assert bandwidths.grad.dtype == dtype
        found.append(bandwidths.grad)
    assert torch.equal(found[0], found[1].float())


def test_values_elsewhere() -> None:
    kernel = GaussianKernel(torch.rand(1, 2, 9))
    with pytest.raises(ValueError, match="`values` must be on cpu, as the features are; they are on meta"):
        kernel(torch.rand(1, 3, 9, device="meta"))
