"""The lattice's kernels for GPUs in Triton, each a few lines of what `_reference` does in plain torch.

Values are rows: one row of channels for each point or vertex, the points of a batch one after the other. A lattice
serves the whole batch, or is the same for each of so many copies of its points. Tensors of two axes in a kernel have
points or vertices first and channels second. No sum depends on the order in which programs run.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def place(
    features, elevation, multipliers, weights, corners, simplices, points, D: tl.constexpr, P: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Each point's barycentric weights in its simplex, and 64-bit names of the simplex and of its vertices.

    A vertex's name is linear in its coordinates, so that its neighbours' are known without them. P is a power of two of
    at least D + 1. See `_reference._enclosing_simplex`.
    """
    image = tl.program_id(1).to(tl.int64)
    point = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    axis = tl.arange(0, P)
    inside, real = point < points, axis < D + 1
    position = tl.zeros((BLOCK, P), weights.dtype.element_ty)
    for feature in tl.static_range(D):
        value = tl.load(features + (image * D + feature) * points + point, mask=inside, other=0.0)
        position += value[:, None] * tl.load(elevation + feature * (D + 1) + axis, mask=real, other=0.0)[None, :]

    multiple = tl.floor(position / (D + 1) + 0.5)  # of the nearest vertex whose coordinates are multiples of D + 1
    offset = tl.where(real[None, :], position - multiple * (D + 1), float("-inf"))
    before, after = offset[:, None, :], offset[:, :, None]
    first = (before > after) | ((before == after) & (axis[None, None, :] < axis[None, :, None]))
    rank = tl.sum((first & real[None, None, :]).to(tl.int32), 2)
    # Rounding may leave the hyperplane of zero sum; those coordinates are moved that rounding moved most.
    rank += tl.sum(tl.where(real[None, :], multiple, 0.0), 1).to(tl.int32)[:, None]
    wrapped = (rank < 0).to(tl.int32) - (rank > D).to(tl.int32)
    rank = tl.where(real[None, :], rank + wrapped * (D + 1), -1)
    base = (multiple.to(tl.int32) + wrapped) * (D + 1)
    share = (position - base) / (D + 1)

    place_of_weights = (image * points + point) * (D + 1)
    own = tl.load(multipliers + axis, mask=axis < D, other=0)[None, :]
    for corner in tl.static_range(D + 1):
        weight = tl.sum(tl.where(rank == D - corner, share, 0.0), 1)
        weight -= tl.sum(tl.where(rank == (D + 1 - corner) % (D + 1), share, 0.0), 1)
        if corner == 0:
            weight += 1
        tl.store(weights + place_of_weights + corner, weight, mask=inside)
        coordinate = base + tl.where(rank <= D - corner, corner, corner - (D + 1))
        tl.store(corners + place_of_weights + corner, tl.sum(coordinate.to(tl.int64) * own, 1), mask=inside)
    others = tl.load(multipliers + D + axis, mask=axis < D, other=0)[None, :]
    name = tl.sum(base.to(tl.int64) * own + rank.to(tl.int64) * others, 1)
    tl.store(simplices + image * points + point, name, mask=inside)


@triton.jit
def splat(
    order, bounds, weights, factor, rows, sums, points, groups, channels, SCALED: tl.constexpr, V: tl.constexpr,
    C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What each group of at most BLOCK points of one simplex gives to its V vertices."""
    group, copy = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, C)
    place = tl.load(bounds + group) + tl.arange(0, BLOCK)
    inside = place < tl.load(bounds + group + 1)
    point = tl.load(order + place, mask=inside, other=0)
    row = copy * points + point
    here = inside[:, None] & (channel < channels)[None, :]
    value = tl.load(rows + row[:, None] * channels + channel[None, :], mask=here, other=0.0)
    if SCALED:
        value *= tl.load(factor + row, mask=inside, other=0.0)[:, None]
    for corner in tl.static_range(V):
        weight = tl.load(weights + point.to(tl.int64) * V + corner, mask=inside, other=0.0)
        given = tl.sum(value * weight[:, None], 0)
        tl.store(sums + ((copy * groups + group) * V + corner) * channels + channel, given, mask=channel < channels)


@triton.jit
def gather(
    entries, bounds, sums, lattice, many, size, channels, C: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Each vertex's sum of what the groups around it give; 0 for the row after the last, of missing neighbours."""
    vertex, copy = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, C)
    first, last = tl.load(bounds + vertex), tl.load(bounds + vertex + 1)
    total = tl.zeros((C,), lattice.dtype.element_ty)
    for start in range(first, last, BLOCK):
        place = start + tl.arange(0, BLOCK)
        entry = tl.load(entries + place, mask=place < last, other=0)
        row = copy * many + entry
        here = (place < last)[:, None] & (channel < channels)[None, :]
        total += tl.sum(tl.load(sums + row[:, None] * channels + channel[None, :], mask=here, other=0.0), 0)
    tl.store(lattice + (copy * size + vertex) * channels + channel, total, mask=channel < channels)


