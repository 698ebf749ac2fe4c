"""The gradients of mean field on a GPU, update by update from the last one to the first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from piecewise_training.crf import _triton_kernels as kernels
from piecewise_training.crf._reference import centred
from piecewise_training.crf._triton_build import on_the_gpu_of, programs_for
from piecewise_training.crf._triton_pass import (
    Message,
    Pass,
    Term,
    contract,
    layout_of,
    operands_of,
    padded,
    read,
    row_width,
    tile_of,
)


class Step(NamedTuple):
    """An update as its gradients need it: the marginals before it, and what each term's vertices held."""

    q: Tensor
    lattices: list[Tensor]


class Kept(NamedTuple):
    """What the gradients of mean field need: the terms and each update."""

    terms: list[Term]
    steps: list[Step]


@on_the_gpu_of(1)
def mean_field_gradients(
    kept: Kept,
    log_q: Float[Tensor, "b k n"],
    gradient: Float[Tensor, "b k n"],
    features: Sequence[tuple[Float[Tensor, "b d n"], Float[Tensor, " d"]] | None],
) -> tuple[Tensor, list[list[Tensor | None]]]:
    """The gradients to the logits and to each term's mixture, factors before and after, and bandwidths.

    Args:
        kept: what `mean_field` has kept.
        log_q: what it gave.
        gradient: that to log_q.
        features: each term's, for each image or for all, and its bandwidths, where these are learned.
    """
    shape = batch, classes, points = log_q.shape
    slopes = [_Slopes(term, shape, _flat(pair, batch)) for term, pair in zip(kept.terms, features, strict=True)]
    to_logits = torch.empty_like(log_q, memory_format=torch.contiguous_format)
    change = log_q.new_empty(batch * points, row_width(classes))  # the gradient to the scores after an update
    _pull([], gradient.contiguous(), log_q.contiguous(), change, to_logits, logarithm=True)
    for step in reversed(kept.steps):
        messages = [own.pull(step.q, lattice, change) for own, lattice in zip(slopes, step.lattices, strict=True)]
        base: Tensor | None = None
        for two in range(0, len(messages) - 2, 2):
            base = read(messages[two : two + 2], base, change, shape)
        _pull(messages[-2 + len(messages) % 2 :], base, step.q, change, to_logits)
    return to_logits, [own.found() for own in slopes]


class _Slopes:
    """Adds up the gradients to what makes up one term, from the last update to the first."""

    def __init__(self, term: Term, shape: tuple[int, ...], features: list[Tensor] | None) -> None:
        self._plan, self._before, self._after, mixture = term
        self._mixture = padded(mixture, shape[1])
        self._shape, self._features = shape, features
        self._pass = Pass(self._plan, shape[0], row_width(shape[1]))
        self._products: Tensor | float = 0.0
        points = shape[0] * shape[2] if features else 0
        self._to_before, self._to_after = self._plan.weights.new_zeros(2, points)
        self._cross: list[Tensor | float] = [0.0] * len(features or ())

    def pull(self, q: Tensor, lattice: Tensor, change: Tensor) -> Message:
        """What comes back to the marginals before an update, from the gradient to the scores after it."""
        plan = self._plan
        sent = self._pass.sums(change, self._after)
        products = torch.einsum("xva,xvb->ab", sent, lattice)
        self._products = self._products + products * plan.share
        returned = self._message(self._pass.blur(sent, True), back=True)
        if self._features is not None:
            self._learn(q, lattice, change, returned)
        return returned._replace(factor=self._before)

    def _learn(self, q: Tensor, lattice: Tensor, change: Tensor, returned: Message) -> None:
        """What the factors and bandwidths get: sums of k_ij f_i f_j g_i v_j are taken on the vertices."""
        plan = self._plan
        contract(returned, q, self._to_before, self._shape)
        contract(self._message(lattice, back=False), change, self._to_after, self._shape)
        for dim, feature in enumerate(self._features or ()):
            mixed = self._mixed(self._pass.sums(change, _times(feature, self._after)), back=True)
            filtered = self._pass.blurred(q, _times(feature, self._before))
            self._cross[dim] = self._cross[dim] + (mixed * filtered).sum(dtype=torch.float64) * plan.share

    def _message(self, lattice: Tensor, back: bool) -> Message:
        """What points read through the mixture, or through its transpose on the way back, without a factor."""
        if self._mixture.ndim == 1:
            return Message(self._plan, lattice, None, self._mixture)
        return Message(self._plan, self._mixed(lattice, back))

    def _mixed(self, values: Tensor, back: bool) -> Tensor:
        if self._mixture.ndim == 1:
            return values * self._mixture
        return values @ (self._mixture if back else self._mixture.T)

    def found(self) -> list[Tensor | None]:
        """The gradients to the mixture, the factors before and after, and the spread of each feature."""
        like, (batch, classes, _) = self._plan.weights, self._shape
        width = row_width(classes)
        products = torch.as_tensor(self._products, device=like.device).expand(width, width)[:classes, :classes]
        if self._features is None:
            return [products, None, None, None]
        both = _times(self._to_before, self._before) + _times(self._to_after, self._after)
        spread = [
            (f.double().square() * both).sum() - 2 * torch.as_tensor(cross, device=like.device)
            for f, cross in zip(self._features, self._cross, strict=True)
        ]
        factors = (slope.reshape(batch, 1, -1) for slope in (self._to_before, self._to_after))
        return [products, *factors, torch.stack(spread)]


def _pull(
    messages: Sequence[Message],
    base: Tensor | None,
    marginals: Tensor,
    change: Float[Tensor, "p s"],
    total: Float[Tensor, "b k n"],
    logarithm: bool = False,
) -> None:
    """Turns a gradient to marginals into that to scores, which `change` takes and which is added to `total`.

    Args:
        messages: none, one or two, of which the gradient is made up together with the base.
        base: see `read`; it may be `change`.
        marginals: rows.
        change: is overwritten.
        total: is overwritten where a pass begins.
        logarithm: a pass begins: `base` is the gradient to logarithms of marginals, `marginals` are these, both planes.
    """
    batch, channels, points = total.shape
    width = row_width(channels)
    operands, flags = operands_of(messages, change, width)
    tile = tile_of(width)
    kernels.pull[programs_for(points, tile["BLOCK"]), batch](
        *operands, change if base is None else base, marginals, change, total, points, channels, BASE=layout_of(base),
        LOGARITHM=logarithm, S=width, **flags, **tile,
    )  # fmt: skip


def _times(values: Tensor, factor: Tensor | None) -> Tensor:
    return values if factor is None else values * factor


def _flat(pair: tuple[Tensor, Tensor] | None, batch: int) -> list[Tensor] | None:
    """Each feature of all points of a batch in bandwidths, from their mean."""
    if pair is None:
        return None
    return [feature.reshape(-1) for feature in centred(*pair).expand(batch, -1, -1).unbind(1)]
