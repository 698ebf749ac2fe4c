"""The permutohedral lattice as Numba kernels for the CPU; `_reference` is their twin in plain torch.

Kernels release the GIL and run on Python threads, so that they neither need nor disturb a threading layer. Threads
share out images and blocks of channels, which are independent: results do not depend on their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numba import njit
from torch import Tensor

from piecewise_training.crf._reference import Tables

_BLOCK = 8  # channels a vertex row holds: a vector register of AVX2 or two of NEON, and small enough to share out

_kernel: Any = njit(nogil=True, cache=True, boundscheck=False, error_model="numpy", fastmath={"contract"})


def build(features: Float[Tensor, "b d n"]) -> list[Tables]:
    """Finds each point's simplex in the lattice and each vertex's neighbours; see `_reference.build`."""
    return _parallel(_build_one, _array(features))


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
        block = slice(first, first + _BLOCK)
        lattice = _splat_blur(*tables[image], source[image, block], transpose)
        _slice(*tables[image][:2], lattice, target[image, block])

    _parallel(task, [(image, first) for image in range(batch) for first in range(0, channels, _BLOCK)])
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
        lattice = _splat_blur(*tables[image], scaled, transpose)
        _slice_dot(*tables[image][:2], lattice, other[image, block], parts[index])

    _parallel(task, list(np.ndindex(batch, dims, len(blocks))))
    return torch.from_numpy(parts.sum(2))


def _array(values: Tensor) -> np.ndarray:
    return values.detach().contiguous().numpy()


def _arrays(lattices: Sequence[Tables]) -> list[tuple[np.ndarray, ...]]:
    return [tuple(table.numpy() for table in lattice) for lattice in lattices]


def _parallel(task: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """Runs a task on torch's number of threads. A pool of its own survives neither fork nor exit; a fresh one does."""
    work = list(items)
    threads = min(torch.get_num_threads(), len(work))
    if threads == 1:
        return [task(item) for item in work]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(task, work))


def _build_one(points: np.ndarray) -> Tables:
    d, n = points.shape
    vertices = np.empty((n, d + 1), np.int32)
    weights = np.empty((n, d + 1), points.dtype)
    table = np.full(_table_size(n * (d + 1)), -1, np.int32)
    coordinates = np.empty((n * (d + 1), d), np.int32)
    size = _place(points, _scales(d, points.dtype), vertices, weights, coordinates, table)
    neighbours = np.full((d + 1, 2, size), size, np.int32)
    _link(coordinates[:size], table, neighbours)
    return torch.from_numpy(vertices), torch.from_numpy(weights), torch.from_numpy(neighbours)


def _scales(d: int, dtype: np.dtype[Any]) -> np.ndarray:
    return np.array([math.sqrt(2 / 3) * (d + 1) / math.sqrt((i + 1) * (i + 2)) for i in range(d)], dtype)


def _table_size(entries: int) -> int:
    return 1 << (2 * entries - 1).bit_length()


@_kernel
def _hash(coordinate, d):  # type: ignore[no-untyped-def]
    h = np.uint64(0)
    for i in range(d):
        h = (h ^ np.uint64(coordinate[i])) * np.uint64(0x9E3779B97F4A7C15)
        h ^= h >> np.uint64(29)
    return h


@_kernel
def _find(coordinate, coordinates, table):  # type: ignore[no-untyped-def]
    """The slot of a vertex in the open-addressed table, or the empty slot where it belongs."""
    d = coordinates.shape[1]
    mask = np.uint64(len(table) - 1)
    slot = _hash(coordinate, d) & mask
    while True:
        index = table[slot]
        if index < 0:
            return slot
        same = True
        for i in range(d):
            same = same and coordinates[index, i] == coordinate[i]
        if same:
            return slot
        slot = (slot + np.uint64(1)) & mask


