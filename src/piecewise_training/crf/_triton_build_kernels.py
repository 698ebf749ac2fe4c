"""The kernels that build lattices, in Triton: points are placed, and simplices and vertices told apart by name."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["points"])
def place(
    features, bandwidths, elevation, multipliers, weights, corners, simplices, keys, astray, points, D: tl.constexpr,
    P: tl.constexpr, BITS: tl.constexpr, LEFT: tl.constexpr, FARTHEST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Each point's barycentric weights in its simplex, and the names of the simplex and of its vertices.

    A name has the image's number above BITS bits that are linear in a vertex's coordinates, so that its neighbours'
    names are known without them. A key is a simplex's name without its lowest LEFT bits. Where a feature is NaN or
    beyond FARTHEST bandwidths, 1 is left in `astray`. P is a power of two of at least D + 1. See
    `_reference._enclosing_simplex`.
    """
    image = tl.program_id(1).to(tl.int64)
    point = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    axis = tl.arange(0, P)[:, None]  # first, so that a point's numbers are in the registers of one thread
    inside, real = point < points, axis < D + 1
    position = tl.zeros((P, BLOCK), weights.dtype.element_ty)
    for feature in tl.static_range(D):
        value = tl.load(features + (image * D + feature) * points + point, mask=inside, other=0.0)
        value /= tl.load(bandwidths + feature)
        near = tl.abs(value) <= FARTHEST
        tl.store(astray + point * 0, 1, mask=inside & ~near)
        value = tl.where(near, value, 0.0)
        position += tl.load(elevation + feature * (D + 1) + axis, mask=real, other=0.0) * value[None, :]

    multiple = tl.floor(position / (D + 1) + 0.5)  # of the nearest vertex whose coordinates are multiples of D + 1
    offset = tl.where(real, position - multiple * (D + 1), float("-inf"))
    other, own = offset[:, None, :], offset[None, :, :]
    first = (other > own) | ((other == own) & (axis[:, :, None] < tl.arange(0, P)[None, :, None]))
    rank = tl.sum((first & real[:, :, None]).to(tl.int32), 0)
    # Rounding may leave the hyperplane of zero sum; those coordinates are moved that rounding moved most.
    rank += tl.sum(tl.where(real, multiple, 0.0), 0).to(tl.int32)[None, :]
    wrapped = (rank < 0).to(tl.int32) - (rank > D).to(tl.int32)
    rank = tl.where(real, rank + wrapped * (D + 1), -1)
    base = (multiple.to(tl.int32) + wrapped) * (D + 1)
    share = (position - base) / (D + 1)

    place_of_weights = (image * points + point) * (D + 1)
    factor = tl.load(multipliers + axis, mask=axis < D, other=0)
    for corner in tl.static_range(D + 1):
        weight = tl.sum(tl.where(rank == D - corner, share, 0.0), 0)
        weight -= tl.sum(tl.where(rank == (D + 1 - corner) % (D + 1), share, 0.0), 0)
        if corner == 0:
            weight += 1
        tl.store(weights + place_of_weights + corner, weight, mask=inside)
        coordinate = base + tl.where(rank <= D - corner, corner, corner - (D + 1))
        name = _of_image(tl.sum(coordinate.to(tl.int64) * factor, 0), image, BITS)
        tl.store(corners + place_of_weights + corner, name, mask=inside)
    name = tl.sum(base.to(tl.int64) * factor, 0)
    name += tl.sum(rank.to(tl.int64) * tl.load(multipliers + D + axis, mask=axis < D, other=0), 0)
    name = _of_image(name, image, BITS)
    tl.store(simplices + image * points + point, name, mask=inside)
    tl.store(keys + image * points + point, (name >> LEFT).to(tl.int32), mask=inside)