@triton.jit
def blur(
    before, after, source, target, size, channels, C: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Along one axis each vertex plus half of its two neighbours; the row after the last stays 0."""
    vertex, copy = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, C)
    real = vertex < size - 1
    here = real[:, None] & (channel < channels)[None, :]
    first = copy * size
    own = (first + vertex)[:, None] * channels + channel[None, :]
    left = first + tl.load(before + vertex, mask=real, other=0)
    right = first + tl.load(after + vertex, mask=real, other=0)
    value = tl.load(source + own, mask=here, other=0.0)
    value += 0.5 * (
        tl.load(source + left[:, None] * channels + channel[None, :], mask=here, other=0.0)
        + tl.load(source + right[:, None] * channels + channel[None, :], mask=here, other=0.0)
    )
    tl.store(target + own, value, mask=(vertex < size)[:, None] & (channel < channels)[None, :])


@triton.jit
def _read(
    simplices, vertices, weights, lattice, point, inside, copy, size, channels, V: tl.constexpr, C: tl.constexpr
):  # fmt: skip
    """What points read from the vertices of their simplex."""
    channel = tl.arange(0, C)
    here = inside[:, None] & (channel < channels)[None, :]
    simplex = tl.load(simplices + point, mask=inside, other=0).to(tl.int64)
    total = tl.zeros((point.shape[0], C), lattice.dtype.element_ty)
    for corner in tl.static_range(V):
        vertex = copy * size + tl.load(vertices + simplex * V + corner, mask=inside, other=0)
        weight = tl.load(weights + point.to(tl.int64) * V + corner, mask=inside, other=0.0)
        value = tl.load(lattice + vertex[:, None] * channels + channel[None, :], mask=here, other=0.0)
        total += weight[:, None] * value
    return total


@triton.jit
def slice_out(
    simplices, vertices, weights, factor, lattice, rows, points, size, channels, share, SCALED: tl.constexpr,
    V: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The filtered rows: `share` and a point's factor times what it reads."""
    point, copy = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1).to(tl.int64)
    inside = point < points
    value = _read(simplices, vertices, weights, lattice, point, inside, copy, size, channels, V, C) * share
    row = copy * points + point
    if SCALED:
        value *= tl.load(factor + row, mask=inside, other=0.0)[:, None]
    channel = tl.arange(0, C)
    here = inside[:, None] & (channel < channels)[None, :]
    tl.store(rows + row[:, None] * channels + channel[None, :], value, mask=here)


@triton.jit
def update(
    simplices, vertices, weights, factor, gain, lattice, scores, rows, points, size, channels, share,
    SCALED: tl.constexpr, RESULT: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds a term's message to scores in one pass over the points, and after the last term normalises.

    The message is what a point reads, times `share`, its factor and the gain of each channel. RESULT says what is
    written: 0 the scores, 1 the marginals, 2 their logarithms.
    """
    point, copy = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, C)
    inside = point < points
    here = inside[:, None] & (channel < channels)[None, :]
    row = copy * points + point
    value = _read(simplices, vertices, weights, lattice, point, inside, copy, size, channels, V, C) * share
    if SCALED:
        value *= tl.load(factor + row, mask=inside, other=0.0)[:, None]
    place = row[:, None] * channels + channel[None, :]
    value *= tl.load(gain + channel, mask=channel < channels, other=0.0)[None, :]
    value += tl.load(scores + place, mask=here, other=0.0)
    if RESULT:
        value = tl.where((channel < channels)[None, :], value, float("-inf"))
        value -= tl.max(value, 1)[:, None]
        powers = tl.exp(value)
        total = tl.sum(powers, 1)[:, None]
        value = powers / total if RESULT == 1 else value - tl.log(total)
    tl.store(rows + place, value, mask=here)
