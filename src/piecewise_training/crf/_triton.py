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
from jaxtyping import Float
from torch import Tensor

from piecewise_training.crf import _triton_kernels as kernels
from piecewise_training.crf._reference import Normalized, centred
from piecewise_training.crf._triton_build import Plan, build, on_the_gpu_of, programs_for

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


def splat_blur_slice(plan: Plan, values: Float[Tensor, "b c n"], transpose: bool = False) -> Float[Tensor, "b c n"]:
    """Filters values with the lattices' Gaussians; see `_reference.splat_blur_slice`."""
    return _filtered(plan, _rows(values), values.shape, transpose)


@on_the_gpu_of(1)
def _filtered(plan: Plan, rows: Float[Tensor, "p s"], shape: torch.Size, transpose: bool) -> Float[Tensor, "b c n"]:
    lattice = _Pass(plan, shape[0], rows.shape[1]).blurred(rows, None, transpose)
    return _read([_Message(plan, lattice)], None, rows.new_empty(shape), shape)


def normalizer(plan: Plan, symmetric: bool) -> Float[Tensor, "b 1 n"]:
    """One over what the filter makes of ones, or over its root; see `_reference.normalizer`."""
    shape = torch.Size((len(plan), 1, plan.points))
    sums = _filtered(plan, plan.weights.new_ones(shape.numel(), 1), shape, transpose=False).add_(1e-20)
    return sums.rsqrt_() if symmetric else sums.reciprocal_()


@on_the_gpu_of(1)
def moments(
    plan: Plan,
    features: Float[Tensor, "b d n"],
    values: Float[Tensor, "b c n"],
    against: Float[Tensor, "b c n"],
    transpose: bool = False,
) -> Float[Tensor, "b d n"]:
    """Filters f v for each feature and contracts it with `against` over the channels; see `_reference.moments`."""
    rows, other = _rows(values), _rows(against)
    through = _Pass(plan, len(values), rows.shape[1])
    found = []
    for feature in features.expand(len(values), -1, -1).unbind(1):
        lattice = through.blurred(rows, feature.reshape(-1).contiguous(), transpose)
        found.append(_contract(_Message(plan, lattice), other, values.new_zeros(len(other)), values.shape))
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
        first = _factor(before, batch)
        last = first if after is before else _factor(after, batch)
        own.append(Term(cast(Plan, plan), first, last, mixture.detach()))
    gains = [_padded(term.mixture, classes) for term in own]
    passes = [_Pass(term.plan, batch, _width(classes), iterations) for term in own]
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
    shape = batch, classes, points = log_q.shape
    slopes = [_Slopes(term, shape, _flat(pair, batch)) for term, pair in zip(kept.terms, features, strict=True)]
    to_logits = torch.empty_like(log_q, memory_format=torch.contiguous_format)
    change = log_q.new_empty(batch * points, _width(classes))  # the gradient to the scores after an update
    _pull([], gradient.contiguous(), log_q.contiguous(), change, to_logits, logarithm=True)
    for step in reversed(kept.steps):
        messages = [own.pull(step.q, lattice, change) for own, lattice in zip(slopes, step.lattices, strict=True)]
        base: Tensor | None = None
        for two in range(0, len(messages) - 2, 2):
            base = _read(messages[two : two + 2], base, change, shape)
        _pull(messages[-2 + len(messages) % 2 :], base, step.q, change, to_logits)
    return to_logits, [own.found() for own in slopes]


