"""The choice of backend, and the errors of building a lattice."""

from __future__ import annotations

import pytest
import torch

from piecewise_training.crf import PermutohedralLattice
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


@pytest.mark.parametrize("features", [torch.zeros(3, 4), torch.zeros(1, 0, 4), torch.zeros(1, 2, 3).half()])
def test_wrong_features(features: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"`features` must be \(B, d, N\) float32 or float64; got"):
        PermutohedralLattice.build(features)


def test_features_that_are_not_finite() -> None:
    features = torch.zeros(1, 2, 3)
    features[0, 0, 1] = torch.nan
    with pytest.raises(ValueError, match="`features` must be finite; 1 of 6 values are NaN or infinite"):
        PermutohedralLattice.build(features)


def test_one_lattice_an_image() -> None:
    lattices = PermutohedralLattice.build(torch.rand(3, 2, 10), backend="reference")
    assert [lattice.backend for lattice in lattices] == ["reference"] * 3