@triton.jit(do_not_specialize=["count"])
def mark(names, order, begins, count, POINTS: tl.constexpr, BLOCK: tl.constexpr):
    """1 where another name begins in this order; with POINTS 2**32 more where a group of so many points may begin."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside, earlier = place < count, (place > 0) & (place < count)
    name = tl.load(names + tl.load(order + place, mask=inside, other=0), mask=inside, other=0)
    before = tl.load(names + tl.load(order + place - 1, mask=earlier, other=0), mask=earlier, other=0)
    new = (place == 0) | (name != before)
    begun = new.to(begins.dtype.element_ty)
    if POINTS:
        begun += (new | (place % POINTS == 0)).to(tl.int64) << 32
    tl.store(begins + place, begun, mask=inside)


@triton.jit(do_not_specialize=["count", "many"])
def group_points(
    sorted_points, numbers, corners, order, simplices, groups, owners, names, count, many, V: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Each point's simplex, where groups begin, which simplex has a group as its first, and names of groups' vertices.

    The points are sorted by simplex; `numbers` are those of their simplices, from 1, and above 32 bits those of their
    groups. A simplex whose key another one has may have several numbers, with the same vertices. The owner of a group
    that is not a simplex's first is -1.
    """
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    earlier = inside & (place > 0)
    point = tl.load(sorted_points + place, mask=inside, other=0)
    number = tl.load(numbers + place, mask=inside, other=0)
    before = tl.load(numbers + place - 1, mask=earlier, other=0)
    simplex, group = number.to(tl.int32), (number >> 32).to(tl.int32)
    first, begins = inside & (simplex != before.to(tl.int32)), inside & (group != (before >> 32).to(tl.int32))
    tl.store(order + place, point.to(tl.int32), mask=inside)
    tl.store(simplices + point, simplex - 1, mask=inside)
    tl.store(owners + group - 1, tl.where(first, simplex - 1, -1), mask=begins)
    tl.store(groups + group - 1, place, mask=begins)
    tl.store(groups + many + place * 0, place + 1, mask=place == count - 1)
    for corner in tl.static_range(V):
        name = tl.load(corners + point * V + corner, mask=begins, other=0)
        tl.store(names + (group - 1).to(tl.int64) * V + corner, name, mask=begins)


@triton.jit(do_not_specialize=["count", "size"])
def number_vertices(
    sorted_sums, names, numbers, owners, entries, vertices, bounds, known, count, size, V: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The sums of groups that go to a vertex, the vertices of each simplex, where a vertex's sums begin, and its name.

    The sums are sorted by vertex; `names` are those of their vertices, unsorted, and `numbers` the numbers, from 1;
    `owners` has of each group the simplex that it is the first of, or -1.
    """
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    entry = tl.load(sorted_sums + place, mask=inside, other=0)
    vertex = tl.load(numbers + place, mask=inside) - 1
    first = inside & (vertex + 1 != tl.load(numbers + place - 1, mask=inside & (place > 0), other=0))
    tl.store(entries + place, entry.to(tl.int32), mask=inside)
    owner = tl.load(owners + entry // V, mask=inside, other=-1)
    tl.store(vertices + owner * V + entry % V, vertex, mask=owner >= 0)
    tl.store(bounds + vertex, place, mask=first)
    tl.store(known + vertex, tl.load(names + entry, mask=first, other=0), mask=first)
    last = place == count - 1
    tl.store(bounds + size + place * 0, place + 1, mask=last)
    tl.store(bounds + size + 1 + place * 0, place + 1, mask=last)


@triton.jit(do_not_specialize=["size", "rounds"])
def find_neighbours(known, steps, found, size, rounds, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """The vertex a step from each: its name is looked for by bisection in those known, which are sorted."""
    side = tl.program_id(1).to(tl.int64)
    vertex = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = vertex < size
    name = tl.load(known + vertex, mask=inside, other=0)
    wanted = _of_image(name + tl.load(steps + side), name >> BITS, BITS)
    low, high = tl.zeros((BLOCK,), tl.int32), tl.zeros((BLOCK,), tl.int32) + size
    for _ in range(rounds):
        middle = (low + high) // 2
        smaller = tl.load(known + middle, mask=middle < size, other=0) < wanted
        low, high = tl.where(smaller & (low < high), middle + 1, low), tl.where(smaller, high, middle)
    there = (low < size) & (tl.load(known + low, mask=low < size, other=-1) == wanted)
    tl.store(found + side * size + vertex, tl.where(there, low, size), mask=inside)


@triton.jit
def _of_image(name, image, BITS: tl.constexpr):
    """A name of which the lower bits are left, and an image's number above them."""
    one = tl.full((), 1, tl.int64)
    return (name & ((one << BITS) - 1)) | (image << BITS)
