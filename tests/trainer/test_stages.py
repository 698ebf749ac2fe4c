"""Plans."""

from __future__ import annotations

from typing import Any

import pytest

from piecewise_training.config import OptimConfig, TrainConfig
from piecewise_training.trainer import plan


def test_piecewise() -> None:
    first, second, third = plan(TrainConfig(stage1_epochs=5, stage2_epochs=3, stage3_epochs=2))
    assert [(s.name, s.epochs, s.trains_unary, s.trains_crf) for s in (first, second, third)] == [
        ("stage1", 5, True, False),
        ("stage2", 3, False, True),
        ("stage3", 2, True, True),
    ]
    assert (first.crf_weight, second.unary_weight) == (0, 0)
    assert (first.rate_factor, second.rate_factor, third.rate_factor) == (1, 1, OptimConfig().joint_factor)
    assert (first.judged_by, second.judged_by, third.judged_by) == ("unary", "crf", "crf")
    assert (first.images, second.images, third.images) == ("augmented", "whole", "cropped")


def test_other_strategies() -> None:
    joint = plan(TrainConfig(strategy="joint", stage1_epochs=5, stage2_epochs=3, stage3_epochs=2))
    assert [(s.epochs, s.trains_unary, s.trains_crf, s.rate_factor) for s in joint] == [(10, True, True, 1.0)]
    independent = plan(TrainConfig(strategy="independent"))
    assert not any(s.trains_unary and s.trains_crf for s in independent)


def test_stages_without_epochs_are_left_out() -> None:
    assert [s.name for s in plan(TrainConfig(stage1_epochs=0, stage3_epochs=0))] == ["stage2"]


@pytest.mark.parametrize(
    ("options", "context", "why"),
    [
        ({}, False, None),
        ({"stage1_epochs": 2}, False, None),
        ({"strategy": "independent"}, False, None),
        ({"crf_scores_at": 0.0, "strategy": "joint"}, False, None),
        ({"strategy": "joint"}, False, "there is no stage1"),
        ({"stage1_epochs": 0}, False, "there is no stage1"),
        ({"stage2_epochs": 0}, False, "there is no stage2"),
        ({}, True, "a contextual CRF reads the trained network's features"),
        ({"stage1_epochs": 1}, False, "stage1 ends with epoch 1"),
        ({"crf_scores_at": 0.98}, False, "stage1 ends with epoch 20"),
    ],
)
def test_scores_of_earlier_that_no_stage_would_learn_on(
    options: dict[str, Any], context: bool, why: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    config = TrainConfig(**{"crf_scores_at": 0.25, **options})
    plan(config, context)
    assert caplog.messages == ([] if why is None else [f"`crf_scores_at` {config.crf_scores_at} has no effect: {why}"])


def test_errors() -> None:
    with pytest.raises(ValueError, match="there is nothing to train: every stage has 0 epochs"):
        plan(TrainConfig(stage1_epochs=0, stage2_epochs=0, stage3_epochs=0))
    with pytest.raises(ValueError, match="`stage1_epochs` must be at least 0; got -1"):
        plan(TrainConfig(stage1_epochs=-1))
    with pytest.raises(ValueError, match="`strategy` must be piecewise, joint or independent; got 'other'"):
        plan(TrainConfig(strategy="other"))  # type: ignore[arg-type]


def test_pairwise_networks_are_trained_after_the_network() -> None:
    stages = plan(TrainConfig(stage1_epochs=5, context_epochs=4, stage2_epochs=3, stage3_epochs=2), context=True)
    trained = [(s.name, s.epochs, s.trains_unary, s.trains_context, s.trains_crf) for s in stages]
    assert trained == [
        ("stage1", 5, True, False, False),
        ("stage2_context", 4, False, True, False),
        ("stage2", 3, False, False, True),
        ("stage3", 2, True, True, True),
    ]
    assert [s.judged_by for s in stages] == ["unary", "context", "crf", "crf"]
    assert [s.context_weight for s in stages] == [0, 1, 0, 0.5]
    assert (stages[1].unary_weight, stages[1].crf_weight) == (0, 0)


def test_pairwise_networks_are_trained_together_with_the_network() -> None:
    config = TrainConfig(strategy="independent", context_training="together")
    first, second = plan(config, context=True)
    assert (first.name, first.title, first.trains_unary, first.trains_context) == (
        "stage1", "unary and pairwise CNNs", True, True,
    )  # fmt: skip
    assert (first.unary_weight, first.context_weight, first.crf_weight, first.judged_by) == (1, 1, 0, "unary")
    assert second.name == "stage2"
    assert [s.name for s in plan(TrainConfig(strategy="joint"), context=True)] == ["stage3"]
