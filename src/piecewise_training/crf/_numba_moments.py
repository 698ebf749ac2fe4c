"""The sums of k_ij (f_i - f_j)² g_i v_j that the gradients to bandwidths are: what is taken of one feature f."""

from __future__ import annotations

import numpy as np

from piecewise_training.crf._compile import kernel


def centre(feature: np.ndarray, bandwidth: float, out: np.ndarray) -> None:
    """Fills in a feature in bandwidths from its mean: far from the origin the terms of the sums would cancel."""
    np.divide(feature, bandwidth, out=out)
    out -= out.mean()


@kernel
def spread(feature, both, cross):  # type: ignore[no-untyped-def]
    """The sum over points of f (f b - 2 c), with what each has received and sent, b, and what came back for f, c.

    In double precision, since much cancels, and as four sums, none of which has to wait for another.
    """
    whole = len(feature) // 4 * 4
    first = second = third = fourth = 0.0
    for p in range(0, whole, 4):
        first += _at_point(feature, both, cross, p)
        second += _at_point(feature, both, cross, p + 1)
        third += _at_point(feature, both, cross, p + 2)
        fourth += _at_point(feature, both, cross, p + 3)
    for p in range(whole, len(feature)):
        first += _at_point(feature, both, cross, p)
    return (first + second) + (third + fourth)


@kernel
def _at_point(feature, both, cross, p):  # type: ignore[no-untyped-def]
    f = np.float64(feature[p])
    return f * (f * both[p] - 2.0 * cross[p])
