"""The permutohedral lattice and the exact Gaussian sum in plain torch: any device, any float dtype, no compiler.

The lattice is that of Adams, Baek & Davis, "Fast high-dimensional filtering using the permutohedral lattice" (2010),
with the scaling of Krähenbühl & Koltun's dense CRF. Every kernel elsewhere is compared with these functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

FARTHEST = 1e6  # bandwidths, up to which single precision places a point well within its simplex

# Each point's simplex (n,); each simplex's vertices (s, v), v = d + 1; each point's barycentric weights (n, v) in it;
# neighbours (v, 2, m), for each blur axis the vertices before and after each of the m vertices, m where there is none.
Tables = tuple[Int[Tensor, " n"], Int[Tensor, "s v"], Float[Tensor, "n v"], Int[Tensor, "v 2 m"]]


class Normalized(NamedTuple):
    """The filter of a term: the lattices of each image, or one for all, and what values are multiplied by.

    Attributes:
        lattices: of each image, or one for all.
        before: the factors before filtering, for each image or for all; None is 1.
        after: the factors after filtering.
    """

    lattices: Sequence[Tables]
    before: Float[Tensor, "b 1 n"] | None
    after: Float[Tensor, "b 1 n"] | None


def centred(features: Float[Tensor, "b d n"], bandwidths: Float[Tensor, " d"]) -> Float[Tensor, "b d n"]:
    """Features in bandwidths from their mean: far from the origin the terms of a moment would cancel."""
    f = features / bandwidths[:, None]
    return f - f.mean(2, keepdim=True)


def build(features: Float[Tensor, "b d n"], bandwidths: Float[Tensor, " d"]) -> list[Tables]:
    """Finds each point's simplex in the lattice and each vertex's neighbours, for each image of a batch."""
    return [_build_one(points.T) for points in features / bandwidths[:, None]]


def splat_blur_slice(
    lattices: Sequence[Tables], values: Float[Tensor, "b c n"], transpose: bool = False
) -> Float[Tensor, "b c n"]:
    """Filters values with the lattices' Gaussians; `transpose` blurs the axes in the opposite order."""
    return torch.stack([_filter_one(*tables, v.T, transpose).T for tables, v in zip(lattices, values, strict=True)])


def normalizer(lattices: Sequence[Tables], symmetric: bool) -> Float[Tensor, "b 1 n"]:
    """One over what the filter makes of ones, or over its root."""
    ones = torch.stack([torch.ones_like(weights[None, :, 0]) for _, _, weights, _ in lattices])
    sums = splat_blur_slice(lattices, ones) + 1e-20
    return sums.rsqrt() if symmetric else sums.reciprocal()


def normalizer_gradients(
    lattices: Sequence[Tables],
    features: Float[Tensor, "b d n"],
    bandwidths: Float[Tensor, " d"],
    scale: Float[Tensor, "b 1 n"],
    gradient: Float[Tensor, "b 1 n"],
    symmetric: bool,
    to_features: bool,
) -> tuple[Float[Tensor, "b d n"] | None, Float[Tensor, " d"]]:
    """From the gradient to a `scale` of `normalizer` those to the features, if asked for, and to the bandwidths."""
    filtered = partial(splat_blur_slice, lattices)
    return through_normalizer(filtered, features, bandwidths, scale, gradient, symmetric, to_features)


