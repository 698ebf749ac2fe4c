"""What a model's weights are worth on the validation set: a stage that has made them worse is undone."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from piecewise_training.model import PiecewiseTrainedModel
from piecewise_training.trainer.stages import Stage
from piecewise_training.writing import atomic_write

logger = logging.getLogger(__name__)

PREFIX = "model."  # of the model's weights among the LightningModule's


class _Known(NamedTuple):
    judge: str  # the stage's `judged_by`
    miou: float
    state: dict[str, Tensor]
    crfs: list[Any]  # how they were built: another CRF may have weights of the same names and values


class Judge:
    """Remembers how good the weights are that a stage has left, for the stage that begins with them.

    Args:
        model: whose weights they are.
        writes: whether this is the process that writes files.
    """

    def __init__(self, model: PiecewiseTrainedModel, writes: bool) -> None:
        self._model = model
        self._writes = writes
        self._known: _Known | None = None
        self._images: object = None  # on which they were judged

    @property
    def miou(self) -> float | None:
        """The validation mIoU of the weights that the last stage has left; None where it is not known."""
        return None if self._known is None else self._known.miou

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
        self._known = _Known(stage.judged_by, miou, self._weights(), self._crfs())
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
            self._model.load_state_dict(self._known.state)
            if self._writes:
                with atomic_write(folder / "best.ckpt") as temporary:
                    torch.save({"state_dict": {PREFIX + k: v for k, v in self._known.state.items()}}, temporary)
        self._known = _Known(stage.judged_by, best, self._weights(), self._crfs())

    def forget(self) -> None:
        """After a stage without a validation set."""
        self._known = None

    def _of_earlier_stage(self, stage: Stage) -> float | None:
        """The mIoU of the weights as they are, if the stage that left them was judged by the same."""
        if self._known is None:
            return None
        judge, miou, state, crfs = self._known
        silent = self._model.context is not None and self._model.context.silent
        if judge != stage.judged_by and not (judge == "unary" and stage.judged_by == "context" and silent):
            return None
        own = self._model.state_dict()
        if self._crfs() != crfs or own.keys() != state.keys():  # another one has been put in its place
            return None
        return miou if all(torch.equal(value.cpu(), state[name]) for name, value in own.items()) else None

    def _crfs(self) -> list[Any]:
        return [None if crf is None else crf.configuration() for crf in (self._model.crf, self._model.context)]

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.detach().cpu().clone() for name, value in self._model.state_dict().items()}
