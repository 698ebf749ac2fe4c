"""The permutohedral lattice and mean field on the CPU, with Numba; `_reference` is their twin in plain torch.

Kernels release the GIL and run on Python threads, so that they neither need nor disturb a threading layer. Work is cut
into parts whose number depends on the image alone, and sums are taken in the order of the parts: results do not depend
on the number of threads.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from piecewise_training.crf import (
    _memory,
    _numba_backward,
    _numba_build,
    _numba_filter,
    _numba_meanfield,
    _numba_moments,
)
from piecewise_training.crf._numba_binary import BinaryMeanField, is_binary
from piecewise_training.crf._numba_meanfield import MeanField
from piecewise_training.crf._numba_parts import MOST_PARTS, PIXELS_A_PART, Run, Term
from piecewise_training.crf._numba_parts import Tables as Arrays
from piecewise_training.crf._reference import Normalized, Tables
from piecewise_training.crf._workspace import Workspace, workspace

_BLOCK = _numba_filter.BLOCK
_working = threading.local()  # the team of a caller's thread
_POINTS_A_PART = 1 << 15  # in building: fewer parts share more vertices, more parts more threads


def build(features: Float[Tensor, "b d n"], bandwidths: Float[Tensor, " d"]) -> list[Tables]:
    """Finds each point's simplex in the lattice and each vertex's neighbours; see `_reference.build`."""
    scales = (_scales(features.shape[1]) / _array(bandwidths)).astype(_array(features).dtype)

    def build_one(points: np.ndarray, run: Run) -> Tables:
        with workspace() as space:
            return _build_one(points, scales, space, run)

    with team() as run:
        if _side_by_side(*features.shape[::2]):
            return run(lambda points: build_one(points, _one_by_one), _array(features))
        return [build_one(points, run) for points in _array(features)]


def splat_blur_slice(
    lattices: Sequence[Tables], values: Float[Tensor, "b c n"], transpose: bool = False
) -> Float[Tensor, "b c n"]:
    """Filters values with the lattices' Gaussians; see `_reference.splat_blur_slice`."""
    batch, channels, points = values.shape
    out = torch.empty(values.shape, dtype=values.dtype, device="cpu")
    source, target = _array(values), out.numpy()
    tables = _arrays(lattices)

    def alone(image: int, channel: int, run: Run) -> None:
        _filter_one(tables[image], source[image, channel], transpose, target[image, channel], run)

    def task(index: tuple[int, int]) -> None:
        image, first = index
        if first == channels - 1:
            alone(image, first, _one_by_one)
            return
        block = slice(first, first + _BLOCK)
        lattice = _numba_filter.splat_blur(*tables[image], source[image, block], transpose)
        _numba_filter.slice_out(*tables[image][:3], lattice, target[image, block])

    if channels == 1:
        _by_image(lambda image, run: alone(image, 0, run), batch, points)
    else:
        with team() as run:
            run(task, [(image, first) for image in range(batch) for first in range(0, channels, _BLOCK)])
    return out


def normalizer(lattices: Sequence[Tables], symmetric: bool) -> Float[Tensor, "b 1 n"]:
    """One over what the filter makes of ones, or over its root; see `_reference.normalizer`."""
    tables = _arrays(lattices)
    sums = np.empty((len(tables), 1, len(tables[0][0])), tables[0][2].dtype)
    ones = np.ones_like(sums[0, 0])

    def task(image: int, run: Run) -> None:
        own = sums[image, 0]
        _filter_one(tables[image], ones, False, own, run)
        own += own.dtype.type(1e-20)
        np.divide(1, np.sqrt(own, out=own) if symmetric else own, out=own)

    _by_image(task, len(tables), len(ones))
    return torch.from_numpy(sums)


