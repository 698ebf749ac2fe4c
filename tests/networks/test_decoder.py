"""The decoder."""

from __future__ import annotations

import torch

from piecewise_training.networks import Decoder


def test_scores_have_the_early_maps_size() -> None:
    decoder = Decoder(8, 16, 5, dilations=(2, 4), width=12)
    assert decoder(torch.randn(2, 8, 17, 23), torch.randn(2, 16, 5, 6)).shape == (2, 5, 17, 23)


def test_dilations() -> None:
    """A change of one deep pixel is seen by a branch where its taps lie."""
    deep = torch.zeros(1, 16, 1, 15, requires_grad=True)
    decoder = Decoder(8, 16, 5, dilations=(2, 5), width=12).eval()
    seen = []
    for branch in decoder.branches:
        (slope,) = torch.autograd.grad(branch[0](deep)[0, :, 0, 7].sum(), deep)
        seen.append(slope[0].abs().sum((0, 1)).nonzero().flatten().tolist())
    assert seen == [[7], [5, 7, 9], [2, 7, 12]]


def test_trains_on_a_single_deep_pixel() -> None:
    """The pooled branch has no batch norm, which could not be trained on one value."""
    decoder = Decoder(8, 16, 5, dilations=(2,), width=12)
    decoder(torch.randn(2, 8, 4, 4), torch.randn(2, 16, 1, 1)).sum().backward()
