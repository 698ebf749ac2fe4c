"""Mean field of two labels under Potts with Numba, in one number a pixel: the difference of the two marginals.

For u = Q(1) - Q(0) and the scores' difference z an update under Potts costs is z + sum of w K u, and the new u is what
softmax makes of that. A register holds eight pixels, and not eight labels of one, of which six would be empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from piecewise_training.crf._compile import kernel
from piecewise_training.crf._numba_filter import blur_one
from piecewise_training.crf._numba_layout import GROUP, weigh
from piecewise_training.crf._numba_parts import Run, Term, finest_first, lay_out
from piecewise_training.crf._numba_sweep import exp2
from piecewise_training.crf._simd import less, load8, minimum, store, total
from piecewise_training.crf._workspace import Workspace

LANES = 8  # a group fills two registers at most
CHUNK = 512  # pixels
_f32 = np.float32
_at = np.uint64
_LOG2_E = _f32(1.4426950408889634)
_WORTH_A_THREAD = 1 << 17  # copies of vertices: to add up fewer takes less time than to wake a thread
_FARTHEST = _f32(1e30)  # the bound of a score: larger ones would overflow


def is_binary(terms: Sequence[Term], classes: int) -> bool:
    """Whether mean field is that of two labels under Potts."""
    return classes == 2 and all(term.mixture.ndim == 0 for term in terms)


class BinaryMeanField:
    """Mean field of one image.

    Attributes:
        terms: one or more, that with the finest lattice first, by whose simplices pixels are grouped.
        layout: where everything lies.
        shares: each pixel's weights in what it receives, at its group's vertices (V, N and a register more), and at
            those of all other terms (N, V'); both flat.
        sends: its weights in what it sends; the same arrays where the two are one.
    """

    def __init__(
        self, terms: Sequence[Term], grid: tuple[int, int], space: Workspace, lent: Workspace, run: Run
    ) -> None:
        """Lays an image out; arguments as for `_numba_parts.lay_out`."""
        self.terms = [terms[place] for place in finest_first(terms)]
        self.layout = lay_out(self.terms, grid, space, lent, run)
        self._parts = range(len(self.layout.tiles))
        self.shares = self._weights(False, lent, run)
        apart = any(term.before is not term.after for term in terms)
        self.sends = self._weights(True, lent, run) if apart else self.shares

    def infer(
        self,
        logits: np.ndarray,
        iterations: int,
        out: np.ndarray,
        logarithm: bool,
        space: Workspace,
        lent: Workspace,
        run: Run,
    ) -> None:
        """Fills in the marginals (2, N) after some updates; arguments as for `MeanField.infer`."""
        layout = self.layout
        scores = space.empty(len(layout.order) + LANES)
        scores[-LANES:] = 0
        copies = lent.empty(len(layout.owners))
        lattices = [np.empty(term.tables[3].shape[2] + 1, np.float32) for term in self.terms]
        weights = [_f32(term.mixture * _LOG2_E / (1 + 2.0 ** (1 - term.tables[1].shape[1]))) for term in self.terms]
        axes = [term.tables[1].shape[1] for term in self.terms]
        sweep_part = sweep_kernel(axes[0], sum(axes[1:]))
        planes, result = logits.reshape(-1), out.reshape(-1)

        def enter(part: int) -> None:
            take_difference(planes, *layout.bounds[part : part + 2], layout.positions, scores)

        def update(part: int, first: bool, last: bool) -> None:
            start, stop = layout.ranges[0][part, 0], layout.ranges[-1][part, 1]
            messages = np.zeros(stop - start, np.float32)
            if not first:
                for ranges, lattice, weight in zip(layout.ranges, lattices, weights, strict=True):
                    begin, end = ranges[part]
                    fetch(layout.owners[begin:end], lattice, weight, messages[begin - start :])
            own = copies[start:stop]
            own[:] = 0
            places = layout.heads[part].reshape(-1), layout.rows.reshape(-1)
            weighed = *self.shares, *self.sends, len(scores)
            sweep_part(layout.groups[part], layout.bounds[part + 1], scores, *places, *weighed, messages, own, last)

        def filter_term(term: int) -> None:
            collect(layout.owners, layout.ranges[term], copies, lattices[term])
            lattices[term] = blur_one(self.terms[term].tables[3], lattices[term], False)

        def leave(part: int) -> None:
            give_marginals(scores, layout.positions, *layout.bounds[part : part + 2], result, logarithm)

        run(enter, self._parts)
        for iteration in range(iterations + 1):
            run(lambda part: update(part, not iteration, iteration == iterations), self._parts)  # noqa: B023
            if iteration < iterations and len(copies) > _WORTH_A_THREAD:
                run(filter_term, range(len(self.terms)))
            elif iteration < iterations:
                for term in range(len(self.terms)):
                    filter_term(term)
        run(leave, self._parts)

    def _weights(self, sent: bool, lent: Workspace, run: Run) -> tuple[np.ndarray, np.ndarray]:
        layout, axes = self.layout, [term.tables[1].shape[1] for term in self.terms]
        stride = len(layout.order) + LANES
        planes, rows = lent.empty((axes[0], stride)), lent.empty((len(layout.order), sum(axes[1:])))
        planes[:, -LANES:] = 0

        def weigh_part(part: int) -> None:
            own = slice(*layout.bounds[part : part + 2])
            for place, term in enumerate(self.terms):
                points = layout.order[own], term.tables[2], term.before if sent else term.after
                if place:
                    weigh(*points, sum(axes[1:place]), rows[own])
                else:
                    weigh_planes(*points, planes, own.start)

        run(weigh_part, self._parts)
        return planes.reshape(-1), rows.reshape(-1)


@kernel
def weigh_planes(points, weights, factor, planes, first):  # type: ignore[no-untyped-def]
    """Fills in a plane for each weight of the points, times their factors, from a place on."""
    axes, stride = planes.shape
    parts, flat = weights.reshape(weights.size), planes.reshape(planes.size)
    for k in range(axes):
        start = k * stride + first
        for row in range(len(points)):
            point = points[_at(row)]
            flat[_at(start + row)] = parts[_at(point * axes + k)] * factor[_at(point)]


@kernel
def take_difference(planes, first, last, positions, scores):  # type: ignore[no-untyped-def]
    """The difference of two planes of scores, flat from (2, N), at some pixels, in bits and at their positions."""
    n = len(planes) // 2
    for pixel in range(first, last):
        low = min(max(planes[_at(pixel)], -_FARTHEST), _FARTHEST)
        high = min(max(planes[_at(n + pixel)], -_FARTHEST), _FARTHEST)
        scores[_at(positions[_at(pixel)])] = (high - low) * _LOG2_E


@kernel
def fetch(owners, lattice, weight, messages):  # type: ignore[no-untyped-def]
    """Copies some vertices out of the blurred lattice, times a weight."""
    for row in range(len(owners)):
        messages[_at(row)] = lattice[_at(owners[_at(row)])] * weight


@kernel
def collect(owners, ranges, copies, lattice):  # type: ignore[no-untyped-def]
    """Adds up the parts' copies; the last vertex stands for missing neighbours and stays zero."""
    lattice[:] = 0
    for part in range(len(ranges)):
        for row in range(ranges[part, 0], ranges[part, 1]):
            lattice[_at(owners[_at(row)])] += copies[_at(row)]


@cache
def sweep_kernel(shared: int, others: int) -> Any:
    """The kernel of an iteration for pixels with so many vertices, the first of which their whole group shares."""

    @kernel
    def sweep(  # type: ignore[no-untyped-def]
        groups, last, scores, heads, rows, shares, own_shares, sends, own_sends, stride, messages, copies, final
    ):
        """Reads the messages of some groups, eight pixels at a time, and sends the differences of their marginals.

        The final one leaves the scores with the messages in `scores` instead. What pixels have of their own goes
        through memory: some hundred at once, since what was stored one by one cannot be loaded as a register for a
        while.
        """
        x, u = np.zeros(CHUNK + GROUP + LANES, np.float32), np.empty(CHUNK + GROUP + LANES, np.float32)
        counted = np.zeros(2 * LANES, np.float32)  # from LANES - n on, n ones
        counted[:LANES] = 1
        begin = 0
        while begin < len(groups):
            first = groups[begin]
            end = begin
            while end < len(groups) and groups[end] < first + CHUNK:
                end += 1
            behind = groups[end] if end < len(groups) else last

            for p in range(first, behind):
                message = scores[_at(p)]
                for k in range(others):
                    place = _at(p * others + k)
                    message += own_shares[place] * messages[_at(rows[place])]
                x[_at(p - first)] = message

            for g in range(begin, end):
                stop = groups[g + 1] if g + 1 < len(groups) else last
                for start in range(groups[g], stop, LANES):
                    z = load8(x, start - first)
                    for k in range(shared):
                        z = z + load8(shares, k * stride + start) * messages[_at(heads[_at(g * shared + k)])]
                    store(u, start - first, z)  # the next group writes over lanes that are not this one's
            if final:
                scores[first:behind] = u[: behind - first]
                begin = end
                continue

            for start in range(0, behind - first, LANES):
                z = load8(u, start)
                other = exp2(minimum(z, _f32(0) - z))  # the less likely one's share of the likelier one's
                sign = _f32(1) - less(z, _f32(0)) * _f32(2)
                store(u, start, (_f32(1) - other) / (_f32(1) + other) * sign)

            for g in range(begin, end):
                start = groups[g]
                size = (groups[g + 1] if g + 1 < len(groups) else last) - start
                few = load8(u, start - first) * load8(counted, max(0, LANES - size))
                if size <= LANES:
                    for k in range(shared):
                        copies[_at(heads[_at(g * shared + k)])] += total(few * load8(sends, k * stride + start))
                else:
                    more = load8(u, start - first + LANES) * load8(counted, GROUP - size)
                    for k in range(shared):
                        at = k * stride + start
                        both = few * load8(sends, at) + more * load8(sends, at + LANES)
                        copies[_at(heads[_at(g * shared + k)])] += total(both)

            for p in range(first, behind):
                for k in range(others):
                    place = _at(p * others + k)
                    copies[_at(rows[place])] += own_sends[place] * u[_at(p - first)]
            begin = end

    return sweep


@kernel
def give_marginals(scores, positions, first, last, planes, logarithm):  # type: ignore[no-untyped-def]
    """The marginals of both labels, flat as (2, N), or their logarithms, from the differences of scores in bits."""
    n = len(planes) // 2
    z = np.zeros(LANES, np.float32)
    zero, one = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    for start in range(first, last, LANES):
        lanes = min(LANES, last - start)
        for lane in range(lanes):
            z[_at(lane)] = scores[_at(positions[_at(start + lane)])]
        difference = load8(z, 0)
        high, low = exp2(minimum(difference, _f32(0))), exp2(minimum(_f32(0) - difference, _f32(0)))
        store(zero, 0, low / (high + low))
        store(one, 0, high / (high + low))
        for lane in range(lanes):
            if logarithm:  # of a probability that is nearly 0 from the scores, where it is exact
                most = np.log(max(zero[_at(lane)], one[_at(lane)]))
                nats = z[_at(lane)] * _f32(0.69314718056)
                zero[_at(lane)], one[_at(lane)] = most - max(nats, _f32(0)), most + min(nats, _f32(0))
            planes[_at(start + lane)], planes[_at(n + start + lane)] = zero[_at(lane)], one[_at(lane)]
