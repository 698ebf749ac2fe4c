"""The permutohedral lattice and mean field on a GPU; `_reference` is their twin in plain torch.

Kernels are Triton's (`_triton_kernels`), on lattices that `_triton_build` makes; torch sorts, and multiplies matrices.
Instead of atomic additions, points are sorted by their simplex and sums are taken in two steps, first over groups of
points, then over the groups around each vertex: results are the same bits in every run. Nothing between the first
update and the last waits for the GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from typing import Any, Literal, NamedTuple, cast

import torch
import triton
from jaxtyping import Float
from torch import Tensor

from piecewise_training.crf import _triton_kernels as kernels
from piecewise_training.crf._reference import Normalized, centred
from piecewise_training.crf._triton_build import Plan, build, on_the_gpu_of

__all__ = ["build", "mean_field", "mean_field_gradients", "moments", "normalizer", "splat_blur_slice"]

_PROGRAMS = 8  # on each multiprocessor, of a kernel whose programs meet: of 128 threads with 64 registers each

Result = Literal["sum", "softmax", "log_softmax"]


class Step(NamedTuple):
    """An update as its gradients need it: the marginals before it, and what each term's vertices held."""

    q: Tensor
    lattices: list[Tensor]


class Term(NamedTuple):
    """What an update needs of a term: its lattices, its factors, and what each channel's message is multiplied by."""

    plan: Plan
    before: Tensor | None
    after: Tensor | None
    mixture: Tensor


class Kept(NamedTuple):
    """What the gradients of mean field need: the terms and each update."""

    terms: list[Term]
    steps: list[Step]


@on_the_gpu_of(1)
def splat_blur_slice(plan: Plan, values: Float[Tensor, "b c n"], transpose: bool = False) -> Float[Tensor, "b c n"]:
    """Filters values with the lattices' Gaussians; see `_reference.splat_blur_slice`."""
    lattice = _Pass(plan, len(values)).blurred(_rows(values), None, transpose)
    return _read([_Message(plan, lattice)], None, values.new_empty(values.shape), values.shape)


def normalizer(plan: Plan, symmetric: bool) -> Float[Tensor, "b 1 n"]:
    """One over what the filter makes of ones, or over its root; see `_reference.normalizer`."""
    sums = splat_blur_slice(plan, plan.weights.new_ones(len(plan), 1, plan.points)) + 1e-20
    return sums.rsqrt() if symmetric else sums.reciprocal()


@on_the_gpu_of(1)
def moments(
    plan: Plan,
    features: Float[Tensor, "b d n"],
    values: Float[Tensor, "b c n"],
    against: Float[Tensor, "b c n"],
    transpose: bool = False,
) -> Float[Tensor, "b d n"]:
    """Filters f v for each feature and contracts it with `against` over the channels; see `_reference.moments`."""
    rows, through = _rows(values), _Pass(plan, len(values))
    found = []
    for feature in features.expand(len(values), -1, -1).unbind(1):
        lattice = through.blurred(rows, feature.reshape(-1).contiguous(), transpose)
        filtered = _read([_Message(plan, lattice)], None, values.new_empty(values.shape), values.shape)
        found.append((filtered * against).sum(1))
    return torch.stack(found, 1)


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
    own = [
        Term(cast(Plan, lattices), _factor(before, batch), _factor(after, batch), mixture.detach())
        for (lattices, before, after), mixture in zip(terms, mixtures, strict=True)
    ]
    gains = [_padded(term.mixture.expand(classes) if term.mixture.ndim < 2 else term.mixture) for term in own]
    passes = [_Pass(term.plan, batch, iterations) for term in own]
    kept = Kept(own, [])
    result: Result = "log_softmax" if logarithm else "softmax"
    if not iterations:
        return _read([], logits, torch.empty_like(logits), shape, result), kept
    q = _read([], logits, logits.new_empty(batch * points, _width(classes)), shape, "softmax")
    for iteration in range(iterations):
        lattices = [through.blurred(q, term.before) for through, term in zip(passes, own, strict=True)]
        messages = [
            _Message(term.plan, lattice, term.after, gain) if gain.ndim == 1
            else _Message(term.plan, lattice @ gain.T, term.after)
            for term, lattice, gain in zip(own, lattices, gains, strict=True)
        ]  # fmt: skip
        if keep:
            kept.steps.append(Step(q, lattices))
            q = torch.empty_like(q)
        base = logits
        for two in range(0, len(messages) - 2, 2):
            base = _read(messages[two : two + 2], base, q, shape)
        rest = messages[-2 + len(messages) % 2 :]
        if iteration < iterations - 1:
            _read(rest, base, q, shape, "softmax")
        else:
            found = _read(rest, base, torch.empty_like(logits), shape, result)
    return found, kept


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
    slopes = [
        _Slopes(term, log_q.shape, _flat(pair, len(log_q))) for term, pair in zip(kept.terms, features, strict=True)
    ]
    q, change = _rows(log_q.exp()), _rows(gradient)
    to_logits = torch.zeros_like(change)
    for step in reversed(kept.steps):
        change = change - q * change.sum(1, keepdim=True)
        to_logits += change
        to_q = torch.zeros_like(change)
        for own, lattice in zip(slopes, step.lattices, strict=True):
            to_q += own.pull(step.q, lattice, change)
        q, change = step.q, step.q * to_q
    to_logits += change - q * change.sum(1, keepdim=True)
    return _planes(to_logits, log_q.shape), [own.found() for own in slopes]


