"""The network of a contextual pairwise potential: K x K scores for every edge, from the features of its two nodes."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn


class PairwiseNet(nn.Module):
    r"""Scores :math:`z_{pq}(a, b)` of label a at node p and b at node q, from both nodes' features in this order.

    The paper (Lin et al., CVPR 2016) concatenates the two features and puts a small network on each edge. Its first
    layer is linear in each end, :math:`W [f_p, f_q] = W_1 f_p + W_2 f_q`, so that it is computed once a node here and
    added up on the edges: the same function at a fraction of the cost.

    Args:
        channels: of the feature map.
        num_classes: K.
        hidden: width of the layer on the edges.
        symmetric: whether the score of labels (a, b) on (p, q) is that of (b, a) on (q, p).

    Example:
        >>> import torch
        >>> from piecewise_training.networks.edges import relation_edges
        >>> net = PairwiseNet(8, num_classes=3, hidden=16)
        >>> net(torch.zeros(2, 8, 4, 5), relation_edges("surrounding", 4, 5)).shape
        torch.Size([2, 110, 3, 3])
    """

    def __init__(self, channels: int, num_classes: int, hidden: int = 256, symmetric: bool = False) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.symmetric = symmetric
        self.first = nn.Conv2d(channels, hidden, 1)
        self.second = nn.Conv2d(channels, hidden, 1, bias=False)
        self.activation = nn.ReLU()
        self.scores = nn.Linear(hidden, num_classes**2)
        nn.init.zeros_(self.scores.weight)  # all pairs are as likely: no potential before it is learned
        nn.init.zeros_(self.scores.bias)

    def forward(self, features: Float[Tensor, "b c h w"], edges: Int[Tensor, "2 e"]) -> Float[Tensor, "b e k k"]:
        """The scores of every edge of a map."""
        return self.on_edges(*self.on_nodes(features), edges)

    def on_nodes(self, features: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b n f"], Float[Tensor, "b n f"]]:
        """What each node adds to an edge as its first and as its second end."""
        return self.first(features).flatten(2).mT, self.second(features).flatten(2).mT

    def on_edges(
        self, first: Float[Tensor, "b n f"], second: Float[Tensor, "b n f"], edges: Int[Tensor, "2 e"]
    ) -> Float[Tensor, "b e k k"]:
        """The scores of some edges, of what `on_nodes` gave."""
        start, end = edges
        scores = self._pair(first[:, start], second[:, end])
        if self.symmetric:
            scores = 0.5 * (scores + self._pair(first[:, end], second[:, start]).mT)
        return scores

    def _pair(self, first: Tensor, second: Tensor) -> Tensor:
        return self.scores(self.activation(first + second)).unflatten(-1, (self.num_classes, self.num_classes))
