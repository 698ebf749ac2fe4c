"""The pairwise network: the concatenation of two nodes' features, in order, through two layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from piecewise_training.networks.edges import relation_edges
from piecewise_training.networks.pairwise import PairwiseNet


def with_scores(*arguments: Any, **options: Any) -> PairwiseNet:
    """One whose scores are not all 0, as they are before training."""
    net = PairwiseNet(*arguments, **options)
    nn.init.normal_(net.scores.weight)
    return net


@pytest.mark.parametrize("symmetric", [False, True])
def test_is_two_layers_over_the_concatenation(symmetric: bool) -> None:
    net = with_scores(6, 3, hidden=10, symmetric=symmetric).double()
    features = torch.randn(2, 6, 4, 5, dtype=torch.float64)
    edges = relation_edges("surrounding", 4, 5)
    weight = torch.cat([net.first.weight, net.second.weight], 1)[..., 0, 0]
    nodes = features.flatten(2).mT

    def literal(p: int, q: int) -> torch.Tensor:
        both = torch.cat([nodes[:, p], nodes[:, q]], 1)
        return net.scores(torch.relu(both @ weight.T + net.first.bias)).reshape(2, 3, 3)

    scores = net(features, edges)
    for e, (p, q) in enumerate(edges.T.tolist()):
        expected = literal(p, q)
        if symmetric:
            expected = (expected + literal(q, p).mT) / 2
        torch.testing.assert_close(scores[:, e], expected)


def test_symmetric_scores_do_not_depend_on_the_direction() -> None:
    net = with_scores(4, 3, hidden=5, symmetric=True)
    features = torch.randn(1, 4, 1, 2)
    there, back = (net(features, torch.tensor(edge)) for edge in ([[0], [1]], [[1], [0]]))
    torch.testing.assert_close(there, back.mT)
    plain = with_scores(4, 3, hidden=5)
    assert not torch.allclose(plain(features, torch.tensor([[0], [1]])), plain(features, torch.tensor([[1], [0]])).mT)
