"""Unary energies and features for `DenseCRF`, as `pydensecrf.utils` makes them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

logger = logging.getLogger(__name__)


def unary_from_labels(labels: np.ndarray, n_labels: int, gt_prob: float, zero_unsure: bool = True) -> np.ndarray:
    """Energies from labels that are right with a given probability.

    Args:
        labels: integers of any shape, N of them.
        n_labels: K; where `zero_unsure` is set the label 0 is not one of them.
        gt_prob: probability that a label is right, between 0 and 1.
        zero_unsure: whether 0 means that nothing is known, and the labels 1 to K are the classes 0 to K - 1.

    Returns:
        (K, N) float32: -log of the probability of each class.

    Raises:
        ValueError: a probability or label is out of its range, or a label is no whole number.

    Example:
        >>> unary_from_labels(np.array([0, 1, 2]), 2, 0.8).round(2)
        array([[0.69, 0.22, 1.61],
               [0.69, 1.61, 0.22]], dtype=float32)
    """
    if not 0 < gt_prob < 1:
        raise ValueError(f"`gt_prob` must lie between 0 and 1; got {gt_prob}.")
    given = np.asarray(labels).reshape(-1)
    flat = given.astype(np.int64)
    if not np.array_equal(flat, given):
        raise ValueError(
            f"`labels` must be whole numbers; got {given[flat != given][0]}. For probabilities there is "
            "unary_from_softmax."
        )
    classes = flat - 1 if zero_unsure else flat
    known = flat != 0 if zero_unsure else np.ones(len(flat), bool)
    if flat.size and (flat.min() < 0 or classes.max() >= n_labels):
        raise ValueError(
            f"`labels` must be from 0 to {n_labels if zero_unsure else n_labels - 1}; "
            f"they reach from {flat.min()} to {flat.max()}."
        )
    with np.errstate(divide="ignore"):  # of a single class there is no other one to be right instead
        energies = np.full((n_labels, len(flat)), -np.log((1 - gt_prob) / np.float64(n_labels - 1)), np.float32)
    energies[classes[known], np.flatnonzero(known)] = -np.log(gt_prob)
    energies[:, ~known] = -np.log(1 / n_labels)
    return energies


def unary_from_softmax(sm: np.ndarray, scale: float | None = None, clip: float | None = 1e-5) -> np.ndarray:
    """Energies from probabilities.

    Args:
        sm: probabilities (K, ...).
        scale: how far they are trusted, above 0 to 1: they are mixed with as much of the uniform distribution as
            is missing to 1. None is 1.
        clip: least probability; None clips nothing.

    Returns:
        (K, N) float32: -log of the probabilities.

    Raises:
        ValueError: the scale is out of its range.

    Example:
        >>> unary_from_softmax(np.array([[0.9], [0.1]])).round(2)
        array([[0.11],
               [2.3 ]], dtype=float32)
    """
    if scale is not None and not 0 < scale <= 1:
        raise ValueError(f"`scale` must be above 0 and at most 1; got {scale}.")
    classes = len(sm)
    if scale is not None:
        sm = scale * sm + (1 - scale) / classes
    if clip is not None:
        sm = np.clip(sm, clip, 1.0)
    return -np.log(sm).reshape(classes, -1).astype(np.float32)


def create_pairwise_gaussian(sdims: Sequence[float], shape: Sequence[int]) -> np.ndarray:
    """Features for a kernel of position alone, in any number of dimensions.

    Args:
        sdims: bandwidth along each axis.
        shape: size of the image or volume; its rows come first, in contrast to `DenseCRF2D`.

    Returns:
        (axes, N) float32 for `DenseCRF.addPairwiseEnergy`.

    Raises:
        ValueError: there are not as many bandwidths as axes, or one is not above 0.

    Example:
        >>> create_pairwise_gaussian((2, 1), (2, 2))
        array([[0. , 0. , 0.5, 0.5],
               [0. , 1. , 0. , 1. ]], dtype=float32)
    """
    if len(sdims) != len(shape):
        raise ValueError(f"`sdims` must have a bandwidth for each of the {len(shape)} axes; got {len(sdims)}.")
    return _places(sdims, shape)


def create_pairwise_bilateral(
    sdims: Sequence[float], schan: float | Sequence[float], img: np.ndarray, chdim: int = -1
) -> np.ndarray:
    """Features for a kernel of position and channels, in any number of dimensions.

    Args:
        sdims: bandwidth along each axis, that of the channels left out.
        schan: bandwidth of the channels, or one for each. Axes and channels at the end for which it or `sdims` has none
            are taken as they are, with a warning.
        img: the image or volume.
        chdim: axis of the channels; -1 means that there is none, not that it is the last one.

    Returns:
        (axes + channels, N) float32 for `DenseCRF.addPairwiseEnergy`.

    Raises:
        ValueError: there are more bandwidths than axes or channels, or one is not above 0.

    Example:
        >>> create_pairwise_bilateral((1, 1), 10, np.array([[[0, 50]], [[100, 0]]]), chdim=2).shape
        (4, 2)
    """
    channels = img[None] if chdim == -1 else np.moveaxis(img, chdim, 0)
    hint = " chdim=-1 means that there is no axis of channels: an image of (H, W, 3) wants chdim=2."
    hint = hint if chdim == -1 else ""
    place = _places(sdims, channels.shape[1:], hint)
    stds = np.full(len(channels), schan) if np.ndim(schan) == 0 else np.asarray(schan)
    stds = _for_each("schan", stds, len(channels), "channels", hint)
    colour = channels.reshape(len(channels), -1).astype(np.float32) / stds[:, None]
    return np.concatenate([place, colour])


def _places(sdims: Sequence[float], shape: Sequence[int], hint: str = "") -> np.ndarray:
    place = np.indices(shape).astype(np.float32).reshape(len(shape), -1)
    return place / _for_each("sdims", sdims, len(shape), "axes", hint)[:, None]


def _for_each(name: str, stds: Sequence[float] | np.ndarray, count: int, what: str, hint: str = "") -> np.ndarray:
    """Bandwidths, with 1 for those that lack at the end, as pydensecrf has it."""
    found = np.asarray(stds, np.float32)
    if not bool((found > 0).all()):
        raise ValueError(f"`{name}` must be above 0; got {stds}.")
    if len(found) > count:
        raise ValueError(f"`{name}` must have at most {count}, for as many {what}; got {len(found)}.{hint}")
    if len(found) < count:
        logger.warning("`%s` has %d for %d %s: the last have a bandwidth of 1.%s", name, len(found), count, what, hint)
    return np.concatenate([found, np.ones(count - len(found), np.float32)])


def compute_unary(labels: np.ndarray, M: int, GT_PROB: float = 0.5) -> np.ndarray:
    """`unary_from_labels` under its old name."""
    logger.warning("compute_unary is the old name of unary_from_labels")
    return unary_from_labels(labels, M, GT_PROB)


def softmax_to_unary(sm: np.ndarray, GT_PROB: float = 1) -> np.ndarray:
    """`unary_from_softmax` under its old name, and without its clipping: what has probability 0 is impossible."""
    logger.warning("softmax_to_unary is the old name of unary_from_softmax")
    return unary_from_softmax(sm, scale=None if GT_PROB == 1 else GT_PROB, clip=None)
