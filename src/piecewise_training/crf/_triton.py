"""The permutohedral lattice and mean field on a GPU; `_reference` is their twin in plain torch.

Kernels are Triton's (`_triton_kernels`), on lattices that `_triton_build` makes; torch sorts, and multiplies matrices.
Instead of atomic additions, points are sorted by their simplex and sums are taken in two steps, first over groups of
points, then over the groups around each vertex: results are the same bits in every run. Nothing between the first
update and the last waits for the GPU. For so few points that it would wait for the CPU all updates are one launch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from piecewise_training.crf._reference import Normalized, through_normalizer
from piecewise_training.crf._triton_backward import Kept, Step, mean_field_gradients
from piecewise_training.crf._triton_build import Plan, build, on_the_gpu_of
from piecewise_training.crf._triton_pass import (
    Message,
    Pass,
    Result,
    Term,
    all_updates,
    as_rows,
    contract,
    how_to_launch,
    of_each_point,
    padded,
    read,
    row_width,
)

__all__ = [
    "build",
    "mean_field",
    "mean_field_gradients",
    "moments",
    "normalizer",
    "normalizer_gradients",
    "splat_blur_slice",
]

_ONE_LAUNCH = 1 << 18  # points; with more the GPU does not wait for launches, and is faster with a kernel for each step


def splat_blur_slice(plan: Plan, values: Float[Tensor, "b c n"], transpose: bool = False) -> Float[Tensor, "b c n"]:
    """Filters values with the lattices' Gaussians; see `_reference.splat_blur_slice`."""
    return _filtered(plan, as_rows(values), values.shape, transpose, "sum")


@on_the_gpu_of(1)
def _filtered(
    plan: Plan, rows: Float[Tensor, "p s"], shape: torch.Size, transpose: bool, result: Result
) -> Float[Tensor, "b c n"]:
    lattice = Pass(plan, shape[0], rows.shape[1]).blurred(rows, None, transpose)
    return read([Message(plan, lattice)], None, rows.new_empty(shape), shape, result)


def normalizer(plan: Plan, symmetric: bool) -> Float[Tensor, "b 1 n"]:
    """One over what the filter makes of ones, or over its root; see `_reference.normalizer`."""
    shape = torch.Size((len(plan), 1, plan.points))
    ones = plan.weights.new_ones(shape.numel(), 1)
    return _filtered(plan, ones, shape, False, "inverse_root" if symmetric else "inverse")


def normalizer_gradients(
    plan: Plan,
    features: Float[Tensor, "b d n"],
    bandwidths: Float[Tensor, " d"],
    scale: Float[Tensor, "b 1 n"],
    gradient: Float[Tensor, "b 1 n"],
    symmetric: bool,
    to_features: bool,
) -> tuple[Float[Tensor, "b d n"] | None, Float[Tensor, " d"]]:
    """From the gradient to a `scale` those to features and bandwidths; see `_reference.normalizer_gradients`."""
    filtered = partial(splat_blur_slice, plan)
    return through_normalizer(filtered, features, bandwidths, scale, gradient, symmetric, to_features)


@on_the_gpu_of(1)
def moments(
    plan: Plan,
    features: Float[Tensor, "b d n"],
    values: Float[Tensor, "b c n"],
    against: Float[Tensor, "b c n"],
    transpose: bool = False,
) -> Float[Tensor, "b d n"]:
    """Filters f v for each feature and contracts it with `against` over the channels; see `_reference.moments`."""
    rows, other = as_rows(values), as_rows(against)
    through = Pass(plan, len(values), rows.shape[1])
    found = []
    for feature in features.expand(len(values), -1, -1).unbind(1):
        lattice = through.blurred(rows, feature.reshape(-1).contiguous(), transpose)
        found.append(contract(Message(plan, lattice), other, values.new_zeros(len(other)), values.shape))
    return torch.stack(found).reshape(-1, len(values), plan.points).transpose(0, 1)


@on_the_gpu_of(2)
def mean_field(
    terms: Sequence[Normalized],
    mixtures: Sequence[Tensor],
    logits: Float[Tensor, "b k n"],
    iterations: int,
    grid: tuple[int, int],
    logarithm: bool = True,
    keep: bool = False,
) -> tuple[Float[Tensor, "b k n"], Kept]:
    """Mean field, and where it is to be kept what the gradients need; see `_reference.mean_field`."""
    del grid
    shape = batch, classes, points = logits.shape
    logits = logits.detach().contiguous()
    own = []
    for (plan, before, after), mixture in zip(terms, mixtures, strict=True):
        first = of_each_point(before, batch)
        last = first if after is before else of_each_point(after, batch)
        own.append(Term(cast(Plan, plan), first, last, mixture.detach()))
    kept = Kept(own, [])
    result: Result = "log_softmax" if logarithm else "softmax"
    if not iterations:
        return read([], logits, torch.empty_like(logits), shape, result), kept
    gains = [padded(term.mixture, classes) for term in own]
    q = read([], logits, logits.new_empty(batch * points, row_width(classes)), shape, "softmax")
    gained = [term._replace(mixture=gain) for term, gain in zip(own, gains, strict=True)]
    small = 0 < len(own) < 3 and batch * points <= _ONE_LAUNCH and all(gain.ndim == 1 for gain in gains)
    if small and not keep and how_to_launch(q.device).meet:
        return read(all_updates(gained, logits, q, iterations), logits, torch.empty_like(logits), shape, result), kept
    passes = [Pass(term.plan, batch, row_width(classes), iterations) for term in own]
    for iteration in range(iterations):
        lattices = [through.blurred(q, term.before) for through, term in zip(passes, own, strict=True)]
        messages = [
            Message(term.plan, lattice, term.after, gain) if gain.ndim == 1
            else Message(term.plan, lattice @ gain.T, term.after)
            for term, lattice, gain in zip(own, lattices, gains, strict=True)
        ]  # fmt: skip
        if keep:
            kept.steps.append(Step(q, lattices))
            q = torch.empty_like(q)
        base = logits
        for two in range(0, len(messages) - 2, 2):
            base = read(messages[two : two + 2], base, q, shape)
        rest = messages[-2 + len(messages) % 2 :]
        if iteration < iterations - 1:
            read(rest, base, q, shape, "softmax")
        else:
            found = read(rest, base, torch.empty_like(logits), shape, result)
    return found, kept
