"""The kernels of mean field in one pass over the pixels an iteration.

A pixel meets the lattices of all terms at once: its row of numbers and weights goes over the vertices of every simplex
that it lies in. An iteration reads the messages from them (slice), normalises, and sends the new marginals back (splat)
while they are in registers and the first cache; marginals are written out only in the last one.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from piecewise_training.crf._compile import kernel
from piecewise_training.crf._simd import (
    gather8,
    gather16,
    halves_added,
    highest,
    load8,
    load16,
    maximum,
    minimum,
    mixed,
    nearest,
    put,
    sent,
    spread8,
    store,
    times_power_of_two,
    total,
    transpose8,
)

TILE = 64
GROUP = 16
_f32 = np.float32
_at = np.uint64  # an index of this type is not looked at for being negative, which takes longer than all the rest
_IMPOSSIBLE = _f32(-2e38)  # the score of a class that there is not
_FARTHEST = _f32(1e30)  # the bound of one that there is: larger ones would overflow


@kernel
def list_tiles(height, width, tiles, starts):  # type: ignore[no-untyped-def]
    """Fills in each tile's top, bottom, left and right, and the position of its first pixel; the end comes last."""
    count = position = 0
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            bottom, right = min(top + TILE, height), min(left + TILE, width)
            tiles[count] = top, bottom, left, right
            starts[count] = position
            position += (bottom - top) * (right - left)
            count += 1
    starts[count] = position


@kernel
def sort_tiles(tiles, starts, width, simplices, order, positions, groups):  # type: ignore[no-untyped-def]
    """Sorts the pixels of each tile by their simplex: fills in the pixel at each position and each pixel's position.

    Fills in where groups of up to GROUP pixels of one simplex begin, and returns their number.
    """
    count = 0
    seen = np.full(simplices.max() + 1, -1, np.int32)
    found = np.empty(TILE * TILE, np.int32)
    places = np.empty(TILE * TILE, np.int32)
    for tile in range(len(tiles)):
        top, bottom, left, right = tiles[tile]
        kinds = 0
        for y in range(top, bottom):
            for pixel in range(y * width + left, y * width + right):
                simplex = simplices[pixel]
                if seen[simplex] < 0:
                    seen[simplex] = kinds
                    found[kinds] = simplex
                    places[kinds] = 0
                    kinds += 1
                places[seen[simplex]] += 1
        place = starts[tile]
        for kind in range(kinds):
            size = places[kind]
            places[kind] = place
            for first in range(place, place + size, GROUP):
                groups[count] = first
                count += 1
            place += size
        for y in range(top, bottom):
            for pixel in range(y * width + left, y * width + right):
                kind = seen[simplices[pixel]]
                order[places[kind]] = pixel
                positions[pixel] = places[kind]
                places[kind] += 1
        for kind in range(kinds):
            seen[found[kind]] = -1
    return count


@kernel
def enter(order, first, last, simplices, vertices, weights, size, column, rows, shares, owners, count):  # type: ignore[no-untyped-def]
    """Gives a part its own copies of one term's vertices, numbered as its pixels meet them from `count` on.

    Fills in the copies around its pixels, and their weights, from a column on, and the vertex behind each copy; returns
    the new count.
    """
    axes, columns = vertices.shape[1], rows.shape[1]
    corners, parts = vertices.reshape(vertices.size), weights.reshape(weights.size)
    flat_rows, flat_shares = rows.reshape(rows.size), shares.reshape(shares.size)
    own = np.full(size, -1, np.int32)
    for p in range(first, last):
        pixel = order[_at(p)]
        corner = simplices[_at(pixel)] * axes
        for k in range(axes):
            vertex = _at(corners[_at(corner + k)])
            if own[vertex] < 0:
                own[vertex] = count
                owners[count] = vertex
                count += 1
            place = _at(p * columns + column + k)
            flat_rows[place] = own[vertex]
            flat_shares[place] = parts[_at(pixel * axes + k)]
    return count


@kernel
def _eight(scores, c, pixel, classes, n):  # type: ignore[no-untyped-def]
    """The scores of a class at eight pixels; those of a class that there is not are impossible."""
    if c < classes:
        return minimum(maximum(load8(scores, c * n + pixel), -_FARTHEST), _FARTHEST)
    return spread8(_IMPOSSIBLE)


