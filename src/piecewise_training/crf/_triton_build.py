"""The building of lattices on a GPU: points are placed, and their simplices and vertices sorted by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, wraps
from typing import ParamSpec, TypeVar, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor

from piecewise_training.crf import _triton_build_kernels as kernels
from piecewise_training.crf._reference import FARTHEST, Tables, elevation

_POINTS = 16  # of a group at most: more leave programs waiting for the largest, fewer make more sums to be gathered
_SIMPLICES = (1 << 32) - 1  # the bits that have a simplex's number, where a group's is above them
_LEFT = 32  # bits of a simplex's name by which points are not sorted: with half of them a sort takes half as long
_LINE = 256  # numbers that a program works on in a line

_P = ParamSpec("_P")
_R = TypeVar("_R")


@dataclass(frozen=True, eq=False)
class Plan(Sequence[Tables]):
    """The lattices of a batch, whose points, simplices and vertices follow each other, ready to be summed over.

    As a sequence it has each image's tables for itself.

    Attributes:
        simplices: (n,) of each point.
        vertices: (s, v) of each simplex.
        weights: (n, v) of each point.
        neighbours: (v, 2, m) of each vertex, m for none.
        order: (n,) the points sorted by simplex.
        groups: (g + 1,) where each group of points begins in this order.
        entries: (g v,) the sums of groups sorted by vertex.
        bounds: (m + 2,) where each vertex's entries begin.
        ends: for each image the first simplex and vertex that are no longer its own.
    """

    simplices: Int[Tensor, " n"]
    vertices: Int[Tensor, "s v"]
    weights: Float[Tensor, "n v"]
    neighbours: Int[Tensor, "v 2 m"]
    order: Int[Tensor, " n"]
    groups: Int[Tensor, " g"]
    entries: Int[Tensor, " e"]
    bounds: Int[Tensor, " b"]
    ends: list[tuple[int, int]]

    @property
    def points(self) -> int:
        """The points of an image."""
        return len(self.simplices) // len(self.ends)

    @property
    def axes(self) -> int:
        """The vertices of a simplex."""
        return self.vertices.shape[1]

    @property
    def share(self) -> float:
        """What the blur's weights add up to, inverted."""
        return 1 / (1 + 2.0 ** (1 - self.axes))

    @cached_property
    def lanes(self) -> int:
        """How many share out the entries of a vertex: about one for every four of them."""
        return min(32, 1 << max(0, math.ceil(math.log2(len(self.entries) / len(self.bounds) / 4))))

    def __len__(self) -> int:
        """Images."""
        return len(self.ends)

    @overload
    def __getitem__(self, image: int) -> Tables: ...
    @overload
    def __getitem__(self, image: slice) -> Sequence[Tables]: ...
    def __getitem__(self, image: int | slice) -> Tables | Sequence[Tables]:
        """An image's tables, whose numbers begin at 0."""
        if isinstance(image, slice):
            return [self[one] for one in range(len(self))[image]]
        image = range(len(self))[image]
        simplex, vertex = (0, 0) if image == 0 else self.ends[image - 1]
        last_simplex, last_vertex = self.ends[image]
        own = slice(image * self.points, (image + 1) * self.points)
        around = self.neighbours[:, :, vertex:last_vertex]
        missing = around == self.neighbours.shape[2]
        return (
            self.simplices[own] - simplex,
            self.vertices[simplex:last_simplex] - vertex,
            self.weights[own],
            torch.where(missing, last_vertex, around) - vertex,
        )


def on_the_gpu_of(argument: int) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Makes a tensor's GPU the current one for a call: Triton launches kernels there, wherever their tensors are."""

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        @wraps(function)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            with torch.cuda.device_of(args[argument]):  # type: ignore[no-untyped-call]
                return function(*args, **kwargs)

        return call

    return decorate


