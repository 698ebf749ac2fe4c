"""Predicting the labels of images, and refining other people's scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from piecewise_training import checks
from piecewise_training.config import InferenceConfig
from piecewise_training.crf import DenseCRF, dense_crf
from piecewise_training.dataset import VOID, normalise
from piecewise_training.inference.averaging import score
from piecewise_training.model import PiecewiseTrainedModel

_PLAIN = InferenceConfig()


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image.

    Attributes:
        labels: (H, W) uint8, the model's last word: the CRF's where there is one.
        unary_labels: (H, W) uint8, the unary network's.
        probabilities: (K, H, W) float32, behind `labels`.
    """

    labels: UInt8[np.ndarray, "h w"]
    unary_labels: UInt8[np.ndarray, "h w"]
    probabilities: Float[np.ndarray, "k h w"]


@torch.inference_mode()
def predict(
    model: PiecewiseTrainedModel,
    image: Image.Image | UInt8[np.ndarray, "h w 3"],
    apply_crf: bool = True,
    how: InferenceConfig = _PLAIN,
) -> Prediction:
    """Predicts the labels of one image at its own size.

    Args:
        model: on any device and of any precision; it is left in evaluation mode.
        image: an RGB image, taken as it lies: PIL's `ImageOps.exif_transpose` turns a photograph upright.
        apply_crf: False leaves the CRFs out.
        how: windows, scales and mirror images over which to average.

    Raises:
        ValueError: the image is not (H, W, 3) uint8 or holds no pixel, or a number is out of its range.
    """
    pixels = normalise(_pixels(image))[None].to(next(model.parameters()))
    model.eval()
    scored = score(model, pixels, how)
    log_q = model.refine(pixels, *scored) if apply_crf else None
    log_p = scored.unary.log_softmax(1) if log_q is None else log_q
    return Prediction(_labels(log_p), _labels(scored.unary), log_p[0].exp().float().cpu().numpy())


def refine(
    scores: Float[np.ndarray, "k h w"],
    image: Image.Image | UInt8[np.ndarray, "h w 3"],
    crf: DenseCRF | None = None,
    device: str | torch.device = "cpu",
    **options: Any,
) -> tuple[UInt8[np.ndarray, "h w"], Float[np.ndarray, "k h w"]]:
    """Refines somebody else's score maps with a dense CRF.

    Args:
        scores: unnormalised log-probabilities, such as logits; of probabilities, their logarithm.
        image: the RGB image of the same size.
        crf: one that was learned; its kernels are in it. It is left in evaluation mode.
        device: where to compute; a `crf` is moved there.
        **options: without one weights, bandwidths and iterations, as `dense_crf` takes them; `logarithm` changes
            nothing here.

    Returns:
        The labels (H, W) and the probabilities (K, H, W).

    Raises:
        ValueError: shapes do not fit, there are more than 255 classes, a score is not finite, or there are both a `crf`
            and options.

    Example:
        >>> labels, probabilities = refine(np.zeros((2, 8, 8), np.float32), np.zeros((8, 8, 3), np.uint8))
        >>> labels.shape, probabilities.shape
        ((8, 8), (2, 8, 8))
    """
    pixels = _pixels(image)
    if np.ndim(scores) != 3:
        raise ValueError(f"`scores` must be (K, H, W); got {tuple(np.shape(scores))}.")
    if scores.shape[1:] == pixels.shape[1:]:
        _check_count(len(scores))
    if crf is not None and options:
        raise ValueError(f"`crf` has kernels of its own: leave out {', '.join(options)}.")
    given, pixels = (part[None].to(device) for part in (checks.as_tensor("scores", scores), pixels))
    if given.dtype == torch.float64:  # NumPy's usual, in which each update would take ten times as long
        given = given.float()
    if crf is not None:
        crf.to(device).eval()  # not under inference mode: it could not be trained afterwards
    with torch.inference_mode():
        log_q = crf(given, pixels) if crf else dense_crf(given, pixels, **(options | {"logarithm": True}))
        return _labels(log_q), log_q[0].exp().cpu().numpy()


def scores_from_labels(
    labels: UInt8[np.ndarray, "h w"], num_classes: int, confidence: float = 0.7
) -> Float[np.ndarray, "k h w"]:
    """Turns a label map into scores for the CRF, with the same confidence everywhere; void says nothing.

    Args:
        labels: (H, W) class indices, 255 for void.
        num_classes: K.
        confidence: probability of the label of each pixel; the rest is shared by the other classes.

    Raises:
        ValueError: there are fewer than 2 classes or more than 255, the confidence is not between 1 / K and 1, or a
            label is neither a class nor void.

    Example:
        >>> np.exp(scores_from_labels(np.array([[1, 255]], np.uint8), 2, 0.9)).round(2)[:, 0]
        array([[0.1, 0.5],
               [0.9, 0.5]], dtype=float32)
    """
    if num_classes < 2:
        raise ValueError(f"`num_classes` must be at least 2; got {num_classes}.")
    _check_count(num_classes)
    if not 1 / num_classes < confidence < 1:
        raise ValueError(f"`confidence` must be between 1 / {num_classes} and 1; got {confidence}.")
    known = np.isin(labels, np.arange(num_classes))
    wrong = np.unique(labels[~known & (labels != VOID)])
    if wrong.size:
        raise ValueError(f"`labels` must hold 0 to {num_classes - 1} or {VOID}; it also holds {wrong[:5].tolist()}.")
    probabilities = np.full((num_classes, *labels.shape), (1 - confidence) / (num_classes - 1), np.float32)
    for k in range(num_classes):
        probabilities[k, labels == k] = confidence
    probabilities[:, labels == VOID] = 1 / num_classes
    return np.log(probabilities)


def _pixels(image: Image.Image | np.ndarray) -> Tensor:
    if isinstance(image, Image.Image):
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):  # which Pillow would cut off at 255
            raise ValueError(f"`image` must have 8 bits a channel; got mode {image.mode}. Convert it to 8-bit RGB.")
        image = image.convert("RGB")
    array = np.array(image)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or not array.size:
        raise ValueError(f"`image` must be (H, W, 3) uint8; got {array.shape} {array.dtype}.")
    return torch.from_numpy(array).permute(2, 0, 1)


def _check_count(num_classes: int) -> None:
    if num_classes > VOID:
        raise ValueError(f"labels of {num_classes} classes do not fit into a byte: at most {VOID}, please.")


def _labels(scores: Tensor) -> np.ndarray:
    _check_count(scores.shape[1])
    return scores[0].argmax(0).to(torch.uint8).cpu().numpy()
