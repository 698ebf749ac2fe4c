"""The network as it was earlier in stage 1, on whose scores stage 2 may learn."""

from __future__ import annotations

import copy
from pathlib import Path

import lightning
import torch
from torch import nn

from piecewise_training.model import PiecewiseTrainedModel
from piecewise_training.trainer.judge import PREFIX
from piecewise_training.writing import atomic_write

_FILE = "earlier.ckpt"
_NETWORK = f"{PREFIX}unary."


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
        with atomic_write(self._folder / _FILE) as temporary:
            torch.save({name: value for name, value in saved.items() if name.startswith(_NETWORK)}, temporary)


def earlier_network(model: PiecewiseTrainedModel, folder: Path) -> nn.Module | None:
    """A fixed copy of the network with the weights that were kept in a stage's folder; None if there are none."""
    path = folder / _FILE
    if not path.is_file():
        return None
    saved = torch.load(path, map_location="cpu", weights_only=True)
    network = copy.deepcopy(model.unary).requires_grad_(False).eval()
    network.load_state_dict({name.removeprefix(_NETWORK): value for name, value in saved.items()})
    return network
