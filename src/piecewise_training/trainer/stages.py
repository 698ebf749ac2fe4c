"""What each stage trains, as data: a plan is a list of stages, and one module runs them all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from piecewise_training.config import TrainConfig


@dataclass(frozen=True)
class Stage:
    """One run of the optimizer.

    Attributes:
        name: key of the history and name of the stage's folder.
        title: what is trained, for people.
        epochs: passes over the training set.
        trains_unary: whether the network moves; if not, neither its weights nor its running statistics do.
        trains_crf: whether the CRF moves.
        unary_weight: of the loss on the network's scores.
        crf_weight: of the loss on the CRF's marginals; 0 runs no CRF in training.
        rate_factor: of all learning rates.
    """

    name: str
    title: str
    epochs: int
    trains_unary: bool
    trains_crf: bool
    unary_weight: float
    crf_weight: float
    rate_factor: float = 1.0

    @property
    def judged_by(self) -> Literal["unary", "crf"]:
        """Whose predictions choose the best epoch."""
        return "crf" if self.trains_crf else "unary"


def unary_stage(epochs: int) -> Stage:
    """Stage 1: the network alone."""
    return Stage("stage1", "unary CNN", epochs, True, False, unary_weight=1.0, crf_weight=0.0)


def crf_stage(epochs: int) -> Stage:
    """Stage 2: the CRF on top of the network, which is fixed."""
    return Stage("stage2", "CRF, CNN fixed", epochs, False, True, unary_weight=0.0, crf_weight=1.0)


def joint_stage(epochs: int, rate_factor: float) -> Stage:
    """Stage 3: both, through the unrolled mean field; the network's own loss keeps its scores meaningful."""
    return Stage("stage3", "CNN and CRF", epochs, True, True, unary_weight=0.5, crf_weight=1.0, rate_factor=rate_factor)


def plan(config: TrainConfig) -> list[Stage]:
    """The stages of a strategy; those of 0 epochs are left out.

    Raises:
        ValueError: the strategy is unknown or no epoch is left.

    Example:
        >>> [stage.name for stage in plan(TrainConfig(strategy="independent"))]
        ['stage1', 'stage2']
    """
    first, second, third = config.stage1_epochs, config.stage2_epochs, config.stage3_epochs
    if min(first, second, third) < 0:
        raise ValueError(f"epochs must be at least 0; got {first}, {second} and {third}.")
    strategies = {
        "piecewise": [unary_stage(first), crf_stage(second), joint_stage(third, config.optim.joint_factor)],
        "independent": [unary_stage(first), crf_stage(second)],
        "joint": [joint_stage(first + second + third, rate_factor=1.0)],
    }
    if config.strategy not in strategies:
        raise ValueError(f"`strategy` must be piecewise, joint or independent; got {config.strategy!r}.")
    stages = [stage for stage in strategies[config.strategy] if stage.epochs]
    if not stages:
        raise ValueError("there is nothing to train: every stage has 0 epochs.")
    return stages