@kernel
def permute_in(scores, classes, tiles, width, positions, channels, unary):  # type: ignore[no-untyped-def]
    """Scores, flat from (K, N), in bits, as rows of pixels at their positions, padded by impossible classes.

    A tile is (top, bottom, left, right). Eight pixels by eight channels are turned around in registers at a time.
    """
    bits = _f32(1.4426950408889634)
    n = len(scores) // classes
    for top, bottom, left, right in tiles:
        for c in range(0, channels, 8):
            for y in range(top, bottom):
                whole = y * width + left + (right - left) // 8 * 8
                for pixel in range(y * width + left, whole, 8):
                    columns = transpose8(
                        _eight(scores, c, pixel, classes, n),
                        _eight(scores, c + 1, pixel, classes, n),
                        _eight(scores, c + 2, pixel, classes, n),
                        _eight(scores, c + 3, pixel, classes, n),
                        _eight(scores, c + 4, pixel, classes, n),
                        _eight(scores, c + 5, pixel, classes, n),
                        _eight(scores, c + 6, pixel, classes, n),
                        _eight(scores, c + 7, pixel, classes, n),
                    )
                    for lane in range(8):
                        store(unary, positions[_at(pixel + lane)] * channels + c, columns[lane] * bits)
                for pixel in range(whole, y * width + right):
                    for k in range(c, c + 8):
                        score = _IMPOSSIBLE
                        if k < classes:
                            score = min(max(scores[_at(k * n + pixel)], -_FARTHEST), _FARTHEST)
                        unary[_at(positions[_at(pixel)] * channels + k)] = score * bits


@kernel
def permute_out(rows, tiles, width, positions, channels, classes, scores):  # type: ignore[no-untyped-def]
    """Rows of pixels at their positions as scores, flat from (K, N), tile by tile."""
    n = len(scores) // classes
    for top, bottom, left, right in tiles:
        for c in range(0, classes, 8):
            for y in range(top, bottom):
                whole = y * width + left + (right - left) // 8 * 8
                for pixel in range(y * width + left, whole, 8):
                    planes = transpose8(
                        load8(rows, positions[_at(pixel)] * channels + c),
                        load8(rows, positions[_at(pixel + 1)] * channels + c),
                        load8(rows, positions[_at(pixel + 2)] * channels + c),
                        load8(rows, positions[_at(pixel + 3)] * channels + c),
                        load8(rows, positions[_at(pixel + 4)] * channels + c),
                        load8(rows, positions[_at(pixel + 5)] * channels + c),
                        load8(rows, positions[_at(pixel + 6)] * channels + c),
                        load8(rows, positions[_at(pixel + 7)] * channels + c),
                    )
                    for k in range(8):
                        if c + k < classes:
                            store(scores, (c + k) * n + pixel, planes[k])
                for pixel in range(whole, y * width + right):
                    for k in range(c, min(c + 8, classes)):
                        scores[_at(k * n + pixel)] = rows[_at(positions[_at(pixel)] * channels + k)]