class _Slopes:
    """Adds up the gradients to what makes up one term, from the last update to the first."""

    def __init__(self, term: Term, shape: tuple[int, ...], features: list[Tensor] | None) -> None:
        self._plan, self._before, self._after, mixture = term
        self._mixture = _padded(mixture) if mixture.ndim else mixture
        self._shape, self._features = shape, features
        self._pass = _Pass(self._plan, shape[0])
        self._products: Tensor | float = 0.0
        self._to_before: Tensor | float = 0.0
        self._to_after: Tensor | float = 0.0
        self._cross: list[Tensor | float] = [0.0] * len(features or ())

    def pull(self, q: Tensor, lattice: Tensor, change: Tensor) -> Tensor:
        """The gradient to the marginals before an update, from that to the scores after it."""
        plan = self._plan
        sent = self._pass.sums(change, self._after)
        products = torch.einsum("xva,xvb->ab", sent, lattice)
        self._products = self._products + products * plan.share
        back = self._mixed(self._received(self._pass.blur(sent, True), q))
        if self._features is not None:
            self._learn(q, lattice, change, back)
        return back if self._before is None else back * self._before[:, None]

    def _learn(self, q: Tensor, lattice: Tensor, change: Tensor, back: Tensor) -> None:
        """What the factors and bandwidths get: sums of k_ij f_i f_j g_i v_j are taken on the vertices."""
        plan = self._plan
        self._to_before = self._to_before + (back * q).sum(1)
        self._to_after = self._to_after + (self._mixed(change) * self._received(lattice, q)).sum(1)
        for dim, feature in enumerate(self._features or ()):
            mixed = self._mixed(self._pass.sums(change, _times(feature, self._after)))
            filtered = self._pass.blurred(q, _times(feature, self._before))
            self._cross[dim] = self._cross[dim] + (mixed * filtered).sum(dtype=torch.float64) * plan.share

    def _received(self, lattice: Tensor, like: Tensor) -> Tensor:
        return _read([_Message(self._plan, lattice)], None, torch.empty_like(like), self._shape)

    def _mixed(self, values: Tensor) -> Tensor:
        return values @ self._mixture if self._mixture.ndim == 2 else values * self._mixture

    def found(self) -> list[Tensor | None]:
        """The gradients to the mixture, the factors before and after, and the spread of each feature."""
        like, (batch, classes, _) = self._plan.weights, self._shape
        width = _width(classes)
        products = torch.as_tensor(self._products, device=like.device).expand(width, width)[:classes, :classes]
        if self._features is None:
            return [products, None, None, None]
        to_before, to_after = (
            torch.as_tensor(slope, device=like.device).expand(self._features[0].shape)
            for slope in (self._to_before, self._to_after)
        )
        both = _times(to_before, self._before) + _times(to_after, self._after)
        spread = [
            (f.double().square() * both).sum() - 2 * cross for f, cross in zip(self._features, self._cross, strict=True)
        ]
        shape = (batch, 1, -1)
        return [products, to_before.reshape(shape), to_after.reshape(shape), torch.stack(spread)]