@_kernel
def _place(points, scales, vertices, weights, coordinates, table):  # type: ignore[no-untyped-def]
    """Fills in each point's vertices and weights and each distinct vertex's coordinates; returns their number."""
    d, n = points.shape
    size = d + 1
    position = np.empty(size, points.dtype)
    share = np.empty(size + 1, points.dtype)
    origin = np.empty(size, np.int32)
    rank = np.empty(size, np.int32)
    last_origin = np.empty(size, np.int32)
    last_rank = np.full(size, -1, np.int32)
    vertex = np.empty(d, np.int32)
    count = 0
    for p in range(n):
        above = points.dtype.type(0)
        for j in range(d, 0, -1):
            step = points[j - 1, p] * scales[j - 1]
            position[j] = above - j * step
            above += step
        position[0] = above

        total = 0
        for i in range(size):
            origin[i] = np.int32(np.rint(position[i] / size))
            total += origin[i]
            position[i] -= origin[i] * points.dtype.type(size)
            rank[i] = 0
        for i in range(size):
            for j in range(i + 1, size):
                if position[i] < position[j]:
                    rank[i] += 1
                else:
                    rank[j] += 1
        same = p > 0
        for i in range(size):
            rank[i] += total
            if rank[i] < 0:
                rank[i] += size
                origin[i] += 1
                position[i] -= size
            elif rank[i] > d:
                rank[i] -= size
                origin[i] -= 1
                position[i] += size
            same = same and origin[i] == last_origin[i] and rank[i] == last_rank[i]

        share[:] = 0
        for i in range(size):
            share[d - rank[i]] += position[i] / size
            share[size - rank[i]] -= position[i] / size
        weights[p, 0] = 1 + share[0] + share[size]
        for k in range(1, size):
            weights[p, k] = share[k]

        if same:  # neighbouring pixels mostly share a simplex
            for k in range(size):
                vertices[p, k] = vertices[p - 1, k]
            continue
        last_origin[:] = origin
        last_rank[:] = rank
        for k in range(size):
            for i in range(d):
                vertex[i] = origin[i] * size + (k if rank[i] <= d - k else k - size)
            slot = _find(vertex, coordinates, table)
            if table[slot] < 0:
                table[slot] = count
                for i in range(d):
                    coordinates[count, i] = vertex[i]
                count += 1
            vertices[p, k] = table[slot]
    return count


@_kernel
def _link(coordinates, table, neighbours):  # type: ignore[no-untyped-def]
    """Fills in the vertices before and after each vertex along each axis."""
    m, d = coordinates.shape
    vertex = np.empty(d, np.int32)
    for axis in range(d + 1):
        for v in range(m):
            for i in range(d):
                vertex[i] = coordinates[v, i] + 1
            if axis < d:
                vertex[axis] -= d + 1
            after = table[_find(vertex, coordinates, table)]
            if after >= 0:
                neighbours[axis, 1, v] = after
                neighbours[axis, 0, after] = v


@_kernel
def _splat_blur(vertices, weights, neighbours, values, transpose):  # type: ignore[no-untyped-def]
    """The blurred lattice of one block of channels, padded to the full block.

    Rows are sliced out before the loop over channels: only so does LLVM see that it may vectorise.
    """
    axes, _, size = neighbours.shape
    channels, n = values.shape
    value = np.zeros(_BLOCK, values.dtype)
    lattice = np.zeros((size + 1, _BLOCK), values.dtype)  # the last row, for missing neighbours, stays zero
    blurred = np.zeros((size + 1, _BLOCK), values.dtype)
    for p in range(n):
        for c in range(channels):
            value[c] = values[c, p]
        for k in range(axes):
            vertex = lattice[vertices[p, k]]
            weight = weights[p, k]
            for c in range(_BLOCK):
                vertex[c] += weight * value[c]

    half = values.dtype.type(0.5)
    for step in range(axes):
        axis = axes - 1 - step if transpose else step
        for v in range(size):
            before = lattice[neighbours[axis, 0, v]]
            after = lattice[neighbours[axis, 1, v]]
            own = lattice[v]
            result = blurred[v]
            for c in range(_BLOCK):
                result[c] = own[c] + half * (before[c] + after[c])
        lattice, blurred = blurred, lattice
    return lattice


@_kernel
def _read(vertices, weights, lattice, p, value):  # type: ignore[no-untyped-def]
    """The lattice's value at one point, without its constant factor."""
    value[:] = 0
    for k in range(vertices.shape[1]):
        vertex = lattice[vertices[p, k]]
        weight = weights[p, k]
        for c in range(_BLOCK):
            value[c] += weight * vertex[c]


@_kernel
def _slice(vertices, weights, lattice, out):  # type: ignore[no-untyped-def]
    n, axes = vertices.shape
    scale = out.dtype.type(1 / (1 + 2.0 ** (1 - axes)))
    value = np.empty(_BLOCK, out.dtype)
    for p in range(n):
        _read(vertices, weights, lattice, p, value)
        for c in range(len(out)):
            out[c, p] = scale * value[c]


@_kernel
def _slice_dot(vertices, weights, lattice, against, out):  # type: ignore[no-untyped-def]
    n, axes = vertices.shape
    scale = out.dtype.type(1 / (1 + 2.0 ** (1 - axes)))
    value = np.empty(_BLOCK, out.dtype)
    for p in range(n):
        _read(vertices, weights, lattice, p, value)
        total = out.dtype.type(0)
        for c in range(len(against)):
            total += value[c] * against[c, p]
        out[p] = scale * total
