"""Filtering with a built lattice, eight channels at a time: the twin of `_reference.splat_blur_slice`."""

from __future__ import annotations

import numpy as np

from piecewise_training.crf._compile import kernel
from piecewise_training.crf._simd import load8, spread8, store, total

_at = np.uint64  # an index of this type is not looked at for being negative
BLOCK = 8  # channels that a register holds


@kernel
def splat_blur(simplices, vertices, weights, neighbours, values, transpose):  # type: ignore[no-untyped-def]
    """The blurred lattice of up to eight channels, flat, with zeros for those that are missing."""
    axes, _, size = neighbours.shape
    channels, n = values.shape
    value = np.zeros(BLOCK, values.dtype)
    lattice = np.zeros((size + 1) * BLOCK, values.dtype)  # the last row, for missing neighbours, stays zero
    blurred = np.zeros((size + 1) * BLOCK, values.dtype)
    for p in range(n):
        for c in range(channels):
            value[c] = values[c, p]
        sent = load8(value, 0)
        simplex = simplices[p]
        for k in range(axes):
            row = vertices[simplex, k] * BLOCK
            store(lattice, row, load8(lattice, row) + sent * weights[p, k])

    half = values.dtype.type(0.5)
    for step in range(axes):
        axis = axes - 1 - step if transpose else step
        for v in range(size):
            sides = load8(lattice, neighbours[axis, 0, v] * BLOCK) + load8(lattice, neighbours[axis, 1, v] * BLOCK)
            store(blurred, v * BLOCK, load8(lattice, v * BLOCK) + sides * half)
        lattice, blurred = blurred, lattice
    return lattice


@kernel
def splat_one(simplices, vertices, weights, first, last, values, lattice):  # type: ignore[no-untyped-def]
    """Adds a single channel of some points to an empty lattice."""
    axes = vertices.shape[1]
    lattice[:] = 0
    for p in range(first, last):
        simplex = simplices[p]
        for k in range(axes):
            lattice[vertices[simplex, k]] += weights[p, k] * values[p]


@kernel
def blur_one(neighbours, lattice, transpose):  # type: ignore[no-untyped-def]
    """The blurred lattice of a single channel."""
    axes, _, size = neighbours.shape
    blurred = np.zeros(size + 1, lattice.dtype)
    half = lattice.dtype.type(0.5)
    for step in range(axes):
        axis = axes - 1 - step if transpose else step
        before, after = neighbours[axis]
        for v in range(size):
            place = _at(v)
            sides = lattice[_at(before[place])] + lattice[_at(after[place])]
            blurred[place] = lattice[place] + half * sides
        lattice, blurred = blurred, lattice
    return lattice


@kernel
def slice_one(simplices, vertices, weights, first, last, lattice, out):  # type: ignore[no-untyped-def]
    """Reads a single channel back at some points."""
    axes = vertices.shape[1]
    scale = out.dtype.type(1 / (1 + 2.0 ** (1 - axes)))
    for p in range(first, last):
        simplex = simplices[p]
        received = out.dtype.type(0)
        for k in range(axes):
            received += weights[p, k] * lattice[vertices[simplex, k]]
        out[p] = scale * received


@kernel
def slice_out(simplices, vertices, weights, lattice, out):  # type: ignore[no-untyped-def]
    """Reads up to eight channels back at every point."""
    n, axes = weights.shape
    scale = out.dtype.type(1 / (1 + 2.0 ** (1 - axes)))
    value = np.empty(BLOCK, out.dtype)
    for p in range(n):
        received = spread8(out.dtype.type(0))
        simplex = simplices[p]
        for k in range(axes):
            received = received + load8(lattice, vertices[simplex, k] * BLOCK) * weights[p, k]
        store(value, 0, received * scale)
        for c in range(len(out)):
            out[c, p] = value[c]


@kernel
def slice_dot(simplices, vertices, weights, lattice, against, out):  # type: ignore[no-untyped-def]
    """Reads up to eight channels back at every point, and sums their products with others."""
    n, axes = weights.shape
    scale = out.dtype.type(1 / (1 + 2.0 ** (1 - axes)))
    other = np.zeros(BLOCK, out.dtype)
    for p in range(n):
        received = spread8(out.dtype.type(0))
        simplex = simplices[p]
        for k in range(axes):
            received = received + load8(lattice, vertices[simplex, k] * BLOCK) * weights[p, k]
        for c in range(len(against)):
            other[c] = against[c, p]
        out[p] = total(received * load8(other, 0)) * scale
