"""Parameter groups and learning rates."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from piecewise_training.config import OptimConfig, TrainConfig
from piecewise_training.model import PiecewiseTrainedModel
from piecewise_training.trainer import crf_stage, joint_stage, unary_stage
from piecewise_training.trainer.schedule import build_optimizer, check_config, rate_schedule


@pytest.fixture(scope="module")
def model() -> PiecewiseTrainedModel:
    return PiecewiseTrainedModel(3, unary="mobilenetv3_small_050", pretrained=False)


def rates(optimizer: torch.optim.Optimizer) -> dict[str, tuple[float, float]]:
    return {g["name"]: (pytest.approx(g["lr"]), g["weight_decay"]) for g in optimizer.param_groups}


def test_defaults_are_the_fields(model: PiecewiseTrainedModel) -> None:
    optimizer = build_optimizer(model, unary_stage(1), OptimConfig())
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.param_groups[0]["momentum"] == 0.9
    assert rates(optimizer) == {
        "head": (1e-3, 5e-4),
        "head, no decay": (1e-3, 0.0),
        "backbone": (1e-3, 5e-4),
        "backbone, no decay": (1e-3, 0.0),
    }


def test_every_parameter_of_a_stage_is_in_one_group(model: PiecewiseTrainedModel) -> None:
    assert model.crf is not None
    trained = {
        unary_stage(1): set(model.unary.parameters()),
        crf_stage(1): set(model.crf.parameters()),
        joint_stage(1, 0.1): set(model.parameters()),
    }
    for stage, expected in trained.items():
        groups = build_optimizer(model, stage, OptimConfig()).param_groups
        found = [p for group in groups for p in group["params"]]
        assert set(found) == expected
        assert len(found) == len(expected)


def test_rates_of_parts_and_stages(model: PiecewiseTrainedModel) -> None:
    config = OptimConfig(optimizer="adamw", learning_rate=0.01, backbone_factor=0.5, crf_learning_rate=0.2)
    assert rates(build_optimizer(model, crf_stage(1), config)) == {"crf": (0.2, 0.0)}
    joint = build_optimizer(model, joint_stage(1, 0.1), config)
    assert isinstance(joint, torch.optim.AdamW)
    found = rates(joint)
    assert (found["head"][0], found["backbone"][0], found["crf"][0]) == (0.001, 0.0005, 0.02)


def test_crf_alone_is_trained_by_adam(model: PiecewiseTrainedModel) -> None:
    assert isinstance(build_optimizer(model, crf_stage(1), OptimConfig()), torch.optim.AdamW)


def test_step_decay() -> None:
    factor = rate_schedule(OptimConfig(), total_steps=250, steps_an_epoch=10)
    assert [factor(step) for step in (0, 99, 100, 199, 200)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])


def test_poly_with_warmup_ends_at_zero() -> None:
    factor = rate_schedule(OptimConfig(schedule="poly", warmup_steps=4), total_steps=100, steps_an_epoch=10)
    assert factor(0) == pytest.approx(0.25)
    assert factor(50) == pytest.approx(0.5**0.9)
    assert factor(100) == 0
    assert all(factor(step + 1) < factor(step) for step in range(4, 100))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": 0.0}, "`learning_rate` must be above 0; got 0.0"),
        ({"learning_rate": float("nan")}, "`learning_rate` must be above 0; got nan"),
        ({"context_learning_rate": 0.0}, "`context_learning_rate` must be above 0; got 0.0"),
        ({"crf_learning_rate": -1.0}, "`crf_learning_rate` must be above 0; got -1.0"),
        ({"joint_factor": 0.0}, "`joint_factor` must be above 0; got 0.0"),
        ({"weight_decay": -0.1}, "`weight_decay` must be at least 0; got -0.1"),
        ({"momentum": -0.5}, "`momentum` must be at least 0; got -0.5"),
        ({"backbone_factor": -1.0}, "`backbone_factor` must be at least 0; got -1.0"),
        ({"warmup_steps": -1}, "`warmup_steps` must be at least 0; got -1"),
        ({"clip": -1.0}, "`clip` must be at least 0; got -1.0"),
        ({"accumulate": 0}, "`accumulate` must be at least 1; got 0"),
        ({"step_epochs": 0}, "`step_epochs` must be at least 1; got 0"),
    ],
)
def test_bad_values(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_config(TrainConfig(optim=OptimConfig(**arguments)))


def test_bad_names() -> None:
    with pytest.raises(ValueError, match="`schedule` must be one of step, poly; got 'cosine'"):
        check_config(TrainConfig(optim=OptimConfig(schedule="cosine")))  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match="`loss` must be one of cross_entropy, structured, dice, focal, lovasz; got 'hinge'"
    ):
        check_config(TrainConfig(loss="hinge"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`ema` must be from 0 to below 1; got 1.0"):
        check_config(TrainConfig(ema=1.0))
    with pytest.raises(ValueError, match="`validate_every` must be at least 1; got 0"):
        check_config(TrainConfig(validate_every=0))
    with pytest.raises(ValueError, match="`patience` must be at least 0; got -1"):
        check_config(TrainConfig(patience=-1))