class _Slopes:
    """Adds up the gradients to what makes up one term, from the last update to the first."""

    def __init__(self, term: Term, shape: tuple[int, ...], features: list[Tensor] | None) -> None:
        self._plan, self._before, self._after, mixture = term
        self._mixture = _padded(mixture, shape[1])
        self._shape, self._features = shape, features
        self._pass = _Pass(self._plan, shape[0], _width(shape[1]))
        self._products: Tensor | float = 0.0
        points = shape[0] * shape[2] if features else 0
        self._to_before, self._to_after = self._plan.weights.new_zeros(2, points)
        self._cross: list[Tensor | float] = [0.0] * len(features or ())

    def pull(self, q: Tensor, lattice: Tensor, change: Tensor) -> _Message:
        """What comes back to the marginals before an update, from the gradient to the scores after it."""
        plan = self._plan
        sent = self._pass.sums(change, self._after)
        products = torch.einsum("xva,xvb->ab", sent, lattice)
        self._products = self._products + products * plan.share
        returned = self._message(self._pass.blur(sent, True), back=True)
        if self._features is not None:
            self._learn(q, lattice, change, returned)
        return returned._replace(factor=self._before)

    def _learn(self, q: Tensor, lattice: Tensor, change: Tensor, returned: _Message) -> None:
        """What the factors and bandwidths get: sums of k_ij f_i f_j g_i v_j are taken on the vertices."""
        plan = self._plan
        _contract(returned, q, self._to_before, self._shape)
        _contract(self._message(lattice, back=False), change, self._to_after, self._shape)
        for dim, feature in enumerate(self._features or ()):
            mixed = self._mixed(self._pass.sums(change, _times(feature, self._after)), back=True)
            filtered = self._pass.blurred(q, _times(feature, self._before))
            self._cross[dim] = self._cross[dim] + (mixed * filtered).sum(dtype=torch.float64) * plan.share

    def _message(self, lattice: Tensor, back: bool) -> _Message:
        """What points read through the mixture, or through its transpose on the way back, without a factor."""
        if self._mixture.ndim == 1:
            return _Message(self._plan, lattice, None, self._mixture)
        return _Message(self._plan, self._mixed(lattice, back))

    def _mixed(self, values: Tensor, back: bool) -> Tensor:
        if self._mixture.ndim == 1:
            return values * self._mixture
        return values @ (self._mixture if back else self._mixture.T)

    def found(self) -> list[Tensor | None]:
        """The gradients to the mixture, the factors before and after, and the spread of each feature."""
        like, (batch, classes, _) = self._plan.weights, self._shape
        width = _width(classes)
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


