"""The choice of backend, and the errors of building a lattice."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from piecewise_training.crf import GaussianKernel, PermutohedralLattice
from piecewise_training.crf.lattice import resolve


def test_auto_follows_the_device() -> None:
    assert resolve("auto", torch.device("cpu")) == "numba"
    assert resolve("auto", torch.device("mps")) == "reference"
    assert resolve("reference", torch.device("cpu")) == "reference"


def test_unknown_backend() -> None:
    with pytest.raises(
        ValueError, match=r"`backend` must be auto, numba, triton, reference or exact; got 'fast' \(str\)\."
    ):
        resolve("fast", torch.device("cpu"))  # type: ignore[arg-type]


def test_numba_is_for_the_cpu() -> None:
    with pytest.raises(ValueError, match="`backend` 'numba' runs on the CPU; the tensors are on cuda"):
        resolve("numba", torch.device("cuda"))


def test_exact_has_no_lattice() -> None:
    with pytest.raises(ValueError, match="'exact' is the plain sum and has no lattice"):
        PermutohedralLattice.build(torch.zeros(1, 2, 3), backend="exact")


@pytest.mark.parametrize(
    "features", [torch.zeros(4), torch.zeros(3, 4), torch.zeros(1, 0, 4), torch.zeros(1, 2, 3).half()]
)
def test_wrong_features(features: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"`features` must be \(B, d, N\) float32 or float64; got"):
        PermutohedralLattice.build(features)
    with pytest.raises(ValueError, match=r"`features` must be \(B, d, N\) float32 or float64; got"):
        GaussianKernel(features)


@pytest.mark.parametrize(
    "bandwidths", [torch.tensor([1.0, 0.0]), torch.tensor([-1e-30, 1.0]), torch.tensor([1, torch.nan])]
)
@pytest.mark.parametrize("backend", ["auto", "reference", "exact"])
def test_bandwidths_that_are_not_above_0(bandwidths: torch.Tensor, backend: Any) -> None:
    with pytest.raises(ValueError, match=r"`bandwidths` must be above 0; got \["):
        GaussianKernel(torch.rand(1, 2, 3), bandwidths, backend)
    with pytest.raises(ValueError, match=r"`bandwidths` must be above 0; got \["):
        PermutohedralLattice.build(torch.rand(1, 2, 3), bandwidths)


def test_too_few_bandwidths() -> None:
    with pytest.raises(ValueError, match=r"`bandwidths` must be \(2,\), one for each feature; got \(1,\) float32"):
        PermutohedralLattice.build(torch.rand(1, 2, 3), torch.ones(1))


def test_features_that_are_not_finite() -> None:
    features = torch.zeros(1, 2, 3)
    features[0, 0, 1] = torch.nan
    with pytest.raises(ValueError, match="`features` must be finite; 1 of 6 values are NaN or infinite"):
        PermutohedralLattice.build(features)
    with pytest.raises(ValueError, match="`features` must be finite; 1 of 6 values are NaN or infinite"):
        GaussianKernel(features, backend="exact")


def test_one_lattice_an_image() -> None:
    lattices = PermutohedralLattice.build(torch.rand(3, 2, 10), backend="reference")
    assert [lattice.backend for lattice in lattices] == ["reference"] * 3
