"""The way of values from points to vertices and back on a GPU: launches of kernels, and what these have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from piecewise_training.crf import _triton_kernels as kernels
from piecewise_training.crf._triton_build import Plan, programs_for

_PROGRAMS = 8  # of 128 threads, on each multiprocessor, of a kernel whose programs meet; they share its registers
_FOR_UPDATES = 6  # of the one that makes all updates, which wants more registers
_REGISTERS = 512  # of each multiprocessor for each of 128 threads; a program gets them in eights

Result = Literal["sum", "softmax", "log_softmax", "inverse", "inverse_root"]


class Term(NamedTuple):
    """What an update needs of a term: its lattices, its factors, and what each channel's message is multiplied by."""

    plan: Plan
    before: Tensor | None
    after: Tensor | None
    mixture: Tensor


class Pass:
    """The way of rows to the vertices of a plan, over and over; one plan of one image serves a whole batch.

    What its launches have in common is worked out once: for one image the GPU is as fast as the CPU that launches.
    """

    def __init__(self, plan: Plan, batch: int, width: int, times: int = 1) -> None:
        self._axes, self._copies, self._size = plan.axes, batch // len(plan), len(plan.bounds) - 1
        self._groups, self._points = len(plan.groups) - 1, len(plan.simplices)
        self._sorted = plan.order, plan.groups, plan.weights
        self._around = plan.entries, plan.bounds, plan.neighbours
        self._width, self._how = width, how_to_launch(plan.order.device)
        tile = tile_of(width)
        lanes = lanes_of(plan, tile["BLOCK"])
        tiles = tiles_of(plan, self._copies, lanes, tile["BLOCK"])
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


def all_updates(
    terms: Sequence[Term], logits: Float[Tensor, "b k n"], rows: Float[Tensor, "p s"], updates: int
) -> list[Message]:
    """Makes all updates of the marginals in one launch, but for what the points read in the last.

    The messages are added in another order than term by term: the last bits may differ.

    Args:
        terms: one or two, whose mixtures are padded gains of each channel.
        logits: what the messages are added to.
        rows: the marginals; overwritten by those before the last update.
        updates: at least one.

    Returns:
        The last update's messages, still to be read.
    """
    (batch, classes, points), (_, width), tile = logits.shape, rows.shape, tile_of(rows.shape[1])
    terms = sorted(terms, key=lambda term: -term.plan.axes)  # that of more phases begins
    messages: list[Message] = []
    operands: list[Any] = []
    flags: dict[str, Any] = {"TERMS": len(terms)}
    tiles, sums = batch * programs_for(points, tile["BLOCK"]), 0
    for place in range(2):
        if place < len(terms):  # one term's own operands fill the second's places, which the kernel leaves alone
            plan, before, after, gain = terms[place]
            copies, groups, size = batch // len(plan), len(plan.groups) - 1, len(plan.bounds) - 1
            lattice, spare = (rows.new_empty(copies, size, width) for _ in range(2))
            messages.append(Message(plan, spare if plan.axes % 2 else lattice, after, gain))
            lanes = lanes_of(plan, tile["BLOCK"])
            tiles = max(tiles, tiles_of(plan, copies, lanes, tile["BLOCK"]))
            sums = max(sums, copies * groups * plan.axes)
        operands += [
            plan.order, plan.groups, plan.entries, plan.bounds, plan.neighbours, lattice, spare, copies,
            len(plan.simplices), groups, size, plan.simplices, plan.vertices, plan.weights,
            rows if before is None else before, rows if after is None else after, gain, plan.share,
        ]  # fmt: skip
        flags |= {f"BEFORE{place + 1}": before is not None, f"AFTER{place + 1}": after is not None}
        flags |= {f"SHARED{place + 1}": len(plan) == 1, f"V{place + 1}": plan.axes, f"LANES{place + 1}": lanes}
    how = how_to_launch(rows.device, _FOR_UPDATES)
    kernels.all_updates[(min(tiles, how.programs),)](
        *operands, logits, rows, rows.new_empty(sums, width), rows.new_zeros(1, dtype=torch.int32), points, classes,
        batch, updates, S=width, **flags, **tile, **how.options,
    )  # fmt: skip
    return messages


def lanes_of(plan: Plan, block: int) -> int:
    """How many share out the sums around a vertex, in a tile of so many rows."""
    return min(plan.lanes, block)