def normalizer_gradients(
    lattices: Sequence[Tables],
    features: Float[Tensor, "b d n"],
    bandwidths: Float[Tensor, " d"],
    scale: Float[Tensor, "b 1 n"],
    gradient: Float[Tensor, "b 1 n"],
    symmetric: bool,
    to_features: bool,
) -> tuple[Tensor | None, Float[Tensor, " d"]]:
    """From the gradient to a `scale` those to features and bandwidths; see `_reference.normalizer_gradients`.

    Without operations of torch: its threads would go on spinning beside ours.
    """
    feature, bandwidth, own = _array(features), _array(bandwidths), _array(scale)
    dims, points = feature.shape[1:]
    f = np.empty((len(own), dims, points), own.dtype)
    rows = np.empty((len(own), 1 + dims, points), own.dtype)  # what is sent: the gradient to the sums, and f times it
    received = _array(gradient) * (own.dtype.type(-0.5 if symmetric else -1) * own)
    rows[:, :1] = received * (own * own if symmetric else own)

    def fill(index: tuple[int, int]) -> None:
        image, dim = index
        _numba_moments.centre(feature[index], float(bandwidth[dim]), f[index])
        np.multiply(f[index], rows[image, 0], out=rows[image, 1 + dim])

    def spread(index: tuple[int, int]) -> float:
        image, dim = index
        return float(_numba_moments.spread(f[index], both[image, 0], back[image, 1 + dim]))

    every = list(np.ndindex(len(own), dims))
    with team() as run:
        run(fill, every)
        back = splat_blur_slice(lattices, torch.from_numpy(rows), True).numpy()
        both = received + back[:, :1]
        spreads = np.reshape(run(spread, every), (len(own), dims)).sum(0)
    to_points = None
    if to_features:
        filtered = splat_blur_slice(lattices, torch.from_numpy(f)).numpy()
        to_points = torch.from_numpy((rows[:, :1] * filtered + back[:, 1:] - f * both) / bandwidth[:, None])
    return to_points, torch.from_numpy((spreads / bandwidth).astype(bandwidth.dtype))


def _filter_one(tables: Arrays, values: np.ndarray, transpose: bool, out: np.ndarray, run: Run) -> None:
    """Filters a single channel, as normalisation does."""
    *points, neighbours = tables
    cuts = _cuts(len(values))
    lattices = np.empty((len(cuts) - 1, neighbours.shape[2] + 1), values.dtype)
    parts = range(len(lattices))
    run(lambda part: _numba_filter.splat_one(*points, *cuts[part : part + 2], values, lattices[part]), parts)
    blurred = _numba_filter.blur_one(neighbours, lattices.sum(0), transpose)
    run(lambda part: _numba_filter.slice_one(*points, *cuts[part : part + 2], blurred, out), parts)


