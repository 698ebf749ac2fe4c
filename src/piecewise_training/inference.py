"""The code that loops over images: evaluating a model on a set, predicting, refining other people's scores."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from piecewise_training.crf import dense_crf
from piecewise_training.dataset import VOID, normalise
from piecewise_training.metrics import BorderMetrics, Scores, SegmentationMetrics
from piecewise_training.model import PiecewiseTrainedModel, enlarged


@dataclass(frozen=True)
class Result:
    """How well one kind of prediction did on a whole set.

    Attributes:
        scores: what follows from the confusion matrix.
        confusion: the matrix (K, K): rows are the truth, columns the prediction.
        borders: boundary IoU and trimap scores by name.
        seconds: time to predict an image, on average.
    """

    scores: Scores
    confusion: Tensor
    borders: dict[str, float]
    seconds: float


@dataclass(frozen=True)
class Evaluation:
    """The unary network's result, and the contextual and the dense CRF's if the model has them."""

    unary: Result
    crf: Result | None
    context: Result | None = None


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


class _Tally:
    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.metrics = SegmentationMetrics(num_classes).to(device)
        self.borders = BorderMetrics(num_classes).to(device)
        self.seconds, self.images = 0.0, 0

    def add(self, prediction: Tensor, target: Tensor, seconds: float) -> None:
        self.metrics.update(prediction, target)
        self.borders.update(prediction, target)
        self.seconds += seconds
        self.images += len(target)

    def result(self) -> Result:
        return Result(
            self.metrics.compute(),
            self.metrics.confusion.cpu(),
            self.borders.compute(),
            self.seconds / max(1, self.images),
        )


def evaluate(
    model: PiecewiseTrainedModel,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: str | torch.device = "cpu",
) -> Evaluation:
    """Scores a model on a set of images with labels, before and after its CRFs.

    Args:
        model: left in evaluation mode, on `device`.
        batches: images (B, 3, H, W), normalised as ImageNet, and labels (B, H, W), 255 for void.
        device: where to compute.

    Raises:
        ValueError: there is no batch, or a label is neither a class nor void.
    """
    device = torch.device(device)
    model.to(device).eval()
    unary, context, crf = (_Tally(model.num_classes, device) for _ in range(3))
    with torch.inference_mode():  # not around the model's move: its parameters could not be trained afterwards
        for image, target in batches:
            _evaluate_batch(model, image.to(device), target.to(device), unary, context, crf)
    if not unary.images:
        raise ValueError("`batches` holds no image to evaluate on.")
    return Evaluation(
        unary.result(),
        crf.result() if model.crf is not None else None,
        context.result() if model.context is not None else None,
    )


def _evaluate_batch(
    model: PiecewiseTrainedModel, image: Tensor, target: Tensor, unary: _Tally, context: _Tally, crf: _Tally
) -> None:
    """Adds a batch to each tally, with the time from the image to its labels, the argmax aside."""
    clock = _Clock(image.device)
    nodes = model.score_nodes(image)
    logits = enlarged(nodes.scores, image)
    clock.stop()
    unary.add(logits.argmax(1), target, clock.seconds)
    clock.start()
    contextual = model.contextual(image, nodes)
    clock.stop()
    if contextual is not None:
        context.add(contextual.argmax(1), target, clock.seconds)
    if model.crf is not None:
        clock.start()
        refined = model.refine(image, logits, contextual)
        clock.stop()
        assert refined is not None  # there is a CRF
        crf.add(refined.argmax(1), target, clock.seconds)


class _Clock:
    """Adds up the time between starts and stops; it runs from the beginning."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = 0.0
        self.start()

    def start(self) -> None:
        self._begin = time.perf_counter()

    def stop(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds += time.perf_counter() - self._begin


@torch.inference_mode()
def predict(
    model: PiecewiseTrainedModel, image: Image.Image | UInt8[np.ndarray, "h w 3"], apply_crf: bool = True
) -> Prediction:
    """Predicts the labels of one image at its own size.

    Args:
        model: in evaluation mode, on any device.
        image: an RGB image.
        apply_crf: False leaves the CRF out.

    Raises:
        ValueError: the image is not (H, W, 3) uint8.
    """
    logits, log_q = model(normalise(_pixels(image))[None].to(next(model.parameters()).device), apply_crf=apply_crf)
    log_p = logits.log_softmax(1) if log_q is None else log_q
    return Prediction(_labels(log_p), _labels(logits), log_p[0].exp().float().cpu().numpy())


@torch.inference_mode()
def refine(
    scores: Float[np.ndarray, "k h w"], image: Image.Image | UInt8[np.ndarray, "h w 3"], **crf: Any
) -> tuple[UInt8[np.ndarray, "h w"], Float[np.ndarray, "k h w"]]:
    """Refines somebody else's score maps with a dense CRF.

    Args:
        scores: unnormalised log-probabilities, such as logits; of probabilities, their logarithm.
        image: the RGB image of the same size.
        **crf: weights, bandwidths and iterations, as `dense_crf` takes them.

    Returns:
        The labels (H, W) and the probabilities (K, H, W).

    Raises:
        ValueError: shapes do not fit or a score is not finite.

    Example:
        >>> labels, probabilities = refine(np.zeros((2, 8, 8), np.float32), np.zeros((8, 8, 3), np.uint8))
        >>> labels.shape, probabilities.shape
        ((8, 8), (2, 8, 8))
    """
    log_q = dense_crf(torch.from_numpy(np.ascontiguousarray(scores))[None], _pixels(image)[None], **crf)
    return _labels(log_q), log_q[0].exp().numpy()


def scores_from_labels(
    labels: UInt8[np.ndarray, "h w"], num_classes: int, confidence: float = 0.7
) -> Float[np.ndarray, "k h w"]:
    """Turns a label map into scores for the CRF, with the same confidence everywhere; void says nothing.

    Args:
        labels: (H, W) class indices, 255 for void.
        num_classes: K.
        confidence: probability of the label of each pixel; the rest is shared by the other classes.

    Raises:
        ValueError: the confidence is not between 1 / K and 1, or a label is neither a class nor void.

    Example:
        >>> np.exp(scores_from_labels(np.array([[1, 255]], np.uint8), 2, 0.9)).round(2)[:, 0]
        array([[0.1, 0.5],
               [0.9, 0.5]], dtype=float32)
    """
    if not 1 / num_classes < confidence < 1:
        raise ValueError(f"`confidence` must be between 1 / {num_classes} and 1; got {confidence}.")
    wrong = np.unique(labels[(labels >= num_classes) & (labels != VOID)])
    if wrong.size:
        raise ValueError(f"`labels` must hold 0 to {num_classes - 1} or {VOID}; it also holds {wrong[:5].tolist()}.")
    probabilities = np.full((num_classes, *labels.shape), (1 - confidence) / (num_classes - 1), np.float32)
    for k in range(num_classes):
        probabilities[k, labels == k] = confidence
    probabilities[:, labels == VOID] = 1 / num_classes
    return np.log(probabilities)


def _pixels(image: Image.Image | np.ndarray) -> Tensor:
    array = np.array(image.convert("RGB") if isinstance(image, Image.Image) else image)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise ValueError(f"`image` must be (H, W, 3) uint8; got {array.shape} {array.dtype}.")
    return torch.from_numpy(array).permute(2, 0, 1)


def _labels(scores: Tensor) -> np.ndarray:
    return scores[0].argmax(0).to(torch.uint8).cpu().numpy()
