"""How the work on an image is shared out for mean field with Numba.

Pixels are worked through by tiles of the image and, within a tile, by simplex, so that the vertices they share are in
the cache. Tiles are dealt to parts, each with its own copy of the vertices that it touches. The number of parts depends
on the image alone and their copies are added up in order: results do not depend on the number of threads.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from piecewise_training.crf import _numba_layout as layouts
from piecewise_training.crf._workspace import Workspace

Run = Callable[[Callable[[Any], Any], Iterable[Any]], list[Any]]
Tables = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # as `_reference.Tables`

PIXELS_A_PART = 20_000
MOST_PARTS = 16


class Term(NamedTuple):
    """One term of an image.

    Attributes:
        tables: its lattice, float32.
        before: the factor of each pixel before filtering (N,).
        after: the factor of each pixel after filtering (N,); the same array where the two are one.
        mixture: what its filtered marginals add to the logits: (K, K), its diagonal (K,) or a multiple () of identity.
    """

    tables: Tables
    before: np.ndarray
    after: np.ndarray
    mixture: np.ndarray


@dataclass(frozen=True)
class Layout:
    """Where everything lies.

    Attributes:
        order: the pixel at each position.
        positions: the position of each pixel.
        tiles: for each part (tiles, 4), the top, bottom, left and right of its tiles.
        bounds: the positions at which parts begin, and the end.
        groups: for each part the positions at which pixels of another simplex of the first term begin.
        heads: for each part (groups, V), which of its copies are the vertices around each group, of the first term.
        rows: which of its part's copies are those around the pixel at each position (N, V'), of all other terms.
        owners: the vertex behind each copy of all parts, among those of its term.
        ranges: for each term (parts, 2), the first and last copy of its vertices in each part.
    """

    order: np.ndarray
    positions: np.ndarray
    tiles: list[np.ndarray]
    bounds: np.ndarray
    groups: list[np.ndarray]
    heads: list[np.ndarray]
    rows: np.ndarray
    owners: np.ndarray
    ranges: list[np.ndarray]


def finest_first(terms: Sequence[Term]) -> list[int]:
    """The places of terms in the order in which they are worked on."""
    return sorted(range(len(terms)), key=lambda place: -terms[place].tables[1].shape[1])


def lay_out(terms: Sequence[Term], grid: tuple[int, int], space: Workspace, lent: Workspace, run: Run) -> Layout:
    """Lays an image out.

    Args:
        terms: one or more, that with the finest lattice first.
        grid: rows and columns of pixels.
        space: memory for as long as the layout lives.
        lent: memory until results are written.
        run: calls a function for each of some items, on threads.
    """
    height, width = grid
    pixels = height * width
    order, positions = lent.empty(pixels, np.int32), space.empty(pixels, np.int32)
    tiles = np.empty((-(-height // layouts.TILE) * -(-width // layouts.TILE), 4), np.int64)
    starts = np.empty(len(tiles) + 1, np.int64)
    layouts.list_tiles(height, width, tiles, starts)
    count = max(1, min(MOST_PARTS, pixels // PIXELS_A_PART))
    cuts = np.unique(np.searchsorted(starts, np.linspace(0, pixels, count + 1)))
    axes = [term.tables[1].shape[1] for term in terms]
    rows = lent.empty((pixels, sum(axes[1:])), np.int32)
    sizes = [term.tables[3].shape[2] for term in terms]

    def enter(part: tuple[int, int]) -> tuple[list[int], np.ndarray, np.ndarray, np.ndarray]:
        """Fills in the rows of a part; gives where each term's copies begin, their vertices, groups and heads."""
        first, last = starts[list(part)]
        own = np.empty(last - first, np.int32)  # more than there are
        simplices, corners = terms[0].tables[:2]
        found = layouts.sort_tiles(tiles[slice(*part)], starts[part[0] :], width, simplices, order, positions, own)
        points, own = order[first:last], own[:found].copy()
        heads = np.empty((found, axes[0]), np.int32)
        most = min(int(last - first) * sum(axes), sum(sizes))
        owners, counts = np.empty(most, np.int32), [0]
        counts.append(layouts.enter(order[own], simplices, corners, 0, heads, sizes[0], owners, 0))
        for term, (simplices, corners, *_) in enumerate((term.tables for term in terms[1:]), 1):
            column = sum(axes[1:term])
            into = column, rows[first:last], sizes[term], owners
            counts.append(layouts.enter(points, simplices, corners, *into, counts[-1]))
        return counts, owners[: counts[-1]].copy(), own, heads

    parts = list(itertools.pairwise(cuts.tolist()))
    entered = run(enter, parts)
    offsets = np.cumsum([0] + [len(owners) for _, owners, *_ in entered])
    counts = np.array([counts for counts, *_ in entered]) + offsets[:-1, None]
    ranges = [np.ascontiguousarray(counts[:, term : term + 2]) for term in range(len(terms))]
    owners = np.concatenate([owners for _, owners, *_ in entered])
    dealt = [tiles[slice(*part)] for part in parts]
    found, heads = ([parts[place] for parts in entered] for place in (2, 3))
    return Layout(order, positions, dealt, starts[cuts], found, heads, rows, owners, ranges)


def weights_by_pixel(layout: Layout, terms: Sequence[Term], lent: Workspace, run: Run) -> tuple[np.ndarray, np.ndarray]:
    """The weights of each pixel at the vertices of all terms (N, V), in what it receives and in what it sends.

    Where the two are one, they are the same array.
    """
    axes = [term.tables[1].shape[1] for term in terms]
    apart = any(term.before is not term.after for term in terms)
    found = [lent.empty((len(layout.order), sum(axes))) for _ in range(1 + apart)]

    def weigh(part: int) -> None:
        own = slice(*layout.bounds[part : part + 2])
        for term, (tables, before, after, _) in enumerate(terms):
            for factor, table in zip((after, before), found, strict=False):
                layouts.weigh(layout.order[own], tables[2], factor, sum(axes[:term]), table[own])

    run(weigh, range(len(layout.tiles)))
    return found[0], found[-1]