class _Pass:
    """The way of rows to the vertices of a plan, over and over; one plan of one image serves a whole batch."""

    def __init__(self, plan: Plan, batch: int, times: int = 1) -> None:
        self._plan, self._copies = plan, batch // len(plan)
        self._arrivals, self._turn = torch.zeros(times, dtype=torch.int32, device=plan.order.device), 0

    def blurred(
        self, rows: Float[Tensor, "p s"], factor: Float[Tensor, " p"] | None, backwards: bool = False
    ) -> Float[Tensor, "x m s"]:
        """What the points, times a factor each, give to the vertices of each copy, blurred along every axis."""
        lattice = self._empty(rows)
        spare = torch.empty_like(lattice)
        self._run(rows, factor, lattice, spare, 0, 2 + self._plan.axes, backwards)
        return spare if self._plan.axes % 2 else lattice

    def sums(self, rows: Float[Tensor, "p s"], factor: Float[Tensor, " p"] | None) -> Float[Tensor, "x m s"]:
        """The same without the blur; the last vertex is none, and holds zeros."""
        lattice = self._empty(rows)
        self._run(rows, factor, lattice, lattice, 0, 2, False)
        return lattice

    def blur(self, lattice: Float[Tensor, "x m s"], backwards: bool) -> Float[Tensor, "x m s"]:
        """Sums after the blur along every axis; their memory is used."""
        spare = torch.empty_like(lattice)
        self._run(lattice, None, lattice, spare, 2, 2 + self._plan.axes, backwards)
        return spare if self._plan.axes % 2 else lattice

    def _empty(self, rows: Tensor) -> Tensor:
        return rows.new_empty(self._copies, len(self._plan.bounds) - 1, rows.shape[1])

    def _run(
        self, rows: Tensor, factor: Tensor | None, lattice: Tensor, spare: Tensor, first: int, last: int,
        backwards: bool,
    ) -> None:  # fmt: skip
        plan, width = self._plan, lattice.shape[2]
        groups, size = len(plan.groups) - 1, lattice.shape[1]
        sums = rows.new_empty(self._copies * groups * plan.axes if first < 2 else 1, width)
        tile = _tile(width)
        lanes = min(plan.lanes, tile["BLOCK"])
        tiles = self._copies * triton.cdiv(max(groups * triton.cdiv(plan.axes, 3), size * lanes), tile["BLOCK"])
        if self._turn == len(self._arrivals):
            self._arrivals, self._turn = torch.zeros_like(self._arrivals), 0
        how = _how(rows.device)
        for begin, end in [(first, last)] if how.meet else [(phase, phase + 1) for phase in range(first, last)]:
            kernels.spread[(min(tiles, how.programs),)](
                plan.order, plan.groups, plan.weights, rows if factor is None else factor, rows, sums, plan.entries,
                plan.bounds, plan.neighbours, lattice, spare, self._arrivals, self._turn, self._copies,
                len(plan.simplices), groups, size, begin, end, SCALED=factor is not None, BACKWARDS=backwards,
                V=plan.axes, S=width, LANES=lanes, **tile, **how.options,
            )  # fmt: skip
        self._turn += 1


class _How(NamedTuple):
    """How a kernel in phases is launched: with so many programs, all phases at once or one by one."""

    programs: int
    meet: bool
    options: dict[str, Any]


@cache
def _how(device: torch.device) -> _How:
    """Programs can only wait for each other where they are sure to run at the same time: in a cooperative launch."""
    if device.type == "cpu":
        return _How(1, True, {})
    count = _PROGRAMS * torch.cuda.get_device_properties(device).multi_processor_count
    if torch.version.cuda is None or not _cooperates():
        return _How(count, False, {})
    return _How(count, True, {"launch_cooperative_grid": True, "maxnreg": 64})


def _cooperates() -> bool:
    """Whether this Triton can launch all programs of a kernel at the same time."""
    from triton.backends.nvidia.compiler import CUDAOptions

    return "launch_cooperative_grid" in {field.name for field in fields(CUDAOptions)}