class _Pass:
    """The way of rows to the vertices of a plan, over and over; one plan of one image serves a whole batch.

    What its launches have in common is worked out once: for one image the GPU is as fast as the CPU that launches.
    """

    def __init__(self, plan: Plan, batch: int, width: int, times: int = 1) -> None:
        self._axes, self._copies, self._size = plan.axes, batch // len(plan), len(plan.bounds) - 1
        self._groups, self._points = len(plan.groups) - 1, len(plan.simplices)
        self._sorted = plan.order, plan.groups, plan.weights
        self._around = plan.entries, plan.bounds, plan.neighbours
        self._width, self._how = width, _how(plan.order.device)
        tile = _tile(width)
        block, lanes = tile["BLOCK"], min(plan.lanes, tile["BLOCK"])
        of_groups = programs_for(self._groups * programs_for(self._axes, 3), max(1, block // 2))
        tiles = self._copies * max(of_groups, programs_for(self._size * lanes, block))
        self._kernel = kernels.spread[(min(tiles, self._how.programs),)]
        self._options = {"V": self._axes, "S": width, "LANES": lanes, **tile, **self._how.options}
        self._arrivals, self._turn = plan.order.new_zeros(times), 0

    def blurred(
        self, rows: Float[Tensor, "p s"], factor: Float[Tensor, " p"] | None, backwards: bool = False
    ) -> Float[Tensor, "x m s"]:
        """What the points, times a factor each, give to the vertices of each copy, blurred along every axis."""
        lattice, spare = self._empty(rows), self._empty(rows)
        self._run(rows, factor, lattice, spare, 0, 2 + self._axes, backwards)
        return spare if self._axes % 2 else lattice

    def sums(self, rows: Float[Tensor, "p s"], factor: Float[Tensor, " p"] | None) -> Float[Tensor, "x m s"]:
        """The same without the blur; the last vertex is none, and holds zeros."""
        lattice = self._empty(rows)
        self._run(rows, factor, lattice, lattice, 0, 2, False)
        return lattice

    def blur(self, lattice: Float[Tensor, "x m s"], backwards: bool) -> Float[Tensor, "x m s"]:
        """Sums after the blur along every axis; their memory is used."""
        spare = self._empty(lattice)
        self._run(lattice, None, lattice, spare, 2, 2 + self._axes, backwards)
        return spare if self._axes % 2 else lattice

    def _empty(self, rows: Tensor) -> Tensor:
        return rows.new_empty(self._copies, self._size, self._width)

    def _run(
        self, rows: Tensor, factor: Tensor | None, lattice: Tensor, spare: Tensor, first: int, last: int,
        backwards: bool,
    ) -> None:  # fmt: skip
        sums = rows.new_empty(self._copies * self._groups * self._axes if first < 2 else 1, self._width)
        if self._turn == len(self._arrivals):
            self._arrivals, self._turn = torch.zeros_like(self._arrivals), 0
        together = [(first, last)] if self._how.meet else [(phase, phase + 1) for phase in range(first, last)]
        for begin, end in together:
            self._kernel(
                *self._sorted, rows if factor is None else factor, rows, sums, *self._around, lattice, spare,
                self._arrivals, self._turn, self._copies, self._points, self._groups, self._size, begin, end,
                SCALED=factor is not None, BACKWARDS=backwards, **self._options,
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
    operands, flags = _operands(messages, out, width)
    tile = _tile(width)
    kernels.read[programs_for(points, tile["BLOCK"]), batch](
        *operands, out if base is None else base, out, points, channels, BASE=_layout(base), RESULT=result,
        PLANES=out.ndim == 3, S=width, **flags, **tile,
    )  # fmt: skip
    return out


def _pull(
    messages: Sequence[_Message],
    base: Tensor | None,
    marginals: Tensor,
    change: Float[Tensor, "p s"],
    total: Float[Tensor, "b k n"],
    logarithm: bool = False,
) -> None:
    """Turns a gradient to marginals into that to scores, which `change` takes and which is added to `total`.

    Args:
        messages: none, one or two, of which the gradient is made up together with the base.
        base: see `_read`; it may be `change`.
        marginals: rows.
        change: is overwritten.
        total: is overwritten where a pass begins.
        logarithm: a pass begins: `base` is the gradient to logarithms of marginals, `marginals` are these, both planes.
    """
    batch, channels, points = total.shape
    width = _width(channels)
    operands, flags = _operands(messages, change, width)
    tile = _tile(width)
    kernels.pull[programs_for(points, tile["BLOCK"]), batch](
        *operands, change if base is None else base, marginals, change, total, points, channels, BASE=_layout(base),
        LOGARITHM=logarithm, S=width, **flags, **tile,
    )  # fmt: skip


def _contract(
    message: _Message, rows: Float[Tensor, "p s"], sums: Float[Tensor, " p"], shape: tuple[int, ...]
) -> Float[Tensor, " p"]:
    """Adds the product of each point's message, without a factor, with its row to its sum."""
    (batch, channels, points), (plan, lattice, _, gain) = shape, message
    width = _width(channels)
    gain = _ones(width, rows.dtype, rows.device) if gain is None else gain
    tile = _tile(width)
    kernels.contract[programs_for(points, tile["BLOCK"]), batch](
        plan.simplices, plan.vertices, plan.weights, gain, lattice, lattice.shape[1], plan.share, rows, sums, points,
        SHARED=len(plan) == 1, V=plan.axes, S=width, **tile,
    )  # fmt: skip
    return sums


def _operands(messages: Sequence[_Message], unused: Tensor, width: int) -> tuple[list[Any], dict[str, Any]]:
    """What kernels take for up to two messages; `unused` stands where there is nothing."""
    operands: list[Any] = []
    flags: dict[str, Any] = {"TERMS": len(messages)}
    for place in range(2):
        plan, lattice, factor, gain = messages[place] if place < len(messages) else _Message(None, unused)  # type: ignore[arg-type]
        tables = (unused,) * 3 if plan is None else (plan.simplices, plan.vertices, plan.weights)
        gain = _ones(width, unused.dtype, unused.device) if gain is None else gain
        share = 1.0 if plan is None else plan.share
        operands += [*tables, unused if factor is None else factor, gain, lattice, lattice.shape[1], share]
        flags[f"V{place + 1}"] = 1 if plan is None else plan.axes
        flags[f"SCALED{place + 1}"] = factor is not None
        flags[f"SHARED{place + 1}"] = plan is not None and len(plan) == 1
    return operands, flags


def _layout(base: Tensor | None) -> str:
    """The name by which kernels know how a base lies."""
    return "none" if base is None else "planes" if base.ndim == 3 else "rows"


@cache
def _tile(width: int) -> dict[str, Any]:
    """Powers of two of channels and of points or vertices that a program works on: eight numbers in each thread."""
    columns = 1 << (width - 1).bit_length()
    return {"C": columns, "BLOCK": max(1, 1024 // columns), "num_warps": 4}


def _width(channels: int) -> int:
    """The numbers of a row: so many channels, filled up with zeros for loads of four at a time."""
    return channels if channels < 3 else -(-channels // 4) * 4


def _padded(mixture: Tensor, classes: int) -> Tensor:
    """The diagonal of a mixture, or all of it, as wide as rows are, whose further channels hold zeros."""
    width = _width(classes)
    if not mixture.ndim:
        return mixture.expand(width).contiguous()
    return torch.nn.functional.pad(mixture, [0, width - classes] * mixture.ndim).contiguous()


def _rows(values: Float[Tensor, "b c n"]) -> Float[Tensor, "p s"]:
    """Each point's channels side by side."""
    batch, channels, points = values.shape
    rows = torch.nn.functional.pad(values.detach().mT, [0, _width(channels) - channels])
    return rows.reshape(batch * points, -1).contiguous()


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
