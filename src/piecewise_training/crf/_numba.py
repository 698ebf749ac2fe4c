"""The permutohedral lattice and mean field on the CPU, with Numba; `_reference` is their twin in plain torch.

Kernels release the GIL and run on Python threads, so that they neither need nor disturb a threading layer. Work is cut
into parts whose number depends on the image alone, and sums are taken in the order of the parts: results do not depend
on the number of threads.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from piecewise_training.crf import _numba_build, _numba_filter, _numba_meanfield
from piecewise_training.crf._reference import Tables
from piecewise_training.crf._workspace import Workspace, workspace

_BLOCK = _numba_filter.BLOCK
_POINTS_A_PART = 1 << 15  # in building: fewer parts share more vertices, more parts more threads


def build(features: Float[Tensor, "b d n"]) -> list[Tables]:
    """Finds each point's simplex in the lattice and each vertex's neighbours; see `_reference.build`."""

    def build_one(points: np.ndarray, run: _numba_meanfield.Run) -> Tables:
        with workspace() as space:
            return _build_one(points, space, run)

    with _team() as run:
        if len(features) >= torch.get_num_threads():
            return run(lambda points: build_one(points, _one_by_one), _array(features))
        return [build_one(points, run) for points in _array(features)]


def splat_blur_slice(
    lattices: Sequence[Tables], values: Float[Tensor, "b c n"], transpose: bool = False
) -> Float[Tensor, "b c n"]:
    """Filters values with the lattices' Gaussians; see `_reference.splat_blur_slice`."""
    batch, channels, _ = values.shape
    out = torch.empty(values.shape, dtype=values.dtype)
    source, target = _array(values), out.numpy()
    tables = _arrays(lattices)

    def task(index: tuple[int, int]) -> None:
        image, first = index
        if first == channels - 1:
            _numba_filter.filter_one(*tables[image], source[image, first], transpose, target[image, first])
            return
        block = slice(first, first + _BLOCK)
        lattice = _numba_filter.splat_blur(*tables[image], source[image, block], transpose)
        _numba_filter.slice_out(*tables[image][:3], lattice, target[image, block])

    with _team() as run:
        run(task, [(image, first) for image in range(batch) for first in range(0, channels, _BLOCK)])
    return out


def moments(
    lattices: Sequence[Tables],
    features: Float[Tensor, "b d n"],
    values: Float[Tensor, "b c n"],
    against: Float[Tensor, "b c n"],
    transpose: bool = False,
) -> Float[Tensor, "b d n"]:
    """Filters f v for each feature and contracts it with `against` over the channels; see `_reference.moments`."""
    batch, channels, points = values.shape
    dims = features.shape[1]
    blocks = range(0, channels, _BLOCK)
    parts = np.empty((batch, dims, len(blocks), points), _array(values).dtype)
    feature, source, other = _array(features), _array(values), _array(against)
    tables = _arrays(lattices)

    def task(index: tuple[int, int, int]) -> None:
        image, dim, part = index
        block = slice(blocks[part], blocks[part] + _BLOCK)
        scaled = source[image, block] * feature[image, dim]
        lattice = _numba_filter.splat_blur(*tables[image], scaled, transpose)
        _numba_filter.slice_dot(*tables[image][:3], lattice, other[image, block], parts[index])

    with _team() as run:
        run(task, np.ndindex(batch, dims, len(blocks)))
    return torch.from_numpy(parts.sum(2))


def mean_field(
    terms: Sequence[Sequence[Tables]],
    mixtures: Sequence[Tensor],
    logits: Float[Tensor, "b k n"],
    iterations: int,
    grid: tuple[int, int],
) -> Float[Tensor, "b k n"]:
    """Mean field without gradients, in single precision; see `_reference.mean_field`."""
    tables = [_arrays(lattices) for lattices in terms]
    weights = [_array(mixture) for mixture in mixtures]
    out = torch.empty(logits.shape)
    scores, target = _array(logits), out.numpy()

    def infer(image: int, run: _numba_meanfield.Run) -> None:
        own = [lattices[image if len(lattices) > 1 else 0] for lattices in tables]
        with workspace() as space:
            _numba_meanfield.mean_field(own, weights, scores[image], iterations, grid, target[image], space, run)

    with _team() as run:
        if len(scores) >= torch.get_num_threads():  # whole images side by side
            run(lambda image: infer(image, _one_by_one), range(len(scores)))
        else:
            for image in range(len(scores)):
                infer(image, run)
    return out


