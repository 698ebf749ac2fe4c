"""The Gaussian over a grid: the same as the sum over all pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from piecewise_training.crf import GaussianKernel
from piecewise_training.crf.separable import SeparableOperator
from tests.crf import oracle


@pytest.mark.parametrize("shape", [(5,), (4, 7), (1, 6), (3, 4, 5)])
def test_is_the_sum_over_all_pairs(shape: tuple[int, ...]) -> None:
    stds = torch.tensor([1.3, 0.7, 2.0][: len(shape)], dtype=torch.float64)
    place = np.indices(shape).reshape(len(shape), -1)
    values = torch.randn(2, 3, place.shape[1], dtype=torch.float64)
    expected = values.numpy() @ oracle.gaussian(place / stds.numpy()[:, None]).T
    operator = SeparableOperator(shape, stds)
    np.testing.assert_allclose(operator.filter(values).numpy(), expected, atol=1e-12)
    sums = oracle.gaussian(place / stds.numpy()[:, None]).sum(1)
    np.testing.assert_allclose(operator.normalizer(False)[0, 0].numpy(), 1 / sums)
    np.testing.assert_allclose(operator.normalizer(True)[0, 0].numpy(), sums**-0.5)


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("normalization", ["none", "before", "after", "symmetric"])
def test_gradient_to_the_bandwidths(normalization: str, images: int) -> None:
    place = torch.tensor(np.indices((3, 4)).reshape(1, 2, 12), dtype=torch.float64).repeat(images, 1, 1)
    values = torch.randn(images, 2, 12, dtype=torch.float64, requires_grad=True)

    def run(stds: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return GaussianKernel(place, stds, SeparableOperator((3, 4), stds), normalization)(values)  # type: ignore[arg-type]

    stds = torch.tensor([1.1, 0.8], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (stds, values))
