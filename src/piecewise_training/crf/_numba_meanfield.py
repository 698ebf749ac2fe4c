"""Mean field for one image with Numba: how its pixels are laid out and its work shared out; the twin of `_reference`'s.

Pixels are worked through by tiles of the image and, within a tile, by simplex, so that the vertices they share are in
the cache. Tiles are dealt to parts, each with its own copy of the vertices that it touches. The number of parts depends
on the image alone and their copies are added up in order: results do not depend on the number of threads.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from piecewise_training.crf import _numba_sweep as kernels
from piecewise_training.crf._workspace import Workspace

Run = Callable[[Callable[[Any], Any], Iterable[Any]], list[Any]]
Tables = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # as `_reference.Tables`

_LOG2_E = 1.4426950408889634
_PIXELS_A_PART = 20_000
_MOST_PARTS = 16


@dataclass(frozen=True)
class _Layout:
    """Where everything lies.

    Attributes:
        positions: the position of each pixel.
        tiles: for each part (tiles, 4), the top, bottom, left and right of its tiles.
        bounds: the positions at which parts begin, and the end.
        groups: for each part the positions at which pixels of another simplex of the finest lattice begin.
        rows: the parts' copies of the vertices around the pixel at each position (N, V), those of all terms.
        shares: its weight at each of them.
        owners: the vertex behind each copy, among those of its term.
        ranges: for each term (parts, 2), the first and last copy of its vertices in each part.
    """

    positions: np.ndarray
    tiles: list[np.ndarray]
    bounds: np.ndarray
    groups: list[np.ndarray]
    rows: np.ndarray
    shares: np.ndarray
    owners: np.ndarray
    ranges: list[np.ndarray]


def mean_field(
    terms: Sequence[Tables],
    mixtures: Sequence[np.ndarray],
    logits: np.ndarray,
    iterations: int,
    grid: tuple[int, int],
    out: np.ndarray,
    space: Workspace,
    run: Run,
) -> None:
    """Fills in the log-marginals of one image; see `_reference.mean_field`.

    Args:
        terms: the lattice of each term, float32.
        mixtures: (K, K) or () of each term: what its filtered marginals add to the logits.
        logits: (K, N) float32.
        iterations: updates.
        grid: rows and columns of the pixels.
        out: (K, N) float32.
        space: memory.
        run: calls a function for each of some items, on threads.
    """
    # The finest lattice first: pixels are grouped by its simplices.
    terms, mixtures = zip(
        *sorted(zip(terms, mixtures, strict=True), key=lambda pair: -pair[0][1].shape[1]), strict=True
    )
    classes, pixels = logits.shape
    scores = logits.reshape(-1)
    channels = -(-classes // 8) * 8
    layout = _lay_out(terms, grid, space, run)
    weights = [_padded(m, classes, channels, t[1].shape[1]) for m, t in zip(mixtures, terms, strict=True)]
    sizes = [neighbours.shape[2] + 1 for *_, neighbours in terms]
    messages = space.empty(max(len(layout.owners), sum(sizes)) * channels)  # also what the blur needs beside lattices
    marginals = space.empty(len(layout.owners) * channels)
    lattices = [space.empty((channels // 8, size, 8)) for size in sizes]
    unary = space.empty(pixels * channels)
    shared = terms[0][1].shape[1]
    sweep = kernels.sweep_kernel(shared, layout.rows.shape[1] - shared)
    rows, shares = layout.rows.reshape(-1), layout.shares.reshape(-1)
    parts = range(len(layout.bounds) - 1)

    def begin(part: int) -> None:
        kernels.permute_in(scores, classes, layout.tiles[part], grid[1], layout.positions, channels, unary)
        for ranges in layout.ranges:
            first, last = ranges[part] * channels
            messages[first:last] = 0
            marginals[first:last] = 0

    def update(part: int, iteration: int) -> None:
        if iteration:
            for ranges, lattice, weight in zip(layout.ranges, lattices, weights, strict=True):
                kernels.fetch(layout.owners, *ranges[part], lattice, weight, channels, messages, marginals)
        final = iteration == iterations
        last = layout.bounds[part + 1]
        sweep(layout.groups[part], last, channels, unary, rows, shares, messages, marginals, final)

    def blur(index: tuple[int, int]) -> None:
        term, block = index
        lattice = lattices[term][block].reshape(-1)
        start = sum(sizes[:term]) * channels + block * lattice.size
        sent = layout.owners, layout.ranges[term], marginals[8 * block :], channels
        kernels.blur(*sent, terms[term][3], lattice, messages[start : start + lattice.size])

    blocks = sorted(np.ndindex(len(terms), channels // 8), key=lambda index: -terms[index[0]][3].size)
    run(begin, parts)
    for iteration in range(iterations + 1):
        run(lambda part: update(part, iteration), parts)  # noqa: B023
        if iteration < iterations:
            run(blur, blocks)
    placed = grid[1], layout.positions, channels, classes, out.reshape(-1)
    run(lambda part: kernels.permute_out(unary, layout.tiles[part], *placed), parts)


def _lay_out(terms: Sequence[Tables], grid: tuple[int, int], space: Workspace, run: Run) -> _Layout:
    height, width = grid
    pixels = height * width
    order, positions = (space.empty(pixels, np.int32) for _ in range(2))
    tiles = np.empty((-(-height // kernels.TILE) * -(-width // kernels.TILE), 4), np.int64)
    starts = np.empty(len(tiles) + 1, np.int64)
    kernels.list_tiles(height, width, tiles, starts)
    count = max(1, min(_MOST_PARTS, pixels // _PIXELS_A_PART))
    cuts = np.unique(np.searchsorted(starts, np.linspace(0, pixels, count + 1)))
    axes = [vertices.shape[1] for _, vertices, _, _ in terms]
    rows = space.empty((pixels, sum(axes)), np.int32)
    shares = space.empty((pixels, sum(axes)))
    groups = space.empty(pixels, np.int32)

    def enter(part: tuple[int, int]) -> tuple[list[int], np.ndarray, np.ndarray]:
        """Fills in the rows of a part; gives where each term's copies begin, the vertices behind them, and groups."""
        first, last = starts[list(part)]
        own = groups[first:last]
        found = kernels.sort_tiles(tiles[slice(*part)], starts[part[0] :], width, terms[0][0], order, positions, own)
        most = min(int(last - first) * sum(axes), sum(neighbours.shape[2] for *_, neighbours in terms))
        owners, counts, column = np.empty(most, np.int32), [0], 0
        for simplices, vertices, weights, neighbours in terms:
            lattice = simplices, vertices, weights, neighbours.shape[2]
            counts.append(kernels.enter(order, first, last, *lattice, column, rows, shares, owners, counts[-1]))
            column += vertices.shape[1]
        return counts, owners[: counts[-1]].copy(), own[:found]

    parts = list(itertools.pairwise(cuts.tolist()))
    entered = run(enter, parts)
    offsets = np.cumsum([0] + [len(owners) for _, owners, _ in entered])
    counts = np.array([counts for counts, *_ in entered]) + offsets[:-1, None]

    def shift(part: int) -> None:
        rows[slice(*starts[list(parts[part])])] += np.int32(offsets[part])

    run(shift, range(1, len(parts)))
    ranges = [np.ascontiguousarray(counts[:, term : term + 2]) for term in range(len(terms))]
    owners = np.concatenate([owners for _, owners, _ in entered])
    dealt = [tiles[slice(*part)] for part in parts]
    return _Layout(positions, dealt, starts[cuts], [own for *_, own in entered], rows, shares, owners, ranges)


def _padded(mixture: np.ndarray, classes: int, channels: int, axes: int) -> np.ndarray:
    """A mixture in bits and with the lattice's constant factor, from class b (row) to channel c (column)."""
    factor = _LOG2_E / (1 + 2.0 ** (1 - axes))
    if mixture.ndim == 0:
        return np.full((1, 1), factor * mixture, np.float32)
    padded = np.zeros((classes, channels), np.float32)
    padded[:, :classes] = factor * mixture.T
    return padded
