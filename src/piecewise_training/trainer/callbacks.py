"""What watches a stage while it trains: its history, its checkpoints, its progress bar."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar, WeightAveraging
from torch import Tensor

from piecewise_training.losses import VOID
from piecewise_training.trainer.learner import Learner
from piecewise_training.trainer.memory import peak_bytes, reset_peak

logger = logging.getLogger(__name__)

HISTORY = ("train_loss", "val_loss", "val_miou", "val_accuracy", "lr", "seconds", "peak_bytes")


class History(lightning.Callback):
    """Writes down one value an epoch of everything in `HISTORY`; kept in checkpoints, so that it survives a resume.

    Where an epoch of a stage is not validated, its scores are NaN.
    """

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {name: [] for name in HISTORY}
        self._begin = 0.0
        self._validated = False  # in this epoch

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """The learning rate at the start of the epoch."""
        self.values["lr"].append(trainer.optimizers[0].param_groups[0]["lr"])
        self._begin = time.perf_counter()
        self._validated = False
        reset_peak(pl_module.device)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """There are new scores."""
        self._validated = True

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """The epoch's losses and scores, its time and memory; validation has run by now."""
        self.values["seconds"].append(time.perf_counter() - self._begin)
        self.values["peak_bytes"].append(peak_bytes(pl_module.device))
        for name in HISTORY:
            if name.startswith("val_") and trainer.enable_validation and not self._validated:
                self.values[name].append(math.nan)  # Lightning's are those of an epoch before
            elif name in trainer.callback_metrics:
                self.values[name].append(float(trainer.callback_metrics[name]))

    def state_dict(self) -> dict[str, Any]:
        """For Lightning's checkpoint."""
        return {"values": self.values}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From Lightning's checkpoint."""
        self.values |= state_dict["values"]


class Pace(lightning.Callback):
    """Validates every so many epochs, counted back from the last: Lightning counts from the first.

    Args:
        every: how many.
    """

    def __init__(self, every: int) -> None:
        self._every = every

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Says whether this epoch is one of them, by a number that divides the epochs so far, or does not."""
        assert trainer.max_epochs is not None
        epoch = trainer.current_epoch + 1
        trainer.check_val_every_n_epoch = epoch if (trainer.max_epochs - epoch) % self._every == 0 else epoch + 1


class AbsentClasses(lightning.Callback):
    """Says after the first validation, and then no more, which classes its labels never hold: they are not judged.

    Args:
        names: of the classes.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._told = False

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Looks at how many pixels of each class there were."""
        assert isinstance(pl_module, Learner)
        if self._told or pl_module.support is None:
            return
        self._told = True
        absent = [name for name, count in zip(self._names, pl_module.support.tolist(), strict=True) if not count]
        if absent and trainer.is_global_zero:
            binary = len(self._names) == 2 and absent == [self._names[1]]
            logger.warning(
                "the validation labels hold no pixel of %s: how well that is learned is not judged, and mean IoU is "
                "the mean of the other classes%s",
                ", ".join(absent),
                f"; where masks hold 0 and {VOID}, write 1 in place of {VOID}, which is void" if binary else "",
            )


class ProgressBar(RichProgressBar):
    """Lightning's bar without the version number of its logger, and with epochs that count from 1."""

    def _get_train_description(self, current_epoch: int) -> str:
        return f"Epoch {current_epoch + 1}/{self.trainer.max_epochs}".ljust(len(self.validation_description))

    def get_metrics(self, trainer: Any, pl_module: Any) -> dict[str, Any]:
        """What stands beside the bar."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


def mean_of_weights(decay: float) -> WeightAveraging:
    """An exponential mean of weights and running statistics over the steps, which is validated and kept.

    After n steps the decay is at most (1 + n) / (10 + n): a stage of few steps would otherwise end near its start.
    """

    def update(means: Sequence[Tensor], current: Sequence[Tensor], steps: Tensor | int) -> None:
        own = min(decay, (1 + int(steps)) / (10 + int(steps)))
        for mean, value in zip(means, current, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - own)
            else:
                mean.copy_(value)

    return WeightAveraging(multi_avg_fn=update)


class Checkpoint(ModelCheckpoint):
    """Lightning's, which also knows its best epoch where the folder was moved between interruption and resume."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From a checkpoint, whose paths become those of the folder as it is called now."""
        paths = ("best_model_path", "last_model_path", "kth_best_model_path")
        own = {name: self._moved(state_dict[name]) for name in paths if name in state_dict}
        best = {self._moved(path): score for path, score in state_dict.get("best_k_models", {}).items()}
        super().load_state_dict(state_dict | own | {"best_k_models": best, "dirpath": self.dirpath})

    def _moved(self, path: str) -> str:
        return str(Path(str(self.dirpath)) / Path(path).name) if path else path


def checkpoints(folder: Path, validates: bool) -> list[Checkpoint]:
    """Keep last.ckpt, to resume from, and with a validation set best.ckpt, the epoch of the highest mIoU.

    Two callbacks, because Lightning's save_last writes only when a best epoch was saved.
    """
    options: dict[str, Any] = {"dirpath": folder, "enable_version_counter": False, "save_on_train_epoch_end": True}
    last = Checkpoint(filename="last", **options)
    return [Checkpoint(filename="best", monitor="val_miou", mode="max", **options), last] if validates else [last]
