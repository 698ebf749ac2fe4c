"""The gradients of mean field for one image with Numba, from the last update back to the first.

An update is a softmax of scores, of which a part is linear in the marginals before it. Backwards the linear part is its
transpose, so that the same sweep serves, with gradients where the marginals were. The gradients to compatibilities are
products on the vertices of what was sent there; those to bandwidths need the sums of k_ij (f_i - f_j)² g_i v_j, which
are the same products of features times what was sent. Of each update the filtered marginals are kept, on the vertices;
the marginals of the pixels are made again from them, which takes less memory and little time.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from piecewise_training.crf import _numba_sweep as kernels
from piecewise_training.crf._numba_meanfield import IMPOSSIBLE, LOG2_E, Buffers, MeanField, Rows, Spare
from piecewise_training.crf._numba_parts import Run
from piecewise_training.crf._workspace import Workspace


class Slopes(NamedTuple):
    """The gradients to what makes up a term.

    Attributes:
        mixture: (K, K) float64.
        learned: where features are given, to the factors before (N,) and after (N,), and for each feature the sum of
            k_ij (f_i - f_j)² g_i v_j.
    """

    mixture: np.ndarray
    learned: tuple[np.ndarray, np.ndarray, np.ndarray] | None


def gradients(
    state: MeanField,
    log_q: np.ndarray,
    gradient: np.ndarray,
    features: Sequence[np.ndarray | None],
    out: np.ndarray,
    space: Workspace,
    run: Run,
) -> list[Slopes]:
    """Fills in the gradient to the logits, and gives those to the terms in the order of the state's.

    Args:
        state: after an inference that has kept what is needed here.
        log_q: the log-marginals (K, N) that it found.
        gradient: that to the log-marginals (K, N).
        features: (d, N) of each term in bandwidths, where its factors and bandwidths are learned.
        out: (K, N) float32.
        space: memory for the length of the call.
        run: calls a function for each of some items, on threads.
    """
    assert state.scores is not None
    lent = Workspace(out, space)  # written last
    work = Buffers.of(state, lent)
    terms = range(len(state.terms))
    scores, total = (space.empty(len(state.layout.order) * state.channels) for _ in range(2))
    # The gradient to the latest scores alone, which only moments ask for.
    change = space.empty(total.size if any(f is not None for f in features) else 0)
    bounds = state.layout.bounds.tolist()
    marginals = Spare(max(last - first for first, last in itertools.pairwise(bounds)) * state.channels)
    lattices = [lent.empty(state.shape_of_lattice(term)) for term in terms]
    forth = [state.weight(term, LOG2_E) for term in terms]
    back = [state.weight(term, 1, transpose=True) for term in terms]
    products = [np.zeros((state.channels, state.channels)) for _ in terms]
    filtering = Spare((state.channels + 2 * 8) * max(state.sizes))
    moments = [None if f is None else _Moments(state, term, f, lent, filtering) for term, f in enumerate(features)]
    state.enter(state.scores, LOG2_E, IMPOSSIBLE, scores, run)
    state.enter(gradient, np.float32(1), np.float32(0), total, run)

    def turn(part: int) -> None:
        with work.messages() as messages, marginals() as kept:
            state.enter_part(part, log_q, LOG2_E, IMPOSSIBLE, kept, bounds[part])
            state.fetch(part, None, back, messages)
            state.sweep(part, (total, kept, change), messages, work.copies, kernels.TURN, origin=bounds[part])

    run(turn, state.parts)
    learned = [moment for moment in moments if moment is not None]
    blocks = [(term, block) for term in terms for block in range(state.channels // 8)]
    for step in reversed(range(len(state.lattices))):
        filtered = state.lattices[step]

        def pull(index: tuple[int, int]) -> None:
            term, block = index
            own = products[term][8 * block : 8 * block + 8]
            look = lambda sums: kernels.contract(sums, filtered[term], own)  # noqa: E731, B023
            scratch = work.scratch[term][block].reshape(-1)
            state.filter_block(work.copies, lattices[term], scratch, index, True, look)

        def update(part: int) -> None:
            with work.messages() as messages, marginals() as kept:
                state.fetch(part, state.lattices[step - 1] if step else None, forth, messages)  # noqa: B023
                state.sweep(part, (scores, kept, change), messages, work.copies, kernels.FINISH, origin=bounds[part])
                state.fetch(part, lattices, back, messages)
                for moment in learned:  # here, while the part's pixels are in the cache
                    moment.send(part, kept, change, filtered, messages, work)  # noqa: B023
                state.sweep(part, (total, kept, change), messages, work.copies, kernels.RETURN, origin=bounds[part])

        run(pull, blocks)
        run(update, state.parts)
        for moment in learned:
            moment.add(run)
    state.leave(total, out, run)
    slopes = []
    for term, found in enumerate(moments):
        mixture = products[term][: state.classes, : state.classes] * state.weight_of_blur(term)
        slopes.append(Slopes(mixture, None if found is None else found.slopes()))
    return slopes


class _Moments:
    """What the gradients to one term's bandwidths and factors are made of.

    Args:
        state: the inference.
        term: its number.
        features: (d, N) in bandwidths.
        space: memory for the tables.
        lattices: memory for a lattice of each thread, and two blocks more.
    """

    def __init__(self, state: MeanField, term: int, features: np.ndarray, space: Workspace, lattices: Spare) -> None:
        dims, pixels = features.shape
        self._state, self._term, self._lattices = state, term, lattices
        self._features = features[:, state.layout.order]
        self._received, self._sent = np.zeros((2, pixels), np.float32)  # g_i (K v)_i and v_j (K g)_j at each position
        self._cross = np.zeros(dims)  # of each feature the sum of k_ij f_i f_j g_i v_j
        # A part numbers its copies over all terms, and the tables hold this term's alone: so many come before them.
        layout = state.layout
        first, last = layout.ranges[term].T
        before = first - layout.ranges[0][:, 0]
        starts = before.max() + np.cumsum(last - first) - (last - first)
        self._begin = (starts - before) * state.channels  # of the number 0 of each part's copies
        own = np.concatenate([layout.owners[a:b] for a, b in layout.ranges[term]])
        owners = np.concatenate([np.zeros(before.max(), own.dtype), own])
        self._rows = Rows(owners, np.stack([starts, starts + last - first], 1))
        self._copies, self._gradients = (space.empty((dims, len(owners) * state.channels)) for _ in range(2))
        self._mixture = state.weight(term, 1)

    def send(
        self,
        part: int,
        kept: np.ndarray,
        change: np.ndarray,
        filtered: Sequence[np.ndarray],
        returned: np.ndarray,
        work: Buffers,
    ) -> None:
        """Works on a part's pixels: the marginals before an update, and the gradient to the scores after it."""
        state, term, layout = self._state, self._term, self._state.layout
        first, last = self._rows.ranges[part] * state.channels
        for table in (self._copies, self._gradients):
            table[:, first:last] = 0
        rows, column = (layout.rows, sum(state.axes[1:term])) if term else (layout.heads[part], 0)
        columns = rows.shape[1], column, sum(state.axes), sum(state.axes[:term])
        place = *columns, state.channels, len(layout.order), self._copies.shape[1], int(layout.bounds[part])
        weights = (table.reshape(-1) for table in (rows, state.shares, state.sends))
        own = (table.reshape(-1)[self._begin[part] :] for table in (self._copies, self._gradients))
        out = self._received, self._sent, *own
        moments = kernels.moments_kernel(state.axes[term], int(term == 0))
        with work.messages() as messages:
            state.fetch_term(part, term, filtered[term], self._mixture, messages)
            values = messages, returned, kept, change, self._features.reshape(-1)
            moments(layout.groups[part], layout.bounds[part + 1], place, *weights, *values, out)

    def add(self, run: Run) -> None:
        """Adds what all parts have sent in one update."""
        self._cross += run(self._product, range(len(self._features)))

    def _product(self, dim: int) -> float:
        """What gradients have sent times what comes to them from marginals, filtered and through the mixture."""
        state, channels = self._state, self._state.channels
        sums = np.zeros((channels, channels))
        with self._lattices() as table:
            blocks, size, _ = state.shape_of_lattice(self._term)
            lattices = table[: (blocks + 2) * size * 8].reshape(blocks + 2, size, 8)
            filtered, scratch, others = lattices[:-2], lattices[-2].reshape(-1), lattices[-1].reshape(-1)
            for block in range(blocks):
                state.filter_block(self._copies[dim], filtered, scratch, (self._term, block), rows=self._rows)
            for block in range(blocks):
                state.collect(self._gradients[dim], block, others, self._rows)
                kernels.contract(others, filtered, sums[8 * block : 8 * block + 8])
        if len(self._mixture) == 1:
            return float((sums.diagonal() * self._mixture[0]).sum())
        return float((sums * self._mixture.T).sum())

    def slopes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The gradients to the factors before and after, and the spreads."""
        positions, term = self._state.layout.positions, self._state.terms[self._term]
        received, sent = self._received[positions], self._sent[positions]
        both = self._received.astype(np.float64) + self._sent
        squares = np.array([np.dot(np.square(feature, dtype=np.float64), both) for feature in self._features])
        return sent / term.before, received / term.after, squares - 2 * self._cross
