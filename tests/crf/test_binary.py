"""Two labels under Potts, which have a path of their own on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from piecewise_training.crf import Convergence, PairwiseTerm, bilateral_kernel, dense_crf
from piecewise_training.crf._numba_binary import is_binary
from piecewise_training.crf._numba_parts import Term


def case(height: int, width: int, seed: int = 0, spread: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of two labels and an image with an edge."""
    g = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 60, (3, height, width), generator=g)
    image[:, :, width // 2 :] += 150
    return spread * torch.randn(2, height, width, generator=g), image.to(torch.uint8)


@pytest.mark.parametrize("normalization", ["symmetric", "before", "after", "none"])
@pytest.mark.parametrize("logarithm", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (70, 3), (37, 53), (130, 190)])
def test_equals_the_reference(size: tuple[int, int], logarithm: bool, normalization: str) -> None:
    scores, image = case(*size)
    weights = {"pos_w": 0.02, "bilateral_w": 0.002} if normalization == "none" else {}
    how = {"normalization": normalization, "logarithm": logarithm, "iterations": 5, **weights}
    found = dense_crf(scores, image, **how)  # type: ignore[arg-type]
    right = dense_crf(scores, image, backend="reference", **how)  # type: ignore[arg-type]
    torch.testing.assert_close(found, right, atol=1e-4, rtol=1e-4)


@given(st.integers(0, 1000), st.sampled_from([0.1, 3.0, 100.0, 1e6]))
def test_marginals_sum_to_one(seed: int, spread: float) -> None:
    scores, image = case(20, 31, seed, spread)
    torch.testing.assert_close(dense_crf(scores, image).exp().sum(0), torch.ones(20, 31))
    torch.testing.assert_close(dense_crf(scores, image, logarithm=False).sum(0), torch.ones(20, 31))


def test_logarithms_of_what_is_nearly_impossible() -> None:
    scores = torch.zeros(2, 1, 3)
    scores[1, 0] = torch.tensor([300.0, -5000.0, 0.0])
    found = dense_crf(scores, torch.zeros(3, 1, 3, dtype=torch.uint8), iterations=0)
    torch.testing.assert_close(found, scores.log_softmax(0))


def test_labels_may_be_exchanged() -> None:
    scores, image = case(40, 60)
    torch.testing.assert_close(dense_crf(scores.flip(0), image), dense_crf(scores, image).flip(0), atol=1e-5, rtol=1e-5)


def test_three_kernels_and_a_batch() -> None:
    scores, image = (torch.stack(both) for both in zip(case(33, 47, 0), case(33, 47, 1), strict=True))
    found = []
    for backend in ("auto", "reference"):
        kernel = bilateral_kernel(image, 9.0, 20.0, like=scores, backend=backend)  # type: ignore[arg-type]
        found.append(dense_crf(scores, image, terms=[PairwiseTerm(kernel, 2.0)], backend=backend))  # type: ignore[arg-type]
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)


def test_other_paths_agree() -> None:
    """Costs as a matrix, gradients and watching take the path for any number of labels."""
    scores, image = case(64, 90)
    found = dense_crf(scores, image)
    costs = dense_crf(scores, image, compatibility=1 - torch.eye(2))
    kept = dense_crf(scores.clone().requires_grad_(), image).detach()
    watched = dense_crf(scores, image, convergence=Convergence())
    for other in (costs, kept, watched):
        torch.testing.assert_close(other, found, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_same_bits_for_any_number_of_threads(threads: int) -> None:
    scores, image = case(230, 310)
    expected = dense_crf(scores, image)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert torch.equal(dense_crf(scores, image), expected)
    finally:
        torch.set_num_threads(before)


def test_what_is_binary() -> None:
    def term(mixture: np.ndarray) -> Term:
        return Term((np.empty(0),) * 4, np.empty(0), np.empty(0), mixture)  # type: ignore[arg-type]

    one, several = np.array(3.0), np.ones(2)
    assert is_binary([term(one), term(one)], 2)
    assert not is_binary([term(one)], 3)
    assert not is_binary([term(one), term(several)], 2)
