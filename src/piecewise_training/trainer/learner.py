"""What all that is trained here has in common: how it is judged, and what becomes of a step that would spoil it."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import lightning
import torch
import torchmetrics
from torch import Tensor

from piecewise_training.metrics import SegmentationMetrics

logger = logging.getLogger(__name__)

MOST_LEFT_OUT = 10  # steps in a row
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_HALVINGS = 16  # that bring the scaler of half precision from its first 2 ** 16 down to 1


class Learner(lightning.LightningModule):
    """Takes no step whose gradient is not finite, and logs its validations' loss and scores.

    Batch norm's statistics, which move before there is a gradient, stay as they were before such a step.

    Args:
        title: of what is trained, for messages.
        num_classes: K.

    Attributes:
        support: how many pixels of each class the last validation's labels held; None before the first.
    """

    support: Tensor | None
    remedy = "Lower `learning_rate`."

    def __init__(self, title: str, num_classes: int) -> None:
        super().__init__()
        self.title = title
        self.metrics = SegmentationMetrics(num_classes)
        self.mean_loss = torchmetrics.MeanMetric()
        self.support = None
        self._left_out = 0
        self._statistics: list[Tensor] = []  # after the last step that was taken

    def on_train_epoch_start(self) -> None:
        """Takes down the statistics that the model begins with."""
        self._statistics = [statistic.clone() for statistic in self._running()]

    def _running(self) -> list[Tensor]:
        # By name: a FeatMap-Net keeps those of its other scales beside its trunk.
        return [buffer for name, buffer in self.named_buffers() if name.endswith(_STATISTICS)]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Leaves out a step whose gradient is not finite: one would spoil its weights for good.

        Raises:
            FloatingPointError: so were those of the last ten steps; in half precision of sixteen more, in which the
                scaler comes down from where it begins.
        """
        del optimizer
        gradients = {name: p.grad for name, p in self.named_parameters() if p.grad is not None}
        if bool(torch.nn.utils.get_total_norm(gradients.values()).isfinite()):
            self._left_out = 0
            _copy(self._running(), self._statistics)
            return
        self._left_out += 1
        _copy(self._statistics, self._running())
        wrong = [name for name, gradient in gradients.items() if not bool(gradient.norm().isfinite())]
        what = f"the gradient of {wrong[0]} and {len(wrong) - 1} others" if wrong else "the gradient"
        place = f"{self.title}, step {self.trainer.global_step + 1}"
        scaled = self.trainer.precision == "16-mixed"
        if self._left_out >= MOST_LEFT_OUT + (_HALVINGS if scaled else 0):
            raise FloatingPointError(
                f"{place}: {what} is not finite, for the {self._left_out}th step in a row. Training cannot go on. "
                f"{self.remedy}"
            )
        if scaled:
            return  # the scaler leaves the step out, as it often does, and lowers its scale
        logger.warning("%s: %s is not finite; the step is left out", place, what)
        for p in self.parameters():
            p.grad = None

    def judge(self, prediction: Tensor, target: Tensor, loss: Tensor) -> None:
        """Adds a batch of label maps, and its mean loss, to the validation."""
        self.metrics.update(prediction, target)
        self.mean_loss.update(loss, len(target))

    def on_validation_epoch_end(self) -> None:
        """Logs the mean loss and what follows from the confusion matrix, of the images of all processes."""
        scores = self.metrics.compute()
        self.support = scores.support
        self.log("val_loss", self.mean_loss.compute())
        for metric in (self.metrics, self.mean_loss):
            metric.reset()
        self.log("val_miou", scores.miou, prog_bar=True)
        self.log("val_accuracy", scores.pixel_accuracy)


def _copy(sources: Iterable[Tensor], targets: Iterable[Tensor]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)
