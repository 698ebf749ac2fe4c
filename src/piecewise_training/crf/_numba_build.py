"""Building the permutohedral lattice with Numba: the twin of `_reference.build`.

Sixteen points at a time go through vector registers. Simplices are looked up in a hash table, one look-up a point, and
vertices only for the distinct simplices, of which an image has ten times fewer than pixels.
"""

from __future__ import annotations

import numpy as np

from piecewise_training.crf._compile import kernel
from piecewise_training.crf._simd import less, load16, maximum, minimum, nearest, spread16, store


@kernel
def _is_recorded(records, simplex, origin, rank, lane, d):  # type: ignore[no-untyped-def]
    for i in range(d):
        if records[simplex, i] != origin[16 * i + lane] or records[simplex, d + i] != rank[16 * i + lane]:
            return False
    return True


@kernel
def _find(vertex, coordinates, table):  # type: ignore[no-untyped-def]
    """The slot of a vertex in the open-addressed table, or the empty slot where it belongs."""
    d = coordinates.shape[1]
    mask = np.uint64(len(table) - 1)
    h = np.uint64(0)
    for i in range(d):
        h = (h ^ np.uint64(vertex[i])) * np.uint64(0x9E3779B97F4A7C15)
        h ^= h >> np.uint64(29)
    slot = h & mask
    while True:
        index = table[slot]
        if index < 0:
            return slot
        same = True
        for i in range(d):
            same = same and coordinates[index, i] == vertex[i]
        if same:
            return slot
        slot = (slot + np.uint64(1)) & mask


@kernel
def _number(vertex, coordinates, table, count):  # type: ignore[no-untyped-def]
    """The number of a vertex; `count`, which it then has, if it is new."""
    slot = _find(vertex, coordinates, table)
    if table[slot] < 0:
        table[slot] = count
        for i in range(len(vertex)):
            coordinates[count, i] = vertex[i]
    return table[slot]


@kernel
def place(points, first, last, scales, simplices, weights, records, table):  # type: ignore[no-untyped-def]
    """Fills in each point's simplex and barycentric weights, and a record of each distinct simplex.

    A record holds the simplex's vertex 0 in units of d + 1, and the ranks of the offsets from it, the last of each left
    out, since they follow from the others.

    Returns:
        the number of distinct simplices.
    """
    d, n = points.shape
    size = d + 1
    number = points.dtype.type
    flat = points.reshape(d * n)
    flat_weights = weights.reshape(n * size)
    feature = np.zeros(16 * d, points.dtype)
    offset = np.empty(16 * size, points.dtype)
    origin = np.empty(16 * size, points.dtype)
    rank = np.empty(16 * size, points.dtype)
    hashes = np.empty(16, points.dtype)
    zero = spread16(number(0))
    mask = len(table) - 1
    count = 0
    latest = -1
    for block in range(first, last, 16):
        lanes = min(16, last - block)
        for j in range(d):
            for lane in range(lanes):
                feature[16 * j + lane] = flat[n * j + block + lane]

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
            whole = load16(origin, 16 * i) + wrap
            r = r + wrap * number(size)
            store(rank, 16 * i, r)
            store(origin, 16 * i, whole)
            store(offset, 16 * i, load16(offset, 16 * i) * number(1 / size) - wrap)
            hashed = hashed + whole * number(1.61803 + 1.04719 * i) + r * number(0.57721 + 0.91596 * i * i)
        store(hashes, 0, hashed)

        # Barycentric weights are the differences of the sorted offsets.
        for end in range(d, 0, -1):
            for i in range(end):
                a, b = load16(offset, 16 * i), load16(offset, 16 * i + 16)
                store(offset, 16 * i, maximum(a, b))
                store(offset, 16 * i + 16, minimum(a, b))
        for lane in range(lanes):
            at = (block + lane) * size
            flat_weights[at] = number(1) + offset[16 * d + lane] - offset[lane]
            for k in range(1, size):
                flat_weights[at + k] = offset[16 * (d - k) + lane] - offset[16 * (d - k + 1) + lane]

        for lane in range(lanes):
            if latest < 0 or not _is_recorded(records, latest, origin, rank, lane, d):  # neighbours mostly share one
                slot = np.int64(hashes[lane] * number(977)) * 0x9E3779B1 >> 12 & mask
                while table[slot] >= 0 and not _is_recorded(records, table[slot], origin, rank, lane, d):
                    slot = slot + 1 & mask
                if table[slot] < 0:
                    table[slot] = count
                    for i in range(d):
                        records[count, i] = origin[16 * i + lane]
                        records[count, d + i] = rank[16 * i + lane]
                    count += 1
                latest = table[slot]
            simplices[block + lane] = latest
    return count


@kernel
def number_vertices(records, vertices, coordinates, table):  # type: ignore[no-untyped-def]
    """Fills in each simplex's vertices and each distinct vertex's coordinates.

    Returns:
        the number of distinct vertices, or -1 where they would fill more than half of the table.
    """
    d = coordinates.shape[1]
    size = d + 1
    vertex = np.empty(d, np.int32)
    count = 0
    for simplex in range(len(records)):
        for k in range(size):
            for i in range(d):
                rank = records[simplex, d + i]
                vertex[i] = np.int32(records[simplex, i]) * size + (k if rank <= d - k else k - size)
            index = _number(vertex, coordinates, table, count)
            count = max(count, index + 1)
            vertices[simplex, k] = index
        if 2 * count > len(table) - 2 * size:
            return -1
    return count


@kernel
def merge(part, numbers, coordinates, table, count):  # type: ignore[no-untyped-def]
    """Adds one part's vertices to all parts', and fills in their numbers there; returns the new count."""
    for v in range(len(part)):
        numbers[v] = _number(part[v], coordinates, table, count)
        count = max(count, numbers[v] + 1)
    return count


@kernel
def link(coordinates, table, axis, neighbours):  # type: ignore[no-untyped-def]
    """Fills in the vertices before and after each vertex along one axis."""
    m, d = coordinates.shape
    vertex = np.empty(d, np.int32)
    for v in range(m):
        for i in range(d):
            vertex[i] = coordinates[v, i] + 1
        if axis < d:
            vertex[axis] -= d + 1
        after = table[_find(vertex, coordinates, table)]
        if after >= 0:
            neighbours[1, v] = after
            neighbours[0, after] = v
