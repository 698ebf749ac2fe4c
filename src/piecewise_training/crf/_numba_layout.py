"""How an image's pixels are laid out for mean field: by tiles and simplices, and the permutations in and out."""

from __future__ import annotations

import numpy as np

from piecewise_training.crf._compile import kernel
from piecewise_training.crf._simd import load8, maximum, minimum, spread8, store, transpose8

TILE = 64
GROUP = 16
_f32 = np.float32
_at = np.uint64  # an index of this type is not looked at for being negative, which takes longer than all the rest
_FARTHEST = _f32(1e30)  # the bound of a score: larger ones would overflow


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
def enter(points, simplices, vertices, column, rows, size, owners, count):  # type: ignore[no-untyped-def]
    """Gives a part its own copies of one term's vertices, numbered as its points meet them from `count` on.

    Fills in the copies around each point's simplex, from a column of its row on, and the vertex behind each copy; there
    are `size` vertices. Returns the new count.
    """
    axes, columns = vertices.shape[1], rows.shape[1]
    corners, flat_rows = vertices.reshape(vertices.size), rows.reshape(rows.size)
    own = np.full(size, -1, np.int32)
    for row in range(len(points)):
        corner = simplices[_at(points[_at(row)])] * axes
        for k in range(axes):
            vertex = _at(corners[_at(corner + k)])
            if own[vertex] < 0:
                own[vertex] = count
                owners[count] = vertex
                count += 1
            flat_rows[_at(row * columns + column + k)] = own[vertex]
    return count


@kernel
def weigh(points, weights, factor, column, shares):  # type: ignore[no-untyped-def]
    """Fills in the weights of each point times its factor, from a column of its row on."""
    axes, columns = weights.shape[1], shares.shape[1]
    parts, flat = weights.reshape(weights.size), shares.reshape(shares.size)
    for row in range(len(points)):
        point = points[_at(row)]
        own = factor[_at(point)]
        for k in range(axes):
            flat[_at(row * columns + column + k)] = parts[_at(point * axes + k)] * own


@kernel
def _eight(planes, c, pixel, classes, n, unit, missing):  # type: ignore[no-untyped-def]
    """The values of a class at eight pixels in a unit; those of a class that there is not are `missing`."""
    if c < classes:
        return minimum(maximum(load8(planes, c * n + pixel), -_FARTHEST), _FARTHEST) * unit
    return spread8(missing)


@kernel
def permute_in(planes, classes, tiles, width, positions, channels, unit, missing, rows, origin):  # type: ignore[no-untyped-def]
    """Planes, flat from (K, N), times a unit, as rows of pixels at their positions, padded by what is `missing`.

    A tile is (top, bottom, left, right), and `rows` begin with the position `origin`. Eight pixels by eight channels
    are turned around in registers at a time.
    """
    n = len(planes) // classes
    for top, bottom, left, right in tiles:
        for c in range(0, channels, 8):
            for y in range(top, bottom):
                whole = y * width + left + (right - left) // 8 * 8
                for pixel in range(y * width + left, whole, 8):
                    columns = transpose8(
                        _eight(planes, c, pixel, classes, n, unit, missing),
                        _eight(planes, c + 1, pixel, classes, n, unit, missing),
                        _eight(planes, c + 2, pixel, classes, n, unit, missing),
                        _eight(planes, c + 3, pixel, classes, n, unit, missing),
                        _eight(planes, c + 4, pixel, classes, n, unit, missing),
                        _eight(planes, c + 5, pixel, classes, n, unit, missing),
                        _eight(planes, c + 6, pixel, classes, n, unit, missing),
                        _eight(planes, c + 7, pixel, classes, n, unit, missing),
                    )
                    for lane in range(8):
                        store(rows, (positions[_at(pixel + lane)] - origin) * channels + c, columns[lane])
                for pixel in range(whole, y * width + right):
                    for k in range(c, c + 8):
                        value = missing
                        if k < classes:
                            value = min(max(planes[_at(k * n + pixel)], -_FARTHEST), _FARTHEST) * unit
                        rows[_at((positions[_at(pixel)] - origin) * channels + k)] = value


@kernel
def permute_out(rows, tiles, width, positions, channels, classes, planes):  # type: ignore[no-untyped-def]
    """Rows of pixels at their positions as planes, flat from (K, N), tile by tile."""
    n = len(planes) // classes
    for top, bottom, left, right in tiles:
        for c in range(0, classes, 8):
            for y in range(top, bottom):
                whole = y * width + left + (right - left) // 8 * 8
                for pixel in range(y * width + left, whole, 8):
                    columns = transpose8(
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
                            store(planes, (c + k) * n + pixel, columns[k])
                for pixel in range(whole, y * width + right):
                    for k in range(c, min(c + 8, classes)):
                        planes[_at(k * n + pixel)] = rows[_at(positions[_at(pixel)] * channels + k)]
