"""The kernels of mean field in one pass over the pixels an iteration.

A pixel meets the lattices of all terms at once: its row of numbers and weights goes over the vertices of every simplex
that it lies in. An iteration reads the messages from them (slice), normalises, and sends the new marginals back (splat)
while they are in registers and the first cache. The backward pass is the same with gradients in the marginals' place.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from piecewise_training.crf._compile import kernel
from piecewise_training.crf._numba_layout import GROUP
from piecewise_training.crf._simd import (
    elements,
    gather8,
    gather16,
    halves_added,
    highest,
    load8,
    load16,
    maximum,
    mixed,
    nearest,
    prefetch,
    put,
    sent,
    sent_at,
    spread8,
    spread16,
    store,
    times_power_of_two,
    total,
)

# What a sweep does: an iteration, one that is damped and watched, the last one to marginals or to their logarithms; or
# the first one backwards, and any other.
ITERATE, WATCH, FINISH, FINISH_LOG, TURN, RETURN = range(6)
FORWARDS, WATCHED, BACKWARDS = range(3)  # the kernels for them
# So many vertices go through a compatibility at once: a weight is loaded once for them all, their sums do not wait for
# another, and they fit even into the sixteen narrower registers of AVX2.
_TOGETHER = 6
_AHEAD = 3 * _TOGETHER  # vertices lie anywhere in a lattice that is larger than the cache: these are asked for early
_f32 = np.float32
_at = np.uint64


@kernel
def fetch(owners, lattice, mixture, channels, messages):  # type: ignore[no-untyped-def]
    """Copies some vertices, a part's of one term, out of the blurred lattice, through the compatibility.

    The lattice is (channels / 8, M + 1, 8) and the mixture (K, channels); of a single row it is the diagonal of the
    matrix it stands for.
    """
    size = lattice.shape[1]
    flat, weights = lattice.reshape(lattice.size), mixture.reshape(mixture.size)
    if len(mixture) == 1:
        for row in range(len(owners)):
            for c in range(0, channels, 8):
                place = (c // 8 * size + owners[_at(row)]) * 8
                store(messages, row * channels + c, load8(flat, place) * load8(weights, c))
        return
    wide = channels // 16 * 16
    places, one_by_one = np.empty(_TOGETHER, np.int64), np.arange(_TOGETHER).astype(np.int32)
    nothing = np.zeros(16, np.float32)
    for first in range(0, len(owners), _TOGETHER):
        count = min(_TOGETHER, len(owners) - first)
        for k in range(_TOGETHER):
            places[k] = owners[_at(first + min(k, count - 1))] * 8
        for row in range(first + _AHEAD, min(first + _AHEAD + _TOGETHER, len(owners))):
            for block in range(len(lattice)):
                prefetch(flat, (block * size + owners[_at(row)]) * 8)
        for c in range(0, wide, 16):
            sums = gather16(nothing, one_by_one, 0, 0, 0, _TOGETHER)
            for b in range(len(mixture)):
                sums = sent_at(sums, load16(weights, b * channels + c), flat, places, b // 8 * size * 8 + b % 8)
            for k in range(count):
                store(messages, (first + k) * channels + c, sums[k])
        if wide < channels:
            few = gather8(nothing, one_by_one, 0, 0, 0, _TOGETHER)
            for b in range(len(mixture)):
                few = sent_at(few, load8(weights, b * channels + wide), flat, places, b // 8 * size * 8 + b % 8)
            for k in range(count):
                store(messages, (first + k) * channels + wide, few[k])


@kernel
def collect(owners, ranges, copies, channels, lattice):  # type: ignore[no-untyped-def]
    """Adds up the parts' copies of eight channels, flat (M + 1, 8); `copies` begins with the first of the channels.

    The last vertex stands for missing neighbours and stays zero.
    """
    zero = spread8(_f32(0))
    for place in range(0, len(lattice), 8):
        store(lattice, place, zero)
    for part in range(len(ranges)):
        for row in range(ranges[part, 0], ranges[part, 1]):
            place = owners[row] * 8
            store(lattice, place, load8(lattice, place) + load8(copies, row * channels))


@kernel
def blur(neighbours, source, target, transpose):  # type: ignore[no-untyped-def]
    """Blurs eight channels along every axis, or in the opposite order; by turns from `source` to `target` and back."""
    axes, _, size = neighbours.shape
    half = _f32(0.5)
    store(target, size * 8, spread8(_f32(0)))
    for step in range(axes):
        axis = axes - 1 - step if transpose else step
        for vertex in range(size):
            sides = load8(source, neighbours[axis, 0, vertex] * 8) + load8(source, neighbours[axis, 1, vertex] * 8)
            store(target, vertex * 8, load8(source, vertex * 8) + sides * half)
        source, target = target, source


@kernel
def contract(block, lattice, sums):  # type: ignore[no-untyped-def]
    """Adds to sums (8, channels) the products of a block's eight channels with all of a lattice, over the vertices."""
    blocks, vertices, _ = lattice.shape
    channels = 8 * blocks
    flat = lattice.reshape(lattice.size)
    rows = np.arange(8).astype(np.int32)
    few = np.empty(8 * channels, np.float32)  # of so few vertices that single precision is good enough
    for first in range(0, vertices, 256):
        few[:] = 0
        for c in range(0, channels, 8):
            products = gather8(few, rows, 0, channels, c, 8)
            for vertex in range(first, min(first + 256, vertices)):
                products = sent(products, load8(flat, (c // 8 * vertices + vertex) * 8), block, vertex * 8)
            put(few, rows, 0, channels, c, products)
        for k in range(8):
            for c in range(channels):
                sums[k, c] += few[k * channels + c]


@kernel
def exp2(x):  # type: ignore[no-untyped-def]
    """2^x for x up to 0; 2^-80 below -80, which keeps denormal numbers out of the loops that follow."""
    x = maximum(x, _f32(-80))
    whole = nearest(x)
    x = x - whole
    square = x * x
    low = x * _f32(0.69314718056) + _f32(1)
    middle = x * _f32(0.05550410866) + _f32(0.24022650696)
    high = square * _f32(0.00015403530) + (x * _f32(0.00133335581) + _f32(0.00961812911))
    return times_power_of_two(square * (square * high + middle) + low, whole)


@kernel
def _log_softmax(x, at, channels, out, to):  # type: ignore[no-untyped-def]
    """Turns scores in bits into natural logarithms of probabilities."""
    top = load8(x, at)
    for c in range(8, channels, 8):
        top = maximum(top, load8(x, at + c))
    shift = highest(top)
    mass = spread8(_f32(0))
    for c in range(0, channels, 8):
        mass = mass + exp2(load8(x, at + c) - shift)
    bits = _f32(np.log2(total(mass)))  # apart from the shift, beside which it might be lost
    for c in range(0, channels, 8):
        store(out, to + c, (load8(x, at + c) - shift - bits) * _f32(0.69314718056))


@kernel
def _through_softmax(x, at, channels, marginals, start, gradient, to, logarithm):  # type: ignore[no-untyped-def]
    """Turns the gradient to marginals, or to their logarithms in bits, into that to scores, and adds it up.

    It is left where the marginals were, too.
    """
    mass = spread8(_f32(0))
    for c in range(0, channels, 8):
        slope = load8(x, at + c)
        mass = mass + (slope if logarithm else slope * load8(marginals, start + c))
    whole = total(mass)
    for c in range(0, channels, 8):
        if logarithm:
            to_scores = load8(x, at + c) - exp2(load8(marginals, start + c)) * whole
            store(gradient, to + c, to_scores)
        else:
            to_scores = (load8(x, at + c) - whole) * load8(marginals, start + c)
            store(gradient, to + c, load8(gradient, to + c) + to_scores)
        store(x, at + c, to_scores)
        store(marginals, start + c, to_scores)


@cache
def sweep_kernel(shared: int, others: int, kind: int) -> Any:
    """The kernel of an iteration for pixels with so many vertices, the first of which their whole group shares."""

    @kernel
    def sweep(groups, last, channels, base, kept, change, heads, rows, shares, sends, messages, copies, how):  # type: ignore[no-untyped-def]
        """Reads each pixel's messages, normalises, and sends its marginals.

        Forwards `base` holds the scores, `kept` takes the marginals and `change` in the end their logarithms. Watched,
        `kept` also holds the marginals before, of which the new ones get their share, and the largest change of one
        is returned. Backwards `base` is the sum of the gradients to scores, at first that to log Q, and `kept` holds
        the marginals, and then the latest gradient. `how` is the stage, the damping, and the position with which `kept`
        begins. Channels go through the widest registers, and eight that may be left over through narrower ones.
        """
        axes = shared + others
        wide = channels // 16 * 16
        x = np.empty(GROUP * channels, np.float32)
        nothing = np.zeros(channels, np.float32)
        stage, damping, origin = how
        most = spread8(_f32(0))
        before, step = base, channels
        if kind == BACKWARDS:
            before, step = (base, channels) if stage == TURN else (nothing, 0)
        for g in range(len(groups)):
            start = groups[g]
            stop = groups[g + 1] if g + 1 < len(groups) else last
            for c in range(0, wide, 16):
                common = gather16(messages, heads, g * shared, channels, c, shared)
                for p in range(start, stop):
                    at = p * axes
                    own = gather16(messages, rows, p * others, channels, c, others)
                    message = mixed(load16(before, p * step + c), common, shares, at)
                    store(x, (p - start) * channels + c, mixed(message, own, shares, at + shared))
            if wide < channels:
                common_rest = gather8(messages, heads, g * shared, channels, wide, shared)
                for p in range(start, stop):
                    at = p * axes
                    own_rest = gather8(messages, rows, p * others, channels, wide, others)
                    rest = mixed(load8(before, p * step + wide), common_rest, shares, at)
                    store(x, (p - start) * channels + wide, mixed(rest, own_rest, shares, at + shared))

            for p in range(start, stop):
                at, own_row = (p - start) * channels, (p - origin) * channels
                if kind == BACKWARDS:
                    _through_softmax(x, at, channels, kept, own_row, base, p * channels, stage == TURN)
                elif stage == FINISH_LOG:
                    _log_softmax(x, at, channels, change, p * channels)
                else:
                    top = load8(x, at)
                    for c in range(8, channels, 8):
                        top = maximum(top, load8(x, at + c))
                    shift = highest(top)
                    mass = spread8(_f32(0))
                    for c in range(0, wide, 16):
                        likely = exp2(load16(x, at + c) - shift)
                        store(x, at + c, likely)
                        mass = mass + halves_added(likely)
                    if wide < channels:
                        likely_rest = exp2(load8(x, at + wide) - shift)
                        store(x, at + wide, likely_rest)
                        mass = mass + likely_rest
                    share = _f32(1) / total(mass)
                    for c in range(0, channels, 8):
                        store(x, at + c, load8(x, at + c) * share)
                    if kind == WATCHED and stage == WATCH:
                        for c in range(0, channels, 8):
                            new, old = load8(x, at + c), load8(kept, own_row + c)
                            new = new + (old - new) * damping
                            most = maximum(most, maximum(new - old, old - new))
                            store(x, at + c, new)
                            store(kept, own_row + c, new)
                    if stage == FINISH:
                        for c in range(0, channels, 8):
                            store(kept, own_row + c, load8(x, at + c))
            if stage in (FINISH, FINISH_LOG):
                continue

            for c in range(0, wide, 16):
                sum_common = gather16(copies, heads, g * shared, channels, c, shared)
                for p in range(start, stop):
                    at = p * axes
                    q = load16(x, (p - start) * channels + c)
                    sum_common = sent(sum_common, q, sends, at)
                    sum_own = gather16(copies, rows, p * others, channels, c, others)
                    put(copies, rows, p * others, channels, c, sent(sum_own, q, sends, at + shared))
                put(copies, heads, g * shared, channels, c, sum_common)
            if wide < channels:
                sum_rest = gather8(copies, heads, g * shared, channels, wide, shared)
                for p in range(start, stop):
                    at = p * axes
                    q_rest = load8(x, (p - start) * channels + wide)
                    sum_rest = sent(sum_rest, q_rest, sends, at)
                    own_sum = gather8(copies, rows, p * others, channels, wide, others)
                    put(copies, rows, p * others, channels, wide, sent(own_sum, q_rest, sends, at + shared))
                put(copies, heads, g * shared, channels, wide, sum_rest)
        return highest(most)

    return sweep


@cache
def divergence_kernel(shared: int, others: int) -> Any:
    """The kernel of the divergence, for pixels with so many vertices, the first of which their whole group shares."""

    @kernel
    def divergence(groups, last, heads, classes, channels, base, kept, rows, shares, messages):  # type: ignore[no-untyped-def]
        """The sum of Q (log Q - z - m / 2) over pixels, with the scores z and the messages m in bits."""
        bits = 0.0
        received = np.empty(channels, np.float32)
        for g in range(len(groups)):
            for p in range(groups[g], groups[g + 1] if g + 1 < len(groups) else last):
                at = p * (shared + others)
                for c in range(0, channels, 8):
                    common = gather8(messages, heads, g * shared, channels, c, shared)
                    own = gather8(messages, rows, p * others, channels, c, others)
                    message = mixed(spread8(_f32(0)), common, shares, at)
                    store(received, c, mixed(message, own, shares, at + shared))
                for c in range(classes):
                    q = np.float64(kept[_at(p * channels + c)])
                    bits += q * (np.log2(q) - base[_at(p * channels + c)] - 0.5 * received[_at(c)])
        return bits * 0.6931471805599453

    return divergence


@cache
def receive_kernel(axes: int, grouped: int) -> Any:
    """The kernel of products with messages, for pixels with so many vertices of a term, which a group shares or not."""

    @kernel
    def receive(groups, last, place, rows, weights, values, messages, filtered, features, received, moments):  # type: ignore[no-untyped-def]
        """Adds to what each pixel has received its values times its messages, and to the moments the same of features.

        Messages are numbered over all terms of a part; what was `filtered` of features is a table for each of the
        `moments`, without the copies of the terms before. `place` holds the columns of rows and the term's first among
        them, the same of weights, the channels, the position with which `values` begin, the number of pixels, that of
        numbers in one feature's table, and by how many such a table is shifted against the numbering of the part.
        """
        columns, column, all_weights, weight, channels, origin, points, stride, shift = place
        wide = channels // 16 * 16
        nothing, little = spread16(_f32(0)), spread8(_f32(0))
        for g in range(len(groups)):
            start = groups[g]
            stop = groups[g + 1] if g + 1 < len(groups) else last
            base = (g if grouped else start) * columns + column
            for c in range(0, wide, 16):
                came = gather16(messages, rows, base, channels, c, axes)
                for p in range(start, stop):
                    if not grouped:
                        came = gather16(messages, rows, p * columns + column, channels, c, axes)
                    message = mixed(nothing, came, weights, p * all_weights + weight)
                    received[_at(p)] += total(message * load16(values, (p - origin) * channels + c))
            if wide < channels:
                few_came = gather8(messages, rows, base, channels, wide, axes)
                for p in range(start, stop):
                    if not grouped:
                        few_came = gather8(messages, rows, p * columns + column, channels, wide, axes)
                    few = mixed(little, few_came, weights, p * all_weights + weight)
                    received[_at(p)] += total(few * load8(values, (p - origin) * channels + wide))
            for a in range(len(moments)):
                first = a * stride + shift
                sums, few_sums = nothing, little
                for c in range(0, wide, 16):
                    came = gather16(filtered, rows, base, channels, first + c, axes)
                    for p in range(start, stop):
                        if not grouped:
                            came = gather16(filtered, rows, p * columns + column, channels, first + c, axes)
                        message = mixed(nothing, came, weights, p * all_weights + weight)
                        value = load16(values, (p - origin) * channels + c) * features[_at(a * points + p)]
                        sums = sums + message * value
                if wide < channels:
                    few_came = gather8(filtered, rows, base, channels, first + wide, axes)
                    for p in range(start, stop):
                        if not grouped:
                            few_came = gather8(filtered, rows, p * columns + column, channels, first + wide, axes)
                        few = mixed(little, few_came, weights, p * all_weights + weight)
                        few_value = load8(values, (p - origin) * channels + wide) * features[_at(a * points + p)]
                        few_sums = few_sums + few * few_value
                moments[_at(a)] += np.float64(total(sums) + total(few_sums))

    return receive


@cache
def send_kernel(axes: int, grouped: int) -> Any:
    """The kernel that sends features times values, for pixels as of `receive_kernel`."""

    @kernel
    def send(groups, last, place, rows, weights, values, features, copies):  # type: ignore[no-untyped-def]
        """Adds each feature times the pixels' values to its table of copies."""
        columns, column, all_weights, weight, channels, origin, points, stride, shift = place
        wide = channels // 16 * 16
        for g in range(len(groups)):
            start = groups[g]
            stop = groups[g + 1] if g + 1 < len(groups) else last
            if grouped:
                base = g * columns + column
                for a in range(len(features) // points):
                    first = a * stride + shift
                    for c in range(0, wide, 16):
                        sums = gather16(copies, rows, base, channels, first + c, axes)
                        for p in range(start, stop):
                            value = load16(values, (p - origin) * channels + c) * features[_at(a * points + p)]
                            sums = sent(sums, value, weights, p * all_weights + weight)
                        put(copies, rows, base, channels, first + c, sums)
                    if wide < channels:
                        few = gather8(copies, rows, base, channels, first + wide, axes)
                        for p in range(start, stop):
                            rest = load8(values, (p - origin) * channels + wide) * features[_at(a * points + p)]
                            few = sent(few, rest, weights, p * all_weights + weight)
                        put(copies, rows, base, channels, first + wide, few)
                continue
            for p in range(start, stop):
                corners = elements(rows, p * columns + column, axes)
                shares = elements(weights, p * all_weights + weight, axes)
                at = (p - origin) * channels
                for a in range(len(features) // points):
                    first, feature = a * stride + shift, features[_at(a * points + p)]
                    for c in range(0, channels, 8):  # sixteen at once would lie across two cache lines, and be slower
                        few = gather8(copies, corners, 0, channels, first + c, axes)
                        rest = load8(values, at + c) * feature
                        put(copies, corners, 0, channels, first + c, sent(few, rest, shares, 0))

    return send
