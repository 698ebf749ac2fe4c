"""The permutohedral lattice and mean field on a GPU; `_reference` is their twin in plain torch.

Kernels are Triton's (`_triton_kernels`); torch sorts, and multiplies matrices. Instead of atomic additions, points are
sorted by their simplex and sums are taken in two steps, first over groups of points, then over the groups around each
vertex: results are the same bits in every run. Nothing between the first update and the last waits for the GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
import triton
from jaxtyping import Float, Int
from torch import Tensor

from piecewise_training.crf import _triton_kernels as kernels
from piecewise_training.crf._reference import Normalized, Tables, centred, elevation

_POINTS = 32  # of a group: more leave lanes idle in small simplices, fewer make more sums to be gathered
_ENTRIES = 16  # sums that a vertex gathers at a time
_NUMBERS = 1024  # of a tile of points or vertices and channels: with more the registers of sm_90 run out

_P = ParamSpec("_P")
_R = TypeVar("_R")


class Plan(NamedTuple):
    """A batch's lattices as one, or one that serves each of so many copies of its points, ready to be summed over.

    Attributes:
        simplices: (n,) of each point.
        vertices: (s, v) of each simplex.
        weights: (n, v) of each point.
        neighbours: (v, 2, m) of each vertex, m for none.
        order: (n,) the points sorted by simplex.
        groups: (g + 1,) where each group of points begins in this order.
        entries: (g v,) the sums of groups sorted by vertex.
        bounds: (m + 2,) where each vertex's entries begin.
        copies: of the points.
    """

    simplices: Int[Tensor, " n"]
    vertices: Int[Tensor, "s v"]
    weights: Float[Tensor, "n v"]
    neighbours: Int[Tensor, "v 2 m"]
    order: Int[Tensor, " n"]
    groups: Int[Tensor, " g"]
    entries: Int[Tensor, " e"]
    bounds: Int[Tensor, " b"]
    copies: int


class Step(NamedTuple):
    """An update as its gradients need it: the marginals before it, and what each term's vertices held."""

    q: Tensor
    lattices: list[Tensor]


class Kept(NamedTuple):
    """What the gradients of mean field need: for each term its plan, mixture and factors, and each update."""

    plans: list[Plan]
    mixtures: list[Tensor]
    factors: list[tuple[Tensor | None, Tensor | None]]
    steps: list[Step]


def _on_the_gpu_of(argument: int) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Makes a tensor's GPU the current one for a call: Triton launches kernels there, wherever their tensors are."""

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        @wraps(function)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            with torch.cuda.device_of(args[argument]):  # type: ignore[no-untyped-call]
                return function(*args, **kwargs)

        return call

    return decorate


