"""Building the permutohedral lattice with Numba: the twin of `_reference.build`.

Sixteen points at a time go through vector registers. Simplices are looked up in a hash table, one look-up a point, and
vertices only for the distinct simplices, of which an image has ten times fewer than pixels.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from piecewise_training.crf._compile import kernel
from piecewise_training.crf._simd import less, load16, maximum, minimum, nearest, spread16, store

_at = np.uint64  # an index of this type is not looked at for being negative, which takes longer than all the rest


@kernel
def _is_recorded(records, simplex, record, lane, d):  # type: ignore[no-untyped-def]
    same = True
    for i in range(d):
        same = same and records[_at(simplex * d + i)] == record[_at(16 * i + lane)]
    return same


def mixing(d: int) -> np.ndarray:
    """Factors whose multiples hardly ever have equal sums: powers of pi, halved so often that each sum counts all."""
    powers = np.pi ** np.arange(1, d + 1)
    return powers * 0.5 ** np.ceil(np.log2(powers / 1e4)).clip(min=0)


@cache
def place_kernel(d: int) -> Any:
    """The kernel that places points of d features."""
    size, factors = d + 1, mixing(d)

    @kernel
    def place(points, first, last, scales, simplices, weights, records, table):  # type: ignore[no-untyped-def]
        """Fills in each point's simplex and barycentric weights, and a record of each distinct simplex.

        A record holds for each coordinate that of the simplex's vertex 0, a multiple of d + 1, plus the rank of the
        offset from it; the last is left out, since it follows from the others.

        Returns:
            the number of distinct simplices.
        """
        n = points.shape[1]
        number = points.dtype.type
        flat = points.reshape(d * n)
        flat_weights = weights.reshape(n * size)
        flat_records = records.reshape(records.size)
        feature = np.zeros(16 * d, points.dtype)
        offset = np.empty(16 * size, points.dtype)
        origin = np.empty(16 * size, points.dtype)
        rank = np.empty(16 * size, points.dtype)
        record = np.empty(16 * d, points.dtype)
        hashes = np.empty(16, points.dtype)
        zero = spread16(number(0))
        mask = len(table) - 1
        count = 0
        for block in range(first, last, 16):
            lanes = min(16, last - block)
            for j in range(d):
                if lanes == 16:
                    store(feature, 16 * j, load16(flat, n * j + block))
                else:
                    for lane in range(lanes):
                        feature[_at(16 * j + lane)] = flat[_at(n * j + block + lane)]

            # The elevated position: the point in the hyperplane of zero sum in d + 1 dimensions.
            above = zero
            for j in range(d, 0, -1):
                step = load16(feature, 16 * (j - 1)) * scales[j - 1]
                store(offset, 16 * j, above - step * number(j))
                above = above + step
            store(offset, 0, above)

            # The nearest vertex whose coordinates are multiples of d + 1, and the offsets from it by rank.
            excess = zero
            for i in range(size):
                position = load16(offset, 16 * i)
                whole = nearest(position * number(1 / size))
                store(offset, 16 * i, position - whole * number(size))
                store(origin, 16 * i, whole)
                excess = excess + whole
            for i in range(size):
                store(rank, 16 * i, excess)
            for i in range(size):
                for j in range(i + 1, size):
                    lower = less(load16(offset, 16 * i), load16(offset, 16 * j))
                    store(rank, 16 * i, load16(rank, 16 * i) + lower)
                    store(rank, 16 * j, load16(rank, 16 * j) + (number(1) - lower))
            # Rounding may have left the hyperplane: move those coordinates that it moved most.
            hashed = zero
            for i in range(size):
                r = load16(rank, 16 * i)
                wrap = less(r, zero) - less(zero + number(d + 0.5), r)
                store(offset, 16 * i, load16(offset, 16 * i) * number(1 / size) - wrap)
                if i < d:
                    own = (load16(origin, 16 * i) + wrap + wrap) * number(size) + r
                    store(record, 16 * i, own)
                    hashed = hashed + own * number(factors[i])
            store(hashes, 0, hashed)

            # Barycentric weights are the differences of the sorted offsets.
            for end in range(d, 0, -1):
                for i in range(end):
                    a, b = load16(offset, 16 * i), load16(offset, 16 * i + 16)
                    store(offset, 16 * i, maximum(a, b))
                    store(offset, 16 * i + 16, minimum(a, b))
            for lane in range(lanes):
                start = (block + lane) * size
                flat_weights[_at(start)] = number(1) + offset[_at(16 * d + lane)] - offset[_at(lane)]
                for k in range(1, size):
                    higher = 16 * (d - k) + lane
                    flat_weights[_at(start + k)] = offset[_at(higher)] - offset[_at(higher + 16)]

            for lane in range(lanes):
                slot = np.int64(hashes[_at(lane)] * number(977)) * 0x9E3779B1 >> 12 & mask
                simplex = table[_at(slot)]
                while simplex >= 0 and not _is_recorded(flat_records, simplex, record, lane, d):
                    slot = slot + 1 & mask
                    simplex = table[_at(slot)]
                if simplex < 0:
                    simplex = count
                    table[_at(slot)] = count
                    for i in range(d):
                        flat_records[_at(count * d + i)] = record[_at(16 * i + lane)]
                    count += 1
                simplices[_at(block + lane)] = simplex
        return count

    return place


@kernel
def _find(key, vertex, vertices, keys, table):  # type: ignore[no-untyped-def]
    """The slot of a vertex in the open-addressed table, or the empty slot where it belongs.

    Vertices are flat arrays of d coordinates each; a key is their sum with odd multipliers, and tells most of them
    apart without a look at the coordinates.
    """
    d = len(vertex)
    mask = _at(len(table) - 1)
    slot = ((key * _at(0x9E3779B97F4A7C15)) >> _at(32)) & mask
    while True:
        index = table[slot]
        if index < 0:
            return slot
        if keys[_at(index)] == key:
            same = True
            for i in range(d):
                same = same and vertices[_at(index * d + i)] == vertex[_at(i)]
            if same:
                return slot
        slot = (slot + _at(1)) & mask


@kernel
def number_vertices(records, multipliers, vertices, coordinates, keys, table):  # type: ignore[no-untyped-def]
    """Fills in each simplex's vertices, and each distinct vertex's coordinates and key.

    Returns:
        the number of distinct vertices, or -1 where they would fill more than half of the table.
    """
    d = coordinates.shape[1]
    size = d + 1
    flat, flat_records = coordinates.reshape(coordinates.size), records.reshape(records.size)
    vertex = np.empty(d, np.int32)
    origin, rank = np.empty(d, np.int64), np.empty(d, np.int64)
    count = 0
    for simplex in range(len(records)):
        start = simplex * d
        for i in range(d):
            both = np.float64(flat_records[_at(start + i)])
            whole = math.floor((both + 0.5) * (1 / size)) * size
            origin[_at(i)], rank[_at(i)] = whole, np.int64(both) - whole
        for k in range(size):
            key = _at(0)
            for i in range(d):
                coordinate = origin[_at(i)] + (k if rank[_at(i)] <= d - k else k - size)
                key += _at(coordinate) * multipliers[_at(i)]
                vertex[_at(i)] = coordinate
            slot = _find(key, vertex, flat, keys, table)
            if table[slot] < 0:
                table[slot] = count
                keys[_at(count)] = key
                for i in range(d):
                    flat[_at(count * d + i)] = vertex[_at(i)]
                count += 1
            vertices[simplex, k] = table[slot]
        if 2 * count > len(table) - 2 * size:
            return -1
    return count


@kernel
def merge(part, part_keys, numbers, coordinates, keys, table, count):  # type: ignore[no-untyped-def]
    """Adds one part's vertices to all parts', and fills in their numbers there; returns the new count."""
    d = coordinates.shape[1]
    flat = coordinates.reshape(coordinates.size)
    for v in range(len(part)):
        slot = _find(part_keys[v], part[v], flat, keys, table)
        if table[slot] < 0:
            table[slot] = count
            keys[_at(count)] = part_keys[v]
            for i in range(d):
                flat[_at(count * d + i)] = part[v, i]
            count += 1
        numbers[v] = table[slot]
    return count


@kernel
def link(coordinates, multipliers, keys, table, axis, neighbours):  # type: ignore[no-untyped-def]
    """Fills in the vertices before and after each vertex along one axis."""
    m, d = coordinates.shape
    flat = coordinates.reshape(m * d)
    vertex = np.empty(d, np.int32)
    away = multipliers.sum()
    if axis < d:
        away -= multipliers[axis] * _at(d + 1)
    for v in range(m):
        for i in range(d):
            vertex[_at(i)] = flat[_at(v * d + i)] + 1
        if axis < d:
            vertex[axis] -= d + 1
        after = table[_find(keys[_at(v)] + away, vertex, flat, keys, table)]
        if after >= 0:
            neighbours[1, v] = after
            neighbours[0, after] = v
