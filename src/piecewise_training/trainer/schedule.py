"""Learning rates: parameter groups of the network's parts and the CRF, and how the rates change over a stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, get_args, get_type_hints

import torch
from torch import nn

from piecewise_training.config import OptimConfig, TrainConfig
from piecewise_training.model import PiecewiseTrainedModel
from piecewise_training.trainer.stages import Stage

_POLY_POWER = 0.9  # DeepLab's


def build_optimizer(model: PiecewiseTrainedModel, stage: Stage, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer of a stage: groups for backbone, head, pairwise networks and CRF, each with its own rate.

    Biases and normalisation layers have no weight decay, nor has the CRF. With the network fixed, the rest is trained
    by Adam, whatever the network's optimizer: the gradients of a CRF's weights, bandwidths and compatibilities differ
    in scale by orders of magnitude.

    Raises:
        ValueError: the user has frozen everything that the stage trains.
    """
    groups: list[dict[str, Any]] = []
    if stage.trains_unary:
        backbone = _backbone(model.unary)
        inside = {id(p) for p in backbone.parameters()} if backbone is not None else set()
        parameters = list(model.unary.parameters())
        rate = config.learning_rate * stage.rate_factor
        groups += _groups("head", (p for p in parameters if id(p) not in inside), rate, config.weight_decay)
        groups += _groups(
            "backbone",
            (p for p in parameters if id(p) in inside),
            rate * config.backbone_factor,
            config.weight_decay,
        )
    if stage.trains_context and model.context is not None:
        rate = config.context_learning_rate * stage.rate_factor
        groups += _groups("context", model.context.nets.parameters(), rate, config.weight_decay)
    if stage.trains_crf:
        crf = [*(model.crf.parameters() if model.crf is not None else ())]
        crf += [model.context.log_factors] if model.context is not None else []
        rate = config.crf_learning_rate * stage.rate_factor
        learned = [p for p in crf if p.requires_grad]
        groups.append({"name": "crf", "params": learned, "lr": rate, "weight_decay": 0.0})
    if not any(group["params"] for group in groups):
        raise ValueError(f"{stage.name} has nothing to train: every parameter of its parts has requires_grad=False.")
    if config.optimizer == "adamw" or not stage.trains_unary:
        return torch.optim.AdamW(groups, lr=config.learning_rate)
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum)


def rate_schedule(config: OptimConfig, total_steps: int, steps_an_epoch: int) -> Callable[[int], float]:
    """The factor of the rates at each optimizer step.

    Args:
        config: the schedule, its steps and its warm-up.
        total_steps: optimizer steps of the stage.
        steps_an_epoch: optimizer steps of an epoch.

    Example:
        >>> poly = rate_schedule(OptimConfig(schedule="poly", warmup_steps=10), total_steps=100, steps_an_epoch=10)
        >>> [round(poly(step), 2) for step in (0, 4, 50, 99)]
        [0.1, 0.48, 0.54, 0.02]
    """

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
        if config.schedule == "poly":
            return warm * max(0.0, 1 - step / max(1, total_steps)) ** _POLY_POWER
        return warm * 0.1 ** (step // max(1, steps_an_epoch) // config.step_epochs)

    return factor


def _groups(name: str, parameters: Iterable[nn.Parameter], rate: float, decay: float) -> list[dict[str, Any]]:
    kept = [p for p in parameters if p.requires_grad]
    matrices = [p for p in kept if p.ndim > 1]
    vectors = [p for p in kept if p.ndim <= 1]
    groups = [
        {"name": name, "params": matrices, "lr": rate, "weight_decay": decay},
        {"name": f"{name}, no decay", "params": vectors, "lr": rate, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _backbone(unary: nn.Module) -> nn.Module | None:
    backbone = getattr(unary, "backbone", None)
    return backbone if isinstance(backbone, nn.Module) else None


def check_config(config: TrainConfig) -> None:
    """Checks names and ranges before anything is trained.

    Raises:
        ValueError: an option is none of its names, or a number is out of its range.
    """
    optim = config.optim
    of_training = ("context_training", "loss", "crf_loss", "class_weights", "precision")
    for owner, names in ((config, of_training), (optim, ("optimizer", "schedule"))):
        hints = get_type_hints(type(owner))
        for name in names:
            if getattr(owner, name) not in get_args(hints[name]):
                known = ", ".join(dict.fromkeys(map(str, get_args(hints[name]))))
                raise ValueError(f"`{name}` must be one of {known}; got {getattr(owner, name)!r}.")
    if not 0 <= config.ema < 1:
        raise ValueError(f"`ema` must be from 0 to below 1; got {config.ema}.")
    if not 0 <= config.crf_scores_at < 1:
        raise ValueError(f"`crf_scores_at` must be from 0 to below 1; got {config.crf_scores_at}.")
    if config.validate_every < 1:
        raise ValueError(f"`validate_every` must be at least 1; got {config.validate_every}.")
    if config.patience < 0:
        raise ValueError(f"`patience` must be at least 0; got {config.patience}.")
    _check_ranges(optim)


def _check_ranges(config: OptimConfig) -> None:
    for name in ("learning_rate", "context_learning_rate", "crf_learning_rate", "joint_factor"):
        if not getattr(config, name) > 0:
            raise ValueError(f"`{name}` must be above 0; got {getattr(config, name)}.")
    for name in ("weight_decay", "momentum", "backbone_factor", "clip", "warmup_steps"):
        if not getattr(config, name) >= 0:
            raise ValueError(f"`{name}` must be at least 0; got {getattr(config, name)}.")
    for name in ("accumulate", "step_epochs"):
        if getattr(config, name) < 1:
            raise ValueError(f"`{name}` must be at least 1; got {getattr(config, name)}.")
