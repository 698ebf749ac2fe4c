"""The lattice's kernels for GPUs in Triton, each a few lines of what `_reference` does in plain torch.

Points and vertices have rows of S numbers, one for each channel and zeros up to a multiple of four: a GPU reads four at
a time. C is the next power of two. Planes are a batch as it comes, (B, channels, points). A lattice serves all images,
whose points and vertices follow each other, or is the same for each of so many copies of its points. Tensors of two
axes in a kernel have points or vertices first and channels second. No sum depends on the order in which programs run.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["turn", "copies", "points", "many", "size", "first", "last"])
def spread(
    order, groups, weights, factor, rows, sums, entries, bounds, neighbours, lattice, spare, arrivals,
    turn, copies, points, many, size, first, last,
    SCALED: tl.constexpr, BACKWARDS: tl.constexpr, V: tl.constexpr, S: tl.constexpr, C: tl.constexpr,
    BLOCK: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """From rows of points to the blurred rows of vertices, in phases between which all programs meet.

    Phase 0 sums the points of a group for each vertex of their simplex, phase 1 the sums around a vertex, and the V
    others blur along an axis each, from `lattice` into `spare` and back. A launch of more than one phase needs all its
    programs to run at the same time.
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    for phase in range(first, last):
        _phase(
            phase, program, programs, order, groups, weights, factor, rows, sums, entries, bounds, neighbours, lattice,
            spare, copies, points, many, size, SCALED, BACKWARDS, V, S, C, BLOCK, LANES,
        )  # fmt: skip
        if phase + 1 < last:
            _meet(arrivals + turn, programs * (phase + 1 - first))


