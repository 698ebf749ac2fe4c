"""What each stage trains, as data: a plan is a list of stages, and one module runs them all."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Literal

from piecewise_training.config import TrainConfig

logger = logging.getLogger(__name__)

Images = Literal["augmented", "whole", "cropped"]

NAMES = ("stage1", "stage2_context", "stage2", "stage3")


@dataclass(frozen=True)
class Stage:
    """One run of the optimizer.

    Attributes:
        name: key of the history and name of the stage's folder.
        title: what is trained, for people.
        epochs: passes over the training set.
        trains_unary: whether the network moves; if not, neither its weights nor its running statistics do.
        trains_crf: whether the dense CRF and the weights of the contextual CRF's relations move.
        unary_weight: of the loss on the network's scores.
        crf_weight: of the loss on the CRF's marginals; 0 runs no CRF in training.
        rate_factor: of all learning rates.
        trains_context: whether the pairwise networks of the contextual CRF move.
        context_weight: of the loss on pairs of labels.
        images: which suit the stage: augmented crops, or those of their own scale and colours, whole or as crops.
    """

    name: str
    title: str
    epochs: int
    trains_unary: bool
    trains_crf: bool
    unary_weight: float
    crf_weight: float
    rate_factor: float = 1.0
    trains_context: bool = False
    context_weight: float = 0.0
    images: Images = "augmented"

    @property
    def judged_by(self) -> Literal["unary", "context", "crf"]:
        """Whose predictions choose the best epoch."""
        if self.trains_crf:
            return "crf"
        return "unary" if self.trains_unary else "context"


def unary_stage(epochs: int) -> Stage:
    """Stage 1: the network alone."""
    return Stage("stage1", "unary CNN", epochs, True, False, unary_weight=1.0, crf_weight=0.0)


def context_stage(epochs: int) -> Stage:
    """First part of stage 2: the pairwise networks on the fixed network, without inference."""
    return Stage(
        "stage2_context",
        "pairwise CNNs, CNN fixed",
        epochs,
        trains_unary=False,
        trains_crf=False,
        unary_weight=0.0,
        crf_weight=0.0,
        trains_context=True,
        context_weight=1.0,
    )


def crf_stage(epochs: int) -> Stage:
    """Stage 2: the CRF on top of the network, which is fixed."""
    return Stage("stage2", "CRF, CNN fixed", epochs, False, True, unary_weight=0.0, crf_weight=1.0, images="whole")


def joint_stage(epochs: int, rate_factor: float) -> Stage:
    """Stage 3: all, through the unrolled mean field; the networks' own losses keep their scores meaningful."""
    return Stage(
        "stage3",
        "CNN and CRF",
        epochs,
        trains_unary=True,
        trains_crf=True,
        unary_weight=0.5,
        crf_weight=1.0,
        rate_factor=rate_factor,
        trains_context=True,
        context_weight=0.5,
        images="cropped",
    )


def together(stage: Stage) -> Stage:
    """A stage of the network that trains the pairwise networks as well, on their own likelihood."""
    return replace(stage, title="unary and pairwise CNNs", trains_context=True, context_weight=1.0)


def plan(config: TrainConfig, context: bool = False) -> list[Stage]:
    """The stages of a strategy; those of 0 epochs are left out.

    Args:
        config: strategy and epochs.
        context: whether the model has a contextual CRF, whose networks are to be trained.

    Raises:
        ValueError: the strategy is unknown or no epoch is left.

    Example:
        >>> [stage.name for stage in plan(TrainConfig(strategy="independent"))]
        ['stage1', 'stage2']
    """
    first, second, third = config.stage1_epochs, config.stage2_epochs, config.stage3_epochs
    for name in ("stage1_epochs", "context_epochs", "stage2_epochs", "stage3_epochs"):
        if getattr(config, name) < 0:
            raise ValueError(f"`{name}` must be at least 0; got {getattr(config, name)}.")
    apart = [unary_stage(first), crf_stage(second)]
    if context and config.context_training == "together":
        apart[0] = together(apart[0])
    elif context:
        apart.insert(1, context_stage(config.context_epochs))
    strategies = {
        "piecewise": [*apart, joint_stage(third, config.optim.joint_factor)],
        "independent": apart,
        "joint": [replace(joint_stage(first + second + third, rate_factor=1.0), images="augmented")],
    }
    if config.strategy not in strategies:
        raise ValueError(f"`strategy` must be piecewise, joint or independent; got {config.strategy!r}.")
    stages = [stage for stage in strategies[config.strategy] if stage.epochs]
    if not stages:
        raise ValueError("there is nothing to train: every stage has 0 epochs.")
    if config.crf_scores_at and (why := _without_earlier_scores(config, stages, context)):
        logger.warning("`crf_scores_at` %s has no effect: %s", config.crf_scores_at, why)
    return stages


def earlier_epoch(share: float, stage: Stage) -> int:
    """The epochs of a stage that are a share of all, at least one."""
    return max(1, round(share * stage.epochs))


def _without_earlier_scores(config: TrainConfig, stages: list[Stage], context: bool) -> str | None:
    """Why stage 2 cannot learn on the scores that the network gave earlier in stage 1."""
    by_name = {stage.name: stage for stage in stages}
    for name in ("stage1", "stage2"):
        if name not in by_name:
            return f"there is no {name}"
    if context:
        return "a contextual CRF reads the trained network's features"
    last = by_name["stage1"].epochs
    return None if earlier_epoch(config.crf_scores_at, by_name["stage1"]) < last else f"stage1 ends with epoch {last}"
