"""Learning a dense CRF on scores that are given: stage 2 for a network that is not here."""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from piecewise_training import checks, processes
from piecewise_training.config import Loss, OptimConfig
from piecewise_training.crf import DenseCRF
from piecewise_training.losses import unary_loss
from piecewise_training.trainer.callbacks import History, ProgressBar, checkpoints
from piecewise_training.trainer.contexts import interruptible, quiet
from piecewise_training.trainer.device import accelerator, best_device
from piecewise_training.trainer.learner import Learner
from piecewise_training.trainer.schedule import rate_schedule

logger = logging.getLogger(__name__)

Batch = tuple[Tensor, Tensor, Tensor]


class CRFModule(Learner):
    """Trains a dense CRF on batches of scores, images and labels.

    Args:
        crf: what is trained.
        loss: on its marginals.
        learning_rate: at the beginning; it falls to 0.
        flip: probability with which a batch is mirrored.
    """

    def __init__(self, crf: DenseCRF, loss: Loss, learning_rate: float, flip: float) -> None:
        super().__init__("the CRF", crf.num_classes)
        self.crf = crf
        self._loss_of = unary_loss(loss)
        self._learning_rate = learning_rate
        self._flip = flip

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """The loss of a batch, or of its mirror image."""
        del index
        if float(torch.rand(())) < self._flip:
            batch = batch[0].flip(-1), batch[1].flip(-1), batch[2].flip(-1)
        _, loss = self._refined(batch)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch[0]), prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, index: int) -> None:
        """Adds a batch to the validation."""
        del index
        log_q, loss = self._refined(batch)
        self.judge(log_q.argmax(1), batch[2], loss)

    def configure_optimizers(self) -> Any:
        """Adam, with a rate that falls to 0."""
        learned = [parameter for parameter in self.crf.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(learned, self._learning_rate, weight_decay=0.0)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = rate_schedule(OptimConfig(schedule="poly"), steps, steps)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _refined(self, batch: Batch) -> tuple[Tensor, Tensor]:
        scores, image, target = batch
        checks.labels(target, self.crf.num_classes)
        if target.shape != scores[:, 0].shape:
            raise ValueError(
                f"labels must be (B, H, W) and fit their scores; got {checks.describe(target)} for "
                f"{checks.describe(scores)}."
            )
        log_q = self.crf(scores, image)
        return log_q, self._loss_of(log_q, target)


def learn_crf(
    crf: DenseCRF,
    train_loader: DataLoader[Any],
    epochs: int = 2,
    val_loader: DataLoader[Any] | None = None,
    *,
    learning_rate: float = OptimConfig.crf_learning_rate,
    loss: Loss = "cross_entropy",
    flip: float = 0.5,
    device: str | torch.device = "auto",
    seed: int = 0,
    progress: bool = True,
) -> dict[str, list[float]]:
    """Learns a dense CRF on scores that are given, as stage 2 does on its network's.

    For networks in another framework, scores on disk, pseudo-labels. Images are best given whole and as they are, and
    images of unequal sizes in batches of one. A network is surer of the images that it was trained on: better to learn
    on are scores of these by weights from earlier in its training, as `crf_scores_at` has stage 2 do.

    Args:
        crf: trained in place; left in evaluation mode with the weights of the epoch of the best validation mIoU, those
            it began with included, or of the last epoch without a validation set. An interruption leaves it with the
            best of these so far, without a validation set with the weights of that moment.
        train_loader: yields scores (B, K, H, W), unnormalised log-probabilities; images (B, 3, H, W) in grey levels
            from 0 to 255; and labels (B, H, W), int64, 255 for void.
        epochs: passes over the training set, at least 1.
        val_loader: yields the same of other images.
        learning_rate: of Adam, falling to 0; weights and bandwidths are learned as logarithms.
        loss: on the CRF's marginals; cross_entropy is their negative log-likelihood.
        flip: probability with which a batch is mirrored.
        device: "cpu", "cuda", "cuda:1", "mps", a torch.device, or "auto" for the best there is.
        seed: of everything random.
        progress: whether to show a progress bar.

    Returns:
        By quantity ("train_loss", "val_loss", "val_miou", "val_accuracy", "lr", "seconds", "peak_bytes") a value for
        each epoch; none of validation without a `val_loader`.

    Raises:
        ValueError: a number is out of its range, `loss` is unknown, the CRF has nothing to learn, a loader yields no
            batch, scores, images and labels do not fit, or this is one of several processes that train together.

    Example:
        >>> scores, image = torch.randn(2, 8, 10), torch.randint(0, 256, (3, 8, 10), dtype=torch.uint8)
        >>> loader = DataLoader([(scores, image, scores.argmax(0))])
        >>> history = learn_crf(DenseCRF(2), loader, epochs=3, device="cpu", progress=False)
        >>> len(history["train_loss"])
        3
    """
    check_numbers(epochs, learning_rate, flip)
    if not any(parameter.requires_grad for parameter in crf.parameters()):
        raise ValueError("`crf` has nothing to learn: every parameter has requires_grad=False.")
    if processes.current().size > 1:
        raise ValueError(
            "`learn_crf` learns in one process, and this is one of several. Call it in a script of its own."
        )
    for name, loader in (("train_loader", train_loader), ("val_loader", val_loader)):
        if loader is not None and not len(loader):
            raise ValueError(f"`{name}` yields no batch: its images do not fill one, or it has none.")
    module = CRFModule(crf, loss, learning_rate, flip).train()
    start, home = copy.deepcopy(crf.state_dict()), next(crf.parameters()).device
    history = History()
    place = best_device(device)
    options: dict[str, Any] = {
        "accelerator": accelerator(place),
        "devices": [place.index or 0] if place.type == "cuda" else 1,
        "logger": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "enable_progress_bar": progress,
    }
    with tempfile.TemporaryDirectory() as scratch, quiet(), interruptible():
        lightning.seed_everything(seed, workers=True, verbose=False)
        began = None if val_loader is None else _miou(CRFModule(crf, loss, learning_rate, flip), val_loader, options)
        callbacks = [
            history,
            *checkpoints(Path(scratch), val_loader is not None),
            *([ProgressBar()] if progress else []),
        ]
        trainer = lightning.Trainer(**options, max_epochs=epochs, callbacks=callbacks, default_root_dir=scratch)
        try:
            trainer.fit(module, train_loader, val_loader)
        finally:
            crf.to(home).eval()  # Lightning leaves it on the CPU
            if began is not None:  # also where an interruption has ended it
                crf.load_state_dict(_best(Path(scratch), history.values["val_miou"], began) or start)
    return history.values


def _best(folder: Path, mious: Sequence[float], began: float) -> dict[str, Tensor] | None:
    """The weights of the best of the epochs that were judged; None where none was as good as the beginning."""
    path = folder / "best.ckpt"
    if not path.is_file() or not mious:
        return None
    if max(mious) < began:
        told = 100 * max(mious), 100 * began
        logger.warning("the CRF reached %.2f %% mIoU at best and began with %.2f %%: it is as it began", *told)
        return None
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    return {name.removeprefix("crf."): own for name, own in state.items() if name.startswith("crf.")}


def check_numbers(epochs: int, learning_rate: float, flip: float) -> None:
    """Checks the ranges of what `learn_crf` is given.

    Raises:
        ValueError: a number is out of its range.
    """
    if epochs < 1:
        raise ValueError(f"`epochs` must be at least 1; got {epochs}.")
    if not learning_rate > 0:
        raise ValueError(f"`learning_rate` must be above 0; got {learning_rate}.")
    if not 0 <= flip <= 1:
        raise ValueError(f"`flip` must be from 0 to 1; got {flip}.")


def _miou(module: CRFModule, val_loader: DataLoader[Any], options: dict[str, Any]) -> float:
    """The validation mIoU of the CRF as it is."""
    trainer = lightning.Trainer(**{**options, "enable_progress_bar": False}, enable_checkpointing=False)
    return float(trainer.validate(module, val_loader, verbose=False)[0]["val_miou"])