@triton.jit(
    do_not_specialize=[
        "copies1", "points1", "many1", "size1", "copies2", "points2", "many2", "size2", "points", "channels", "images",
        "updates",
    ]
)  # fmt: skip
def all_updates(
    order1, groups1, entries1, bounds1, neighbours1, lattice1, spare1, copies1, points1, many1, size1,
    simplices1, vertices1, weights1, before1, after1, gain1, share1,
    order2, groups2, entries2, bounds2, neighbours2, lattice2, spare2, copies2, points2, many2, size2,
    simplices2, vertices2, weights2, before2, after2, gain2, share2,
    logits, rows, sums, arrivals, points, channels, images, updates,
    TERMS: tl.constexpr, BEFORE1: tl.constexpr, AFTER1: tl.constexpr, BEFORE2: tl.constexpr, AFTER2: tl.constexpr,
    SHARED1: tl.constexpr, SHARED2: tl.constexpr, V1: tl.constexpr, V2: tl.constexpr, LANES1: tl.constexpr,
    LANES2: tl.constexpr, S: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """All updates of the marginals in one launch, up to what the vertices hold in the last: to be read by `read`.

    An update has the phases of `spread` for one or two terms, and one in which the points read and `rows` become the
    softmax of the sum. The second term is two phases behind, so that both sum groups in the same memory and one
    blurs while the other sums. All programs need to run at the same time.
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    PHASES: tl.constexpr = max(2 + V1, 4 + V2) if TERMS > 1 else 2 + V1
    tiles = tl.cdiv(points, BLOCK)
    expected = 0
    for made in range(updates):
        for phase in range(PHASES):
            if phase < 2 + V1:
                _phase(
                    phase, program, programs, order1, groups1, weights1, before1, rows, sums, entries1, bounds1,
                    neighbours1, lattice1, spare1, copies1, points1, many1, size1, BEFORE1, False, V1, S, C, BLOCK,
                    LANES1,
                )  # fmt: skip
            if TERMS > 1:  # noqa: SIM102 (Triton drops a branch only on a constant alone)
                if (phase >= 2) & (phase < 4 + V2):  # by the other programs first, which have less to do
                    _phase(
                        phase - 2, programs - 1 - program, programs, order2, groups2, weights2, before2, rows, sums,
                        entries2, bounds2, neighbours2, lattice2, spare2, copies2, points2, many2, size2, BEFORE2,
                        False, V2, S, C, BLOCK, LANES2,
                    )  # fmt: skip
            expected += programs
            _meet(arrivals, expected)
        if made + 1 < updates:
            for tile in range(program, images * tiles, programs):
                _read(
                    tile % tiles, (tile // tiles).to(tl.int64),
                    simplices1, vertices1, weights1, after1, gain1, lattice1 if V1 % 2 == 0 else spare1, size1, share1,
                    simplices2, vertices2, weights2, after2, gain2, lattice2 if V2 % 2 == 0 else spare2, size2, share2,
                    logits, rows, points, channels,
                    TERMS, V1, V2, AFTER1, AFTER2, SHARED1, SHARED2, "planes", "softmax", False, S, C, BLOCK,
                )  # fmt: skip
            expected += programs
            _meet(arrivals, expected)


@triton.jit
def _phase(
    phase, program, programs, order, groups, weights, factor, rows, sums, entries, bounds, neighbours, lattice, spare,
    copies, points, many, size, SCALED: tl.constexpr, BACKWARDS: tl.constexpr, V: tl.constexpr, S: tl.constexpr,
    C: tl.constexpr, BLOCK: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """A program's tiles of one phase of `spread`."""
    HALF: tl.constexpr = max(1, BLOCK // 2)  # a tile for sums of groups, of which each number has three in registers
    if phase == 0:
        tiles = tl.cdiv(many * tl.cdiv(V, 3), HALF)
        for tile in range(program, copies * tiles, programs):
            _splat(
                tile % tiles, tile // tiles, order, groups, weights, factor, rows, sums, points, many, SCALED, V, S, C,
                HALF,
            )  # fmt: skip
    elif phase == 1:
        tiles = tl.cdiv(size, BLOCK // LANES)
        for tile in range(program, copies * tiles, programs):
            _gather(tile % tiles, tile // tiles, entries, bounds, sums, lattice, many * V, size, S, C, BLOCK, LANES)
    else:
        tiles = tl.cdiv(size, BLOCK)
        axis = V + 1 - phase if BACKWARDS else phase - 2
        pairs = neighbours + axis.to(tl.int64) * 2 * (size - 1)
        for tile in range(program, copies * tiles, programs):
            if phase % 2 == 0:
                _blur(tile % tiles, tile // tiles, pairs, lattice, spare, size, S, C, BLOCK)
            else:
                _blur(tile % tiles, tile // tiles, pairs, spare, lattice, size, S, C, BLOCK)


@triton.jit
def _meet(arrivals, expected):
    """Waits until all programs are here, and sees what they have written."""
    tl.debug_barrier()
    arrived = tl.atomic_add(arrivals, 1, sem="acq_rel") + 1
    while arrived < expected:
        arrived = tl.atomic_add(arrivals, 0, sem="acquire")
    tl.debug_barrier()


@triton.jit
def _splat(
    tile, copy, order, groups, weights, factor, rows, sums, points, many, SCALED: tl.constexpr, V: tl.constexpr,
    S: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What groups of points of one simplex give to its V vertices, three of them in each row of the tile.

    So a row of numbers is read once for three sums: with one it took twice as long.
    """
    place = tile * BLOCK + tl.arange(0, BLOCK)
    group, corner = place // tl.cdiv(V, 3), place % tl.cdiv(V, 3) * 3
    real = group < many
    second, third = real & (corner + 1 < V), real & (corner + 2 < V)
    channel = tl.arange(0, C)
    start = tl.load(groups + group, mask=real, other=0)
    count = tl.load(groups + group + 1, mask=real, other=0) - start
    sum1 = tl.zeros((BLOCK, C), rows.dtype.element_ty)
    sum2 = tl.zeros((BLOCK, C), rows.dtype.element_ty)
    sum3 = tl.zeros((BLOCK, C), rows.dtype.element_ty)
    for begin in range(0, tl.max(count, 0), 2):
        for step in tl.static_range(2):  # unrolled, so that two rows are on their way at a time
            inside = begin + step < count
            point = tl.load(order + start + begin + step, mask=inside, other=0).to(tl.int64)
            row = copy.to(tl.int64) * points + point
            here = inside[:, None] & (channel < S)[None, :]
            value = tl.load(rows + row[:, None] * S + channel[None, :], mask=here, other=0.0)
            if SCALED:
                value *= tl.load(factor + row, mask=inside, other=0.0)[:, None]
            weight = weights + point * V + corner
            sum1 += tl.load(weight, mask=inside, other=0.0)[:, None] * value
            sum2 += tl.load(weight + 1, mask=inside & second, other=0.0)[:, None] * value
            sum3 += tl.load(weight + 2, mask=inside & third, other=0.0)[:, None] * value
    own = sums + (((copy.to(tl.int64) * many + group) * V + corner) * S)[:, None] + channel[None, :]
    columns = (channel < S)[None, :]
    tl.store(own, sum1, mask=real[:, None] & columns)
    tl.store(own + S, sum2, mask=second[:, None] & columns)
    tl.store(own + 2 * S, sum3, mask=third[:, None] & columns)


@triton.jit
def _gather(
    tile, copy, entries, bounds, sums, lattice, many, size, S: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr,
    LANES: tl.constexpr,
):  # fmt: skip
    """Each vertex's sum of what the groups around it give, which LANES share out among themselves.

    0 for the row after the last, of missing neighbours.
    """
    lane = tl.arange(0, BLOCK)
    vertex = tile * (BLOCK // LANES) + lane // LANES
    channel = tl.arange(0, C)
    real = vertex < size
    start = tl.load(bounds + vertex, mask=real, other=0) + lane % LANES
    count = tl.load(bounds + vertex + 1, mask=real, other=0) - start
    total = tl.zeros((BLOCK, C), lattice.dtype.element_ty)
    for begin in range(0, tl.max(count, 0), 4 * LANES):
        for step in tl.static_range(4):
            ahead = begin + step * LANES
            entry = tl.load(entries + start + ahead, mask=ahead < count, other=0)
            row = copy.to(tl.int64) * many + entry
            here = (ahead < count)[:, None] & (channel < S)[None, :]
            total += tl.load(sums + row[:, None] * S + channel[None, :], mask=here, other=0.0)
    if LANES > 1:
        total = tl.sum(tl.reshape(total, (BLOCK // LANES, LANES, C)), 1)
    vertex = tile * (BLOCK // LANES) + tl.arange(0, BLOCK // LANES)
    own = copy.to(tl.int64) * size + vertex
    here = (vertex < size)[:, None] & (channel < S)[None, :]
    tl.store(lattice + own[:, None] * S + channel[None, :], total, mask=here)


@triton.jit
def _blur(
    tile, copy, pairs, source, target, size, S: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Along one axis each vertex plus half of its two neighbours; the row after the last stays 0."""
    vertex = tile * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, C)
    real = vertex < size - 1
    here = real[:, None] & (channel < S)[None, :]
    first = copy.to(tl.int64) * size
    own = (first + vertex)[:, None] * S + channel[None, :]
    before = first + tl.load(pairs + vertex, mask=real, other=0)
    after = first + tl.load(pairs + size - 1 + vertex, mask=real, other=0)
    value = tl.load(source + own, mask=here, other=0.0)
    value += 0.5 * (
        tl.load(source + before[:, None] * S + channel[None, :], mask=here, other=0.0)
        + tl.load(source + after[:, None] * S + channel[None, :], mask=here, other=0.0)
    )
    tl.store(target + own, value, mask=(vertex < size)[:, None] & (channel < S)[None, :])


@triton.jit(do_not_specialize=["points", "size1", "size2", "channels"])
def read(
    simplices1, vertices1, weights1, factor1, gain1, lattice1, size1, share1,
    simplices2, vertices2, weights2, factor2, gain2, lattice2, size2, share2,
    base, out, points, channels,
    TERMS: tl.constexpr, V1: tl.constexpr, V2: tl.constexpr, SCALED1: tl.constexpr, SCALED2: tl.constexpr,
    SHARED1: tl.constexpr, SHARED2: tl.constexpr, BASE: tl.constexpr, RESULT: tl.constexpr, PLANES: tl.constexpr,
    S: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What the points read from the lattices of up to two terms, added to a base, in one pass over the points.

    A message is what a point reads, times the term's share, the point's factor and each channel's gain. BASE says what
    the base is, "planes", "rows" or "none"; RESULT what is made of the sum, itself, its "softmax", "log_softmax",
    "inverse" or "inverse_root"; PLANES where it is written. SHARED lattices have the points of one image and vertices
    for each.
    """
    _read(
        tl.program_id(0), tl.program_id(1).to(tl.int64),
        simplices1, vertices1, weights1, factor1, gain1, lattice1, size1, share1,
        simplices2, vertices2, weights2, factor2, gain2, lattice2, size2, share2,
        base, out, points, channels,
        TERMS, V1, V2, SCALED1, SCALED2, SHARED1, SHARED2, BASE, RESULT, PLANES, S, C, BLOCK,
    )  # fmt: skip


@triton.jit
def _read(
    tile, image,
    simplices1, vertices1, weights1, factor1, gain1, lattice1, size1, share1,
    simplices2, vertices2, weights2, factor2, gain2, lattice2, size2, share2,
    base, out, points, channels,
    TERMS: tl.constexpr, V1: tl.constexpr, V2: tl.constexpr, SCALED1: tl.constexpr, SCALED2: tl.constexpr,
    SHARED1: tl.constexpr, SHARED2: tl.constexpr, BASE: tl.constexpr, RESULT: tl.constexpr, PLANES: tl.constexpr,
    S: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`read` of a tile of an image's points."""
    point = tile * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, C)
    inside = point < points
    here = inside[:, None] & (channel < channels)[None, :]
    planes = (image * channels + channel)[None, :] * points + point[:, None]
    rows = (image * points + point)[:, None] * S + channel[None, :]
    value = _summed(
        simplices1, vertices1, weights1, factor1, gain1, lattice1, size1, share1,
        simplices2, vertices2, weights2, factor2, gain2, lattice2, size2, share2,
        base, planes, rows, here, image, point, points, TERMS, V1, V2, SCALED1, SCALED2, SHARED1, SHARED2, BASE, S, C,
    )  # fmt: skip
    if RESULT == "inverse":
        value = 1 / (value + 1e-20)
    elif RESULT == "inverse_root":
        value = 1 / tl.sqrt(value + 1e-20)
    elif RESULT != "sum":
        value = tl.where((channel < channels)[None, :], value, float("-inf"))
        value -= tl.max(value, 1)[:, None]
        powers = tl.exp(value)
        total = tl.sum(powers, 1)[:, None]
        value = powers / total if RESULT == "softmax" else value - tl.log(total)
    if PLANES:
        tl.store(out + planes, value, mask=here)
    else:
        tl.store(out + rows, value, mask=inside[:, None] & (channel < S)[None, :])


@triton.jit(do_not_specialize=["points", "size1", "size2", "channels"])
def pull(
    simplices1, vertices1, weights1, factor1, gain1, lattice1, size1, share1,
    simplices2, vertices2, weights2, factor2, gain2, lattice2, size2, share2,
    base, marginals, change, total, points, channels,
    TERMS: tl.constexpr, V1: tl.constexpr, V2: tl.constexpr, SCALED1: tl.constexpr, SCALED2: tl.constexpr,
    SHARED1: tl.constexpr, SHARED2: tl.constexpr, BASE: tl.constexpr, LOGARITHM: tl.constexpr,
    S: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """From the gradient to marginals to that to scores, as rows of `change` and added to the planes of `total`.

    The gradient to marginals, which are rows, is what comes back from the lattices of up to two terms and a base; see
    `read`. LOGARITHM begins: the base is the gradient to logarithms, and both are planes, as nothing else has been yet.
    """
    image = tl.program_id(1).to(tl.int64)
    point = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, C)
    inside = point < points
    here = inside[:, None] & (channel < channels)[None, :]
    planes = (image * channels + channel)[None, :] * points + point[:, None]
    rows = (image * points + point)[:, None] * S + channel[None, :]
    value = _summed(
        simplices1, vertices1, weights1, factor1, gain1, lattice1, size1, share1,
        simplices2, vertices2, weights2, factor2, gain2, lattice2, size2, share2,
        base, planes, rows, here, image, point, points, TERMS, V1, V2, SCALED1, SCALED2, SHARED1, SHARED2, BASE, S, C,
    )  # fmt: skip
    if LOGARITHM:
        q = tl.exp(tl.load(marginals + planes, mask=here, other=float("-inf")))
        value -= q * tl.sum(value, 1)[:, None]
    else:
        q = tl.load(marginals + rows, mask=here, other=0.0)
        value *= q
        value -= q * tl.sum(value, 1)[:, None]
    tl.store(change + rows, value, mask=inside[:, None] & (channel < S)[None, :])
    if not LOGARITHM:
        value += tl.load(total + planes, mask=here, other=0.0)
    tl.store(total + planes, value, mask=here)


@triton.jit(do_not_specialize=["points", "size"])
def contract(
    simplices, vertices, weights, gain, lattice, size, share, rows, sums, points, SHARED: tl.constexpr,
    V: tl.constexpr, S: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds to each point's sum the product of what it reads from a lattice with its row."""
    image = tl.program_id(1).to(tl.int64)
    point = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, C)
    inside = point < points
    row = image * points + point
    here = inside[:, None] & (channel < S)[None, :]
    value = tl.load(rows + row[:, None] * S + channel[None, :], mask=here, other=0.0)
    value *= _message(
        simplices, vertices, weights, rows, gain, lattice, size, share, image, point, points, False, SHARED, V, S, C
    )
    before = tl.load(sums + row, mask=inside, other=0.0)
    tl.store(sums + row, before + tl.sum(value, 1), mask=inside)


@triton.jit
def _summed(
    simplices1, vertices1, weights1, factor1, gain1, lattice1, size1, share1,
    simplices2, vertices2, weights2, factor2, gain2, lattice2, size2, share2,
    base, planes, rows, here, image, point, points,
    TERMS: tl.constexpr, V1: tl.constexpr, V2: tl.constexpr, SCALED1: tl.constexpr, SCALED2: tl.constexpr,
    SHARED1: tl.constexpr, SHARED2: tl.constexpr, BASE: tl.constexpr, S: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """A base and the messages of up to two terms; `planes` and `rows` are where points and channels lie in each."""
    if BASE == "planes":
        value = tl.load(base + planes, mask=here, other=0.0)
    elif BASE == "rows":
        value = tl.load(base + rows, mask=here, other=0.0)
    else:
        value = tl.zeros(here.shape, base.dtype.element_ty)
    if TERMS > 0:
        value += _message(
            simplices1, vertices1, weights1, factor1, gain1, lattice1, size1, share1, image, point, points, SCALED1,
            SHARED1, V1, S, C,
        )  # fmt: skip
    if TERMS > 1:
        value += _message(
            simplices2, vertices2, weights2, factor2, gain2, lattice2, size2, share2, image, point, points, SCALED2,
            SHARED2, V2, S, C,
        )  # fmt: skip
    return value


@triton.jit
def _message(
    simplices, vertices, weights, factor, gain, lattice, size, share, image, point, points, SCALED: tl.constexpr,
    SHARED: tl.constexpr, V: tl.constexpr, S: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """What points read from the vertices of their simplex."""
    inside = point < points
    channel = tl.arange(0, C)
    here = inside[:, None] & (channel < S)[None, :]
    row = image * points + point
    place = point.to(tl.int64) if SHARED else row
    first = image * size if SHARED else 0
    simplex = tl.load(simplices + place, mask=inside, other=0).to(tl.int64)
    total = tl.zeros((point.shape[0], C), lattice.dtype.element_ty)
    for corner in tl.static_range(V):
        vertex = first + tl.load(vertices + simplex * V + corner, mask=inside, other=0).to(tl.int64)
        weight = tl.load(weights + place * V + corner, mask=inside, other=0.0)
        total += weight[:, None] * tl.load(lattice + vertex[:, None] * S + channel[None, :], mask=here, other=0.0)
    if SCALED:
        total *= tl.load(factor + row, mask=inside, other=0.0)[:, None]
    return total * share * tl.load(gain + channel, mask=channel < S, other=0.0)[None, :]
