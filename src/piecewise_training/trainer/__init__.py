"""Piecewise training: the CNN, then the CRF on the fixed CNN, then both."""

from piecewise_training.config import OptimConfig, TrainConfig
from piecewise_training.trainer.device import best_device
from piecewise_training.trainer.given_scores import learn_crf
from piecewise_training.trainer.stages import Stage, context_stage, crf_stage, joint_stage, plan, together, unary_stage
from piecewise_training.trainer.trainer import PiecewiseTrainer

__all__ = [
    "OptimConfig",
    "PiecewiseTrainer",
    "Stage",
    "TrainConfig",
    "best_device",
    "context_stage",
    "crf_stage",
    "joint_stage",
    "learn_crf",
    "plan",
    "together",
    "unary_stage",
]