def _cuts(points: int) -> list[int]:
    """Where parts begin, and the end: a power of two of them, which divides among threads."""
    parts = min(16, 1 << (points // _POINTS_A_PART).bit_length() >> 1) or 1
    return np.linspace(0, points, parts + 1, dtype=int).tolist()


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

    side_by_side = min(_BLOCK, -(-dims * batch // torch.get_num_threads()))  # of a single channel so many features

    def together(index: tuple[int, int]) -> None:
        image, first = index
        block = slice(first, first + side_by_side)
        lattice = _numba_filter.splat_blur(*tables[image], source[image] * feature[image, block], transpose)
        _numba_filter.slice_out(*tables[image][:3], lattice, parts[image, block, 0])
        parts[image, block, 0] *= other[image]

    def task(index: tuple[int, int, int]) -> None:
        image, dim, part = index
        block = slice(blocks[part], blocks[part] + _BLOCK)
        scaled = source[image, block] * feature[image, dim]
        lattice = _numba_filter.splat_blur(*tables[image], scaled, transpose)
        _numba_filter.slice_dot(*tables[image][:3], lattice, other[image, block], parts[index])

    with team() as run:
        if channels == 1:
            run(together, [(image, first) for image in range(batch) for first in range(0, dims, side_by_side)])
        else:
            run(task, np.ndindex(batch, dims, len(blocks)))
    return torch.from_numpy(parts.sum(2))


def mean_field(
    terms: Sequence[Normalized],
    mixtures: Sequence[Tensor],
    logits: Float[Tensor, "b k n"],
    iterations: int,
    grid: tuple[int, int],
    logarithm: bool = True,
    keep: bool = False,
) -> tuple[Float[Tensor, "b k n"], list[MeanField]]:
    """Mean field in single precision, and where it is to be kept what the gradients need; see `_reference.mean_field`.

    The gradients need logarithms.
    """
    target = np.empty(logits.shape, np.float32)  # in large pages, which are faster to get than those of torch
    scores = _array(logits)
    states: list[Any] = [None] * len(scores)
    own = [_of_image(terms, mixtures, image) for image in range(len(scores))]
    _require_memory(own, logits.shape, iterations * len(own) if keep else 0)

    def infer(image: int, run: Run) -> None:
        with workspace() as space:
            lent = Workspace(target[image], space)  # the result is written last, and until then its memory serves
            if not keep and is_binary(own[image], scores.shape[1]):
                binary = BinaryMeanField(own[image], grid, space, lent, run)
                binary.infer(scores[image], iterations, target[image], logarithm, space, lent, run)
                return
            lasting = (Workspace(np.empty(0)),) * 2 if keep else (space, lent)
            state = MeanField(own[image], scores.shape[1], grid, *lasting, run)
            state.infer(scores[image], iterations, target[image], logarithm, keep, space, lent, run)
            if keep:
                states[image] = state

    _by_image(infer, len(scores), scores.shape[2])
    return torch.from_numpy(target), states


def watched_mean_field(
    terms: Sequence[Normalized],
    mixtures: Sequence[Tensor],
    logits: Float[Tensor, "b k n"],
    iterations: int,
    grid: tuple[int, int],
    logarithm: bool,
    how: tuple[float, float, bool],
) -> tuple[Float[Tensor, "b k n"], list[tuple[list[float], list[float]]]]:
    """Mean field in single precision, and the divergences and changes of each image.

    Args:
        terms: see `mean_field`.
        mixtures: see `mean_field`.
        logits: see `mean_field`.
        iterations: the most updates.
        grid: see `mean_field`.
        logarithm: see `mean_field`.
        how: the tolerance, the damping, and whether to take the divergences.
    """
    target = np.empty(logits.shape, np.float32)
    scores = _array(logits)
    courses: list[Any] = [None] * len(scores)
    own = [_of_image(terms, mixtures, image) for image in range(len(scores))]
    _require_memory(own, logits.shape, 0)

    def infer(image: int, run: Run) -> None:
        with workspace() as space:
            lent = Workspace(target[image], space)
            state = MeanField(own[image], scores.shape[1], grid, space, lent, run)
            how_to = _numba_meanfield.Watch(*how)
            courses[image] = state.watch(scores[image], iterations, target[image], logarithm, how_to, space, lent, run)

    _by_image(infer, len(scores), scores.shape[2])
    return torch.from_numpy(target), courses


def _require_memory(terms: Sequence[Sequence[Term]], shape: Sequence[int], kept: int) -> None:
    """Raises a MemoryError where lattices have more vertices than could be told before they were built.

    Args:
        terms: of each image.
        shape: of the logits (B, K, N).
        kept: how many lattices of each term stay for the gradients.
    """
    _, classes, points = shape
    vertices = max(sum(term.tables[3].shape[2] for term in own) for own in terms)
    binary = not kept and is_binary(terms[0], classes)
    channels = 1 if binary else -(-classes // 8) * 8
    # The rows of pixels, a lattice and at least as many copies of its vertices in parts of the image, and those kept.
    needed = 4 * channels * (points + (2 + kept) * vertices)
    _memory.require(needed, f"Refining {points} pixels of {classes} classes with lattices of {vertices} vertices")


def mean_field_gradients(
    states: Sequence[MeanField],
    log_q: Float[Tensor, "b k n"],
    gradient: Float[Tensor, "b k n"],
    features: Sequence[tuple[Float[Tensor, "b d n"], Float[Tensor, " d"]] | None],
) -> tuple[Tensor, list[list[Tensor | None]]]:
    """The gradients to the logits and to each term's mixture, factors before and after, and bandwidths.

    Args:
        states: what `mean_field` has kept.
        log_q: what it gave.
        gradient: that to log_q.
        features: each term's, for each image or for all, and its bandwidths, where these are learned.

    Returns:
        The gradient to the logits, and for each term those named above; where one factor serves before and after, the
        whole gradient to it in the first place and None in the second. Instead of that to bandwidths there is, for each
        feature, the sum of k_ij (f_i - f_j)² g_i v_j.
    """
    to_logits = torch.empty(log_q.shape, dtype=torch.float32, device="cpu")
    found: list[Any] = [None] * len(states)
    marginals, received, out = _array(log_q), _array(gradient), to_logits.numpy()
    arrays = [None if own is None else (_array(own[0]), _array(own[1])) for own in features]

    def pull(image: int, run: Run) -> None:
        state = states[image]
        learned = (arrays[i] for i in state.places)
        own = [None if pair is None else (pair[0][image if len(pair[0]) > 1 else 0], pair[1]) for pair in learned]
        with workspace() as space:
            slopes = _numba_backward.gradients(state, marginals[image], received[image], own, out[image], space, run)
        found[image] = [slopes[state.places.index(term)] for term in range(len(slopes))]

    _by_image(pull, len(states), log_q.shape[2])
    to_terms = [_of_batch(list(term)) for term in zip(*found, strict=True)]
    broken = ~gradient.sum((1, 2)).isfinite()
    if bool(broken.any()):  # the kernels keep numbers within bounds, and would make finite ones of it
        to_logits[broken] = torch.nan
        for slope in (slope for slopes in to_terms for slope in slopes if slope is not None):
            slope.fill_(torch.nan)
    return to_logits, to_terms


def _of_batch(slopes: Sequence[_numba_backward.Slopes]) -> list[Tensor | None]:
    """One term's gradients of all images: those to the mixture and the spreads added up, those to factors stacked."""
    mixture = torch.from_numpy(np.sum([own.mixture for own in slopes], 0))
    learned = [own.learned for own in slopes if own.learned is not None]
    if not learned:
        return [mixture, None, None, None]
    before, after, spreads = zip(*learned, strict=True)
    to_before = torch.from_numpy(np.stack(before)[:, None])
    to_after = None if after[0] is None else torch.from_numpy(np.stack(after)[:, None])
    return [mixture, to_before, to_after, torch.from_numpy(np.sum(spreads, 0))]


def _of_image(terms: Sequence[Normalized], mixtures: Sequence[Tensor], image: int) -> list[Term]:
    """The terms of one image of a batch."""
    found = []
    for (lattices, before, after), mixture in zip(terms, mixtures, strict=True):
        tables = _arrays([lattices[image if len(lattices) > 1 else 0]])[0]
        first = _of_one(before, image, len(tables[0]))
        second = first if before is after else _of_one(after, image, len(tables[0]))
        found.append(Term(tables, first, second, _array(mixture)))
    return found


def _of_one(factor: Tensor | None, image: int, points: int) -> np.ndarray:
    if factor is None:
        return np.ones(points, np.float32)
    return _array(factor)[image if len(factor) > 1 else 0, 0]


def _by_image(task: Callable[[int, Run], None], images: int, points: int) -> None:
    """Works on whole images side by side, or on one after the other with all threads."""
    with team() as run:
        if _side_by_side(images, points):
            run(lambda image: task(image, _one_by_one), range(images))
        else:
            for image in range(images):
                task(image, run)


def _side_by_side(images: int, points: int) -> bool:
    """Whether threads take whole images: where there are enough images, and none is so large that memory would matter.

    Otherwise all threads work on one image.
    """
    threads = torch.get_num_threads()
    return images >= threads and points < max(2 * threads, MOST_PARTS) * PIXELS_A_PART


def _one_by_one(task: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    return [task(item) for item in items]


@contextmanager
def team() -> Iterator[Run]:
    """What runs a task for each of some items on torch's number of threads.

    Whoever is free takes the next item, and the caller works too: to wake a thread takes as long as a small task. The
    threads end with the context: kept, they would survive neither a fork nor the interpreter's end. A context within
    another has the same threads, since to start them takes time that counts on a small image.
    """
    threads = torch.get_num_threads()
    if getattr(_working, "run", None):
        yield _working.run
        return
    if threads == 1:
        yield _one_by_one
        return
    with ThreadPoolExecutor(threads - 1) as pool:

        def run(task: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
            work = list(items)
            done: list[Any] = [None] * len(work)
            places = iter(range(len(work)))  # shared: each place is given out once

            def help_out() -> None:
                for place in places:
                    done[place] = task(work[place])

            others = [pool.submit(help_out) for _ in range(min(threads, len(work)) - 1)]
            help_out()
            for other in others:
                other.result()
            return done

        _working.run = run
        try:
            yield run
        finally:
            _working.run = None


def _array(values: Tensor) -> np.ndarray:
    return values.detach().contiguous().numpy()


def _arrays(lattices: Sequence[Tables]) -> list[Arrays]:
    return [(s.numpy(), v.numpy(), w.contiguous().numpy(), n.numpy()) for s, v, w, n in lattices]


def _build_one(points: np.ndarray, scales: np.ndarray, space: Workspace, run: Run) -> Tables:
    d, n = points.shape
    simplices = np.empty(n, np.int32)
    weights = np.empty((n, d + 1), points.dtype)
    multipliers = _multipliers(d)
    cuts = _cuts(n)
    records = space.empty((n, d), points.dtype)
    tables = [space.empty(_table_size(last - first), np.int32) for first, last in itertools.pairwise(cuts)]

    def place(part: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Places the points of one part; gives its simplices' vertices and the coordinates and keys of those."""
        first, last = cuts[part : part + 2]
        own, table = records[first:last], tables[part]
        table[:] = -1
        count = _numba_build.place_kernel(d)(points, first, last, scales, simplices, weights, own, table)
        vertices = np.empty((count, d + 1), np.int32)
        size, entries = -1, count // 2 + d + 1  # images share vertices; where they do not, there is no room
        while size < 0:
            table = _empty_table(entries)
            coordinates, keys = np.empty((len(table) // 2, d), np.int32), np.empty(len(table) // 2, np.uint64)
            size = _numba_build.number_vertices(own[:count], multipliers, vertices, coordinates, keys, table)
            entries = 4 * len(table)
        return vertices, coordinates[:size].copy(), keys[:size].copy()

    placed = run(place, range(len(cuts) - 1))

    count, simplex, vertices = 0, 0, []
    coordinates = np.empty((sum(len(own) for _, own, _ in placed), d), np.int32)
    keys, table = np.empty(len(coordinates), np.uint64), _empty_table(len(coordinates))
    for part, (corners, own, own_keys) in enumerate(placed):
        numbers = np.empty(len(own), np.int32)
        count = _numba_build.merge(own, own_keys, numbers, coordinates, keys, table, count)
        vertices.append(numbers[corners])
        simplices[slice(*cuts[part : part + 2])] += simplex
        simplex += len(corners)

    neighbours = np.full((d + 1, 2, count), count, np.int32)
    found = coordinates[:count], multipliers, keys, table
    run(lambda axis: _numba_build.link(*found, axis, neighbours[axis]), range(d + 1))
    arrays = simplices, np.concatenate(vertices), weights, neighbours
    return tuple(torch.from_numpy(array) for array in arrays)  # type: ignore[return-value]


def _scales(d: int) -> np.ndarray:
    """What features are multiplied by on their way into the lattice."""
    return np.array([math.sqrt(2 / 3) * (d + 1) / math.sqrt((i + 1) * (i + 2)) for i in range(d)])


def _multipliers(d: int) -> np.ndarray:
    """Odd numbers of 64 bits for the keys of vertices, always the same."""
    return np.random.default_rng(0).integers(0, 1 << 63, d, np.uint64) * np.uint64(2) + np.uint64(1)


def _table_size(entries: int) -> int:
    """Slots of an open-addressed hash table that so many entries fill to less than half."""
    return 2 << entries.bit_length()


def _empty_table(entries: int) -> np.ndarray:
    return np.full(_table_size(entries), -1, np.int32)