def _one_by_one(task: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    return [task(item) for item in items]


@contextmanager
def _team() -> Iterator[_numba_meanfield.Run]:
    """What runs a task for each of some items on torch's number of threads.

    Items are dealt out in turns, and the caller works too: to wake a thread takes as long as a small task. The threads
    end with the context: kept, they would survive neither a fork nor the interpreter's end.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        yield _one_by_one
        return
    with ThreadPoolExecutor(threads - 1) as pool:

        def run(task: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
            work = list(items)
            hands = [work[first::threads] for first in range(min(threads, len(work)))]
            others = [pool.submit(_one_by_one, task, hand) for hand in hands[1:]]
            done = [_one_by_one(task, hand) for hand in hands[:1]] + [other.result() for other in others]
            return [done[i % threads][i // threads] for i in range(len(work))]

        yield run


def _array(values: Tensor) -> np.ndarray:
    return values.detach().contiguous().numpy()


def _arrays(lattices: Sequence[Tables]) -> list[_numba_meanfield.Tables]:
    return [(s.numpy(), v.numpy(), w.contiguous().numpy(), n.numpy()) for s, v, w, n in lattices]


def _build_one(points: np.ndarray, space: Workspace, run: _numba_meanfield.Run) -> Tables:
    d, n = points.shape
    simplices = np.empty(n, np.int32)
    weights = np.empty((n, d + 1), points.dtype)
    multipliers = _multipliers(d)
    parts = min(16, 1 << (n // _POINTS_A_PART).bit_length() >> 1) or 1  # a power of two divides among threads
    cuts = np.linspace(0, n, parts + 1, dtype=int).tolist()
    records = space.empty((n, 2 * d), points.dtype)
    tables = [space.empty(_table_size(last - first), np.int32) for first, last in itertools.pairwise(cuts)]

    def place(part: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Places the points of one part; gives its simplices' vertices and the coordinates and keys of those."""
        first, last = cuts[part : part + 2]
        own, table = records[first:last], tables[part]
        table[:] = -1
        count = _numba_build.place(points, first, last, _scales(d, points.dtype), simplices, weights, own, table)
        vertices = np.empty((count, d + 1), np.int32)
        coordinates = np.empty((vertices.size, d), np.int32)
        keys = np.empty(vertices.size, np.uint64)
        size, table = -1, _empty_table(count // 2 + d + 1)  # images share vertices; where they do not, there is no room
        while size < 0:
            size = _numba_build.number_vertices(own[:count], multipliers, vertices, coordinates, keys, table)
            table = _empty_table(4 * len(table))
        return vertices, coordinates[:size].copy(), keys[:size].copy()

    placed = run(place, range(parts))

    count, simplex, vertices = 0, 0, []
    coordinates = np.empty((sum(len(own) for _, own, _ in placed), d), np.int32)
    keys, table = np.empty(len(coordinates), np.uint64), _empty_table(len(coordinates))
    for part, (corners, own, own_keys) in enumerate(placed):
        numbers = np.empty(len(own), np.int32)
        count = _numba_build.merge(own, own_keys, numbers, coordinates, keys, table, count)
        vertices.append(numbers[corners])
        simplices[slice(*cuts[part : part + 2])] += simplex
        simplex += len(corners)

    neighbours = np.full((d + 1, 2, count), count, np.int32)
    found = coordinates[:count], multipliers, keys, table
    run(lambda axis: _numba_build.link(*found, axis, neighbours[axis]), range(d + 1))
    arrays = simplices, np.concatenate(vertices), weights, neighbours
    return tuple(torch.from_numpy(array) for array in arrays)  # type: ignore[return-value]


def _scales(d: int, dtype: np.dtype[Any]) -> np.ndarray:
    return np.array([math.sqrt(2 / 3) * (d + 1) / math.sqrt((i + 1) * (i + 2)) for i in range(d)], dtype)


def _multipliers(d: int) -> np.ndarray:
    """Odd numbers of 64 bits for the keys of vertices, always the same."""
    return np.random.default_rng(0).integers(0, 1 << 63, d, np.uint64) * np.uint64(2) + np.uint64(1)


def _table_size(entries: int) -> int:
    """Slots of an open-addressed hash table that so many entries fill to less than half."""
    return 2 << entries.bit_length()


def _empty_table(entries: int) -> np.ndarray:
    return np.full(_table_size(entries), -1, np.int32)
