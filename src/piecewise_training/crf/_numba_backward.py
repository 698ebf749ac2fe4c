"""The gradients of mean field for one image with Numba, from the last update back to the first.

An update is a softmax of scores, of which a part is linear in the marginals before it. Backwards the linear part is its
transpose, so that the same sweep serves, with gradients where the marginals were. The gradients to compatibilities are
products on the vertices of what was sent there; those to bandwidths need the sums of k_ij (f_i - f_j)² g_i v_j, for
which features times gradients are filtered too. Of each update the filtered marginals are kept, on the vertices; the
marginals of the pixels are made again from them, which takes less memory and little time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from piecewise_training.crf import _numba_sweep as kernels
from piecewise_training.crf._numba_meanfield import IMPOSSIBLE, LOG2_E, Buffers, MeanField, Rows
from piecewise_training.crf._numba_moments import centre, spread
from piecewise_training.crf._numba_parts import Run
from piecewise_training.crf._workspace import Spare, Workspace


class Slopes(NamedTuple):
    """The gradients to what makes up a term.

    Attributes:
        mixture: (K, K) float64.
        learned: where features are given, to the factors before (N,) and after (N,), or if these are one to that one
            and None, and for each feature the sum of k_ij (f_i - f_j)² g_i v_j.
    """

    mixture: np.ndarray
    learned: tuple[np.ndarray, np.ndarray | None, np.ndarray] | None


def gradients(
    state: MeanField,
    log_q: np.ndarray,
    gradient: np.ndarray,
    features: Sequence[tuple[np.ndarray, np.ndarray] | None],
    out: np.ndarray,
    space: Workspace,
    run: Run,
) -> list[Slopes]:
    """Fills in the gradient to the logits, and gives those to the terms in the order of the state's.

    Args:
        state: after an inference that has kept what is needed here.
        log_q: the log-marginals (K, N) that it found.
        gradient: that to the log-marginals (K, N).
        features: (d, N) of each term, and its bandwidths, where these and its factors are learned.
        out: (K, N) float32.
        space: memory for the length of the call.
        run: calls a function for each of some items, on threads.
    """
    assert state.scores is not None
    lent = Workspace(out, space)  # written last
    work = Buffers.of(state, lent)
    terms = range(len(state.terms))
    scores, total = (space.empty(len(state.layout.order) * state.channels) for _ in range(2))
    bounds = state.layout.bounds.tolist()
    marginals = Spare(max(last - first for first, last in itertools.pairwise(bounds)) * state.channels, space)
    lattices = [lent.empty(state.shape_of_lattice(term)) for term in terms]
    forth = [state.weight(term, LOG2_E) for term in terms]
    back = [state.weight(term, 1, transpose=True) for term in terms]
    products = [np.zeros((state.channels, state.channels)) for _ in terms]
    moments = [None if pair is None else _Moments(state, term, *pair, lent, run) for term, pair in enumerate(features)]
    learned = [moment for moment in moments if moment is not None]
    state.enter(state.scores, LOG2_E, IMPOSSIBLE, scores, run)
    state.enter(gradient, np.float32(1), np.float32(0), total, run)

    def turn(part: int) -> None:
        with work.messages() as messages, marginals() as kept:
            state.enter_part(part, log_q, LOG2_E, IMPOSSIBLE, kept, bounds[part])
            state.fetch(part, None, back, messages)
            state.sweep(part, (total, kept, kept), messages, work.copies, kernels.TURN, origin=bounds[part])
            if learned and state.lattices:
                state.fetch(part, state.lattices[-1], forth, messages)
                send(part, kept, messages)

    def send(part: int, gradient: np.ndarray, messages: np.ndarray) -> None:
        """Hands the gradient to the scores after an update on, while the part's pixels are in the cache."""
        for moment in learned:
            moment.send(part, gradient, messages)

    run(turn, state.parts)
    blocks: list[tuple[_Moments | None, int, int, int]] = [
        (None, term, 0, block) for term in terms for block in range(state.channels // 8)
    ]
    blocks += [(moment, moment.term, *index) for moment in learned for index in moment.blocks()]
    blocks.sort(key=lambda index: -state.sizes[index[1]])  # the largest first
    for step in reversed(range(len(state.lattices))):
        filtered = state.lattices[step]

        def pull(index: tuple[_Moments | None, int, int, int]) -> None:
            moment, term, dim, block = index
            if moment is not None:
                moment.filter(dim, block, work)
                return
            own = products[term][8 * block : 8 * block + 8]
            look = lambda sums: kernels.contract(sums, filtered[term], own)  # noqa: E731, B023
            with work.scratch[term]() as scratch:
                state.filter_block(work.copies, lattices[term], scratch, (term, block), True, look)

        def update(part: int) -> None:
            with work.messages() as messages, work.messages() as returned, marginals() as kept:
                state.fetch(part, state.lattices[step - 1] if step else None, forth, messages)  # noqa: B023
                state.sweep(part, (scores, kept, kept), messages, work.copies, kernels.FINISH, origin=bounds[part])
                state.fetch(part, lattices, back, returned)
                for moment in learned:
                    moment.receive(part, kept, returned, back)
                state.sweep(part, (total, kept, kept), returned, work.copies, kernels.RETURN, origin=bounds[part])
                if step:  # noqa: B023
                    send(part, kept, messages)

        run(pull, blocks)
        run(update, state.parts)
    spreads = [None if found is None else found.slopes(run) for found in moments]
    state.leave(total, out, run)  # over tables that were lent
    mixtures = [products[term][: state.classes, : state.classes] * state.weight_of_blur(term) for term in terms]
    return [Slopes(*pair) for pair in zip(mixtures, spreads, strict=True)]


class _Moments:
    """What the gradients to one term's bandwidths and factors are made of.

    For each update from marginals v to scores with the gradient g these are g_i (K v)_i and v_j (K g)_j at each pixel,
    and the sums over pixels of f_j v_j (K f g)_j. A part's pixels are visited once an update: while their marginals are
    at hand they meet what came back for them, and then the gradient before is sent.

    Args:
        state: the inference.
        term: its number, kept.
        features: (d, N).
        bandwidths: (d,).
        space: memory for the tables.
        run: calls a function for each of some items, on threads.
    """

    def __init__(
        self, state: MeanField, term: int, features: np.ndarray, bandwidths: np.ndarray, space: Workspace, run: Run
    ) -> None:
        dims, pixels = features.shape
        self._state, self.term = state, term
        self._features = space.empty((dims, pixels))

        def enter(dim: int) -> None:
            own = self._features[dim]
            np.take(features[dim], state.layout.order, out=own, mode="clip")  # "raise" would make a copy first
            centre(own, float(bandwidths[dim]), own)

        run(enter, range(dims))
        self._received, self._sent = np.zeros((2, pixels), np.float32)  # g_i (K v)_i and v_j (K g)_j at each position
        self._cross = np.zeros((len(state.parts), dims))  # of each part's pixels the sums of f_j v_j (K f g)_j
        # A part numbers its copies over all terms, and the tables hold this term's alone: so many come before them.
        layout = state.layout
        first, last = layout.ranges[term].T
        self._before = first - layout.ranges[0][:, 0]
        ends = np.cumsum(last - first)
        owners = np.concatenate([layout.owners[a:b] for a, b in layout.ranges[term]])
        self._rows = Rows(owners, np.stack([ends - (last - first), ends], 1))
        self._copies = space.empty((dims, len(owners) * state.channels))
        self._lattices = space.empty((dims, *state.shape_of_lattice(term)))
        self._filtered = Spare(dims * int((last - first).max()) * state.channels, space)

    def blocks(self) -> Iterable[tuple[int, int]]:
        """A feature and eight channels each."""
        return np.ndindex(*self._lattices.shape[:2])

    def send(self, part: int, gradient: np.ndarray, messages: np.ndarray) -> None:
        """Multiplies a part's gradient by the messages that the update had, in bits, and sends features times it."""
        state = self._state
        first, last = self._rows.ranges[part]
        self._copies[:, first * state.channels : last * state.channels] = 0
        groups, rows, place = self._places(part, self._copies.shape[1], first)
        fixed = *groups, place, rows
        shares, features, kind = state.shares.reshape(-1), self._features.reshape(-1), self._kind()
        nothing = np.empty(0, np.float32), features, self._received, np.empty(0)
        kernels.receive_kernel(*kind)(*fixed, shares, gradient, messages, *nothing)
        kernels.send_kernel(*kind)(*fixed, shares, gradient, features, self._copies.reshape(-1))

    def filter(self, dim: int, block: int, work: Buffers) -> None:
        """Filters what all parts have sent."""
        with work.scratch[self.term]() as scratch:
            index = self.term, block
            self._state.filter_block(self._copies[dim], self._lattices[dim], scratch, index, True, rows=self._rows)

    def receive(self, part: int, marginals: np.ndarray, returned: np.ndarray, mixtures: Sequence[np.ndarray]) -> None:
        """Multiplies a part's marginals before the update by its messages on the way back."""
        state, term = self._state, self.term
        first, last = self._rows.ranges[part]
        with self._filtered() as filtered:
            tables = filtered[: len(self._lattices) * (last - first) * state.channels].reshape(len(self._lattices), -1)
            for lattice, own in zip(self._lattices, tables, strict=True):
                kernels.fetch(self._rows.owners[first:last], lattice, mixtures[term], state.channels, own)
            groups, rows, place = self._places(part, tables.shape[1], 0)
            values = marginals, returned, filtered, self._features.reshape(-1), self._sent, self._cross[part]
            kernels.receive_kernel(*self._kind())(*groups, place, rows, state.sends.reshape(-1), *values)

    def _kind(self) -> tuple[int, int]:
        return self._state.axes[self.term], int(self.term == 0)

    def _places(self, part: int, stride: int, first: int) -> tuple[tuple[np.ndarray, int], np.ndarray, tuple[int, ...]]:
        """The groups of a part, the rows of its pixels' copies, and a kernel's `place` in tables of a stride.

        `first` is the row of the tables that is the part's first copy of this term.
        """
        state, term, layout = self._state, self.term, self._state.layout
        rows, column = (layout.rows, sum(state.axes[1:term])) if term else (layout.heads[part], 0)
        place = (
            *(rows.shape[1], column, sum(state.axes), sum(state.axes[:term]), state.channels),
            *(int(layout.bounds[part]), len(layout.order), stride, int(first - self._before[part]) * state.channels),
        )
        return (layout.groups[part], layout.bounds[part + 1]), rows.reshape(-1), place

    def slopes(self, run: Run) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        """The gradients to the factors before and after, as in `Slopes`, and the spreads."""
        positions, term = self._state.layout.positions, self._state.terms[self.term]
        self._received /= LOG2_E
        both = self._received + self._sent
        nothing = np.zeros_like(both)  # what came back for the features has been summed up on the way
        squares = np.array(run(lambda feature: spread(feature, both, nothing), self._features))
        spreads = squares - 2 * self._cross.sum(0)
        if term.before is term.after:
            return both[positions] / term.before, None, spreads
        return self._sent[positions] / term.before, self._received[positions] / term.after, spreads
