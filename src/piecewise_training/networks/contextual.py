"""The contextual CRF on the nodes of a feature map: CNN pairwise potentials, their likelihood, and mean field."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from piecewise_training import checks
from piecewise_training.compiling import uncompiled
from piecewise_training.networks.edges import RelationName, check_relation, relation_edges
from piecewise_training.networks.pairwise import PairwiseNet

_MOST = 1 << 26  # numbers of a pairwise network's layers on edges at a time: a quarter of a gigabyte
_KEPT = 1 << 24  # numbers of a relation's K x K scores that are kept from one iteration to the next


@dataclass(frozen=True)
class Relation:
    """A relation between nodes and its pairwise network.

    Attributes:
        name: "surrounding" or "above_below"; see `relation_edges`.
        box: side of the box relative to the shorter edge of the grid of nodes.
        samples: places along a side of the box; None takes all.
        hidden: width of the pairwise network.
        symmetric: whether its potential is; see `PairwiseNet`.

    Raises:
        ValueError: no relation has that name, or a number is out of its range.
    """

    name: RelationName
    box: float = 0.4
    samples: int | None = 5
    hidden: int = 256
    symmetric: bool = False

    def __post_init__(self) -> None:
        """Checks the numbers now: edges are looked for after the network has been trained."""
        check_relation(self.name, self.box, self.samples, "name")
        if self.hidden < 1:
            raise ValueError(f"`hidden` must be at least 1; got {self.hidden}.")


class ContextualCRF(nn.Module):
    r"""Pairwise potentials between the nodes of a feature map, and mean field over them.

    The energy is that of Lin et al. (CVPR 2016): :math:`E(y) = -\sum_p z_p(y_p) - \sum_V w_V \sum_{(p,q) \in V}
    z_{pq}(y_p, y_q)` with one network for each relation V. Each is trained to the likelihood of pairs of labels by
    itself, without inference (`edge_scores` with `losses.edge_nll`).

    With `residual`, our choice, the pair's likelihood is that of :math:`z_p(a) + z_q(b) + z_{pq}(a, b)`, where the
    nodes' own scores are held fixed: the network learns what they do not say, and begins with two labels that know
    nothing of each other. Without, as in the paper, it is that of :math:`z_{pq}(a, b)` alone, from which the frequency
    of either label would be counted once for every edge; the potential is then what the pair's log-probability has
    over those of its two ends, :math:`\log P(a, b) - \log P(a) - \log P(b)`.

    What many edges tell a node is much the same, and so is what two relations tell it: a weight :math:`w_V` is one over
    the number of relations and the mean number of the relation's edges at a node, times a factor that starts at 1 and
    is learned by training through `forward`. The paper does not say how it weighs them. Before it is trained a
    potential is 0, and mean field changes nothing.

    Args:
        channels: of the feature map.
        num_classes: K.
        relations: one or more, or their attributes by name.
        iterations: mean-field updates.
        residual: whether pairwise networks are trained on top of the nodes' own scores.
        stride: pixels from node to node in a `PiecewiseTrainedModel`, about, but never fewer than the feature map's;
            `forward` takes nodes as they come.

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
        relations: Sequence[Relation | Mapping[str, Any]] = (Relation("surrounding"), Relation("above_below")),
        iterations: int = 3,
        residual: bool = True,
        stride: int = 16,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"`num_classes` must be at least 2; got {num_classes}.")
        if not relations:
            raise ValueError("`relations` must hold at least one.")
        if iterations < 0:
            raise ValueError(f"`iterations` must be at least 0; got {iterations}.")
        if stride < 1:
            raise ValueError(f"`stride` must be at least 1; got {stride}.")
        self.channels = channels
        self.num_classes = num_classes
        self.relations = tuple(Relation(**own) if isinstance(own, Mapping) else own for own in relations)
        self.iterations = iterations
        self.residual = residual
        self.stride = stride
        self.nets = nn.ModuleList(
            PairwiseNet(channels, num_classes, relation.hidden, relation.symmetric) for relation in self.relations
        )
        self.log_factors = nn.Parameter(torch.zeros(len(relations)))

    def configuration(self) -> dict[str, Any]:
        """The arguments that make another like it."""
        relations = [asdict(relation) for relation in self.relations]
        options = {"iterations": self.iterations, "residual": self.residual, "stride": self.stride}
        return {"channels": self.channels, "relations": relations, **options}

    @property
    def silent(self) -> bool:
        """Whether all potentials are 0, as before training, so that mean field changes nothing."""
        return not any(bool(p.detach().any()) for net in self.nets for p in cast(PairwiseNet, net).scores.parameters())

    def edges(self, features: Float[Tensor, "b c h w"]) -> list[Int[Tensor, "2 e"]]:
        """The edges of each relation over a map."""
        height, width = features.shape[2:]
        found = [
            relation_edges(r.name, height, width, box=r.box, samples=r.samples, device=features.device)
            for r in self.relations
        ]
        # Where there are none, new ones: torch.export cannot write a constant without numbers.
        none = features.new_zeros((2, 0), dtype=torch.long)
        return [edges if edges.shape[1] else none for edges in found]

    def weights(self, features: Float[Tensor, "b c h w"]) -> list[Float[Tensor, ""]]:
        """The weight of each relation's potentials over a map."""
        return self._weights(features, self.edges(features))

    def _weights(self, features: Tensor, edges: Sequence[Tensor]) -> list[Tensor]:
        share = math.prod(features.shape[2:]) / (2 * len(self.relations))
        return [f.exp() * share / max(1, own.shape[1]) for f, own in zip(self.log_factors, edges, strict=True)]

    def edge_scores(
        self, unary: Float[Tensor, "b k h w"], features: Float[Tensor, "b c h w"]
    ) -> list[Float[Tensor, "b e k k"]]:
        """The scores of pairs of labels on each relation's edges, as they are trained; none reaches `unary` back.

        Raises:
            ValueError: a map has other axes or channels, or the two differ in batch or size.
        """
        self._check(unary, features)
        edges = self.edges(features)
        scores = [net(features, own) for net, own in zip(self.nets, edges, strict=True)]
        if not self.residual:
            return scores
        own = unary.detach().flatten(2).mT.log_softmax(2)
        return [s + own[:, e[0], :, None] + own[:, e[1], None, :] for s, e in zip(scores, edges, strict=True)]

    @uncompiled
    def forward(self, unary: Float[Tensor, "b k h w"], features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        """Scores that know their context: the logarithms of the marginals after mean field, at least in float32.

        Args:
            unary: the scores of each node.
            features: what the pairwise networks see of each node.

        Raises:
            ValueError: a map has other axes or channels, or the two differ in batch or size.
        """
        self._check(unary, features)
        scores = _at_least_single(unary.flatten(2).mT)
        edges = self.edges(features)
        tell = [
            _messages(cast(PairwiseNet, net), features, own, self.residual)
            for net, own in zip(self.nets, edges, strict=True)
        ]
        weights = self._weights(features, edges)
        log_q = scores.log_softmax(2)
        for _ in range(self.iterations):
            q = log_q.exp()
            told = scores
            for weight, of_relation in zip(weights, tell, strict=True):
                told = told + weight * of_relation(q)
            log_q = told.log_softmax(2)
        return log_q.mT.reshape(unary.shape)

    def _check(self, unary: Tensor, features: Tensor) -> None:
        """Edges are numbers of nodes: on maps of two sizes they would pair wrong ones."""
        for name, value, channels in (("unary", unary, self.num_classes), ("features", features, self.channels)):
            if value.ndim != 4 or value.shape[1] != channels:
                raise ValueError(f"`{name}` must be (B, {channels}, H, W); got {checks.describe(value)}.")
        if unary.shape[0] != features.shape[0] or unary.shape[2:] != features.shape[2:]:
            raise ValueError(
                "`unary` and `features` must agree in batch, height and width; "
                f"got {checks.describe(unary)} and {checks.describe(features)}. Resize one to the other."
            )


def pair_potential(scores: Float[Tensor, "*e k k"]) -> Float[Tensor, "*e k k"]:
    """What a pair's log-probability has over those of its two ends."""
    joint = scores.flatten(-2).log_softmax(-1).reshape(scores.shape)
    return joint - joint.logsumexp(-1, keepdim=True) - joint.logsumexp(-2, keepdim=True)


def _messages(net: PairwiseNet, features: Tensor, edges: Tensor, residual: bool) -> Callable[[Tensor], Tensor]:
    """What a relation's edges tell the nodes, as a function of their marginals (B, N, K).

    The potentials are computed once where they are few; else in each iteration and on the way back: K squared numbers
    an edge are not worth their memory. Either is done in parts, for the layers before them may be wider: what both ends
    give, and its sum.
    """
    first, second = net.on_nodes(features)
    pairs, numbers = edges.shape[1] * len(features), net.num_classes**2
    count = max(1, math.ceil(pairs * max(numbers, 3 * net.scores.in_features) / _MOST))
    parts = edges.tensor_split(count, 1)

    def potentials(first: Tensor, second: Tensor, part: Tensor) -> Tensor:
        scores = _at_least_single(net.on_edges(first, second, part))
        return scores if residual else pair_potential(scores)

    if pairs * numbers <= _KEPT:
        if count == 1:
            kept = potentials(first, second, edges)
        else:
            kept = torch.cat([checkpoint(potentials, first, second, part, use_reentrant=False) for part in parts], 1)
        return lambda q: _told(kept, q, edges)

    def computed(q: Tensor, first: Tensor, second: Tensor, part: Tensor) -> Tensor:
        return _told(potentials(first, second, part), q, part)

    def in_parts(q: Tensor) -> Tensor:
        told = torch.zeros_like(q)
        for part in parts:
            told = told + checkpoint(computed, q, first, second, part, use_reentrant=False)
        return told

    return in_parts


def _at_least_single(x: Tensor) -> Tensor:
    """Numbers in single precision, or double if they are, whatever autocast has made of them."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _told(potential: Tensor, q: Tensor, edges: Tensor) -> Tensor:
    """What edges with these potentials tell the nodes at both of their ends."""
    start, end = edges
    with torch.autocast(q.device.type, enabled=False):  # as those of the dense CRF, in single precision
        forth = (potential @ q[:, end, :, None])[..., 0]
        back = (q[:, start, None, :] @ potential)[..., 0, :]
        return torch.zeros_like(q).index_add(1, start, forth).index_add(1, end, back)
