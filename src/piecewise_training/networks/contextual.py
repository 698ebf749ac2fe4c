"""The contextual CRF on the nodes of a feature map: CNN pairwise potentials, their likelihood, and mean field."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from piecewise_training import checks
from piecewise_training.networks.edges import RelationName, relation_edges
from piecewise_training.networks.pairwise import PairwiseNet

_MOST = 1 << 26  # numbers of K x K scores at a time: a quarter of a gigabyte


@dataclass(frozen=True)
class Relation:
    """A relation between nodes and its pairwise network.

    Attributes:
        name: "surrounding" or "above_below"; see `relation_edges`.
        box: side of the box relative to the shorter edge of the map.
        samples: places along a side of the box; None takes all.
        hidden: width of the pairwise network.
        symmetric: whether its potential is; see `PairwiseNet`.
    """

    name: RelationName
    box: float = 0.4
    samples: int | None = 5
    hidden: int = 256
    symmetric: bool = False


class ContextualCRF(nn.Module):
    r"""Pairwise potentials between the nodes of a feature map, and mean field over them.

    The energy is that of Lin et al. (CVPR 2016): :math:`E(y) = -\sum_p z_p(y_p) - \sum_V w_V \sum_{(p,q) \in V}
    z_{pq}(y_p, y_q)` with one network for each relation V. Each is trained to the likelihood of pairs of labels by
    itself, without inference (`edge_scores` with `losses.edge_nll`); a pair's log-probability over K² pairs then
    counts the labels' own frequency once for every edge. So the potential that mean field uses is what the pair's
    log-probability has over those of its two ends, :math:`\log P(a, b) - \log P(a) - \log P(b)`. What many edges tell
    a node is much the same, too: a weight :math:`w_V` is one over the mean number of edges at a node, times a factor
    for each relation that starts at 1 and is learned by training through `forward`. Both are our choice.

    Args:
        channels: of the feature map.
        num_classes: K.
        relations: one or more.
        iterations: mean-field updates.

    Raises:
        ValueError: there is no relation, or a number is out of its range.

    Example:
        >>> crf = ContextualCRF(8, num_classes=3)
        >>> crf(torch.randn(1, 3, 6, 7), torch.randn(1, 8, 6, 7)).shape
        torch.Size([1, 3, 6, 7])
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        relations: Sequence[Relation] = (Relation("surrounding"), Relation("above_below")),
        iterations: int = 3,
    ) -> None:
        super().__init__()
        if not relations:
            raise ValueError("`relations` must hold at least one.")
        if iterations < 0:
            raise ValueError(f"`iterations` must be at least 0; got {iterations}.")
        self.relations = tuple(relations)
        self.iterations = iterations
        self.nets: Sequence[PairwiseNet] = nn.ModuleList(  # type: ignore[assignment]
            PairwiseNet(channels, num_classes, relation.hidden, relation.symmetric) for relation in relations
        )
        self.log_factors = nn.Parameter(torch.zeros(len(relations)))

    def edges(self, features: Float[Tensor, "b c h w"]) -> list[Int[Tensor, "2 e"]]:
        """The edges of each relation over a map."""
        height, width = features.shape[2:]
        return [
            relation_edges(relation.name, height, width, box=relation.box, samples=relation.samples).to(features.device)
            for relation in self.relations
        ]

    def weights(self, features: Float[Tensor, "b c h w"]) -> list[Float[Tensor, ""]]:
        """The weight of each relation's potentials over a map."""
        nodes = math.prod(features.shape[2:])
        edges = self.edges(features)
        return [f.exp() * nodes / max(1, 2 * own.shape[1]) for f, own in zip(self.log_factors, edges, strict=True)]

    def edge_scores(self, features: Float[Tensor, "b c h w"]) -> list[Float[Tensor, "b e k k"]]:
        """The pairwise scores of each relation's edges, as they are trained."""
        edges = self.edges(features)
        return [net(features, own) for net, own in zip(self.nets, edges, strict=True)]

    def forward(self, unary: Float[Tensor, "b k h w"], features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        """Scores that know their context: the logarithms of the marginals after mean field.

        Args:
            unary: the scores of each node.
            features: what the pairwise networks see of each node.

        Raises:
            ValueError: the two maps differ in batch or size.
        """
        if unary.shape[0] != features.shape[0] or unary.shape[2:] != features.shape[2:]:
            raise ValueError(
                "`unary` and `features` must agree in batch, height and width; "
                f"got {checks.describe(unary)} and {checks.describe(features)}."
            )
        scores = unary.flatten(2).mT
        ends = [net.on_nodes(features) for net in self.nets]
        edges = self.edges(features)
        weights = self.weights(features)
        log_q = scores.log_softmax(2)
        for _ in range(self.iterations):
            messages = scores
            for net, own, nodes, weight in zip(self.nets, edges, ends, weights, strict=True):
                for part in _parts(own, len(scores) * scores.shape[2] ** 2):
                    messages = messages + weight * _checkpointed(_messages, net, log_q.exp(), *nodes, part)
            log_q = messages.log_softmax(2)
        return log_q.mT.reshape(unary.shape)


def pair_potential(scores: Float[Tensor, "*e k k"]) -> Float[Tensor, "*e k k"]:
    """What a pair's log-probability has over those of its two ends."""
    joint = scores.flatten(-2).log_softmax(-1).reshape(scores.shape)
    return joint - joint.logsumexp(-1, keepdim=True) - joint.logsumexp(-2, keepdim=True)


def _messages(net: PairwiseNet, q: Tensor, first: Tensor, second: Tensor, edges: Tensor) -> Tensor:
    """What some edges tell the nodes at both of their ends (B, N, K)."""
    start, end = edges
    potential = pair_potential(net.on_edges(first, second, edges))
    forth = (potential * q[:, end, None, :]).sum(3)
    back = (potential * q[:, start, :, None]).sum(2)
    return torch.zeros_like(q).index_add(1, start, forth).index_add(1, end, back)


def _checkpointed(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Computes again on the way back what would not be worth its memory: K² numbers an edge and iteration."""
    return checkpoint(function, *arguments, use_reentrant=False)


def _parts(edges: Int[Tensor, "2 e"], numbers: int) -> Iterator[Tensor]:
    """Edges in parts, of which each has so few K x K scores that they fit into memory."""
    count = max(1, math.ceil(edges.shape[1] * numbers / _MOST))
    yield from (part for part in edges.tensor_split(count, 1) if part.shape[1])
