"""The network as it was earlier in stage 1, on whose scores stage 2 may learn."""

from __future__ import annotations

import copy
import logging
from pathlib import Path

import lightning
import torch
from torch import Tensor, nn

from piecewise_training.model import PiecewiseTrainedModel
from piecewise_training.trainer.judge import PREFIX
from piecewise_training.trainer.stages import Stage, earlier_epoch
from piecewise_training.writing import atomic_write

logger = logging.getLogger(__name__)

_FILE = "earlier.ckpt"
_NETWORK = f"{PREFIX}unary."


class EarlierNetwork:
    """Keeps a model's network as a share of stage 1 has left it, until stage 2 learns on its scores.

    Args:
        model: that is trained.
        share: of the epochs of stage 1; 0 keeps nothing.
    """

    def __init__(self, model: PiecewiseTrainedModel, share: float) -> None:
        self._model = model
        self._share = share
        self._network: nn.Module | None = None
        self._left: dict[str, Tensor] = {}

    def callbacks(self, stage: Stage, folder: Path) -> list[lightning.Callback]:
        """What keeps the weights while stage 1 is trained.

        Args:
            stage: that is trained.
            folder: of the stage.
        """
        if not self._share or stage.name != "stage1" or self._model.context is not None:
            return []
        return [EarlierWeights(folder, earlier_epoch(self._share, stage))]

    def after(self, stage: Stage, folder: Path) -> None:
        """Takes what stage 1 has kept, if that is earlier than the epoch whose weights it leaves in the model."""
        if stage.name != "stage1":
            return
        self._network = None
        path, best = folder / _FILE, folder / "best.ckpt"
        kept = torch.load(path, map_location="cpu", weights_only=True) if self._share and path.is_file() else {}
        if kept.get("epochs") != earlier_epoch(self._share, stage):  # of a run that was begun with another share
            return
        chosen = torch.load(best if best.is_file() else folder / "last.ckpt", map_location="cpu", weights_only=True)
        if kept["epochs"] > chosen.get("epoch", 0):  # epochs are counted from 0 there
            logger.warning(
                "stage1 keeps the weights of its epoch %d, and those of epoch %d, which `crf_scores_at` %s asks for, "
                "are not earlier",
                chosen.get("epoch", 0) + 1,
                kept["epochs"],
                self._share,
            )
            return
        self._network = copy.deepcopy(self._model.unary).requires_grad_(False).eval().cpu()
        self._network.load_state_dict({n.removeprefix(_NETWORK): value for n, value in kept["state_dict"].items()})
        self._left = {name: value.cpu().clone() for name, value in self._model.unary.state_dict().items()}

    def scorer(self, stage: Stage) -> nn.Module | None:
        """The network on whose scores a stage learns; None stands for the trained one, as it does in most."""
        if not self._share or stage.trains_unary or not stage.trains_crf:
            return None
        if self._model.context is not None:
            why = f"a contextual CRF reads the trained network's features, whatever `crf_scores_at` {self._share} says"
        elif self._network is None:
            why = f"no weights of earlier in stage 1 were kept, as `crf_scores_at` {self._share} asks"
        elif not self._belongs_to(self._model.unary):
            why = f"it is not the one that stage 1 left, whose earlier weights `crf_scores_at` {self._share} asks for"
        else:
            return copy.deepcopy(self._network)  # which goes to the stage's device, and with the stage
        logger.warning("%s learns on the trained network's own scores: %s", stage.name, why)
        return None

    def _belongs_to(self, network: nn.Module) -> bool:
        own = network.state_dict()
        return own.keys() == self._left.keys() and all(v.cpu().equal(self._left[name]) for name, v in own.items())


class EarlierWeights(lightning.Callback):
    """Keeps the network's weights as an epoch has left them, or their mean where that is what is kept.

    Args:
        folder: of the stage, in whose last.ckpt they lie when the next epoch begins.
        epoch: after how many; those of the last epoch are not kept.
    """

    def __init__(self, folder: Path, epoch: int) -> None:
        self._folder = folder
        self._epoch = epoch

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Looks whether it was that epoch that ended, also before an interruption."""
        del pl_module
        if trainer.current_epoch != self._epoch or not trainer.is_global_zero:
            return
        saved = torch.load(self._folder / "last.ckpt", map_location="cpu", weights_only=True)["state_dict"]
        kept = {name: value for name, value in saved.items() if name.startswith(_NETWORK)}
        with atomic_write(self._folder / _FILE) as temporary:
            torch.save({"epochs": self._epoch, "state_dict": kept}, temporary)
