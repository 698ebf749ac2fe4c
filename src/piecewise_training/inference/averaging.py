"""Scores of an image from one look at it, or averaged over windows, scales and mirror images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from piecewise_training.config import InferenceConfig
from piecewise_training.model import PiecewiseTrainedModel

_SMALLEST = 1e-3  # weight of a window's border: where no other window looks, it alone counts


class Scored(NamedTuple):
    """Scores before the dense CRF, of the image's size.

    Attributes:
        unary: the network's.
        contextual: the contextual CRF's; None without one.
    """

    unary: Float[Tensor, "b k h w"]
    contextual: Float[Tensor, "b k h w"] | None


def score(
    model: PiecewiseTrainedModel,
    image: Float[Tensor, "b 3 h w"],
    how: InferenceConfig,
    after_unary: Callable[[], None] = lambda: None,
) -> Scored:
    """Scores images as they are or, if `how` asks for it, by the mean of probabilities over several looks at them.

    Args:
        model: in evaluation mode.
        image: normalised as ImageNet.
        how: windows, scales and mirror images.
        after_unary: called when the network's scores are there; of several looks, all are there at once.
    """
    check(how)
    if (*how.scales,) == (1.0,) and not how.flip and how.window is None:
        nodes = model.score_nodes(image)
        unary = model.enlarged(nodes.scores, image)
        after_unary()
        return Scored(unary, model.contextual(image, nodes))
    total, looks = image.new_zeros(()), 0
    for scale in how.scales:
        size = [max(1, round(side * scale)) for side in image.shape[2:]]
        view = _resized(image, size, antialias=scale < 1)
        for mirrored in (False, True) if how.flip else (False,):
            seen = _windows(model, view.flip(3) if mirrored else view, how)
            total = total + _resized(seen.flip(3) if mirrored else seen, image.shape[2:])
            looks += 1
    mean = (total / looks).clamp(min=torch.finfo(torch.float32).tiny).log()
    after_unary()
    classes = model.num_classes
    return Scored(mean[:, :classes], mean[:, classes:] if model.context is not None else None)


def check(how: InferenceConfig) -> None:
    """Checks names and ranges.

    Raises:
        ValueError: a number is out of its range.
    """
    if not how.scales or not all(0 < scale < math.inf for scale in how.scales):
        raise ValueError(f"`scales` must be one or more numbers above 0; got {list(how.scales)}.")
    if not 0 <= how.overlap < 1:
        raise ValueError(f"`overlap` must be from 0 to below 1; got {how.overlap}.")
    if how.window is not None and not (
        isinstance(how.window, Sequence) and len(how.window) == 2 and min(how.window) >= 1
    ):
        raise ValueError(f"`window` must be a height and a width of at least 1; got {how.window!r}.")


def _windows(model: PiecewiseTrainedModel, image: Tensor, how: InferenceConfig) -> Tensor:
    """Probabilities of a view: of the whole, or blended from windows where it is larger than one."""
    if how.window is None or all(side <= own for side, own in zip(image.shape[2:], how.window, strict=True)):
        return _probabilities(model, image)
    like = torch.empty((), dtype=torch.promote_types(image.dtype, torch.float32), device=image.device)
    total, weights = like, like.new_zeros(image.shape[2:])  # the corners of windows weigh too little for half precision
    for rows in _places(image.shape[2], how.window[0], how.overlap):
        for columns in _places(image.shape[3], how.window[1], how.overlap):
            part = _probabilities(model, image[:, :, rows, columns])
            share = _bump(part.shape[2], like)[:, None] * _bump(part.shape[3], like)
            if total.ndim == 0:
                total = like.new_zeros(*part.shape[:2], *image.shape[2:])
            total[:, :, rows, columns] += share * part
            weights[rows, columns] += share
    return total / weights


def _probabilities(model: PiecewiseTrainedModel, image: Tensor) -> Tensor:
    """The network's probabilities, and behind them the contextual CRF's where there is one."""
    nodes = model.score_nodes(image)
    scores = [model.enlarged(nodes.scores, image), model.contextual(image, nodes)]
    return torch.cat([one.softmax(1) for one in scores if one is not None], 1)


def _places(side: int, window: int, overlap: float) -> Iterator[slice]:
    """Windows along an axis, evenly spread, the first and the last at the borders."""
    if side <= window:
        yield slice(0, side)
        return
    furthest = max(1, math.floor(window * (1 - overlap) + 1e-9))  # from one to the next
    steps = -(-(side - window) // furthest)
    for step in range(steps + 1):
        start = round(step * (side - window) / steps)
        yield slice(start, start + window)


def _bump(side: int, like: Tensor) -> Tensor:
    """Weights along a window's axis, largest in its middle: at a border a network lacks half of the context."""
    return torch.hann_window(side + 2, periodic=False, dtype=like.dtype, device=like.device)[1:-1].clamp(min=_SMALLEST)


def _resized(values: Tensor, size: list[int] | torch.Size, *, antialias: bool = False) -> Tensor:
    if list(values.shape[2:]) == list(size):
        return values
    single = values.to(torch.promote_types(values.dtype, torch.float32))  # not every device resizes in half precision
    resized = functional.interpolate(single, tuple(size), mode="bilinear", align_corners=False, antialias=antialias)
    return resized.to(values.dtype)
