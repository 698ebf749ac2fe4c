"""The judge of stages: what it measures, what it remembers, and what it undoes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from piecewise_training.crf import DenseCRF, Kernel
from piecewise_training.model import PiecewiseTrainedModel
from piecewise_training.trainer import crf_stage, unary_stage
from piecewise_training.trainer.judge import Judge


class Measuring:
    """A validation whose outcome is known, and which counts how often it was made."""

    def __init__(self, miou: float) -> None:
        self.miou = miou
        self.calls = 0

    def __call__(self) -> float:
        self.calls += 1
        return self.miou


@pytest.fixture
def model() -> PiecewiseTrainedModel:
    return PiecewiseTrainedModel(2, 1, unary=nn.Conv2d(3, 2, 1))


def spoil(model: PiecewiseTrainedModel) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1


def test_the_start_of_a_crf_is_measured_once(model: PiecewiseTrainedModel, tmp_path: Path) -> None:
    measure = Measuring(0.25)
    assert Judge(model, True).before(crf_stage(1), tmp_path / "stage2", measure, False) == 0.25
    later = Judge(model, True)
    assert later.before(crf_stage(1), tmp_path / "stage2", Measuring(0.5), True) == 0.25
    assert later.miou == 0.25
    assert measure.calls == 1
    assert Judge(model, True).before(crf_stage(1), tmp_path / "stage2", Measuring(0.5), False) == 0.5


def test_the_start_of_a_network_is_not_measured(model: PiecewiseTrainedModel, tmp_path: Path) -> None:
    measure = Measuring(0.25)
    assert Judge(model, True).before(unary_stage(1), tmp_path, measure, False) is None
    assert Judge(model, True).before(crf_stage(1), tmp_path, None, False) is None
    assert measure.calls == 0


def test_what_is_known_of_the_same_weights_is_not_measured_again(model: PiecewiseTrainedModel, tmp_path: Path) -> None:
    judge, measure = Judge(model, True), Measuring(0.5)
    judge.after(crf_stage(1), tmp_path, None, 0.75)
    assert judge.before(crf_stage(1), tmp_path, measure, False) == 0.75
    assert judge.before(unary_stage(1), tmp_path, measure, False) is None
    assert measure.calls == 0
    spoil(model)
    assert judge.before(crf_stage(1), tmp_path, measure, False) == 0.5


def test_what_is_known_holds_on_the_same_images(model: PiecewiseTrainedModel, tmp_path: Path) -> None:
    judge, images, others = Judge(model, True), object(), object()
    for stage in (crf_stage(1), unary_stage(1)):
        judge.before(stage, tmp_path, Measuring(0.5), False, images)
        judge.after(stage, tmp_path, None, 0.75)
        assert judge.before(stage, tmp_path, Measuring(0.5), False, images) == 0.75
        assert judge.before(stage, tmp_path, Measuring(0.25), False, others) == (0.25 if stage.trains_crf else None)


@pytest.mark.parametrize(
    "crf",
    [DenseCRF(2, kernels=[Kernel(30, 4)]), DenseCRF(2, 1, normalization="none"), DenseCRF(2, 2), None],
    ids=["other parameters", "other options", "other updates", "none"],
)
def test_what_is_known_holds_of_the_same_crf(
    crf: DenseCRF | None, model: PiecewiseTrainedModel, tmp_path: Path
) -> None:
    judge = Judge(model, True)
    judge.after(crf_stage(1), tmp_path, None, 0.75)
    first, model.crf = model.crf, crf
    assert judge.before(crf_stage(1), tmp_path, Measuring(0.5), False) == 0.5
    model.crf = first
    assert judge.before(crf_stage(1), tmp_path, Measuring(0.25), False) == 0.25


def test_what_is_known_holds_of_the_same_network(model: PiecewiseTrainedModel, tmp_path: Path) -> None:
    judge = Judge(model, True)
    judge.after(crf_stage(1), tmp_path, None, 0.75)
    model.unary = nn.Sequential(model.unary)
    assert judge.before(crf_stage(1), tmp_path, Measuring(0.5), False) == 0.5


@pytest.mark.parametrize("writes", [True, False])
def test_only_what_is_worse_is_undone(model: PiecewiseTrainedModel, tmp_path: Path, writes: bool) -> None:
    judge = Judge(model, writes)
    start = judge.before(crf_stage(1), tmp_path, Measuring(0.5), False)
    begun = {name: value.clone() for name, value in model.state_dict().items()}
    spoil(model)
    judge.after(crf_stage(1), tmp_path, start, 0.5)
    assert not any(torch.equal(value, begun[name]) for name, value in model.state_dict().items())
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    spoil(model)
    judge.after(crf_stage(1), tmp_path, 0.5, 0.4)
    assert judge.miou == 0.5
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    assert (tmp_path / "best.ckpt").is_file() == writes == (tmp_path / "begun.json").is_file()
    if writes:
        saved = torch.load(tmp_path / "best.ckpt", weights_only=True)["state_dict"]
        assert all(torch.equal(saved[f"model.{name}"], value) for name, value in kept.items())


def test_forgets(model: PiecewiseTrainedModel, tmp_path: Path) -> None:
    judge = Judge(model, True)
    judge.after(unary_stage(1), tmp_path, None, 0.5)
    judge.forget()
    assert judge.miou is None
