"""How well labels agree with the truth: what follows from one confusion matrix, and measures along the borders."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any, NamedTuple

import torch
import torchmetrics
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from piecewise_training import checks

VOID = 255


class Scores(NamedTuple):
    """What follows from a confusion matrix; each from 0 to 1.

    Attributes:
        miou: mean of iou over the classes that occur.
        pixel_accuracy: share of pixels with the right label.
        mean_accuracy: mean of recall over the classes that occur in the truth.
        frequency_weighted_iou: mean of iou weighted by the true frequency.
        iou: intersection over union of each class; NaN for one that is neither true nor predicted anywhere.
        precision: share of a class's predicted pixels that are right; NaN for one that is never predicted.
        recall: share of a class's true pixels that are found; NaN for one that never occurs.
        f1: harmonic mean of the two, the Dice coefficient; NaN as of iou.
        support: number of true pixels of each class.
    """

    miou: float
    pixel_accuracy: float
    mean_accuracy: float
    frequency_weighted_iou: float
    iou: Float[Tensor, k]
    precision: Float[Tensor, k]
    recall: Float[Tensor, k]
    f1: Float[Tensor, k]
    support: Int[Tensor, k]


def scores_from_confusion(confusion: Int[Tensor, "k k"]) -> Scores:
    """Every score of a confusion matrix whose rows are the truth and whose columns are the prediction.

    A class that is in neither stays out of the means; one that is predicted but never true counts as IoU 0.

    Example:
        >>> scores = scores_from_confusion(torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]]))
        >>> scores.iou
        tensor([0.7500, 0.8000,    nan], dtype=torch.float64)
        >>> round(scores.miou, 3)
        0.775
    """
    matrix = confusion.cpu().double()  # not every accelerator has double precision
    hits, truth, predicted = matrix.diag(), matrix.sum(1), matrix.sum(0)
    iou = _ratio(hits, truth + predicted - hits)
    recall = _ratio(hits, truth)
    return Scores(
        miou=float(iou.nanmean()),
        pixel_accuracy=float(_ratio(hits.sum(), matrix.sum())),
        mean_accuracy=float(recall.nanmean()),
        frequency_weighted_iou=float(_ratio((iou.nan_to_num() * truth).sum(), truth.sum())),
        iou=iou,
        precision=_ratio(hits, predicted),
        recall=recall,
        f1=_ratio(2 * hits, truth + predicted),
        support=confusion.sum(1).cpu(),
    )


class SegmentationMetrics(torchmetrics.classification.MulticlassConfusionMatrix):
    """Scores over a whole set, from one confusion matrix summed over all its pixels; void is left out.

    Args:
        num_classes: K.
        ignore_index: the label of void.

    Raises:
        ValueError: void is one of the classes.

    Example:
        >>> metrics = SegmentationMetrics(num_classes=2)
        >>> metrics.update(torch.tensor([[[0, 1, 1]]]), torch.tensor([[[0, 1, 255]]]))
        >>> metrics.compute().miou
        1.0
    """

    num_classes: int
    ignore_index: int

    def __init__(self, num_classes: int, ignore_index: int = VOID, **kwargs: Any) -> None:
        _check_void(num_classes, ignore_index)
        super().__init__(num_classes, ignore_index=ignore_index, validate_args=False, **kwargs)

    def update(self, prediction: Int[Tensor, "b h w"], target: Int[Tensor, "b h w"]) -> None:
        """Adds a batch of label maps.

        Raises:
            ValueError: shapes differ, labels are no whole numbers, or one is neither a class nor void.
        """
        _check_maps(prediction, target, self.num_classes, self.ignore_index)
        # Not by torchmetrics, which on some devices and in deterministic mode makes K squared numbers a pixel.
        known = target != self.ignore_index
        flat = target[known].long() * self.num_classes + prediction[known].long()
        self.confmat += torch.bincount(flat, minlength=self.confmat.numel()).reshape(self.confmat.shape)

    def compute(self) -> Scores:  # type: ignore[override]
        """The scores of everything added since the last reset."""
        return scores_from_confusion(self.confusion)

    @property
    def confusion(self) -> Int[Tensor, "k k"]:
        """The matrix: rows are the truth, columns the prediction."""
        return self.confmat


class BorderMetrics(torchmetrics.Metric):
    """Scores near the borders of a whole set: boundary IoU, and mean IoU and error in bands (trimaps) around them.

    Boundary IoU (Cheng et al., CVPR 2021) compares, for each class, the pixels of its region that lie within a
    distance of the region's edge. The trimap score is mean IoU over the pixels within some distance of a true border,
    as Chen et al. have it (DeepLab, ICLR 2015); the trimap error is the share of these pixels that are misclassified,
    as Kohli et al. (IJCV 2009) and Krähenbühl & Koltun (2011) have it, who began with such bands. Distance is the
    larger of the two axes'. Void pixels count nowhere. The image's edge is no border; in Cheng et al.'s own program it
    is one, and so is the rim of void, so that its figures are others. Whether void is a border here depends on the
    data: in PASCAL VOC a strip of it covers every border, and the trimaps of Chen et al. are bands along it; elsewhere
    it is whatever was left unlabelled.

    Args:
        num_classes: K.
        boundary: distance for boundary IoU: a share of the image's diagonal, at least one pixel, or an int of pixels.
        bands: distances for the trimap scores, in pixels.
        ignore_index: the label of void.
        void_is_border: whether a pixel near void is near a border.

    Raises:
        ValueError: a distance is out of its range, or void is one of the classes.

    Example:
        >>> truth = torch.tensor([[[0, 0, 0, 1, 1, 1]]])
        >>> metrics = BorderMetrics(num_classes=2, bands=(1,))
        >>> metrics.update(torch.tensor([[[0, 0, 1, 1, 1, 1]]]), truth)
        >>> {name: round(value, 3) for name, value in metrics.compute().items()}
        {'boundary_iou': 0.0, 'trimap_1': 0.25, 'trimap_error_1': 0.5}
    """

    full_state_update = False
    intersection: Tensor
    union: Tensor

    def __init__(
        self,
        num_classes: int,
        boundary: float | int = 0.02,
        bands: tuple[int, ...] = (1, 2, 4, 8, 16),
        ignore_index: int = VOID,
        void_is_border: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        _check_void(num_classes, ignore_index)
        if boundary < 1 if isinstance(boundary, Integral) else not 0 < boundary < 1:
            raise ValueError(
                f"`boundary` must be a share of the diagonal between 0 and 1, or an int of pixels; got {boundary}."
            )
        if any(not isinstance(band, Integral) or band < 1 for band in bands) or len(set(bands)) < len(bands):
            raise ValueError(f"`bands` must be distances in whole pixels, at least 1, each another; got {bands}.")
        self.num_classes = num_classes
        self.boundary = boundary
        self.bands = bands
        self.ignore_index = ignore_index
        self.void_is_border = void_is_border
        zeros = torch.zeros(num_classes, dtype=torch.long)
        self.add_state("intersection", zeros.clone(), dist_reduce_fx="sum")
        self.add_state("union", zeros.clone(), dist_reduce_fx="sum")
        for band in bands:
            self.add_state(f"band_{band}", torch.zeros(num_classes, num_classes, dtype=torch.long), "sum")

    def update(self, prediction: Int[Tensor, "b h w"], target: Int[Tensor, "b h w"]) -> None:
        """Adds a batch of label maps.

        Raises:
            ValueError: shapes differ, labels are no whole numbers, or one is neither a class nor void.
        """
        _check_maps(prediction, target, self.num_classes, self.ignore_index)
        target = target.long()
        prediction = prediction.long().where(target != self.ignore_index, self.ignore_index)
        share = not isinstance(self.boundary, Integral)
        width = max(1, round(self.boundary * math.hypot(*target.shape[1:]))) if share else int(self.boundary)
        how = self.ignore_index, self.void_is_border
        true_edge, found_edge = border_band(target, width, *how), border_band(prediction, width, *how)
        both = true_edge & found_edge & (prediction == target)
        hits = self._count(target[both])
        self.intersection += hits
        self.union += self._count(target[true_edge]) + self._count(prediction[found_edge]) - hits
        for band in self.bands:
            near = border_band(target, band, *how)
            flat = target[near] * self.num_classes + prediction[near]
            matrix = getattr(self, f"band_{band}")
            matrix += torch.bincount(flat, minlength=matrix.numel()).reshape(matrix.shape)

    def compute(self) -> dict[str, float]:
        """Boundary IoU and the trimap scores by name, the mean over the classes that occur, and the trimap errors."""
        iou = _ratio(self.intersection.cpu().double(), self.union.cpu().double())
        scores = {"boundary_iou": float(iou.nanmean())}
        for band in self.bands:
            near = scores_from_confusion(getattr(self, f"band_{band}"))
            scores |= {f"trimap_{band}": near.miou, f"trimap_error_{band}": 1 - near.pixel_accuracy}
        return scores

    def _count(self, labels: Tensor) -> Tensor:
        return torch.bincount(labels, minlength=self.num_classes)


def _check_void(num_classes: int, ignore_index: int) -> None:
    if 0 <= ignore_index < num_classes:
        raise ValueError(
            f"`ignore_index` {ignore_index} is one of the {num_classes} classes, which would not be counted. "
            "Give void another number, such as -1."
        )


def _check_maps(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int) -> None:
    if prediction.shape != target.shape:
        raise ValueError(
            "`prediction` and `target` must have one shape; "
            f"got {checks.describe(prediction)} and {checks.describe(target)}."
        )
    for name, labels in (("prediction", prediction), ("target", target)):
        if labels.is_floating_point():
            raise ValueError(f"`{name}` must hold whole numbers; got {checks.describe(labels)}. Take the argmax first.")
    checks.labels(target, num_classes, ignore_index)
    known = prediction[target != ignore_index]
    if known.numel() and (int(known.min()) < 0 or int(known.max()) >= num_classes):
        raise ValueError(
            f"`prediction` must hold classes 0 to {num_classes - 1} wherever the truth is known; "
            f"it goes from {int(known.min())} to {int(known.max())}."
        )


def border_band(
    labels: Int[Tensor, "b h w"], width: int, ignore_index: int = VOID, void_is_border: bool = False
) -> Bool[Tensor, "b h w"]:
    """The pixels with another class, or with void if that is a border, within `width` pixels along both axes.

    Void is never in the band itself.

    Example:
        >>> border_band(torch.tensor([[[0, 0, 0, 1, 1, 255]]]), 1)[0, 0]
        tensor([False, False,  True,  True, False, False])
        >>> border_band(torch.tensor([[[0, 0, 0, 1, 1, 255]]]), 1, void_is_border=True)[0, 0]
        tensor([False, False,  True,  True,  True, False])
    """
    known = labels != ignore_index
    values = labels.float()[:, None]
    highest = _window_max(values.masked_fill(~known[:, None], -1), width)[:, 0]
    unseen = 1 if void_is_border else -1e6  # minus the value of void, below all classes or above
    lowest = -_window_max((-values).masked_fill(~known[:, None], unseen), width)[:, 0]
    return known & (highest != lowest)


def _window_max(values: Tensor, radius: int) -> Tensor:
    for size, padding in (((2 * radius + 1, 1), (radius, 0)), ((1, 2 * radius + 1), (0, radius))):
        values = functional.max_pool2d(values, size, stride=1, padding=padding)
    return values


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    return numerator / denominator.where(denominator > 0, torch.nan)