def tiles_of(plan: Plan, copies: int, lanes: int, block: int) -> int:
    """The tiles of the phase that has the most."""
    of_groups = programs_for((len(plan.groups) - 1) * programs_for(plan.axes, 3), max(1, block // 2))
    return copies * max(of_groups, programs_for((len(plan.bounds) - 1) * lanes, block))


class How(NamedTuple):
    """How a kernel in phases is launched: with so many programs, all phases at once or one by one."""

    programs: int
    meet: bool
    options: dict[str, Any]


@cache
def how_to_launch(device: torch.device, on_each: int = _PROGRAMS) -> How:
    """Programs can only wait for each other where they are sure to run at the same time: in a cooperative launch.

    Args:
        device: where.
        on_each: programs on each multiprocessor.
    """
    if device.type == "cpu":
        return How(1, True, {})
    count = on_each * torch.cuda.get_device_properties(device).multi_processor_count
    if torch.version.cuda is None or not _cooperates():
        return How(count, False, {})
    return How(count, True, {"launch_cooperative_grid": True, "maxnreg": _REGISTERS // on_each // 8 * 8})


def _cooperates() -> bool:
    """Whether this Triton can launch all programs of a kernel at the same time."""
    from triton.backends.nvidia.compiler import CUDAOptions

    return "launch_cooperative_grid" in {field.name for field in fields(CUDAOptions)}


class Message(NamedTuple):
    """What points are to read: from these vertices, times a factor each and a gain of each channel."""

    plan: Plan
    lattice: Float[Tensor, "x m s"]
    factor: Float[Tensor, " p"] | None = None
    gain: Float[Tensor, " s"] | None = None


def read(
    messages: Sequence[Message],
    base: Tensor | None,
    out: Tensor,
    shape: tuple[int, ...],
    result: Result = "sum",
) -> Tensor:
    """The sum of a base and of up to two messages, or what is made of it; base and `out` are planes (B, K, N) or rows.

    Args:
        messages: none, one or two.
        base: None is 0.
        out: what is written, and given back.
        shape: images, channels, and points of an image.
        result: what is made of the sum.
    """
    batch, channels, points = shape
    width = row_width(channels)
    operands, flags = operands_of(messages, out, width)
    tile = tile_of(width)
    kernels.read[programs_for(points, tile["BLOCK"]), batch](
        *operands, out if base is None else base, out, points, channels, BASE=layout_of(base), RESULT=result,
        PLANES=out.ndim == 3, S=width, **flags, **tile,
    )  # fmt: skip
    return out


def contract(
    message: Message, rows: Float[Tensor, "p s"], sums: Float[Tensor, " p"], shape: tuple[int, ...]
) -> Float[Tensor, " p"]:
    """Adds the product of each point's message, without a factor, with its row to its sum."""
    (batch, channels, points), (plan, lattice, _, gain) = shape, message
    width = row_width(channels)
    gain = _ones(width, rows.dtype, rows.device) if gain is None else gain
    tile = tile_of(width)
    kernels.contract[programs_for(points, tile["BLOCK"]), batch](
        plan.simplices, plan.vertices, plan.weights, gain, lattice, lattice.shape[1], plan.share, rows, sums, points,
        SHARED=len(plan) == 1, V=plan.axes, S=width, **tile,
    )  # fmt: skip
    return sums


def operands_of(messages: Sequence[Message], unused: Tensor, width: int) -> tuple[list[Any], dict[str, Any]]:
    """What kernels take for up to two messages; `unused` stands where there is nothing."""
    operands: list[Any] = []
    flags: dict[str, Any] = {"TERMS": len(messages)}
    for place in range(2):
        plan, lattice, factor, gain = messages[place] if place < len(messages) else Message(None, unused)  # type: ignore[arg-type]
        tables = (unused,) * 3 if plan is None else (plan.simplices, plan.vertices, plan.weights)
        gain = _ones(width, unused.dtype, unused.device) if gain is None else gain
        share = 1.0 if plan is None else plan.share
        operands += [*tables, unused if factor is None else factor, gain, lattice, lattice.shape[1], share]
        flags[f"V{place + 1}"] = 1 if plan is None else plan.axes
        flags[f"SCALED{place + 1}"] = factor is not None
        flags[f"SHARED{place + 1}"] = plan is not None and len(plan) == 1
    return operands, flags


def layout_of(base: Tensor | None) -> str:
    """The name by which kernels know how a base lies."""
    return "none" if base is None else "planes" if base.ndim == 3 else "rows"


@cache
def tile_of(width: int) -> dict[str, Any]:
    """Powers of two of channels and of points or vertices that a program works on: eight numbers in each thread."""
    columns = 1 << (width - 1).bit_length()
    return {"C": columns, "BLOCK": max(1, 1024 // columns), "num_warps": 4}


def row_width(channels: int) -> int:
    """The numbers of a row: so many channels, filled up with zeros for loads of four at a time."""
    return channels if channels < 3 else -(-channels // 4) * 4


def padded(mixture: Tensor, classes: int) -> Tensor:
    """The diagonal of a mixture, or all of it, as wide as rows are, whose further channels hold zeros."""
    width = row_width(classes)
    if not mixture.ndim:
        return mixture.expand(width).contiguous()
    return torch.nn.functional.pad(mixture, [0, width - classes] * mixture.ndim).contiguous()


def as_rows(values: Float[Tensor, "b c n"]) -> Float[Tensor, "p s"]:
    """Each point's channels side by side."""
    batch, channels, points = values.shape
    rows = torch.nn.functional.pad(values.detach().mT, [0, row_width(channels) - channels])
    return rows.reshape(batch * points, -1).contiguous()


def of_each_point(factor: Tensor | None, batch: int) -> Float[Tensor, " p"] | None:
    """A factor for each point of a batch."""
    return None if factor is None else factor.detach().expand(batch, -1, -1).reshape(-1).contiguous()


@cache
def _ones(count: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, " c"]:
    return torch.ones(count, dtype=dtype, device=device)