@on_the_gpu_of(0)
def build(features: Float[Tensor, "b d n"], bandwidths: Float[Tensor, " d"]) -> Plan | None:
    """Finds each point's simplex in the lattice and each vertex's neighbours; see `_reference.build`.

    None where a feature is NaN or beyond `FARTHEST` bandwidths: to look on the way saves the GPU a wait.

    Simplices and vertices are told apart by names of 63 bits, of which the image's number takes some. That two of a
    million share one has in a batch of b a probability below b in ten million.
    """
    batch, d, points = features.shape
    device, axes = features.device, 1 << d.bit_length()
    bits = 63 - (batch - 1).bit_length()
    weights = features.new_empty(batch * points, d + 1)
    corners = torch.empty(batch * points, d + 1, dtype=torch.int64, device=device)
    names = torch.empty(batch * points, dtype=torch.int64, device=device)
    keys, astray = _integers(device, batch * points), torch.zeros(1, dtype=torch.int64, device=device)
    block = max(1, min(128, 8192 // axes**2))
    kernels.place[programs_for(points, block), batch](
        features.contiguous(), bandwidths.to(features.dtype).contiguous(), _elevation(d, features.dtype, device),
        _multipliers(2 * d, device), weights, corners, names, keys, astray, points, D=d, P=axes, BITS=bits, LEFT=_LEFT,
        FARTHEST=FARTHEST, BLOCK=block,
    )  # fmt: skip

    order = keys.sort(stable=True).indices
    numbers = _numbered(names, order, _POINTS)
    last, lost = torch.cat([numbers[-1:], astray]).tolist()
    if lost:
        return None
    many, many_simplices = last >> 32, last & _SIMPLICES
    sorted_points, simplices = _integers(device, len(names)), _integers(device, len(names))
    groups, owners = _integers(device, many + 1), _integers(device, many)
    of_groups = torch.empty(many, d + 1, dtype=torch.int64, device=device)
    kernels.group_points[_blocks(len(names))](
        order, numbers, corners, sorted_points, simplices, groups, owners, of_groups, len(names), many, V=d + 1,
        BLOCK=_LINE,
    )  # fmt: skip
    simplex_ends = numbers[points - 1 :: points] & _SIMPLICES if batch > 1 else None

    of_groups = of_groups.flatten()
    order = of_groups.sort(stable=True).indices
    numbers = _numbered(of_groups, order, 0)
    size = int(numbers[-1])
    vertices, entries = _integers(device, many_simplices, d + 1), _integers(device, many * (d + 1))
    bounds = _integers(device, size + 2)
    known = torch.empty(size, dtype=torch.int64, device=device)
    kernels.number_vertices[_blocks(len(order))](
        order, of_groups, numbers, owners, entries, vertices, bounds, known, len(order), size, V=d + 1, BLOCK=_LINE
    )
    neighbours = _integers(device, d + 1, 2, size)
    kernels.find_neighbours[programs_for(size, _LINE), 2 * (d + 1)](
        known, _steps(d, device), neighbours, size, size.bit_length(), BITS=bits, BLOCK=_LINE
    )
    ends = [(many_simplices, size)]
    if simplex_ends is not None:
        beyond = torch.arange(1, batch, device=device) << bits
        vertex_ends = [*torch.searchsorted(known, beyond).tolist(), size]
        ends = list(zip(simplex_ends.tolist(), vertex_ends, strict=True))
    return Plan(simplices, vertices, weights, neighbours, sorted_points, groups, entries, bounds, ends)


def _numbered(names: Int[Tensor, " n"], order: Int[Tensor, " n"], points: int) -> Int[Tensor, " n"]:
    """The numbers, from 1, of names in this order; with `points`, above 32 bits, of groups of no more than so many."""
    begins = torch.empty(len(names), dtype=torch.int64 if points else torch.int32, device=names.device)
    kernels.mark[_blocks(len(names))](names, order, begins, len(names), POINTS=points, BLOCK=_LINE)
    return begins.cumsum_(0)


def _integers(device: torch.device, *shape: int) -> Int[Tensor, "*s"]:
    return torch.empty(shape, dtype=torch.int32, device=device)


def _blocks(count: int) -> tuple[int]:
    """The programs for so many numbers in a line."""
    return (programs_for(count, _LINE),)


def programs_for(count: int, of_each: int) -> int:
    """How many programs are needed where each does so many; Triton's own `cdiv` takes some microseconds of Python."""
    return -(-count // of_each)


@cache
def _steps(d: int, device: torch.device) -> Int[Tensor, " s"]:
    """What is added to a vertex's name for those of its two neighbours along each axis."""
    multipliers = _multipliers(2 * d, device)[:d]
    steps = multipliers.sum() - (d + 1) * torch.nn.functional.pad(multipliers, (0, 1))
    return torch.stack([-steps, steps], 1).flatten()


@cache
def _multipliers(count: int, device: torch.device) -> Int[Tensor, " c"]:
    """Odd numbers of 64 bits for names, always the same."""
    generator = torch.Generator().manual_seed(0)
    return (torch.randint(-(2**62), 2**62, (count,), generator=generator, device="cpu") * 2 + 1).to(device)


@cache
def _elevation(d: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "d v"]:
    return elevation(d).to(device, dtype)
