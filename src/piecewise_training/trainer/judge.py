"""What a model's weights are worth on the validation set: a stage that has made them worse is undone."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from piecewise_training.model import PiecewiseTrainedModel
from piecewise_training.trainer.stages import Stage
from piecewise_training.writing import atomic_write

logger = logging.getLogger(__name__)

PREFIX = "model."  # of the model's weights among the LightningModule's


class Judge:
    """Remembers how good the weights are that a stage has left, for the stage that begins with them.

    Args:
        model: whose weights they are.
        writes: whether this is the process that writes files.
    """

    def __init__(self, model: PiecewiseTrainedModel, writes: bool) -> None:
        self._model = model
        self._writes = writes
        self._known: tuple[str, float, dict[str, Tensor]] | None = None  # what judged them, their mIoU, and they
        self._images: object = None  # on which they were judged

    @property
    def miou(self) -> float | None:
        """The validation mIoU of the weights that the last stage has left; None where it is not known."""
        return None if self._known is None else self._known[1]

    def before(
        self, stage: Stage, folder: Path, measure: Callable[[], float] | None, resume: bool, images: object = None
    ) -> float | None:
        """The validation mIoU of the weights that a stage begins with; under a CRF of either kind measured if need be.

        That of the network alone is not: it mostly begins with random weights.

        Args:
            stage: about to begin.
            folder: of the stage, where what was measured is kept.
            measure: gives the mIoU; None without a validation set.
            resume: whether an earlier run may have measured it.
            images: the validation set: what is known of weights holds on this one.
        """
        if images is not self._images:
            self.forget()
        self._images = images
        known = self._of_earlier_stage(stage)
        if known is not None or measure is None or stage.judged_by == "unary":
            return known
        begun = folder / "begun.json"
        if resume and begun.is_file():
            miou = float(json.loads(begun.read_text())["val_miou"])
        else:
            miou = measure()
            if self._writes:
                folder.mkdir(parents=True, exist_ok=True)
                with atomic_write(begun) as temporary:
                    temporary.write_text(json.dumps({"val_miou": miou}))
        self._known = (stage.judged_by, miou, self._weights())
        return miou

    def after(self, stage: Stage, folder: Path, start: float | None, best: float) -> None:
        """Goes back to the weights that a stage began with where not one of its epochs was as good."""
        if start is not None and best < start and self._known is not None:
            logger.warning(
                "%s reached %.2f %% mIoU at best and began with %.2f %%: it is undone.",
                stage.name,
                100 * best,
                100 * start,
            )
            best = start
            self._model.load_state_dict(self._known[2])
            if self._writes:
                with atomic_write(folder / "best.ckpt") as temporary:
                    torch.save({"state_dict": {PREFIX + k: v for k, v in self._known[2].items()}}, temporary)
        self._known = (stage.judged_by, best, self._weights())

    def forget(self) -> None:
        """After a stage without a validation set."""
        self._known = None

    def _of_earlier_stage(self, stage: Stage) -> float | None:
        """The mIoU of the weights as they are, if the stage that left them was judged by the same."""
        if self._known is None:
            return None
        judge, miou, state = self._known
        silent = self._model.context is not None and self._model.context.silent
        if judge != stage.judged_by and not (judge == "unary" and stage.judged_by == "context" and silent):
            return None
        unchanged = all(torch.equal(value.cpu(), state[name]) for name, value in self._model.state_dict().items())
        return miou if unchanged else None

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.detach().cpu().clone() for name, value in self._model.state_dict().items()}
