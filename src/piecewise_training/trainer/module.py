"""One LightningModule that runs any stage."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from piecewise_training import checks
from piecewise_training.config import TrainConfig
from piecewise_training.losses import VOID, edge_nll, node_labels, unary_loss
from piecewise_training.model import Nodes, PiecewiseTrainedModel
from piecewise_training.trainer.learner import Learner
from piecewise_training.trainer.schedule import build_optimizer, rate_schedule
from piecewise_training.trainer.stages import Stage


class StageModule(Learner):
    """Trains what a stage says of a model.

    Args:
        model: the network and the CRFs.
        stage: what to train, and on which losses.
        config: losses and optimizer.
        weight: of each class in the losses.
        scorer: whose scores the CRF learns on, if not the model's own network's, by which it is judged all the same.
    """

    class_weight: Tensor | None
    remedy = "Lower `learning_rate`, or set `clip`; with `precision` 32 there is less room for it."

    def __init__(
        self,
        model: PiecewiseTrainedModel,
        stage: Stage,
        config: TrainConfig,
        weight: Tensor | None = None,
        scorer: torch.nn.Module | None = None,
    ) -> None:
        super().__init__(stage.name, model.num_classes)
        self.model = model
        self.stage = stage
        self.config = config
        self._scorer = () if scorer is None else (scorer,)  # no part of what is trained and saved
        self.register_buffer("class_weight", weight, persistent=False)
        # Normalisation whose weights the user has frozen keeps its statistics, too.
        self._frozen = [m for m in model.modules() if isinstance(m, _BatchNorm) and _is_frozen(m)]
        if not stage.trains_unary:
            model.unary.requires_grad_(False)
        if model.crf is not None and not stage.trains_crf:
            model.crf.requires_grad_(False)
        if model.context is not None and not stage.trains_context:
            model.context.nets.requires_grad_(False)
        if model.context is not None and not stage.trains_crf:
            model.context.log_factors.requires_grad_(False)

    def train(self, mode: bool = True) -> StageModule:
        """Sets the mode, but leaves in evaluation mode what is kept fixed: batch norm would move."""
        super().train(mode)
        for norm in self._frozen:
            norm.eval()
        if not self.stage.trains_unary:
            self.model.unary.eval()
        if self.model.crf is not None and not self.stage.trains_crf:
            self.model.crf.eval()
        return self

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """The loss of a batch of images and labels."""
        del index
        image, target = batch
        checks.labels(target, self.model.num_classes)
        nodes, logits, log_q = self._forward(image, *(network.to(image.device) for network in self._scorer))
        loss = self._loss(nodes, logits, log_q, target)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(image), prog_bar=True, sync_dist=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """Adds a batch to the validation's loss and confusion matrix.

        In single precision, whatever the training's: bfloat16 scores cost thin classes a point of mIoU on CamVid, and
        the model that is saved is not used in bfloat16.
        """
        del index
        image, target = batch
        checks.labels(target, self.model.num_classes)
        with torch.autocast(image.device.type, enabled=False):
            nodes, logits, log_q = self._forward(image)
            judged = self.model.contextual(image, nodes) if self.stage.judged_by == "context" else log_q
            judged = logits if judged is None else judged
            loss = self._loss(nodes, logits, log_q, target)
        self.judge(judged.argmax(1), target, loss)

    def configure_optimizers(self) -> Any:
        """The stage's optimizer and schedule."""
        optimizer = build_optimizer(self.model, self.stage, self.config.optim)
        self._chosen = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        schedule = rate_schedule(self.config.optim, self._steps_an_epoch * self.stage.epochs, self._steps_an_epoch)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """Goes on from the epoch that is resumed, by the options of now.

        Of other processes an epoch may have another number of steps, and the checkpoint brings the rates that it had.
        """
        if not self.trainer.current_epoch:
            return
        scheduler = self.lr_schedulers()
        assert isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR)
        scheduler.base_lrs = [chosen["lr"] for chosen in self._chosen]
        scheduler.last_epoch = self.trainer.current_epoch * self._steps_an_epoch
        factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
        for group, chosen, factor in zip(scheduler.optimizer.param_groups, self._chosen, factors, strict=True):
            group.update(chosen | {"initial_lr": chosen["lr"], "lr": chosen["lr"] * factor})

    @property
    def _steps_an_epoch(self) -> int:
        return max(1, int(self.trainer.estimated_stepping_batches) // self.stage.epochs)

    def _forward(self, image: Tensor, network: torch.nn.Module | None = None) -> tuple[Nodes, Tensor, Tensor | None]:
        nodes = self.model.score_nodes(image, network)
        logits = self.model.enlarged(nodes.scores, image)
        if not self.stage.crf_weight:
            return nodes, logits, None
        return nodes, logits, self.model.refine(image, logits, self.model.contextual(image, nodes))

    def _loss(self, nodes: Nodes, logits: Tensor, log_q: Tensor | None, target: Tensor) -> Tensor:
        loss = logits.new_zeros(())
        if self.stage.unary_weight:
            loss = loss + self.stage.unary_weight * unary_loss(self.config.loss, self.class_weight)(logits, target)
        if self.stage.context_weight and nodes.coarse is not None and nodes.features is not None:
            loss = loss + self.stage.context_weight * self._pairs_loss(nodes.coarse, nodes.features, target)
        if self.stage.crf_weight and log_q is not None:
            loss = loss + self.stage.crf_weight * unary_loss(self.config.crf_loss, self.class_weight)(log_q, target)
        return loss

    def _pairs_loss(self, unary: Tensor, features: Tensor, target: Tensor) -> Tensor:
        """The negative log-likelihood of the pairs of labels on the edges, a mean for each relation."""
        context = self.model.context
        assert context is not None  # features come with it alone
        height, width = features.shape[2:]
        target = functional.pad(target, self.model.margin(target), value=VOID)
        labels = node_labels(target, (height, width)).flatten(1)
        losses = [
            edge_nll(scores.float(), edges, labels, self.class_weight)
            for edges, scores in zip(context.edges(features), context.edge_scores(unary, features), strict=True)
        ]
        return torch.stack(losses).sum()


def _is_frozen(module: torch.nn.Module) -> bool:
    weights = [*module.parameters()]
    return bool(weights) and not any(weight.requires_grad for weight in weights)
