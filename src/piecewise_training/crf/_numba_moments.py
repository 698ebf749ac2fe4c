"""The sums of k_ij (f_i - f_j)² g_i v_j that the gradients to bandwidths are: what is taken of one feature f."""

from __future__ import annotations

import numpy as np

from piecewise_training.crf._compile import kernel
from piecewise_training.crf._simd import load8, spread8, total


def centre(feature: np.ndarray, bandwidth: float, out: np.ndarray) -> None:
    """Fills in a feature in bandwidths from its mean: far from the origin the terms of the sums would cancel."""
    np.divide(feature, bandwidth, out=out)
    out -= out.mean()


@kernel
def spread(feature, both, cross):  # type: ignore[no-untyped-def]
    """The sum over points of f (f b - 2 c), with what each has received and sent, b, and what came back for f, c."""
    found = 0.0
    whole = len(feature) // 8 * 8
    for first in range(0, whole, 256):  # of so few points that the features' precision is good enough
        sums = spread8(feature.dtype.type(0))
        for p in range(first, min(first + 256, whole), 8):
            f, c = load8(feature, p), load8(cross, p)
            sums = sums + f * (f * load8(both, p) - c - c)
        found += total(sums)
    for p in range(whole, len(feature)):
        found += feature[p] * (feature[p] * both[p] - cross[p] - cross[p])
    return found