@_on_the_gpu_of(0)
def build(features: Float[Tensor, "b d n"], bandwidths: Float[Tensor, " d"]) -> list[Tables]:
    """Finds each point's simplex in the lattice and each vertex's neighbours; see `_reference.build`.

    Simplices and vertices are told apart by names of 64 bits. That two of a million share one has a probability below
    one in ten million.
    """
    batch, d, points = features.shape
    rise = (elevation(d).to(features) / bandwidths[:, None]).contiguous()
    multipliers = _multipliers(2 * d, features.device)
    weights = features.new_empty(batch, points, d + 1)
    corners = torch.empty(batch, points, d + 1, dtype=torch.int64, device=features.device)
    names = torch.empty(batch, points, dtype=torch.int64, device=features.device)
    axes = triton.next_power_of_2(d + 1)
    block = max(1, min(64, 1024 // axes**2))
    kernels.place[triton.cdiv(points, block), batch](
        features.contiguous(), rise, multipliers, weights, corners, names, points, D=d, P=axes, BLOCK=block
    )
    ordered, order = names.sort(dim=1, stable=True)
    numbers = torch.cat([names.new_zeros(batch, 1), (ordered[:, 1:] != ordered[:, :-1]).cumsum(1)], 1)
    simplices = torch.empty_like(numbers).scatter_(1, order, numbers).int()
    counts = (numbers[:, -1] + 1).tolist()
    tables = []
    for image, count in enumerate(counts):
        first = order[image, torch.searchsorted(numbers[image], torch.arange(count, device=features.device))]
        known, vertices = torch.unique(corners[image, first], return_inverse=True)
        tables.append((simplices[image], vertices.int(), weights[image], _neighbours(known, multipliers[:d])))
    return tables


@_on_the_gpu_of(1)
def splat_blur_slice(
    lattices: Sequence[Tables], values: Float[Tensor, "b c n"], transpose: bool = False
) -> Float[Tensor, "b c n"]:
    """Filters values with the lattices' Gaussians; see `_reference.splat_blur_slice`."""
    plan = _plan(lattices, len(values))
    lattice = _blurred(plan, _spread(plan, _rows(values), None), transpose)
    return _values(_read(plan, lattice, None), len(values))


def normalizer(lattices: Sequence[Tables], symmetric: bool) -> Float[Tensor, "b 1 n"]:
    """One over what the filter makes of ones, or over its root; see `_reference.normalizer`."""
    ones = torch.stack([torch.ones_like(weights[None, :, 0]) for _, _, weights, _ in lattices])
    sums = splat_blur_slice(lattices, ones) + 1e-20
    return sums.rsqrt() if symmetric else sums.reciprocal()


@_on_the_gpu_of(1)
def moments(
    lattices: Sequence[Tables],
    features: Float[Tensor, "b d n"],
    values: Float[Tensor, "b c n"],
    against: Float[Tensor, "b c n"],
    transpose: bool = False,
) -> Float[Tensor, "b d n"]:
    """Filters f v for each feature and contracts it with `against` over the channels; see `_reference.moments`."""
    plan = _plan(lattices, len(values))
    rows, others = _rows(values), _rows(against)
    found = []
    for feature in features.expand(len(values), -1, -1).unbind(1):
        lattice = _blurred(plan, _spread(plan, rows, feature.reshape(-1).contiguous()), transpose)
        found.append((_read(plan, lattice, None) * others).sum(1).reshape(feature.shape))
    return torch.stack(found, 1)


@_on_the_gpu_of(2)
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
    batch = len(logits)
    plans = [_plan(term.lattices, batch) for term in terms]
    factors = [(_factor(term.before, batch), _factor(term.after, batch)) for term in terms]
    gains = [_gain(mixture, logits) for mixture in mixtures]
    kept = Kept(plans, list(mixtures), factors, [])
    scores = _rows(logits)
    q = scores.log_softmax(1) if logarithm and not iterations else scores.softmax(1)
    for iteration in range(iterations):
        total, found, lattices = scores, torch.empty_like(scores), []
        for place, (plan, (before, after), gain) in enumerate(zip(plans, factors, gains, strict=True)):
            lattice = _blurred(plan, _spread(plan, q, before), False)
            result = 0 if place < len(plans) - 1 else 2 if logarithm and iteration == iterations - 1 else 1
            total = _updated(plan, lattice, after, gain, total, result, found)
            lattices.append(lattice)
        if keep:
            kept.steps.append(Step(q, lattices))
        q = total
    return _values(q, batch), kept


@_on_the_gpu_of(1)
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
    batch, classes, _ = log_q.shape
    slopes = [
        _Slopes(plan, mixture, *own, _flat(pair, batch))
        for plan, mixture, own, pair in zip(kept.plans, kept.mixtures, kept.factors, features, strict=True)
    ]
    q, change = _rows(log_q).exp(), _rows(gradient)
    to_logits = torch.zeros_like(change)
    for step in reversed(kept.steps):
        change = change - q * change.sum(1, keepdim=True)
        to_logits += change
        to_q = torch.zeros_like(change)
        for own, lattice in zip(slopes, step.lattices, strict=True):
            to_q += own.pull(step.q, lattice, change)
        q, change = step.q, step.q * to_q
    to_logits += change - q * change.sum(1, keepdim=True)
    return _values(to_logits, batch), [own.found(batch, classes) for own in slopes]


class _Slopes:
    """Adds up the gradients to what makes up one term, from the last update to the first."""

    def __init__(
        self, plan: Plan, mixture: Tensor, before: Tensor | None, after: Tensor | None, features: list[Tensor] | None
    ) -> None:
        self._plan, self._mixture = plan, mixture
        self._before, self._after, self._features = before, after, features
        self._products: Tensor | float = 0.0
        self._to_before: Tensor | float = 0.0
        self._to_after: Tensor | float = 0.0
        self._cross: list[Tensor | float] = [0.0] * len(features or ())

    def pull(self, q: Tensor, lattice: Tensor, change: Tensor) -> Tensor:
        """The gradient to the marginals before an update, from that to the scores after it."""
        plan = self._plan
        sent = _spread(plan, change, self._after)
        products = torch.einsum("xva,xvb->ab", sent, lattice)
        self._products = self._products + products * _share(plan)
        back = self._mixed(_read(plan, _blurred(plan, sent, True), None))
        if self._features is not None:
            self._learn(q, lattice, change, back)
        return back if self._before is None else back * self._before[:, None]

    def _learn(self, q: Tensor, lattice: Tensor, change: Tensor, back: Tensor) -> None:
        """What the factors and bandwidths get: sums of k_ij f_i f_j g_i v_j are taken on the vertices."""
        plan = self._plan
        self._to_before = self._to_before + (back * q).sum(1)
        self._to_after = self._to_after + (self._mixed(change) * _read(plan, lattice, None)).sum(1)
        for dim, feature in enumerate(self._features or ()):
            received = self._mixed(_spread(plan, change, _times(feature, self._after)))
            filtered = _blurred(plan, _spread(plan, q, _times(feature, self._before)), False)
            self._cross[dim] = self._cross[dim] + (received * filtered).sum(dtype=torch.float64) * _share(plan)

    def _mixed(self, values: Tensor) -> Tensor:
        return values @ self._mixture if self._mixture.ndim == 2 else values * self._mixture

    def found(self, batch: int, classes: int) -> list[Tensor | None]:
        """The gradients to the mixture, the factors before and after, and the spread of each feature."""
        like = self._plan.weights
        products = torch.as_tensor(self._products, device=like.device).expand(classes, classes)
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


def _times(values: Tensor, factor: Tensor | None) -> Tensor:
    return values if factor is None else values * factor


def _flat(pair: tuple[Tensor, Tensor] | None, batch: int) -> list[Tensor] | None:
    """Each feature of all points of a batch in bandwidths, from their mean."""
    if pair is None:
        return None
    return [feature.reshape(-1) for feature in centred(*pair).expand(batch, -1, -1).unbind(1)]


def _updated(
    plan: Plan, lattice: Tensor, factor: Tensor | None, gain: Tensor, scores: Tensor, result: int, out: Tensor
) -> Tensor:
    """Scores with a term's message: themselves (`result` 0), their softmax (1), or its logarithm (2)."""
    if gain.ndim == 2:
        total = torch.addmm(scores, _read(plan, lattice, factor), gain.T)
        return total if result == 0 else total.softmax(1) if result == 1 else total.log_softmax(1)
    points, axes = plan.weights.shape
    channels, size = scores.shape[1], lattice.shape[1]
    tile = _tile(channels)
    kernels.update[triton.cdiv(points, tile["BLOCK"]), plan.copies](
        plan.simplices, plan.vertices, plan.weights, scores if factor is None else factor, gain, lattice, scores, out,
        points, size, channels, _share(plan), SCALED=factor is not None, RESULT=result, V=axes, **tile,
    )  # fmt: skip
    return out


def _spread(plan: Plan, rows: Float[Tensor, "p c"], factor: Float[Tensor, " p"] | None) -> Float[Tensor, "x m c"]:
    """What the points, times a factor each, give to the vertices of each copy; a row of zeros comes last."""
    points, axes = plan.weights.shape
    channels, groups, size = rows.shape[1], len(plan.groups) - 1, len(plan.bounds) - 1
    sums = rows.new_empty(plan.copies, groups * axes, channels)
    columns = {"C": triton.next_power_of_2(channels)}
    kernels.splat[groups, plan.copies](
        plan.order, plan.groups, plan.weights, rows if factor is None else factor, rows, sums, points, groups, channels,
        SCALED=factor is not None, V=axes, BLOCK=_POINTS, **columns,
    )  # fmt: skip
    lattice = rows.new_empty(plan.copies, size, channels)
    kernels.gather[size, plan.copies](
        plan.entries, plan.bounds, sums, lattice, groups * axes, size, channels, BLOCK=_ENTRIES, **columns
    )
    return lattice


def _blurred(plan: Plan, lattice: Float[Tensor, "x m c"], transpose: bool) -> Float[Tensor, "x m c"]:
    """The vertices after the blur along every axis."""
    _, size, channels = lattice.shape
    spare = [torch.empty_like(lattice), torch.empty_like(lattice)]
    tile = _tile(channels)
    axes = plan.neighbours.unbind(0)
    for turn, (before, after) in enumerate(reversed(axes) if transpose else axes):
        target = spare[turn % 2]
        kernels.blur[triton.cdiv(size, tile["BLOCK"]), plan.copies](
            before, after, lattice, target, size, channels, **tile
        )
        lattice = target
    return lattice


def _read(plan: Plan, lattice: Float[Tensor, "x m c"], factor: Float[Tensor, " p"] | None) -> Float[Tensor, "p c"]:
    """What the points read, times a factor each."""
    points, axes = plan.weights.shape
    _, size, channels = lattice.shape
    rows = lattice.new_empty(plan.copies * points, channels)
    tile = _tile(channels)
    kernels.slice_out[triton.cdiv(points, tile["BLOCK"]), plan.copies](
        plan.simplices, plan.vertices, plan.weights, rows if factor is None else factor, lattice, rows, points, size,
        channels, _share(plan), SCALED=factor is not None, V=axes, **tile,
    )  # fmt: skip
    return rows


def _share(plan: Plan) -> float:
    """What the blur's weights add up to, inverted."""
    return 1 / (1 + 2.0 ** (1 - plan.weights.shape[1]))


def _tile(channels: int) -> dict[str, Any]:
    """Powers of two of channels and of points or vertices that a program works on."""
    columns = triton.next_power_of_2(channels)
    return {"C": columns, "BLOCK": max(1, min(64, _NUMBERS // columns))}


def _plan(lattices: Sequence[Tables], images: int) -> Plan:
    """The plan of a batch's lattices, which they keep where they can."""
    kept = getattr(lattices, "derived", None)
    copies = images if len(lattices) == 1 else 1
    if kept is None:
        kept = _sorted(*_joined(lattices), 1)
        if hasattr(lattices, "derived"):
            lattices.derived = kept
    return kept._replace(copies=copies)


def _joined(lattices: Sequence[Tables]) -> Tables:
    """The lattices of a batch as one."""
    if len(lattices) == 1:
        return lattices[0]
    simplices, vertices, neighbours = [], [], []
    total = sum(tables[3].shape[2] for tables in lattices)
    first_simplex = first = 0
    for own_simplices, own_vertices, _, own_neighbours in lattices:
        size = own_neighbours.shape[2]
        simplices.append(own_simplices + first_simplex)
        vertices.append(own_vertices + first)
        neighbours.append(torch.where(own_neighbours == size, total, own_neighbours + first))
        first_simplex, first = first_simplex + len(own_vertices), first + size
    weights = torch.cat([weights for _, _, weights, _ in lattices])
    return torch.cat(simplices), torch.cat(vertices), weights, torch.cat(neighbours, 2)


def _sorted(simplices: Tensor, vertices: Tensor, weights: Tensor, neighbours: Tensor, copies: int) -> Plan:
    """Groups of points by simplex, and the sums of groups by vertex."""
    device = simplices.device
    known = torch.arange(len(vertices) + 1, dtype=simplices.dtype, device=device)
    ordered, order = simplices.sort(stable=True)
    starts = torch.searchsorted(ordered, known)
    groups_of = (starts.diff() + _POINTS - 1) // _POINTS
    ends = groups_of.cumsum(0)
    count = int(ends[-1])
    owner = torch.repeat_interleave(known[:-1], groups_of, output_size=count)
    within = torch.arange(count, device=device) - (ends - groups_of)[owner]
    groups = torch.cat([starts[owner] + _POINTS * within, starts[-1:]])
    ordered, entries = vertices[owner].flatten().sort(stable=True)
    size = neighbours.shape[2]
    bounds = torch.searchsorted(ordered, torch.arange(size + 2, dtype=vertices.dtype, device=device))
    tables = (simplices, vertices.contiguous(), weights.contiguous(), neighbours.contiguous())
    return Plan(*tables, order.int(), groups.int(), entries.int(), bounds.int(), copies)


def _neighbours(known: Int[Tensor, " m"], multipliers: Int[Tensor, " d"]) -> Int[Tensor, "v 2 m"]:
    """The two neighbours along each axis of the vertices of these names, which are sorted; m for none."""
    d = len(multipliers)
    steps = multipliers.sum() - (d + 1) * torch.cat([multipliers, multipliers.new_zeros(1)])
    wanted = known + torch.stack([-steps, steps], 1)[:, :, None]
    places = torch.searchsorted(known, wanted).clamp(max=len(known) - 1)
    return torch.where(known[places] == wanted, places, len(known)).int()


def _multipliers(count: int, device: torch.device) -> Int[Tensor, " c"]:
    """Odd numbers of 64 bits for names, always the same."""
    generator = torch.Generator().manual_seed(0)
    return (torch.randint(-(2**62), 2**62, (count,), generator=generator) * 2 + 1).to(device)


def _gain(mixture: Tensor, logits: Tensor) -> Tensor:
    """A matrix, or what each class is multiplied by."""
    return mixture if mixture.ndim == 2 else mixture.expand(logits.shape[1]).contiguous()


def _factor(factor: Tensor | None, batch: int) -> Float[Tensor, " p"] | None:
    """A factor for each point of a batch."""
    return None if factor is None else factor.detach().expand(batch, -1, -1).reshape(-1).contiguous()


def _rows(values: Float[Tensor, "b c n"]) -> Float[Tensor, "p c"]:
    """Each point's channels side by side."""
    return values.detach().mT.reshape(-1, values.shape[1]).contiguous()


def _values(rows: Float[Tensor, "p c"], batch: int) -> Float[Tensor, "b c n"]:
    return rows.reshape(batch, -1, rows.shape[1]).mT.contiguous()