def through_normalizer(
    filtered: Callable[[Tensor, bool], Tensor],
    features: Float[Tensor, "b d n"],
    bandwidths: Float[Tensor, " d"],
    scale: Float[Tensor, "b 1 n"],
    gradient: Float[Tensor, "b 1 n"],
    symmetric: bool,
    to_features: bool,
) -> tuple[Float[Tensor, "b d n"] | None, Float[Tensor, " d"]]:
    """`normalizer_gradients` by any filter.

    Args:
        filtered: gives filtered values (b, c, n), by the transposed filter if its second argument is true.
        features: the points.
        bandwidths: what they were divided by.
        scale: one over the filtered ones, or over their root.
        gradient: that to the scale.
        symmetric: whether it was the root.
        to_features: whether the gradient to the features is wanted; None stands for it if not.
    """
    f = centred(features, bandwidths)
    slope = gradient * (-0.5 * scale**3 if symmetric else -(scale**2))  # to the sums of the kernel
    back = filtered(torch.cat([slope, f * slope], 1), True)
    sent, cross = back[:, :1], back[:, 1:]
    both = gradient * (-0.5 * scale if symmetric else -scale) + sent  # with what each point has received
    spread = f * (f * both - 2 * cross)  # its sum is that of k_ij (f_i - f_j)² slope_i
    to_points = (slope * filtered(f, False) + cross - f * both) / bandwidths[:, None] if to_features else None
    return to_points, spread.sum((0, 2)) / bandwidths


def moments(
    lattices: Sequence[Tables],
    features: Float[Tensor, "b d n"],
    values: Float[Tensor, "b c n"],
    against: Float[Tensor, "b c n"],
    transpose: bool = False,
) -> Float[Tensor, "b d n"]:
    """Filters f v for each feature and contracts it with `against` over the channels."""
    filtered = [splat_blur_slice(lattices, feature[:, None] * values, transpose) for feature in features.unbind(1)]
    return torch.stack([(against * moment).sum(1) for moment in filtered], 1)