@kernel
def fetch(owners, first, last, lattice, mixture, channels, messages, marginals):  # type: ignore[no-untyped-def]
    """Copies a part's vertices of one term out of the blurred lattice, through the compatibility; empties its copies.

    The lattice is (channels / 8, M + 1, 8). A mixture of one row and column stands for a multiple of the identity.
    """
    size = lattice.shape[1]
    flat = lattice.reshape(lattice.size)
    zero = spread8(_f32(0))
    for row in range(first, last):
        vertex = owners[row]
        for c in range(0, channels, 8):
            store(marginals, row * channels + c, zero)
        if len(mixture) == 1:
            for c in range(0, channels, 8):
                place = (c // 8 * size + vertex) * 8
                store(messages, row * channels + c, load8(flat, place) * mixture[0, 0])
        else:
            weights = mixture.reshape(mixture.size)
            for c in range(0, channels, 8):
                x = zero
                for b in range(len(mixture)):
                    x = x + load8(weights, b * channels + c) * lattice[b // 8, vertex, b % 8]
                store(messages, row * channels + c, x)


@kernel
def blur(owners, ranges, marginals, channels, neighbours, lattice, scratch):  # type: ignore[no-untyped-def]
    """Adds up the parts' copies of eight channels, and blurs along every axis; `marginals` begins with the first.

    The last vertex stands for missing neighbours and stays zero. The result comes to lie in `lattice`.
    """
    axes, _, size = neighbours.shape
    source, target = (lattice, scratch) if axes % 2 == 0 else (scratch, lattice)
    zero = spread8(_f32(0))
    for vertex in range(size + 1):
        store(source, vertex * 8, zero)
    store(target, size * 8, zero)
    for part in range(len(ranges)):
        for row in range(ranges[part, 0], ranges[part, 1]):
            place = owners[row] * 8
            store(source, place, load8(source, place) + load8(marginals, row * channels))
    half = _f32(0.5)
    for axis in range(axes):
        for vertex in range(size):
            sides = load8(source, neighbours[axis, 0, vertex] * 8) + load8(source, neighbours[axis, 1, vertex] * 8)
            store(target, vertex * 8, load8(source, vertex * 8) + sides * half)
        source, target = target, source


@kernel
def _exp2(x):  # type: ignore[no-untyped-def]
    """2^x for x up to 0; 2^-80 below -80, which keeps denormal numbers out of the loops that follow."""
    x = maximum(x, _f32(-80))
    whole = nearest(x)
    x = x - whole
    square = x * x
    low = x * _f32(0.69314718056) + _f32(1)
    middle = x * _f32(0.05550410866) + _f32(0.24022650696)
    high = square * _f32(0.00015403530) + (x * _f32(0.00133335581) + _f32(0.00961812911))
    return times_power_of_two(square * (square * high + middle) + low, whole)


@cache
def sweep_kernel(shared: int, others: int) -> Any:
    """The kernel of an iteration for pixels with so many vertices, the first of which their whole group shares."""

    @kernel
    def sweep(groups, last, channels, unary, rows, shares, messages, marginals, final):  # type: ignore[no-untyped-def]
        """Reads each pixel's messages, normalises, and sends its marginals; in the `final` pass unary becomes log Q.

        Channels go through the widest registers, and eight that may be left over through narrower ones.
        """
        axes = shared + others
        wide = channels // 16 * 16
        x = np.empty(GROUP * channels, np.float32)
        for g in range(len(groups)):
            start = groups[g]
            stop = groups[g + 1] if g + 1 < len(groups) else last
            for c in range(0, wide, 16):
                common = gather16(messages, rows, start * axes, channels, c, shared)
                for p in range(start, stop):
                    base = p * axes
                    own = gather16(messages, rows, base + shared, channels, c, others)
                    message = mixed(load16(unary, p * channels + c), common, shares, base)
                    store(x, (p - start) * channels + c, mixed(message, own, shares, base + shared))
            if wide < channels:
                common_rest = gather8(messages, rows, start * axes, channels, wide, shared)
                for p in range(start, stop):
                    base = p * axes
                    own_rest = gather8(messages, rows, base + shared, channels, wide, others)
                    rest = mixed(load8(unary, p * channels + wide), common_rest, shares, base)
                    store(x, (p - start) * channels + wide, mixed(rest, own_rest, shares, base + shared))

            for p in range(start, stop):
                at = (p - start) * channels
                top = load8(x, at)
                for c in range(8, channels, 8):
                    top = maximum(top, load8(x, at + c))
                shift = highest(top)
                mass = spread8(_f32(0))
                if final:
                    for c in range(0, channels, 8):
                        mass = mass + _exp2(load8(x, at + c) - shift)
                    bits = _f32(np.log2(total(mass)))  # apart from the shift, beside which it might be lost
                    for c in range(0, channels, 8):
                        store(unary, p * channels + c, (load8(x, at + c) - shift - bits) * _f32(0.69314718056))
                    continue
                for c in range(0, wide, 16):
                    likely = _exp2(load16(x, at + c) - shift)
                    store(x, at + c, likely)
                    mass = mass + halves_added(likely)
                if wide < channels:
                    likely_rest = _exp2(load8(x, at + wide) - shift)
                    store(x, at + wide, likely_rest)
                    mass = mass + likely_rest
                share = _f32(1) / total(mass)
                for c in range(0, channels, 8):
                    store(x, at + c, load8(x, at + c) * share)
            if final:
                continue

            for c in range(0, wide, 16):
                sum_common = gather16(marginals, rows, start * axes, channels, c, shared)
                for p in range(start, stop):
                    base = p * axes
                    q = load16(x, (p - start) * channels + c)
                    sum_common = sent(sum_common, q, shares, base)
                    sum_own = gather16(marginals, rows, base + shared, channels, c, others)
                    put(marginals, rows, base + shared, channels, c, sent(sum_own, q, shares, base + shared))
                put(marginals, rows, start * axes, channels, c, sum_common)
            if wide < channels:
                sum_rest = gather8(marginals, rows, start * axes, channels, wide, shared)
                for p in range(start, stop):
                    base = p * axes
                    q_rest = load8(x, (p - start) * channels + wide)
                    sum_rest = sent(sum_rest, q_rest, shares, base)
                    own_sum = gather8(marginals, rows, base + shared, channels, wide, others)
                    put(marginals, rows, base + shared, channels, wide, sent(own_sum, q_rest, shares, base + shared))
                put(marginals, rows, start * axes, channels, wide, sum_rest)

    return sweep
