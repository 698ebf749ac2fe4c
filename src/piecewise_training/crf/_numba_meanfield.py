"""Mean field for one image with Numba: the order of the work, and its state for the gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from piecewise_training.crf import _numba_layout as layouts
from piecewise_training.crf import _numba_sweep as kernels
from piecewise_training.crf._numba_parts import Run, Term, finest_first, lay_out, weights_by_pixel
from piecewise_training.crf._workspace import Spare, Workspace

LOG2_E = np.float32(1.4426950408889634)
IMPOSSIBLE = np.float32(-2e38)  # the score of a class that there is not


class Watch(NamedTuple):
    """How an inference is watched.

    Attributes:
        tolerance: the change of a marginal at which it stops.
        damping: share of the old marginals in the new ones.
        divergence: whether to take the divergence too.
    """

    tolerance: float
    damping: float
    divergence: bool


class Course(NamedTuple):
    """How an inference went.

    Attributes:
        divergence: before the first update and after each, where it is taken.
        change: the largest change of a marginal in each update.
    """

    divergence: list[float]
    change: list[float]


class Rows(NamedTuple):
    """Which rows of a table are the parts' copies of a term's vertices.

    Attributes:
        owners: the vertex behind each row.
        ranges: (parts, 2), the first and last row of each part.
    """

    owners: np.ndarray
    ranges: np.ndarray


class MeanField:
    """The state of one image, which lives as long as a gradient may be asked for.

    Attributes:
        classes: K.
        channels: K, filled up to a multiple of 8.
        terms: one or more, that with the finest lattice first, by whose simplices pixels are grouped.
        places: the place of each of them among those given.
        axes: the number of blur axes of each term.
        sizes: the number of vertices of each term, and one more for those that are missing.
        layout: where everything lies.
        shares: the weight of each pixel at its vertices of all terms (N, V + V') in what it receives.
        sends: its weight at each of them in what it sends; the same array where the two are one.
        scores: those given (K, N), where they are kept.
        lattices: the filtered marginals of each update by term (channels / 8, size, 8), where they are kept.
    """

    def __init__(
        self,
        terms: Sequence[Term],
        classes: int,
        grid: tuple[int, int],
        space: Workspace,
        lent: Workspace,
        run: Run,
    ) -> None:
        """Lays an image out.

        Args:
            terms: one or more.
            classes: K.
            grid: rows and columns of pixels.
            space: memory for as long as the state lives.
            lent: memory until results are written.
            run: calls a function for each of some items, on threads.
        """
        self.classes, self.channels = classes, -(-classes // 8) * 8
        self.places = finest_first(terms)
        self.terms = [terms[place] for place in self.places]
        self.axes = [term.tables[1].shape[1] for term in self.terms]
        self.sizes = [term.tables[3].shape[2] + 1 for term in self.terms]
        self.layout = lay_out(self.terms, grid, space, lent, run)
        self.shares, self.sends = weights_by_pixel(self.layout, self.terms, lent, run)
        self.parts = range(len(self.layout.tiles))
        self.scores: np.ndarray | None = None
        self.lattices: list[list[np.ndarray]] = []
        self._width = grid[1]

    def infer(
        self,
        logits: np.ndarray,
        iterations: int,
        out: np.ndarray,
        logarithm: bool,
        keep: bool,
        space: Workspace,
        lent: Workspace,
        run: Run,
    ) -> None:
        """Fills in the marginals (K, N) after some updates; see `_reference.mean_field`.

        Args:
            logits: (K, N) float32.
            iterations: updates.
            out: (K, N) float32.
            logarithm: whether to fill in their logarithms instead, as the gradients need them.
            keep: whether to keep what the gradients need.
            space: memory for the length of the call.
            lent: memory until `out` is written, such as its own.
            run: calls a function for each of some items, on threads.
        """
        work = Buffers.of(self, lent)
        base = space.empty(len(self.layout.order) * self.channels)
        self.scores = logits if keep else None
        lattices = [lent.empty(self.shape_of_lattice(term)) for term in range(len(self.terms))]
        weights = [self.weight(term, LOG2_E) for term in range(len(self.terms))]
        self.enter(logits, LOG2_E, IMPOSSIBLE, base, run)
        for iteration in range(iterations + 1):
            stage, filtered = kernels.ITERATE, lattices
            if iteration == iterations:
                stage = kernels.FINISH_LOG if logarithm else kernels.FINISH
            elif keep:
                lattices = [np.empty_like(lattice) for lattice in lattices]
                self.lattices.append(lattices)

            def update(part: int) -> None:
                with work.messages() as messages:
                    self.fetch(part, filtered if iteration else None, weights, messages)  # noqa: B023
                    self.sweep(part, (base, base, base), messages, work.copies, stage)  # noqa: B023

            run(update, self.parts)
            if iteration < iterations:
                self.filter(work, lattices, run)
        self.leave(base, out, run)

    def watch(
        self,
        logits: np.ndarray,
        iterations: int,
        out: np.ndarray,
        logarithm: bool,
        how: Watch,
        space: Workspace,
        lent: Workspace,
        run: Run,
    ) -> Course:
        """Fills in the marginals (K, N) after updates that are watched; arguments as for `infer`.

        Their logarithms only without damping.
        """
        work = Buffers.of(self, lent)
        base, logarithms = (space.empty(len(self.layout.order) * self.channels) for _ in range(2))
        kept = np.zeros(base.size, np.float32)
        lattices = [lent.empty(self.shape_of_lattice(term)) for term in range(len(self.terms))]
        weights = [self.weight(term, LOG2_E) for term in range(len(self.terms))]
        divergence = kernels.divergence_kernel(self.axes[0], sum(self.axes[1:]))
        layout = self.layout
        tables = layout.rows.reshape(-1), self.shares.reshape(-1)
        course = Course([], [])
        rows = base, kept, logarithms
        self.enter(logits, LOG2_E, IMPOSSIBLE, base, run)

        def look(part: int, messages: np.ndarray) -> float:
            if not how.divergence:
                return 0.0
            groups = layout.groups[part], layout.bounds[part + 1], layout.heads[part].reshape(-1)
            return float(divergence(*groups, self.classes, self.channels, base, kept, *tables, messages))

        def work_on(part: int, stage: int | None, damping: float = 0.0, first: bool = False) -> tuple[float, float]:
            """The divergence before an update, and the change that it makes."""
            with work.messages() as messages:
                self.fetch(part, None if first else lattices, weights, messages)
                found = 0.0 if first or stage == kernels.FINISH_LOG else look(part, messages)
                if stage is None:
                    return found, 0.0
                return found, self.sweep(part, rows, messages, work.copies, stage, damping)

        run(lambda part: work_on(part, kernels.WATCH, first=True), self.parts)
        for _ in range(iterations):
            self.filter(work, lattices, run)
            found = run(lambda part: work_on(part, kernels.WATCH, how.damping), self.parts)
            course.divergence.append(sum(divergence for divergence, _ in found))
            course.change.append(max(change for _, change in found))
            if how.tolerance and course.change[-1] <= how.tolerance:
                break
        if logarithm:  # the last update again, since probabilities that are nearly 0 have exact logarithms
            run(lambda part: work_on(part, kernels.FINISH_LOG, first=not iterations), self.parts)
        if how.divergence:
            self.filter(work, lattices, run)
            course.divergence.append(sum(divergence for divergence, _ in run(lambda p: work_on(p, None), self.parts)))
        self.leave(logarithms if logarithm else kept, out, run)
        return course

    def shape_of_lattice(self, term: int) -> tuple[int, int, int]:
        """Blocks of eight channels, vertices, and eight."""
        return self.channels // 8, self.sizes[term], 8

    def weight_of_blur(self, term: int) -> float:
        """What filtering multiplies by, so that a Gaussian has its right size."""
        return 1 / (1 + 2.0 ** (1 - self.axes[term]))

    def weight(self, term: int, unit: float, transpose: bool = False) -> np.ndarray:
        """What blurred marginals of class b (row) add to the scores of channel c (column), in a unit.

        A single row is the diagonal of the matrix that it stands for.
        """
        mixture = self.terms[term].mixture * np.float64(unit * self.weight_of_blur(term))
        padded = np.zeros((self.classes if mixture.ndim == 2 else 1, self.channels), np.float32)
        padded[:, : self.classes] = mixture if transpose else mixture.T
        return padded

    def enter(self, planes: np.ndarray, unit: np.float32, missing: np.float32, rows: np.ndarray, run: Run) -> None:
        """Fills in rows of channels at the pixels' positions from planes (K, N)."""
        run(lambda part: self.enter_part(part, planes, unit, missing, rows), self.parts)

    def enter_part(
        self, part: int, planes: np.ndarray, unit: np.float32, missing: np.float32, rows: np.ndarray, origin: int = 0
    ) -> None:
        """The same for a part, where `rows` begin with the position `origin`."""
        placed = self._width, self.layout.positions, self.channels, unit, missing, rows, origin
        layouts.permute_in(planes.reshape(-1), self.classes, self.layout.tiles[part], *placed)

    def leave(self, rows: np.ndarray, planes: np.ndarray, run: Run) -> None:
        """Fills in planes (K, N) from rows of channels at the pixels' positions."""
        flat, layout = planes.reshape(-1), self.layout
        placed = self._width, layout.positions, self.channels, self.classes, flat
        run(lambda part: layouts.permute_out(rows, layout.tiles[part], *placed), self.parts)

    def numbers(self, part: int) -> slice:
        """The numbers of a part's copies in a table of one row of channels each."""
        return slice(self.layout.ranges[0][part, 0] * self.channels, self.layout.ranges[-1][part, 1] * self.channels)

    def sweep(
        self,
        part: int,
        rows: tuple[np.ndarray, np.ndarray, np.ndarray],
        messages: np.ndarray,
        copies: np.ndarray,
        stage: int,
        damping: float = 0.0,
        origin: int = 0,
    ) -> float:
        """Passes over the pixels of a part, and fills in its copies.

        Args:
            part: its number.
            rows: the kernel's `base`, `kept` and `change`.
            messages: the part's.
            copies: all parts'.
            stage: one of the kernel's.
            damping: share of the old marginals.
            origin: the position with which `kept` begins.
        """
        layout, kind = self.layout, kernels.FORWARDS
        weights = self.shares, self.sends
        if stage in (kernels.TURN, kernels.RETURN):
            kind, weights = kernels.BACKWARDS, (self.sends, self.shares)
        elif stage == kernels.WATCH:
            kind = kernels.WATCHED
        places = layout.heads[part].reshape(-1), layout.rows.reshape(-1)
        own = copies[self.numbers(part)]
        if stage not in (kernels.FINISH, kernels.FINISH_LOG):
            own[:] = 0
        fixed = *places, *(w.reshape(-1) for w in weights), messages, own
        kernel = kernels.sweep_kernel(self.axes[0], sum(self.axes[1:]), kind)
        how = stage, np.float32(damping), origin
        return float(kernel(layout.groups[part], layout.bounds[part + 1], self.channels, *rows, *fixed, how))

    def filter(self, work: Buffers, lattices: Sequence[np.ndarray], run: Run) -> None:
        """Adds the parts' copies up in lattices and blurs them."""
        blocks = np.ndindex(len(lattices), self.channels // 8)
        largest_first = sorted(blocks, key=lambda index: -self.sizes[index[0]])

        def filter_block(index: tuple[int, int]) -> None:
            term, _ = index
            with work.scratch[term]() as scratch:
                self.filter_block(work.copies, lattices[term], scratch, index)

        run(filter_block, largest_first)

    def filter_block(
        self,
        copies: np.ndarray,
        lattice: np.ndarray,
        scratch: np.ndarray,
        index: tuple[int, int],
        transpose: bool = False,
        look: Callable[[np.ndarray], None] | None = None,
        rows: Rows | None = None,
    ) -> None:
        """Filters a block (term, eight channels); `look` sees the sums before they are blurred."""
        term, block = index
        target = lattice[block].reshape(-1)
        source, other = (target, scratch) if self.axes[term] % 2 == 0 else (scratch, target)
        self.collect(copies, block, source, rows or self.rows(term))
        if look is not None:
            look(source)
        kernels.blur(self.terms[term].tables[3], source, other, transpose)

    def rows(self, term: int) -> Rows:
        """The copies of a term in a table of all terms' copies."""
        return Rows(self.layout.owners, self.layout.ranges[term])

    def collect(self, copies: np.ndarray, block: int, lattice: np.ndarray, rows: Rows) -> None:
        """Adds the parts' copies of a block of eight channels up."""
        kernels.collect(rows.owners, rows.ranges, copies[8 * block :], self.channels, lattice)

    def fetch(
        self,
        part: int,
        lattices: Sequence[np.ndarray] | None,
        weights: Sequence[np.ndarray],
        messages: np.ndarray,
    ) -> None:
        """Hands a part its messages from all lattices; None of them is nothing."""
        if lattices is None:
            messages[:] = 0
            return
        start = self.numbers(part).start
        for ranges, lattice, weight in zip(self.layout.ranges, lattices, weights, strict=True):
            first, last = ranges[part]
            own = messages[first * self.channels - start :]
            kernels.fetch(self.layout.owners[first:last], lattice, weight, self.channels, own)


@dataclass(frozen=True)
class Buffers:
    """What an iteration works with.

    Attributes:
        copies: the parts' copies of what pixels send to vertices, a row of channels each.
        scratch: for each term tables for a block of its lattice.
        messages: tables for what a part's copies receive.
    """

    copies: np.ndarray
    scratch: list[Spare]
    messages: Spare

    @classmethod
    def of(cls, state: MeanField, space: Workspace) -> Buffers:
        """Buffers for an image."""
        rows = len(state.layout.owners) * state.channels
        scratch = [Spare(8 * size, space) for size in state.sizes]
        largest = max(own.stop - own.start for own in map(state.numbers, state.parts))
        return cls(space.empty(rows), scratch, Spare(largest, space))
