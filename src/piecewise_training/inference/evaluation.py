"""Evaluating a model on a set of images with labels, before and after its CRFs."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from piecewise_training.config import InferenceConfig
from piecewise_training.crf import DenseCRF
from piecewise_training.inference.averaging import check, score
from piecewise_training.metrics import BorderMetrics, Scores, SegmentationMetrics, scores_from_confusion
from piecewise_training.model import PiecewiseTrainedModel

_PLAIN = InferenceConfig()


@dataclass(frozen=True)
class Result:
    """How well one kind of prediction did on a whole set.

    Attributes:
        scores: what follows from the confusion matrix.
        confusion: the matrix (K, K): rows are the truth, columns the prediction.
        borders: boundary IoU and trimap scores by name.
        seconds: time to predict an image, on average.
        images: mIoU of each image, over the classes in it or in its prediction.
    """

    scores: Scores
    confusion: Tensor
    borders: dict[str, float]
    seconds: float
    images: tuple[float, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """The unary network's result, and the contextual and the dense CRF's if the model has them."""

    unary: Result
    crf: Result | None
    context: Result | None = None


class _Tally:
    def __init__(self, num_classes: int, device: torch.device, void_is_border: bool) -> None:
        # Of the images given to this process, also while others train with it.
        self.metrics = SegmentationMetrics(num_classes, sync_on_compute=False).to(device)
        self.borders = BorderMetrics(num_classes, void_is_border=void_is_border, sync_on_compute=False).to(device)
        self.seconds = 0.0
        self.images: list[float] = []

    def add(self, prediction: Tensor, target: Tensor, seconds: float) -> None:
        self.metrics.update(prediction, target)
        self.borders.update(prediction, target)
        self.seconds += seconds
        self.images += [
            scores_from_confusion(self._confusion(*pair)).miou for pair in zip(prediction, target, strict=True)
        ]

    def result(self) -> Result:
        return Result(
            self.metrics.compute(),
            self.metrics.confusion.cpu(),
            self.borders.compute(),
            self.seconds / max(1, len(self.images)),
            tuple(self.images),
        )

    def _confusion(self, prediction: Tensor, target: Tensor) -> Tensor:
        classes = self.metrics.num_classes
        known = target != self.metrics.ignore_index
        pairs = target[known].long() * classes + prediction[known]
        return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def evaluate(
    model: PiecewiseTrainedModel,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: str | torch.device = "cpu",
    how: InferenceConfig = _PLAIN,
    void_is_border: bool = False,
) -> Evaluation:
    """Scores a model on a set of images with labels, before and after its CRFs.

    Args:
        model: of any precision; left in evaluation mode, on `device`.
        batches: images (B, 3, H, W), normalised as ImageNet, and labels (B, H, W), 255 for void.
        device: where to compute.
        how: windows, scales and mirror images over which to average.
        void_is_border: whether border measures take void for a border, as they should for PASCAL VOC.

    Raises:
        ValueError: there is no batch, a label is neither a class nor void, or a number is out of its range.
    """
    check(how)
    device = torch.device(device)
    model.to(device).eval()
    own = next(model.parameters())
    unary, context, crf = (_Tally(model.num_classes, device, void_is_border) for _ in range(3))
    with torch.inference_mode():  # not around the model's move: its parameters could not be trained afterwards
        for image, target in batches:
            image, target = image.to(own), target.to(device)
            if not unary.images:  # what is compiled or looked up once is not the time of an image
                model.refine(image[:1], *score(model, image[:1], how))
            _evaluate_batch(model, image, target, how, (unary, context, crf))
    if not unary.images:
        raise ValueError("`batches` holds no image to evaluate on.")
    return Evaluation(
        unary.result(),
        crf.result() if model.crf is not None else None,
        context.result() if model.context is not None else None,
    )


def evaluate_crf(
    crf: DenseCRF,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    device: str | torch.device = "cpu",
    void_is_border: bool = False,
) -> Evaluation:
    """Scores a dense CRF on a set of images whose scores are given, and these without it.

    Args:
        crf: left in evaluation mode, on `device`.
        batches: scores (B, K, H, W), images (B, 3, H, W) in grey levels, and labels (B, H, W), 255 for void.
        device: where to compute.
        void_is_border: whether border measures take void for a border, as they should for PASCAL VOC.

    Raises:
        ValueError: there is no batch, or a label is neither a class nor void.
    """
    device = torch.device(device)
    crf.to(device).eval()
    given, refined = (_Tally(crf.num_classes, device, void_is_border) for _ in range(2))
    with torch.inference_mode():
        for scores, image, target in batches:
            scores, image, target = scores.to(device), image.to(device), target.to(device)
            if not given.images:  # what is compiled is not the time of an image
                crf(scores[:1], image[:1])
            clock = _Clock(device)
            log_q = crf(scores, image)
            refined.add(log_q.argmax(1), target, clock.lap())
            given.add(scores.argmax(1), target, 0.0)
    if not given.images:
        raise ValueError("`batches` holds no image to evaluate on.")
    return Evaluation(given.result(), refined.result())


def _evaluate_batch(
    model: PiecewiseTrainedModel,
    image: Tensor,
    target: Tensor,
    how: InferenceConfig,
    tallies: tuple[_Tally, _Tally, _Tally],
) -> None:
    """Adds a batch to each tally, with the time from the image to the scores."""
    unary, context, crf = tallies
    clock = _Clock(image.device)
    laps: list[float] = []
    scored = score(model, image, how, lambda: laps.append(clock.lap()))
    laps.append(clock.lap())
    unary.add(scored.unary.argmax(1), target, laps[0])
    if scored.contextual is not None:
        context.add(scored.contextual.argmax(1), target, laps[1])
    if model.crf is not None:
        clock = _Clock(image.device)
        refined = model.refine(image, *scored)
        seconds = clock.lap()
        assert refined is not None  # there is a CRF
        crf.add(refined.argmax(1), target, laps[1] + seconds)


class _Clock:
    """The time since it was made."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._begin = time.perf_counter()

    def lap(self) -> float:
        """Seconds, when the device has done its work."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        elif self._device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter() - self._begin