def mean_field(
    terms: Sequence[Normalized],
    mixtures: Sequence[Tensor],
    logits: Float[Tensor, "b k n"],
    iterations: int,
    grid: tuple[int, int],
) -> Float[Tensor, "b k n"]:
    """Log-marginals after some updates of Q from the softmax of the logits, without gradients.

    Args:
        terms: the filter of each.
        mixtures: what each term's filtered marginals add to the logits; see `mixed`.
        logits: (B, K, N).
        iterations: updates.
        grid: rows and columns of the pixels, whose product is N; kernels go through them by tiles.
    """
    del grid
    log_q = logits.log_softmax(1)
    for _ in range(iterations):
        q, total = log_q.exp(), logits
        for (lattices, before, after), mixture in zip(terms, mixtures, strict=True):
            own = list(lattices) * (len(logits) // len(lattices))
            filtered = splat_blur_slice(own, q if before is None else q * before)
            total = total + mixed(mixture, filtered if after is None else filtered * after)
        log_q = total.log_softmax(1)
    return log_q


def mixed(mixture: Tensor, filtered: Float[Tensor, "b k n"]) -> Float[Tensor, "b k n"]:
    """A matrix (K, K), its diagonal (K,) or a multiple () of the identity times the channels."""
    if mixture.ndim == 2:
        return mixture @ filtered
    return (mixture[:, None] if mixture.ndim else mixture) * filtered


def exact_sum(
    features: Float[Tensor, "d n"], values: Float[Tensor, "c n"], chunk_elements: int = 1 << 24
) -> Float[Tensor, "c n"]:
    r"""The sum :math:`\sum_j \exp(-\tfrac12 |f_i - f_j|^2)\, v_j` over all pairs, a chunk of rows at a time."""
    d, n = features.shape
    chunks = []
    for chunk in torch.split(features, max(1, chunk_elements // (d * n)), dim=1):
        squared = (chunk[:, :, None] - features[:, None]).square().sum(0)
        chunks.append(values @ torch.exp(-0.5 * squared).T)
    return torch.cat(chunks, 1)


def _build_one(features: Tensor) -> Tables:
    coordinates, weights = _enclosing_simplex(features)
    n, axes, d = coordinates.shape
    rows = coordinates.reshape(-1, d)
    numbers = _number(rows)
    corners = numbers.reshape(n, axes)
    simplices = _number(corners)
    return simplices, _distinct(corners, simplices), weights, _neighbours(_distinct(rows, numbers))


def _distinct(rows: Tensor, numbers: Tensor) -> Tensor:
    """The row of each number."""
    return rows.new_empty(int(numbers.max()) + 1, rows.shape[1]).index_copy_(0, numbers, rows)


def _filter_one(
    simplices: Tensor, vertices: Tensor, weights: Tensor, neighbours: Tensor, values: Tensor, transpose: bool
) -> Tensor:
    axes, _, size = neighbours.shape
    vertices = vertices[simplices]
    lattice = values.new_zeros(size + 1, values.shape[1])  # the last row, for missing neighbours, stays zero
    for k in range(axes):
        lattice.index_add_(0, vertices[:, k], weights[:, k : k + 1] * values)
    for axis in reversed(range(axes)) if transpose else range(axes):
        before, after = neighbours[axis]
        lattice[:size] += 0.5 * (lattice[before] + lattice[after])
    out = torch.zeros_like(values)
    for k in range(axes):
        out += weights[:, k : k + 1] * lattice[vertices[:, k]]
    return out / (1 + 2.0 ** (1 - axes))


def _enclosing_simplex(features: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates (n, v, d) of the vertices around each point, and the point's barycentric weights (n, v)."""
    n, d = features.shape
    size = d + 1
    position = features @ elevation(d).to(features)
    remainder_0 = torch.round(position / size)  # the nearest vertex whose coordinates are multiples of d + 1
    offset = position - remainder_0 * size
    rank = offset.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    # Rounding may leave the hyperplane of zero sum; move those coordinates that rounding moved most.
    rank = rank + remainder_0.sum(1, keepdim=True).long()
    wrapped = (rank < 0).long() - (rank > d).long()
    rank = rank + wrapped * size
    remainder_0 = (remainder_0 + wrapped) * size

    share = (position - remainder_0) / size
    weights = features.new_zeros(n, size + 1)
    weights.scatter_add_(1, d - rank, share).scatter_add_(1, size - rank, -share)
    weights[:, 0] += 1 + weights[:, size]

    steps = torch.arange(size, device=features.device)
    canonical = torch.where(steps[None] <= d - steps[:, None], steps[:, None], steps[:, None] - size)
    coordinates = remainder_0.long()[:, None] + canonical[:, rank].transpose(0, 1)
    return coordinates[:, :, :d], weights[:, :size]


def elevation(d: int) -> Tensor:
    """The (d, d + 1) map into the hyperplane of zero sum, scaled so that the blur has unit variance."""
    matrix = torch.zeros(d, d + 1, dtype=torch.float64)
    for i in range(d):
        scale = math.sqrt(2 / 3) * (d + 1) / math.sqrt((i + 1) * (i + 2))
        matrix[i, : i + 1] = scale
        matrix[i, i + 1] = -scale * (i + 1)
    return matrix


def _number(rows: Tensor) -> Tensor:
    """Numbers rows of integers from 0 so that equal rows, and only they, share a number."""
    rows = rows - rows.amin(0)
    spans = [int(top) + 1 for top in rows.amax(0)]
    key, size = rows[:, 0], spans[0]
    for column, span in zip(rows.T[1:], spans[1:], strict=True):
        if size * span >= 2**63:  # the packed key would overflow: close the gaps in it first
            key, size = torch.unique(key, return_inverse=True)[1], len(key)
        key, size = key * span + column, size * span
    return torch.unique(key, return_inverse=True)[1]


def _neighbours(vertices: Tensor) -> Tensor:
    """The two neighbours of each of m distinct vertices along each of the d + 1 axes, as (v, 2, m); m for none."""
    m, d = vertices.shape
    step = torch.ones(d + 1, d, dtype=torch.long, device=vertices.device)
    step[:d] -= (d + 1) * torch.eye(d, dtype=torch.long, device=vertices.device)
    after = vertices[None] + step[:, None]
    number = _number(torch.cat([vertices, after.reshape(-1, d)]))
    index = number.new_full((int(number.max()) + 1,), m)
    index[number[:m]] = torch.arange(m, device=vertices.device)
    after_index = index[number[m:]].reshape(d + 1, m)
    before_index = after_index.new_full((d + 1, m + 1), m)
    before_index.scatter_(1, after_index, torch.arange(m, device=vertices.device).expand(d + 1, m))
    return torch.stack([before_index[:, :m], after_index], 1)
