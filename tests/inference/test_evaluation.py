"""Evaluation of a model on a set of images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from piecewise_training.crf import DenseCRF
from piecewise_training.inference import evaluate, evaluate_crf, evaluation
from piecewise_training.metrics import SegmentationMetrics
from piecewise_training.model import PiecewiseTrainedModel


def test_what_happens_once_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image goes through network and CRF before the first clock starts: kernels are compiled on the first."""
    events: list[str] = []

    class Clock(evaluation._Clock):
        def __init__(self, device: torch.device) -> None:
            events.append("clock")
            super().__init__(device)

    monkeypatch.setattr(evaluation, "_Clock", Clock)
    model = PiecewiseTrainedModel(3, unary=nn.Conv2d(3, 3, 1))
    hook: Any = lambda name: lambda *_: events.append(name)  # noqa: E731
    model.unary.register_forward_hook(hook("network"))
    assert model.crf is not None
    model.crf.register_forward_hook(hook("CRF"))
    batch = torch.randn(2, 3, 8, 10), torch.zeros(2, 8, 10, dtype=torch.long)
    evaluate(model, [batch, batch])
    assert events == ["network", "CRF", *["clock", "network", "clock", "CRF"] * 2]


def of_each(predictions: torch.Tensor, targets: torch.Tensor) -> list[float]:
    """The mIoU of each image alone."""
    found = []
    for prediction, target in zip(predictions, targets, strict=True):
        metrics = SegmentationMetrics(3)
        metrics.update(prediction[None], target[None])
        found.append(metrics.compute().miou)
    return found


def test_the_scores_of_each_image_are_those_of_it_alone() -> None:
    """Of batches of two and of one, with void."""
    model = PiecewiseTrainedModel(3, 2, unary=nn.Conv2d(3, 3, 1)).eval()
    batches = []
    for count in (2, 1):
        target = torch.randint(0, 3, (count, 8, 10))
        target[:, :2], target[:, :, 7:] = 255, 2
        batches.append((torch.randn(count, 3, 8, 10), target))
    found = evaluate(model, batches)
    expected: tuple[list[float], list[float]] = [], []
    with torch.inference_mode():
        for image, target in batches:
            for scores, miou in zip(model(image), expected, strict=True):
                assert scores is not None
                miou += of_each(scores.argmax(1), target)
    assert found.crf is not None
    assert [*found.unary.images] == pytest.approx(expected[0])
    assert [*found.crf.images] == pytest.approx(expected[1])
    assert len(set(expected[0])) == 3

    grey = [(torch.randn(len(i), 3, 8, 10), (255 * torch.rand_like(i)).byte(), target) for i, target in batches]
    crf = DenseCRF(3, 2).eval()
    again = evaluate_crf(crf, grey)
    assert again.crf is not None
    with torch.inference_mode():
        for result, predict in ((again.unary, lambda s, _: s), (again.crf, crf)):
            alone = [own for s, i, target in grey for own in of_each(predict(s, i).argmax(1), target)]
            assert [*result.images] == pytest.approx(alone)


def test_a_crf_on_given_scores() -> None:
    crf = DenseCRF(3, 2).train()
    batches = []
    for size in ((8, 10), (7, 9)):
        scores, image = torch.randn(1, 3, *size), torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8)
        batches.append((scores, image, torch.randint(0, 3, (1, *size))))
    found = evaluate_crf(crf, batches)
    assert not crf.training
    assert found.crf is not None
    for result, predict in ((found.unary, lambda s, _: s), (found.crf, crf)):
        metrics = SegmentationMetrics(3)
        for scores, image, target in batches:
            metrics.update(predict(scores, image).argmax(1), target)
        assert torch.equal(result.confusion, metrics.confusion)
        assert len(result.images) == 2
    assert found.unary.seconds == 0 < found.crf.seconds


def test_no_scores_to_evaluate_on() -> None:
    with pytest.raises(ValueError, match="`batches` holds no image to evaluate on"):
        evaluate_crf(DenseCRF(3), [])