class _Message(NamedTuple):
    """What points are to read: from these vertices, times a factor each and a gain of each channel."""

    plan: Plan
    lattice: Float[Tensor, "x m s"]
    factor: Float[Tensor, " p"] | None = None
    gain: Float[Tensor, " s"] | None = None


def _read(
    messages: Sequence[_Message],
    base: Tensor | None,
    out: Tensor,
    shape: tuple[int, ...],
    result: Result = "sum",
) -> Tensor:
    """The sum of a base and of up to two messages, or its softmax; base and `out` are planes (B, K, N) or rows.

    Args:
        messages: none, one or two.
        base: None is 0.
        out: what is written, and given back.
        shape: images, channels, and points of an image.
        result: what is made of the sum.
    """
    batch, channels, points = shape
    width = _width(channels)
    terms: list[Any] = []
    flags: dict[str, Any] = {}
    for place in range(2):
        plan, lattice, factor, gain = messages[place] if place < len(messages) else _Message(None, out)  # type: ignore[arg-type]
        tables = (out, out, out) if plan is None else (plan.simplices, plan.vertices, plan.weights)
        gain = _ones(width, out.dtype, out.device) if gain is None else gain
        share = 1.0 if plan is None else plan.share
        terms += [*tables, out if factor is None else factor, gain, lattice, lattice.shape[1], share]
        flags[f"V{place + 1}"] = 1 if plan is None else plan.axes
        flags[f"SCALED{place + 1}"] = factor is not None
        flags[f"SHARED{place + 1}"] = plan is not None and len(plan) == 1
    tile = _tile(width)
    kernels.read[triton.cdiv(points, tile["BLOCK"]), batch](
        *terms, out if base is None else base, out, points, channels, TERMS=len(messages),
        BASE="none" if base is None else "planes" if base.ndim == 3 else "rows", RESULT=result, PLANES=out.ndim == 3,
        S=width, **flags, **tile,
    )  # fmt: skip
    return out


def _tile(width: int) -> dict[str, Any]:
    """Powers of two of channels and of points or vertices that a program works on: eight numbers in each thread."""
    columns = triton.next_power_of_2(width)
    return {"C": columns, "BLOCK": max(1, 1024 // columns), "num_warps": 4}


def _width(channels: int) -> int:
    """The numbers of a row: so many channels, filled up with zeros for loads of four at a time."""
    return channels if channels < 3 else -(-channels // 4) * 4


def _padded(mixture: Tensor) -> Tensor:
    """The diagonal of a mixture, or all of it, as wide as rows are."""
    missing = _width(mixture.shape[-1]) - mixture.shape[-1]
    return torch.nn.functional.pad(mixture, [0, missing] * mixture.ndim).contiguous()


def _rows(values: Float[Tensor, "b c n"]) -> Float[Tensor, "p s"]:
    """Each point's channels side by side."""
    batch, channels, points = values.shape
    rows = values.new_zeros(batch, points, _width(channels))
    rows[..., :channels] = values.detach().mT
    return rows.reshape(batch * points, -1)


def _planes(rows: Float[Tensor, "p s"], shape: tuple[int, ...]) -> Float[Tensor, "b c n"]:
    """The channels of rows as a batch has them."""
    batch, channels, points = shape
    return rows.reshape(batch, points, -1)[..., :channels].mT.contiguous()


def _factor(factor: Tensor | None, batch: int) -> Float[Tensor, " p"] | None:
    """A factor for each point of a batch."""
    return None if factor is None else factor.detach().expand(batch, -1, -1).reshape(-1).contiguous()


def _times(values: Tensor, factor: Tensor | None) -> Tensor:
    return values if factor is None else values * factor


def _flat(pair: tuple[Tensor, Tensor] | None, batch: int) -> list[Tensor] | None:
    """Each feature of all points of a batch in bandwidths, from their mean."""
    if pair is None:
        return None
    return [feature.reshape(-1) for feature in centred(*pair).expand(batch, -1, -1).unbind(1)]


@cache
def _ones(count: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, " c"]:
    return torch.ones(count, dtype=dtype, device=device)
